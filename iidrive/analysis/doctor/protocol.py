"""Recognise the protocol of a table from its shape and the words around it, with the reason."""

from __future__ import annotations

import re

from iidrive.analysis.doctor.interpret import Rows
from iidrive.analysis.doctor.readers.names import AVERAGE
from iidrive.analysis.doctor.table import Averaging, Follows
from iidrive.core.scene import FUTURE_STEPS, STEP_S
from iidrive.scoring.protocols import PROTOCOLS

_TITLE = re.compile(
    r"(uniad|st-?p-?3|vad|sparsedrive|occworld|bev-?planner|ad-?mlp)(?:'s)?[ -](?:definition|metrics?|protocol|style|evaluation)"
)
_PREFIX = re.compile(r"cumulative|tem(?:poral)?[ -]?avg|averaged? over|mean up to|prefix mean")
_VALUE = re.compile(r"per[ -]?time-?step|no[ -]?avg|at each (?:time-?)?step|value at")

STYLES: dict[str, Follows] = {
    "vad": Follows("vad", "prefix", "`plan_L2_1s:` lines are VAD's (and its descendants'): means of the steps up to each time"),
    "step": Follows("ssr-step", "value", "SSR prints its `_stp3_` set from the last step alone: values at each time, in spite of the name"),
    "stp3": Follows(
        "stp3", "prefix", "`plan_L2_1s : ` with a blank before the colon is ST-P3's and AD-MLP's: means of the steps up to each time"
    ),
    "occworld": Follows("occworld", "prefix", "`plan_L2_1s is` is OccWorld's: means of the steps up to each time, by VAD's code"),
    "bevplanner": Follows(
        "bevplanner", "any", "`0:plan_L2_1s:` is BEV-Planner's: L2 means up to each time, collisions at any step up to it"
    ),
    "ii-world": Follows("ii-world", "value", "Time, mIoU and Traj columns are II-World's: values at each time, collisions in percent"),
    "ii-world means": Follows("ii-world", "prefix", "II-World's table with and without `Single`: these columns are means up to each time"),
}
"""The protocol implied by each evaluator's output format."""


def follow(rows: Rows, heading: str) -> Follows:
    """The protocol of a table, from its title, the line above it, its output format or its shape; unknown if none of these is conclusive."""
    named = _named(rows, heading)
    if named:
        return named
    if rows.style in STYLES:
        return STYLES[rows.style]
    times = rows.times
    if rows.style == "dict" and times:
        return Follows("", "", "a dict of lists does not say whether its values are means up to a time or values at that time")
    if rows.style == "named":
        return Follows("", "", "names such as L2_1s do not say whether their values are means up to a time or values at that time")
    half_seconds = len(times) >= FUTURE_STEPS and all(abs(t - STEP_S * (k + 1)) < 1e-6 for k, t in enumerate(times))
    with_average = any(AVERAGE in row for row in rows.cells.values())
    if half_seconds and with_average and not rows.label:
        return Follows(
            "sparsedrive", "prefix", f"columns 0.5 s … {times[-1]:.1f} s and avg are SparseDrive's: means of the steps up to each time"
        )
    if half_seconds and not with_average and not rows.label:
        if any("%" in cell for row in rows.cells.values() for cell in row.values()):
            return Follows(
                "",
                "",
                "no evaluator prints half-second columns in percent without avg: they may be means up to a time or values at that time",
            )
        return Follows("uniad", "value", f"columns 0.5 s … {times[-1]:.1f} s, no avg, fractions are UniAD's: values at each time")
    if not times:
        return Follows("", "", "averages alone do not say how they were computed")
    return Follows("", "", "columns may be means of the steps up to a time or values at that time; papers print both")


def averaging_of(name: str) -> Averaging:
    """The averaging of a protocol of `scoring.protocols`."""
    protocol = PROTOCOLS[name]
    if protocol.averaging == "value":
        return "value"
    return "any" if protocol.layout == "bevplanner" else "prefix"


def _named(rows: Rows, heading: str) -> Follows | None:
    above = heading.rpartition(" / ")[2].strip().rstrip(":")
    for words, where in ((rows.label, "the row"), (above, "the line above")):
        if words in PROTOCOLS and rows.times:
            return Follows(words, averaging_of(words), f"{where} names {words}")
    if rows.style == "slashes" and rows.label:
        name = _known(rows.label)
        return Follows(name, averaging_of(name), f"the sentence names {name}")
    for words, where in ((rows.title.lower(), "the title"), (above.lower(), "the line above")):
        found = _TITLE.search(words)
        said: Averaging = "prefix" if _PREFIX.search(words) else "value" if _VALUE.search(words) else ""
        if found and rows.times:
            name = _known(found[1])
            return Follows(name, said or averaging_of(name), f"{where} names {name}: '{words[:80]}'")
        if said and rows.times and rows.style not in STYLES:
            return Follows("", said, f"{where} says how its columns are computed: '{words[:80]}'")
    return None


def _known(name: str) -> str:
    return name.lower().replace("-", "")
