"""Findings from the growth of L2 with time.

L2 is averaged over each span of steps that the table resolves: single steps for half-second columns, two steps for 1, 2 and 3 s. `reach` below is
t²/2 averaged over a span: the displacement by an acceleration of 1 m/s².
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from iidrive.analysis.doctor.findings.finding import Finding
from iidrive.analysis.doctor.table import Follows, Table
from iidrive.core.scene import FUTURE_STEPS, STEP_S

Array = np.ndarray

DRIVEN_M = (2.31, 4.64, 7.01, 9.38, 11.80, 14.23)
"""Mean distance from the start after 0.5 … 3.0 s in 200 clips of real nuScenes driving, metres: the L2 of standing still, within about 10 %."""
MIRRORED_M = (0.17, 0.54, 1.10, 1.88, 2.86, 4.01)
"""L2 between these true paths and the same paths with left and right swapped, metres."""
FIRST_ACCELERATION = 4.0
"""Limit of the mean first error, as an acceleration a in m/s² (0.5 m after 0.5 s: d = a t²/2). A planner that knows its speed stays below it."""
LEAK_ACCELERATION = 0.2
"""Smallest plausible mean error at 3 s, as an unforeseen acceleration in m/s². Keeping the true speed of the first half second gives 0.53."""
_FOREIGN = re.compile(r"作者|官方|公开|训练好的|预训练|published|released|official|author|pre-?trained|downloaded", re.IGNORECASE)
_II_WORLD = re.compile(r"ii[\s_-]?world", re.IGNORECASE)
_PATHS = (
    "`iidrive doctor PREDICTIONS.npz --cases CASES.npz` tries turned, mirrored, scaled and shifted paths on the predictions themselves."
)


@dataclass(frozen=True)
class Growth:
    """Mean L2 (metres) over each span (`spans`, in steps), with the mean time (seconds) and the mean t²/2 (s²) of the span."""

    spans: tuple[tuple[int, int], ...]
    l2: Float[Array, "c"]
    time_s: Float[Array, "c"]
    reach: Float[Array, "c"]

    def over(self, per_step: Sequence[float]) -> Float[Array, "c"]:
        """Values at the six steps, averaged over the spans."""
        return np.array([np.mean(per_step[first - 1 : last]) for first, last in self.spans])

    @property
    def six(self) -> bool:
        """Whether all spans are within the usual six steps."""
        return max(last for _, last in self.spans) <= FUTURE_STEPS


def growth_of(table: Table) -> Growth | None:
    """The growth of a table's L2; None if it has fewer than two readable columns or their averaging is unknown."""
    if "L2" not in table.rows:
        return None
    thin = table.narrowed("L2")
    spans = thin.spans("L2")
    if len(spans) < 2:
        return None
    times = [STEP_S * np.arange(first, last + 1) for first, last in spans]
    return Growth(tuple(spans), thin.at_spans("L2"), np.array([t.mean() for t in times]), np.array([(t**2 / 2).mean() for t in times]))


def growth(table: Table, on_val: bool, known_set: bool) -> list[Finding]:
    """Findings from the growth of L2. `on_val`: the set is nuScenes val. `known_set`: the number of samples is known.

    If the averaging of the columns is unknown, only findings that hold for both means and values are returned.
    """
    if "L2" not in table.rows:
        return [Finding("L2", "no L2 row.", open="L2")]
    if not table.times_s or all(state == "absent" for state in table.rows["L2"].states):
        return [Finding("L2", "an average alone does not show how L2 grows with time.", open="L2")]
    if table.rows["L2"].lacks("nan"):
        return [Finding("L2", "the L2 row holds NaN or infinity.", open="L2")]
    if not table.follows.averaging:
        return _either(table)
    found = growth_of(table)
    if found is None:
        return [Finding("L2", "fewer than two readable columns of L2: its growth with time cannot be judged.", open="L2")]
    return _judged(table, found, on_val, known_set)


