"""Whether planned paths are implausibly good, judged from predictions and ground truth, without the model.

Future accelerations are not known: an unforeseen acceleration a moves a car by d = a t²/2 in t seconds. The plans are compared with two
constant-motion drives, which are given the true position after the first half second. The ground truth has noise, and a plan that does not know the
truth cannot have a smaller error than this noise.
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
"""A plan whose error at 3 s is below this fraction of the best constant-motion error is implausible."""
EVIDENT_M = 0.5
"""If the best constant-motion error at 3 s is below this, driving is so steady that a small error is no evidence."""
FEWEST = 8
"""With fewer samples than this the mean error is not judged, because a good planner can be right by chance."""


@dataclass(frozen=True)
class Plausibility:
    """Mean errors at each step (metres) of the plans (`l2`) and of the baselines, and the reasons why the plans are implausible (empty: none).

    `noise_m`: noise of the ground truth. `luck_m`: twice the standard error of the plans' mean error at 3 s.
    """

    samples: int
    l2: Float[Array, "6"]
    baselines: Mapping[str, Float[Array, "6"]]
    noise_m: float
    luck_m: float
    reasons: tuple[str, ...]


def truth_noise(path: Float[Array, "n 6 2"]) -> float:
    """Noise of the true positions, metres. Third differences of a smooth path are small, while those of noise are sqrt(20) times the noise."""
    third = np.diff(np.concatenate([np.zeros((len(path), 1, 2)), path.astype(np.float64)], 1), n=3, axis=1)
    return float(np.median(np.linalg.norm(third, axis=-1)) / np.sqrt(20 * 2 * np.log(2)))


def plausible(cases: Cases, plan: Float[Array, "n 6 2"], baselines: Mapping[str, Float[Array, "n 6 2"]] | None = None) -> Plausibility:
    """Judge planned paths in the order of the cases (see `predictions.align`). `baselines` are paths of kinematic planners by name.

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
    reasons = [f"{exact} of {int(moving.sum())} plans that move equal the true path within 0.1 mm: they were not planned."]
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
            f"error {last:.3f} m at {seconds:.1f} s corresponds to {unforeseen:.3f} m/s² of unforeseen acceleration (d = a t²/2; below "
            f"{LEAK_ACCELERATION} is implausible); the best baseline ({name}) has {best:.3f} m. Two standard errors are {luck:.3f} m."
        )
    if best > EVIDENT_M and last + luck < noise:
        out.append(f"error {last:.3f} m at {seconds:.1f} s is less than the noise of the ground truth, about {noise:.3f} m.")
    return out


def format_plausibility(found: Plausibility) -> str:
    """The errors at each step and the verdict, as text."""
    lines = [format_errors(found), *(f"IMPLAUSIBLE: {reason}" for reason in found.reasons)]
    if not found.reasons:
        few = f" (Fewer than {FEWEST} plans are too few to judge by their mean error.)" if found.samples < FEWEST else ""
        lines.append(f"plausible: no sign that the {found.samples} plans know the future.{few} This is not a proof; audit the model.")
    return "\n".join(lines)


def format_errors(found: Plausibility) -> str:
    """A table of the errors at each step of the plans and the baselines."""
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
