"""The evaluation set of a table, and the event counts behind its percentages."""

from __future__ import annotations

import numpy as np

from iidrive.analysis.doctor.counts import disagreement
from iidrive.analysis.doctor.decode import LARGEST_SET, USUAL_SIZES, Decoded, all_zero, between, luck
from iidrive.analysis.doctor.findings.finding import Finding
from iidrive.analysis.doctor.table import RATES, Table
from iidrive.scoring.stats import COUNTS_PER_INCIDENT
from iidrive.scoring.tables import NUSCENES_VAL_OBJ_COL, NUSCENES_VAL_SAMPLES

VAL_SIZES = {
    6019: "all keyframes of nuScenes val, including those without a full future: UniAD's divisor",
    4819: "nuScenes val as used by ST-P3",
    4219: "nuScenes val as used by OccWorld",
    4519: "the clips of nuScenes val in II-World's forecasts",
    81: "the number of keyframes of nuScenes mini_val",
    69: "the number of keyframes of nuScenes mini_val with a full future",
}
_RECHECK = "Run `iidrive score CASES.npz` without predictions: it prints the obj_col row of your ground truth."


def is_val(table: Table, counts: Decoded | None) -> bool:
    """Whether the number of samples is that of nuScenes val under the table's protocol."""
    return counts is not None and (counts.n == NUSCENES_VAL_SAMPLES or counts.n in USUAL_SIZES.get(table.follows.name, ()))


def evaluation_set(table: Table, counts: Decoded | None, n: int | None = None) -> list[Finding]:
    """Findings on the evaluation set. `n`: number of samples given by the caller.

    Only SparseDrive's obj_col row is a checksum of the set, because it does not depend on the plan.
    """
    if counts is None:
        return [_unknown(table, n)]
    how = {
        "stated": "stated in the printout",
        "given": "as given",
        "assumed": "the printed digits fit this number; others would fit, too",
        "digits": f"the only number up to {LARGEST_SET}{', apart from its multiples,' if counts.others else ''} that gives these digits",
    }[counts.source]
    if counts.source == "digits" and any(k % counts.n for k in counts.others):
        how = f"the digits fit this number, and {len(counts.others)} others up to {LARGEST_SET}"
    if counts.exact:
        how += "; the averages match to the last digit"
    if table.follows.name != "sparsedrive":
        known = f": {VAL_SIZES[counts.n]}" if counts.n in VAL_SIZES else ""
        return [Finding("set", f"{counts.n} samples ({how}){known}. Under this protocol no row is a checksum of the set.")]
    if "obj_col" not in counts.events or counts.steps != (1, 2, 3, 4, 5, 6):
        return [Finding("set", f"{counts.n} samples ({how}); without a whole obj_col row the set cannot be checked.", open="the set")]
    return [_checksum(counts, how)]


def _unknown(table: Table, n: int | None) -> Finding:
    """Explain why the number of samples is unknown. It is suspicious only in a full SparseDrive table, if no sample count matches its percentages."""
    rates = [name for name in RATES if name in table.rows]
    if not rates:
        return Finding("set", "no collision row: the number of samples and the set are unknown.", open="the set")
    if not table.times_s:
        return Finding(
            "set", "averages alone cannot be converted to counts: the number of samples and the set are unknown.", open="the set"
        )
    hint = f" A progress bar above counts to {table.progress}." if table.progress else ""
    if all_zero(table) and not n:
        sentence = f"every collision rate is 0, which fits any number of samples: N is unknown.{hint}"
        return Finding("set", sentence, open="the set")
    if not table.follows.averaging:
        return Finding("set", "without the protocol the rates cannot be converted to counts: N is unknown.", open="the set")
    if not table.steps:
        return Finding("set", "the columns' times are not multiples of 0.5 s: events cannot be counted.", open="the set")
    if any(table.rows[name].lacks("unread", "nan") for name in rates):
        return Finding("set", f"too few readable cells to determine the number of samples.{hint}", open="the set")
    size = n or table.n or USUAL_SIZES.get(table.follows.name, (NUSCENES_VAL_SAMPLES,))[0]
    ranges = between(table, size)
    fits = bool(ranges) and all(low <= high for row in ranges.values() for low, high in row)
    stated = bool(n or table.n)
    if fits and (stated or luck(table, size) > 0.05):
        about = "; ".join(f"{name} {' '.join(_range(*pair) for pair in row)}" for name, row in ranges.items())
        sentence = f"the digits are too few to count events; with {size} samples the events up to each column would be {about}."
        return Finding("set", sentence + hint, open="" if stated else "the set")
    if table.follows.name != "sparsedrive" or table.percent_guessed:
        sentence = f"the rates are not counts of {size} samples, nuScenes val's number under this protocol: another set, number or unit."
        return Finding("set", sentence + hint, False, (), "Give the number of scored samples with --samples.", "the set")
    if any(table.averages.get(name) for name in rates):
        sentence = f"the percentages are not counts of any set of up to {LARGEST_SET} samples"
    elif stated:
        sentence = f"the percentages are not counts of {size} samples"
    else:
        sentence = f"the percentages are not counts of {NUSCENES_VAL_SAMPLES} samples, so this is not nuScenes val under this protocol"
    return Finding("set", sentence + ".", True, ("prefix means of integer counts must round to every printed column",), _RECHECK)


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}–{high}"


