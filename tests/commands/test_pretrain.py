"""`selfalign pretrain`: what its flags mean, and the debugging preset from nothing to a policy that acts."""

import json
import re
import shlex
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro

import selfalign as sa
from checkpoints import small_sentencepiece
from selfalign import presets
from selfalign.align.pretrain import PretrainConfig
from selfalign.align.rehearsal import RehearsalConfig
from selfalign.checkpoint import save_checkpoint
from selfalign.cli import main
from selfalign.commands.pretrain import TrainingConfig
from selfalign.data.cache import EpisodeCache
from selfalign.data.fake import write_fake
from selfalign.data.sources import SourceData
from selfalign.model.losses import LossWeights
from selfalign.model.policy import VLA
from selfalign.model.tokenizer import ByteTokenizer, PaliGemmaTokenizer
from selfalign.policy import Policy
from selfalign.settings import AlignSettings
from selfalign.train import checkpoint, loop
from selfalign.train.loop import LoopConfig
from selfalign.train.pointing import PointingConfig
from selfalign.train.step import OptimConfig, train_step

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


def test_a_policy_says_that_it_is_aligned_as_it_was_rehearsed(monkeypatch):
    plain = TrainingConfig.pretraining
    told = {"learning_rate": 0.03, "betas": (0.5, 0.6), "clip_norm": 0.3, "decay_steps": 7.0}
    told["weights"] = LossWeights(action=3.0, perception=0.2, dynamics=0.7, inverse=2.5, ttt=0.4)

    def otherwise(self):
        config = plain(self)
        return replace(config, rehearsal=replace(config.rehearsal, **told))

    monkeypatch.setattr(TrainingConfig, "pretraining", otherwise)
    assert TrainingConfig().settings() == AlignSettings(**told, rehearsed=True)


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


@pytest.fixture
def reader(tmp_path) -> Path:
    """A checkpoint that reads by a sentencepiece model, as pi0 does."""
    (tmp_path / "words.model").write_bytes(small_sentencepiece())
    torch.manual_seed(0)
    model = VLA(presets.get("pi05_alignment_debug"))
    words = PaliGemmaTokenizer(tmp_path / "words.model", model.config.max_token_len)
    return save_checkpoint(Policy(model, words, AlignSettings.unrehearsed()), tmp_path / "reader")


def train_on_fake(tmp_path, *flags: str) -> int:
    data = tmp_path / "data"
    if not data.is_dir():
        write_fake(data, rigs=2, episodes=2, image_size=32)
    size = "--steps 1 --slots 2 --play-per-slot 4 --demonstrations-per-slot 64 --weight-decay 0 --warmup-steps 1"
    out = ["--out", str(tmp_path / "out"), "--data", str(data), "--threads", "1", "--no-tensorboard"]
    return main(["pretrain", *out, *size.split(), *flags])


def test_an_interrupted_training_is_not_a_finished_one(tmp_path, monkeypatch, capsys):
    three = ("--preset", "pi05_alignment_debug", "--steps", "3")

    def interrupted(state):
        signal.raise_signal(signal.SIGINT)
        return train_step(state)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", interrupted)
        assert train_on_fake(tmp_path, *three) == 130, "or a script would go on with half a policy"
    assert "stopped at step 1 of 3; the same command goes on from there" in capsys.readouterr().err
    assert sa.load(tmp_path / "out" / "policy").model.config, "what there is can be tried"
    assert train_on_fake(tmp_path, *three) == 0
    assert [path.name for path in checkpoint.available(tmp_path / "out")][-1] == "step-0000003.pt"


def test_every_export_belongs_together(tmp_path):
    """A fused optimiser changes weights without counting up their versions."""
    flags = ("--preset", "pi05_alignment_debug", "--steps", "3", "--save-every", "1", "--weight-decay", "0.1")
    assert train_on_fake(tmp_path, *flags) == 0
    policy = sa.load(tmp_path / "out" / "policy")
    assert policy.fingerprint() == policy.model.fingerprint()


def test_a_model_keeps_the_words_that_it_starts_with(reader, tmp_path):
    (reader / "tokenizer.model").write_bytes((tmp_path / "words.model").read_bytes())
    assert train_on_fake(tmp_path, "--start", str(reader)) == 0
    trained, start = sa.load(tmp_path / "out" / "policy", tokenizer=reader), sa.load(reader)
    assert isinstance(trained.tokenizer, PaliGemmaTokenizer) and trained.settings.rehearsed
    assert trained.model.config == start.model.config, "without --preset, the architecture is that of the start"
    # Only tokens that were read have moved: those of the instructions, as the sentencepiece model cuts them.
    moved = (trained.model.embed_tokens.weight - start.model.embed_tokens.weight).abs().sum(1).nonzero()[:, 0].tolist()
    tasks = ["", *EpisodeCache.build(SourceData.open([tmp_path / "data"]), image_size=32, progress=False).tasks]
    tokens, mask = start.tokenizer.encode(tasks)
    assert set(moved) <= set(tokens[mask].tolist()) and len(moved) > 5
    assert set(moved) != set(ByteTokenizer(48).encode(tasks)[0].flatten().tolist())


def test_words_that_are_not_there_are_missed_at_once(reader, tmp_path, capsys):
    assert train_on_fake(tmp_path, "--start", str(reader)) != 0
    assert "selfalign pretrain --tokenizer PATH" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "policy").exists()
    assert train_on_fake(tmp_path, "--preset", "pi05_alignment_debug", "--tokenizer", "x") != 0
    assert "give --start too" in " ".join(capsys.readouterr().err.split())
    assert train_on_fake(tmp_path, "--start", str(reader), "--tokenizer", str(tmp_path / "words.model")) == 0


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
