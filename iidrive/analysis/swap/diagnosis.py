"""Sentences about a swap: is a bad forecast the tokenizer's quality, a mismatch of two stages, or stage 2 itself?

The three leave different traces along the horizon. A poor tokenizer decodes the present poorly, and the gap goes on from there. A mismatch leaves
the present as it is (tokens and decoder belong together); what it costs, it costs from the first imagined step on, which the world model makes
of tokens that mean something else to it. A poor world model starts as well and falls behind on the way.

A world model that adds its own change to the warped present carries on what the tokenizer gave it: with little training there is little to lose.
"""

from __future__ import annotations

from collections.abc import Sequence

NEAR = 0.9
"""At least this share of another mIoU counts as equally good: training the same tokenizer from another seed moves it by a few percent."""

LOST = 0.5
"""A first step that keeps less than this share of what the matched pair keeps is lost."""

WEAK = 0.05
"""Below this mIoU of the matched pair nothing can be told."""


def kept(miou: Sequence[float]) -> float:
    """Share of the present's mIoU that the first imagined step keeps."""
    return miou[1] / miou[0] if miou[0] > 0 else 0.0


def mismatched_pair(found: Sequence[float], own: Sequence[float] | None) -> str:
    """About a world model on another tokenizer (mIoU 0..1 at 0 s, the first step, …) beside the same world model on its own tokenizer."""
    if own is None:
        return "mismatch; its own tokenizer is not among these, so how much that costs cannot be said."
    if own[1] < WEAK:
        return f"mismatch; on its own tokenizer too the first step has only {_percent(own[1])} mIoU, so there is nothing to lose."
    now = f"the present is decoded at {_percent(found[0])} (its own tokenizer: {_percent(own[0])})"
    step = f"the first imagined step keeps {_percent(kept(found))} of that (its own: {_percent(kept(own))})"
    poor, lost = found[0] < NEAR * own[0], kept(found) < LOST * kept(own)
    if lost and poor:
        return f"mismatch, and a poorer tokenizer besides: {now}, {step}."
    if lost:
        return f"mismatch, not the tokenizer's quality: {now}, but {step}: the error is there from the first step on."
    if poor:
        return f"the tokenizer's quality more than the mismatch: {now}, {step}."
    return (
        f"mismatch, without visible harm: {now}, {step}; what this world model does may hang little on its tokens, but do not rely on it."
    )


def matched_pair(found: Sequence[float], best: Sequence[float]) -> str:
    """About a world model on its own tokenizer beside the best such pair (the highest mIoU at the last step)."""
    ends = f"{_percent(found[0])} now and {_percent(found[-1])} at the end, the best pair {_percent(best[0])} and {_percent(best[-1])}"
    if found[-1] >= NEAR * best[-1]:
        return f"belongs together, and is as good as the best: {ends}."
    if found[0] < NEAR * best[0]:
        return f"belongs together; what it lacks is the tokenizer's quality, already at 0 s: {ends}."
    return f"belongs together, and the present is decoded as well; what it lacks grows on the way and is stage 2's: {ends}."


def tokenizers(first: float, second: float, equal: float, chance: float, information: float) -> str:
    """About two tokenizers: reconstruction mIoU, shares of equal codes, shared information, all 0..1."""
    good = min(first, second) >= NEAR * max(first, second)
    quality = f"reconstruct {_percent(first)} and {_percent(second)}: " + (
        "equally good, however each was trained" if good else "one is the better tokenizer, whatever stage 2 does with it"
    )
    codes = (
        f"{_percent(equal)} of their codes are equal (chance: {_percent(chance)}), {_percent(information)} of their information is shared"
    )
    if equal - chance > 0.5 * (1 - chance):
        return f"{quality}; {codes}: largely the same codes."
    return f"{quality}; {codes}: the same code does not mean the same in both."


def swapped_chain(found_m: float, own_m: float | None, as_good: bool) -> str:
    """About a planner on another chain than its own: average L2, metres; `as_good` says whether the other tokenizer is as good as its own."""
    if own_m is None:
        return f"L2 {found_m:.2f} m on a chain that is not its own, which is not among these."
    if found_m <= own_m / NEAR:
        return f"L2 {found_m:.2f} m, {own_m:.2f} m on its own chain: no visible harm."
    cause = (
        "the mismatch, as that tokenizer is as good as its own" if as_good else "the mismatch or that tokenizer's quality, which is lower"
    )
    return f"L2 {found_m:.2f} m, {own_m:.2f} m on its own chain: {cause}."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
