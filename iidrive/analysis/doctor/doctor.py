"""What can be said of printed tables before anyone believes them: each suspicion with evidence and what would decide it.

A table says more than its averages: its ground-truth row is a checksum, its percentages are integer counts, and the growth of L2 with time
tells a planner that does not know the present from one that knows the future. Nothing here is a proof; `decide` names the test that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from iidrive.analysis.compare.stats import COUNTS_PER_INCIDENT
from iidrive.analysis.compare.tables import TableComparison, compare_tables
from iidrive.analysis.doctor.printed import LARGEST_SET, RATES, WEIGHTS, Decoded, PrintedTable, decode, parse_tables, read_tables, read_text
from iidrive.analysis.doctor.symptoms import Finding, against, per_step, shape
from iidrive.core.errors import DataError
from iidrive.core.scene import FUTURE_STEPS
from iidrive.scoring.tables import NUSCENES_VAL_OBJ_COL, NUSCENES_VAL_SAMPLES

Array = np.ndarray

VAL_SIZES = {
    6019: "all keyframes of nuScenes val, those without a full future included: UniAD's divisor, another protocol",
    4819: "nuScenes val as ST-P3 cuts it: another protocol",
    4219: "nuScenes val as OccWorld cuts it: another protocol",
}
_LOGS = ("*.txt", "*.log", "*.out", "*.md")


@dataclass(frozen=True)
class Diagnosis:
    """A table, what it decodes to, and the findings."""

    table: PrintedTable
    decoded: Decoded | None
    findings: tuple[Finding, ...]

    def suspects(self) -> list[str]:
        """Kinds of the suspicions."""
        return [f.kind for f in self.findings if f.suspect]


@dataclass(frozen=True)
class Report:
    """All tables of a file or run, and what separates them: pairs that do not differ, pairs that do, pairs that cannot be compared."""

    tables: tuple[Diagnosis, ...]
    noise: tuple[tuple[int, int, TableComparison], ...] = ()
    differ: tuple[tuple[int, int, TableComparison], ...] = ()
    apart: tuple[tuple[int, int, str], ...] = field(default=())


def read_report_tables(paths: Sequence[str | Path]) -> list[PrintedTable]:
    """The tables of text files (`FILE#2`: the second alone) and of every text file of run folders, numbered through.

    Raises:
        DataError: for a file or folder without a table.
    """
    found: list[PrintedTable] = []
    for path in paths:
        found += _tables_of_folder(Path(path)) if Path(path).is_dir() else read_tables(path)
    return found if len(paths) == 1 and not Path(paths[0]).is_dir() else [replace(t, number=i + 1) for i, t in enumerate(found)]


def _tables_of_folder(folder: Path) -> list[PrintedTable]:
    found: list[PrintedTable] = []
    for file in sorted({f for pattern in _LOGS for f in folder.glob(pattern)}):
        found += parse_tables(read_text(file), str(file))
    if not found:
        raise DataError(f"{folder}: no table in the text files of this folder ({', '.join(_LOGS)}); name the log itself.")
    return found


def diagnose(tables: Sequence[PrintedTable], n: int | None = None) -> Report:
    """Examine every table alone, then against the others of the same evaluation set. `n` says how many samples were scored."""
    decoded = [decode(table, n) for table in tables]
    alone = [
        (*_marks(table), *_set(table, counts), *_averages(table, counts), *shape(table, counts))
        for table, counts in zip(tables, decoded, strict=True)
    ]
    noise, differ, apart = [], [], []
    pairs = list(combinations(range(len(tables)), 2)) if len(tables) <= 8 else [(i, i + 1) for i in range(len(tables) - 1)]
    for i, j in pairs:
        one, two, counts = tables[i], tables[j], decoded[i]
        try:
            if counts and decoded[j] and not _same_set(counts, decoded[j]):
                raise DataError("they are of different evaluation sets: N or the obj_col row differs.")
            result = compare_tables(one, two, (f"table {one.number}", f"table {two.number}"), counts.n if counts else n)
        except DataError as error:
            apart.append((one.number, two.number, str(error)))
            continue
        (differ if any(result.differs.values()) else noise).append((one.number, two.number, result))
    healthy = [
        (table, counts)
        for table, found, counts in zip(tables, alone, decoded, strict=True)
        if "L2" in table.rows and counts is not None and not any(f.suspect for f in found)
    ]
    reports = []
    for table, counts, found in zip(tables, decoded, alone, strict=True):
        beside = [h for h, c in healthy if h is not table and _same_set(c, counts)]
        extra = against(table, found, beside, counts.n) if counts else []
        reports.append(Diagnosis(table, counts, (*found, *extra)))
    return Report(tuple(reports), tuple(noise), tuple(differ), tuple(apart))


# ------------------------------------------------------------------------------------------------------------ one table alone


def _marks(table: PrintedTable) -> list[Finding]:
    """What a table made with mismatched stages says of itself."""
    if not table.marks:
        return []
    decide = "`iidrive lineage` on its run folder shows the chains; `iidrive swap` on both runs tells a mismatch from a poor tokenizer."
    return [Finding("stage mismatch", "the table itself says that its stages do not belong together.", True, table.marks, decide)]


def _set(table: PrintedTable, counts: Decoded | None) -> list[Finding]:
    """Which evaluation set the ground-truth row belongs to."""
    recheck = "`iidrive score CASES.npz` without predictions prints the obj_col row that your truth must give."
    known = " ".join(str(k) for k in NUSCENES_VAL_OBJ_COL)
    if counts is None:
        sentence = f"no number of samples up to {LARGEST_SET} gives these percentages"
        if not table.averages:
            sentence = f"the percentages are no counts of {NUSCENES_VAL_SAMPLES} samples, so this is not nuScenes val by this protocol"
        return [Finding("set", sentence + ".", True, ("prefix means of integer counts must round to every printed column",), recheck)]
    how = {
        "stated": "the printout says so",
        "assumed": "the printed digits fit this number; others would fit too",
        "digits": f"the only number up to {LARGEST_SET}{', apart from its multiples,' if counts.others else ''} that gives these digits",
    }[counts.source]
    if counts.exact:
        how += "; the averages come out to the last digit"
    if "obj_col" not in counts.events:
        return [Finding("set", f"{counts.n} samples ({how}); without an obj_col row the set cannot be checked.", False, (), recheck)]
    found = " ".join(str(k) for k in counts.events["obj_col"])
    base = f"obj_col decodes to {found} of {counts.n} samples ({how})"
    if counts.n == NUSCENES_VAL_SAMPLES:
        if counts.events["obj_col"] == NUSCENES_VAL_OBJ_COL:
            return [Finding("set", f"nuScenes val, complete: {base}.")]
        sentence = f"as many samples as nuScenes val, but other ground truth: {base}, where val has {known}."
        return [Finding("mis-paired", f"{sentence} Paths and boxes are mis-paired, or the data was changed.", True, (), recheck)]
    if counts.n in VAL_SIZES:
        return [Finding("set", f"{VAL_SIZES[counts.n]}. {base}.", False, (), recheck)]
    missing = NUSCENES_VAL_SAMPLES - counts.n
    lacking = np.array(NUSCENES_VAL_OBJ_COL) - counts.events["obj_col"]
    if missing > 0 and (lacking >= 0).all() and (lacking <= missing).all():
        return [
            Finding(
                "set", f"not all of nuScenes val; a subset of it is possible, another set too: {base}, val has {known}.", False, (), recheck
            )
        ]
    if 0 < -missing <= 64 and (lacking <= 0).all():
        sentence = f"{-missing} samples more than nuScenes val: {base}. Samplers that pad for several processes repeat samples like this."
        return [
            Finding(
                "repeated samples", sentence, True, (), "Write predictions by token: `iidrive score` refuses a token that stands twice."
            )
        ]
    reason = "more collisions of the true path than all of val has" if missing > 0 else "more samples than val has"
    return [Finding("set", f"another set than nuScenes val, or mis-paired data: {base}; {reason}.", False, (), recheck)]


def _averages(table: PrintedTable, counts: Decoded | None) -> list[Finding]:
    """Events, their chance, and whether the table agrees with itself."""
    out = []
    if counts is not None and "obj_box_col" in counts.events:
        events = counts.events["obj_box_col"]
        average = counts.weighted("obj_box_col") / (36 * counts.n)
        chance = float(np.sqrt(WEIGHTS**2 @ np.array(events))) / (36 * counts.n)
        out.append(
            Finding(
                "events",
                f"obj_box_col {' '.join(str(k) for k in events)} of {counts.n} ({sum(events)} in all): avg {100 * average:.3f} % "
                f"± {100 * chance:.3f} by chance if counts were independent, about {COUNTS_PER_INCIDENT**0.5:.1f} times that as they are not.",
            )
        )
    faults = []
    for name, row in table.rows.items():
        scale, unit = (100, " %") if name in RATES else (1, " m")
        expected = float(np.mean([row.columns[k] for k in (1, 3, 5)]))
        if row.average is not None and abs(row.average - expected) > 2.2 * row.half:
            every = float(np.mean(row.columns))
            hint = "; it is the mean of all six columns" if abs(row.average - every) <= 2.2 * row.half else ""
            faults.append(
                f"{name}: avg {scale * row.average:.4g}{unit}, but the 1 s, 2 s and 3 s columns average {scale * expected:.4g}{unit}{hint}"
            )
        for what, value, half in (
            ("dict", table.averages.get(name), row.half),
            ("summary line", table.summary.get(name, (None, 0.0))[0], row.half + table.summary.get(name, (None, 0.0))[1]),
        ):
            if value is not None and row.average is not None and abs(value - row.average) > 1.05 * half:
                faults.append(f"{name}: the {what} says {scale * value:.5g}{unit}, the table {scale * row.average:.5g}{unit}")
        if (per_step(row) < -2 * row.half * FUTURE_STEPS).any():
            faults.append(f"{name}: the columns fall faster than means of steps so far can; are they values at each step?")
    if faults:
        decide = "Score the predictions again: `iidrive score CASES.npz --predictions PREDICTIONS.npz`."
        out.append(Finding("inconsistent averages", "the table contradicts itself.", True, tuple(faults), decide))
    if table.percent_guessed:
        out.append(Finding("units", "collision rows stand without a percent sign; they were taken for percent."))
    return out


def _same_set(a: Decoded | None, b: Decoded | None) -> bool:
    return a is not None and b is not None and a.n == b.n and a.events.get("obj_col") == b.events.get("obj_col")


# ------------------------------------------------------------------------------------------------------------------- printing


def format_report(report: Report) -> str:
    """Every table with its findings, then what separates the tables."""
    out = []
    for diagnosis in report.tables:
        table = diagnosis.table
        heading = f": {table.heading}" if table.heading else ""
        out.append(f"table {table.number} ({table.where}, line {table.line}){heading}")
        if table.remark:
            out.append(f"  remark: {table.remark}")
        for finding in diagnosis.findings:
            out.append(f"  {'SUSPECT' if finding.suspect else 'note   '} {finding.kind}: {finding.sentence}")
            out += [f"          - {line}" for line in finding.evidence]
            if finding.decide:
                out.append(f"          decide: {finding.decide}")
        suspects = diagnosis.suspects()
        out += [f"  verdict: {', '.join(suspects)} suspected." if suspects else "  verdict: nothing suspicious.", ""]
    out += _between(report)
    return "\n".join(out).rstrip()


def _between(report: Report) -> list[str]:
    out = []
    if report.noise:
        out.append("differences that are noise:")
        out += [f"  {r.verdict}" for _, _, r in report.noise]
        out.append("          decide: `iidrive compare A.npz B.npz --cases CASES.npz` pairs the samples, which sees smaller differences.")
    if report.differ:
        out.append("differences that are more than noise (which does not make either number right):")
        out += [f"  {r.verdict}" for _, _, r in report.differ]
    if report.apart:
        out.append("not comparable:")
        out += [f"  tables {i} and {j}: {why}" for i, j, why in report.apart]
    return out


def to_json(report: Report) -> dict[str, object]:
    """Plain values."""
    return {
        "tables": [
            {
                "number": d.table.number,
                "where": d.table.where,
                "line": d.table.line,
                "heading": d.table.heading,
                "n": d.decoded.n if d.decoded else None,
                "events": {k: list(v) for k, v in d.decoded.events.items()} if d.decoded else None,
                "suspects": d.suspects(),
                "findings": [vars(f) | {"evidence": list(f.evidence)} for f in d.findings],
            }
            for d in report.tables
        ],
        "noise": [[i, j, r.verdict] for i, j, r in report.noise],
        "differ": [[i, j, r.verdict] for i, j, r in report.differ],
        "not comparable": [list(item) for item in report.apart],
    }
