"""Results of the readers: cells and named values as printed, with their line numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """A grid of printed cells.

    `header`: lines of names; empty if the header is missing. `body`: (line number, cells) of every line of numbers. `first`, `last`: lines covered,
    counted from 0. `title`: a separate line above the header. `cut`: body lines that break off before the border.
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
    """Named numbers outside a grid: `cells` by row name (`L2`, `obj_box_col`, …) and column (`1s`, `0.5s`, `avg`), as printed.

    `style`: the output format: vad, step (SSR's second set), stp3, occworld, bevplanner, named, log, dict or slashes.
    """

    form: str
    first: int
    last: int
    style: str
    cells: Mapping[tuple[str, str], str]
    label: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tail:
    """One line that belongs to the table before it. `kind`: rule, summary, average, events, unread events,
    scored, said (a number of samples in other words) or own."""

    kind: str
    line: int
    cells: Mapping[str, str]


Found = Grid | Values | Tail
