"""Count lines below a table, and whether they agree with the table."""

from __future__ import annotations

import numpy as np

from iidrive.analysis.doctor.table import CountLine, Table

LARGEST_STATED = 10_000_000
"""A larger stated number of samples is treated as an error."""


def columns_of(line: CountLine, table: Table) -> list[tuple[float, float]]:
    """The lowest and highest rate that each column can have, given a count line."""
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
    """Why a count line contradicts its table; "" if it does not."""
    if line.row not in table.rows or not table.steps or not table.follows.averaging or max(table.steps) > len(line.events):
        return ""
    if line.n < 1 or line.n > LARGEST_STATED:
        return f"{line.n} samples are not plausible"
    if max(line.events) > line.n:
        return f"{max(line.events)} events of {line.n} samples are impossible"
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
                f"but the table has {100 * value:.3f} %"
            )
    return ""
