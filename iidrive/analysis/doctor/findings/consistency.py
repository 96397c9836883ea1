"""Internal consistency of a table."""

from __future__ import annotations

from math import isfinite

import numpy as np

from iidrive.analysis.doctor.findings.finding import Finding
from iidrive.analysis.doctor.table import RATES, Row, Table


def consistency(table: Table) -> list[Finding]:
    """Findings on averages that contradict columns, summary lines or the dict, and on columns that cannot be cumulative means."""
    faults, odd = [], []
    for name, row in table.rows.items():
        if name not in (*RATES, "L2"):
            continue
        faults += [*_impossible(name, row), *_averages(table, name, row)]
        if table.averaging_of(name) != "prefix" or not row.columns:
            odd += _falling(table, name, row)
            continue
        thin = table.narrowed(name)
        if not thin.steps:
            continue
        spans = np.diff(thin.steps, prepend=0)
        slack = 2 * row.half * np.array(thin.steps) / spans
        if (thin.at_spans(name) < -slack).any():
            faults.append(f"{name}: the columns fall faster than means of the steps up to each time can; are they values at each step?")
        else:
            odd += _falling(table, name, row)
    out = []
    if faults:
        decide = "Score the predictions again: `iidrive score CASES.npz --predictions PREDICTIONS.npz`."
        out.append(Finding("inconsistent averages", "the table contradicts itself.", True, tuple(faults), decide))
    if odd:
        out.append(Finding("misprint", f"{'; '.join(odd)}. An error that falls with time and grows again is often a misprint."))
    return out


def _impossible(name: str, row: Row) -> list[str]:
    """Values that no error and no rate can have."""
    scale, unit = (100, " %") if name in RATES else (1, " m")
    values = [value for value in (*row.columns, row.average) if value is not None and isfinite(value)]
    odd = [value for value in values if value < 0 or (name in RATES and value > 1)]
    return [f"{name}: {scale * odd[0]:.4g}{unit} cannot be"] if odd else []


def _averages(table: Table, name: str, row: Row) -> list[str]:
    scale, unit = (100, " %") if name in RATES else (1, " m")
    printed = row.average if row.average is not None and isfinite(row.average) else None
    out = []
    columns = [row.columns[k] for k in table.averaged]
    if printed is not None and columns and all(map(isfinite, columns)):
        expected = float(np.mean(columns))
        slack = 1.1 * (row.half + row.average_half) + 1e-7 * abs(expected)
        if abs(printed - expected) > slack:
            every = float(np.mean([c for c in row.columns if isfinite(c)]))
            hint = f"; it is the mean of all {len(row.columns)} columns" if abs(printed - every) <= slack else ""
            out.append(
                f"{name}: avg {scale * printed:.4g}{unit}, but the 1 s, 2 s and 3 s columns average {scale * expected:.4g}{unit}{hint}"
            )
    for what, value, half in (
        ("dict", table.averages.get(name), row.average_half),
        ("summary line", table.summary.get(name, (None, 0.0))[0], row.average_half + table.summary.get(name, (None, 0.0))[1]),
    ):
        if value is not None and printed is not None and abs(value - printed) > 1.05 * half:
            out.append(f"{name}: the {what} says {scale * value:.5g}{unit}, the table {scale * printed:.5g}{unit}")
    return out


def _falling(table: Table, name: str, row: Row) -> list[str]:
    """Columns of L2 that fall beyond rounding, although the uncertainty of the future grows with time."""
    if name != "L2":
        return []
    return [
        f"L2 falls from {a:g} m at {table.times_s[i]:g} s to {b:g} m at {table.times_s[i + 1]:g} s"
        for i, (a, b) in enumerate(zip(row.columns, row.columns[1:], strict=False))
        if b < a - 2 * row.half
    ]
