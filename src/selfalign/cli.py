"""`selfalign`: the life of a policy as commands. Each is a frozen config (its fields are the flags) and a function."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

# Before numpy and the renderer load: their own threads, for 6 x 6 systems and 64 px pictures, fight for the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("LP_NUM_THREADS", "0")

import tyro
from tyro.conf import OmitSubcommandPrefixes, subcommand

from selfalign.ablation.run import AblateConfig
from selfalign.baselines.collect import EncoderRun
from selfalign.baselines.tune import TuneConfig
from selfalign.bench.adapt import AdaptConfig
from selfalign.bench.calibrate import CalibrateConfig
from selfalign.bench.demo import DemoConfig
from selfalign.bench.document import ReportConfig
from selfalign.bench.evaluate import EvalConfig
from selfalign.bench.matrix import MatrixConfig
from selfalign.convert import ConvertConfig
from selfalign.features import FeaturesConfig
from selfalign.importing import ImportConfig
from selfalign.inspection import InspectConfig
from selfalign.robots.session import RobotPlayConfig
from selfalign.serve.config import ServeConfig
from selfalign.sim.regions import SOURCE_ARMS, Region, Scenario
from selfalign.sim.tasks import Kind
from selfalign.statistics import StatsConfig
from selfalign.training import TrainingConfig


@dataclass(frozen=True)
class Sources:
    """Record the simulated source data set: play and demonstrations of many rigs, as LeRobot data sets."""

    out: Path = Path("data/sources")
    """Folder of the shards. An interrupted recording goes on where it stopped."""
    rigs: int = 300
    """Robots with a camera and looks of their own."""
    arms: tuple[str, ...] = SOURCE_ARMS
    """By turns, each with the Panda gripper; one that is named more often is used more often."""
    cameras: int | None = None
    """Camera poses that the rigs share; None: each has its own. (1 is what adapting to cameras is compared with.)"""
    play_per_rig: int = 8
    """Play trajectories of 50 frames."""
    demonstrations_per_rig: int = 16
    kinds: tuple[Kind, ...] = ("reach", "reach", "reach", "push", "lift")
    """Tasks to draw from; one that is named more often is drawn more often."""
    image_size: int = 96
    plain: bool = False
    """As a real robot would be recorded: cameras as video, named dimensions, nothing that only a simulator knows."""
    seed: int = 0
    workers: int = 2

    def run(self) -> None:
        from selfalign.sim.bodies import sample_rigs
        from selfalign.sim.sources import SourcePlan, generate_sources

        plan = SourcePlan(
            tuple(sample_rigs(self.rigs, self.seed, tuple((arm, "panda") for arm in self.arms), self.cameras)),
            self.play_per_rig,
            self.demonstrations_per_rig,
            self.kinds,
            self.image_size,
            self.seed,
            rigs_per_shard=max(3, self.rigs // 100),
            plain=self.plain,
        )
        generate_sources(self.out, plan, workers=self.workers)


@dataclass(frozen=True)
class Snapshots:
    """Record pictures for the vision tower, each of a simulated rig of its own, with the places of what is in them."""

    out: Path = Path("data/snapshots")
    """Folder of the pictures. An interrupted recording goes on where it stopped."""
    count: int = 100_000
    arms: tuple[str, ...] = SOURCE_ARMS
    """By turns, each with the Panda gripper; one that is named more often is used more often."""
    image_size: int = 96
    seed: int = 0
    workers: int = 2

    def run(self) -> None:
        from selfalign.sim.snapshots import SnapshotPlan, generate_snapshots

        plan = SnapshotPlan(self.count, self.image_size, self.seed, self.arms)
        generate_snapshots(self.out, plan, workers=self.workers)


@dataclass(frozen=True)
class Pretrain:
    """Train a policy on source data: the tower learns to point, then the policy rehearses alignment."""

    config: OmitSubcommandPrefixes[TrainingConfig]

    def run(self) -> None:
        from selfalign.training import run

        run(self.config)


@dataclass(frozen=True)
class Record:
    """Let a simulated robot play: smooth random motion, no task, no labels. Writes a LeRobot data set."""

    out: Path
    """Folder of the new data set."""
    body: Path | None = None
    """JSON of the body; None: draw one."""
    scenario: Scenario = "camera"
    """What is unseen about the body that is drawn."""
    region: Region = "heldout"
    seed: int = 0
    """Draws the body and its motion."""
    trajectories: int = 20
    length: int = 50
    """Frames of each trajectory, at 20 Hz."""
    image_size: int = 96
    video: bool = False
    """Store the camera's frames as video, which is smaller and not exact."""

    def run(self) -> None:
        from rich.progress import track

        from selfalign.bench.evaluate import read_body
        from selfalign.robots.record import write_play
        from selfalign.sim.bodies import sample_bodies
        from selfalign.sim.record import play_trajectories

        body = sample_bodies(1, self.seed, self.region, self.scenario)[0] if self.body is None else read_body(self.body)
        recording = play_trajectories(body, self.trajectories, self.length, self.seed, image_size=self.image_size)
        write_play(
            self.out,
            track(recording, description="playing", total=self.trajectories),
            embodiment={"name": body.name, **body.to_dict()},
            fps=body.control_hz,
            robot_type=body.robot.name,
            video=self.video,
        )
        print(f"{self.trajectories} trajectories of {body.name} in {self.out}")


