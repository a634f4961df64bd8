"""`selfalign pretrain`: what its flags mean, and the debugging preset from nothing to a policy that acts."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tyro

import selfalign as sa
from selfalign.align.pretrain import PretrainConfig
from selfalign.align.rehearsal import RehearsalConfig
from selfalign.cli import main
from selfalign.commands.pretrain import TrainingConfig
from selfalign.model.losses import LossWeights
from selfalign.train.loop import LoopConfig
from selfalign.train.pointing import PointingConfig
from selfalign.train.step import OptimConfig

ROOT = Path(__file__).parents[2]


def parse(*args: str) -> TrainingConfig:
    return tyro.cli(TrainingConfig, args=args, config=(tyro.conf.OmitArgPrefixes,))


def test_the_published_command_trains_what_it_trained():
    script = (ROOT / "runs" / "1_pretrain.sh").read_text().replace("\\\n", " ")
    (line,) = [line for line in script.splitlines() if line.startswith("selfalign pretrain")]
    config = parse(*shlex.split(line)[2:])
    weights = LossWeights(action=4.0, ttt=0.1, grounding=20.0)
    expected = PretrainConfig(
        steps=10000,
        optim=OptimConfig(learning_rate=2.5e-3),
        rehearsal=RehearsalConfig(
            play_per_slot=6, demonstrations_per_slot=10, widen_steps=3000, decay_steps=30.0, weights=weights
        ),
        pointing=PointingConfig(steps=6000),
        loop=LoopConfig(),
        snapshots=Path("data/snapshots"),
        compile=True,
        task_weights={"reach": 10.0},
        keypoint_words=("tip", "red", "green", "blue", "yellow"),
    )
    assert config.pretraining() == expected
    assert config.preset == "tiny" and config.recordings.data == ("data/sources",)
    assert config.settings().decay_steps == 30.0 and config.settings().rehearsed
    plain = replace(config, bodies=replace(config.bodies, scheme="global")).settings()
    assert replace(plain, rehearsed=True) == config.settings() and not plain.rehearsed, "aligned in the same way"
    assert config.settings().features is None and config.settings("dinov2").features == "dinov2"


def test_the_debugging_preset_needs_no_data(tmp_path):
    flags = "--steps 3 --slots 2 --play-per-slot 2 --demonstrations-per-slot 2 --held-out-rigs 1 --log-every 1"
    out = tmp_path / "debug"
    args = ["pretrain", "--preset", "pi05_alignment_debug", "--out", str(out), *flags.split(), "--threads", "1"]
    assert main([*args, "--ema-decay", "0.9", "--no-tensorboard"]) == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and "val/after/action" in lines[-1]
    policy = sa.load(out / "policy")
    observation = {
        "observation.images.scene": np.zeros((32, 32, 3), np.uint8),
        "observation.state": np.zeros(4, np.float32),
        "task": "reach the red cube",
    }
    play = sa.Play.open(out / "fake_data", embodiment_index=0)
    result = sa.align(policy, play, config=sa.AlignConfig(steps=2, batch_size=4))
    assert policy.act(observation, context=result.context).shape == (8, 4)


def test_every_flag_is_explained(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    page = capsys.readouterr().out.replace("│", " ")
    told = [" ".join(flag.split()) for flag in re.split(r"^ +(?=--[a-z])", page, flags=re.MULTILINE)[1:]]
    names = {flag.split()[0].rstrip(",") for flag in told}
    assert len(names) > 50 and {"--data", "--ema-decay", "--warmup-steps", "--lora-rank", "--wandb"} <= names
    bare = [flag for flag in told if not re.search("[a-z]{2,} [a-z]{2,}|Of [a-zA-Z]", flag.split("(default")[0])]
    assert not bare


def test_the_debugging_preset_takes_a_hundred_steps():
    config = parse("--preset", "pi05_alignment_debug")
    assert config.pretraining().steps == 100 and parse().pretraining().steps == 6000
