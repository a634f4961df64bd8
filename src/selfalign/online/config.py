"""What online alignment can be told. The fields are flags of `selfalign serve`."""

from dataclasses import dataclass, field

from selfalign.configs import below, refuse
from selfalign.online.drift import DriftConfig

MEGABYTE = 2**20


@dataclass(frozen=True)
class AlignerConfig:
    """The process that measures and aligns, and what it may take."""

    aligner_threads: int = 1
    """Its threads on a CPU."""
    aligner_nice: int = 10
    """Its niceness: 19 works only where nobody else wants to."""
    aligner_device: str | None = None
    """Where it computes; None: where the server does."""
    aligner_gpu_share: float = 0.4
    """Share of a CUDA device's memory that it may take."""
    aligner_memory_mb: float = 512.0
    """Main memory for the prefixes of its play; what needs more goes to a temporary file."""
    aligner_timeout: float = 1800.0
    """Seconds after which a job is given up and its process ended."""

    def __post_init__(self) -> None:
        if self.aligner_threads < 1 or not 0 < self.aligner_gpu_share <= 1 or not self.aligner_timeout > 0:
            raise ValueError(
                "the aligner needs a thread, a share of the GPU in (0, 1] and some time; got "
                f"aligner_threads={self.aligner_threads}, aligner_gpu_share={self.aligner_gpu_share}, "
                f"aligner_timeout={self.aligner_timeout}"
            )


@dataclass(frozen=True)
class LearnConfig:
    """When contexts are fitted to what robots do, and when they are taken back."""

    learn_mb: float = 512.0
    """MiB of the newest steps that are kept on disk of each embodiment."""
    executed: int | None = None
    """Actions of each chunk that a robot carries out if it does not say it, as openpi's do not; None: it is unknown."""
    window: int = 64
    """New transitions after which the play loss is measured."""
    align_min: int = 128
    """Transitions since a drift began that an alignment needs."""
    align_max: int = 2048
    """Transitions that an alignment takes at most, the newest."""
    align_every: int = 1024
    """New transitions after which an alignment is tried without a drift; 0: never."""
    align_steps: int | None = None
    """Steps of an alignment; None: as the checkpoint says."""
    align_improvement: float = 0.05
    """Share by which the held-out loss must lie below that of the context in use to be accepted."""
    rollback_margin: float = 0.1
    """A new context whose loss lies by this share above that of the one before it, on the same transitions, goes."""
    rollback_patience: int = 2
    """Windows in a row for that."""
    probation: int = 6
    """Windows after a swap in which both are measured."""
    keep_versions: int = 20
    """Contexts that are kept of each embodiment."""
    drift: DriftConfig = field(default_factory=DriftConfig)
    aligner: AlignerConfig = field(default_factory=AlignerConfig)

    def __post_init__(self) -> None:
        counts = ("window", "align_min", "align_max", "rollback_patience", "keep_versions")
        wrong = below(self, **dict.fromkeys(counts, 1), executed=1, align_every=0, probation=0)
        shares = {name: getattr(self, name) for name in ("align_improvement", "rollback_margin")}
        wrong += [f"{name}={value} (at least 0, and below 1)" for name, value in shares.items() if not 0 <= value < 1]
        if not self.learn_mb > 0:
            wrong.append(f"learn_mb={self.learn_mb} (above 0)")
        refuse("online alignment", wrong)

    @property
    def ring_bytes(self) -> int:
        return int(self.learn_mb * MEGABYTE)
