"""An ego that is disturbed: it strays aside or slows down for no reason, and at every moment it is known how its driver would go on.

A planner that has only seen an ego in the middle of its lane, at the speed that its driver chose, knows no way back from anywhere else. In
closed loop every small error then takes it further away, and once it stands it stays. What is taught in a disturbed scene is not what the
disturbed ego did next but what its driver would do if nothing disturbed him from now on, as in DART (Laskey et al. 2017, arXiv 1703.09327).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from iidrive.data.town.route import STEP_M, Route, smooth

Array = np.ndarray

ASIDE_M = (0.3, 1.2)
"""How far to either side a swerve goes."""

OUT_M, BACK_M = 10.0, 20.0
"""Within this distance the ego has swerved, and within this distance its driver brings it back."""

EVERY_M = (35.0, 60.0)

LASTS_S, PAUSE_S = (2.0, 7.0), (4.0, 9.0)
"""How long a lapse lasts, and the next one begins so much later."""

BRAKES_MPS2 = (1.5, 4.0)
STANDS = 0.6
"""The share of lapses in which the ego comes to a stop; in the others it crawls."""

CRAWLS_MPS = (0.5, 4.0)


@dataclass(frozen=True)
class Lapse:
    """From `begin_s` to `end_s` after the traffic's first step the ego is no faster than `speed_mps`, and brakes to it by `brake_mps2`."""

    begin_s: float
    end_s: float
    speed_mps: float
    brake_mps2: float

    def limit_mps2(self, time_s: float, speed_mps: float) -> float:
        """The most that the ego may accelerate now."""
        if not self.begin_s <= time_s < self.end_s:
            return np.inf
        return max((self.speed_mps - speed_mps) / 0.5, -self.brake_mps2)


def swerving(rng: np.random.Generator, route: Route) -> Float[Array, "n"]:
    """Metres to the right of every sample of a route, of an ego that swerves now and then."""
    along = np.arange(len(route.points)) * STEP_M
    right = np.zeros(len(along))
    at = rng.uniform(0.0, EVERY_M[0])
    while at < along[-1]:
        aside = rng.uniform(*ASIDE_M) * rng.choice([-1.0, 1.0])
        right += aside * smooth((along - at) / OUT_M) * smooth((at + OUT_M + BACK_M - along) / BACK_M)
        at += rng.uniform(*EVERY_M)
    return right


def lapsing(rng: np.random.Generator, seconds: float) -> tuple[Lapse, ...]:
    """The lapses of an ego within so many seconds of traffic."""
    lapses: list[Lapse] = []
    at = rng.uniform(0.0, PAUSE_S[1])
    while at < seconds:
        end = at + rng.uniform(*LASTS_S)
        speed = 0.0 if rng.random() < STANDS else rng.uniform(*CRAWLS_MPS)
        lapses.append(Lapse(at, end, speed, rng.uniform(*BRAKES_MPS2)))
        at = end + rng.uniform(*PAUSE_S)
    return tuple(lapses)


def way_back(right_m: Float[Array, "n"], at: int) -> Float[Array, "n"]:
    """How an ego that strays by `right_m[at]` at sample `at` of its route comes back, if it does not stray any further."""
    gone = (np.arange(len(right_m)) - at) * STEP_M
    return np.where(gone > 0, right_m[at] * smooth(1 - gone / BACK_M), right_m)
