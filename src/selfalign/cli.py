"""`selfalign`: the life of a policy as commands.

Each is a frozen config, whose fields are the flags, and, in the module that defines it, a function `run`.
"""

import os
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

# Before numpy and the renderer load: their own threads, for 6 x 6 systems and 64 px pictures, fight for the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("LP_NUM_THREADS", "0")

import tyro
from tyro.conf import OmitSubcommandPrefixes, subcommand

from selfalign.ablation.run import AblateConfig
from selfalign.baselines.encoder_run import EncoderRun
from selfalign.baselines.tune import TuneConfig
from selfalign.bench.adapt import AdaptConfig
from selfalign.bench.calibrate import CalibrateConfig
from selfalign.bench.choose_acting import ActingConfig
from selfalign.bench.matrix import MatrixConfig
from selfalign.commands.align import AlignCommand
from selfalign.commands.convert import ConvertConfig
from selfalign.commands.demo import DemoConfig
from selfalign.commands.evaluate import EvalConfig
from selfalign.commands.experts import ExpertsConfig
from selfalign.commands.features import FeaturesConfig
from selfalign.commands.inspect import InspectConfig
from selfalign.commands.play_import import ImportConfig
from selfalign.commands.play_record import RecordConfig
from selfalign.commands.pretrain import TrainingConfig
from selfalign.commands.serve import ServeCommand
from selfalign.commands.snapshots import SnapshotsConfig
from selfalign.commands.sources import SourcesConfig
from selfalign.commands.stats import StatsConfig
from selfalign.report.document import ReportConfig
from selfalign.report.films import FilmsConfig
from selfalign.robots.session import RobotPlayConfig


@dataclass(frozen=True)
class Play:
    """Unlabelled motion of one robot: recorded in the simulator or on a robot, or imported from recordings."""

    what: (
        Annotated[RecordConfig, subcommand("record")]
        | Annotated[RobotPlayConfig, subcommand("robot")]
        | Annotated[ImportConfig, subcommand("import")]
    )


@dataclass(frozen=True)
class Bench:
    """Measure: how well bodies that were never seen act before and after aligning."""

    what: (
        Annotated[AdaptConfig, subcommand("adapt")]
        | Annotated[MatrixConfig, subcommand("matrix")]
        | Annotated[AblateConfig, subcommand("ablate")]
        | Annotated[ActingConfig, subcommand("acting")]
        | Annotated[CalibrateConfig, subcommand("calibrate")]
        | Annotated[ReportConfig, subcommand("report")]
        | Annotated[FilmsConfig, subcommand("films")]
        | Annotated[TuneConfig, subcommand("tune")]
        | Annotated[EncoderRun, subcommand("encoder")]
        | Annotated[ExpertsConfig, subcommand("experts")]
    )


Command = (
    Annotated[SourcesConfig, subcommand("sources")]
    | Annotated[SnapshotsConfig, subcommand("snapshots")]
    | Annotated[TrainingConfig, subcommand("pretrain")]
    | Annotated[Play, subcommand("play")]
    | Annotated[AlignCommand, subcommand("align")]
    | Annotated[EvalConfig, subcommand("eval")]
    | Annotated[ServeCommand, subcommand("serve")]
    | Annotated[Bench, subcommand("bench")]
    | Annotated[DemoConfig, subcommand("demo")]
    | Annotated[InspectConfig, subcommand("inspect")]
    | Annotated[StatsConfig, subcommand("stats")]
    | Annotated[FeaturesConfig, subcommand("features")]
    | Annotated[ConvertConfig, subcommand("convert")]
)


def run(command: Any) -> None:
    """Calls `run` of the module that a command's config comes from."""
    config = command.what if isinstance(command, Play | Bench) else command
    import_module(type(config).__module__).run(config)


def main(args: list[str] | None = None) -> int:
    """Run one command. Mistakes of the caller end with one line on standard error and exit status 2."""
    args = sys.argv[1:] if args is None else list(args)
    if args[:1] == ["play"] and args[1:2] and args[1].startswith("--") and args[1] != "--help":
        named = any(word.split("=")[0] == "--robot" for word in args)
        args.insert(1, "robot" if named else "record")  # what `selfalign play` alone does
    command = tyro.cli(
        Command,
        prog="selfalign",
        description="The life of a policy as commands.",
        args=args,
        config=(tyro.conf.OmitArgPrefixes, OmitSubcommandPrefixes),
    )  # type: ignore[call-overload]
    try:
        run(command)
    except (ValueError, LookupError, OSError, RuntimeError, ImportError) as error:
        print(f"selfalign: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        resumable = "interrupted; the same command goes on where it stopped, where it keeps checkpoints"
        print(f"selfalign: {str(interrupt) or resumable}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
