"""The loop around `train_step`: progress, log, checkpoints, a clean stop."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from selfalign.configs import below, refuse
from selfalign.train import checkpoint
from selfalign.train.metrics import Log
from selfalign.train.step import NonFiniteLoss, TrainState, train_step


@dataclass(frozen=True)
class LoopConfig:
    """What is written of a training, and when."""

    save_every: int = 500
    """Steps between training checkpoints; the policy is exported with each."""
    keep: int = 2
    """Newest training checkpoints that stay."""
    keep_every: int | None = None
    """Those of steps that are a multiple of this stay too."""
    log_every: int = 50
    """Steps over which logged numbers are averaged."""
    validate_every: int = 500
    """Steps between the measurements on held-out rigs, where there are some."""
    diagnose_every: int = 100
    """Steps between measurements of the cosine between the gradients of action and alignment losses by W; 0: none."""
    tensorboard: bool = True
    """Log for TensorBoard, beside log.jsonl."""
    wandb: str | None = None
    """Project of Weights & Biases to log to as well (extra `wandb`)."""

    def __post_init__(self) -> None:
        least = dict.fromkeys(("log_every", "save_every", "keep", "keep_every", "validate_every"), 1)
        refuse("training", below(self, **least, diagnose_every=0))


Validate = Callable[[TrainState], dict[str, float]]


def run_training(
    state: TrainState,
    directory: str | Path,
    config: LoopConfig = LoopConfig(),
    *,
    on_save: Callable[[TrainState], None] | None = None,
    validate: Validate | None = None,
) -> bool:
    """Train to `state.total_steps`, going on from the newest checkpoint in `directory`.

    SIGINT and SIGTERM save and return, in whichever process they arrive. Returns True when the training is complete.

    Args:
        on_save: called with every checkpoint but the last.
        validate: measures on held-out data.

    Raises:
        NonFiniteLoss: the batch that did it lies in `directory`.
    """
    directory, world = Path(directory), state.engine.world
    found = checkpoint.available(directory)
    if found:
        checkpoint.restore(state, found[-1])
    with _stop_requested() as stop, _Reporter(state, directory, config) as report:
        while state.step < state.total_steps and not world.any(bool(stop)):
            try:
                report.numbers(train_step(state))
            except NonFiniteLoss as error:
                raise checkpoint.with_batch(error, state, directory) from error
            report.measure(validate)
            report.step()
            if state.step % config.save_every == 0:
                checkpoint.save(state, directory, keep=config.keep, keep_every=config.keep_every)
                if on_save is not None:
                    on_save(state)
        checkpoint.save(state, directory, keep=config.keep, keep_every=config.keep_every)
    return state.step >= state.total_steps


class _Reporter:
    """Log and progress bar, in the main process."""

    def __init__(self, state: TrainState, directory: Path, config: LoopConfig):
        self._state, self._config, self._main = state, config, state.engine.world.main
        self._log = Log(
            directory,
            tensorboard=config.tensorboard and self._main,
            wandb=config.wandb if self._main else None,
            about=state.about,
            after=state.step if self._main else None,
        )
        self._bar = _progress(self._main)
        self._started, self._first = time.monotonic(), state.step

    def __enter__(self) -> "_Reporter":
        self._bar.start()
        self._task = self._bar.add_task("pretrain", total=self._state.total_steps, completed=self._state.step)
        return self

    def __exit__(self, *error) -> None:
        self._bar.stop()
        self._log.close()

    def numbers(self, numbers: dict[str, float]) -> None:
        self._log.add(numbers)

    def measure(self, validate: Validate | None) -> None:
        """What is not measured in every step."""
        state, config = self._state, self._config
        if config.diagnose_every and state.step % config.diagnose_every == 0 and not state.engine.sharded:
            self._log.add(state.objective.diagnose())
        if validate is not None and (state.step % config.validate_every == 0 or state.step == state.total_steps):
            self._log.add(validate(state))

    def step(self) -> None:
        """After each step: the means of the last ones where they are due, and the bar."""
        state, seconds = self._state, time.monotonic() - self._started
        if state.step % self._config.log_every == 0 or state.step == state.total_steps:
            means = state.engine.world.mean(self._log.means())
            if self._main:
                self._log.write(means, state.step, seconds)
                pace = seconds / (state.step - self._first)
                self._bar.console.print(_summary(state.step, means, pace), soft_wrap=True, highlight=False)
        self._bar.update(self._task, completed=state.step)


def _summary(step: int, means: dict[str, float], pace: float) -> str:
    """The line that a person watches: all losses, whether W is read, how old the contexts are."""
    parts = [f"{name.removeprefix('loss/')} {value:.3f}" for name, value in means.items() if name.startswith("loss/")]
    for name, label in (("ttt/mean_tanh_alpha", "tanh(alpha)"), ("slots/mean_age", "age")):
        if name in means:
            parts.append(f"{label} {means[name]:.3g}")
    return f"step {step}: {'  '.join(parts)}  {pace:.2f} s/step"


def _progress(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        disable=not shown,
    )  # fmt: skip


@contextmanager
def _stop_requested() -> Iterator[list[int]]:
    """A list that becomes true when the process is asked to stop; the same request again stops it at once.

    (On Ctrl-C, torchrun's processes get SIGINT from the terminal and SIGTERM from torchrun.)
    """
    requests: list[int] = []
    old = {}

    def handler(number: int, frame) -> None:
        if number in requests:
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
