"""Driving commands derived from the true future, for sources without routes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from iidrive.core import geometry
from iidrive.core.scene import FUTURE_STEPS, MANOEUVRES

Array = np.ndarray


def oracle_commands(global_T_lidar: Float[Array, "k 4 4"], starts: Int[Array, "s+1"]) -> Int[Array, "k"]:
    """Commands of k keyframes of s scenes, as indices into `MANOEUVRES`, by the rule of the SparseDrive and VAD converters.

    Let x be the lateral position of the sixth future keyframe (or the scene's last) in the keyframe's lidar frame. x >= 2 m is right,
    x <= -2 m is left, else straight. As in `source.true_path`, offsets are computed in float64, then rounded and summed in float32.

    Args:
        global_T_lidar: (k,4,4) LIDAR_TOP poses of all keyframes.
        starts: (s+1,) keyframes of scene i are `starts[i]:starts[i+1]`.
    """
    lidar_T_global = geometry.invert(global_T_lidar)
    end = np.repeat(starts[1:] - 1, np.diff(starts))
    ahead = np.minimum(np.arange(len(end))[:, None] + np.arange(FUTURE_STEPS + 1), end[:, None])
    points = np.einsum("kj,ktj->kt", lidar_T_global[:, 0, :3], global_T_lidar[ahead, :3, 3]) + lidar_T_global[:, None, 0, 3]
    points[:, 0] = 0.0  # the path starts at the sensor
    at_end = np.arange(len(end)) == end
    points[at_end] = 0.0
    x = np.cumsum(np.diff(points, axis=1).astype(np.float32), axis=1, dtype=np.float32)[:, -1]
    right, left, straight = (MANOEUVRES.index(m) for m in ("right", "left", "straight"))
    return np.where(x >= 2, right, np.where(x <= -2, left, straight)).astype(np.int8)
