"""Examine printed tables for errors: read the tables, collect findings, and report them.

A table contains more than its averages: its ground-truth row is a checksum, its percentages are integer counts, and the growth of L2 with time
distinguishes a planner with broken inputs from one that knows the future. Findings are not proofs; `decide` names the decisive test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from iidrive.analysis.compare.tables import TableComparison, compare_tables, same_protocol
from iidrive.analysis.doctor.findings.beside import beside
from iidrive.analysis.doctor.findings.consistency import consistency
from iidrive.analysis.doctor.findings.evaluation_set import count_lines, evaluation_set, events, is_val
from iidrive.analysis.doctor.findings.finding import Finding
from iidrive.analysis.doctor.findings.growth import growth
from iidrive.analysis.doctor.findings.hardware import hardware_named
from iidrive.analysis.doctor.findings.reading import losses, marks, not_a_number, protocol, taken
from iidrive.analysis.doctor.printed import Decoded, Table, decode, parse_tables, read_tables, read_text
from iidrive.core.errors import DataError
from iidrive.core.text import printable

_LOGS = ("*.txt", "*.log", "*.out", "*.md", "*.log.json")


@dataclass(frozen=True)
class Diagnosis:
    """A table, what it decodes to, and the findings."""

    table: Table
    decoded: Decoded | None
    findings: tuple[Finding, ...]

    def suspects(self) -> list[str]:
        """Kinds of the suspicious findings."""
        return [f.kind for f in self.findings if f.suspect]


@dataclass(frozen=True)
class Report:
    """All tables of a file or run, and the comparison of their pairs.

    `noise`: pairs without a significant difference. `differ`: pairs with one. `apart`: pairs that cannot be compared, with the reason.
    """

    tables: tuple[Diagnosis, ...]
    noise: tuple[tuple[int, int, TableComparison], ...] = ()
    differ: tuple[tuple[int, int, TableComparison], ...] = ()
    apart: tuple[tuple[int, int, str], ...] = field(default=())


def read_report_tables(paths: Sequence[str | Path]) -> list[Table]:
    """The tables of text files (`FILE#2`: only the second) and of all text files in run folders, numbered consecutively.

    Raises:
        DataError: if a file or folder has no table.
    """
    found: list[Table] = []
    for path in paths:
        found += _tables_of_folder(Path(path)) if Path(path).is_dir() else read_tables(path)
    return found if len(paths) == 1 and not Path(paths[0]).is_dir() else [replace(t, number=i + 1) for i, t in enumerate(found)]


def _tables_of_folder(folder: Path) -> list[Table]:
    found: list[Table] = []
    for file in sorted({f for pattern in _LOGS for f in folder.glob(pattern)}):
        found += parse_tables(read_text(file), str(file))
    if not found:
        raise DataError(f"{folder}: no table in the text files of this folder ({', '.join(_LOGS)}); give the log file itself.")
    return found


def doctor(files: str | Path | Sequence[str | Path], samples: int = 0) -> Report:
    """Examine printed tables in text files or run folders. `samples`: number of scored samples; 0: infer it from the digits.

    Raises:
        DataError: if a file or folder has no table.
    """
    some = [files] if isinstance(files, (str, Path)) else files
    return diagnose(read_report_tables(some), samples or None)


def diagnose(tables: Sequence[Table], n: int | None = None) -> Report:
    """Examine every table separately, then compare tables of the same evaluation set. `n`: number of scored samples, if known."""
    decoded = [decode(table, n) for table in tables]
    alone = [_alone(table, counts, n) for table, counts in zip(tables, decoded, strict=True)]
    noise, differ, apart = [], [], []
    pairs = list(combinations(range(len(tables)), 2)) if len(tables) <= 8 else [(i, i + 1) for i in range(len(tables) - 1)]
    for i, j in pairs:
        one, two, counts = tables[i], tables[j], decoded[i]
        try:
            same_protocol(one, two, (f"table {one.number}", f"table {two.number}"))
            if counts and decoded[j] and not _same_set(one, counts, decoded[j]):
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
        others = [h for h, c in healthy if h is not table and _one_protocol(h, table) and _same_set(table, c, counts)]
        extra = beside(table, found, others, counts.n) if counts and "L2" in table.rows else []
        reports.append(Diagnosis(table, counts, (*found, *extra)))
    return Report(tuple(reports), tuple(noise), tuple(differ), tuple(apart))


def _alone(table: Table, counts: Decoded | None, n: int | None) -> tuple[Finding, ...]:
    """Findings about a single table."""
    return (
        *protocol(table),
        *taken(table),
        *marks(table),
        *losses(table),
        *not_a_number(table),
        *evaluation_set(table, counts, n),
        *count_lines(table, counts),
        *events(table, counts),
        *consistency(table),
        *growth(table, is_val(table, counts), counts is not None),
        *hardware_named(table),
    )


def _one_protocol(a: Table, b: Table) -> bool:
    """Whether two tables follow the same protocol."""
    return (a.follows.name, a.follows.averaging) == (b.follows.name, b.follows.averaging)


def _same_set(table: Table, a: Decoded | None, b: Decoded | None) -> bool:
    """Whether two tables of the same protocol may have the same evaluation set: equal numbers of samples and, for SparseDrive, equal obj_col."""
    if a is None or b is None or a.n != b.n:
        return False
    return table.follows.name != "sparsedrive" or a.events.get("obj_col") == b.events.get("obj_col")


# ------------------------------------------------------------------------------------------------------------------- printing


def format_report(report: Report) -> str:
    """Every table with its findings, then the comparison of the tables."""
    out = []
    for diagnosis in report.tables:
        table = diagnosis.table
        label = f" “{table.label}”" if table.label else ""
        heading = f": {table.heading}" if table.heading else ""
        out.append(f"table {table.number}{label} ({printable(table.where, 300)}, line {table.line}){heading}")
        if table.remark:
            out.append(f"  remark: {table.remark}")
        for finding in diagnosis.findings:
            out.append(f"  {'SUSPECT' if finding.suspect else 'note   '} {finding.kind}: {finding.sentence}")
            out += [f"          - {line}" for line in finding.evidence]
            if finding.decide:
                out.append(f"          decide: {finding.decide}")
        suspects = diagnosis.suspects()
        unknown = list(dict.fromkeys(f.open for f in diagnosis.findings if f.open))
        clean = f"nothing suspicious in what can be examined; unknown: {', '.join(unknown)}." if unknown else "nothing suspicious."
        out += [f"  verdict: {', '.join(suspects)} suspected." if suspects else f"  verdict: {clean}", ""]
    out += _between(report)
    return "\n".join(out).rstrip()


def _between(report: Report) -> list[str]:
    out = []
    if report.noise:
        out.append("differences that are not significant:")
        out += [f"  {r.verdict}" for _, _, r in report.noise]
        out.append("          decide: `iidrive compare A.npz B.npz --cases CASES.npz` pairs the samples and detects smaller differences.")
    if report.differ:
        out.append("significant differences (either number may still be wrong):")
        out += [f"  {r.verdict}" for _, _, r in report.differ]
    if report.apart:
        out.append("not comparable:")
        for why in dict.fromkeys(why for _, _, why in report.apart):
            pairs = [f"{i} and {j}" for i, j, other in report.apart if other == why]
            more = f" and {len(pairs) - 10} more pairs" if len(pairs) > 10 else ""
            out.append(f"  tables {', '.join(pairs[:10])}{more}: {printable(why, 600)}")
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
                "form": d.table.form,
                "label": d.table.label,
                "protocol": d.table.follows.name,
                "averaging": d.table.follows.averaging,
                "times_s": list(d.table.times_s),
                "unread": list(d.table.unread),
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
