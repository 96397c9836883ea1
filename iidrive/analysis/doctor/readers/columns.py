"""Tables without bars: pandas output, columns separated by blanks or tabs, comma-separated values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from iidrive.analysis.doctor.readers.cells import absent, damaged, number
from iidrive.analysis.doctor.readers.found import Grid
from iidrive.analysis.doctor.readers.gather import MOST_CELLS, CellLine, gather
from iidrive.analysis.doctor.readers.lines import is_rule
from iidrive.analysis.doctor.readers.names import is_row_name, quantity, time_of
from iidrive.analysis.doctor.readers.own import is_own_line

_HINT = re.compile(r"[Ll]2|[Cc]ol|COL|IoU|\d ?s\b|[Aa]v(?:g|erage)|碰撞")
_WIDE = re.compile(r"\s{2,}|\t")
_PLUS_MINUS = re.compile(r"\s?(?:±|\+/-)\s?")
_ROW = 60
"""Number of lines after a header that may contain its rows."""


def read_columns(lines: Sequence[str]) -> list[Grid]:
    """Grids of lines with cells separated by blanks, tabs, commas or semicolons: a header and its rows, or an evaluator's rows without header."""
    return gather("columns", _rows(lines))


def _rows(lines: Sequence[str]) -> Iterator[CellLine]:
    header, apart = -_ROW, True
    for at, line in enumerate(lines):
        if not line or (line[0] in "=-+ " and is_rule(line)):
            continue
        if "|" in line or "&" in line or len(line) > 4000 or "</t" in line or "plan_" in line:
            apart, header = True, -_ROW
            continue
        below = at - header < _ROW
        if not below and not _HINT.search(line):
            apart = True
            continue
        if is_own_line(line):
            apart, header = True, -_ROW
            continue
        names = _header(line)
        if names:
            yield CellLine(at, names, apart or below)
            header, apart = at, False
            continue
        cells = _values(line)
        if cells and (below or is_row_name(cells[0])) and len(cells) >= (2 if below else 6):
            yield CellLine(at, cells, apart)
            apart = False
            header = at if below else header
        else:
            apart, header = True, -_ROW


def _split(line: str) -> list[str]:
    text = _PLUS_MINUS.sub("±", line.strip()) if "±" in line or "+/-" in line else line.strip()
    for mark in (";", "\t"):
        if text.count(mark) >= 2:
            return [part.strip() for part in text.split(mark)][:MOST_CELLS]
    if text.count(",") >= 2 and not re.search(r"\d,\d[\d%]{0,9}\s", text):
        return [part.strip().strip("\"'") for part in text.split(",")][:MOST_CELLS]
    return []


def _header(line: str) -> tuple[str, ...]:
    """The names of a header line: times or quantities, few other words, and no values. Empty if the line is not a header."""
    if ":" in line or "=" in line or "{" in line:
        return ()
    line = line.rstrip(" \\")  # pandas ends the lines of a wide DataFrame with a backslash
    parted = _split(line)
    if not parted:
        wide = _WIDE.split(line.strip())[:MOST_CELLS]
        tight = line.split()[:MOST_CELLS]
        named = sum(_names(cell) for cell in wide)
        enough = named >= 2 and (named == len(wide) or len(wide) > 2) and named * 2 >= len(wide)
        parted = wide if enough else _from_first_time(tight)
        if parted is wide and line[:1] in " \t":
            parted = ["", *wide]
    named = sum(_names(cell) for cell in parted)
    if named < 2 or any(number(cell) is not None for cell in parted) or len(parted) - named > max(4, named):
        return ()
    return tuple(parted)


def _from_first_time(tokens: list[str]) -> list[str]:
    """Cells of a header: the words before the first time are one label; all further words must be times or averages."""
    for i, token in enumerate(tokens):
        if time_of(token) is not None:
            return [" ".join(tokens[:i]), *tokens[i:]] if all(_names(t) for t in tokens[i:]) else []
        if i > 12:
            break
    return []


def _names(cell: str) -> bool:
    return len(cell) < 40 and (time_of(cell) is not None or bool(quantity(cell)))


def _values(line: str) -> tuple[str, ...]:
    """A label and the numbers after it; empty if words follow a number."""
    parted = _split(line)
    if parted:
        return tuple(parted)
    text = _PLUS_MINUS.sub("±", line.strip()) if "±" in line or "+/-" in line else line.strip()
    tokens = [token.strip(",;") for token in text.split()[:MOST_CELLS]]
    if len(tokens) < 2:
        return ()
    for i, token in enumerate(tokens):  # drop a log prefix before an evaluator's row name
        if is_row_name(token) and i + 1 < len(tokens):
            tokens = tokens[i:]
            break
    count = 0
    while count < len(tokens) and _is_value(tokens[-1 - count]):
        count += 1
    if count == 0:
        return ()
    first = len(tokens) - count
    if first == 0 or time_of(" ".join(tokens[:1])) is not None:
        return tuple(tokens) if first == 0 else (" ".join(tokens[:first]), *tokens[first:])
    return (" ".join(tokens[:first]), *tokens[first:])


def _is_value(token: str) -> bool:
    return number(token) is not None or (absent(token) and token != "") or damaged(token)
