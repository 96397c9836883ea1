"""Assemble the tables of a text: combine the readers' results with the lines below each table and the words around it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from iidrive.analysis.doctor.decode import settle
from iidrive.analysis.doctor.interpret import USUAL_S, Rows, of_grid, of_values
from iidrive.analysis.doctor.protocol import follow
from iidrive.analysis.doctor.readers.boxed import read_boxed
from iidrive.analysis.doctor.readers.columns import read_columns
from iidrive.analysis.doctor.readers.found import Grid, Tail
from iidrive.analysis.doctor.readers.html import read_html
from iidrive.analysis.doctor.readers.keyed import per_sample_means, read_logs, read_plan_lines, read_runs
from iidrive.analysis.doctor.readers.latex import read_latex
from iidrive.analysis.doctor.readers.lines import clean, counted, is_rule, words
from iidrive.analysis.doctor.readers.losses import BadLoss, read_losses
from iidrive.analysis.doctor.readers.markdown import mark_markdown
from iidrive.analysis.doctor.readers.names import AVERAGE
from iidrive.analysis.doctor.readers.own import read_tails
from iidrive.analysis.doctor.table import CountLine, Table
from iidrive.analysis.doctor.typed import typed_rows
from iidrive.core.lineage import MARKED, TRAINED_HERE
from iidrive.core.text import printable

_FAR = 200
"""Number of lines below a table that may contain its dict of averages."""
_MOST_TABLES = 1000
_LARGEST = 1e12
"""Averages beyond this are treated as infinite."""


@dataclass(frozen=True)
class Reading:
    """All tables of a text, descriptions of unreadable ones, and losses that were NaN or infinite."""

    tables: tuple[Table, ...]
    unread: tuple[str, ...]
    losses: tuple[BadLoss, ...]


@dataclass
class _Draft:
    """A table with its lines, `first` to `last`, before units are converted."""

    rows: Rows
    first: int
    last: int
    averages: dict[str, float] = field(default_factory=dict)
    average_at: int = -1
    summary: dict[str, tuple[str, str]] = field(default_factory=dict)
    counts: list[CountLine] = field(default_factory=list)
    scored: int | None = None
    unread: list[str] = field(default_factory=list)
    nan: set[str] = field(default_factory=set)

    @property
    def only_averages(self) -> bool:
        return not self.rows.times


def read(text: str, where: str) -> Reading:
    """Parse a text with every reader and return its tables in order. Time and memory are linear in the length of the text."""
    lines = clean(text)
    found, unread = _all_rows(lines)
    tails = list(read_tails(lines))
    drafts = _with_tails(_merged(found, tails), tails)
    if len(drafts) > _MOST_TABLES:
        drafts = drafts[:_MOST_TABLES]
        drafts[-1].rows.notes.append(f"the text holds more tables; only the first {_MOST_TABLES} are read")
    losses = read_losses(lines)
    tables = _finished(drafts, lines, where, losses, tails)
    return Reading(tuple(tables), tuple(unread[:20]), tuple(losses))


def _all_rows(lines: Sequence[str]) -> tuple[list[Rows], list[str]]:
    """Rows of every reader in order of their first line, and what could not be read. A line belongs to the first reader that accepts it."""
    grids: list[Grid] = [
        *mark_markdown(read_boxed(lines), lines),
        *read_latex(lines),
        *read_html(lines),
        *read_columns(lines),
    ]
    rows, unread = list[Rows](), list[str]()
    for key, grid in enumerate(sorted(grids, key=lambda g: g.first), start=1):
        above = [line for line in lines[max(0, grid.first - 6) : grid.first] if line and "|" not in line]
        tables, faults = of_grid(grid, above, key)
        rows += tables
        unread += faults
        if len(rows) > 2 * _MOST_TABLES:
            break
    taken = {at for one in rows for at in range(one.first, one.last + 1)}
    for values in (*read_plan_lines(lines), *read_logs(lines), *read_runs(lines)):
        if values.first not in taken:
            rows.append(of_values(values))
    return sorted((one for one in rows if one.cells), key=lambda one: (one.first, one.last)), unread


def _merged(found: Sequence[Rows], tails: Sequence[Tail]) -> list[Rows]:
    """Rejoin rows of one table that were separated by other lines: rows without a header, with other names, and without a dict in between."""
    ends = [tail.line for tail in tails if tail.kind in ("average", "events", "summary")]
    out: list[Rows] = []
    at = 0
    for rows in found:
        before = out[-1] if out else None
        while at < len(ends) and before and ends[at] <= before.last:
            at += 1
        torn = before and not rows.header and before.times == rows.times == USUAL_S and before.cells.keys().isdisjoint(rows.cells)
        goes_on = (
            before and before.form == rows.form == "columns" and before.cells.keys() == rows.cells.keys() and before.times and rows.times
        )
        if before and goes_on and rows.first - before.last <= 3 and not before.label and rows.times[0] > before.times[-1]:
            for name, row in rows.cells.items():  # a wide pandas DataFrame, printed in parts
                before.cells[name] |= row
            before.unread += rows.unread
            before.last = rows.last
            continue
        near = before and rows.first - before.last < _FAR and not (at < len(ends) and ends[at] < rows.first)
        if before and torn and near and not before.label and _averaged(before) == _averaged(rows):
            before.cells |= rows.cells
            before.labels |= rows.labels
            before.percent |= rows.percent
            before.unread += rows.unread
            before.last = rows.last
            continue
        out.append(rows)
    return out


def _averaged(rows: Rows) -> bool:
    return any(AVERAGE in row for row in rows.cells.values())


def _with_tails(found: Sequence[Rows], tails: Sequence[Tail]) -> list[_Draft]:
    """Assign each line below a table to that table. A dict that belongs to a table is not a separate table."""
    drafts: list[_Draft] = []
    next_tail = 0
    for i, rows in enumerate(found):
        while next_tail < len(tails) and tails[next_tail].line < rows.first:
            if drafts:
                _take(drafts[-1], tails[next_tail])
            next_tail += 1
        before = drafts[-1] if drafts else None
        if before and rows.style in ("dict", "log") and not rows.times and _repeats(before, rows):
            while next_tail < len(tails) and tails[next_tail].line <= rows.last:
                _take(before, tails[next_tail])
                next_tail += 1
            continue
        drafts.append(_Draft(rows, rows.first, rows.last))
        end = rows.last if i + 1 == len(found) or found[i + 1].first > rows.last else rows.first
        while next_tail < len(tails) and tails[next_tail].line <= end:
            next_tail += 1
    for tail in tails[next_tail:]:
        if drafts:
            _take(drafts[-1], tail)
    return drafts


def _repeats(before: _Draft, rows: Rows) -> bool:
    """Whether averages belong to the table before them: its dict, which appears once, or a log line that repeats its averages."""
    if before.only_averages or before.rows.label or rows.first - before.last > _FAR:
        return False
    if rows.style == "dict":
        return not before.averages
    own, _ = typed_rows(before.rows, before.averages)
    said, _ = typed_rows(rows, {})
    return all(
        name in own and (mean := own[name].average) is not None and abs((row.average or 0.0) - mean) <= 1.1 * (row.half + own[name].half)
        for name, row in said.items()
    )


def _lines_between(lines: Sequence[int], first: int, last: int) -> range:
    """Indices of the sorted lines in [first, last)."""
    return range(bisect_left(lines, first), bisect_left(lines, last))


def _take(draft: _Draft, tail: Tail) -> None:
    cells, at = tail.cells, tail.line
    if tail.kind == "rule":
        draft.last = at if at == draft.last + 1 else draft.last
        return
    if at - draft.last > _FAR:
        return
    if tail.kind == "average":
        goes_on = draft.average_at == at - 1 and draft.averages.keys().isdisjoint(cells)
        if (not draft.averages or goes_on) and not draft.rows.label and not draft.only_averages:
            read = {name: float(value) for name, value in cells.items()}
            draft.averages |= {name: value for name, value in read.items() if abs(value) < _LARGEST}
            draft.nan |= {name for name, value in read.items() if not abs(value) < _LARGEST}
            draft.average_at = draft.last = at
    elif tail.kind == "summary":
        if cells["row"] not in draft.summary and not draft.averages and not draft.only_averages:
            if abs(float(cells["value"])) < _LARGEST:
                draft.summary[cells["row"]] = (cells["value"], cells["percent"])
            else:
                draft.nan.add(cells["row"])
            draft.last = at
    elif tail.kind == "events":
        draft.counts.append(CountLine(cells["row"], int(cells["n"]), tuple(int(k) for k in cells["events"].split()), at + 1))
        draft.last = at
    elif tail.kind == "unread events":
        draft.unread.append(f"count line {at + 1}: '{printable(cells['text'], 80)}' does not give six counts")
        draft.last = at
    elif tail.kind == "scored":
        if draft.scored is None:
            draft.scored = int(cells["n"])
        draft.last = at
    elif tail.kind == "own":
        draft.last = at


def _finished(drafts: Sequence[_Draft], lines: Sequence[str], where: str, losses: Sequence[BadLoss], tails: Sequence[Tail]) -> list[Table]:
    """Typed tables with the words around them. Tables of one grid share these words."""
    said = [tail for tail in tails if tail.kind == "said"]
    said_at = [tail.line for tail in said]
    bars = [(at, total) for at, line in enumerate(lines) if "/" in line and (total := counted(line))]
    bars_at = [at for at, _ in bars]
    blocks: list[list[_Draft]] = []
    for draft in drafts:
        together = blocks and draft.rows.block and draft.rows.block == blocks[-1][-1].rows.block
        if together or (blocks and draft.first <= blocks[-1][-1].last and draft.rows.style == blocks[-1][-1].rows.style):
            blocks[-1].append(draft)
        else:
            blocks.append([draft])
    out: list[Table] = []
    end = -1
    for i, block in enumerate(blocks):
        first = block[0].rows.block[0] if block[0].rows.block else block[0].first
        while first > end + 1 and lines[first - 1].strip() and is_rule(lines[first - 1]):
            first -= 1
        last = max(max(draft.last, draft.rows.block[1] if draft.rows.block else 0) for draft in block)
        following = blocks[i + 1][0] if i + 1 < len(blocks) else None
        after = (following.rows.block[0] if following.rows.block else following.first) if following else len(lines)
        above = [line.strip() for line in lines[max(_heading_start(lines, end, first, i > 0), first - 400) : first]]
        marks = [line for line in above if line.startswith((MARKED, TRAINED_HERE))]
        heading = words([line for line in above if line not in marks])
        remark = words(lines[last + 1 : _heading_start(lines, last, after, True, i + 1 == len(blocks))])
        near = _lines_between(bars_at, max(end + 1, first - 400), first)
        progress = bars[near[-1]][1] if near else None
        mine = tuple(loss for loss in losses if loss.first < first and loss.last > end)
        hints = _lines_between(said_at, first - 10, last + 3)
        hint = int(said[hints[0]].cells["n"]) if hints else None
        for draft in block:
            draft.scored = draft.scored or draft.rows.scored or (hint if draft.rows.form == "slashes" else None)
            typed = _table(draft, len(out) + 1, where, first if draft is block[0] else draft.first, heading, remark)
            means = tuple(per_sample_means(lines, draft.first)) if draft.rows.style == "vad" else ()
            marked = tuple(printable(mark, 300) for mark in marks)
            out.append(settle(replace(typed, marks=marked, progress=progress, losses=mine, means=means)))
        end = last
    return out


def _table(draft: _Draft, number: int, where: str, first: int, heading: str, remark: str) -> Table:
    rows, guessed = typed_rows(draft.rows, draft.averages)
    summary = {}
    for name, (text, sign) in draft.summary.items():
        scale = 0.01 if name in ("obj_col", "obj_box_col") and sign else 1.0
        summary[name] = (float(text) * scale, 0.5 * 10.0 ** -len(text.lower().partition("e")[0].partition(".")[2]) * scale)
    times = draft.rows.times
    whole = tuple(times.index(t) for t in (1.0, 2.0, 3.0) if t in times)
    notes = list(dict.fromkeys(draft.rows.notes))
    if any("," in cell for row in draft.rows.cells.values() for cell in row.values()):
        notes.append("commas between digits were read as decimal points")
    if guessed == "fractions":
        notes.append("collision rows have no percent sign and at least four decimals: read as fractions of 1")
    return Table(
        number,
        where,
        first + 1,
        rows,
        times,
        whole if len(whole) == 3 else (),
        follow(draft.rows, heading),
        draft.rows.form,
        draft.rows.label,
        draft.rows.grid,
        draft.averages,
        summary,
        tuple(draft.counts),
        draft.scored,
        heading=heading,
        remark=remark,
        percent_guessed=guessed == "percent",
        unread=(*draft.rows.unread, *draft.unread),
        notes=tuple(notes),
        nan=tuple(sorted(draft.nan)),
    )


def _heading_start(lines: Sequence[str], last: int, first: int, has_before: bool, at_end: bool = False) -> int:
    """First line of the words that belong to the next table. Words directly below the previous table, followed by a blank line, are its remark."""
    if not has_before:
        return last + 1
    at = last + 1
    while at < first and not lines[at].strip():
        at += 1
    # A remark must directly follow its table. After a blank line the words are a heading.
    if at > last + 1:
        return len(lines) if at_end and at >= first else last + 1
    while at < first and lines[at].strip():
        at += 1
    return at if at < first or at_end else last + 1
