"""The header of a grid: time and quantity of each column, from one or several lines of names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iidrive.analysis.doctor.readers.cells import plain
from iidrive.analysis.doctor.readers.found import Grid
from iidrive.analysis.doctor.readers.names import quantity, time_of


@dataclass(frozen=True)
class Column:
    """One column of a header: index, time in seconds (None: no time), quantity ("": unknown) and full name."""

    at: int
    time: float | None
    row: str
    name: str


def columns_of(grid: Grid) -> list[Column]:
    """The columns of a grid. A name above several columns applies to each of them."""
    if not grid.header:
        return []
    width = max(len(cells) for cells in grid.header)
    # A shorter line of times lacks the cells of a label that spans both lines.
    lines = [("",) * (width - len(c)) + c for c in grid.header if len(c) == width or sum(time_of(plain(x)) is not None for x in c) >= 2]
    texts = [" ".join(dict.fromkeys(plain(cells[k]) for cells in lines)).strip() for k in range(width)]
    out = []
    for k, text in enumerate(texts):
        parts = [plain(cells[k]) for cells in lines]
        time = next((t for t in map(time_of, reversed(parts)) if t is not None), None)
        row = next((q for q in map(quantity, parts) if q), "")
        out.append(Column(k, time, row, text))
    groups = [c for c in grid.header if len(c) < width and sum(time_of(plain(x)) is not None for x in c) < 2]
    return _spread(out, groups) if groups else out


def times_differ(grid: Grid) -> bool:
    """Whether two lines of a header name different times, as those of a table do whose lines a terminal has wrapped."""
    times = [[t for t in (time_of(plain(cell)) for cell in cells) if t is not None] for cells in grid.header]
    several = [line for line in times if len(line) >= 2]
    return any(line != several[0] for line in several[1:])


def _spread(columns: list[Column], groups: list[tuple[str, ...]]) -> list[Column]:
    """Assign the names of a shorter header line to the runs of times below, in order."""
    names = [name for name in map(quantity, map(plain, groups[0])) if name]
    runs = runs_of([c for c in columns if c.time is not None])
    if len(names) != len(runs):
        return columns
    row_of = {c.at: name for name, run in zip(names, runs, strict=True) for c in run}
    return [Column(c.at, c.time, c.row or row_of.get(c.at, ""), c.name) for c in columns]


def runs_of(timed: Sequence[Column]) -> list[list[Column]]:
    """Split columns of times into runs; a new run begins where a time repeats."""
    runs: list[list[Column]] = []
    for column in timed:
        if not runs or column.time in {c.time for c in runs[-1]}:
            runs.append([])
        runs[-1].append(column)
    return runs
