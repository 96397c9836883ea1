"""Group lines of cells into grids. Every header begins a new grid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from iidrive.analysis.doctor.readers.cells import number, plain
from iidrive.analysis.doctor.readers.found import Grid
from iidrive.analysis.doctor.readers.names import is_row_name, quantity, time_of

MOST_CELLS = 200
"""Largest number of cells read per line."""


@dataclass(frozen=True)
class CellLine:
    """One line of cells. `apart`: a line that is not part of a table precedes it. `cut`: it breaks off before the border."""

    at: int
    cells: tuple[str, ...]
    apart: bool = False
    cut: bool = False


@dataclass
class _Open:
    first: int
    last: int
    header: list[tuple[str, ...]] = field(default_factory=list)
    body: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    title: str = ""
    cut: set[int] = field(default_factory=set)

    def closed(self, form: str) -> Grid:
        return Grid(form, self.first, self.last, tuple(self.header), tuple(self.body), self.title, frozenset(self.cut))


def gather(form: str, lines: Iterable[CellLine]) -> list[Grid]:
    """Grids from lines of cells, in order. A header, or a line that is not part of a table, begins the next grid. Lines without numbers or names are
    skipped."""
    grids: list[Grid] = []
    grid: _Open | None = None
    for line in lines:
        cells = line.cells[:MOST_CELLS]
        kind = _kind(cells)
        if grid and (line.apart or (kind in ("header", "title") and grid.body)):
            grids.append(grid.closed(form))
            grid = None
        if kind == "other":
            continue
        if grid is None:
            grid = _Open(line.at, line.at)
        grid.last = line.at
        if kind == "title":
            grid.title = plain(cells[0])
        elif kind == "header":
            grid.header.append(cells)
        else:
            grid.body.append((line.at, cells))
            if line.cut:
                grid.cut.add(line.at)
    if grid:
        grids.append(grid.closed(form))
    return [g for g in grids if g.body]


def _kind(cells: tuple[str, ...]) -> str:
    """Kind of a line: header, title (a single cell), body or other."""
    texts = [plain(cell) for cell in cells]
    filled = [text for text in texts if text]
    if not filled:
        return "other"
    if len(cells) == 1:
        return "title" if len(filled[0]) < 200 else "other"
    if any(number(text) is not None for text in filled):
        return "body"
    names = sum(time_of(text) is not None or bool(quantity(text)) for text in filled)
    if names >= 2 or (names == 1 and not any(is_row_name(text) for text in filled)):
        return "header"
    return "body" if names else "other"
