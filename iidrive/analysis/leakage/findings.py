"""What an audit found: answers of one model on the real and on another future, compared bit for bit, and what that says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from iidrive.analysis.leakage import plausible
from iidrive.analysis.leakage.plausible import Plausibility
from iidrive.core.text import text_row

Array = np.ndarray
Answers = Mapping[str, Array]
"""What a model says of n samples: `plan` (n,6,2), the LIDAR_TOP path in the current lidar frame, metres, and/or `forecast` (n,H,X,Y,Z) labels,
and anything else that it gives out, each with the samples first."""


@dataclass(frozen=True)
class Leak:
    """One input that changed an answer it must not reach.

    `samples` of the `of` compared answers changed; `worth_m` is how much L2 (mean of six steps) the plan loses without it, NaN where there is
    no plan, no full future or the model failed; `voxels` is the share of forecast voxels that changed, NaN where there is no forecast.
    `declared` inputs are known to come from the future (an oracle command): measured, not accused.
    """

    input: str
    samples: int
    of: int
    worth_m: float = float("nan")
    voxels: float = float("nan")
    declared: bool = False
    note: str = ""


@dataclass(frozen=True)
class Audit:
    """All leaks of one model, the samples it was audited on, and its L2 there as it is (metres, NaN without plans).

    `score` judges the plans themselves beside kinematic planners; None without plans or a full future.
    """

    leaks: tuple[Leak, ...]
    samples: int
    l2_m: float
    score: Plausibility | None = None

    @property
    def clean(self) -> bool:
        """Whether nothing undeclared leaks."""
        return all(leak.declared for leak in self.leaks)

    @property
    def believable(self) -> bool:
        """Whether nothing leaks and the plans are not better than plans can be."""
        return self.clean and not (self.score and self.score.reasons)


def changed(before: Answers, after: Answers, tolerance: float = 0.0) -> Bool[Array, "n"]:
    """Which samples have another answer, bit for bit.

    With a `tolerance`, plans count that moved by more than so many metres, and labels of which more than 1 % changed; nothing else is compared.
    """
    out: Array | None = None
    for key, old in before.items():
        if tolerance and key not in ("plan", "forecast"):
            continue
        new = after[key]
        if tolerance == 0:
            different = _bits(old) != _bits(new)
            one = different.reshape(len(old), -1).any(1)
        elif np.issubdtype(old.dtype, np.floating):
            near = np.abs(old.astype(np.float64) - new) <= tolerance
            one = ~near.reshape(len(old), -1).all(1)
        else:
            one = (old != new).reshape(len(old), -1).mean(1) > 0.01
        out = np.asarray(one if out is None else out | one)
    assert out is not None, "a model that is audited must answer with a `plan` or a `forecast`"
    return out


def l2(plan: Float[Array, "n 6 2"], path: Float[Array, "n 6 2"]) -> Float[Array, "n"]:
    """Distance to the true path, mean of the six steps, metres."""
    return np.linalg.norm(plan.astype(np.float64) - path, axis=-1).mean(-1)


def worth(before: Answers, after: Answers, path: Float[Array, "n 6 2"], full: Bool[Array, "n"]) -> tuple[float, float]:
    """(L2 after minus before, mean over samples with a full future; share of forecast voxels that changed). NaN where it cannot be said."""
    metres = voxels = float("nan")
    if "plan" in before and full.any() and np.isfinite(after["plan"][full]).all():
        metres = float((l2(after["plan"], path) - l2(before["plan"], path))[full].mean())
    if "forecast" in before:
        voxels = float((before["forecast"] != after["forecast"]).mean())
    return metres, voxels


_WIDTHS = (42, 17, 14, 10)


def format_audit(audit: Audit) -> str:
    """A table of what leaks, and a last line that is the verdict."""
    head = f"audited {audit.samples} samples" + (f"; L2 on them {audit.l2_m:.4f} m" if np.isfinite(audit.l2_m) else "")
    lines = [head]
    if audit.score:
        lines.append(plausible.format_errors(audit.score))
    if audit.leaks:
        lines.append(text_row(["input", "answers changed", "worth in L2", "voxels"], _WIDTHS))
    for leak in audit.leaks:
        metres = f"{leak.worth_m:+.4f} m" if np.isfinite(leak.worth_m) else "-"
        voxels = f"{100 * leak.voxels:.2f} %" if np.isfinite(leak.voxels) else "-"
        lines.append(text_row([leak.input, f"{leak.samples} of {leak.of}", metres, voxels], _WIDTHS))
        if leak.note:
            lines.append(f"    {leak.note}")
    reasons = audit.score.reasons if audit.score else ()
    lines += [f"IMPLAUSIBLE: {reason}" for reason in reasons]
    accused = [leak.input for leak in audit.leaks if not leak.declared]
    if accused:
        lines.append(f"LEAK: the answers change with {_listed(accused)}. The score cannot be believed.")
    elif reasons:
        lines.append("no leak found, but the score cannot be believed: look below the source (docs/audit.md, What it cannot see).")
    else:
        lines.append("clean: nothing after the current keyframe, no other sample of a batch and no earlier call changes the answers.")
    return "\n".join(lines)


def to_json(audit: Audit) -> dict[str, object]:
    """Plain values; NaN as None."""
    leaks = [{k: None if isinstance(v, float) and np.isnan(v) else v for k, v in vars(leak).items()} for leak in audit.leaks]
    score = plausible.to_json(audit.score) if audit.score else None
    metres = None if np.isnan(audit.l2_m) else audit.l2_m
    return {"clean": audit.clean, "believable": audit.believable, "samples": audit.samples, "L2": metres, "leaks": leaks, "score": score}


def _bits(value: Array) -> Array:
    """The bytes of every number: NaN equals itself, and 0.0 does not equal -0.0."""
    value = np.ascontiguousarray(value)
    return value.reshape(len(value), -1).view(np.uint8)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
