"""Tables drawn with bars: ASCII and Unicode boxes, also with missing or truncated borders and log prefixes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from iidrive.analysis.doctor.readers.found import Grid
from iidrive.analysis.doctor.readers.gather import CellLine, gather
from iidrive.analysis.doctor.readers.lines import is_progress, is_rule


def read_boxed(lines: Sequence[str]) -> list[Grid]:
    """Grids of `|`-separated lines. Blank lines and rules are allowed between rows; any other line ends a grid."""
    return gather("boxed", bar_lines(lines))


def bar_lines(lines: Sequence[str]) -> Iterator[CellLine]:
    """Lines with at least two bars, split into cells; outer bars are dropped."""
    apart, closed = False, False
    for at, line in enumerate(lines):
        if "|" not in line:
            if line and not is_rule(line) and "+--" not in line:
                apart = True
            continue
        if is_rule(line):
            continue
        text = line.strip()
        if text.count("|") < 2 or (text.count("|") < 4 and is_progress(text)):
            apart = True
            continue
        ends = text.endswith("|")
        inner = text[1:] if text.startswith("|") else text
        cells = tuple(cell.strip() for cell in (inner[:-1] if ends else inner).split("|"))
        closed = ends if apart else closed or ends
        yield CellLine(at, cells, apart, closed and not ends)
        apart = False
