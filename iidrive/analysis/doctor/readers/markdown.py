"""Markdown tables, distinguished from drawn boxes by the line of dashes below the header."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from iidrive.analysis.doctor.readers.found import Grid

_DASHES = re.compile(r"[|\s:>-]{3,}")


def is_dashes(line: str) -> bool:
    """Whether a line is the rule of a Markdown table: `|---|:---:|`."""
    return "|" in line and "-" in line and "+" not in line and _DASHES.fullmatch(line) is not None


def mark_markdown(grids: Sequence[Grid], lines: Sequence[str]) -> list[Grid]:
    """The same grids; `form` is set to "markdown" for grids with a line of dashes."""
    return [
        replace(grid, form="markdown") if any(is_dashes(line) for line in lines[max(0, grid.first - 2) : grid.first + 6]) else grid
        for grid in grids
    ]
