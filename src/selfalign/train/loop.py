"""The loop around `train_step`: progress, log, checkpoints, a clean stop."""

import json
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from selfalign.train import checkpoint
from selfalign.train.step import TrainState, train_step


@dataclass(frozen=True)
class LoopConfig:
    """How often the loop reports and saves."""

    log_every: int = 50
    save_every: int = 500
    keep: int = 2
    tensorboard: bool = True


class Log:
    """Means over `log_every` steps, as lines of JSON and in TensorBoard."""

    def __init__(self, directory: Path, *, tensorboard: bool):
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "log.jsonl"
        self._sums: dict[str, list[float]] = defaultdict(list)
        self._writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and optional

            self._writer = SummaryWriter(str(directory / "tensorboard"))

    def add(self, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            self._sums[name].append(value)

    def flush(self, step: int, seconds: float) -> dict[str, float]:
        """Write the means since the last flush and return them."""
        means = {name: sum(values) / len(values) for name, values in self._sums.items()}
        self._sums.clear()
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "seconds": round(seconds, 1), **means}) + "\n")
        if self._writer is not None:
            for name, value in means.items():
                self._writer.add_scalar(name, value, step)
        return means

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def fit(
    state: TrainState,
    directory: str | Path,
    config: LoopConfig = LoopConfig(),
    *,
    on_save: Callable[[TrainState], None] | None = None,
) -> bool:
    """Train to `state.total_steps`, going on from the newest checkpoint in `directory`.

    SIGINT and SIGTERM save and return. Returns True when the training is complete.
    """
    directory = Path(directory)
    found = checkpoint.available(directory)
    if found:
        checkpoint.restore(state, found[-1])
    log, started, first = Log(directory, tensorboard=config.tensorboard), time.monotonic(), state.step
    with _stop_requested() as stop, _progress() as bar:
        task = bar.add_task("pretrain", total=state.total_steps, completed=state.step, info="")
        while state.step < state.total_steps and not stop:
            log.add(train_step(state))
            if state.step % config.log_every == 0 or state.step == state.total_steps:
                means = log.flush(state.step, time.monotonic() - started)
                means["sec/step"] = (time.monotonic() - started) / (state.step - first)
                bar.update(task, info=_summary(means))
            bar.update(task, completed=state.step)
            if state.step % config.save_every == 0:
                checkpoint.save(state, directory, keep=config.keep)
                if on_save is not None:
                    on_save(state)
        checkpoint.save(state, directory, keep=config.keep)
    log.close()
    return state.step >= state.total_steps


def _summary(means: dict[str, float]) -> str:
    return " ".join(
        f"{name.split('/')[-1]} {value:.3f}" for name, value in means.items() if name.startswith(("loss/", "sec"))
    )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[info]}"),
    )  # fmt: skip


@contextmanager
def _stop_requested() -> Iterator[list[int]]:
    """A list that becomes true when the process is asked to stop; a second request stops it at once."""
    requests: list[int] = []
    old = {}

    def handler(number: int, frame) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread: nothing to catch
        pass
    try:
        yield requests
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
