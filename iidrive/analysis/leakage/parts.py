"""Leaks in subsets of the samples, which the mean over all samples hides.

A planner may have been trained on one of fifty test scenes, or may be given the truth at every other keyframe. Its error is then far smaller on that
subset than elsewhere. The subsets are: every scene; every other keyframe; the first keyframes of scenes, and the others. Errors are compared with
those of constant-motion drives of the same sample, and only in samples where constant motion is far off. Because many subsets are tested, the
thresholds are stricter than for the whole set; see `Rules`.

Shapes: n samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from iidrive.core.scene import FUTURE_STEPS, STEP_S

Array = np.ndarray

_LEAST_M = 0.05
"""Lower bound applied to errors before taking logarithms; ground truth is not more accurate than this."""


@dataclass(frozen=True)
class Rules:
    """When a subset counts as leaking. All conditions must hold.

    The error ratio of a sample is the plan's error at 3 s divided by that of the nearest constant-motion drive.

    Attributes:
        fewest: smallest number of samples with unsteady driving, inside and outside the subset.
        unsteady_m: driving is unsteady if the constant-motion drives, which know the true first half second, are off by more than this at 3 s.
        unforeseen_mps2: the subset's mean error d at 3 s must be below a t²/2 for this acceleration a.
        share: the subset's mean error must be below this fraction of the constant-motion error.
        contrast: the geometric mean of the error ratio must be smaller by this factor inside the subset than outside.
        spread: with `enough` other scenes, a scene's mean log ratio must be this many standard deviations below the median of the others. The
            standard deviation is estimated by the median absolute deviation.
        least_spread: lower bound of that standard deviation.
        enough: smallest number of other scenes for the `spread` test.
        alone: or, with any number of other scenes, every scene outside of a group must have an error ratio larger by this factor than every
            scene in it. The group may be a single scene.
    """

    fewest: int = 8
    unsteady_m: float = 1.0
    unforeseen_mps2: float = 0.1
    share: float = 0.3
    contrast: float = 3.0
    spread: float = 4.0
    least_spread: float = 0.3
    enough: int = 4
    alone: float = 4.0


@dataclass(frozen=True)
class Part:
    """A subset of the samples: its name, its number of samples with unsteady driving, and the mean errors at 3 s of the plan and of the nearest
    constant-motion drive, metres."""

    name: str
    samples: int
    error_m: float
    steady_m: float

    def sentence(self) -> str:
        """Why the plans of this subset are not believable."""
        return (
            f"{self.name}: error {self.error_m:.3f} m at {FUTURE_STEPS * STEP_S:.1f} s over {self.samples} samples with unsteady driving; constant "
            f"motion, which knows the true first half second, has {self.steady_m:.3f} m there. The other plans are far worse."
        )


def steady(path: Float[Array, "n 6 2"]) -> dict[str, Float[Array, "n 6"]]:
    """Errors (metres) at each step of two drives that know the true first half second: constant velocity, and constant speed and turn rate."""
    path = path.astype(np.float64)
    k = np.arange(1, FUTURE_STEPS + 1)
    straight = path[:, :1] * k[None, :, None]
    heading = np.arctan2(path[:, 0, 0], path[:, 0, 1])  # of the first step, from the lidar's y axis: half of the turn during it
    turn = 2 * np.where(np.linalg.norm(path[:, 0], axis=-1) > 0.1, heading, 0.0)
    angle = turn[:, None] * (k[None] - 0.5)
    hop = np.linalg.norm(path[:, 0], axis=-1)[:, None, None] * np.stack([np.sin(angle), np.cos(angle)], -1)
    found = {"true first velocity kept": straight, "true first speed and turn kept": np.cumsum(hop, 1)}
    return {name: np.linalg.norm(drive - path, axis=-1) for name, drive in found.items()}


def nearest_steady(path: Float[Array, "n 6 2"]) -> Float[Array, "n"]:
    """Per sample, the smaller error at 3 s of the two constant-motion drives of `steady`, metres."""
    return np.min([drive[:, -1] for drive in steady(path).values()], axis=0)


def known_parts(
    error_m: Float[Array, "n"], steady_m: Float[Array, "n"], scene: Sequence[str] | None = None, rules: Rules | None = None
) -> tuple[Part, ...]:
    """Subsets whose plans know the future.

    `error_m` and `steady_m`: per-sample errors at 3 s of the plan and of the nearest constant-motion drive; NaN if unknown. `scene`: scene name of
    each sample; samples of a scene must be in the order of time. Without `scene` only every other sample is tested.
    """
    rules = rules or Rules()
    evident = np.isfinite(error_m) & np.isfinite(steady_m) & (np.nan_to_num(steady_m) > rules.unsteady_m)
    ratio = np.log(np.maximum(np.nan_to_num(error_m), _LEAST_M) / np.maximum(np.nan_to_num(steady_m), _LEAST_M))
    found = []
    for name, member in _halves(ratio, evident, scene):
        if _near(error_m, steady_m, member & evident, ~member & evident, ratio, rules):
            found.append(_part(name, member & evident, error_m, steady_m))
    if scene is not None and not found:
        found += _scenes(error_m, steady_m, np.array(scene), evident, ratio, rules)
    return tuple(found)


def _near(error_m: Array, steady_m: Array, inside: Array, outside: Array, ratio: Array, rules: Rules) -> bool:
    """Whether the error inside a subset is implausibly small, and far smaller than outside."""
    if inside.sum() < rules.fewest or outside.sum() < rules.fewest:
        return False
    mean, steady = error_m[inside].mean(), steady_m[inside].mean()
    by_itself = 2 * mean / (FUTURE_STEPS * STEP_S) ** 2 < rules.unforeseen_mps2 and mean < rules.share * steady
    return bool(by_itself and ratio[outside].mean() - ratio[inside].mean() > np.log(rules.contrast))


def _scenes(error_m: Array, steady_m: Array, scene: Array, evident: Array, ratio: Array, rules: Rules) -> list[Part]:
    members = [(name, (scene == name) & evident) for name in dict.fromkeys(scene.tolist())]
    judged = [(name, member) for name, member in members if member.sum() >= rules.fewest]
    level = np.array([ratio[member].mean() for _, member in judged])
    low = _below_gap(level, rules)
    below = np.any([judged[k][1] for k in low], axis=0) if low else np.zeros(len(ratio), bool)
    found = []
    for k, (name, member) in enumerate(judged):
        if not _near(error_m, steady_m, member, evident & ~member & ~below, ratio, rules):
            continue
        others = np.delete(level, k)
        if len(others) >= rules.enough:
            middle = np.median(others)
            far = middle - level[k] > rules.spread * max(1.4826 * np.median(abs(others - middle)), rules.least_spread)
        else:
            far = False
        if far or k in low:
            found.append(_part(f"scene {name}", member, error_m, steady_m))
    return found


def _below_gap(level: Array, rules: Rules) -> set[int]:
    """The scenes below the widest gap between the sorted levels, if it is wider than `alone`. Of several that leak, none stands out alone."""
    order = np.argsort(level)
    gaps = np.diff(level[order])
    if not len(gaps) or gaps.max() <= np.log(rules.alone):
        return set()
    return set(order[: int(gaps.argmax()) + 1].tolist())


def _part(name: str, member: Array, error_m: Array, steady_m: Array) -> Part:
    return Part(name, int(member.sum()), float(error_m[member].mean()), float(steady_m[member].mean()))


def _halves(ratio: Float[Array, "n"], evident: Bool[Array, "n"], scene: Sequence[str] | None) -> list[tuple[str, Bool[Array, "n"]]]:
    """Subsets that cut across scenes. Neighbouring keyframes are similar, so a large difference between two halves is not by chance."""
    names = np.zeros(len(ratio), int) if scene is None else np.unique(np.array(scene), return_inverse=True)[1]
    place = _places(names)
    odd = place % 2 == 1
    nearer = np.zeros(len(ratio), bool)
    for name in range(names.max(initial=-1) + 1):
        halves = [(names == name) & (odd == one) for one in (False, True)]
        known = [half & evident for half in halves]
        if all(half.any() for half in known):
            nearer |= halves[int(ratio[known[1]].mean() < ratio[known[0]].mean())]
    parts = [("every other keyframe of each scene" if scene is not None else "every other sample", nearer)]
    if scene is not None:
        parts += [("the first four keyframes of scenes", place < 4), ("all but the first four keyframes of scenes", place >= 4)]
    return parts


def _places(names: Int[Array, "n"]) -> Int[Array, "n"]:
    """The index of every sample within its scene, in the given order."""
    place, seen = np.zeros(len(names), int), dict[int, int]()
    for row, name in enumerate(names.tolist()):
        place[row] = seen.get(name, 0)
        seen[name] = place[row] + 1
    return place
