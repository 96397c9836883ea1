"""Findings on how a table was read: protocol, unreadable cells, NaN, marks, and losses above the table."""

from __future__ import annotations

from iidrive.analysis.doctor.findings.finding import Finding
from iidrive.analysis.doctor.table import Table


def protocol(table: Table) -> list[Finding]:
    """The protocol of the table, with the reason."""
    follows = table.follows
    if follows.name:
        return [Finding("protocol", f"{follows.name}: {follows.why}.")]
    return [Finding("protocol", f"unknown: {follows.why}.", open="" if follows.averaging else "the protocol")]


def taken(table: Table) -> list[Finding]:
    """Assumptions made, and cells that could not be read."""
    out = [Finding("read", f"{note}.") for note in table.notes]
    if table.percent_guessed:
        out.append(Finding("units", "collision rows have no percent sign; they were read as percent."))
    if table.unread:
        more = f", and {len(table.unread) - 6} more" if len(table.unread) > 6 else ""
        sentence = f"{'; '.join(table.unread[:6])}{more}. This concerns the printout, not the result."
        out.append(Finding("unreadable", sentence, open="what is unreadable"))
    return out


def not_a_number(table: Table) -> list[Finding]:
    """Rows in which the evaluator printed NaN or infinity."""
    names = [name for name, row in table.rows.items() if row.lacks("nan") or (row.average is not None and row.average != row.average)]
    names = list(dict.fromkeys([*names, *table.nan]))
    if not names:
        return []
    decide = "Look for NaN in the predictions: `iidrive score CASES.npz --predictions PREDICTIONS.npz` names the samples."
    return [
        Finding(
            "NaN",
            f"the evaluator printed NaN or infinity in {', '.join(names)}.",
            True,
            ("a mean over samples is NaN if one value is",),
            decide,
        )
    ]


def marks(table: Table) -> list[Finding]:
    """Marks of mismatched stages above the table."""
    if not table.marks:
        return []
    decide = (
        "`iidrive lineage` on its run folder shows the lineage; `iidrive swap` on both runs separates a mismatch from a poor tokenizer."
    )
    return [Finding("stage mismatch", "the table is marked: its stages are mismatched.", True, table.marks, decide)]


def losses(table: Table) -> list[Finding]:
    """Losses above the table that were NaN or infinite."""
    if not table.losses:
        return []
    named = [
        f"{loss.name}: line {loss.first + 1}" + (f" to line {loss.last + 1}" if loss.last > loss.first else "") for loss in table.losses[:8]
    ]
    stays = any(loss.stays for loss in table.losses)
    sentence = f"{', '.join(loss.name for loss in table.losses[:8])} NaN or infinite in the log above" + (
        ", up to its last line." if stays else "; later lines have finite losses again."
    )
    decide = "Do not score weights that were trained with NaN losses: evaluate the last checkpoint before the first such line."
    return [Finding("NaN losses", sentence, True, tuple(named), decide)]
