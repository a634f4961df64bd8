"""Sections of a report as the pages of a PDF, set by matplotlib: text, tables in letters of one width, and pictures."""

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from selfalign.report.sections import Film, Section, Table

if TYPE_CHECKING:
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

PAGE = (8.27, 11.69)
"""Inches: A4."""
MARGIN = 0.6
DPI = 200
"""Of figures on a page."""
WORDS, LETTERS = 104, 118
"""Letters in a line of text, and of a table."""
WHOLE = 18
"""Letters of a number with its interval, which stays in one line where it can."""


def pdf_bytes(title: str, content: Sequence[Section]) -> bytes:
    """All sections, one below the other; of a film, its first and its last picture."""
    from matplotlib.backends.backend_pdf import PdfPages

    buffer = io.BytesIO()
    with PdfPages(buffer, metadata={"Title": title, "CreationDate": None}) as file:
        paper = _Paper(file)
        paper.lines([title], size=16, bold=True)
        for section in content:
            paper.section(section)
        paper.turn()
    return buffer.getvalue()


class _Paper:
    """The page that is being written, from top to bottom."""

    def __init__(self, file: "PdfPages"):
        self._file = file
        self._page: Figure | None = None
        self._used = 0.0
        """Inches of the page, without its margins."""

    def section(self, section: Section) -> None:
        self._used += 0.2
        self.lines([section.title], size=12, bold=True, together=1.5)
        self.lines(textwrap.wrap(section.text, WORDS), size=9)
        for figure in section.figures:
            self.picture(_pixels(figure), figure.get_size_inches()[0])
        for table in section.tables:
            self.lines(["", *textwrap.wrap(table.caption, WORDS)], size=8, together=1.0)
            self.lines(["", *text_table(table, LETTERS)], size=7, family="monospace")
        for film in section.films:
            self.lines(["", *textwrap.wrap(film.caption, WORDS)], size=8, together=3.0)
            self.picture(_stills(film), PAGE[0])

    def lines(
        self,
        lines: Sequence[str],
        *,
        size: float,
        bold: bool = False,
        family: str = "sans-serif",
        together: float = 0.0,
    ) -> None:
        """Text; a new page is begun where less than `together` inches are left after a line."""
        height = 1.45 * size / 72
        for line in lines:
            page = self._room(height + together)
            x, y = MARGIN / PAGE[0], 1 - (MARGIN + self._used) / PAGE[1]
            weight = "bold" if bold else "normal"
            page.text(x, y, line, fontsize=size, family=family, weight=weight, va="top", parse_math=False)
            self._used += height

    def picture(self, pixels: np.ndarray, width: float) -> None:
        """A picture of at most so many inches, made smaller where the page is too narrow or too short."""
        rows, columns = pixels.shape[:2]
        width = min(width, PAGE[0] - 2 * MARGIN, (PAGE[1] - 2 * MARGIN - 0.3) * columns / rows)
        height = width * rows / columns
        page = self._room(height + 0.15)
        left, bottom = (PAGE[0] - width) / 2 / PAGE[0], 1 - (MARGIN + self._used + 0.1 + height) / PAGE[1]
        axis = page.add_axes((left, bottom, width / PAGE[0], height / PAGE[1]))
        axis.imshow(pixels, interpolation="lanczos", aspect="auto")
        axis.set_axis_off()
        self._used += height + 0.15

    def turn(self) -> None:
        """Puts the page into the file."""
        if self._page is not None:
            self._file.savefig(self._page, dpi=DPI)
        self._page, self._used = None, 0.0

    def _room(self, height: float) -> "Figure":
        """The page with so much room left, a new one if need be."""
        from matplotlib.figure import Figure

        if self._used + height > PAGE[1] - 2 * MARGIN:
            self.turn()
        if self._page is None:
            self._page = Figure(figsize=PAGE)
        return self._page


def text_table(table: Table, letters: int) -> list[str]:
    """Columns of letters; the widest are wrapped where a line is too short: heads and long text first, then numbers
    with their intervals, and within words if nothing else helps."""
    rows = [table.columns, *table.rows]
    columns = range(len(table.columns))
    widths = [max(len(row[i]) for row in rows) for i in columns]
    words = [max((len(part) for row in rows for part in row[i].split()), default=1) for i in columns]
    whole = [max([words[i], *(len(row[i]) for row in table.rows if len(row[i]) <= WHOLE)]) for i in columns]
    for least in (whole, words, [1] * len(words)):
        while sum(widths) + 2 * (len(widths) - 1) > letters and any(widths[i] > least[i] for i in columns):
            widths[max((i for i in columns if widths[i] > least[i]), key=widths.__getitem__)] -= 1
    lines = []
    for number, row in enumerate(rows):
        cells = [textwrap.wrap(value, width) or [""] for value, width in zip(row, widths, strict=True)]
        for i in range(max(map(len, cells))):
            line = (cell[i] if i < len(cell) else "" for cell in cells)
            lines.append("  ".join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip())
        if number == 0:
            lines.append("  ".join("-" * width for width in widths))
    return lines


def _pixels(figure: "Figure") -> np.ndarray:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return np.asarray(Image.open(buffer).convert("RGB"))


def _stills(film: Film) -> np.ndarray:
    """First and last picture side by side."""
    with Image.open(io.BytesIO(film.content)) as gif:
        pictures = []
        for frame in (0, getattr(gif, "n_frames", 1) - 1):
            gif.seek(frame)
            pictures.append(np.asarray(gif.convert("RGB")))
    gap = np.full((pictures[0].shape[0], 12, 3), 255, dtype=np.uint8)
    return np.concatenate([pictures[0], gap, pictures[1]], axis=1)
