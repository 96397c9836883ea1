"""Hand-made scenes for tests."""

from __future__ import annotations

import numpy as np

from iidrive.core import geometry
from iidrive.core.scene import Boxes, Command, Keyframe, Pose, Scene, VectorMap

EGO_T_LIDAR = Pose(geometry.yaw_quaternion(-np.pi / 2), np.array([0.94, 0.0, 1.84]))


def keyframe(token: str, timestamp_us: int, x_m: float = 0.0, y_m: float = 0.0, yaw_rad: float = 0.0) -> Keyframe:
    """A keyframe without boxes, with the ego at this planar pose."""
    return Keyframe(
        token, timestamp_us, Pose.from_xy_yaw(x_m, y_m, yaw_rad), EGO_T_LIDAR, Boxes.empty("global"), Command("straight", "route")
    )


def straight_scene(frames: int = 10, speed_mps: float = 4.0, name: str = "straight") -> Scene:
    """The ego drives along +x at constant speed, a keyframe every half second."""
    return Scene(name, tuple(keyframe(f"{name}-{i}", i * 500_000, x_m=speed_mps * 0.5 * i) for i in range(frames)), VectorMap())


def circle_scene(frames: int = 10, speed_mps: float = 5.0, radius_m: float = 20.0, name: str = "circle") -> Scene:
    """The ego drives a left-hand circle at constant speed."""
    turn = speed_mps * 0.5 / radius_m
    at = [(radius_m * np.sin(turn * i), radius_m * (1 - np.cos(turn * i)), turn * i) for i in range(frames)]
    return Scene(name, tuple(keyframe(f"{name}-{i}", i * 500_000, *at[i]) for i in range(frames)), VectorMap())
