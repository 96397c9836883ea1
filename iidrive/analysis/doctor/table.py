"""The typed table that every printed form is converted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from iidrive.analysis.doctor.readers.losses import BadLoss
from iidrive.core.scene import STEP_S

Array = np.ndarray

ROWS = ("obj_col", "obj_box_col", "L2")
RATES = ("obj_col", "obj_box_col")
WEIGHTS = np.array([11, 11, 5, 5, 2, 2])
"""36 times the weight of each step in the average of the 1, 2 and 3 s columns: (1/2 + 1/4 + 1/6) / 3 = 11/36 for the first two, and so on."""

Averaging = Literal["prefix", "value", "any", ""]
"""Meaning of a column: mean of the steps up to its time, value at that step, or whether any step up to it has an event; "" if unknown."""


State = Literal["", "absent", "unread", "nan"]
"""State of a cell: a number (""), not printed, printed but unreadable, printed as NaN or infinity."""


@dataclass(frozen=True)
class Follows:
    """The protocol of a table (a name of `scoring.protocols`, `ii-world`, `ssr-step`, or "" if unknown), its averaging, and the reason."""

    name: str
    averaging: Averaging
    why: str


@dataclass(frozen=True)
class Row:
    """One printed row: columns and average, rates as fractions of 1, L2 in metres. A cell that is unreadable or NaN is NaN.

    `half`: half of the last printed digit (the largest of the row); `halves`: that of each column; `average_half`: that of the average. `spread`: the
    printed ±. `precise`: the numbers are printed at full precision. `label`: the row name as printed. `states`: why a column is not a number.
    """

    columns: tuple[float, ...]
    average: float | None
    half: float
    label: str = ""
    halves: tuple[float, ...] = ()
    spread: tuple[float | None, ...] = ()
    precise: bool = False
    states: tuple[State, ...] = ()
    average_half: float = 0.0

    def lacks(self, *states: State) -> bool:
        """Whether any column is in one of these states."""
        return any(state in states for state in self.states)


@dataclass(frozen=True)
class CountLine:
    """A line that iidrive prints below a table: events of a row at each step, of `n` samples."""

    row: str
    n: int
    events: tuple[int, ...]
    line: int


@dataclass(frozen=True)
class Table:
    """One parsed table.

    `times_s`: times of the columns, seconds. `averaged`: indices of the columns in the average. `averages`: averages at full precision from a dict.
    `summary`: averages from summary lines, with half of their last digit. `counts`, `scored`: count lines and number of samples below the table.
    `progress`: final count of a progress bar above. `means`: VAD's counts per sample. `heading`, `remark`: text before and after the table. `marks`:
    lines above about mismatched stages. `label`: name of the method if methods are rows; such tables share `grid`. `unread`: what could not be read.
    `notes`: assumptions made. `nan`: averages that were NaN or infinite. `line`: first line, counted from 1.
    """

    number: int
    where: str
    line: int
    rows: Mapping[str, Row]
    times_s: tuple[float, ...] = ()
    averaged: tuple[int, ...] = ()
    follows: Follows = field(default=Follows("", "", ""))
    form: str = ""
    label: str = ""
    grid: int = 0
    averages: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    counts: tuple[CountLine, ...] = ()
    scored: int | None = None
    progress: int | None = None
    means: tuple[float, ...] = ()
    heading: str = ""
    remark: str = ""
    marks: tuple[str, ...] = ()
    percent_guessed: bool = False
    unread: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    losses: tuple[BadLoss, ...] = ()
    nan: tuple[str, ...] = ()

    @property
    def events(self) -> dict[str, tuple[int, ...]]:
        """Events at each step from the count lines."""
        return {line.row: line.events for line in self.counts}

    @property
    def n(self) -> int | None:
        """The number of samples stated below the table; None if it is not stated or contradictory."""
        stated = {line.n for line in self.counts} | ({self.scored} if self.scored is not None else set())
        return stated.pop() if len(stated) == 1 else None

    @property
    def steps(self) -> tuple[int, ...]:
        """The columns' times in half seconds; empty if a time is not a multiple of them."""
        steps = [round(time / STEP_S) for time in self.times_s]
        whole = all(abs(k * STEP_S - t) < 1e-6 and k > 0 for k, t in zip(steps, self.times_s, strict=True))
        return tuple(steps) if whole and steps == sorted(set(steps)) else ()

    def average(self, name: str) -> float | None:
        """The row's average: from the dict if it is there, else as printed."""
        return self.averages.get(name, self.rows[name].average if name in self.rows else None)

    def narrowed(self, *names: str) -> Table:
        """The table with only these rows, and only the columns in which all of them have a number."""
        rows = [self.rows[name] for name in names]
        kept = [i for i in range(len(self.times_s)) if not any(row.states[i : i + 1] not in ((), ("",)) for row in rows)]
        if len(kept) == len(self.times_s) and len(rows) == len(self.rows):
            return self
        thin = {
            name: replace(
                row,
                columns=tuple(row.columns[i] for i in kept),
                halves=tuple(row.halves[i] for i in kept) if row.halves else (),
                spread=tuple(row.spread[i] for i in kept) if row.spread else (),
                states=("",) * len(kept),
            )
            for name, row in zip(names, rows, strict=True)
        }
        times = tuple(self.times_s[i] for i in kept)
        whole = all(i in kept for i in self.averaged)
        return replace(self, rows=thin, times_s=times, averaged=tuple(kept.index(i) for i in self.averaged) if whole else ())

    def averaging_of(self, name: str) -> Averaging:
        """The averaging of a row. BEV-Planner's L2 is a mean although its collisions are not."""
        return "prefix" if self.follows.averaging == "any" and name == "L2" else self.follows.averaging

    def spans(self, name: str = "L2") -> list[tuple[int, int]]:
        """The steps (first, last) that each column adds to the previous one; empty if the averaging is unknown."""
        steps, averaging = self.steps, self.averaging_of(name)
        if averaging == "prefix":
            return [(before + 1, k) for before, k in zip((0, *steps), steps, strict=False)]
        return [(k, k) for k in steps] if averaging else []

    def at_spans(self, name: str) -> Float[Array, "c"]:
        """The row's mean over each span; for a span of one step, the value of that step."""
        columns = np.array(self.rows[name].columns)
        if self.averaging_of(name) != "prefix":
            return columns
        k = np.array(self.steps)
        return np.diff(k * columns, prepend=0.0) / np.diff(k, prepend=0)
