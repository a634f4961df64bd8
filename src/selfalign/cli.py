"""`selfalign`: the life of a policy as commands. Each is a frozen config (its fields are the flags) and a function."""

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

# Before numpy and the renderer load: their own threads, for 6 x 6 systems and 64 px pictures, fight for the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("LP_NUM_THREADS", "0")

import torch
import tyro
from tyro.conf import OmitSubcommandPrefixes, subcommand

from selfalign import presets
from selfalign.align.pretrain import POINTS, PretrainConfig, pretrain
from selfalign.align.rehearsal import RehearsalConfig
from selfalign.bench.adapt import AdaptConfig
from selfalign.bench.demo import DemoConfig
from selfalign.bench.evaluate import EvalConfig
from selfalign.convert import ConvertConfig
from selfalign.data.bodies import RecordedBodies
from selfalign.data.sources import SourceData
from selfalign.data.virtual import DrawPerturbation
from selfalign.features import FeaturesConfig
from selfalign.importing import ImportConfig
from selfalign.inspection import InspectConfig
from selfalign.model.policy import LossWeights
from selfalign.serve.config import ServeConfig
from selfalign.sim.regions import SOURCE_ARMS, Region, Scenario
from selfalign.sim.tasks import COLOURS, Kind
from selfalign.statistics import StatsConfig
from selfalign.train.loop import LoopConfig
from selfalign.train.pointing import PointingConfig
from selfalign.train.step import OptimConfig


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

    data: tuple[str, ...] = ("data/sources",)
    """Data sets: lerobot:PATH[,PATH...], rlds:PATH@HZ, or paths alone; a folder of data sets stands for all of them."""
    cameras: dict[str, str] = field(default_factory=dict)
    """Pairs of a camera of the model and the data's camera that shows it, where they are called otherwise."""
    features: Path | None = None
    """Folder of `selfalign features` by which next observations are told; None: the vision tower's own."""
    bodies: Literal["sim", "xyz", "joints", "none"] | None = None
    """Which bodies rehearsal makes of a recorded one: of the simulator's regions (sim), with other frames of the first
    three numbers (xyz), with other orders, signs and scales of joints (joints), or none. None: as the data says."""
    out: Path = Path("runs/tiny")
    """Training checkpoints and logs; the finished policy is in its folder `policy`. Goes on where it stopped."""
    preset: str = "tiny"
    start: Path | None = None
    """Checkpoint to start from, trained vision tower included; None: from nothing."""
    snapshots: Path | None = None
    """Pictures that the vision tower learns on (`selfalign snapshots`); None: the frames of `data`."""
    steps: int = 6000
    seed: int = 0
    scheme: Literal["rehearsal", "per_body", "global"] = "rehearsal"
    """How contexts are treated: rehearsed, or one per source body or one for all, moved by every loss."""
    span: int | None = None
    """Contexts lie in a learned span of so many directions; None: every fast weight moves."""
    slots: int = 16
    """Embodiments in a batch, each in the middle of its own alignment."""
    max_age: int = 150
    """Alignment steps after which a slot gets a new embodiment, at the latest."""
    play_per_slot: int = 8
    demonstrations_per_slot: int = 8
    widen_steps: int = 4000
    """Steps over which action and state frames widen from canonical to all of the source region; 0: at once."""
    context_learning_rate: float = 1e-2
    """Of Adam on the contexts, here and in `selfalign align`."""
    context_decay_steps: float | None = None
    """That rate falls as 1 / sqrt(1 + (step - 1) / this); None: constant."""
    learning_rate: float = 1e-3
    lambda_action: float = 1.0
    lambda_ttt: float = 0.1
    """Weight of the TTT layers' own reconstruction loss."""
    lambda_perception: float = 1.0
    lambda_dynamics: float = 1.0
    lambda_inverse: float = 1.0
    lambda_grounding: float = 1.0
    """Weight of pointing at what the instruction names."""
    reach_weight: float = 2.0
    """How often frames of reach demonstrations are drawn, relative to other tasks."""
    pointing_steps: int = 3500
    save_every: int = 500
    compile: bool = False
    """Compile the streams: minutes at the start, a quarter less time a step on a CPU."""
    threads: int = 2
    """Threads of the computation on a CPU."""

    def config(self) -> PretrainConfig:
        weights = LossWeights(
            action=self.lambda_action,
            ttt=self.lambda_ttt,
            perception=self.lambda_perception,
            dynamics=self.lambda_dynamics,
            inverse=self.lambda_inverse,
            grounding=self.lambda_grounding,
        )
        rehearsal = RehearsalConfig(
            scheme=self.scheme,
            slots=self.slots,
            play_per_slot=self.play_per_slot,
            demonstrations_per_slot=self.demonstrations_per_slot,
            widen_steps=self.widen_steps,
            max_age=self.max_age,
            learning_rate=self.context_learning_rate,
            decay_steps=self.context_decay_steps,
            weights=weights,
        )
        return PretrainConfig(
            steps=self.steps,
            seed=self.seed,
            optim=OptimConfig(learning_rate=self.learning_rate),
            rehearsal=rehearsal,
            pointing=PointingConfig(steps=self.pointing_steps, seed=self.seed),
            loop=LoopConfig(save_every=self.save_every),
            start=self.start,
            snapshots=self.snapshots,
            compile=self.compile,
            task_weights={"reach": self.reach_weight},
            keypoint_words=("tip", *COLOURS),
        )

    def run(self) -> None:
        from selfalign.checkpoint import save_checkpoint
        from selfalign.policy import AlignSettings, Policy

        torch.set_num_threads(self.threads)
        config = self.config()
        source = SourceData.open(self.data, cameras=self.cameras or None, features=self.features)
        features = None if source.features is None else source.features.name
        if self.scheme == "rehearsal":
            settings = AlignSettings(
                features=features,
                learning_rate=config.rehearsal.learning_rate,
                betas=config.rehearsal.betas,
                clip_norm=config.rehearsal.clip_norm,
                decay_steps=config.rehearsal.decay_steps,
                weights=config.rehearsal.weights,
            )
        else:
            settings = AlignSettings(weights=config.rehearsal.weights, rehearsed=False, features=features)

        def export(model, state=None) -> None:
            save_checkpoint(Policy.from_model(model, settings), self.out / "policy")

        preset = presets.get(self.preset)
        model_config = replace(preset, ttt=replace(preset.ttt, span=self.span))
        if self.start is None and self.snapshots is None and POINTS not in source.info.extra:
            raise ValueError(
                f"{', '.join(self.data)} does not say where things are in its pictures, as the simulator's sources "
                "do: give a checkpoint whose tower has learned to see (--start), or pictures to learn on (--snapshots)"
            )
        model = pretrain(model_config, source, self.out, config, self.draw(source), on_save=export)
        export(model)

    def draw(self, source: SourceData) -> DrawPerturbation:
        """The bodies that rehearsal may make of what was recorded."""
        rigs = all({"arm", "gripper", "action_space"} <= body.keys() for body in source.embodiments)
        if self.bodies == "sim" or (self.bodies is None and rigs):
            from selfalign.sim.virtual import source_perturbation

            return source_perturbation
        return RecordedBodies.of(source, self.bodies)


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
        from selfalign.bench.evaluate import read_body
        from selfalign.data.lerobot import LeRobotWriter
        from selfalign.sim.bodies import sample_bodies
        from selfalign.sim.record import record_play

        body = sample_bodies(1, self.seed, self.region, self.scenario)[0] if self.body is None else read_body(self.body)
        description = {"name": body.name, **body.to_dict()}
        with LeRobotWriter(self.out, embodiments=[description], robot_type=body.robot.name, video=self.video) as writer:
            for episode in record_play(body, self.trajectories, self.length, self.seed, image_size=self.image_size):
                writer.add_episode(episode)
        print(f"{self.trajectories} trajectories of {body.name} in {self.out}")


