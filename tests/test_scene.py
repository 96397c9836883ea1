"""Scene types refuse invalid values with clear messages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from iidrive.core.errors import DataError
from iidrive.core.scene import (
    OCC3D_GRID,
    Boxes,
    Command,
    GridSpec,
    Observation,
    OccGrid,
    Pose,
    Scene,
    Trajectory,
    VectorMap,
)

ONE = Boxes("global", np.zeros((1, 3)), np.ones((1, 3)), np.zeros(1), np.zeros(1, np.int64), ("a",), np.ones(1, np.int64))


def path(frame: str = "lidar", reference: str = "lidar_top", steps: int = 6) -> Trajectory:
    return Trajectory(np.zeros((steps, 2)), frame, reference, np.ones(steps, bool))  # pyright: ignore[reportArgumentType]


def test_pose_round_trip() -> None:
    pose = Pose(np.array([0.5, -0.5, 0.5, 0.5]), np.array([1.0, 2, 3]))
    again = Pose.from_matrix(pose.matrix)
    np.testing.assert_allclose(again.rotation, pose.rotation, atol=1e-12)
    np.testing.assert_allclose(again.matrix, pose.matrix, atol=1e-12)


def test_pose_refuses_nan_and_bad_quaternions() -> None:
    with pytest.raises(DataError, match="NaN"):
        Pose(np.array([1.0, 0, 0, 0]), np.array([np.nan, 0, 0]))
    with pytest.raises(DataError, match="norm 1"):
        Pose(np.array([1.0, 1, 0, 0]), np.zeros(3))
    with pytest.raises(DataError, match="shapes"):
        Pose(np.zeros(3), np.zeros(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size_m": np.array([[1.0, -2, 1]])}, "track a has a negative size"),
        ({"centre_m": np.array([[np.nan, 0, 0]])}, "track a: centre_m holds NaN"),
        ({"yaw_rad": np.array([np.inf])}, "track a: yaw_rad holds NaN"),
        ({"label": np.array([23])}, "label 23"),
        ({"yaw_rad": np.zeros(2)}, "shape"),
    ],
)
def test_boxes_refuse(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(ONE, **change)


def test_boxes_may_be_empty() -> None:
    assert len(Boxes.empty("ego")) == 0
    assert len(ONE.select(np.array([False]))) == 0


def test_moved_boxes_are_rotated_too() -> None:
    quarter = Pose.from_xy_yaw(1.0, 2.0, np.pi / 2).matrix
    moved = replace(ONE, centre_m=np.array([[3.0, 0, 0]])).moved(quarter, "ego")
    np.testing.assert_allclose(moved.centre_m, [[1.0, 5.0, 0.0]], atol=1e-12)
    np.testing.assert_allclose(moved.yaw_rad, [np.pi / 2])
    assert moved.frame == "ego"


def test_occupancy_refuses_unknown_classes_and_shapes() -> None:
    grid = np.full(OCC3D_GRID.shape, 17, np.uint8)
    OccGrid(np.where(grid == 17, 255, grid).astype(np.uint8), OCC3D_GRID, "labels")
    with pytest.raises(DataError, match="class 18"):
        OccGrid(np.full(OCC3D_GRID.shape, 18, np.uint8), OCC3D_GRID, "labels")
    with pytest.raises(DataError, match="does not fit"):
        OccGrid(grid[:10], OCC3D_GRID, "labels")
    with pytest.raises(DataError, match="uint8"):
        OccGrid(grid.astype(np.int64), OCC3D_GRID, "labels")


def test_grid_corners() -> None:
    assert OCC3D_GRID.upper_m == pytest.approx((40.0, 40.0, 5.4))
    assert GridSpec((2, 2, 2), (0.0, 0.0, 0.0), 0.5).centres(0).tolist() == [0.25, 0.75]
    with pytest.raises(DataError, match="positive edge"):
        GridSpec((2, 2, 2), (0.0, 0.0, 0.0), 0.0)


def test_a_trajectory_has_six_steps() -> None:
    with pytest.raises(DataError, match="6 steps"):
        path(steps=5)
    with pytest.raises(DataError, match="'lidar' or 'ego'"):
        path(frame="camera")
    with pytest.raises(DataError, match="NaN"):
        Trajectory(np.full((6, 2), np.nan), "lidar", "lidar_top", np.ones(6, bool))


def test_commands_have_a_known_source() -> None:
    assert Command("left", "route").index == 1
    with pytest.raises(DataError, match="'route' or 'oracle'"):
        Command("left", "guess")  # pyright: ignore[reportArgumentType]


def test_scenes_refuse_unordered_or_repeated_keyframes() -> None:
    from small_scene import keyframe

    first, second = keyframe("a", 0), keyframe("b", 500_000)
    Scene("s", (first, second), VectorMap())
    with pytest.raises(DataError, match="must increase"):
        Scene("s", (second, first), VectorMap())
    with pytest.raises(DataError, match="the same sample token"):
        Scene("s", (first, replace(second, token="a")), VectorMap())
    with pytest.raises(DataError, match="at least the current"):
        Observation("s", ())