@dataclass(frozen=True)
class Play:
    """Unlabelled motion of one robot: recorded in the simulator or on a robot, or imported from recordings."""

    what: OmitSubcommandPrefixes[
        Annotated[Record, subcommand("record")]
        | Annotated[RobotPlayConfig, subcommand("robot")]
        | Annotated[ImportConfig, subcommand("import")]
    ]

    def run(self) -> None:
        if isinstance(self.what, Record):
            self.what.run()
        elif isinstance(self.what, RobotPlayConfig):
            from selfalign.robots.session import run

            run(self.what)
        else:
            from selfalign.importing import run

            run(self.what)


@dataclass(frozen=True)
class Align:
    """Fit a body's context to its play; everything else of the model stays as it is."""

    play: str
    """Data set of the body's play: a path, lerobot:PATH or rlds:PATH@HZ."""
    out: Path
    """The context file to write."""
    checkpoint: Path = Path("checkpoints/tiny")
    features: Path | None = None
    """Folder of `selfalign features` for this play, where the checkpoint was pretrained with such features."""
    embodiment_index: int | None = None
    """Which robot, where the data set has several."""
    robot: str | None = None
    """Name of the robot, or path of its file; None: the data set has the model's names and conventions."""
    steps: int | None = None
    """None: as the checkpoint says."""
    batch_size: int | None = None
    learning_rate: float | None = None
    """None: the rate that the checkpoint was rehearsed with."""
    seed: int = 0
    calibrated: bool = True
    """Judge by the checkpoint's calibration too, where it has one: what success to expect, and which play losses it has
    seen."""
    force: bool = False
    """Write the fitted context even if the verdict rejects it."""

    def run(self) -> None:
        import selfalign as sa
        from selfalign.model.files import check_writable

        check_writable(self.out)
        policy = sa.load(self.checkpoint, robot=self.robot)
        play = sa.Play.open(self.play, self.embodiment_index, features=self.features)
        config = sa.AlignConfig(
            steps=self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            calibrated=self.calibrated,
            seed=self.seed,
        )
        result = sa.align(policy, play, config=config)
        print(result.verdict)
        if not result.verdict.accepted and not self.force:
            raise SystemExit(f"{self.out} was not written: the alignment was rejected (--force writes it all the same)")
        context = result.context if result.verdict.accepted else result.fitted
        context.save(self.out)
        print(f"{self.out}: {context.num_bytes / 1e6:.3f} MB for {context.info.embodiment}")


@dataclass(frozen=True)
class Eval:
    """Success of one body under one context, in closed loop, with Wilson's interval."""

    config: OmitSubcommandPrefixes[EvalConfig]

    def run(self) -> None:
        from selfalign.bench.evaluate import run

        run(self.config)


@dataclass(frozen=True)
class Serve:
    """Answer robots over WebSocket (openpi's protocol): one model, a context for each robot."""

    config: OmitSubcommandPrefixes[ServeConfig] = field(default_factory=ServeConfig)

    def run(self) -> None:
        try:
            from selfalign.serve.server import run
        except ModuleNotFoundError as error:
            raise RuntimeError(f"serving needs {error.name}: pip install 'selfalign[serve]'") from error

        run(self.config)


@dataclass(frozen=True)
class Experts:
    """Measure the scripted experts on every robot and task."""

    episodes: int = 100
    json: Path | None = None
    seed: int = 0


