import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from selfalign.acting import Acting
from selfalign.bench.rollout import Arena
from selfalign.bench.subject import align_stepwise, collect_play
from selfalign.checkpoint import load, save_checkpoint
from selfalign.commands.evaluate import EvalConfig, read_body, run
from selfalign.sim.bodies import sample_bodies

# Play as short as in these tests may leave the gripper alone.
pytestmark = pytest.mark.filterwarnings("ignore:near-constant dimensions")


@pytest.fixture(scope="module")
def files(checkpoint: Path, panda_arena: Arena, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("eval")
    policy, body = load(checkpoint), sample_bodies(1, seed=2, scenario="camera")[0]
    play = collect_play(policy, body, 2, 11, 5, panda_arena.simulations(1)[0])
    fitted = align_stepwise(policy, play).result.fitted  # after two steps, perhaps the prior itself
    generator = torch.Generator().manual_seed(0)
    context = fitted.perturbed(1.0, generator=generator).save(folder / "body.safetensors")
    (folder / "body.json").write_text(json.dumps({"name": body.name, **body.to_dict()}))
    return checkpoint, context, folder / "body.json", body


def test_eval_writes_film_and_json(files, tmp_path: Path, capsys: pytest.CaptureFixture):
    checkpoint, context, body_file, body = files
    config = EvalConfig(
        checkpoint,
        context,
        body_file,
        episodes=2,
        films=1,
        execute=8,
        num_steps=1,
        video=tmp_path / "a.gif",
        out=tmp_path / "a.json",
    )
    result = run(config)
    assert result["success"]["episodes"] == 2
    assert json.loads((tmp_path / "a.json").read_text()) == result
    assert Image.open(tmp_path / "a.gif").n_frames > 10
    printed = capsys.readouterr().out
    assert body.name in printed.replace("\n", "")
    assert "of 2" in printed


def test_prior_and_context_meet_the_same_scenes(files):
    checkpoint, context, body_file, _ = files
    runs = [
        run(EvalConfig(checkpoint, context, body_file, prior, episodes=1, execute=8, num_steps=1), show=False)
        for prior in (True, False)
    ]
    words = [[episode["instruction"] for episode in result["outcomes"]] for result in runs]
    assert words[0] == words[1]
    assert runs[0]["outcomes"] != runs[1]["outcomes"]


def test_speed_and_temperature_are_the_checkpoints_own_unless_they_are_given(files, tmp_path: Path):
    checkpoint, context, body_file, _ = files
    own = save_checkpoint(replace(load(checkpoint), acting=Acting(3.0, 0.5)), tmp_path)

    def outcomes(checkpoint: Path, **acting: float) -> tuple[list, dict]:
        config = EvalConfig(checkpoint, context, body_file, episodes=1, execute=8, num_steps=1, **acting)
        result = run(config, show=False)
        return result["outcomes"], result["acting"]

    fast = outcomes(checkpoint, speed=3.0, temperature=0.5)
    assert fast == outcomes(own) and fast[1] == {"speed": 3.0, "temperature": 0.5}
    assert outcomes(own, speed=1.0, temperature=1.0) == outcomes(checkpoint)
    assert fast[0] != outcomes(checkpoint)[0]
    with pytest.raises(ValueError, match="the speed of acting must be positive"):
        outcomes(checkpoint, speed=-1.0)


def test_read_body(files, tmp_path: Path):
    body = files[3]
    (tmp_path / "meta").mkdir()
    listed = tmp_path / "meta" / "embodiments.json"
    listed.write_text(json.dumps([body.to_dict()]))
    assert read_body(files[2]) == read_body(tmp_path) == body
    listed.write_text(json.dumps([body.to_dict()] * 2))
    with pytest.raises(ValueError, match="lists 2 bodies"):
        read_body(tmp_path)
    listed.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        read_body(tmp_path)
    listed.write_text('{"arm": "panda"}')
    with pytest.raises(ValueError, match="not a body specification"):
        read_body(tmp_path)
    with pytest.raises(FileNotFoundError, match="no body at"):
        read_body(tmp_path / "none.json")


def test_a_context_of_another_body_is_refused_with_words(files, tmp_path: Path):
    checkpoint, context, _, _ = files
    joint = tmp_path / "joint.json"
    joint.write_text(json.dumps(sample_bodies(1, seed=0, scenario="joint")[0].to_dict()))
    with pytest.raises(ValueError, match="dimensions"):
        run(EvalConfig(checkpoint, context, joint, episodes=1), show=False)
    with pytest.raises(ValueError, match=r"\.gif or an \.mp4"):
        run(EvalConfig(checkpoint, context, joint, video=Path("a.avi")), show=False)
    with pytest.raises(FileNotFoundError, match="no context file"):
        run(EvalConfig(checkpoint, tmp_path / "none.safetensors", joint), show=False)
