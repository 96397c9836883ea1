r"""LaTeX tables: cells separated by `&`, rows ended by `\\`, on one or several lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from iidrive.analysis.doctor.readers.found import Grid
from iidrive.analysis.doctor.readers.gather import MOST_CELLS, CellLine, gather

_MULTICOLUMN = re.compile(r"\\multicolumn\s?\{(\d{1,2})\}\s?\{[^{}]{0,60}\}\s?\{((?:[^{}]|\{[^{}]{0,60}\}){0,120})\}")
_MULTIROW = re.compile(r"\\multirow\s?\{[^{}]{0,20}\}\s?\{[^{}]{0,20}\}\s?\{((?:[^{}]|\{[^{}]{0,60}\}){0,120})\}")
_RULES = re.compile(
    r"\\(?:hline|toprule|midrule|bottomrule|cmidrule(?:\([a-z]{1,4}\))?\{[\d-]{1,9}\}|cline\{[\d-]{1,9}\}|rowcolor\{[^{}]{0,60}\})"
)
_LONGEST_ROW = 40


def read_latex(lines: Sequence[str]) -> list[Grid]:
    r"""Grids of `&`-separated rows. Any text other than rows, rules, blank lines and comments ends a grid."""
    return gather("latex", _rows(lines))


def _rows(lines: Sequence[str]) -> Iterator[CellLine]:
    apart, begun, parts = False, 0, list[str]()
    for at, line in enumerate(lines):
        if not parts and ("&" not in line or ("\\\\" not in line and line.count("&") < 2 and not line.strip().endswith("&"))):
            if line and not _is_between(line):
                apart = True
            continue
        if not parts:
            begun = at
        parts.append(line)
        if "\\\\" not in line and at - begun < _LONGEST_ROW and _goes_on(lines, at):
            continue
        text = " ".join(parts).partition("\\\\")[0]
        parts = []
        cells = tuple(_cells(text))
        if len(cells) > 1:
            yield CellLine(begun, cells, apart)
            apart = False


def _goes_on(lines: Sequence[str], at: int) -> bool:
    """Whether the row continues on the next line: the line ends in `&`, or the next one begins with `&` or ends the row."""
    following = lines[at + 1].strip() if at + 1 < len(lines) else ""
    return lines[at].endswith("&") or following.startswith("&") or following.startswith("\\\\")


def _is_between(line: str) -> bool:
    text = line.strip()
    return not text or text.startswith(("%", "\\")) or text in ("{", "}")


def _cells(text: str) -> Iterator[str]:
    text = _RULES.sub("", text.replace(r"\&", " and "))
    text = _MULTIROW.sub(r"\1", text)
    for count, cell in enumerate(text.split("&")):
        if count >= MOST_CELLS:
            return
        group = _MULTICOLUMN.search(cell) if "multicolumn" in cell else None
        if group:
            yield from [group[2].strip()] * min(int(group[1]), MOST_CELLS)
        else:
            yield cell.strip()
