"""Results of an audit: a model's outputs on the real and on a changed future, compared bit for bit."""

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
"""Outputs of a model for n samples: `plan` (n,6,2), the LIDAR_TOP path in the current lidar frame, metres, and/or `forecast` (n,H,X,Y,Z) labels.
Other outputs may be added; their first axis must be the samples."""


@dataclass(frozen=True)
class Leak:
    """An input that changed outputs it must not affect.

    `samples` of the `of` compared outputs changed. `worth_m`: increase of L2 (mean of six steps, metres) without the input; NaN if there is no plan
    or full future, or if the model failed. `voxels`: fraction of forecast voxels that changed; NaN without a forecast. `declared`: the input is known
    to come from the future (an oracle command); it is measured and does not count as a leak.
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
    """All leaks of one model, the number of audited samples, and the unchanged model's L2 on them (metres; NaN without plans).

    `score` compares the plans with kinematic planners; None without plans or a full future.
    """

    leaks: tuple[Leak, ...]
    samples: int
    l2_m: float
    score: Plausibility | None = None

    @property
    def clean(self) -> bool:
        """Whether there are no undeclared leaks."""
        return all(leak.declared for leak in self.leaks)

    @property
    def believable(self) -> bool:
        """Whether there are no undeclared leaks and the plans are plausible."""
        return self.clean and not (self.score and self.score.reasons)


def changed(before: Answers, after: Answers, tolerance: float = 0.0) -> Bool[Array, "n"]:
    """Whether any output of each sample differs, bit for bit.

    With a `tolerance` (metres), a plan counts as changed if it moved farther, and a forecast if more than 1 % of its labels changed. Other outputs
    are not compared.
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
    """(Mean L2 after minus before over samples with a full future, metres; fraction of forecast voxels that changed). NaN if unknown."""
    metres = voxels = float("nan")
    if "plan" in before and full.any() and np.isfinite(after["plan"][full]).all():
        metres = float((l2(after["plan"], path) - l2(before["plan"], path))[full].mean())
    if "forecast" in before:
        voxels = float((before["forecast"] != after["forecast"]).mean())
    return metres, voxels


_WIDTHS = (42, 17, 14, 10)


def format_audit(audit: Audit) -> str:
    """The leaks as a table; the last line is the verdict."""
    head = f"audited {audit.samples} samples" + (f"; L2 on them {audit.l2_m:.4f} m" if np.isfinite(audit.l2_m) else "")
    lines = [head]
    if audit.score:
        lines.append(plausible.format_errors(audit.score))
    if audit.leaks:
        lines.append(text_row(["input", "outputs changed", "worth in L2", "voxels"], _WIDTHS))
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
        lines.append(f"LEAK: the outputs change with {_listed(accused)}. The score cannot be trusted.")
    elif reasons:
        lines.append("no leak found, but the score is implausible: check the data below the source (docs/audit.md, What it cannot see).")
    else:
        lines.append("clean: no later keyframe, no box, no map, no other sample of the batch and no earlier call changes the outputs.")
    return "\n".join(lines)


def to_json(audit: Audit) -> dict[str, object]:
    """Plain values; NaN as None."""
    leaks = [{k: None if isinstance(v, float) and np.isnan(v) else v for k, v in vars(leak).items()} for leak in audit.leaks]
    score = plausible.to_json(audit.score) if audit.score else None
    metres = None if np.isnan(audit.l2_m) else audit.l2_m
    return {"clean": audit.clean, "believable": audit.believable, "samples": audit.samples, "L2": metres, "leaks": leaks, "score": score}


def _bits(value: Array) -> Array:
    """The bytes of every value, so that NaN equals NaN and 0.0 differs from -0.0."""
    value = np.ascontiguousarray(value)
    return value.reshape(len(value), -1).view(np.uint8)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
