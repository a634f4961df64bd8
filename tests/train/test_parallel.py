"""Two processes through torchrun (gloo) train as one does, and resume from their checkpoints exactly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from align.rehearsing import state_for
from selfalign.model.weights import unique_tensors
from selfalign.train import checkpoint
from selfalign.train.export import finished
from selfalign.train.step import train_step
from selfalign.train.world import World
from train.processes import STEPS, fresh

TESTS = Path(__file__).parents[1]


def torchrun(strategy: str, cache: Path, out: Path) -> dict:
    paths = [str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(TESTS / "train" / "processes.py"), strategy, str(cache), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(out / "result.pt", weights_only=True)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_as_one_and_resume(small_cache, tmp_path, strategy):
    found = torchrun(strategy, small_cache.root, tmp_path)
    assert found["size"] == 2
    alone = fresh(small_cache.root)
    for row in found["rows"]:
        assert row == pytest.approx(train_step(alone), rel=2e-3, abs=1e-6)
    shipped, (model, resumed) = unique_tensors(finished(alone)), found["models"]
    for name, tensor in shipped.items():
        torch.testing.assert_close(model[name], tensor, rtol=1e-2, atol=2e-4, msg=name)
        assert torch.equal(resumed[name], model[name]), name
    assert found["later"] == found["rows"][STEPS // 2 :]

    (saved,) = checkpoint.available(tmp_path)
    if strategy == "ddp":  # any number of processes goes on from it
        checkpoint.restore(alone, saved)
        assert train_step(alone) == pytest.approx(found["rows"][STEPS // 2], rel=2e-3, abs=1e-6)
    else:
        with pytest.raises(ValueError, match="of a training with FSDP and cannot go on without it"):
            checkpoint.restore(alone, saved)


def test_slots_that_processes_cannot_share_are_refused(small_sources):
    with pytest.raises(ValueError, match="3 slots cannot be shared evenly by 2 processes"):
        state_for(small_sources, world=World(rank=1, size=2))
