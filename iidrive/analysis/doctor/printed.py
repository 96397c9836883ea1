"""Printed reference tables, read back from logs and notes, and the integer event counts behind their percentages.

The layout is the one that SparseDrive's evaluator prints and `score.format_table` writes: rows `obj_col`, `obj_box_col` (percent) and `L2`
(metres), six columns of prefix means and `avg`, then two summary lines and a dict of the averages at full precision. Borders, colours,
log prefixes and fullwidth characters may be lost or added on the way; the numbers may not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from iidrive.core.errors import DataError
from iidrive.core.lineage import MARKED
from iidrive.core.scene import FUTURE_STEPS
from iidrive.scoring.score import averaged, prefix_means, rate
from iidrive.scoring.tables import NUSCENES_VAL_SAMPLES

Array = np.ndarray

ROWS = ("obj_col", "obj_box_col", "L2")
RATES = ("obj_col", "obj_box_col")
WEIGHTS = np.array([11, 11, 5, 5, 2, 2])
"""36 times the weight of each step in the average of the 1, 2 and 3 s columns: (1/2 + 1/4 + 1/6) / 3 = 11/36 for the first two, and so on."""
LARGEST_SET = 20_000
"""Sample counts up to this are tried. Beyond 100 000 / 6 = 16 666 samples three decimals of a percent no longer fix a count."""

_NUMBER = r"[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?|nan|inf"
_ROW = re.compile(
    rf"(?<![\w'\"])({'|'.join(ROWS)})[\s|:,;&]+((?:(?:{_NUMBER})(?![\w.])\s*%?[\s|,;&\\]*){{6,7}})(?![\w.])",
)
_CELL = re.compile(rf"({_NUMBER})\s*(%?)")
_SUMMARY = re.compile(rf"(?<![\w'\"])(obj_box_col|L2)\s*:\s*({_NUMBER})\s*(%?)\s*$")
_AVERAGE = re.compile(rf"['\"]({'|'.join(ROWS)})['\"]\s*:\s*(?:[\w.]*\()?\s*({_NUMBER})")
_EVENTS = re.compile(r"(obj_col|obj_box_col) events per step, of (\d+) samples: ((?:\d+ ?){6})")
_OWN_LINES = re.compile(r"^(scored \d+ samples;|checksum: |predictions: |The cases file carries no|\d+ boxes without)")
_RULE = re.compile(r"^[\s+|:=_-]*$")
_HEADER = re.compile(r"(?<![\w])metrics[\s|]+0\.5\s*s")
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_BARS = str.maketrans(
    {c: "|" for c in "│┃║¦❘∣┆┇┊┋╎╏"} | {c: "+" for c in "┌┐└┘├┤┬┴┼╔╗╚╝╠╣╦╩╬"} | {c: "-" for c in "─━═‐‑‒–—−"} | {"\u200b": "", "\ufeff": ""}
)


@dataclass(frozen=True)
class Row:
    """One printed row: six prefix means and the average, rates as fractions of 1, L2 in metres; `half` is half of the last printed digit."""

    columns: tuple[float, ...]
    average: float | None
    half: float


@dataclass(frozen=True)
class PrintedTable:
    """One table as found. `averages` is the dict at full precision, `summary` the two lines, `events` and `n` iidrive's own count lines.

    `heading` and `remark` are the words before and after it, `marks` what stands before it about mismatched stages, `line` where it starts
    (1 is the first), `percent_guessed` whether collision rows stood without a percent sign.
    """

    number: int
    where: str
    line: int
    rows: Mapping[str, Row]
    averages: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    events: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    n: int | None = None
    heading: str = ""
    remark: str = ""
    marks: tuple[str, ...] = ()
    percent_guessed: bool = False

    def average(self, name: str) -> float | None:
        """The row's average, from the dict if it stands there, else as printed."""
        return self.averages.get(name, self.rows[name].average if name in self.rows else None)


