"""Convert grids of cells and named values to rows with times: find the orientation of a grid and the time of each cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from iidrive.analysis.doctor.header import Column, columns_of, runs_of, times_differ
from iidrive.analysis.doctor.readers.cells import absent, damaged, number, plain
from iidrive.analysis.doctor.readers.found import Grid, Values
from iidrive.analysis.doctor.readers.names import AVERAGE, factor_of, is_row_name, quantity, says_box, single, time_of
from iidrive.core.scene import FUTURE_STEPS, STEP_S
from iidrive.core.text import printable

MOST_ROWS = 1000
"""Largest number of rows or tables taken from one grid."""
USUAL_S = tuple(STEP_S * k for k in range(1, FUTURE_STEPS + 1))


@dataclass
class Rows:
    """A table before its units and protocol are known: printed cells by row and time (AVERAGE for the average), and the text lines it covers.

    Tables of one grid share `grid`. If methods or runs are rows of that grid, they also share its lines, `block`.
    """

    form: str
    first: int
    last: int
    cells: dict[str, dict[float, str]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    percent: set[str] = field(default_factory=set)
    factors: dict[str, float] = field(default_factory=dict)
    style: str = ""
    label: str = ""
    title: str = ""
    grid: int = 0
    block: tuple[int, int] | None = None
    header: bool = False
    scored: int | None = None
    unread: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def times(self) -> tuple[float, ...]:
        """Times of the columns in order, without the average."""
        return tuple(sorted({time for row in self.cells.values() for time in row if time != AVERAGE}))

    def name_unit(self, row: str, words: str) -> None:
        """Store the unit that the name of a row or column states."""
        if "%" in words:
            self.percent.add(row)
        elif (factor := factor_of(words)) is not None:
            self.factors[row] = factor

    def put(self, row: str, time: float, cell: str, label: str = "") -> None:
        """Store a cell. A cell that is not a number is recorded as unreadable; an absent one is skipped."""
        if absent(cell):
            return
        self.cells.setdefault(row, {})[time] = cell
        if number(cell) is None:
            where = "avg" if time == AVERAGE else f"{time:g} s"
            self.unread.append(f"{label or row} at {where}: '{printable(plain(cell), 40)}'")


def of_grid(grid: Grid, above: Sequence[str], key: int) -> tuple[list[Rows], list[str]]:
    """The tables of one grid, and what could not be read in it. `above`: the lines before the grid, the nearest last."""
    if times_differ(grid):
        return [], [f"line {grid.first + 1}: two lines of the header name different times; if a terminal wrapped the lines, join them"]
    columns = columns_of(grid)
    timed = [c for c in columns if (c.time is not None and c.at > 0) or (c.time is not None and not c.row)]
    named = [c for c in columns if c.row]
    plan = _plan_cells(grid)
    if plan:
        return [plan], []
    if len(timed) < 2 and named and sum(_row_time(cells) is not None for _, cells in grid.body) >= 2:
        return _times_down(grid, named, key)
    if len(timed) >= 2:
        return _times_across(grid, columns, timed, above, key)
    if named and any(c.row in ("L2", "obj_col", "obj_box_col") for c in named):
        twice = [row for row in ("L2", "obj_col", "obj_box_col") if sum(c.row == row for c in named) > 1]
        if twice:
            return [], [f"line {grid.first + 1}: the header names {twice[0]} more than once and no times"]
        return list(_averages_down(grid, columns, named, key)), []
    return _bare(grid, key)


def _row_time(cells: Sequence[str]) -> float | None:
    found = time_of(plain(cells[0])) if cells else None
    return found if found is not None and not quantity(cells[0]) else None


def _plan_cells(grid: Grid) -> Rows | None:
    """A grid of two columns whose names are `plan_L2_1s` and the like."""
    out = Rows(grid.form, grid.first, grid.last, style="vad")
    for _, cells in grid.body:
        name = plain(cells[0]).replace(" ", "_")
        if len(cells) < 2 or not name.lower().startswith("plan_"):
            continue
        row, time = quantity(name), time_of(name.rpartition("_")[2])
        if row and time is not None:
            out.put(row, time, cells[1])
    return out if out.cells else None


def _times_down(grid: Grid, named: Sequence[Column], key: int) -> tuple[list[Rows], list[str]]:
    """Times as rows, quantities as columns, as II-World's evaluation prints them."""
    out = Rows(grid.form, grid.first, grid.last, title=grid.title, grid=key, header=True, style="ii-world")
    step = Rows(grid.form, grid.first, grid.last, title=grid.title, grid=key, header=True, style="ii-world", label="single steps")
    twice = len({c.row for c in named}) < len(named)
    for _, cells in grid.body:
        time = _row_time(cells)
        for column in named:
            if time is None or column.at >= len(cells):
                continue
            into = step if twice and single(column.name) else out
            into.put(column.row, time, cells[column.at], column.name)
            into.labels[column.row] = column.name
            into.name_unit(column.row, column.name)
    if not any("iou" in c.name.lower() or "traj" in c.name.lower() or single(c.name) for c in named):
        out.style = step.style = ""
    elif twice and step.cells:
        out.style = "ii-world means"
    return [rows for rows in (out, step) if rows.cells], []


