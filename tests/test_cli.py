"""The command line: what a user sees when something is wrong, and the happy path from play to context file."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import selfalign as sa
from full_disk import no_room
from goldens import OpenPIGolden
from selfalign.checkpoint import save_checkpoint
from selfalign.cli import main
from selfalign.data.episodes import Episode
from selfalign.data.lerobot import LeRobotWriter
from selfalign.data.normalize import NormStats
from selfalign.data.play import Play
from selfalign.model.config import VLAConfig
from selfalign.model.policy import VLA
from selfalign.model.streams import StreamConfig
from selfalign.model.ttt import TTTConfig
from selfalign.model.vision import KeypointTowerConfig
from selfalign.policy import Policy
from selfalign.sim.bodies import BodySpec


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    expert = StreamConfig(width=16, mlp_dim=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8)
    tower = KeypointTowerConfig(image_size=16, channels=(8, 8, 8), named=2, free=0, grid=1, feature_dim=2)
    config = VLAConfig(vlm=expert, action=expert, alignment=expert, ttt=TTTConfig(2, 8), vision=tower)
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    save_checkpoint(Policy.from_model(VLA(config).eval()), folder)
    return folder


def write_play(folder, *, length=30, episodes=4, poison=False):
    rng = np.random.default_rng(0)
    with LeRobotWriter(folder, fps=20.0, embodiments=[{"name": "my_robot"}]) as writer:
        for i in range(episodes):
            action = rng.normal(size=(length, 4)).astype(np.float32)
            if poison and i == 2:
                action[5, 1] = np.nan
            writer.add_episode(
                Episode(
                    images={"scene": rng.integers(0, 255, (length, 16, 16, 3), dtype=np.uint8)},
                    state=rng.normal(size=(length, 4)).astype(np.float32),
                    action=action,
                    is_play=True,
                )
            )
    return folder


def align_args(checkpoint, play, out, *more):
    args = ["align", "--checkpoint", checkpoint, "--play", play, "--out", out, "--steps", 3, "--batch-size", 4, *more]
    return [str(a) for a in args]


@pytest.mark.parametrize("command", ["align --play play --out a.safetensors", "eval --context c --body b.json"])
def test_the_model_goes_to_the_device_that_is_named(checkpoint, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    went = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)

    def to(model, device):
        went.append(device)
        raise RuntimeError("far enough")

    monkeypatch.setattr(VLA, "to", to)
    assert main([*command.split(), "--checkpoint", str(checkpoint), "--device", "cuda"]) == 2
    assert went == [torch.device("cuda")] and "far enough" in capsys.readouterr().err


def test_align_writes_a_context_that_loads(checkpoint, tmp_path, capsys):
    play, out = write_play(tmp_path / "play"), tmp_path / "contexts" / "robot.safetensors"
    assert main(align_args(checkpoint, play, out, "--force")) == 0
    policy = sa.load(checkpoint)
    context = sa.EmbodimentContext.load(out, fingerprint=policy.fingerprint())
    assert context.info.embodiment == "my_robot" and context.info.norm_stats is not None
    observation = {
        "observation.images.scene": np.zeros((16, 16, 3), np.uint8),
        "observation.state": np.zeros(4, np.float32),
        "task": "reach the red cube",
    }
    assert policy.act(observation, context).shape == (8, 4)
    assert "held-out play loss" in capsys.readouterr().out
    assert main(["inspect", "--context", str(out)]) == 0
    assert "my_robot" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tmp: tmp / "nowhere", "nowhere"),
        (lambda tmp: write_play(tmp / "short", length=8), "too short: a transition needs 9 frames"),
        (lambda tmp: write_play(tmp / "nan", poison=True), "episode 2, frame 5, column 'action', dimension 1"),
    ],
    ids=["missing", "too short", "NaN"],
)
def test_bad_play_is_explained(checkpoint, tmp_path, capsys, make, message):
    out = tmp_path / "context.safetensors"
    assert main(align_args(checkpoint, make(tmp_path), out)) == 2
    error = capsys.readouterr().err
    assert error.startswith("selfalign: ") and message in error
    assert not out.exists()


def test_play_is_normalised_by_given_statistics(checkpoint, tmp_path, capsys):
    play, other, out = write_play(tmp_path / "play"), write_play(tmp_path / "other", length=40), tmp_path / "context"
    stats = tmp_path / "stats.json"
    assert main(["stats", "--data", str(other), "--out", str(stats), "--format", "selfalign"]) == 0
    assert main(align_args(checkpoint, play, out, "--force", "--stats", stats)) == 0
    told = NormStats.from_dict(sa.EmbodimentContext.load(out).info.norm_stats)
    expected, own = Play.open(other).stats(), Play.open(play).stats()
    np.testing.assert_allclose(told.action.std, expected.action.std, rtol=1e-6)
    np.testing.assert_allclose(told.state.mean, expected.state.mean, rtol=1e-5, atol=1e-7)
    assert not np.allclose(told.action.std, own.action.std, rtol=1e-3)
    data = json.loads(stats.read_text())
    wide = {**data, "action": {k: v if k == "count" else v + v[:1] for k, v in data["action"].items()}}
    for wrong, message in (
        (wide, "statistics of 4 numbers of state and 5 of action, the play has 4 and 4"),
        ({"norm_stats": data}, "is no file of `selfalign stats --format selfalign`"),
    ):
        stats.write_text(json.dumps(wrong))
        assert main(align_args(checkpoint, play, tmp_path / "none", "--stats", stats)) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_where_nothing_can_be_written_is_told_before_the_work(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(align_args(tmp_path / "no checkpoint", tmp_path / "no play", tmp_path)) == 2
    assert "is a directory; name a file in it" in capsys.readouterr().err
    assert main(align_args(tmp_path / "no checkpoint", tmp_path / "no play", tmp_path / "file" / "context")) == 2
    assert "is no directory that you may write to" in capsys.readouterr().err


RECORDINGS = Path(__file__).parent / "data" / "recordings" / "v3.0-images"
MISSING = "no data set at MISSING: the path does not exist"
NO_CHECKPOINT = "MISSING is not a checkpoint: it has no config.json"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sources --arms ur5e --out OUT", "one or more of the arms panda, .*; got ur5e"),
        ("sources --arms --out OUT", "one or more of the arms panda, .*; got none"),
        ("sources --rigs 0 --out OUT", "needs at least one rig"),
        ("sources --cameras 0 --out OUT", "at least one camera pose, got cameras=0"),
        ("sources --image-size 0 --out OUT", "at least one pixel, got image_size=0"),
        ("snapshots --count 0 --out OUT", "give an even count from 2 on, not 0"),
        ("snapshots --count 7 --out OUT", "give an even count from 2 on, not 7"),
        ("snapshots --arms ur5e --out OUT", "may show the arms panda, .*; got ur5e"),
        ("pretrain --data MISSING --out OUT", MISSING),
        ("pretrain --data lerobot: --out OUT", "lerobot: names no path; write lerobot:PATH"),
        ("pretrain --data hdf5:MISSING --out OUT", "unknown kind of data set 'hdf5'"),
        ("pretrain --data EMPTY --out OUT", "EMPTY holds no data set"),
        (
            "pretrain --out OUT",
            "there is no data/sources: record it with `selfalign sources`, or name data sets with --data",
        ),
        ("pretrain --preset huge --out OUT", "no preset 'huge'; there are: .*tiny"),
        ("pretrain --preset pi05_alignment_debug --workers -1 --out OUT", "-1 workers cannot load data"),
        ("pretrain --preset pi05_alignment_debug --data DATA --start MISSING --bodies xyz --out OUT", "MISSING"),
        ("stats --data MISSING", MISSING),
        ("stats --data rlds:MISSING", "write rlds:PATH@HZ"),
        ("stats --data EMPTY", "EMPTY holds no data set"),
        ("features --data MISSING --checkpoint MISSING --out OUT", MISSING),
        ("features --data DATA --checkpoint MISSING --out OUT", NO_CHECKPOINT),
        ("convert MISSING OUT --to openpi", "no checkpoint directory at MISSING"),
        ("convert EMPTY OUT --to openpi", "EMPTY"),
        ("play import --source MISSING --out OUT", MISSING),
        ("play import --source DATA --out BROKEN", "BROKEN exists already; choose another place or remove it first"),
        ("play --body MISSING --out OUT", "MISSING"),
        ("align --play MISSING --checkpoint MISSING --out OUT", "MISSING"),
        ("align --play DATA --checkpoint MISSING --out OUT", "no checkpoint directory at MISSING"),
        ("inspect --data MISSING", MISSING),
        ("inspect --checkpoint MISSING", "no model.safetensors"),
        ("inspect --checkpoint BROKEN", "BROKEN/config.json is not JSON"),
        ("inspect --context MISSING", "MISSING"),
        ("inspect --context BROKEN/config.json", "BROKEN/config.json"),
        ("inspect --preset huge", "no preset 'huge'"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    places = {"MISSING": tmp_path / "missing", "EMPTY": tmp_path / "empty", "OUT": tmp_path / "out", "DATA": RECORDINGS}
    places["BROKEN"] = tmp_path / "broken"
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    for name, path in places.items():
        command, message = command.replace(name, str(path)), message.replace(name, str(path))
    assert main(command.split()) == 2
    told = capsys.readouterr().err
    assert re.search(message, told), told
    assert told.startswith("selfalign: ") and told.count("\n") == 1 and "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_a_full_disk_keeps_the_old_context(checkpoint, tmp_path, capsys):
    play, out = write_play(tmp_path / "play"), tmp_path / "context.safetensors"
    assert main(align_args(checkpoint, play, out, "--force")) == 0
    before = out.read_bytes()

    with no_room(1024):
        assert main(align_args(checkpoint, play, out, "--force", "--seed", "1")) == 2
    assert "selfalign: [Errno 27] File too large" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert [p.name for p in tmp_path.glob(".context*")] == []


def test_a_context_of_another_model_is_refused(checkpoint, tmp_path, capsys):
    play, out = write_play(tmp_path / "play"), tmp_path / "context.safetensors"
    assert main(align_args(checkpoint, play, out, "--force")) == 0
    torch.manual_seed(1)
    other = VLA(sa.load(checkpoint).model.config).eval()
    save_checkpoint(Policy.from_model(other), tmp_path / "other")
    capsys.readouterr()
    body = tmp_path / "body.json"
    body.write_text(json.dumps(BodySpec().to_dict()))
    args = ["eval", "--checkpoint", tmp_path / "other", "--context", out, "--body", body, "--episodes", 3]
    assert main([str(a) for a in args]) == 2
    assert "another model" in capsys.readouterr().err


def test_stats_are_shown_written_and_refused(tmp_path, capsys):
    play = write_play(tmp_path / "play")
    assert main(["stats", "--data", str(play), "--out", str(tmp_path / "assets"), "--mode", "quantile"]) == 0
    told = capsys.readouterr().out
    assert "action, 120 vectors" in told and (tmp_path / "assets" / "norm_stats.json").is_file()
    robot = ["--robot", "sim_panda", "--play-only", "--clip", "3"]
    assert main(["stats", "--data", str(play), *robot]) == 0
    assert "3 opening" in capsys.readouterr().out
    assert main(["stats", "--data", str(play), "--robot", "aloha", "--horizon", "8"]) == 2
    assert "has 4 dimensions in the data, aloha has 14" in capsys.readouterr().err
    assert main(["stats", "--data", str(write_play(tmp_path / "bad", poison=True))]) == 2
    assert "nan in episode 2 of those counted, frame 5, column 'action', dimension 1" in capsys.readouterr().err


def test_play_is_imported_inspected_and_aligned_to(checkpoint, tmp_path, capsys):
    recordings, play = write_play(tmp_path / "recordings"), tmp_path / "play"
    args = ["play", "import", "--source", f"lerobot:{recordings}", "--out", play, "--name", "other", "--seconds", "5"]
    assert main([str(a) for a in args]) == 0
    assert "4 episodes of other, 6 s" in capsys.readouterr().out
    page = tmp_path / "plots" / "play.html"
    assert main(["inspect", "--data", f"lerobot:{play}", "--plots", str(page)]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("4 (4 of play)", "120 at 20 Hz", "scene 16x16, image", "action", "q99"))
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 2 * 4 + 2 * 3 and text.count("data:image/jpeg") == 3
    assert main(align_args(checkpoint, f"lerobot:{play}", tmp_path / "c.safetensors", "--force")) == 0
    assert main(["inspect", "--data", "zarr:here"]) == 2
    assert "unknown kind of data set 'zarr'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["inspect", "--preset", "tiny", "--plots", str(page)])


def test_damaged_episodes_are_listed_by_inspect(tmp_path, capsys):
    play = write_play(tmp_path / "play")
    (play / "meta" / "checksums.json").unlink()
    (file,) = (play / "data").rglob("*.parquet")
    table = pq.read_table(file)
    row = table.column_names.index("frame_index")
    numbers = table["frame_index"].to_numpy().copy()
    numbers[40] = 7
    pq.write_table(table.set_column(row, "frame_index", pa.array(numbers)), file)
    with pytest.warns(UserWarning, match="1 of 4 episodes are broken"):
        assert main(["inspect", "--data", str(play), "--no-strict"]) == 0
    told = capsys.readouterr().out
    assert "90 at 20 Hz" in told and "row 40" in told.replace("\n", "")


def test_inspect_tells_what_a_preset_costs(capsys):
    work = ["--prompt", "12", "--cameras", "2", "--steps", "5", "--batch", "2", "--tflops", "1e-3", "--gbps", "1"]
    assert main(["inspect", "--preset", "small", *work]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("vlm stream", "MB in bf16", "denoising step", "least ms", "align step"))
    assert "0.001 TFLOP/s, 1 GB/s" in told and "12 prompt tokens" in told
    assert main(["inspect", "--preset", "tiny", "--device", "abacus"]) == 2
    assert "no device 'abacus'; there are: h200" in capsys.readouterr().err


def test_inspect_reads_checkpoints_of_openpi_and_our_own(checkpoint, tmp_path, capsys):
    golden = OpenPIGolden.read("openpi_pi05")
    shutil.copy(golden.directory / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"head_dim": 16, "vision_heads": 4}))
    assert main(["inspect", "--checkpoint", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "(openpi)" in told and "adaRMS modulations" in told and "align step" not in told
    assert main(["inspect", "--checkpoint", str(checkpoint)]) == 0
    assert "fingerprint" in capsys.readouterr().out
    assert main(["inspect", "--checkpoint", str(tmp_path / "nowhere")]) == 2
    assert "no model.safetensors" in capsys.readouterr().err


def test_inspect_takes_exactly_one_thing(capsys):
    assert main(["inspect", "--preset", "tiny"]) == 0
    assert "one embodiment context W" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["no-such-command"])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("play --axes --length 0 --out nowhere", "length=0 (at least 1)"),
        ("play --trajectories 0 --image-size 0 --out nowhere", "trajectories=0 (at least 1), image_size=0"),
        ("play import --source here --seconds 0 --out nowhere", "--seconds must be above 0"),
    ],
)
def test_amounts_of_nothing_are_refused(capsys, command, message):
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2 and message in " ".join(capsys.readouterr().err.split())
