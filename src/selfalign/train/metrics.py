"""Where a training's numbers go: lines of JSON, TensorBoard, Weights & Biases."""

import json
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from selfalign.model.files import write_atomically

Sink = Callable[[dict[str, float], int], None]
"""Takes numbers by name, and the step that they are of."""


class Log:
    """Means over some steps, written to all sinks.

    Args:
        directory: receives `log.jsonl` and the sinks' own files.
        tensorboard: write for TensorBoard.
        wandb: the project of Weights & Biases to write to; None: do not.
        about: what the training is, for W&B.
        after: the step from which the training goes on: what a killed one has logged beyond it is dropped, since it
            comes again. None: nothing is dropped.

    Raises:
        ImportError: W&B is asked for and not installed.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tensorboard: bool,
        wandb: str | None = None,
        about: Mapping[str, Any] | None = None,
        after: int | None = None,
    ):
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "log.jsonl"
        self._sums: dict[str, list[float]] = defaultdict(list)
        self._sinks: list[Sink] = []
        self._closers: list[Callable[[], None]] = []
        if after is not None:
            _drop_beyond(self.path, after)
        if tensorboard:
            self._open_tensorboard(directory, None if after is None else after + 1)
        if wandb is not None:
            self._open_wandb(directory, wandb, about or {})

    def add(self, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._sums[name].append(value)

    def means(self) -> dict[str, float]:
        """The means since they were last asked for."""
        means = {name: sum(values) / len(values) for name, values in self._sums.items()}
        self._sums.clear()
        return means

    def write(self, numbers: dict[str, float], step: int, seconds: float) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "seconds": round(seconds, 1), **numbers}) + "\n")
        for sink in self._sinks:
            sink(numbers, step)

    def close(self) -> None:
        for close in self._closers:
            close()

    def _open_tensorboard(self, directory: Path, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and optional

        writer = SummaryWriter(str(directory / "tensorboard"), purge_step=purge_step)

        def write(numbers: dict[str, float], step: int) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, step)

        self._sinks.append(write)
        self._closers.append(writer.close)

    def _open_wandb(self, directory: Path, project: str, about: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                "logging to Weights & Biases needs the extra `wandb`: pip install 'selfalign[wandb]'"
            ) from error
        name = directory / "wandb.txt"  # an interrupted training goes on in its own run
        if not name.is_file():
            name.write_text(secrets.token_hex(4))
        run = wandb.init(
            project=project,
            name=directory.name,
            id=name.read_text(),
            resume="allow",
            dir=str(directory),
            config=dict(about),
        )
        self._sinks.append(lambda numbers, step: run.log(numbers, step=step))
        self._closers.append(run.finish)


def _drop_beyond(path: Path, step: int) -> None:
    """Removes lines of later steps, and one that was cut off."""
    if path.is_file():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        kept = "".join(line for line in lines if json.loads(line)["step"] <= step)
        write_atomically(path, lambda temporary: temporary.write_text(kept))
