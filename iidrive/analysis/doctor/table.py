"""The one typed table that every printed form is read into, whatever it looked like."""

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
"""What stands below a time: the mean of the steps up to it, the value at that step, whether anything happened up to it; "" where nothing says."""


State = Literal["", "absent", "unread", "nan"]
"""Of a cell: a number, not printed, printed but unreadable, printed as NaN or infinity."""


@dataclass(frozen=True)
class Follows:
    """The protocol that a table follows (a name of `scoring.protocols`, `ii-world`, `ssr-step` or "" for unknown), what its columns are, and why."""

    name: str
    averaging: Averaging
    why: str


@dataclass(frozen=True)
class Row:
    """One printed row: its columns and average, rates as fractions of 1, L2 in metres; NaN where a cell could not be read or was NaN.

    `half` is half of the last printed digit (the largest of the row); `halves` that of each column. `spread` is the printed ±. `precise`: the
    numbers stand at full precision. `label` is the row's name as printed. `states` says of each column
    why it does not hold a number. `average_half`: half of the last digit of the average.
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
        """Whether some column is in one of these states."""
        return any(state in states for state in self.states)


@dataclass(frozen=True)
class CountLine:
    """A line of iidrive below a table: events of a row at each step, of `n` samples, as it stands there."""

    row: str
    n: int
    events: tuple[int, ...]
    line: int


@dataclass(frozen=True)
class Table:
    """One table as found.

    `times_s` are the seconds of the columns, `averaged` which of them the average is made of. `averages` is the dict at full precision,
    `summary` the lines with one average each and half of their last digit. `counts` and `scored` are iidrive's own lines (`scored` others'
    too), `progress` what a progress bar above counted to, `means` VAD's counts a sample. `heading` and `remark` are the words before and
    after it, `marks` what stands before it about mismatched stages. `label` is a method's name where methods are rows; such tables share
    `grid`. `unread` says what could not be read, `notes` how things were taken, `nan` which averages below the table were NaN or
    infinite. `line` is where it starts, 1 the first.
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
        """Events at each step as the count lines give them."""
        return {line.row: line.events for line in self.counts}

    @property
    def n(self) -> int | None:
        """The number of samples that the lines below the table state, if they state one."""
        stated = {line.n for line in self.counts} | ({self.scored} if self.scored is not None else set())
        return stated.pop() if len(stated) == 1 else None

    @property
    def steps(self) -> tuple[int, ...]:
        """The columns' times in half seconds; empty if a time is not a multiple of them."""
        steps = [round(time / STEP_S) for time in self.times_s]
        whole = all(abs(k * STEP_S - t) < 1e-6 and k > 0 for k, t in zip(steps, self.times_s, strict=True))
        return tuple(steps) if whole and steps == sorted(set(steps)) else ()

    def average(self, name: str) -> float | None:
        """The row's average, from the dict if it stands there, else as printed."""
        return self.averages.get(name, self.rows[name].average if name in self.rows else None)

    def narrowed(self, *names: str) -> Table:
        """The table with these rows alone, and only the columns that all of them have a number in."""
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
        """What stands below a time in a row: BEV-Planner's L2 is a mean although its collisions are not."""
        return "prefix" if self.follows.averaging == "any" and name == "L2" else self.follows.averaging

    def spans(self, name: str = "L2") -> list[tuple[int, int]]:
        """The steps (first, last) that lie behind each column and not behind the one before; empty where nothing says."""
        steps, averaging = self.steps, self.averaging_of(name)
        if averaging == "prefix":
            return [(before + 1, k) for before, k in zip((0, *steps), steps, strict=False)]
        return [(k, k) for k in steps] if averaging else []

    def at_spans(self, name: str) -> Float[Array, "c"]:
        """The row's mean over each span: the step's own value where a span is one step."""
        columns = np.array(self.rows[name].columns)
        if self.averaging_of(name) != "prefix":
            return columns
        k = np.array(self.steps)
        return np.diff(k * columns, prepend=0.0) / np.diff(k, prepend=0)