@dataclass(frozen=True)
class Bench:
    """Measure: how well bodies that were never seen act before and after aligning."""

    what: OmitSubcommandPrefixes[
        Annotated[AdaptConfig, subcommand("adapt")]
        | Annotated[MatrixConfig, subcommand("matrix")]
        | Annotated[AblateConfig, subcommand("ablate")]
        | Annotated[CalibrateConfig, subcommand("calibrate")]
        | Annotated[ReportConfig, subcommand("report")]
        | Annotated[TuneConfig, subcommand("tune")]
        | Annotated[EncoderRun, subcommand("encoder")]
        | Annotated[Experts, subcommand("experts")]
    ]

    def run(self) -> None:
        if isinstance(self.what, AdaptConfig):
            from selfalign.bench.adapt import run

            run(self.what)
        elif isinstance(self.what, MatrixConfig):
            from selfalign.bench.matrix import run as measure_plan

            measure_plan(self.what)
        elif isinstance(self.what, AblateConfig):
            from selfalign.ablation.run import run as ablate

            ablate(self.what)
        elif isinstance(self.what, CalibrateConfig):
            from selfalign.bench.calibrate import run

            run(self.what)
        elif isinstance(self.what, ReportConfig):
            from selfalign.bench.document import run

            run(self.what)
        elif isinstance(self.what, TuneConfig):
            from selfalign.baselines.tune import run as tune

            tune(self.what)
        elif isinstance(self.what, EncoderRun):
            from selfalign.baselines.collect import run as train

            train(self.what)
        else:
            from selfalign.sim.experts import main as measure

            measure(self.what.episodes, self.what.json, seed=self.what.seed)


@dataclass(frozen=True)
class Demo:
    """Three unseen bodies play, are aligned and act; writes a report."""

    config: OmitSubcommandPrefixes[DemoConfig] = field(default_factory=DemoConfig)

    def run(self) -> None:
        from selfalign.bench.demo import run

        run(self.config)


@dataclass(frozen=True)
class Inspect:
    """What is in a checkpoint, a context file, a LeRobot data set or a preset."""

    config: OmitSubcommandPrefixes[InspectConfig]

    def run(self) -> None:
        from selfalign.inspection import run

        run(self.config)


@dataclass(frozen=True)
class Stats:
    """What states and actions are normalised with: computed from recordings, shown, written for openpi or LeRobot."""

    config: OmitSubcommandPrefixes[StatsConfig]

    def run(self) -> None:
        from selfalign.statistics import run

        run(self.config)


@dataclass(frozen=True)
class Features:
    """Compute features of next observations once, by a frozen extractor, and store them."""

    config: OmitSubcommandPrefixes[FeaturesConfig]

    def run(self) -> None:
        from selfalign.features import run

        run(self.config)


@dataclass(frozen=True)
class Convert:
    """Write a checkpoint of openpi, LeRobot or Selfalign as another one's, or make it self-aligning."""

    config: OmitSubcommandPrefixes[ConvertConfig]

    def run(self) -> None:
        from selfalign.convert import convert

        print(convert(self.config))


Command = (
    Annotated[Sources, subcommand("sources")]
    | Annotated[Snapshots, subcommand("snapshots")]
    | Annotated[Pretrain, subcommand("pretrain")]
    | Annotated[Play, subcommand("play")]
    | Annotated[Align, subcommand("align")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[Serve, subcommand("serve")]
    | Annotated[Bench, subcommand("bench")]
    | Annotated[Demo, subcommand("demo")]
    | Annotated[Inspect, subcommand("inspect")]
    | Annotated[Stats, subcommand("stats")]
    | Annotated[Features, subcommand("features")]
    | Annotated[Convert, subcommand("convert")]
)


def main(args: list[str] | None = None) -> int:
    """Run one command. Mistakes of the caller end with one line on standard error and exit status 2."""
    args = sys.argv[1:] if args is None else list(args)
    if args[:1] == ["play"] and args[1:2] and args[1].startswith("--") and args[1] != "--help":
        named = any(word.split("=")[0] == "--robot" for word in args)
        args.insert(1, "robot" if named else "record")  # what `selfalign play` alone does
    command = tyro.cli(
        Command,
        prog="selfalign",
        description=__doc__,
        args=args,
        config=(tyro.conf.OmitArgPrefixes, OmitSubcommandPrefixes),
    )  # type: ignore[call-overload]
    try:
        command.run()
    except (ValueError, LookupError, OSError, RuntimeError, ImportError) as error:
        print(f"selfalign: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "selfalign: interrupted; the same command goes on where it stopped, where it keeps checkpoints",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
