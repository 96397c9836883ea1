"""Do plans know the future in some samples only? The mean over all of them hides it.

A planner may have trained on one of fifty test scenes, or be handed the truth at every other keyframe. Its error is then far smaller in that part
than in the rest. Parts are looked at one by one: every scene; every other sample; the first keyframes of scenes, and the rest. Errors are taken
beside those of a steady drive of the same sample, and only where driving is not steady. The rules are stricter than for the whole set, since many
parts are looked at: see `Rules`.

Shapes: n samples, p parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from iidrive.core.scene import FUTURE_STEPS, STEP_S

Array = np.ndarray

_LEAST_M = 0.05
"""Errors below this are taken for it: nobody measures truth better."""


@dataclass(frozen=True)
class Rules:
    """When a part is said to know the future; all must hold.

    Attributes:
        fewest: samples of the part in which driving is not steady; and of the rest.
        unsteady_m: how far a steady drive, which knows the true first half second, must be off at 3 s in such a sample.
        unforeseen_mps2: the acceleration that the part's error leaves unforeseen (d = a t²/2).
        share: of the steady drive's error that the part's error is less than.
        contrast: so many times nearer to the truth than the plans of the rest, by the mean of logarithms.
        spread: so many standard deviations (from the median absolute one, at least `least_spread`) below the median of all other scenes, where there
            are `enough`.
        enough: other scenes from which a spread can be told; of fewer, every one must be farther off by `alone` times.
        alone: see there.
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
    """Samples that belong together: what they are, how many of them are unsteady, their mean error at 3 s and that of a steady drive, metres."""

    name: str
    samples: int
    error_m: float
    steady_m: float

    def sentence(self) -> str:
        """Why this part cannot be believed."""
        return (
            f"{self.name}: {self.error_m:.3f} m off at {FUTURE_STEPS * STEP_S:.1f} s over {self.samples} samples in which driving is not steady; "
            f"a steady drive that knows the true first half second is {self.steady_m:.3f} m off there. The other plans are not nearly as good."
        )


def steady(path: Float[Array, "n 6 2"]) -> dict[str, Float[Array, "n 6"]]:
    """Error of each sample at each step of drives that keep the true first half second's velocity, or its speed along its turn."""
    path = path.astype(np.float64)
    k = np.arange(1, FUTURE_STEPS + 1)
    straight = path[:, :1] * k[None, :, None]
    heading = np.arctan2(path[:, 0, 0], path[:, 0, 1])  # of the first hop, away from the lidar's y: half of the turn in it
    turn = 2 * np.where(np.linalg.norm(path[:, 0], axis=-1) > 0.1, heading, 0.0)
    angle = turn[:, None] * (k[None] - 0.5)
    hop = np.linalg.norm(path[:, 0], axis=-1)[:, None, None] * np.stack([np.sin(angle), np.cos(angle)], -1)
    found = {"true first velocity kept": straight, "true first speed and turn kept": np.cumsum(hop, 1)}
    return {name: np.linalg.norm(drive - path, axis=-1) for name, drive in found.items()}


def nearest_steady(path: Float[Array, "n 6 2"]) -> Float[Array, "n"]:
    """The error at 3 s of the nearer one of these drives, sample by sample."""
    return np.min([drive[:, -1] for drive in steady(path).values()], axis=0)


def known_parts(
    error_m: Float[Array, "n"], steady_m: Float[Array, "n"], scene: Sequence[str] | None = None, rules: Rules | None = None
) -> tuple[Part, ...]:
    """Parts whose plans know the future.

    `error_m` and `steady_m` are errors at 3 s of the plan and of the nearest steady drive, sample by sample; NaN where there is none. `scene`
    names each sample's scene; samples of a scene stand in the order of time. Without it only every other sample is looked at.
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
    """Whether a part is too near to the truth by itself, and far nearer than the rest."""
    if inside.sum() < rules.fewest or outside.sum() < rules.fewest:
        return False
    mean, steady = error_m[inside].mean(), steady_m[inside].mean()
    by_itself = 2 * mean / (FUTURE_STEPS * STEP_S) ** 2 < rules.unforeseen_mps2 and mean < rules.share * steady
    return bool(by_itself and ratio[outside].mean() - ratio[inside].mean() > np.log(rules.contrast))


def _scenes(error_m: Array, steady_m: Array, scene: Array, evident: Array, ratio: Array, rules: Rules) -> list[Part]:
    members = [(name, (scene == name) & evident) for name in dict.fromkeys(scene.tolist())]
    judged = [(name, member) for name, member in members if member.sum() >= rules.fewest]
    level = np.array([ratio[member].mean() for _, member in judged])
    found = []
    for k, (name, member) in enumerate(judged):
        if not _near(error_m, steady_m, member, evident & ~member, ratio, rules):
            continue
        others = np.delete(level, k)
        if len(others) >= rules.enough:
            middle = np.median(others)
            far = middle - level[k] > rules.spread * max(1.4826 * np.median(abs(others - middle)), rules.least_spread)
        else:
            far = len(others) > 0 and others.min() - level[k] > np.log(rules.alone)
        if far:
            found.append(_part(f"scene {name}", member, error_m, steady_m))
    return found


def _part(name: str, member: Array, error_m: Array, steady_m: Array) -> Part:
    return Part(name, int(member.sum()), float(error_m[member].mean()), float(steady_m[member].mean()))


def _halves(ratio: Float[Array, "n"], evident: Bool[Array, "n"], scene: Sequence[str] | None) -> list[tuple[str, Bool[Array, "n"]]]:
    """Parts that cut through scenes. Neighbouring keyframes are much the same, so chance never makes one half far nearer than the other."""
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
    """The number of every sample within its scene, in the order given."""
    place, seen = np.zeros(len(names), int), dict[int, int]()
    for row, name in enumerate(names.tolist()):
        place[row] = seen.get(name, 0)
        seen[name] = place[row] + 1
    return place
