"""`torchrun ... -m selfalign.cli pretrain ...` as it is typed: two processes on CPUs, their logs and checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import selfalign as sa
from selfalign.cli import main
from selfalign.train import checkpoint

SOURCE = Path(__file__).parents[2] / "src"
FLAGS = ("--preset", "pi05_alignment_debug", "--slots", "4", "--play-per-slot", "2", "--demonstrations-per-slot", "2")
FLAGS = (*FLAGS, "--widen-steps", "0", "--max-age", "2", "--log-every", "1", "--save-every", "2", "--threads", "1")
COMMAND = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "selfalign.cli")


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, *COMMAND, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def losses(row: dict) -> dict:
    return {name: value for name, value in row.items() if name != "seconds"}


@pytest.mark.slow
def test_two_processes_by_command_train_log_save_and_go_on(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFALIGN_CACHE", str(tmp_path / "cache"))
    out, flags = tmp_path / "two", (*FLAGS, "--steps", "4", "--workers", "1")
    torchrun("pretrain", *flags, "--out", str(out))
    assert [row["step"] for row in lines(out)] == [1, 2, 3, 4], "the first process alone writes the log"
    assert len(list((out / "tensorboard").iterdir())) == 1
    assert [path.name for path in checkpoint.available(out)] == ["step-0000002.pt", "step-0000004.pt"]
    assert not list(out.glob("nonfinite-*"))
    fingerprint = sa.load(out / "policy").fingerprint()

    # Without its last checkpoint it goes on from the one before, and ends with the same weights.
    last = out / "step-0000004.pt"
    weights = torch.load(last, weights_only=True)["model"]
    last.unlink()
    before = lines(out)
    spoilt = [row if row["step"] <= 2 else {**row, "loss/total": -1.0} for row in before]
    (out / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in spoilt))
    torchrun("pretrain", *flags, "--out", str(out))
    assert all(
        torch.equal(tensor, weights[name]) for name, tensor in torch.load(last, weights_only=True)["model"].items()
    )
    assert [losses(row) for row in lines(out)] == [losses(row) for row in before], "lines beyond it are written anew"
    assert sa.load(out / "policy").fingerprint() == fingerprint

    alone = tmp_path / "one"
    assert main(["pretrain", *FLAGS, "--steps", "4", "--out", str(alone)]) == 0
    for row, expected in zip(before, lines(alone), strict=True):
        assert losses(row) == pytest.approx(losses(expected), rel=2e-3, abs=1e-5)
