"""HTML tables, as in READMEs and notebooks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import unescape

from iidrive.analysis.doctor.readers.found import Grid
from iidrive.analysis.doctor.readers.gather import MOST_CELLS, CellLine, gather

_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]{0,15})([^<>]{0,300})>")
_SPAN = re.compile(r"colspan\s?=\s?[\"']?(\d{1,2})", re.IGNORECASE)
_DOWN = re.compile(r"rowspan\s?=\s?[\"']?(\d{1,2})", re.IGNORECASE)


def read_html(lines: Sequence[str]) -> list[Grid]:
    """Grids of `<tr>` rows; `</table>` or `<table>` ends one."""
    return gather("html", _rows(lines))


def _rows(lines: Sequence[str]) -> Iterator[CellLine]:
    apart, inside = False, False
    row: list[str] | None = None
    cell: list[str] | None = None
    span, begun = 1, 0
    down: dict[int, tuple[str, int]] = {}
    deep = 1
    for at, line in enumerate(lines):
        if not inside and "<t" not in line and "<T" not in line:
            continue
        end = 0
        for tag in _TAG.finditer(line):
            if cell is not None:
                cell.append(line[end : tag.start()])
            end = tag.end()
            closing, name = tag[1] == "/", tag[2].lower()
            if name == "table":
                apart, inside = True, not closing
            if name in ("td", "th", "tr", "table") and cell is not None and row is not None:
                text = unescape("".join(cell)).strip()
                if deep > 1:
                    down |= {len(row) + k: (text, deep) for k in range(span)}
                row += [text] * span
                cell = None
                _carry(row, down)
            if name in ("tr", "table") and row is not None:
                if row:
                    yield CellLine(begun, tuple(row[:MOST_CELLS]), apart)
                    apart = False
                row = None
                down = {k: (text, left - 1) for k, (text, left) in down.items() if left > 1} if name == "tr" else {}
            if closing:
                continue
            if name == "tr":
                row, begun, inside = [], at, True
                _carry(row, down)
            elif name in ("td", "th") and row is not None and len(row) < MOST_CELLS:
                wide, tall = _SPAN.search(tag[3]), _DOWN.search(tag[3])
                cell, span, deep = [], int(wide[1]) if wide else 1, int(tall[1]) if tall else 1
        if cell is not None:
            cell.append(f"{line[end:]} ")
            if len(cell) > 200:
                cell = cell[:200]


def _carry(row: list[str], down: dict[int, tuple[str, int]]) -> None:
    """Append the cells of rows above that span this row (rowspan)."""
    while len(row) in down and len(row) < MOST_CELLS:
        row.append(down[len(row)][0])