@dataclass(frozen=True)
class Play:
    """Unlabelled motion of one robot: recorded in the simulator, or imported from a robot's recordings."""

    what: OmitSubcommandPrefixes[
        Annotated[Record, subcommand("record")] | Annotated[ImportConfig, subcommand("import")]
    ]

    def run(self) -> None:
        if isinstance(self.what, Record):
            self.what.run()
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
    force: bool = False
    """Write the fitted context even if the verdict rejects it."""

    def run(self) -> None:
        import selfalign as sa

        policy = sa.load(self.checkpoint, robot=self.robot)
        play = sa.Play.open(self.play, self.embodiment_index, features=self.features)
        config = sa.AlignConfig(
            steps=self.steps, batch_size=self.batch_size, learning_rate=self.learning_rate, seed=self.seed
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
        Annotated[AdaptConfig, subcommand("adapt")] | Annotated[Experts, subcommand("experts")]
    ]

    def run(self) -> None:
        if isinstance(self.what, AdaptConfig):
            from selfalign.bench.adapt import run

            run(self.what)
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
        args.insert(1, "record")  # what `selfalign play` alone does
    command = tyro.cli(
        Command,
        prog="selfalign",
        description=__doc__,
        args=args,
        config=(tyro.conf.OmitArgPrefixes, OmitSubcommandPrefixes),
    )  # type: ignore[call-overload]
    try:
        command.run()
    except (ValueError, LookupError, OSError, RuntimeError) as error:
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
