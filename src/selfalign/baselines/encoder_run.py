"""`selfalign bench encoder`: trains the encoder on recorded source bodies."""

from dataclasses import dataclass, replace
from pathlib import Path

from selfalign.baselines.choices import chosen
from selfalign.baselines.encoder import TrainedEncoder
from selfalign.baselines.encoder_training import EncoderTraining, Recordings, train_encoder
from selfalign.baselines.methods import METHODS, configured
from selfalign.checkpoint import load
from selfalign.data.sources import RECORDED
from selfalign.model.files import check_writable


@dataclass(frozen=True)
class EncoderRun:
    """Train the encoder of the baselines on recorded source bodies, through the frozen policy."""

    checkpoint: Path = Path("checkpoints/tiny")
    """Checkpoint directory."""
    data: tuple[str, ...] = (RECORDED,)
    """Data sets with play and demonstrations of source bodies (`selfalign sources`)."""
    features: Path | None = None
    """Folder for what the vision tower sees in every frame of data; None: one of their own. That of a pretraining on
    the same data with the same tower (its `out` or `shared`) spares the work."""
    out: Path = Path("outputs/encoder.safetensors")
    """Where to write the encoder. A training that was interrupted goes on from what lies beside it (`.unfinished`)."""
    rank: int | None = None
    """Numbers that it says of a body. None, as for the three below: what tuning chose, or else the default."""
    width: int | None = None
    """Hidden units of the encoder."""
    steps: int | None = None
    """Of its training."""
    learning_rate: float | None = None
    seed: int = 0
    """Of its weights, and of the bodies that are drawn."""

    def __post_init__(self) -> None:
        self.training()  # raises for a value that cannot be

    def training(self) -> EncoderTraining:
        told = {name: getattr(self, name) for name in ("rank", "width", "steps", "learning_rate")}
        given = {name: value for name, value in told.items() if value is not None}
        return replace(configured(METHODS["encoder"], None, chosen("encoder")).training, seed=self.seed, **given)


def run(config: EncoderRun, *, show: bool = True) -> TrainedEncoder:
    """Reads, trains, writes.

    Raises:
        FileNotFoundError: no checkpoint or data.
        ValueError: a damaged checkpoint, data that do not suit it, or an unfinished training with other settings.
        OSError: nothing can be written at `out`.
    """
    check_writable(config.out)
    unfinished = config.out.with_name(f"{config.out.name}.unfinished")
    policy = load(config.checkpoint)
    recordings = Recordings.open(policy, config.data, config.features, progress=show)
    trained = train_encoder(policy, recordings, config.training(), unfinished=unfinished, progress=show)
    trained.save(config.out)
    unfinished.unlink(missing_ok=True)
    if show:
        rigs, losses = trained.training["rigs"], trained.training["action_loss"]
        told = f"learned from {rigs['learned']} rigs"
        if losses is not None:
            told += f"; action loss on {rigs['held_out']} others {losses['prior']:.3f} -> {losses['encoder']:.3f}"
        print(f"{config.out}: {told}; {trained.training['stopped']}")
    return trained
