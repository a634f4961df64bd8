"""`selfalign inspect`: what is in a checkpoint, a context file, a data set or a preset."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from selfalign import presets
from selfalign.data.sources import SourceData
from selfalign.model.context import EmbodimentContext
from selfalign.model.policy import VLA
from selfalign.model.weights import load_model, unique_tensors


@dataclass(frozen=True)
class InspectConfig:
    """What to look at: one of these."""

    checkpoint: Path | None = None
    """A checkpoint directory."""
    context: Path | None = None
    """A context file."""
    data: Path | None = None
    """A LeRobot data set, or a folder of them."""
    preset: str | None = None
    """A preset, built without memory for its weights."""

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"inspect takes one of --checkpoint, --context, --data, --preset; got {given or 'none'}")


def run(config: InspectConfig) -> None:
    """Print what there is to know."""
    console = Console()
    if config.context is not None:
        console.print(context_table(EmbodimentContext.load(config.context), str(config.context)))
    elif config.data is not None:
        console.print(data_table(SourceData.open(config.data), str(config.data)))
    elif config.checkpoint is not None:
        model = load_model(config.checkpoint)
        console.print(model_table(model, f"{config.checkpoint}, fingerprint {model.fingerprint()}"))
    elif config.preset is not None:
        with torch.device("meta"):
            console.print(model_table(VLA(presets.get(config.preset)), f"preset {config.preset}"))


def model_table(model: VLA, title: str) -> Table:
    """Parameters and bytes of each part."""
    groups: dict[str, int] = {}
    for name, tensor in unique_tensors(model).items():
        groups[_part(name)] = groups.get(_part(name), 0) + tensor.numel()
    rows = [(part, f"{count:,}", f"{count * 4 / 1e6:.2f}", f"{count * 2 / 1e6:.2f}") for part, count in groups.items()]
    total = sum(groups.values())
    rows.append(("total", f"{total:,}", f"{total * 4 / 1e6:.2f}", f"{total * 2 / 1e6:.2f}"))
    context = model.prior()
    size = sum(t.numel() for t in context.tensors)
    rows.append(("one embodiment context W", f"{size:,}", f"{size * 4 / 1e6:.2f}", f"{size * 2 / 1e6:.2f}"))
    return _table(title, ("part", "parameters", "MB in float32", "MB in bfloat16"), rows)


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
        [("embodiment", context.info.embodiment), ("model fingerprint", context.info.fingerprint)],
    )
    rows += [("TTT layers", str(len(context.W1))), ("bytes", f"{context.num_bytes:,}")]
    if info.verdict is not None:
        rows += [(f"verdict: {key}", str(value)) for key, value in info.verdict.items()]
    if info.norm_stats is not None:
        for field in ("state", "action"):
            stats = info.norm_stats[field]
            rows.append((f"{field}: mean", _numbers(stats["mean"])))
            rows.append((f"{field}: std", _numbers(stats["std"])))
    return _table(title, ("", ""), rows)


def data_table(source: SourceData, title: str) -> Table:
    """Episodes, robots, tasks, columns, ranges of actions."""
    action = np.concatenate([episode.action for episode in source.episodes(range(min(len(source), 50)))])
    tasks = sorted({ref.task for ref in source.refs if ref.task})
    rows = [
        ("episodes", f"{len(source):,} ({sum(ref.is_play for ref in source.refs):,} of play)"),
        ("frames", f"{source.num_frames:,} at {source.info.fps:g} Hz"),
        ("embodiments", str(len({ref.embodiment_index for ref in source.refs}))),
        ("tasks", f"{len(tasks)}: {'; '.join(tasks[:4])}{'; ...' if len(tasks) > 4 else ''}"),
        ("action, least (first episodes)", _numbers(action.min(0))),
        ("action, greatest", _numbers(action.max(0))),
    ]
    return _table(title, ("", ""), rows)


def _numbers(values: Iterable[float]) -> str:
    return "  ".join(f"{value:.3f}" for value in values)


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, show_header=any(columns))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or not any(columns) else "right")
    for row in rows:
        table.add_row(*row)
    return table
