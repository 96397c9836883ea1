"""The cause of a bad forecast in a swap: the tokenizer's quality, a mismatch of two stages, or stage 2.

The three causes differ along the horizon. A poor tokenizer already decodes the current frame poorly. A mismatch leaves the current frame unaffected
(tokens and decoder match) and costs from the first predicted step on, because the tokens mean something else to the world model. A poor world model
starts equally well and degrades with the horizon.

A world model that adds a residual to the warped current frame keeps much of the tokenizer's quality. With little training a mismatch costs it little.
"""

from __future__ import annotations

from collections.abc import Sequence

NEAR = 0.9
"""An mIoU of at least this fraction of another counts as equally good. Another training seed changes it by a few percent."""

LOST = 0.5
"""The first step counts as lost if it keeps less than this fraction of what the matched pair keeps."""

WEAK = 0.05
"""If the matched pair's mIoU is below this, no cause can be determined."""


def kept(miou: Sequence[float]) -> float:
    """mIoU at the first predicted step divided by mIoU at 0 s."""
    return miou[1] / miou[0] if miou[0] > 0 else 0.0


def mismatched_pair(found: Sequence[float], own: Sequence[float] | None) -> str:
    """Diagnosis of a world model with another tokenizer (mIoU 0..1 at 0 s, the first step, …), compared with its own tokenizer."""
    if own is None:
        return "mismatch; its own tokenizer is not among these, so the cost of the mismatch is unknown."
    if own[1] < WEAK:
        return f"mismatch; with its own tokenizer the first step has only {_percent(own[1])} mIoU, too, so no cost can be measured."
    now = f"the current frame is decoded at {_percent(found[0])} mIoU (its own tokenizer: {_percent(own[0])})"
    step = f"the first predicted step keeps {_percent(kept(found))} of that (its own: {_percent(kept(own))})"
    poor, lost = found[0] < NEAR * own[0], kept(found) < LOST * kept(own)
    if lost and poor:
        return f"mismatch, and a poorer tokenizer: {now}, {step}."
    if lost:
        return f"mismatch, not the tokenizer's quality: {now}, but {step}: the error begins at the first step."
    if poor:
        return f"the tokenizer's quality more than the mismatch: {now}, {step}."
    if kept(found) < NEAR * kept(own):
        return (
            f"mismatch, at a cost: {now}, but {step}; a world model that adds a change to the warped current frame loses only the change."
        )
    return f"mismatch without visible cost: {now}, {step}; this world model may depend little on its tokens, but do not rely on it."


def matched_pair(found: Sequence[float], best: Sequence[float]) -> str:
    """Diagnosis of a world model with its own tokenizer, compared with the best such pair (highest mIoU at the last step)."""
    ends = f"{_percent(found[0])} at 0 s and {_percent(found[-1])} at the end, the best pair {_percent(best[0])} and {_percent(best[-1])}"
    if found[-1] >= NEAR * best[-1]:
        return f"matched, and as good as the best pair: {ends}."
    if found[0] < NEAR * best[0]:
        return f"matched; the tokenizer is worse, already at 0 s: {ends}."
    return f"matched; the current frame is decoded equally well, and the gap grows with the horizon, so stage 2 is worse: {ends}."


def tokenizers(first: float, second: float, equal: float, chance: float, information: float) -> str:
    """Comparison of two tokenizers: reconstruction mIoU of both, fraction of equal codes, chance level, shared information; all 0..1."""
    good = min(first, second) >= NEAR * max(first, second)
    quality = f"reconstruct {_percent(first)} and {_percent(second)}: " + (
        "equally good" if good else "one tokenizer is better, independently of stage 2"
    )
    codes = (
        f"{_percent(equal)} of their codes are equal (chance: {_percent(chance)}), {_percent(information)} of their information is shared"
    )
    if equal - chance > 0.5 * (1 - chance):
        return f"{quality}; {codes}: largely the same codes."
    return f"{quality}; {codes}: the same code does not mean the same in both."


def swapped_chain(found: tuple[float, int], own: tuple[float, int] | None, as_good: bool) -> str:
    """Diagnosis of a planner with another tokenizer or world model, from average L2 (metres) and collision events (-1 without obstacles).

    `own` are those of its own stages, `as_good`: the other tokenizer is as good as its own.
    """
    if own is None:
        return f"L2 {found[0]:.2f} m with other stages than its own, which are not among these."
    cause = "no visible cost in L2"
    if found[0] > own[0] / NEAR:
        cause = (
            "the mismatch, as that tokenizer is as good as its own"
            if as_good
            else "the mismatch or that tokenizer's quality, which is lower"
        )
    met = "" if min(found[1], own[1]) < 0 else f"; {found[1]} collision events, {own[1]} with its own"
    return f"L2 {found[0]:.2f} m, {own[0]:.2f} m with its own stages: {cause}{met}."


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