def _either(table: Table) -> list[Finding]:
    """Findings that hold for both averagings of the columns."""
    both = []
    for averaging in ("prefix", "value"):
        found = growth_of(replace(table, follows=Follows("", averaging, "")))
        if found is None:
            return [Finding("L2", "fewer than two readable columns of L2: its growth with time cannot be judged.", open="L2")]
        both.append(_judged(table, found, False, False))
    means, values = both
    kinds = {f.kind for f in means if f.suspect} & {f.kind for f in values if f.suspect}
    text = f"as means {_lower(means[0].sentence)[:-1]}; as values at each time {_lower(values[0].sentence)}"
    return [Finding("L2", text, open="" if kinds else "the growth of L2"), *(f for f in means if f.kind in kinds and f.suspect)]


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _judged(table: Table, found: Growth, on_val: bool, known_set: bool) -> list[Finding]:
    step = found.l2
    if step[0] <= 0 and step[-1] <= 0:
        return [Finding("truth", "L2 is 0: the true path was scored, not a plan.")]
    first, last = float(step[0]), float(step[-1])
    ratio = last / first if first > 0 else float("inf")
    unforeseen = last / float(found.reach[-1])
    where = "at that step" if found.spans[-1][0] == found.spans[-1][1] else "over those steps"
    describe = Finding("L2", f"{first:.2f} m off {_when(found, 0)}, {last:.2f} m {_when(found, -1)} ({where}), {ratio:.1f} times as much.")
    pattern = _pattern(found) if on_val and found.six and (step > 0).all() else None
    if pattern:
        return [describe, pattern]
    if first > FIRST_ACCELERATION * found.reach[0]:
        steady = step / found.time_s
        if not on_val and known_set and 0 < steady.max() < 1.12 * steady.min():
            sentence = (
                f"L2 grows in proportion to time, {float(np.median(steady)):.2f} m/s: a constant error of speed or direction, on another set "
                "than nuScenes val, whose driving statistics are unknown."
            )
            return [describe, Finding("speed", sentence, False, (), _PATHS)]
        return [describe, _stage_mismatch(table, found)]
    slow = found.time_s[-1] / found.time_s[0]
    if last > 0 and (unforeseen < LEAK_ACCELERATION or (on_val and ratio < slow and unforeseen < 2 / 9)):
        return [describe, _leak(table, found, on_val)]
    return [describe]


def _when(found: Growth, which: int) -> str:
    first, last = found.spans[which]
    return f"after {STEP_S * last:.1f} s" if first == last else f"over {STEP_S * first:.1f}–{STEP_S * last:.1f} s"


def _pattern(found: Growth) -> Finding | None:
    """A finding if the error is in fixed proportion to the distance driven: sign, axes, units, standing still, offsets, or one step late."""
    step, driven = found.l2, found.over(DRIVEN_M)
    ratio = step / driven
    shown = "error / distance driven at each step: " + " ".join(f"{r:.2f}" for r in ratio)
    middle = float(np.median(ratio))
    wrong_at_once = step[0] > FIRST_ACCELERATION * found.reach[0]
    if (middle > 0.3 or wrong_at_once) and ratio.max() / ratio.min() < 1.2:
        if abs(middle - 2) < 0.2:
            return Finding("sign flip", "L2 is twice the distance driven: forward and backward are swapped.", True, (shown,), _PATHS)
        if abs(middle - np.sqrt(2)) < 0.14:
            sentence = (
                "L2 is 1.4 times the distance driven: x and y are swapped, or ego-frame paths (x forward) were scored in the lidar frame."
            )
            return Finding("wrong frame", sentence, True, (shown,), _PATHS)
        if abs(middle - 1) < 0.15:
            sentence = (
                "L2 equals the distance driven: the plan stands still, is all zeros, or belongs to other samples (joined by position)."
            )
            return Finding("still or mis-paired", sentence, True, (shown,), _PATHS)
        sentence = f"L2 is {middle:.2f} times the distance driven at every step: a scale error (units, normalisation)."
        return Finding("units", sentence, True, (shown,), _PATHS)
    hop = DRIVEN_M[0]
    shifted = found.over([0.0, *DRIVEN_M[:-1]])
    single = found.spans[0] == (1, 1)
    if single and step[0] < 0.25 * hop and np.all(np.abs(step[1:] / shifted[1:] - 1) < 0.15):
        sentence = "L2 lags one step behind the distance driven: per-step offsets were scored as positions."
        return Finding("units", sentence, True, (shown,), _PATHS)
    if abs(float(step.mean()) / hop - 1) < 0.2 and step.max() / step.min() < 1.25:
        sentence = "L2 equals the distance driven in half a second at every step: the path is late or early by one step."
        return Finding("shifted steps", sentence, True, (shown,), _PATHS)
    mirrored = found.over(MIRRORED_M)
    own = step - mirrored
    if np.all(np.abs(own) < 0.2 * mirrored + 0.1) and step[-1] / step[0] > 0.636 * mirrored[-1] / mirrored[0]:
        sentence = (
            "L2 is close to that of true paths with left and right swapped; a planner that only keeps its speed may look the same, so this "
            "is not suspicious, but check the sign of x."
        )
        return Finding("sign of x", sentence, False, (), _PATHS)
    return None


