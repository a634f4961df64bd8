"""The whole life by commands, on data as LeRobot has it: video, named dimensions, nothing from inside a simulator."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro

from selfalign import presets
from selfalign.checkpoint import save_checkpoint
from selfalign.cli import Command, main
from selfalign.data.lerobot import LeRobotReader
from selfalign.model.config import VLAConfig
from selfalign.model.policy import VLA
from selfalign.model.tokenizer import ByteTokenizer
from selfalign.model.vision import KeypointTowerConfig
from selfalign.policy import Policy
from small_model import small_config

SIZE = 32


def config() -> VLAConfig:
    tower = KeypointTowerConfig(image_size=SIZE, channels=(8, 8, 8), named=3, free=1, grid=2, feature_dim=4)
    return replace(small_config(action_dim=8, state_dim=8, vocab_size=258, max_token_len=48), vision=tower)


def run(*args) -> int:
    return main([str(arg) for arg in args])


def test_recorded_videos_are_pretrained_on_aligned_to_and_acted_upon(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(presets, "get", lambda name: config())
    torch.manual_seed(0)
    save_checkpoint(Policy.from_model(VLA(config()).eval()), tmp_path / "start")
    small = ("--image-size", SIZE)
    counts = ("--play-per-rig", 1, "--demonstrations-per-rig", 1, "--kinds", "reach", "--arms", "panda")
    assert run("sources", "--plain", "--rigs", 2, *counts, *small, "--workers", 0, "--out", tmp_path / "data") == 0
    reader = LeRobotReader(tmp_path / "data" / "shard-000")
    assert reader.info.extra == () and all(f.is_video for n, f in reader.info.columns.items() if "images" in n)
    assert all(body.keys() == {"name"} for body in reader.embodiments)

    training = ("--steps", 2, "--slots", 2, "--play-per-slot", 2, "--demonstrations-per-slot", 2, "--threads", 1)
    monkeypatch.setattr("selfalign.commands.pretrain._words", lambda *_: ByteTokenizer(48))
    places = ("--preset", "tiny", "--start", tmp_path / "start", "--out", tmp_path / "run")
    named = ("--changes", "frames", "rate", "targets", "joints", "--widen-steps", 0, "--workers", 1)
    assert run("pretrain", "--data", f"lerobot:{tmp_path / 'data'}", *places, *training, *named) == 0

    play, context = tmp_path / "play", tmp_path / "context.safetensors"
    assert run("play", "--out", play, "--trajectories", 3, "--length", 20, *small, "--video") == 0
    policy = ("--checkpoint", tmp_path / "run" / "policy")
    fit = ("--steps", 2, "--batch-size", 4, "--force")
    assert run("align", "--play", f"lerobot:{play}", "--out", context, *policy, *fit) == 0
    result = tmp_path / "eval.json"
    assert run("eval", "--context", context, "--body", play, *policy, "--episodes", 1, "--out", result) == 0
    assert json.loads(result.read_text())["success"]["episodes"] == 1


def test_the_published_commands_are_understood():
    script = (Path(__file__).parents[2] / "runs" / "7_real_format.sh").read_text().replace("\\\n", " ")
    script = re.sub(r'\$\(\([^)]*\)\)|"\$(rigs|steps|episodes)"', "3", script.replace('"$@"', "--prior"))
    lines = [shlex.split(line) for line in re.findall(r"^.*?\bselfalign (.*)$", script, re.MULTILINE) if line[0] != "#"]
    commands = [line for line in lines if line[0] in ("sources", "inspect", "pretrain", "play", "align", "eval")]
    assert len(commands) == 7
    for command in commands:
        if command[0] == "play" and command[1].startswith("--"):
            command.insert(1, "record")  # as `main` does
        tyro.cli(Command, args=command, config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes))


def test_dimensions_without_a_name_are_asked_for(tmp_path, monkeypatch, capsys):
    from test_cli import write_play

    monkeypatch.setattr(presets, "get", lambda name: config())
    start = ("--preset", "tiny", "--start", tmp_path / "start")
    assert run("pretrain", "--data", write_play(tmp_path / "play"), "--out", tmp_path / "run", *start) == 2
    assert "say --bodies xyz" in capsys.readouterr().err
    assert run("pretrain", "--data", tmp_path / "play", "--out", tmp_path / "run", "--bodies", "xyz") == 2
    assert "or start from a checkpoint whose tower has learned to see" in capsys.readouterr().err
    assert run("pretrain", "--data", tmp_path / "play", "--out", tmp_path / "run", "--cameras", "scene", "top") == 2
    assert "has no camera top; it has scene" in capsys.readouterr().err
    contrast = ("--bodies", "none", "--lambda-contrastive", "0.1")
    assert run("pretrain", "--data", tmp_path / "play", "--out", tmp_path / "run", *start, *contrast) == 2
    assert "with --bodies none there are no others" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("args", [("--bodies", "sim"), ("--bodies", "joints")])
def test_the_data_may_be_overruled(args, tmp_path, monkeypatch):
    from test_cli import write_play

    seen = []
    monkeypatch.setattr(presets, "get", lambda name: config())
    monkeypatch.setattr("selfalign.commands.pretrain.pretrain", lambda *a, **k: seen.append(a[4]) or VLA(config()))
    monkeypatch.setattr("selfalign.commands.pretrain._words", lambda *_: ByteTokenizer(48))
    places = ("--preset", "tiny", "--start", tmp_path / "start", "--out", tmp_path / "run")
    assert run("pretrain", "--data", write_play(tmp_path / "play"), *places, *args) == 0
    assert ("source_perturbation" in repr(seen[0])) == (args[1] == "sim")
