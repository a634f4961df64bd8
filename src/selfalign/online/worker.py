"""The aligner's process: `python -m selfalign.online.worker SETTINGS`. Jobs and replies are lines of JSON.

It holds a model of its own, so nothing that happens here can reach the server: not a crash, not a lack of memory. When
the server is gone, its end of the pipe closes and this process ends, even in the middle of a job.
"""

import json
import logging
import os
import queue
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from selfalign.checkpoint import load
from selfalign.online.jobs import from_json
from selfalign.policy import Policy

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSettings:
    """What the process is told at its start."""

    checkpoint: Path
    fingerprint: str
    """Of the model that the server has: the files may have changed since."""
    device: str = "cpu"
    tokenizer: Path | None = None
    robot: str | None = None
    threads: int = 1
    nice: int = 10
    gpu_share: float = 0.4
    memory_mb: float = 512.0

    def to_json(self) -> str:
        paths = {"checkpoint": str(self.checkpoint), "tokenizer": self.tokenizer and str(self.tokenizer)}
        return json.dumps(asdict(self) | paths)

    @classmethod
    def from_json(cls, text: str) -> "WorkerSettings":
        data = json.loads(text)
        tokenizer = data["tokenizer"]
        paths = {"checkpoint": Path(data["checkpoint"]), "tokenizer": None if tokenizer is None else Path(tokenizer)}
        return cls(**data | paths)

    def policy(self) -> Policy:
        """Raises `ValueError` where the checkpoint is no longer the server's."""
        torch.set_num_threads(self.threads)
        if torch.device(self.device).type == "cuda":
            # Plain "cuda" has no index: None, which is the current one.
            torch.cuda.set_per_process_memory_fraction(self.gpu_share, torch.device(self.device).index)
        policy = load(self.checkpoint, self.device, tokenizer=self.tokenizer, robot=self.robot)
        if policy.fingerprint() != self.fingerprint:
            raise ValueError(
                f"{self.checkpoint} holds model {policy.fingerprint()}, the server has {self.fingerprint}: the files "
                "were changed; restart the server"
            )
        return policy


def answer(policy: Policy, settings: WorkerSettings, line: str) -> dict[str, Any]:
    """The reply to one job; what is wrong with its data is an `error`, what is wrong with the process ends it."""
    try:
        return from_json(json.loads(line)).run(policy, settings.memory_mb)
    except (ValueError, LookupError, OSError) as error:
        log.warning("a job failed", exc_info=error)
        return {"error": f"{type(error).__name__}: {error}"}


def work(settings: WorkerSettings, jobs: "queue.Queue[str]", replies: TextIO) -> None:
    """Answers jobs for ever."""
    policy = settings.policy()
    while True:
        reply = answer(policy, settings, jobs.get())
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def main() -> None:
    settings = WorkerSettings.from_json(sys.argv[1])
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s aligner %(levelname)s %(message)s")
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no reply
    os.nice(settings.nice)
    jobs: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            jobs.put(line)
        os._exit(0)  # the server is gone

    threading.Thread(target=read, daemon=True).start()
    work(settings, jobs, replies)


if __name__ == "__main__":
    main()
