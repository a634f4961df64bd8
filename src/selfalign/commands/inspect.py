"""`selfalign inspect`: what is in a checkpoint, a context file, a data set or a preset, and what a model costs."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from selfalign import presets
from selfalign.bench.tables import print_calibration
from selfalign.checkpoint import CheckpointInfo
from selfalign.commands.data_page import data_page
from selfalign.data.pretrained import kind_of
from selfalign.data.sources import SourceData
from selfalign.data.summary import ColumnSummary, DataSummary, sparkline
from selfalign.model.config import VLAConfig
from selfalign.model.context import EmbodimentContext
from selfalign.model.cost import (
    DEVICES,
    Device,
    Phase,
    Workload,
    align_step,
    meta_model,
    sampling_phases,
    training_memory,
)
from selfalign.model.files import write_atomically
from selfalign.model.openpi import CheckpointSettings, checkpoint_shapes, infer_config
from selfalign.model.policy import VLA
from selfalign.model.weights import config_from_dict, load_model, read_json, unique_tensors

HASHED = 1_000_000_000
"""Bytes of a checkpoint up to which its fingerprint, a hash of all of them, is told."""
LISTED = 12
"""Robots and tasks of a data set that are listed one by one."""


@dataclass(frozen=True)
class InspectConfig:
    """What is in a checkpoint, a context file, a data set or a preset."""

    checkpoint: Path | None = None
    """A checkpoint directory: selfalign's, openpi's or LeRobot's. Weights are read for the fingerprint alone, of
    selfalign's up to 1 GB."""
    context: Path | None = None
    """A context file."""
    data: str | None = None
    """Data sets: lerobot:PATH[,PATH...], rlds:PATH@HZ, or a path alone. Pictures are decoded for plots only."""
    plots: Path | None = None
    """With --data: an HTML page to write, with histograms, the course of some episodes, and their pictures."""
    strict: bool = True
    """With --data: otherwise every episode is read whole, and damaged ones are left out and listed."""
    preset: str | None = None
    """A preset, built without memory for its weights."""
    device: str = "h100"
    """Whose peak the least times are for: h200, h100, a100, l40s or rtx4090."""
    tflops: float | None = None
    """Of another device: 10^12 bfloat16 operations a second."""
    gbps: float | None = None
    """Of another device: 10^9 bytes of memory a second."""
    batch: int = 1
    """Samples of `sample_actions`."""
    align_batch: int = 32
    """Samples of an alignment step."""
    prompt: int | None = None
    """Tokens of the prompt; None: as many as the model reads at most."""
    cameras: int | None = None
    """Cameras that are not masked; None: all."""
    steps: int = 10
    """Denoising steps."""

    def __post_init__(self) -> None:
        given = [name for name in ("checkpoint", "context", "data", "preset") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"inspect takes one of --checkpoint, --context, --data, --preset; got {given or 'none'}")
        if self.plots is not None and (self.data is None or self.plots.suffix != ".html"):
            raise ValueError(f"--plots takes the .html file to write, and goes with --data; got {self.plots}")

    def peak(self) -> Device:
        """The device, with what is told of another."""
        if self.device not in DEVICES:
            raise ValueError(f"no device {self.device!r}; there are: {', '.join(DEVICES)} (or --tflops and --gbps)")
        named = DEVICES[self.device]
        return Device(self.tflops or named.tflops, self.gbps or named.gbps)

    def workload(self) -> Workload:
        return Workload(self.batch, self.prompt, self.cameras, self.steps)


def run(config: InspectConfig) -> None:
    """Print what there is to know."""
    console = Console(markup=False)  # tasks and names are the data's own, whatever brackets they have
    if config.context is not None:
        console.print(context_table(EmbodimentContext.load(config.context), str(config.context)))
    elif config.data is not None:
        print_data(console, SourceData.open(config.data, strict=config.strict), config.data, config.plots)
    elif config.checkpoint is not None:
        print_model(console, *read_config(config.checkpoint), config)
        if (config.checkpoint / "settings.json").is_file():
            info = CheckpointInfo.read(config.checkpoint)
            console.print(f"It acts at {info.acting}.")
            if info.calibration is not None:
                print_calibration(info.calibration, console)
    elif config.preset is not None:
        print_model(console, presets.get(config.preset), f"preset {config.preset}", config)


