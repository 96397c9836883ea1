"""An ego that is not always where it ought to be: it swerves aside now and then, and its driver brings it back.

A planner that has only seen an ego in the middle of its lane knows no way back from beside it, and in closed loop every small error takes it
further away. The ways back are what it learns here.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from iidrive.data.town.route import STEP_M, Route
from iidrive.data.town.staged import smooth

Array = np.ndarray

ASIDE_M = (0.3, 1.2)
"""How far to either side."""

OUT_M, BACK_M = 10.0, 20.0
"""Within this distance it has swerved, and within this distance its driver has brought it back."""

EVERY_M = (35.0, 60.0)


def swerving(rng: np.random.Generator, route: Route) -> Float[Array, "n"]:
    """Metres to the right of every sample of a route, of a driver who swerves now and then."""
    along = np.arange(len(route.points)) * STEP_M
    right = np.zeros(len(along))
    at = rng.uniform(0.0, EVERY_M[0])
    while at < along[-1]:
        aside = rng.uniform(*ASIDE_M) * rng.choice([-1.0, 1.0])
        right += aside * smooth((along - at) / OUT_M) * smooth((at + OUT_M + BACK_M - along) / BACK_M)
        at += rng.uniform(*EVERY_M)
    return right
