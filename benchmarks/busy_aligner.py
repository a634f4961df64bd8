"""An aligner that is always at work, in its own process as beside a server: what `serve_load.py` measures against."""

import tempfile
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from selfalign.checkpoint import save_checkpoint
from selfalign.online.aligner import Aligner
from selfalign.online.config import AlignerConfig
from selfalign.online.experience import LOOKS, Step, picture
from selfalign.online.jobs import AlignJob, Material
from selfalign.online.ring import Ring
from selfalign.online.worker import WorkerSettings
from selfalign.policy import Policy

BODY, EXECUTED = "body0", 4


class BusyAligner:
    """Aligns to random steps of a robot, as often as it is let.

    Args:
        policy: whose checkpoint the process gets.
        config: threads, niceness and limits of the process.
        folder: where checkpoint, steps and contexts are written.
        steps: of each alignment; one follows the other.
        seed: draws the steps of the robot.
    """

    def __init__(self, policy: Policy, config: AlignerConfig, folder: Path, steps: int, seed: int):
        save_checkpoint(policy, folder / "checkpoint")
        assert policy.stats is not None
        context = policy.model.prior().detach()
        context = context.with_info(fingerprint=policy.fingerprint(), norm_stats=policy.stats.to_dict())
        context.save(folder / "live.safetensors")
        material = random_steps(policy, folder / "steps", transitions=256, seed=seed)
        self._job = AlignJob(material, folder / "live.safetensors", folder / "fitted.safetensors", steps, 0.05)
        settings = WorkerSettings(
            folder / "checkpoint",
            policy.fingerprint(),
            threads=config.aligner_threads,
            nice=config.aligner_nice,
            memory_mb=config.aligner_memory_mb,
        )
        self._aligner = Aligner(settings, config.aligner_timeout)
        self.seconds: list[float] = []
        """That each finished alignment took."""
        self._aligner.run(self._job)  # starts the process

    @contextmanager
    def working(self) -> Iterator[None]:
        """One alignment after the other; leaves when the last one is over."""
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                self.seconds.append(self._aligner.run(self._job)["seconds"])

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def close(self) -> None:
        self._aligner.close()


@contextmanager
def busy_aligner(policy: Policy, config: AlignerConfig, steps: int, seed: int = 0) -> Iterator[BusyAligner]:
    """Started, and ended with everything that it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        aligner = BusyAligner(policy, config, Path(folder), steps, seed)
        try:
            yield aligner
        finally:
            aligner.close()


def random_steps(policy: Policy, folder: Path, transitions: int, seed: int) -> Material:
    """Chains of looks with random pictures, states and actions, which complete at least so many transitions."""
    rng, sizes, ring = np.random.default_rng(seed), policy.model.config, Ring(folder, 512 * 2**20)
    side, chains = sizes.image_size, 2 + transitions // (LOOKS - sizes.action_horizon // EXECUTED)
    for _ in range(chains):
        chain = uuid.uuid4().hex
        for index in range(LOOKS):
            pictures = {name: picture(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for name in sizes.cameras}
            done = rng.normal(size=(EXECUTED if index else 0, sizes.action_dim)).astype(np.float32)
            step = Step(chain, index, 0.0, pictures, rng.normal(size=sizes.state_dim).astype(np.float32), done)
            ring.append(step.pack())
    material = Material(BODY, ring.snapshot(), 0, transitions)
    ring.close()
    return material
