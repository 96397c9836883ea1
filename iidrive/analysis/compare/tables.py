"""Comparison of two printed tables without per-sample data: collisions by their counts, L2 by an upper bound of its spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from iidrive.analysis.compare.compare import two_figures, verdict_sentence
from iidrive.analysis.doctor.decode import between
from iidrive.analysis.doctor.findings.evaluation_set import count_lines
from iidrive.analysis.doctor.printed import RATES, Decoded, Table, decode, read_tables
from iidrive.core.errors import ConfigError, DataError
from iidrive.scoring.stats import ALPHA, POWER_Z, counts_differ, holm
from iidrive.scoring.tables import NUSCENES_VAL_SAMPLES

VAL_SCENES = 150


@dataclass(frozen=True)
class TableComparison:
    """The comparison of two printed tables: corrected p-values of the metrics that can be compared, and the verdict."""

    p: Mapping[str, float]
    lines: tuple[str, ...]
    verdict: str
    differs: Mapping[str, bool] = field(default_factory=dict)


def compare_tables(a: Table, b: Table, names: tuple[str, str] = ("A", "B"), n: int | None = None) -> TableComparison:
    """Compare two printed tables; `n` is the number of samples if the tables do not state it.

    Collisions are compared by `stats.counts_differ`. A table does not show the spread of L2. So the standard deviation of each run's scene means
    is assumed equal to its average L2, without pairing, which is conservative: in 40 synthetic towns the paired scene means of two baselines
    scattered 15 times less.

    Raises:
        DataError: if the protocols differ or are unknown, the evaluation sets differ, or the counts cannot be decoded.
    """
    same_protocol(a, b, names)
    first, second = _decoded(a, n), _decoded(b, n)
    if first.steps != second.steps:
        raise DataError(f"the tables have different columns: {_times(a)} in {names[0]} and {_times(b)} in {names[1]}.")
    checksum = a.follows.name == "sparsedrive"  # in other protocols obj_col depends on the plan
    if first.n != second.n or (checksum and first.events.get("obj_col") != second.events.get("obj_col")):
        raise DataError(
            f"the tables are of different evaluation sets: obj_col has {_set(first)} in {names[0]} and {_set(second)} in {names[1]}; "
            "neither the number of samples nor that row depends on the model, so the tables cannot be compared."
            if checksum
            else f"the tables are of different evaluation sets: {first.n} samples in {names[0]}, {second.n} in {names[1]}."
        )
    size, p, gap, error, out = first.n, {}, {}, {}, []
    scenes = VAL_SCENES if size == NUSCENES_VAL_SAMPLES else max(2, size * VAL_SCENES // NUSCENES_VAL_SAMPLES)
    l2 = _mean_l2(a), _mean_l2(b)
    if l2[0] is not None and l2[1] is not None:
        gap["L2"] = l2[0] - l2[1]
        error["L2"] = (l2[0] + l2[1]) / np.sqrt(scenes)
        p["L2"] = float(2 * stats.norm.sf(abs(gap["L2"]) / error["L2"])) if error["L2"] else 1.0
        out.append(
            f"L2 avg: {l2[0]:.4f} against {l2[1]:.4f} m, difference {gap['L2']:+.4f} m; chance may move it by up to ±{1.96 * error['L2']:.2f} m"
        )
    if "obj_box_col" in first.events and "obj_box_col" in second.events and any(first.weights):
        events = first.events["obj_box_col"], second.events["obj_box_col"]
        gap["obj_box_col"] = (first.weighted("obj_box_col") - second.weighted("obj_box_col")) / (36 * size)
        counted = [k for k, weight in enumerate(first.weights) if weight]  # UniAD's average has only the values at 1, 2 and 3 s
        left, right = ([side[k] for k in counted] for side in events)
        p["obj_box_col"], spread = counts_differ(left, right, [first.weights[k] for k in counted])
        error["obj_box_col"] = spread / (36 * size)
        shown = [f"{_counts(d, 'obj_box_col')} ({sum(e)})" for d, e in zip((first, second), events, strict=True)]
        out.append(
            f"obj_box_col: {shown[0]} against {shown[1]} events of {size} samples, difference {100 * gap['obj_box_col']:+.3f} points; "
            f"chance may move it by ±{196 * error['obj_box_col']:.3f} points"
        )
    names_of = list(p)
    corrected = dict(zip(names_of, holm([p[m] for m in names_of]), strict=True))
    words: dict[str, list[str]] = {"better": [], "worse": []}
    same, needed = [], []
    for metric in names_of:
        if corrected[metric] <= ALPHA:
            size_of = f"{100 * gap[metric]:+.3f} points" if metric in RATES else f"{gap[metric]:+.4f} m"
            words["better" if gap[metric] < 0 else "worse"].append(f"{metric} ({size_of})")
        else:
            same.append(metric)
            # The bound on the spread of L2 is too loose to estimate the number of samples needed.
            if gap[metric] and metric in RATES:
                many = two_figures(int(np.ceil(size * (POWER_Z * error[metric] / abs(gap[metric])) ** 2)))
                needed.append(f"about {many:,} samples for {metric}")
    verdict = verdict_sentence(words, same, needed, names)
    return TableComparison(corrected, tuple(out), verdict, {m: corrected[m] <= ALPHA for m in names_of})


def same_protocol(a: Table, b: Table, names: tuple[str, str] = ("A", "B")) -> None:
    """Check that two tables follow the same protocol.

    Raises:
        DataError: if the protocols differ, or one of them is unknown.
    """
    for table, name in ((a, names[0]), (b, names[1])):
        if not table.times_s:
            raise DataError(f"{name} has only averages, so its protocol and counts are unknown: compare the tables they come from.")
        if not table.follows.averaging:
            raise DataError(
                f"it is unknown whether the columns of {name} are means up to a time or values at that time, so it cannot be compared."
            )
    if (a.follows.name, a.follows.averaging) != (b.follows.name, b.follows.averaging):
        raise DataError(
            f"{names[0]} follows {a.follows.name or 'an unknown protocol'} and {names[1]} {b.follows.name or 'an unknown protocol'}: numbers of "
            "different protocols measure different things and are not comparable. Score both by the same protocol (`iidrive score`)."
        )


def _times(table: Table) -> str:
    return " ".join(f"{time:g}s" for time in table.times_s) or "none"


def _mean_l2(table: Table) -> float | None:
    """The printed average of L2, or else the mean of its 1, 2 and 3 s columns, metres; None if neither is known."""
    printed = table.average("L2")
    if printed is None and "L2" in table.rows and table.averaged:
        printed = float(np.mean([table.rows["L2"].columns[k] for k in table.averaged]))
    return printed if printed is not None and np.isfinite(printed) else None


def _set(decoded: Decoded) -> str:
    return f"{_counts(decoded, 'obj_col') or 'no'} events of {decoded.n} samples"


def _decoded(table: Table, n: int | None) -> Decoded:
    found = decode(table, n)
    contradiction = count_lines(table, found)
    if contradiction:
        raise DataError(f"{table.where}, line {table.line}: {contradiction[0].sentence} {'; '.join(contradiction[0].evidence)}.")
    if found is None:
        size = n or table.n
        ranges = between(table, size) if size else {}
        if ranges and all(low <= high for row in ranges.values() for low, high in row):
            raise DataError(
                f"{table.where}, line {table.line}: the printed digits are too few to recover the event counts of {size} samples."
            )
        raise DataError(
            f"{table.where}, line {table.line}: the percentages are not counts of {n or table.n or 'any plausible number of'} samples; "
            "give the number of scored samples with --samples."
        )
    return found


def _counts(decoded: Decoded, row: str) -> str:
    return " ".join(str(k) for k in decoded.events.get(row, ()))


def format_tables(result: TableComparison) -> str:
    """The comparison as text."""
    note = "from the tables alone, whose samples cannot be paired; predictions or per-sample files give a more sensitive test."
    p = ", ".join(f"{metric} {value:.3g}" for metric, value in result.p.items())
    return "\n".join([*result.lines, f"corrected p: {p} ({note})", f"verdict: {result.verdict}"])


def compare_files(files: Sequence[str], n: int | None = None) -> str:
    """Compare the two tables in the files: two files with one table each, one file with two, or `FILE#K`.

    Raises:
        ConfigError: unless there are exactly two tables.
        DataError: as `compare_tables`.
    """
    found = [table for file in files for table in read_tables(file)]
    if len(found) != 2:
        raise ConfigError(
            f"expected two tables to compare; found {len(found)} in {', '.join(files)}. Choose two with FILE#1 FILE#2, or list all with "
            "`iidrive doctor`."
        )
    legend = [f"{side}: {t.where}, line {t.line}{' – ' + t.heading if t.heading else ''}" for side, t in zip("AB", found, strict=True)]
    return "\n".join([*legend, format_tables(compare_tables(found[0], found[1], n=n))])