def _times_across(
    grid: Grid, columns: Sequence[Column], timed: Sequence[Column], above: Sequence[str], key: int
) -> tuple[list[Rows], list[str]]:
    """Times as columns: quantities as rows, or methods as rows with a run of times for each quantity."""
    timed = [c for c in timed if c.time is not None]
    runs = runs_of(timed)
    unread: list[str] = []
    names = [next((c.row for c in run if c.row), "") for run in runs]
    if len(runs) == 1 and not names[0]:
        caption = next((q for q in (quantity(line) for line in reversed(above)) if q), "")
        return list(_quantities_down(grid, timed, caption, above, key, unread)), unread
    notes = []
    if not any(names):
        if len(runs) != 2:
            return [], [f"line {grid.first + 1}: {len(runs)} groups of columns without names"]
        if any(_exact(cells) is not None for _, cells in grid.body):
            return [], [f"line {grid.first + 1}: the times stand twice above rows of one quantity each; put tables one below the other"]
        names = ["L2", "obj_box_col"]
        notes.append("two groups of columns have no names: read as L2 in metres, then collisions in percent, as papers print them")
    elif not all(names):
        names = [name or ("obj_box_col" if "L2" in names else "L2") for name in names]
        notes.append("one group of columns has no name: read as the other quantity")
    if len(set(names)) < len(names):
        return [], [f"line {grid.first + 1}: the header names {names[0]} twice"]
    first = min(c.at for c in timed)
    tables = []
    for at, printed in grid.body[:MOST_ROWS]:
        cells = _in_columns(printed, len(columns), first, grid.form)
        if cells is None:
            unread.append(f"line {at + 1}: {len(printed)} cells below {len(columns)} columns")
            continue
        label = printable(" ".join(plain(cell) for cell in cells[:first] if plain(cell) and number(cell) is None), 80)
        rows = Rows(grid.form, at, at, title=grid.title, grid=key, header=True, label=label or "unnamed", notes=list(notes))
        rows.block = grid.first, grid.last
        for name, run in zip(names, runs, strict=True):
            for column in run:
                if column.at < len(cells) and column.time is not None:
                    rows.put(name, column.time, cells[column.at], f"{label} {name}")
                rows.name_unit(name, column.name)
            if name == "obj_box_col" and notes and name not in rows.factors:
                rows.percent.add(name)
            if name == "obj_box_col" and not any(says_box(c.name) for c in run) and not notes:
                rows.notes.append("a collision column that names neither point nor box is read as the box's")
        _cut(rows, grid, at, cells, len(columns))
        rows.scored = next(
            (int(cells[c.at]) for c in columns if c.name in ("N", "samples") and cells[c.at : c.at + 1] and _whole(cells[c.at])), None
        )
        if rows.cells:
            tables.append(rows)
    return tables, unread


def _in_columns(cells: Sequence[str], width: int, first: int, form: str) -> Sequence[str] | None:
    """The cells of a row aligned with the header's `width` columns; `first` is the first column of times. None if they cannot be aligned.

    In columns separated by blanks, a label may have another number of words than the header; the numbers are aligned at the end of the header.
    """
    if form != "columns" or len(cells) == width:
        return cells if len(cells) <= width else None
    numbers = cells[1:]
    return (cells[0], *[""] * (first - 1), *numbers) if len(numbers) == width - first else None


def _whole(cell: str) -> bool:
    return cell.isascii() and cell.isdigit() and len(cell) <= 12


def _cut(rows: Rows, grid: Grid, at: int, cells: Sequence[str], width: int) -> None:
    if len(cells) < width:
        rows.unread.append(f"line {at + 1} has {len(cells)} of {width} cells")
        _drop_last(rows, grid, at, cells[-1])


def _drop_last(rows: Rows, grid: Grid, at: int, last: str) -> None:
    """Drop the last cell of a line that breaks off, because its number may be truncated."""
    if at in grid.cut or grid.form in ("columns", "boxed"):
        for row in rows.cells.values():
            for time in [t for t, cell in row.items() if cell is last]:
                del row[time]
                rows.unread.append(f"the last cell '{printable(plain(last), 40)}' may be cut")