def _checksum(counts: Decoded, how: str) -> Finding:
    """A finding on the set from the obj_col row of a SparseDrive table."""
    known = " ".join(str(k) for k in NUSCENES_VAL_OBJ_COL)
    found = " ".join(str(k) for k in counts.events["obj_col"])
    base = f"obj_col decodes to {found} of {counts.n} samples ({how})"
    if counts.n == NUSCENES_VAL_SAMPLES:
        if counts.events["obj_col"] == NUSCENES_VAL_OBJ_COL:
            return Finding("set", f"nuScenes val, complete: {base}.")
        if counts.source == "assumed":
            return Finding("set", f"another set than nuScenes val, of unknown size: {base}, where val has {known}.", open="the set")
        sentence = f"as many samples as nuScenes val, but other ground truth: {base}, where val has {known}."
        return Finding("mis-paired", f"{sentence} Paths and boxes are mis-paired, or the data was changed.", True, (), _RECHECK)
    if counts.n in VAL_SIZES and counts.n > 100:
        return Finding("set", f"{VAL_SIZES[counts.n]}: another protocol's number of samples. {base}.", False, (), _RECHECK)
    if not any(counts.events["obj_col"]):
        mini = f" ({VAL_SIZES[counts.n]})" if counts.n in VAL_SIZES else ""
        sentence = f"another set than nuScenes val, or a part of it{mini}: {base}. A row of zeros cannot serve as a checksum."
        return Finding("set", sentence, open="the set")
    missing = NUSCENES_VAL_SAMPLES - counts.n
    lacking = np.array(NUSCENES_VAL_OBJ_COL) - counts.events["obj_col"]
    if missing > 0 and (lacking >= 0).all() and (lacking <= missing).all():
        sentence = f"not all of nuScenes val, but a subset of it or another set: {base}, val has {known}."
        return Finding("set", sentence, False, (), _RECHECK)
    if 0 < -missing <= 64 and (lacking <= 0).all():
        sentence = (
            f"{-missing} samples more than nuScenes val: {base}. Distributed samplers that pad the last batch repeat samples like this."
        )
        decide = "Write predictions by token: `iidrive score` refuses duplicate tokens."
        return Finding("repeated samples", sentence, True, (), decide)
    reason = "more collisions of the true path than all of val has" if missing > 0 else "more samples than val has"
    return Finding("set", f"another set than nuScenes val, or mis-paired data: {base}; {reason}.", False, (), _RECHECK)


def events(table: Table, counts: Decoded | None) -> list[Finding]:
    """The event counts of obj_box_col, and their standard error."""
    if counts is None or "obj_box_col" not in counts.events:
        return []
    shown = " ".join(str(k) for k in counts.events["obj_box_col"])
    where = {
        "value": " at the columns' times",
        "any": " that collided up to each column",
        "prefix": "" if counts.steps == (1, 2, 3, 4, 5, 6) else f" between the columns ({_cumulated(counts)} up to each)",
    }.get(table.follows.averaging, "")
    total = f" ({sum(counts.events['obj_box_col'])} in all)" if table.follows.averaging == "prefix" else ""
    base = f"obj_box_col {shown} of {counts.n}{where}{total}"
    if not any(counts.weights):
        return [Finding("events", f"{base}.")]
    average = counts.weighted("obj_box_col") / (36 * counts.n)
    chance = float(np.sqrt(np.square(counts.weights) @ np.array(counts.events["obj_box_col"]))) / (36 * counts.n)
    return [
        Finding(
            "events",
            f"{base}: avg {100 * average:.3f} % "
            f"± {100 * chance:.3f} by chance if counts were independent; they are not, so about {COUNTS_PER_INCIDENT**0.5:.1f} times that.",
        )
    ]


def _cumulated(counts: Decoded) -> str:
    return " ".join(str(k) for k in np.cumsum(counts.events["obj_box_col"]))


def count_lines(table: Table, counts: Decoded | None) -> list[Finding]:
    """A finding if the count lines and numbers of samples below the table contradict the table or each other."""
    faults = [f"line {line.line}, {line.row}: {why}" for line in table.counts if (why := disagreement(line, table))]
    sizes = sorted({line.n for line in table.counts} | ({table.scored} if table.scored is not None else set()))
    if len(sizes) > 1:
        faults.append(f"different numbers of samples: {', '.join(str(size) for size in sizes)}")
    elif sizes and counts is not None and counts.source == "digits" and counts.n != sizes[0] and sizes[0] not in counts.others:
        faults.append(f"the lines say {sizes[0]} samples, the digits {counts.n}")
    if not faults:
        return []
    decide = "Score the predictions again: `iidrive score CASES.npz --predictions PREDICTIONS.npz` prints matching counts and table."
    return [Finding("count lines", "the lines with counts contradict the table or each other.", True, tuple(faults), decide)]
