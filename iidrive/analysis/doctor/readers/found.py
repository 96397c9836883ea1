"""What the readers hand on: cells and named values as they stand in the text, with the lines they stand on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """A grid of printed cells. `header` holds its lines of names (none where the header was lost), `body` (line, cells) for every line of numbers.

    `first` and `last` are the text lines it covers, counted from 0; `title` a line of its own above the header; `cut` the body lines that
    break off before the grid's border.
    """

    form: str
    first: int
    last: int
    header: tuple[tuple[str, ...], ...]
    body: tuple[tuple[int, tuple[str, ...]], ...]
    title: str = ""
    cut: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Values:
    """Named numbers outside any grid: `cells` by row name (`L2`, `obj_box_col`, …) and column (`1s`, `0.5s`, `avg`), as printed.

    `style` says whose way of printing it is: vad, step (SSR's second set), stp3, occworld, bevplanner, log, dict or slashes.
    """

    form: str
    first: int
    last: int
    style: str
    cells: Mapping[tuple[str, str], str]
    label: str = ""


@dataclass(frozen=True)
class Tail:
    """One line that belongs to the table before it. `kind`: rule, summary, average, events, unread events,
    scored, said (a number of samples in other words) or own."""

    kind: str
    line: int
    cells: Mapping[str, str]


Found = Grid | Values | Tail