@dataclass(frozen=True)
class Decoded:
    """Integer events per step behind the percentages, of `n` samples.

    `source`: 'stated' by count lines, 'digits' where only this `n` (and `others`) gives the averages at full precision, 'assumed' where
    a given or the usual `n` merely fits. `exact`: the averages come out to the last digit.
    """

    n: int
    events: Mapping[str, tuple[int, ...]]
    source: str
    exact: bool
    others: tuple[int, ...] = ()

    def weighted(self, name: str) -> int:
        """36 · n · average, an integer."""
        return int(WEIGHTS @ np.array(self.events[name]))


# ------------------------------------------------------------------------------------------------------------------- reading


def read_text(path: str | Path) -> str:
    """A text file in UTF-8, UTF-16 (with its mark) or GB 18030.

    Raises:
        DataError: if it cannot be read or is an archive.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if raw.startswith(b"PK\x03\x04") or raw.startswith(b"\x93NUMPY"):
        raise DataError(f"{path}: this is an array file, not text; expected a log or notes with a printed table.")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", errors="replace")
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1")


def read_tables(path: str | Path) -> list[PrintedTable]:
    """Every table of a text file; `FILE#2` means its second one alone.

    Raises:
        DataError: if the file cannot be read or holds no table.
    """
    name, _, which = str(path).rpartition("#")
    if not (name and which.isdigit()) or Path(path).exists():
        name, which = str(path), ""
    found = parse_tables(read_text(name), name)
    if not found:
        raise DataError(
            f"{name}: no table found. Expected rows 'obj_col', 'obj_box_col' and 'L2' with six numbers and an average, as "
            "`iidrive score` and SparseDrive's evaluator print them."
        )
    if which and not 1 <= int(which) <= len(found):
        raise DataError(f"{name}: there is no table {which}; it holds {len(found)}.")
    return [found[int(which) - 1]] if which else found


def clean(text: str) -> list[str]:
    """Lines without colour codes, carriage returns, fullwidth forms and drawn borders."""
    plain = _ANSI.sub("", text)
    return [unicodedata.normalize("NFKC", line).translate(_BARS).rstrip() for line in re.split(r"\r\n|\r|\n", plain)]


def parse_tables(text: str, where: str = "text") -> list[PrintedTable]:
    """Every printed table of a text, numbered from 1 in order of appearance. Borders and header are not needed; rows are."""
    lines = clean(text)
    blocks = list(_blocks(lines))
    out = []
    for i, block in enumerate(blocks):
        before = blocks[i - 1].last if i else -1
        after = blocks[i + 1].first if i + 1 < len(blocks) else len(lines)
        above = [line.strip() for line in lines[_heading_start(lines, before, block.first, i > 0) : block.first]]
        marks = [line for line in above if line.startswith(MARKED)]
        heading = _words([line for line in above if line not in marks])
        remark = _words(lines[block.last + 1 : _heading_start(lines, block.last, after, True, i + 1 == len(blocks))])
        out.append(block.table(i + 1, where, heading, remark, tuple(marks)))
    return out


@dataclass
class _Block:
    """A table while it is read: raw cells by row, and the lines from `first` to `last` that belong to it."""

    first: int
    last: int
    cells: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    summary: dict[str, tuple[str, str]] = field(default_factory=dict)
    averages: dict[str, float] = field(default_factory=dict)
    events: dict[str, tuple[int, ...]] = field(default_factory=dict)
    n: int | None = None

    def table(self, number: int, where: str, heading: str, remark: str, marks: tuple[str, ...]) -> PrintedTable:
        guessed = any(not sign for name in RATES for _, sign in self.cells.get(name, []))
        fraction = guessed and _are_fractions(self.cells, self.averages)
        rows = {}
        for name, cells in self.cells.items():
            scale = 0.01 if name in RATES and not (fraction and not cells[0][1]) else 1.0
            values = [float(text) * scale for text, _ in cells]
            half = 0.5 * 10.0 ** -min(_decimals(text) for text, _ in cells) * scale
            rows[name] = Row(tuple(values[:FUTURE_STEPS]), values[FUTURE_STEPS] if len(values) > FUTURE_STEPS else None, half)
        summary = {}
        for name, (text, sign) in self.summary.items():
            scale = 0.01 if name in RATES and sign else 1.0
            summary[name] = (float(text) * scale, 0.5 * 10.0 ** -_decimals(text) * scale)
        return PrintedTable(
            number,
            where,
            self.first + 1,
            rows,
            self.averages,
            summary,
            self.events,
            self.n,
            heading,
            remark,
            marks,
            guessed and not fraction,
        )


def _blocks(lines: Sequence[str]) -> Iterator[_Block]:
    """Rows gathered into tables: a row that is already there, or a header, begins the next one."""
    block: _Block | None = None
    header = -1
    for at, line in enumerate(lines):
        if _HEADER.search(line):
            header = at
            continue
        row = _ROW.search(line)
        if row:
            name, cells = row[1], _CELL.findall(row[2])
            if block is None or name in block.cells or block.averages or header > block.last:
                if block:
                    yield block
                first = header if header > (block.last if block else -1) else at
                # The rule above the header belongs to the table.
                first -= first > 0 and bool(lines[first - 1].strip()) and bool(_RULE.match(lines[first - 1]))
                block = _Block(first, at)
            block.cells[name], block.last = cells, at
        elif block:
            _tail(block, at, line)
    if block:
        yield block


def _tail(block: _Block, at: int, line: str) -> None:
    """What follows the rows: rules, summary lines, the dict, iidrive's count lines."""
    found = _AVERAGE.findall(line)
    if found and not block.averages:
        block.averages, block.last = {name: float(value) for name, value in found}, at
    elif (summary := _SUMMARY.search(line)) and summary[1] not in block.summary and not block.averages:
        block.summary[summary[1]], block.last = (summary[2], summary[3]), at
    elif events := _EVENTS.search(line):
        block.events[events[1]], block.n, block.last = tuple(int(k) for k in events[3].split()), int(events[2]), at
    elif line.strip() and (_OWN_LINES.match(line.strip()) or (_RULE.match(line) and at == block.last + 1)):
        block.last = at


