"""`bench encoder` and `bench tune` from checkpoint to file, with a made-up robot in the simulator's place."""

import json
from dataclasses import replace

import pytest

from align.factory import make_episode, make_play, small_policy
from baselines.factory import make_demonstrations
from selfalign.baselines import choices, fit, tune
from selfalign.baselines.encoder import TrainedEncoder
from selfalign.checkpoint import save_checkpoint
from selfalign.cli import main
from selfalign.data.fake import write_fake
from selfalign.settings import AlignSettings


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    def play(body, n, length, seed, *, image_size):
        return [make_episode(seed + i, length, size=image_size) for i in range(n)]

    def demonstrations(body, n, seed, *, image_size):
        return make_demonstrations(n)

    monkeypatch.setattr(tune, "record_play", play)
    monkeypatch.setattr(tune, "record_demonstrations", demonstrations)
    policy = replace(small_policy(), settings=AlignSettings(steps=1, batch_size=4))
    return save_checkpoint(policy, tmp_path / "checkpoint")


def test_an_encoder_is_trained_on_recordings(checkpoint, tmp_path, monkeypatch, capsys):
    data, out = write_fake(tmp_path / "data", rigs=4, episodes=2, image_size=16), tmp_path / "encoder.safetensors"
    places = {"checkpoint": checkpoint, "data": data, "features": tmp_path / "features", "out": out}
    flags = [part for name, path in places.items() for part in (f"--{name}", str(path))]
    command = ["bench", "encoder", *flags, "--width", "8", "--steps"]
    assert main([*command, "2"]) == 0
    first = TrainedEncoder.load(out, fingerprint=small_policy().fingerprint())
    assert first.training["steps"] == 2 and first.training["width"] == 8
    told = capsys.readouterr().out
    assert "learned from 4 rigs" in told and "all 2 steps taken" in " ".join(told.split())
    seen = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    assert main([*command, "3"]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()} == seen != {}
    assert TrainedEncoder.load(out).training["steps"] == 3
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "encoder", "--rank", "0"])
    assert "rank=0" in capsys.readouterr().err
    assert main(["bench", "encoder", "--checkpoint", str(checkpoint), "--data", str(tmp_path / "nowhere")]) == 2
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["bench", "encoder", "--checkpoint", str(checkpoint)]) == 2
    assert "record it with `selfalign sources`" in " ".join(capsys.readouterr().err.split())


def test_a_method_is_tuned_and_its_trials_are_written(checkpoint, tmp_path, capsys):
    out = tmp_path / "tune.json"
    flags = ["--checkpoint", checkpoint, "--out", out, "--play", 2, "--play-length", 8, "--judged", 1]
    command = ["bench", "tune", "--method", "frozen", "--scenarios", "camera", "robot", *map(str, flags)]
    assert main(command) == 0
    written = json.loads(out.read_text())
    assert written["scenarios"] == ["camera", "robot"] and len(written["bodies"]) == 2
    assert len(written["trials"]) == 1 and written["best"] == 0
    assert "Best of 1" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--settings", '{"rank": 3}'])
    assert "FrozenConfig has no setting 'rank'" in capsys.readouterr().err


def test_the_best_settings_are_written_where_methods_read_them(checkpoint, tmp_path, monkeypatch):
    out, kept = tmp_path / "tune.json", tmp_path / "choices.json"
    places = ["--checkpoint", checkpoint, "--out", out, "--choose", kept]
    flags = [*places, "--play", 2, "--play-length", 8, "--judged", 1]
    settings = '{"batch_size": 4, "eval_samples": 4}'
    command = ["bench", "tune", "--method", "pad", "--scenarios", "camera", "--trials", "2", "--settings", settings]
    assert main([*command, *map(str, flags)]) == 0
    written = json.loads(out.read_text())
    assert "selfalign" in written["provenance"]["versions"]
    (entry,) = choices.read_choices(kept).values()
    best = written["trials"][written["best"]]
    assert entry["settings"] == {name: best["config"][name] for name in ("steps", "learning_rate", "head")}
    assert entry["score"] == min(trial["score"] for trial in written["trials"]) and entry["trials"] == 2
    monkeypatch.setattr(choices, "_committed", lambda: choices.read_choices(kept))
    adapted = fit("pad", small_policy(), make_play(3, 8), config={"batch_size": 4, "eval_samples": 4, "steps": 1})
    assert adapted.config["learning_rate"] == entry["settings"]["learning_rate"] and adapted.config["steps"] == 1
