"""Printed cells to numbers in one unit: rates as fractions of 1, L2 in metres."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, nan

from iidrive.analysis.doctor.interpret import Rows
from iidrive.analysis.doctor.readers.cells import Number, number, plain
from iidrive.analysis.doctor.readers.names import AVERAGE
from iidrive.analysis.doctor.table import Row, State
from iidrive.core.scene import FUTURE_STEPS

_FRACTIONS = frozenset({"vad", "step", "stp3", "occworld", "bevplanner", "log", "dict"})
"""Output formats with rates as fractions of 1."""
_PRECISE = 8
"""Number of significant digits from which a value counts as printed at full precision."""
_FLOAT32 = 2e-7
"""Relative precision of a mean that was summed in float32."""


def typed_rows(rows: Rows, averages: Mapping[str, float]) -> tuple[dict[str, Row], str]:
    """Rows in fractions and metres, and the unit of the collision rows ("percent" or "fractions") if it had to be guessed."""
    read = {name: {time: number(cell) for time, cell in row.items()} for name, row in rows.cells.items()}
    precise = any(n is not None and n.significant >= _PRECISE for row in read.values() for n in row.values())
    out, guessed = {}, ""
    for name, cells in read.items():
        scale, guess = _scale(name, cells, rows, averages)
        guessed = guess or guessed
        columns = [_scaled(cells.get(time), scale, precise) for time in rows.times]
        average = cells.get(AVERAGE)
        own = precise and average is not None and average.significant >= _PRECISE
        average_half = _scaled(average, scale, own)[1]
        halves = [half for _, half in columns] or [average_half]
        values = [value for value, _ in columns]
        out[name] = Row(
            tuple(values),
            average.value * scale if average else None,
            max(halves, default=0.0),
            rows.labels.get(name, ""),
            tuple(half for _, half in columns),
            tuple(n.spread * scale if (n := cells.get(time)) and n.spread is not None else None for time in rows.times),
            precise,
            tuple(_state(cells, time) for time in rows.times),
            average_half,
        )
    return out, guessed


def _state(cells: Mapping[float, Number | None], time: float) -> State:
    if time not in cells:
        return "absent"
    cell = cells[time]
    return "unread" if cell is None else "" if isfinite(cell.value) else "nan"


def _scaled(cell: Number | None, scale: float, precise: bool) -> tuple[float, float]:
    if cell is None:
        return nan, 0.0
    value = cell.value * scale
    if value == 0 and cell.half == 0.05 and scale == 1.0:
        return 0.0, 0.0  # `0.0` is Python's repr of an exact 0, not a rounded value
    return value, (_FLOAT32 * abs(value) if precise and isfinite(value) else cell.half * scale)


def _scale(name: str, cells: Mapping[float, Number | None], rows: Rows, averages: Mapping[str, float]) -> tuple[float, str]:
    """The factor for printed values, and the unit if it is a guess."""
    found = [n for n in cells.values() if n is not None]
    if name in rows.factors and not any(plain(cell)[-1:] in ("m", "%") for cell in rows.cells[name].values()):
        return rows.factors[name], ""
    if name == "L2":
        return 1.0, ""
    if name in ("mIoU", "IoU"):
        return (0.01 if any(n.value > 1 for n in found) else 1.0), ""
    if any(n.percent for n in found) or name in rows.percent or rows.style.startswith("ii-world"):
        return 0.01, ""
    if any(n.value > 1 for n in found):
        return 0.01, "percent"
    if rows.style in _FRACTIONS:
        return 1.0, ""
    average = cells.get(AVERAGE)
    if average is not None and averages.get(name):
        return (1.0, "") if abs(average.value - averages[name]) < abs(average.value / 100 - averages[name]) else (0.01, "percent")
    if average is None and len(rows.times) >= FUTURE_STEPS and not rows.label:
        return 1.0, ""
    # percent is printed with two or three decimals, fractions with four or more
    return (1.0, "fractions") if found and max(n.half for n in found) < 1e-4 else (0.01, "percent")