def _stage_mismatch(table: Table, found: Growth) -> Finding:
    first = float(found.l2[0])
    evidence = [
        f"{first:.2f} m {_when(found, 0)}: a planner that knows its speed is only that wrong if it brakes or accelerates by "
        f"{first / found.reach[0]:.1f} m/s² in "
        "the average sample; so its input features are already wrong at t = 0, not only in the future",
        f"the error grows {found.l2[-1] / first:.1f}-fold to {STEP_S * found.spans[-1][1]:.1f} s and is not a fixed fraction of the distance "
        "driven: not only a sign, frame or unit error",
        *_foreign(table),
    ]
    return Finding(
        "stage mismatch",
        "the stages probably do not descend from the same tokenizer, so the tokens mean something else to the next stage.",
        True,
        tuple(evidence),
        "Run `iidrive evaluate TOKENIZER` and `iidrive evaluate WORLD` on the same split: at 0 s the world model must be close to the tokenizer's "
        "reconstruction mIoU; iidrive refuses stages of other parents. For weights from elsewhere, use both stages from the same author, "
        "or train stage 2 again.",
    )


def _leak(table: Table, found: Growth, on_val: bool) -> Finding:
    first, last, end = float(found.l2[0]), float(found.l2[-1]), STEP_S * found.spans[-1][1]
    evidence = [
        f"error {last:.2f} m at {end:.1f} s corresponds to {last / found.reach[-1]:.2f} m/s² of unforeseen acceleration (d = a t²/2); in real "
        "driving, even keeping the true speed of the first half second gives 0.53 m/s²",
        f"the error grows only {last / first:.1f}-fold from {STEP_S * found.spans[0][1]:.1f} s to {end:.1f} s; the uncertainty of the future grows "
        "faster than time (6-fold)"
        if first > 0
        else "the first step is exact",
    ]
    if _II_WORLD.search(f"{table.heading} {table.remark} {table.label}"):
        evidence.append("II-World's default mode gives the true future ego transform and future commands to the decoder, also at test time")
    else:
        evidence += _foreign(table)
    if not on_val:
        evidence.append("this is not nuScenes val: slow or simple driving could give the same numbers, so check the data first")
    return Finding(
        "leak",
        "the plan is closer to the future than its inputs allow.",
        True,
        tuple(evidence),
        "For a model of iidrive, run `iidrive audit RUN`: it replaces everything after the current keyframe and names what reaches the plan. For "
        "others, `iidrive audit PREDICTIONS.npz --cases CASES.npz` says whether the plans are plausible; then plan again with all future inputs "
        "withheld (poses, commands and features set to zero) and run `iidrive compare AS-IS.npz WITHHELD.npz --cases CASES.npz`: the plans must not "
        "change.",
    )


def _foreign(table: Table) -> list[str]:
    if _FOREIGN.search(f"{table.heading} {table.remark}"):
        return [f"the text around the table mentions weights from elsewhere: “{table.heading or table.remark}”"]
    return []
