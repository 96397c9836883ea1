"""Disturbances of the ego in training scenes: it swerves or slows down for no reason, and the expert's recovery is the training target.

A planner that was trained only on undisturbed driving does not learn to recover. In closed loop its small errors add up, and once it stands
still it stays there. So the target in a disturbed scene is not what the disturbed ego did next but what the expert driver would do without
further disturbance, as in DART (Laskey et al. 2017, arXiv 1703.09327).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from iidrive.data.town.route import STEP_M, Route, smooth

Array = np.ndarray

ASIDE_M = (0.3, 1.2)
"""Range of the lateral displacement of a swerve, to either side, metres."""

OUT_M, BACK_M = 10.0, 20.0
"""Distance over which the ego swerves, and distance over which its driver brings it back, metres."""

EVERY_M = (35.0, 60.0)

LASTS_S, PAUSE_S = (2.0, 7.0), (4.0, 9.0)
"""Ranges of the duration of a lapse and of the pause before the next one, seconds."""

BRAKES_MPS2 = (1.5, 4.0)
STANDS = 0.6
"""Fraction of lapses in which the ego stops. In the others it crawls."""

CRAWLS_MPS = (0.5, 4.0)


@dataclass(frozen=True)
class Lapse:
    """A lapse: from `begin_s` to `end_s` after the start of the simulation, the ego brakes with `brake_mps2` to at most `speed_mps`."""

    begin_s: float
    end_s: float
    speed_mps: float
    brake_mps2: float

    def limit_mps2(self, time_s: float, speed_mps: float) -> float:
        """Maximum acceleration of the ego at this time and speed, m/s²; infinite outside the lapse."""
        if not self.begin_s <= time_s < self.end_s:
            return np.inf
        return max((self.speed_mps - speed_mps) / 0.5, -self.brake_mps2)


def swerving(rng: np.random.Generator, route: Route) -> Float[Array, "n"]:
    """Random swerves: lateral displacement at each sample of a route, metres to the right."""
    along = np.arange(len(route.points)) * STEP_M
    right = np.zeros(len(along))
    at = rng.uniform(0.0, EVERY_M[0])
    while at < along[-1]:
        aside = rng.uniform(*ASIDE_M) * rng.choice([-1.0, 1.0])
        right += aside * smooth((along - at) / OUT_M) * smooth((at + OUT_M + BACK_M - along) / BACK_M)
        at += rng.uniform(*EVERY_M)
    return right


def lapsing(rng: np.random.Generator, seconds: float) -> tuple[Lapse, ...]:
    """Random lapses within `seconds` of simulation."""
    lapses: list[Lapse] = []
    at = rng.uniform(0.0, PAUSE_S[1])
    while at < seconds:
        end = at + rng.uniform(*LASTS_S)
        speed = 0.0 if rng.random() < STANDS else rng.uniform(*CRAWLS_MPS)
        lapses.append(Lapse(at, end, speed, rng.uniform(*BRAKES_MPS2)))
        at = end + rng.uniform(*PAUSE_S)
    return tuple(lapses)


def way_back(right_m: Float[Array, "n"], at: int) -> Float[Array, "n"]:
    """Recovery from a swerve: lateral displacement if the ego returns to its route from sample `at` on, metres to the right."""
    gone = (np.arange(len(right_m)) - at) * STEP_M
    return np.where(gone > 0, right_m[at] * smooth(1 - gone / BACK_M), right_m)
