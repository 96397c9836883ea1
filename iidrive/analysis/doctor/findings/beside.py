"""Findings from comparing a table with others of the same evaluation set and protocol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from iidrive.analysis.compare.tables import VAL_SCENES, compare_tables
from iidrive.analysis.doctor.findings.finding import Finding
from iidrive.analysis.doctor.findings.growth import growth_of
from iidrive.analysis.doctor.findings.hardware import gpus_named
from iidrive.analysis.doctor.table import Table
from iidrive.core.scene import STEP_S

Array = np.ndarray


def beside(table: Table, found: Sequence[Finding], healthy: Sequence[Table], n: int) -> list[Finding]:
    """Findings from comparing a table with `healthy` tables (without suspicious findings) of the same set of `n` samples."""
    own = growth_of(table)
    others = [(h, g) for h in healthy if (g := growth_of(h)) is not None and own is not None and g.spans == own.spans]
    if own is None or not others:
        return []
    best, its = min(others, key=lambda other: other[0].rows["L2"].columns[-1])
    ratio = own.l2 / np.maximum(its.l2, 1e-6)
    times = " ".join(f"{r:.2f}" for r in ratio)
    if any(f.kind == "stage mismatch" for f in found):
        return [_not_the_gpus(table, [h for h, _ in others], times, best)]
    if any(f.suspect for f in found) or ratio.min() < 1.25 or not compare_tables(table, best, n=n).differs.get("L2"):
        return []
    return [_gpus(table, best, times, ratio)]


def _not_the_gpus(table: Table, healthy: Sequence[Table], times: str, best: Table) -> Finding:
    words = f"L2 is {times} times that of table {best.number} at the {_count(table)} steps: wrong from the first step."
    asked = gpus_named(table.remark) or gpus_named(table.heading)
    same = [h for h in healthy if asked and gpus_named(h.heading) == asked]
    growth = growth_of(same[0]) if same else None
    if asked and growth is not None:
        words += (
            f" It is not the {asked} GPUs: table {same[0].number} names {asked} too and is {growth.l2[0]:.2f} m off "
            f"after {STEP_S * growth.spans[0][1]:.1f} s."
        )
    return Finding("beside others", words)


def _count(table: Table) -> str:
    return "six" if len(table.times_s) == 6 else str(len(table.times_s))


def _gpus(table: Table, best: Table, times: str, ratio: Float[Array, "c"]) -> Finding:
    """Finding for a table that is plausibly worse at every step on the same samples: training or joining of results differs, as with more GPUs."""
    here, there = gpus_named(table.heading), gpus_named(best.heading)
    evidence = [
        f"the same ground truth as table {best.number}, yet L2 is {times} times as large at the {_count(table)} steps: all steps, not one horizon"
    ]
    named = here is not None and here != there
    if here is not None and named:
        plural = "s" if here != 1 else ""
        evidence.append(
            f"the words beside this table name {here} GPU{plural}: “{table.heading}”"
            + (f"; table {best.number} names {there}" if there else "")
        )
        if there:
            more = here / there
            evidence.append(
                f"if it was trained on {here}: with the batch per GPU unchanged the global batch is {more:g} times as large and the optimiser makes "
                f"{1 / more:g} times as many steps per epoch; learning rate schedule and EMA change with it"
            )
        rest = "does not divide" if VAL_SCENES % here else "divides"
        evidence.append(
            f"if it was only tested on {here}: {here} {rest} the {VAL_SCENES} scenes of val; state kept per scene and results merged by position "
            "depend on the number of GPUs"
        )
    return Finding(
        "number of GPUs",
        f"plausibly worse than table {best.number} at every step: trained differently, or results joined wrongly. "
        + ("The number of GPUs differs:" if named else "Check the number of GPUs:")
        + " neither training nor testing may depend on it.",
        named,
        tuple(evidence),
        "Plan with the same weights on one GPU and on several, write both by sample token, then run `iidrive compare ONE.npz SEVERAL.npz --cases "
        "CASES.npz`: every difference must be 0. If so, the training differs: compare global batch size and optimiser steps of the two runs.",
    )
