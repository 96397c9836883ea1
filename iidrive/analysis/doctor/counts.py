"""Lines with counts below a table: what they say must stand in it."""

from __future__ import annotations

import numpy as np

from iidrive.analysis.doctor.table import CountLine, Table

LARGEST_STATED = 10_000_000
"""A stated number of samples beyond this is not believed."""


def columns_of(line: CountLine, table: Table) -> list[tuple[float, float]]:
    """What a count line says must stand in each column: lowest and highest rate."""
    events = np.array(line.events, np.float64)
    out = []
    for k in table.steps:
        up_to = events[:k]
        if table.follows.averaging == "prefix":
            value = float(up_to.sum()) / (k * line.n)
            out.append((value, value))
        elif table.follows.averaging == "any":
            out.append((float(up_to.max()) / line.n, min(1.0, float(up_to.sum()) / line.n)))
        else:
            value = float(events[k - 1]) / line.n
            out.append((value, value))
    return out


def disagreement(line: CountLine, table: Table) -> str:
    """Why a count line cannot belong to its table; "" if it can."""
    if line.row not in table.rows or not table.steps or not table.follows.averaging or max(table.steps) > len(line.events):
        return ""
    if line.n < 1 or line.n > LARGEST_STATED:
        return f"{line.n} samples are not believable"
    if max(line.events) > line.n:
        return f"{max(line.events)} events of {line.n} samples cannot be"
    row = table.rows[line.row]
    if not row.halves:
        return ""
    for column, (value, half, (low, high)) in enumerate(zip(row.columns, row.halves, columns_of(line, table), strict=True)):
        if not np.isfinite(value):
            continue
        slack = 1.01 * half + 2e-7 * value
        if not low - slack <= value <= high + slack:
            return (
                f"{' '.join(map(str, line.events))} of {line.n} would print {100 * low:.3f} % at {table.times_s[column]:g} s, "
                f"where {100 * value:.3f} % stands"
            )
    return ""
