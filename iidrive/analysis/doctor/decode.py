"""Recover the integer event counts behind printed rates, and the number of samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from iidrive.analysis.doctor.counts import LARGEST_STATED, disagreement
from iidrive.analysis.doctor.table import RATES, WEIGHTS, Averaging, Follows, Row, Table
from iidrive.scoring.score import averaged, prefix_means, rate
from iidrive.scoring.tables import NUSCENES_VAL_SAMPLES

Array = np.ndarray

LARGEST_SET = 20_000
"""Largest number of samples tried. Beyond 100 000 / 6 = 16 666 samples, three decimals of a percent no longer determine a count."""
USUAL_SIZES: Mapping[str, tuple[int, ...]] = {
    "sparsedrive": (5119,),
    "uniad": (6019,),
    "stp3": (4819, 5119, 6019),
    "admlp": (4819, 5119, 6019),
    "vad": (5119,),
    "ssr-step": (5119,),
    "occworld": (4219, 5119),
    "bevplanner": (5119, 6019),
    "ii-world": (4519, 4219),
}
"""Numbers of samples of nuScenes val by protocol."""
_ANY_SIZE = (5119, 6019, 4819, 4219)
_CHANCE = 0.05
"""If the number of samples is not stated, the probability that the digits fit it by chance must be below this."""
_LOOSE = 2000
"""If full-precision digits fit more numbers of samples than this, the number is not determined."""
_WIDEST = 64
"""If a printed cell fits more counts than this, nothing is decoded."""


@dataclass(frozen=True)
class Decoded:
    """Integer events of `n` samples: at each step, or in each span of steps (`Table.spans`) if the columns are coarser.

    `source` of `n`: 'stated' by count lines, 'given' by the caller, 'digits' if only this `n` (and `others`) gives the full-precision values,
    'assumed' if the usual `n` fits. `exact`: the averages are reproduced to the last digit. `weights`: 36 times the weight of each span in the
    average. `steps`: the columns used, in half seconds.
    """

    n: int
    events: Mapping[str, tuple[int, ...]]
    source: str
    exact: bool
    others: tuple[int, ...] = ()
    weights: tuple[int, ...] = tuple(WEIGHTS.tolist())
    steps: tuple[int, ...] = (1, 2, 3, 4, 5, 6)

    def weighted(self, name: str) -> int:
        """36 · n · average, an integer."""
        return int(np.array(self.weights) @ np.array(self.events[name]))


def decode(table: Table, n: int | None = None) -> Decoded | None:
    """The integer events of each collision row, and the number of samples; None if no count fits or the number is not determined.

    The number of samples is, in this order: `n`, if given; the number stated below the table, if the table agrees with it; the number determined by
    full-precision digits (36·n·average is an integer, and float32 quotients summed in float64 must match to the last digit); or nuScenes val's number
    under the table's protocol, if it fits and a fit by chance is unlikely. Rows of zeros fit every number of samples and determine none.
    """
    table = countable(table)
    if not _readable(table):
        return None
    if n:
        return _of_size(table, n, "given")
    for size in _stated(table):
        found = _of_size(table, size, "stated")
        if found and _agrees(table, size):
            return found
    if all_zero(table) and not table.means:
        return None
    if table.means or any(table.averages.get(name) for name in _rates(table)) or any(table.rows[name].precise for name in _rates(table)):
        return _from_digits(table)
    sizes = USUAL_SIZES.get(table.follows.name, _ANY_SIZE)
    if table.progress:
        sizes = (*sizes, table.progress)
    found = [d for size in dict.fromkeys(sizes) if (d := _of_size(table, size, "assumed")) and luck(table, size) <= _CHANCE]
    return found[0] if found and (len(found) == 1 or table.follows.name) else None


def countable(table: Table) -> Table:
    """The table with only its countable collision rows and their common columns; without rows if NaN was printed."""
    names = _rates(table)
    if any(table.rows[name].lacks("nan") for name in names):
        return replace(table, rows={})
    read = [name for name in names if not table.rows[name].lacks("unread")]
    whole = [name for name in read if not table.rows[name].lacks("absent")]
    return table.narrowed(*(whole or read or names)) if names else table


def all_zero(table: Table) -> bool:
    """Whether every rate is 0, which does not determine the number of samples."""
    table = countable(table)
    rows = [table.rows[name] for name in _rates(table)]
    return bool(rows) and not any(v for row in rows for v in row.columns) and not any(table.averages.get(name) for name in _rates(table))


def luck(table: Table, size: int) -> float:
    """Probability that digits of this precision fit `size` samples by chance: the product over cells of the width in counts."""
    chance = 1.0
    if not table.steps:
        return chance
    for name in _rates(table):
        row = table.rows[name]
        for value, half, k in zip(row.columns, row.halves or [row.half] * len(row.columns), _multiples(table), strict=True):
            if value:
                chance *= min(1.0, 2 * half * k * size)
    return chance


def settle(table: Table) -> Table:
    """Determine an unknown averaging from the digits, if they are counts of nuScenes val under exactly one averaging."""
    if table.follows.averaging or len(table.steps) < 2 or not _rates(table) or all_zero(table):
        return table
    whole, table = table, countable(table)
    fits = []
    ways: tuple[tuple[Averaging, str], ...] = (("prefix", "means of the steps up to each time"), ("value", "values at each time"))
    for averaging, words in ways:
        tried = replace(table, follows=Follows(table.follows.name, averaging, ""))
        for size in _ANY_SIZE:
            if luck(tried, size) < 1e-3 and _readable(tried) and _of_size(tried, size, "assumed"):
                fits.append(
                    replace(whole, follows=Follows(table.follows.name, averaging, f"the digits are counts of {size} samples as {words}"))
                )
    return fits[0] if len(fits) == 1 else whole


def between(table: Table, size: int) -> dict[str, list[tuple[int, int]]]:
    """For each collision row and column, the smallest and largest number of events of `size` samples that is printed as this value.

    For means up to a time, events are counted up to the column. A range is empty (smallest above largest) if no count fits.
    """
    table = countable(table)
    if not _readable(table) or not 0 < size <= LARGEST_STATED:
        return {}
    out = {}
    for name in _rates(table):
        low, high = (bound[0].tolist() for bound in _bounds(table, table.rows[name], np.array([size])))
        out[name] = list(zip(low, high, strict=True))
    return out


# ------------------------------------------------------------------------------------------------------------------------- search


def _rates(table: Table) -> list[str]:
    return [name for name in RATES if name in table.rows]


def _readable(table: Table) -> bool:
    names = _rates(table)
    return bool(names and table.steps and table.follows.averaging) and all(np.isfinite(table.rows[name].columns).all() for name in names)


def _stated(table: Table) -> Iterable[int]:
    sizes = [line.n for line in table.counts] + ([table.scored] if table.scored else [])
    return [size for size in dict.fromkeys(sizes) if 0 < size <= LARGEST_STATED]


def _agrees(table: Table, size: int) -> bool:
    """Whether every count line has this number of samples and agrees with the table."""
    return all(line.n == size and not disagreement(line, table) for line in table.counts) or not table.counts or _all_fit(table, size)


def _all_fit(table: Table, size: int) -> bool:
    """Whether the events of all count lines agree with the table if they are of `size` samples."""
    return all(not disagreement(replace(line, n=size), table) for line in table.counts)


def _multiples(table: Table) -> tuple[int, ...]:
    """Factor per column: rate * factor * number of samples is a count."""
    return table.steps if table.follows.averaging == "prefix" else (1,) * len(table.steps)


def _weights(table: Table) -> tuple[int, ...]:
    """36 times the weight of each decoded count in the average."""
    if not table.averaged:
        return (0,) * len(table.steps)
    share = 36 // len(table.averaged) if 36 % len(table.averaged) == 0 else 0
    out = []
    for i in range(len(table.steps)):
        if table.follows.averaging == "prefix":
            later = [table.steps[j] for j in table.averaged if j >= i]
            out.append(sum(share // k for k in later) if all(share % k == 0 for k in later) else 0)
        else:
            out.append(share if i in table.averaged else 0)
    return tuple(out)


def _of_size(table: Table, size: int, source: str) -> Decoded | None:
    events = _all_events(table, size)
    if events is None:
        return None
    if source == "stated" and table.follows.averaging == "prefix" and len(table.steps) == len(next(iter(events.values()))) == 6:
        lines = {line.row: line.events for line in table.counts if line.row in events and line.n == size and not disagreement(line, table)}
        events = {**events, **lines}
    return Decoded(size, events, source, _exact(table, events, size), (), _weights(table), table.steps)


def _from_digits(table: Table) -> Decoded | None:
    """Search for the number of samples for which all columns are counts and 36·n·average is their weighted sum."""
    sizes = np.arange(1, LARGEST_SET + 1)
    fits = np.ones(len(sizes), bool)
    for name in _rates(table):
        low, high = _bounds(table, table.rows[name], sizes)
        fits &= (low <= high).all(axis=1)
        average = table.averages.get(name)
        if average is not None:
            weighted = 36 * sizes * average
            fits &= np.abs(weighted - np.round(weighted)) <= 2e-7 * weighted + 1e-9
    for mean in table.means:  # these are also integer counts divided by the number of samples
        fits &= np.abs(mean * sizes - np.round(mean * sizes)) <= 2e-7 * mean * sizes + 1e-9
    if fits.sum() > _LOOSE:  # the digits do not determine the number
        return None
    found = [d for size in sizes[fits] if (d := _of_size(table, int(size), "digits"))]
    if not found:
        return None
    best = [d for d in found if d.exact] or found
    usual = USUAL_SIZES.get(table.follows.name, _ANY_SIZE)
    preferred = [d for size in (*usual, NUSCENES_VAL_SAMPLES) for d in best if d.n == size]
    first = (preferred or best)[0]
    return replace(first, others=tuple(d.n for d in best if d.n != first.n))


def _bounds(table: Table, row: Row, sizes: Int64[Array, "s"]) -> tuple[Int64[Array, "s c"], Int64[Array, "s c"]]:
    """Smallest and largest count that is printed as each column, for each number of samples. For means up to a time, counts up to the column."""
    column, k = np.array(row.columns), np.array(_multiples(table))
    half = np.array(row.halves) if row.halves else np.full(len(column), row.half)
    scale = sizes[:, None] * k
    slack = 1e-9 + 1e-7 * column * scale
    low = np.ceil(scale * (column - half) - slack)
    high = np.floor(scale * (column + half) + slack)
    most = float(LARGEST_STATED) * max(table.steps, default=1)
    return np.clip(low, 0, most).astype(np.int64), np.clip(np.minimum(high, scale), -1, most).astype(np.int64)


def _all_events(table: Table, size: int) -> dict[str, tuple[int, ...]] | None:
    """Events of all collision rows for one number of samples; None if a row has none."""
    out = {}
    for name in _rates(table):
        events = _row_events(table, name, size)
        if events is None:
            return None
        out[name] = events
    return out or None


def _row_events(table: Table, name: str, size: int) -> tuple[int, ...] | None:
    """Counts that are printed as this row. If rounding allows several, the average at full precision decides."""
    row = table.rows[name]
    low, high = (bound[0] for bound in _bounds(table, row, np.array([size])))
    if (high < low).any() or (high - low > _WIDEST).any():
        return None
    prefix, steps = table.follows.averaging == "prefix", (0, *table.steps)
    nested = table.follows.averaging in ("prefix", "any")
    paths: list[tuple[int, ...]] = [()]
    for k in range(len(table.steps)):
        longer = []
        for path in paths:
            done = (sum(path) if prefix else path[-1]) if nested and path else 0
            most = done + (steps[k + 1] - steps[k]) * size if prefix else size
            for total in range(max(int(low[k]), done), min(int(high[k]), most) + 1):
                longer.append((*path, total - done if prefix else total))
        paths = longer[:4096]
    average, weights = table.averages.get(name), np.array(_weights(table))
    target = average if average is not None else row.average
    if not paths or target is None or not weights.any():
        return paths[0] if len(paths) == 1 else None  # without an average, only if rounding allows a single choice
    allowed = 2e-7 * target * 36 * size + 1e-9 if average is not None else 36 * size * row.average_half + 1e-6
    off = np.array([abs(float(weights @ np.array(path)) - 36 * size * target) for path in paths])
    best = int(np.argmin(off))
    if off[best] > allowed or (average is None and not row.precise and int((off <= allowed).sum()) > 1):
        return None
    return paths[best]


def _exact(table: Table, events: Mapping[str, tuple[int, ...]], size: int) -> bool:
    """Whether the averages are reproduced to the last digit."""
    known = [name for name in events if name in table.averages]
    if table.follows.averaging != "prefix" or table.steps != (1, 2, 3, 4, 5, 6):
        return False
    return bool(known) and all(averaged(prefix_means(rate(np.array(events[name]), size))) == table.averages[name] for name in known)
