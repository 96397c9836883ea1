"""Printed cells to numbers in one unit: rates as fractions of 1, L2 in metres."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, nan

from iidrive.analysis.doctor.interpret import Rows
from iidrive.analysis.doctor.readers.cells import Number, number
from iidrive.analysis.doctor.readers.names import AVERAGE
from iidrive.analysis.doctor.table import Row, State
from iidrive.core.scene import FUTURE_STEPS

_FRACTIONS = frozenset({"vad", "step", "stp3", "occworld", "bevplanner", "log", "dict"})
"""Ways of printing that hold rates as fractions of 1."""
_PRECISE = 8
"""Significant digits from which a number counts as printed in full."""
_FLOAT32 = 2e-7
"""Relative precision of a mean that was summed in float32."""


def typed_rows(rows: Rows, averages: Mapping[str, float]) -> tuple[dict[str, Row], bool]:
    """Rows in fractions and metres, and whether the unit of a collision row had to be guessed (percent)."""
    read = {name: {time: number(cell) for time, cell in row.items()} for name, row in rows.cells.items()}
    precise = any(n is not None and n.significant >= _PRECISE for row in read.values() for n in row.values())
    out, guessed = {}, False
    for name, cells in read.items():
        scale, guess = _scale(name, cells, rows, averages)
        guessed |= guess
        columns = [_scaled(cells.get(time), scale, precise) for time in rows.times]
        average = cells.get(AVERAGE)
        halves = [half for _, half in columns] + ([_scaled(average, scale, precise)[1]] if average else [])
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
    return value, (_FLOAT32 * abs(value) if precise and isfinite(value) else cell.half * scale)


def _scale(name: str, cells: Mapping[float, Number | None], rows: Rows, averages: Mapping[str, float]) -> tuple[float, bool]:
    """What a printed value is multiplied by, and whether that is a guess."""
    found = [n for n in cells.values() if n is not None]
    if name == "L2":
        return 1.0, False
    if name in ("mIoU", "IoU"):
        return (0.01 if any(n.value > 1 for n in found) else 1.0), False
    if any(n.percent for n in found) or name in rows.percent or rows.style.startswith("ii-world"):
        return 0.01, False
    if any(n.value > 1 for n in found):
        return 0.01, True
    if rows.style in _FRACTIONS:
        return 1.0, False
    average = cells.get(AVERAGE)
    if average is not None and averages.get(name):
        return (1.0, False) if abs(average.value - averages[name]) < abs(average.value / 100 - averages[name]) else (0.01, True)
    if average is None and len(rows.times) >= FUTURE_STEPS and not rows.label:
        return 1.0, False
    return 0.01, True

