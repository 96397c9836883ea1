"""Scene flow of tracked boxes, and voxels moved with them. All expected values are computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from test_movers import CAR, GRID, boxes, cells, scene

from iidrive.core.classes import CATEGORY_INDEX, FREE, IGNORE, OCC
from iidrive.core.scene import GridSpec, Pose
from iidrive.data.flow import flow
from iidrive.models.transport import constant_turn_moves, transport, true_moves, without_boxes

ROAD = OCC["driveable_surface"]
TRUCK = CATEGORY_INDEX["vehicle.truck"]
HERE = np.eye(4)[None]


def test_a_car_at_ten_metres_a_second() -> None:
    drive = scene(*(boxes(a=(-4.5 + 5 * i, 0.5, 0, 2, 1, CAR), parked=(3.5, -3.5, 0.4, 2, 1, CAR)) for i in range(3)))
    found = flow(drive, 0, (1, 2), GRID)
    assert found.owner[5, 10] == found.owner[13, 6] == OCC["car"]
    np.testing.assert_allclose(found.motion_m[0, 4:7, 10], [[5, 0]] * 3, atol=1e-6)
    np.testing.assert_allclose(found.motion_m[1, 5, 10], [10, 0], atol=1e-6)
    np.testing.assert_allclose(found.motion_m[:, 13, 6], 0, atol=1e-6)  # parked
    np.testing.assert_allclose(flow(drive, 1, (-1,), GRID).motion_m[0, 10, 10], [-5, 0], atol=1e-6)
    assert found.known.all()
    assert not found.motion_m[:, 0].any()  # outside all boxes: no motion
    assert found.owner[0, 0] == FREE


def test_motion_is_in_the_first_keyframes_ego_frame() -> None:
    ego = (Pose.from_xy_yaw(0, 0, np.pi / 2), Pose.from_xy_yaw(0, 7, 0.3))
    drive = scene(
        boxes(a=(0.5, 0.5, 0, 1, 1, CAR), wall=(0, 4, 0, 1, 1, CAR)), boxes(a=(3.5, 0.5, 0, 1, 1, CAR), wall=(0, 4, 0, 1, 1, CAR)), ego=ego
    )
    found = flow(drive, 0, (1,), GRID)
    np.testing.assert_allclose(
        found.motion_m[0, 10, 9], [0, -3], atol=1e-6
    )  # towards global x is to the right of an ego that faces global y
    np.testing.assert_allclose(found.motion_m[0, 13:15, 9:11], 0, atol=1e-6)  # a parked car has no flow although the ego moves


def test_a_turning_box_moves_rigidly_and_back() -> None:
    drive = scene(boxes(a=(0.5, 0.5, 0.0, 5, 1, CAR)), boxes(a=(2.5, -1.5, np.pi / 2, 5, 1, CAR)))
    ahead, back = flow(drive, 0, (1,), GRID), flow(drive, 1, (-1,), GRID)
    # the centre goes by (2, -2); the front, 2 m ahead, ends up 2 m to the left of the new centre
    np.testing.assert_allclose(ahead.motion_m[0, [10, 12, 8], 10], [[2, -2], [0, 0], [4, -4]], atol=1e-6)
    for x, y in np.argwhere(ahead.owner != FREE):
        dx, dy = ahead.motion_m[0, x, y].round(6)  # whole cells: a quarter turn takes cell centres to cell centres
        np.testing.assert_allclose(back.motion_m[0, x + int(dx), y + int(dy)], [-dx, -dy], atol=1e-5)
    assert (ahead.owner != FREE).sum() == 5


def test_what_is_unknown() -> None:
    drive = scene(boxes(a=(0.5, 0.5, 0, 1, 1, CAR), b=(5.5, 5.5, 0, 1, 1, CAR)), boxes(b=(5.5, 6.5, 0, 1, 1, CAR)))
    found = flow(drive, 0, (1, 2, -1), GRID)
    assert cells(~found.known[0]) == [[10, 10]]  # its track has ended
    assert np.isnan(found.motion_m[0, 10, 10]).all()
    assert not found.known[1:].any()  # the scene has no such keyframe
    grid = np.full(GRID.shape, FREE, np.uint8)
    grid[:, :, 0] = ROAD
    grid[15, 15], grid[10, 10], grid[2, 2], grid[3, 3, 1] = OCC["car"], OCC["car"], OCC["car"], IGNORE
    grid[15, 15, 0] = OCC["truck"]
    motion, known = found.of_voxels(grid)
    np.testing.assert_allclose(motion[0, 15, 15, 1], [0, 1], atol=1e-6)
    assert not known[0, 15, 15, 0]  # a truck's voxel in the cell of a car's box
    assert not known[0, 10, 10].any()
    assert not known[0, 2, 2].any()  # a car's voxel where no box is
    assert not known[0, 3, 3, 1]
    assert known[0, 0, 0, 0]
    assert motion[0, 0, 0, 0].tolist() == [0, 0]
    assert not known[0, 0, 0, 1]  # free
    assert not known[1:].any()


def test_the_smaller_box_owns_a_shared_cell() -> None:
    drive = scene(
        boxes(big=(0.5, 0.5, 0, 6, 3, TRUCK), small=(0.5, 0.5, 0, 1, 1, CAR)),
        boxes(big=(1.5, 0.5, 0, 6, 3, TRUCK), small=(0.5, 2.5, 0, 1, 1, CAR)),
    )
    found = flow(drive, 0, (1,), GRID)
    np.testing.assert_allclose(found.motion_m[0, [10, 12], 10], [[0, 2], [1, 0]], atol=1e-6)
    assert found.owner[[10, 12], 10].tolist() == [OCC["car"], OCC["truck"]]


def test_flow_without_boxes() -> None:
    found = flow(scene(boxes(), boxes()), 0, (1,), GRID)
    assert found.known.all()
    assert not found.motion_m.any()


def street(car: tuple[int, int, int], width: int = 1) -> np.ndarray:
    """A road with a car: cells first..last along x at y, which reaches the ground."""
    grid = np.full(GRID.shape, FREE, np.uint8)
    grid[:, :, 0] = ROAD
    grid[:, :3, 0] = OCC["sidewalk"]
    grid[car[0] : car[1] + 1, car[2] : car[2] + width] = OCC["car"]
    return grid


def moved(grid: np.ndarray, moves, frames: np.ndarray = HERE, spec: GridSpec = GRID) -> np.ndarray:
    return transport(grid, without_boxes(grid, moves.boxes, spec), moves, frames, spec)


def test_a_car_moves_with_its_voxels_and_leaves_road_behind() -> None:
    drive = scene(*(boxes(a=(x, 0.5, 0, 3, 1, CAR)) for x in (-3.5, -1.5, 0.5)))
    for moves in (true_moves(drive, 1, (1,)), constant_turn_moves(drive, 1, (1,))):
        np.testing.assert_array_equal(moved(street((7, 9, 10)), moves)[0], street((9, 11, 10)))
    standing = constant_turn_moves(drive, 0, (1, 6))  # no earlier keyframe: it stands
    np.testing.assert_array_equal(moved(street((5, 7, 10)), standing, np.eye(4)[None].repeat(2, 0))[1], street((5, 7, 10)))
    forward = Pose.from_xy_yaw(2.0, 0.0, 0.0).matrix[None]  # the ego drives as fast as the car: it stays where it was
    ahead = moved(street((7, 9, 10)), true_moves(drive, 1, (1,)), forward)[0]
    assert cells((ahead == OCC["car"]).any(-1)) == [[7, 10], [8, 10], [9, 10]]
    assert (ahead[18:] == FREE).all()  # what enters the grid from outside is unknown, so free


def test_uncovered_ground_is_that_of_the_nearest_column() -> None:
    drive = scene(boxes(a=(0.5, -7.5, 0, 1, 1, CAR)), boxes())
    moves = true_moves(drive, 0, (1,))
    assert not moves.known.any()  # gone
    left = moved(street((10, 10, 2)), moves)[0]
    assert left[10, 2, 0] in (OCC["sidewalk"], ROAD)
    assert left[10, 2, 1] == FREE
    drive = scene(boxes(a=(0.5, -8.5, 0, 1, 1, CAR)), boxes())
    assert moved(street((10, 10, 1)), true_moves(drive, 0, (1,)))[0, 10, 1].tolist() == [OCC["sidewalk"], FREE]


def test_a_half_seen_box_stays_half_seen() -> None:
    drive = scene(boxes(a=(-9.5, 0.5, 0, 5, 1, CAR)), boxes(a=(-4.5, 0.5, 0, 5, 1, CAR)))
    grid = street((0, 2, 10))  # the rear two cells are outside the grid
    found = moved(grid, true_moves(drive, 0, (1,)))[0]
    assert cells((found == OCC["car"]).any(-1)) == [[x, 10] for x in (4, 5, 6, 7)]  # the edge cell stands in for the one behind it


def test_an_eighth_of_a_turn_has_no_holes() -> None:
    drive = scene(boxes(a=(0.5, 0.5, 0, 5, 3, CAR)), boxes(a=(0.5, 0.5, np.pi / 4, 5, 3, CAR)))
    found = moved(street((8, 12, 9), 3), true_moves(drive, 0, (1,)))[0]
    painted = (found == OCC["car"]).any(-1)
    assert painted[10, 10]
    assert painted[11, 11]
    assert 12 <= painted.sum() <= 18  # 15 m²
    assert (found[..., 0] != FREE).all()


@pytest.mark.parametrize("rate", [0.0, 0.4, -0.7])
def test_constant_turn_is_exact_on_a_circle(rate: float) -> None:
    speed, slip = 6.0, 0.2  # the heading may differ from the direction of travel

    def at(t: float) -> tuple[float, float, float, float, float, int]:
        course = rate * t + slip
        x = speed * t * np.sinc(rate * t / 2 / np.pi) * np.cos((course + slip) / 2)
        y = speed * t * np.sinc(rate * t / 2 / np.pi) * np.sin((course + slip) / 2)
        return (x, y, rate * t, 4, 2, CAR)

    drive = scene(*(boxes(a=at(0.5 * i)) for i in range(8)), ego=(Pose.from_xy_yaw(3, 1, 0.5),) * 8)
    expected, found = true_moves(drive, 1, (1, 2, 6)), constant_turn_moves(drive, 1, (1, 2, 6))
    np.testing.assert_allclose(found.centre_m, expected.centre_m, atol=1e-9)
    np.testing.assert_allclose(np.cos(found.yaw_rad - expected.yaw_rad), 1, atol=1e-9)


def test_a_heading_labelled_the_other_way_round_does_not_spin() -> None:
    drive = scene(boxes(a=(0, 0, 0, 4, 2, CAR)), boxes(a=(2, 0, np.pi, 4, 2, CAR)))
    found = constant_turn_moves(drive, 1, (1, 2))
    np.testing.assert_allclose(found.centre_m[:, 0, :2], [[4, 0], [6, 0]], atol=1e-9)
