"""What the growth of L2 with time says about the planner behind a printed table, alone and beside other tables of the same set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from iidrive.analysis.compare.tables import VAL_SCENES, compare_tables
from iidrive.analysis.doctor.printed import Decoded, PrintedTable, Row
from iidrive.core.scene import FUTURE_STEPS, STEP_S
from iidrive.scoring.tables import NUSCENES_VAL_SAMPLES

Array = np.ndarray

DRIVEN_M = (2.31, 4.64, 7.01, 9.38, 11.80, 14.23)
"""Mean distance from the start after 0.5 … 3.0 s in 200 windows of real nuScenes driving: the L2 of standing still, within some 10 %."""
MIRRORED_M = (0.17, 0.54, 1.10, 1.88, 2.86, 4.01)
"""L2 of those true paths against themselves with left and right exchanged."""
FIRST_STEP_M = 0.5
"""A larger mean error after 0.5 s asks for a mean acceleration above 4 m/s² (d = a t²/2), or for a planner that does not know its speed."""
LEAK_ACCELERATION = 0.2
"""m/s². A mean error at 3 s that leaves less than this unforeseen. Keeping the true speed of the first half second leaves 0.53."""
_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九十")} | {"两": 2, "one": 1, "two": 2, "four": 4, "eight": 8, "sixteen": 16}
_GPUS = re.compile(
    r"(\d+|[一二两三四五六七八九十])\s*(?:张|块)?\s*(?:显卡|卡)|\b(\d+|one|two|four|eight|sixteen)[\s\-x×]*(?:gpus?|cards?)\b",
    re.IGNORECASE,
)
_FOREIGN = re.compile(r"作者|官方|公开|训练好的|预训练|published|released|official|author|pre-?trained|downloaded", re.IGNORECASE)
_II_WORLD = re.compile(r"ii[\s_-]?world", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    """One thing to know about a table: `kind` a short name, `suspect` whether the number should not be believed before `decide` is done."""

    kind: str
    sentence: str
    suspect: bool = False
    evidence: tuple[str, ...] = ()
    decide: str = ""


def per_step(row: Row) -> Float[Array, "6"]:
    """Values at each step from prefix means."""
    k = np.arange(1, FUTURE_STEPS + 1)
    return np.diff(k * np.array(row.columns), prepend=0.0)


def shape(table: PrintedTable, counts: Decoded | None) -> list[Finding]:
    """What the growth of L2 with time says."""
    row = table.rows.get("L2")
    if row is None or not np.isfinite(row.columns).all():
        return [Finding("L2", "no L2 row that can be read.", True)]
    step = per_step(row)
    if step[0] <= 0 and step[-1] <= 0:
        return [Finding("truth", "L2 is 0: the true path was scored, not a plan.")]
    on_val = counts is not None and counts.n == NUSCENES_VAL_SAMPLES
    first, last = float(step[0]), float(step[-1])
    growth = last / first if first > 0 else float("inf")
    unforeseen = 2 * last / (FUTURE_STEPS * STEP_S) ** 2
    describe = Finding("L2", f"{first:.2f} m off after 0.5 s, {last:.2f} m after 3.0 s (at that step), {growth:.1f} times as much.")
    pattern = _pattern(step) if on_val else None
    if pattern:
        return [describe, pattern]
    if first > FIRST_STEP_M:
        return [describe, _stage_mismatch(table, step)]
    if last > 0 and (unforeseen < LEAK_ACCELERATION or (on_val and growth < FUTURE_STEPS and last < 1.0)):
        return [describe, _leak(table, step, on_val)]
    return [describe]


def _pattern(step: Float[Array, "6"]) -> Finding | None:
    """Errors that stand in a fixed proportion to the distance driven: sign, axes, units, standing still, offsets, a step too late."""
    decide = (
        "`iidrive doctor PREDICTIONS.npz --cases CASES.npz` tries turned, mirrored, scaled and shifted paths on the predictions themselves."
    )
    ratio = step / np.array(DRIVEN_M)
    shown = "error / distance driven at each step: " + " ".join(f"{r:.2f}" for r in ratio)
    middle = float(np.median(ratio))
    if middle > 0.3 and ratio.max() / ratio.min() < 1.2:
        if abs(middle - 2) < 0.2:
            return Finding("sign flip", "L2 is twice the distance driven: forward and backward exchanged.", True, (shown,), decide)
        if abs(middle - np.sqrt(2)) < 0.14:
            sentence = (
                "L2 is 1.4 times the distance driven: x and y exchanged, or paths in the ego frame (x forward) scored in the lidar frame."
            )
            return Finding("wrong frame", sentence, True, (shown,), decide)
        if abs(middle - 1) < 0.15:
            sentence = "L2 is the distance driven: the plan stands still, holds zeros, or belongs to other samples (joined by position)."
            return Finding("still or mis-paired", sentence, True, (shown,), decide)
        sentence = f"L2 is {middle:.2f} times the distance driven at every step: a scale error (units, normalisation)."
        return Finding("units", sentence, True, (shown,), decide)
    hop = DRIVEN_M[0]
    shifted = np.array([0.0, *DRIVEN_M[:-1]])
    if step[0] < 0.25 * hop and np.all(np.abs(step[1:] / shifted[1:] - 1) < 0.15):
        return Finding(
            "units", "L2 lags one step behind the distance driven: per-step offsets were scored as positions.", True, (shown,), decide
        )
    if abs(float(step.mean()) / hop - 1) < 0.2 and step.max() / step.min() < 1.25:
        return Finding(
            "shifted steps", "L2 is one half second's drive at every step: the path is late or early by one step.", True, (shown,), decide
        )
    own = step - np.array(MIRRORED_M)
    if np.all(np.abs(own) < 0.2 * np.array(MIRRORED_M) + 0.1) and step[-1] / step[0] > 15:
        sentence = (
            "L2 is about that of true paths with left and right exchanged; a planner that only keeps its speed may look the same, so this "
            "is no suspicion, but the sign of x is easily checked."
        )
        return Finding("sign of x", sentence, False, (), decide)
    return None


def _stage_mismatch(table: PrintedTable, step: Float[Array, "6"]) -> Finding:
    evidence = [
        f"{step[0]:.2f} m after 0.5 s: a planner that knew its speed could only be that wrong if it braked or sped up by {8 * step[0]:.1f} m/s² in "
        "the average sample; so the features it reads are wrong in the present already, not only in the future",
        f"the error grows {step[-1] / step[0]:.1f}-fold to 3.0 s, while it is no fixed share of the distance driven: not a sign, frame or unit alone",
    ]
    words = f"{table.heading} {table.remark}"
    if _FOREIGN.search(words):
        evidence.append(f"the words beside the table speak of somebody else's weights: “{table.heading or table.remark}”")
    return Finding(
        "stage mismatch",
        "it looks as if the stages did not descend from one tokenizer, so that tokens mean other things to the reader than to the writer.",
        True,
        tuple(evidence),
        "`iidrive evaluate TOKENIZER` and `iidrive evaluate WORLD` on the same split: at 0 s the world model must come near the tokenizer's "
        "reconstruction mIoU; iidrive refuses stages of other parents. For weights from elsewhere: take both stages from one author, "
        "or train stage 2 again.",
    )


def _leak(table: PrintedTable, step: Float[Array, "6"], on_val: bool) -> Finding:
    unforeseen = 2 * step[-1] / (FUTURE_STEPS * STEP_S) ** 2
    evidence = [
        f"{step[-1]:.2f} m off at 3.0 s leaves {unforeseen:.2f} m/s² unforeseen (d = a t²/2); in real driving, keeping even the true speed of the "
        "first half second leaves 0.53 m/s²",
        f"the error grows only {step[-1] / step[0]:.1f}-fold from 0.5 s to 3.0 s; what is unknown about the future grows faster than time (6-fold)"
        if step[0] > 0
        else "the first step is exact",
    ]
    words = f"{table.heading} {table.remark}"
    if _II_WORLD.search(words):
        evidence.append("II-World's default mode hands the true future ego transform and future commands to the decoder, at test time too")
    elif _FOREIGN.search(words):
        evidence.append(f"the words beside the table speak of somebody else's weights: “{table.heading or table.remark}”")
    if not on_val:
        evidence.append("this is not nuScenes val: slow or simple driving could give the same, so look at the data first")
    return Finding(
        "leak",
        "the plan follows the future more closely than the past should allow.",
        True,
        tuple(evidence),
        "`iidrive audit RUN` for a model of iidrive: it replaces everything later than the present and names what reaches the plan. For others, "
        "`iidrive audit PREDICTIONS.npz --cases CASES.npz` says whether plans can be this good; then plan again with everything later withheld "
        "(future poses, commands and features set to zero) and `iidrive compare AS-IS.npz WITHHELD.npz --cases CASES.npz`: a planner that sees "
        "only the past does not change.",
    )


def gpus_named(words: str) -> int | None:
    """The number of GPUs that a remark names, in digits, English or Chinese."""
    found = _GPUS.search(words)
    if not found:
        return None
    text = (found[1] or found[2]).lower()
    return int(text) if text.isdigit() else _DIGITS[text]


def against(table: PrintedTable, found: Sequence[Finding], healthy: Sequence[PrintedTable], n: int) -> list[Finding]:
    """Findings that need tables of the same set (of `n` samples) beside this one, `healthy` those without a suspicion of their own."""
    if not healthy or "L2" not in table.rows:
        return []
    best = min(healthy, key=lambda h: h.rows["L2"].columns[-1])
    ratio = per_step(table.rows["L2"]) / np.maximum(per_step(best.rows["L2"]), 1e-6)
    times = " ".join(f"{r:.2f}" for r in ratio)
    if any(f.kind == "stage mismatch" for f in found):
        return [_not_the_gpus(table, healthy, times, best)]
    if any(f.suspect for f in found) or ratio.min() < 1.25 or not compare_tables(table, best, n=n).differs.get("L2"):
        return []
    return [_gpus(table, best, times, ratio)]


def _not_the_gpus(table: PrintedTable, healthy: Sequence[PrintedTable], times: str, best: PrintedTable) -> Finding:
    words = f"L2 is {times} times that of table {best.number} at the six steps: wrong from the first."
    asked = gpus_named(table.remark) or gpus_named(table.heading)
    same = [h for h in healthy if asked and gpus_named(h.heading) == asked]
    if asked and same:
        l2 = per_step(same[0].rows["L2"])[0]
        words += f" It is not the {asked} GPUs: table {same[0].number} names {asked} too and is {l2:.2f} m off after 0.5 s."
    return Finding("beside others", words)


def _gpus(table: PrintedTable, best: PrintedTable, times: str, ratio: Float[Array, "6"]) -> Finding:
    """Worse at every step on the same samples, in a plausible way: what differs is the training or the joining, so the number of GPUs."""
    here, there = gpus_named(table.heading), gpus_named(best.heading)
    evidence = [
        f"the same ground truth as table {best.number}, yet L2 is {times} times as large at the six steps: all steps, not one horizon"
    ]
    named = here is not None and here != there
    if here is not None and named:
        evidence.append(
            f"the words beside this table name {here} GPUs: “{table.heading}”" + (f"; table {best.number} names {there}" if there else "")
        )
        if there:
            more = here / there
            evidence.append(
                f"if it was trained on {here}: with the batch per GPU unchanged the global batch is {more:g} times as large and the optimiser makes "
                f"{1 / more:g} times as many steps an epoch; schedule and averaging of weights move with it"
            )
        rest = "does not divide" if VAL_SCENES % here else "divides"
        evidence.append(
            f"if it was only tested on {here}: {here} {rest} the {VAL_SCENES} scenes of val; memory kept per scene and results merged by position "
            "then depend on the number"
        )
    return Finding(
        "number of GPUs",
        f"worse than table {best.number} at every step, in a plausible way: trained differently or joined wrongly. "
        + ("The number of GPUs differs:" if named else "The number of GPUs is one thing to check:")
        + " neither training nor testing may depend on how many share the work.",
        named,
        tuple(evidence),
        "Plan with the same weights on one GPU and on several, write both by sample token, then `iidrive compare ONE.npz SEVERAL.npz --cases "
        "CASES.npz`: every difference must be 0. If it is, the training differs: compare global batch and optimiser steps of the two runs.",
    )
