"""Commands from the true future, for sources that have no routes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from iidrive.core import geometry
from iidrive.core.scene import FUTURE_STEPS, MANOEUVRES

Array = np.ndarray


def oracle_commands(global_T_lidar: Float[Array, "k 4 4"], starts: Int[Array, "s+1"]) -> Int[Array, "k"]:
    """Commands of k keyframes of s scenes, as indices into `MANOEUVRES`, by the rule of the SparseDrive and VAD converters.

    Keyframes of scene s are `starts[s]:starts[s+1]`. From x of the sixth future point (the scene's last point when it ends earlier) in the
    keyframe's lidar frame: >= 2 m right, <= -2 m left, else straight. Same arithmetic as `source.true_path`: offsets in float64, rounded and
    cumulated in float32.
    """
    lidar_T_global = geometry.invert(global_T_lidar)
    end = np.repeat(starts[1:] - 1, np.diff(starts))
    ahead = np.minimum(np.arange(len(end))[:, None] + np.arange(FUTURE_STEPS + 1), end[:, None])
    points = np.einsum("kj,ktj->kt", lidar_T_global[:, 0, :3], global_T_lidar[ahead, :3, 3]) + lidar_T_global[:, None, 0, 3]
    points[:, 0] = 0.0  # the path starts at the sensor itself
    at_end = np.arange(len(end)) == end
    points[at_end] = 0.0
    x = np.cumsum(np.diff(points, axis=1).astype(np.float32), axis=1, dtype=np.float32)[:, -1]
    right, left, straight = (MANOEUVRES.index(m) for m in ("right", "left", "straight"))
    return np.where(x >= 2, right, np.where(x <= -2, left, straight)).astype(np.int8)