def _heading_start(lines: Sequence[str], last: int, first: int, has_before: bool, at_end: bool = False) -> int:
    """Where the words of the next table begin: those that touch the table before are its remark, if a blank line follows them."""
    if not has_before:
        return last + 1
    at = last + 1
    while at < first and not lines[at].strip():
        at += 1
    # Skipping blanks first would make a heading of its own a remark: words only touch if they follow at once.
    if at > last + 1:
        return len(lines) if at_end and at >= first else last + 1
    while at < first and lines[at].strip():
        at += 1
    return at if at < first or at_end else last + 1


def _words(lines: Sequence[str]) -> str:
    """The nearest few lines of words, rules and blanks left out."""
    kept = [line.strip() for line in lines if line.strip() and not _RULE.match(line)]
    words = " / ".join(kept[-3:])
    return words if len(words) <= 300 else f"… {words[-300:]}"


def _decimals(text: str) -> int:
    mantissa, _, exponent = text.lower().partition("e")
    return len(mantissa.partition(".")[2]) - int(exponent or 0)


def _are_fractions(cells: Mapping[str, list[tuple[str, str]]], averages: Mapping[str, float]) -> bool:
    """Whether collision rows without a percent sign agree with the dict as they stand (else they are taken for percent)."""
    for name in RATES:
        row = cells.get(name, [])
        if len(row) > FUTURE_STEPS and averages.get(name):
            printed = float(row[FUTURE_STEPS][0])
            return abs(printed - averages[name]) < abs(printed / 100 - averages[name])
    return False


# ------------------------------------------------------------------------------------------------------------------ decoding


