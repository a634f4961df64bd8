"""`selfalign bench report`: results of the benchmarks as one HTML page that needs nothing beside it, and as a PDF."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from selfalign.calibration import Calibration
from selfalign.checkpoint import CheckpointInfo
from selfalign.model.context import EmbodimentContext
from selfalign.model.files import write_atomically
from selfalign.report import figures
from selfalign.report.context_map import ContextMap
from selfalign.report.films import WORST, caption, read_films
from selfalign.report.pdf import pdf_bytes
from selfalign.report.reading import read_cells, read_failures
from selfalign.report.results import CellResult
from selfalign.report.sections import Film, Section, Table, sections
from selfalign.sim.bodies import BodySpec


@dataclass(frozen=True)
class ReportConfig:
    """Write results of the benchmarks as one HTML page, and as a PDF."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """JSON files of bench adapt, bench matrix, bench calibrate and demo."""
    out: Path = Path("report.html")
    """The page to write."""
    pdf: Path | None = None
    """The PDF to write."""
    calibration: Path | None = None
    """Checkpoint directory whose calibration judges the attempts anew; None: verdicts as the results hold them."""
    films: tuple[Path, ...] = ()
    """GIFs of before and after, and folders of `bench films`: of the worst bodies, which show what fails, or of typical
    ones."""
    contexts: tuple[Path, ...] = ()
    """Context files, or folders of them, for a map, and the JSON files of `benchmarks/context_map.py`."""
    title: str = "Selfalign: results"

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError("bench report needs at least one result file")
        wrong = [str(path) for path in self.films if path.suffix.lower() != ".gif" and not path.is_dir()]
        if wrong:
            raise ValueError(f"the gallery shows .gif files and folders of `bench films`, got {', '.join(wrong)}")


def run(config: ReportConfig, *, show: bool = True) -> list[Section]:
    """Reads the results and writes the report; returns its sections.

    Raises:
        FileNotFoundError: a result, film or context that is not there.
        ValueError: a file that is no result, a checkpoint without calibration, or contexts of several models.
        ImportError: matplotlib is not installed.
    """
    console = Console(quiet=not show)
    missing = [str(path) for path in (*config.films, *config.contexts) if not path.exists()]
    if missing:
        raise FileNotFoundError(f"not there: {', '.join(missing)}")
    cells = read_cells(config.results)
    calibration = None if config.calibration is None else _calibration(config.calibration)
    typical, failing = _films(config.films)
    maps = _maps(config.contexts, cells)
    content = list(sections(cells, calibration, typical, maps, read_failures(config.results), failing))
    page = html_page(config.title, content)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(config.out, lambda path: path.write_text(page, encoding="utf-8"))
    console.print(f"{len(cells)} cells in {config.out}")
    if config.pdf is not None:
        data = pdf_bytes(config.title, content)
        config.pdf.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(config.pdf, lambda path: path.write_bytes(data))
        console.print(f"and in {config.pdf}")
    return content


def _calibration(checkpoint: Path) -> Calibration:
    calibration = CheckpointInfo.read(checkpoint).calibration
    if calibration is None:
        raise ValueError(f"{checkpoint} has no calibration; run `selfalign bench calibrate` first")
    return calibration


def _films(paths: Sequence[Path]) -> tuple[list[Film], list[Film]]:
    """Those of the gallery, and those of bodies that fail."""
    gallery = [Film(path.stem.replace("_", " "), path.read_bytes()) for path in paths if not path.is_dir()]
    failing = []
    for folder in (path for path in paths if path.is_dir()):
        films = read_films(folder)
        if not films:
            raise ValueError(f"no films in {folder}; `selfalign bench films --out {folder}` makes them")
        for film in films:
            of_kind = failing if film.get("which", WORST) == WORST else gallery
            of_kind.append(Film(caption(film), (folder / film["file"]).read_bytes()))
    return gallery, failing


def _maps(paths: Sequence[Path], cells: Sequence[CellResult]) -> list[ContextMap]:
    """Those that were made before, and one of contexts, where there are more than two."""
    made = [ContextMap.read(path) for path in paths if path.suffix == ".json"]
    folders = [path for path in paths if path.suffix != ".json"]
    files = [file for path in folders for file in (sorted(path.rglob("*.safetensors")) if path.is_dir() else [path])]
    if len(files) < 3:
        return made
    known = {row["name"]: BodySpec.from_dict(row["body"]) for cell in cells for row in (*cell.rows, *cell.sources)}
    return [*made, ContextMap.of([EmbodimentContext.load(file) for file in files], known)]


# ---- HTML ----------------------------------------------------------------------------------------------------------


def html_page(title: str, content: Sequence[Section]) -> str:
    """One page with everything in it."""
    parts = "\n".join(_html_section(section) for section in content)
    links = " · ".join(f'<a href="#{_anchor(section)}">{html.escape(section.title)}</a>' for section in content)
    return _PAGE.format(title=html.escape(title), style=_STYLE, links=links, parts=parts)


def _html_section(section: Section) -> str:
    drawn = "".join(f'<div class="figure">{figures.svg(figure)}</div>' for figure in section.figures)
    tables = "".join(_html_table(table) for table in section.tables)
    films = "".join(_html_film(film) for film in section.films)
    text = f"<p>{html.escape(section.text)}</p>" if section.text else ""
    heading = f'<h2 id="{_anchor(section)}">{html.escape(section.title)}</h2>'
    return f"<section>{heading}{text}{drawn}{tables}{films}</section>"


def _anchor(section: Section) -> str:
    return section.title.lower().replace(" ", "-")


def _html_table(table: Table) -> str:
    heads = "".join(f"<th>{html.escape(column)}</th>" for column in table.columns)
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(value)}</td>' for value in row)}</tr>" for row in table.rows)
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    return f'<div class="table"><table>{caption}<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _html_film(film: Film) -> str:
    caption, data = html.escape(film.caption), base64.b64encode(film.content).decode()
    return (
        f'<figure><img alt="{caption}" src="data:image/gif;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


_STYLE = """
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 36px 20px; color: #202124; font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 28px; margin: 0 0 8px; } h2 { font-size: 20px; margin: 0 0 6px; }
nav { font-size: 14px; color: #5f6368; } a { color: #1a73e8; text-decoration: none; }
section { border-top: 1px solid #dadce0; padding: 22px 0; } p { margin: 4px 0 14px; max-width: 860px; }
.figure { text-align: center; } .figure svg { max-width: 100%; height: auto; }
.table { overflow-x: auto; margin: 14px 0; }
table { border-collapse: collapse; font-size: 13px; } caption { text-align: left; padding-bottom: 4px; }
th { text-align: left; color: #5f6368; font-weight: 600; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid #eee; vertical-align: top; overflow-wrap: break-word; }
td { min-width: 76px; } td:first-child { white-space: nowrap; }
figure { margin: 14px 0; } img { max-width: 100%; } figcaption { font-size: 13px; }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body><h1>{title}</h1><nav>{links}</nav>
{parts}
</body></html>
"""