def read_config(directory: Path) -> tuple[VLAConfig, str]:
    """The config of a checkpoint, and a title for it. Weights are read where there is a fingerprint to tell: of
    selfalign's checkpoints up to `HASHED` bytes."""
    path = directory / "config.json"
    told = read_json(path) if path.is_file() else {}
    if "vlm" not in told:
        config = infer_config(checkpoint_shapes(directory), CheckpointSettings.read(directory), str(directory))
        return config, f"{directory} ({kind_of(directory)})"
    weights = directory / "model.safetensors"
    if not weights.is_file() or weights.stat().st_size > HASHED:
        return config_from_dict(told), str(directory)
    model = load_model(directory)
    return model.config, f"{directory}, fingerprint {model.fingerprint()}"


def print_model(console: Console, config: VLAConfig, title: str, asked: InspectConfig) -> None:
    """The table of the parts and that of the phases."""
    model, peak, work = meta_model(config), asked.peak(), asked.workload()
    console.print(model_table(model, title))
    phases = sampling_phases(model, work)
    align = align_step(model, replace(work, batch=asked.align_batch))
    cameras = min(work.cameras or len(config.cameras), len(config.cameras))
    told = f"{cameras} cameras, {config.max_token_len if work.prompt is None else work.prompt} prompt tokens"
    device = f"{peak.tflops:g} TFLOP/s, {peak.gbps:g} GB/s"
    console.print(phase_table(phases, align, peak, f"bf16, {told}, on {device}", work.batch, asked.align_batch))


def model_table(model: VLA, title: str) -> Table:
    """Parameters and bytes of each part of a model, and what it takes to pretrain it."""
    groups: dict[str, tuple[int, int]] = {}
    for name, tensor in unique_tensors(model).items():
        count, size = groups.get(_part(name), (0, 0))
        groups[_part(name)] = count + tensor.numel(), size + tensor.numel() * tensor.element_size()
    groups["total"] = sum(count for count, _ in groups.values()), sum(size for _, size in groups.values())
    context = model.prior()
    groups["one embodiment context W"] = sum(t.numel() for t in context.tensors), context.num_bytes
    rows = [(part, f"{count:,}", _mb(count * 4), _mb(size)) for part, (count, size) in groups.items()]
    memory = training_memory(model)
    rows.append(("pretraining: weights, gradients, moments", "", _mb(memory.model), ""))
    if model.ttt_layers:
        rows.append(("and for each slot of it", "", _mb(memory.slot), ""))
    return _table(title, ("part", "parameters", "MB in float32", "MB in bf16"), rows)


def phase_table(
    phases: list[Phase], align: Phase | None, device: Device, title: str, batch: int, align_batch: int
) -> Table:
    """Work of each phase, and the least time that the device's arithmetic and memory allow."""
    rows = [(p.name, str(p.times), *_work([p], device)) for p in phases]
    rows.append((f"sample_actions, batch {batch}", "1", *_work(phases, device)))
    if align is not None:
        rows.append((f"{align.name}, batch {align_batch}", "1", *_work([align], device)))
    return _table(title, ("phase", "times", "GFLOP", "MB moved", "least ms"), rows)


def _work(phases: list[Phase], device: Device) -> tuple[str, str, str]:
    flops, moved, bound = (
        sum(p.times * value for p, value in zip(phases, values, strict=True))
        for values in zip(*((p.cost.flops, p.cost.bytes, p.cost.bound_ms(device)) for p in phases), strict=True)
    )
    return f"{flops / 1e9:,.2f}", _mb(moved), f"{bound:.3f}"


def _mb(size: float) -> str:
    return f"{size / 1e6:,.2f}"


def _part(name: str) -> str:
    for prefix, part in (
        ("vision.", "vision tower"),
        ("mixture.vlm.", "vlm stream"),
        ("mixture.experts.action.", "action expert"),
        ("mixture.experts.alignment.", "alignment expert"),
    ):
        if ".ttt." in name:
            return "TTT layers (shared)"
        if name.startswith(prefix):
            return part
    return "embeddings, projections and heads"