def _quantities_down(
    grid: Grid, timed: Sequence[Column], caption: str, above: Sequence[str], key: int, unread: list[str]
) -> Iterator[Rows]:
    """Quantities as rows. A repeated quantity begins the next table. A row without a quantity has that of the caption."""
    names_all = all(quantity(_label(cells, timed[0].at)) or _exact(cells) is not None for _, cells in grid.body)
    rows: Rows | None = None
    for at, cells in grid.body:
        exact = _exact(cells)
        label = plain(cells[exact]) if exact is not None else _label(cells, timed[0].at)
        name = quantity(label) or caption
        values = cells[exact + 1 :] if exact is not None else cells[timed[0].at :]
        if not name:
            if sum(number(cell) is not None for cell in values) >= 2:
                unread.append(f"line {at + 1}: the row '{printable(label, 60)}' does not name its quantity")
            continue
        if len(values) > len(timed):
            unread.append(f"line {at + 1}: {len(values)} numbers below {len(timed)} columns")
            continue
        if rows is None or name in rows.cells:
            if rows:
                yield rows
            rows = Rows(grid.form, at if rows else grid.first, at, title=grid.title, grid=key, header=True)
            if not (names_all and exact is not None):
                rows.label, rows.block = printable(label, 80), (grid.first, grid.last)
        rows.last = at
        rows.labels[name] = label
        rows.name_unit(name, label)
        for column, cell in zip(timed, values, strict=False):
            if column.time is not None:
                rows.put(name, column.time, cell)
        if len(values) < len(timed):
            rows.unread.append(f"{name}: {len(values)} of {len(timed)} cells")
            if values:
                _drop_last(rows, grid, at, values[-1])
    if rows:
        rows.last = max(rows.last, grid.last if rows.first == grid.first else rows.last)
        yield rows


def _label(cells: Sequence[str], first: int) -> str:
    return " ".join(plain(cell) for cell in cells[: max(first, 1)] if plain(cell))


def _exact(cells: Sequence[str]) -> int | None:
    """Index of the cell with an evaluator's row name, after any log prefix; None if there is none."""
    return next((k for k, cell in enumerate(cells) if is_row_name(plain(cell))), None)


def _averages_down(grid: Grid, columns: Sequence[Column], named: Sequence[Column], key: int) -> Iterator[Rows]:
    """Runs or methods as rows, each quantity a column of averages."""
    taken: dict[str, Column] = {}
    for column in named:
        taken.setdefault(column.row, column)
    first = min(c.at for c in taken.values())
    for at, cells in grid.body[:MOST_ROWS]:
        shift = len(cells) - len(columns) if grid.form == "columns" else 0  # pandas has no column name for its index
        label = printable(" ".join(plain(cell) for cell in cells[: max(first + shift, 0)] if plain(cell)), 80)
        rows = Rows(grid.form, at, at, title=grid.title, grid=key, header=True, label=label or f"line {at + 1}")
        rows.block = grid.first, grid.last
        for name, column in taken.items():
            place = column.at + shift
            if 0 <= place < len(cells) and name in ("L2", "obj_col", "obj_box_col"):
                rows.put(name, AVERAGE if column.time is None else column.time, cells[place], f"{label} {name}")
                rows.name_unit(name, column.name)
        if rows.cells:
            yield rows


def _bare(grid: Grid, key: int) -> tuple[list[Rows], list[str]]:
    """Rows without a header: accepted if an evaluator's row name is followed by six numbers, or by six numbers and an average."""
    tables, unread = list[Rows](), list[str]()
    rows: Rows | None = None
    for at, cells in grid.body:
        exact = _exact(cells)
        if exact is None or len(tables) > MOST_ROWS:
            continue
        values = list(cells[exact + 1 :])
        while values and not plain(values[-1]):
            values.pop()
        name, count = quantity(cells[exact]), len(values)
        good = sum(number(cell) is not None for cell in values)
        if count not in (FUTURE_STEPS, FUTURE_STEPS + 1) or good < count - 3 or any(number(c) is None and not damaged(c) for c in values):
            if good >= 2 and good == count:
                unread.append(f"line {at + 1}: the row '{plain(cells[exact])}' has {count} numbers and no header with their times")
            continue
        if rows is None or name in rows.cells or (count == FUTURE_STEPS) != (AVERAGE not in next(iter(rows.cells.values()))):
            rows = Rows(grid.form, at, at, title=grid.title, grid=key)
            tables.append(rows)
        rows.last = at
        rows.labels[name] = plain(cells[exact])
        for time, cell in zip((*USUAL_S, AVERAGE), values, strict=False):
            rows.put(name, time, cell)
    return tables, unread


def of_values(values: Values) -> Rows:
    """Named values as rows."""
    rows = Rows(values.form, values.first, values.last, style=values.style, label=values.label, header=True, notes=list(values.notes))
    for (name, time), cell in values.cells.items():
        seconds = AVERAGE if time == "avg" else time_of(time)
        if seconds is not None:
            rows.put(name, seconds, cell)
    if values.style == "slashes":  # the percent sign appears once, after the last number
        rows.percent |= {name for (name, _), cell in values.cells.items() if cell.endswith("%")}
    return rows
