"""Rotations, rigid transforms and box corners, as pure numpy functions.

Angles are in radians, counter-clockwise from +x. Quaternions are (w, x, y, z). A transform named `a_T_b` maps points from frame b to
frame a. For validated poses, see `iidrive.core.scene.Pose`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray


def wrap_angle(angle_rad: Array | float) -> Array:
    """The same angle in [-pi, pi)."""
    return (np.asarray(angle_rad) + np.pi) % (2 * np.pi) - np.pi


def quaternion_to_matrix(quaternion: Float[Array, "*b 4"]) -> Float[Array, "*b 3 3"]:
    """Rotation matrices of unit quaternions (w, x, y, z)."""
    w, x, y, z = np.moveaxis(np.asarray(quaternion, dtype=np.float64), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def matrix_to_quaternion(matrix: Float[Array, "3 3"]) -> Float[Array, "4"]:
    """Unit quaternion (w, x, y, z), w >= 0, of a rotation matrix. Divides by the largest component, so it is numerically stable."""
    m = np.asarray(matrix, dtype=np.float64)
    trace = np.trace(m)
    candidates = np.array([trace, m[0, 0], m[1, 1], m[2, 2]])
    k = int(np.argmax(candidates))
    if k == 0:
        s = 2 * np.sqrt(1 + trace)
        q = np.array([s / 4, (m[2, 1] - m[1, 2]) / s, (m[0, 2] - m[2, 0]) / s, (m[1, 0] - m[0, 1]) / s])
    else:
        i, j, l = [(0, 1, 2), (1, 2, 0), (2, 0, 1)][k - 1]
        s = 2 * np.sqrt(1 + m[i, i] - m[j, j] - m[l, l])
        q = np.zeros(4)
        q[0] = (m[l, j] - m[j, l]) / s
        q[1 + i] = s / 4
        q[1 + j] = (m[j, i] + m[i, j]) / s
        q[1 + l] = (m[l, i] + m[i, l]) / s
    q /= np.linalg.norm(q)
    return -q if q[0] < 0 else q


def yaw_quaternion(yaw_rad: float) -> Float[Array, "4"]:
    """Quaternion (w, x, y, z) of a rotation about +z."""
    return np.array([np.cos(yaw_rad / 2), 0.0, 0.0, np.sin(yaw_rad / 2)])


def rigid(rotation: Float[Array, "*b 3 3"], translation_m: Float[Array, "*b 3"]) -> Float[Array, "*b 4 4"]:
    """4x4 transforms from rotations and translations."""
    out = np.zeros((*np.shape(translation_m)[:-1], 4, 4))
    out[..., :3, :3] = rotation
    out[..., :3, 3] = translation_m
    out[..., 3, 3] = 1.0
    return out


def invert(transform: Float[Array, "*b 4 4"]) -> Float[Array, "*b 4 4"]:
    """Inverse of rigid transforms, exact in the rotation (a transpose, no linear solve)."""
    rotation_t = np.swapaxes(transform[..., :3, :3], -1, -2)
    return rigid(rotation_t, -(rotation_t @ transform[..., :3, 3:])[..., 0])


def apply(transform: Float[Array, "4 4"], points_m: Float[Array, "*n 3"]) -> Float[Array, "*n 3"]:
    """Map points from frame b to frame a, given `a_T_b`."""
    return points_m @ transform[:3, :3].T + transform[:3, 3]


def heading(transform: Float[Array, "*b 4 4"]) -> Float[Array, "*b"]:
    """Yaw of a transform: the direction, in the target frame's xy plane, of the source frame's +x axis."""
    return np.arctan2(transform[..., 1, 0], transform[..., 0, 0])


def box_corners_bev(
    centre_m: Float[Array, "*n 2"], length_m: Float[Array, "*n"], width_m: Float[Array, "*n"], yaw_rad: Float[Array, "*n"]
) -> Float[Array, "*n 4 2"]:
    """Corners of rotated rectangles, counter-clockwise from front left; `length_m` lies along the heading."""
    # Not `turned_corners`: it adds in another order, which would change the last bits of every generated town.
    along = np.stack([np.cos(yaw_rad), np.sin(yaw_rad)], -1) * np.asarray(length_m)[..., None] / 2
    left = np.stack([-np.sin(yaw_rad), np.cos(yaw_rad)], -1) * np.asarray(width_m)[..., None] / 2
    return np.stack([centre_m + along + left, centre_m - along + left, centre_m - along - left, centre_m + along - left], -2)


def turned_corners(
    centre_m: Float[Array, "n 2"], size_m: Float[Array, "n 2"], cos: Float[Array, "n"], sin: Float[Array, "n"]
) -> Float[Array, "n 4 2"]:
    """Corners of rectangles (length, width), clockwise from rear right, with the rounding of the planning evaluators.

    All arguments and the result have the same dtype, float32 or float64. Cosine and sine of the heading are arguments because an evaluator
    may compute them in another precision.
    """
    along = size_m[:, :1] * np.array([-0.5, -0.5, 0.5, 0.5], size_m.dtype)
    left = size_m[:, 1:] * np.array([-0.5, 0.5, 0.5, -0.5], size_m.dtype)
    cos, sin = cos[:, None], sin[:, None]
    return np.stack([along * cos - left * sin + centre_m[:, :1], along * sin + left * cos + centre_m[:, 1:]], axis=-1)


def placed(centre_m: Float[Array, "*n 2"], yaw_rad: Float[Array, "*n"] | float, local_m: Float[Array, "*n 2"]) -> Float[Array, "*n 2"]:
    """Map points from rectangles' own frames (forward, left, from the centre) to the frame of `centre_m`, metres."""
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    along, left = local_m[..., 0], local_m[..., 1]
    return centre_m + np.stack([cos * along - sin * left, sin * along + cos * left], -1)
