"""`selfalign align`: fit a body's context to its play."""

from dataclasses import dataclass, field
from pathlib import Path

from selfalign.align.offline import AlignConfig, align
from selfalign.checkpoint import load
from selfalign.data.normalize import NormStats
from selfalign.data.play import Play
from selfalign.model.files import check_writable
from selfalign.model.tokenizer import MissingTokenizer
from selfalign.model.weights import read_json
from selfalign.policy import Policy


@dataclass(frozen=True)
class AlignCommand:
    """Fit a body's context to its play; everything else of the model stays as it is."""

    play: str
    """Data set of the body's play: a path, lerobot:PATH or rlds:PATH@HZ."""
    out: Path
    """The context file to write."""
    checkpoint: Path = Path("checkpoints/tiny")
    cameras: dict[str, str] = field(default_factory=dict)
    """Pairs of a camera of the model and the play's camera that shows it, where they are called otherwise; others are
    left out."""
    tokenizer: Path | None = None
    """PaliGemma's tokenizer, for pi0 checkpoints that lack it."""
    features: Path | None = None
    """Folder of `selfalign features` for this play, where the checkpoint was pretrained with such features."""
    embodiment_index: int | None = None
    """Which robot, where the data set has several."""
    stats: Path | None = None
    """File of `selfalign stats --format selfalign`: normalise by these statistics and not by the play's own, where the
    play shows only some of the motion (recordings of a task, a gripper that stays open)."""
    robot: str | None = None
    """Name of the robot, or path of its file; None: the data set has the model's names and conventions."""
    steps: int | None = None
    """None: as the checkpoint says."""
    batch_size: int | None = None
    learning_rate: float | None = None
    """None: the rate that the checkpoint was rehearsed with."""
    device: str = "cpu"
    """Where the model goes; "cuda" for a large one."""
    seed: int = 0
    calibrated: bool = True
    """Judge by the checkpoint's calibration too, where it has one: what success to expect, and which play losses it has
    seen."""
    force: bool = False
    """Write the fitted context even if the verdict rejects it."""


def run(config: AlignCommand) -> None:
    """Aligns, and writes the context if the verdict accepts it.

    Raises:
        ValueError: play that the checkpoint cannot be aligned to, or statistics that are not the play's robot's.
        OSError: play, statistics or checkpoint cannot be read, or the context cannot be written.
        SystemExit: the verdict rejects it.
    """
    check_writable(config.out)
    policy = load(config.checkpoint, config.device, tokenizer=config.tokenizer, robot=config.robot)
    if isinstance(policy.tokenizer, MissingTokenizer):
        raise FileNotFoundError(f"{policy.tokenizer.reason} Then: selfalign align --tokenizer PATH")
    cameras = config.cameras or None
    play = Play.open(config.play, config.embodiment_index, cameras=cameras, features=config.features)
    settings = AlignConfig(
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        calibrated=config.calibrated,
        seed=config.seed,
    )
    stats = None if config.stats is None else read_stats(config.stats, policy, play)
    result = align(policy, play, config=settings, stats=stats)
    print(result.verdict)
    if not result.verdict.accepted and not config.force:
        raise SystemExit(f"{config.out} was not written: the alignment was rejected (--force writes it all the same)")
    context = result.context if result.verdict.accepted else result.fitted
    context.save(config.out)
    print(f"{config.out}: {context.num_bytes / 1e6:.3f} MB for {context.info.embodiment}")


def read_stats(path: Path, policy: Policy, play: Play) -> NormStats:
    """Statistics of a robot's numbers, from a file of `selfalign stats --format selfalign`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds something else, or statistics of other numbers than the play's.
    """
    data = read_json(path)
    try:
        stats = NormStats.from_dict(data)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no file of `selfalign stats --format selfalign`: {error!r}") from error
    robot, episode = policy.robot, play.episodes[0]
    wanted = (
        (episode.state.shape[-1], episode.action.shape[-1])
        if robot is None
        else (len(robot.state_names), len(robot.action_names))
    )
    if (stats.state_dim, stats.action_dim) != wanted:
        raise ValueError(
            f"{path} has statistics of {stats.state_dim} numbers of state and {stats.action_dim} of action, the play "
            f"has {wanted[0]} and {wanted[1]}: take those of the same robot, and with the same --robot"
        )
    return stats