def decode(table: PrintedTable, n: int | None = None) -> Decoded | None:
    """The integer events per step of each collision row, and the number of samples; None where no count fits.

    `n` fixes the number of samples. Otherwise count lines say it, or the dict's digits do (36·n·average is an integer, and float32
    quotients summed in float64 must come out to the last digit), or nuScenes val's 5119 is assumed if it fits.
    """
    stated = n or table.n
    if stated is None and any(table.averages.get(name) for name in RATES if name in table.rows):
        return _from_digits(table)
    size = stated or NUSCENES_VAL_SAMPLES
    events = _all_events(table, size)
    if events is None:
        return None
    source = "stated" if table.n == size else "assumed"
    if source == "stated" and table.events:
        events = {**events, **table.events}
    return Decoded(size, events, source, _exact(table, events, size))


def _from_digits(table: PrintedTable) -> Decoded | None:
    """Search the number of samples: every row's columns must be counts, and 36·n·average their weighted sum."""
    sizes = np.arange(1, LARGEST_SET + 1)
    fits = np.ones(len(sizes), bool)
    for name in RATES:
        if name not in table.rows:
            continue
        low, high = _bounds(table.rows[name], sizes)
        fits &= (low <= high).all(axis=1)
        average = table.averages.get(name)
        if average is not None:
            weighted = 36 * sizes * average
            fits &= np.abs(weighted - np.round(weighted)) <= 2e-7 * weighted + 1e-9
    found = [
        Decoded(int(size), events, "digits", _exact(table, events, int(size)))
        for size in sizes[fits]
        if (events := _all_events(table, int(size)))
    ]
    if not found:
        return None
    best = [d for d in found if d.exact] or found
    first = next((d for d in best if d.n == NUSCENES_VAL_SAMPLES), best[0])
    return Decoded(first.n, first.events, "digits", first.exact, tuple(d.n for d in best if d.n != first.n))


def _bounds(row: Row, sizes: Int64[Array, "s"]) -> tuple[Int64[Array, "s 6"], Int64[Array, "s 6"]]:
    """Smallest and largest cumulative count that rounds to each printed column, for each number of samples."""
    column, k = np.array(row.columns), np.arange(1, FUTURE_STEPS + 1)
    scale = sizes[:, None] * k
    slack = 1e-9 + 1e-7 * column * scale
    low = np.ceil(scale * (column - row.half) - slack)
    high = np.floor(scale * (column + row.half) + slack)
    return np.maximum(low, 0).astype(np.int64), np.minimum(high, scale).astype(np.int64)


def _all_events(table: PrintedTable, size: int) -> dict[str, tuple[int, ...]] | None:
    """Events of all collision rows for one number of samples; None if a row has none."""
    out = {}
    for name in RATES:
        if name not in table.rows:
            continue
        events = _row_events(table.rows[name], table.averages.get(name), size)
        if events is None:
            return None
        out[name] = events
    return out or None


def _row_events(row: Row, average: float | None, size: int) -> tuple[int, ...] | None:
    """Counts per step that print as this row; the dict's average decides where rounding leaves a choice."""
    if not np.isfinite(row.columns).all():
        return None
    low, high = (bound[0] for bound in _bounds(row, np.array([size])))
    paths: list[tuple[int, ...]] = [()]
    for k in range(FUTURE_STEPS):
        longer = []
        for path in paths:
            done = sum(path)
            longer += [(*path, total - done) for total in range(max(int(low[k]), done), min(int(high[k]), done + size) + 1)]
        paths = longer[:4096]
    target = average if average is not None else row.average
    if not paths or target is None:
        return paths[0] if paths else None
    allowed = 2e-7 * target * 36 * size + 1e-9 if average is not None else 36 * size * row.half + 1e-6
    off = [abs(float(WEIGHTS @ np.array(path)) - 36 * size * target) for path in paths]
    best = int(np.argmin(off))
    return paths[best] if off[best] <= allowed else None


def _exact(table: PrintedTable, events: Mapping[str, tuple[int, ...]], size: int) -> bool:
    """Whether the averages come out to the last digit."""
    known = [name for name in events if name in table.averages]
    return bool(known) and all(averaged(prefix_means(rate(np.array(events[name]), size))) == table.averages[name] for name in known)
