"""Can planned paths be this good? Asked of predictions and truth alone, without the model.

How far a car will have departed from a steady drive by then cannot be known now: at t seconds a departure by an unforeseen acceleration a is
d = a t²/2. Two steady drives are compared, both of which know what no planner does: the true position after the first half second. The truth
itself is measured with noise: nobody who does not know it comes nearer than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from iidrive.analysis.doctor.findings.growth import LEAK_ACCELERATION
from iidrive.analysis.leakage.parts import known_parts, nearest_steady, steady
from iidrive.core.errors import DataError
from iidrive.core.scene import FUTURE_STEPS, STEP_S
from iidrive.core.text import text_row
from iidrive.scoring.cases import Cases

Array = np.ndarray

SHARE = 0.5
"""A plan that leaves less than this share of the best steady drive's error at 3 s knows more than the past."""
EVIDENT_M = 0.5
"""Where the best steady drive is nearer than this at 3 s, driving was so steady that a small error says nothing."""
FEWEST = 8
"""Fewer samples than this are not judged by their mean error: a good planner is right by luck on a few."""


@dataclass(frozen=True)
class Plausibility:
    """Mean error at each step (metres) of a plan and of kinematic baselines, and the reasons why it cannot be (none: it can).

    `luck_m` is twice the standard error of the plan's error at 3 s.
    """

    samples: int
    l2: Float[Array, "6"]
    baselines: Mapping[str, Float[Array, "6"]]
    noise_m: float
    luck_m: float
    reasons: tuple[str, ...]


def truth_noise(path: Float[Array, "n 6 2"]) -> float:
    """Noise of the true positions, metres: third differences of a smooth drive are small, of noise they are sqrt(20) times the noise."""
    third = np.diff(np.concatenate([np.zeros((len(path), 1, 2)), path.astype(np.float64)], 1), n=3, axis=1)
    return float(np.median(np.linalg.norm(third, axis=-1)) / np.sqrt(20 * 2 * np.log(2)))


def plausible(cases: Cases, plan: Float[Array, "n 6 2"], baselines: Mapping[str, Float[Array, "n 6 2"]] | None = None) -> Plausibility:
    """Judge planned paths, in the order of the cases (see `predictions.align`). `baselines` are kinematic planners' paths, if there are any.

    Raises:
        DataError: if no sample has a full future.
    """
    full: Bool[Array, "n"] = cases.full
    if not full.any():
        raise DataError(f"{cases.where}: no sample has {FUTURE_STEPS} future keyframes, so there is nothing to judge.")
    path = cases.true_path()[full].astype(np.float64)
    distance = np.linalg.norm(plan[full] - path, axis=-1)
    steps = distance.mean(0)
    drives = steady(path)
    others = {
        **{k: v.mean(0) for k, v in drives.items()},
        **{k: np.linalg.norm(v[full] - path, axis=-1).mean(0) for k, v in (baselines or {}).items()},
    }
    noise = min(truth_noise(path), 0.1)
    moving = np.linalg.norm(path[:, -1], axis=-1) > EVIDENT_M
    exact = int(((distance.max(1) < 1e-4) & moving).sum())
    luck = float(2 * distance[:, -1].std(ddof=1) / np.sqrt(len(distance))) if len(distance) > 1 else float("inf")
    reasons = [f"{exact} of {int(moving.sum())} plans that drive are the true path to a tenth of a millimetre: they were not planned."]
    reasons = reasons if exact > 0.01 * moving.sum() else []
    if len(distance) >= FEWEST:
        reasons += _too_near(steps, others, noise, luck)
    if not reasons:
        errors, nearest = np.full((2, len(full)), np.nan)
        errors[full], nearest[full] = distance[:, -1], nearest_steady(path)
        reasons += [f"known in part: {part.sentence()}" for part in known_parts(errors, nearest, cases.scene)]
    return Plausibility(len(distance), steps, others, noise, luck, tuple(reasons))


def _too_near(steps: Array, others: Mapping[str, Array], noise: float, luck: float) -> list[str]:
    name, best = min(((k, v[-1]) for k, v in others.items()), key=lambda item: item[1])
    last, seconds = float(steps[-1]), FUTURE_STEPS * STEP_S
    unforeseen = 2 * last / seconds**2
    out = []
    if best > EVIDENT_M and last + luck < SHARE * best and 2 * (last + luck) / seconds**2 < LEAK_ACCELERATION:
        out.append(
            f"{last:.3f} m off at {seconds:.1f} s leaves {unforeseen:.3f} m/s² unforeseen (d = a t²/2; below {LEAK_ACCELERATION} is not "
            f"believed); the best steady drive ({name}) is {best:.3f} m off, though it may know the first half second. Luck is {luck:.3f} m."
        )
    if best > EVIDENT_M and last + luck < noise:
        out.append(f"{last:.3f} m off at {seconds:.1f} s is less than the truth's own noise, about {noise:.3f} m.")
    return out


def format_plausibility(found: Plausibility) -> str:
    """The errors at each step, and whether they can be."""
    lines = [format_errors(found), *(f"IMPLAUSIBLE: {reason}" for reason in found.reasons)]
    if not found.reasons:
        few = f" (They are fewer than {FEWEST}, too few to judge by their mean error.)" if found.samples < FEWEST else ""
        lines.append(
            f"plausible: nothing in the {found.samples} plans says that they know the future.{few} That is no proof; audit the model."
        )
    return "\n".join(lines)


def format_errors(found: Plausibility) -> str:
    """The errors at each step beside those of the baselines."""
    width = max(len(name) for name in (*found.baselines, "these plans")) + 2
    widths = (width, *(10 for _ in range(FUTURE_STEPS)))
    lines = [text_row(["error at each step, metres", *(f"{(k + 1) * STEP_S:.1f}s" for k in range(FUTURE_STEPS))], widths)]
    for name, steps in {"these plans": found.l2, **found.baselines}.items():
        lines.append(text_row([name, *(f"{value:.4f}" for value in steps)], widths))
    return "\n".join(lines)


def to_json(found: Plausibility) -> dict[str, object]:
    """Plain values."""
    baselines = {k: v.tolist() for k, v in found.baselines.items()}
    return {
        "plausible": not found.reasons,
        "samples": found.samples,
        "L2_per_step": found.l2.tolist(),
        "baselines": baselines,
        "noise_m": found.noise_m,
        "luck_m": found.luck_m if np.isfinite(found.luck_m) else None,
        "reasons": list(found.reasons),
    }