def context_table(context: EmbodimentContext, title: str) -> Table:
    """What a context says about itself."""
    info, rows = (
        context.info,
        [
            ("embodiment", context.info.embodiment),
            ("model fingerprint", context.info.fingerprint),
            ("steps of the robot", {None: "not known", "": "none"}.get(context.info.robot, context.info.robot)),
        ],
    )
    rows += [("TTT layers", str(len(context.W1))), ("bytes", f"{context.num_bytes:,}")]
    if info.verdict is not None:
        rows += [(f"verdict: {key}", str(value)) for key, value in info.verdict.items()]
    if info.norm_stats is not None:
        for field in ("state", "action"):
            stats = info.norm_stats[field]
            rows.append((f"{field}: mean", _numbers(stats["mean"])))
            rows.append((f"{field}: std", _numbers(stats["std"])))
        moved = info.norm_stats.get("displacements")
        rows.append(("action: displacements", "not known" if moved is None else ", ".join(map(str, moved))))
    return _table(title, ("", ""), rows)


def print_data(console: Console, source: SourceData, title: str, plots: Path | None) -> None:
    """The tables of a data set, and its page where one is wanted."""
    summary = DataSummary.of(source)
    console.print(data_table(summary, title))
    if len(summary.bodies) > 1:
        rows = [(b.name, f"{b.play:,}", f"{b.demonstrations:,}", f"{b.frames:,}") for b in summary.bodies[:LISTED]]
        shown = f"{len(summary.bodies)} robots" + (f", the first {LISTED}" if len(summary.bodies) > LISTED else "")
        console.print(_table(shown, ("robot", "play", "demonstrations", "frames"), rows))
    for column in summary.columns:
        console.print(range_table(column))
    for reader in source.readers:
        for problem in reader.problems:
            console.print(f"left out: {reader.root}, episode {problem.episode}: {problem.message}", markup=False)
    if plots is not None:
        page = data_page(source, summary, title)
        plots.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(plots, lambda path: path.write_text(page, encoding="utf-8"))
        console.print(f"plots: {plots}")


def data_table(summary: DataSummary, title: str) -> Table:
    """Episodes, robots, tasks, cameras and columns of a data set."""
    tasks, lengths = summary.tasks, summary.lengths
    told = "; ".join(f"{task} ({count:,})" for task, count in tasks[:LISTED])
    cameras = (f"{camera.name} {camera.width}x{camera.height}, {camera.stored}" for camera in summary.cameras)
    rows = [
        ("episodes", f"{len(lengths):,} ({summary.play:,} of play)"),
        ("frames", f"{summary.frames:,} at {summary.fps:g} Hz, {summary.seconds / 60:.1f} minutes"),
        ("frames an episode", f"{lengths.min()} to {lengths.max()}, median {sorted(lengths)[len(lengths) // 2]}"),
        ("robots", str(len(summary.bodies)) + (f": {summary.bodies[0].name}" if len(summary.bodies) == 1 else "")),
        ("tasks", f"{len(tasks)}{': ' if tasks else ''}{told}{'; ...' if len(tasks) > LISTED else ''}"),
        ("cameras", "; ".join(cameras) or "none"),
        ("further columns", ", ".join(summary.extra) or "none"),
    ]
    if summary.ignored:
        rows.append(("not read", ", ".join(summary.ignored)))
    return _table(title, ("", ""), rows)


def range_table(column: ColumnSummary) -> Table:
    """How far each dimension of a column goes."""
    stats, broken = column.stats, f", {column.broken:,} frames with NaN left out" if column.broken else ""
    heads = ("dimension", "min", "q01", "q99", "max", "min to max")
    if stats is None:
        return _table(f"{column.column}{broken}", heads, [])
    values = (stats.min, stats.q01, stats.q99, stats.max)
    rows = [
        (name, *(f"{value[i]:.4g}" for value in values), sparkline(column.histogram[i]))
        for i, name in enumerate(column.names)
    ]
    table = _table(f"{column.column}{broken}", heads, rows)
    table.columns[-1].no_wrap = True
    return table


def _numbers(values: Iterable[float]) -> str:
    return "  ".join(f"{value:.3f}" for value in values)


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, show_header=any(columns))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or not any(columns) else "right")
    for row in rows:
        table.add_row(*row)
    return table
