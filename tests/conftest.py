"""Checks the shapes of arrays at selfalign's boundaries in every test, and keeps each worker to one thread."""

import os

# Before torch, NumPy and the simulator are imported; pytest's workers share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import pytest
import torch
from jaxtyping import install_import_hook

# Must come before any import of selfalign. SELFALIGN_TEST_TYPES=0 turns it off, for timing.
if os.environ.get("SELFALIGN_TEST_TYPES", "1") != "0":
    install_import_hook("selfalign", "typecheck.typechecked")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Each test starts from the same global random state, whichever worker runs it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def small_cache(tmp_path_factory: pytest.TempPathFactory):
    """Recordings of two rigs, decoded (see `align.rehearsing`)."""
    from align.rehearsing import make_cache

    return make_cache(tmp_path_factory.mktemp("recordings"))


@pytest.fixture
def small_sources(small_cache):
    """Those recordings as sources of embodiments."""
    from align.rehearsing import make_sources

    return make_sources(small_cache)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory):
    """A checkpoint of an untrained model (see `bench.acting`)."""
    from bench.acting import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def panda_arena():
    """Simulations of one robot."""
    from selfalign.bench.rollout import Arena
    from selfalign.sim.robots import RobotSpec

    with Arena(RobotSpec("panda")) as arena:
        yield arena
