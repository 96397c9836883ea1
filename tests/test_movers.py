"""Movers: their cells, ignored cells, and pooled counts. Every expected value is computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from iidrive.core.classes import CATEGORY_INDEX, FREE, MOVABLE, OCC, OCC_CLASSES
from iidrive.core.footprint import footprint, rectangles
from iidrive.core.scene import Boxes, Command, GridSpec, Keyframe, Pose, Scene, VectorMap
from iidrive.scoring.movers import MoverCounts, MoverTruth, corridor, count, grown, mover_truth, movers_in, read_at, speeds, tracks_inside

GRID = GridSpec((20, 20, 2), (-10.0, -10.0, -1.0), 1.0)
CAR, CONE = CATEGORY_INDEX["vehicle.car"], CATEGORY_INDEX["movable_object.trafficcone"]


def boxes(**at: tuple[float, float, float, float, float, int]) -> Boxes:
    """Boxes in the global frame by track: x, y, yaw, length, width, label."""
    rows = np.array([row[:5] for row in at.values()], np.float64).reshape(-1, 5)
    centre = np.concatenate([rows[:, :2], np.zeros((len(rows), 1))], 1)
    size = np.concatenate([rows[:, 3:], np.full((len(rows), 1), 1.5)], 1)
    label = np.array([row[5] for row in at.values()], np.int64)
    return Boxes("global", centre, size, rows[:, 2], label, tuple(at), np.full(len(rows), -1))


def scene(*moments: Boxes, ego: tuple[Pose, ...] = ()) -> Scene:
    poses = ego or (Pose.from_xy_yaw(0, 0, 0),) * len(moments)
    frames = [
        Keyframe(f"k{i}", i * 500_000, pose, Pose.from_xy_yaw(0, 0, 0), b, Command("straight", "route"))
        for i, (b, pose) in enumerate(zip(moments, poses, strict=True))
    ]
    return Scene("moving", tuple(frames), VectorMap())


def cells(mask: np.ndarray) -> list[list[int]]:
    return np.argwhere(mask).tolist()


def test_the_eight_movable_classes() -> None:
    names = {OCC_CLASSES[i] for i in np.flatnonzero(MOVABLE)}
    assert names == {"bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian", "trailer", "truck"}


def test_a_cell_is_inside_where_its_centre_is() -> None:
    # cell centres lie at -9.5, -8.5, …: a box 2 x 1 around (0.5, 0.5) reaches from -0.5 to 1.5 and holds three centres, edges included
    found = rectangles(np.array([[0.5, 0.5]]), np.array([[2.0, 1.0]]), np.zeros(1), GRID)
    assert sorted(zip(found.x.tolist(), found.y.tolist(), strict=True)) == [(9, 10), (10, 10), (11, 10)]
    np.testing.assert_allclose(found.local_m[np.argsort(found.x)], [[-1, 0], [0, 0], [1, 0]], atol=1e-12)
    turned = rectangles(np.array([[0.5, 0.5]]), np.array([[2.0, 1.0]]), np.array([np.pi / 2]), GRID)
    assert sorted(zip(turned.x.tolist(), turned.y.tolist(), strict=True)) == [(10, 9), (10, 10), (10, 11)]
    thin = rectangles(np.array([[0.9, 0.9]]), np.array([[0.1, 0.1]]), np.zeros(1), GRID)
    assert len(thin.x) == 0
    assert len(rectangles(np.array([[0.9, 0.9]]), np.array([[0.1, 0.1]]), np.zeros(1), GRID, centre_cell=True).x) == 1


def test_footprints_agree_with_a_plain_test_of_every_cell() -> None:
    rng = np.random.default_rng(1)
    n = 40
    centre, size, yaw = rng.uniform(-13, 13, (n, 2)), rng.uniform(0.2, 6, (n, 2)), rng.uniform(-4, 4, n)
    plain = np.zeros((20, 20), bool)
    for i, j in np.ndindex(20, 20):
        d = np.array([GRID.centres(0)[i], GRID.centres(1)[j]]) - centre
        along, across = np.cos(yaw) * d[:, 0] + np.sin(yaw) * d[:, 1], np.cos(yaw) * d[:, 1] - np.sin(yaw) * d[:, 0]
        plain[i, j] = ((abs(along) <= size[:, 0] / 2 + 0.3) & (abs(across) <= size[:, 1] / 2 + 0.3)).any()
    np.testing.assert_array_equal(rectangles(centre, size, yaw, GRID, 0.3).mask(GRID), plain)
    assert 0 < plain.sum() < 400


def test_boxes_are_enlarged_by_three_tenths_of_a_cell() -> None:
    box = boxes(a=(0.5, 0.5, 0.0, 1.5, 0.5, CAR))  # half length 0.75 + 0.3 reaches the neighbours' centres, 1 m away; half width does not
    assert len(footprint(box, GRID).x) == 1
    assert cells(footprint(box, GRID, 0.3).mask(GRID)) == [[9, 10], [10, 10], [11, 10]]


def test_speed_is_that_of_the_last_interval_on_the_ground() -> None:
    drive = scene(boxes(a=(0, 0, 0, 4, 2, CAR)), boxes(a=(3, 4, 0, 4, 2, CAR), b=(0, 0, 0, 4, 2, CAR)))
    assert np.isnan(speeds(drive, 0)).all()
    assert speeds(drive, 1).tolist() == [10.0, np.inf]


def test_movers_and_ignored_cells() -> None:
    start = boxes(moving=(0.5, 0.5, 0, 1, 1, CAR), parked=(-5.5, 0.5, 0, 1, 1, CAR), cone=(5.5, 5.5, 0, 1, 1, CONE))
    later = boxes(
        moving=(2.5, 0.5, 0, 1, 1, CAR), parked=(-5.5, 0.5, 0, 1, 1, CAR), cone=(5.5, -5.5, 0, 1, 1, CONE), new=(8.5, 8.5, 0, 1, 1, CAR)
    )
    drive = scene(start, later)
    truth = mover_truth(drive, 1, GRID)
    assert cells(truth.moving) == [[12, 10], [18, 18]]  # the new box counts as moving
    ignored = [[x, y] for x in (3, 4, 5) for y in (9, 10, 11)] + [[x, y] for x in (14, 15, 16) for y in (3, 4, 5)]
    assert cells(truth.ignored) == sorted(ignored)  # a moving cone is not a road user
    only = mover_truth(drive, 1, GRID, frozenset({"moving"}))
    assert cells(only.moving) == [[12, 10]]
    assert only.ignored[17:, 17:].all()
    first = mover_truth(drive, 0, GRID)
    assert not first.moving.any()
    assert first.ignored.sum() == 27


def test_a_slow_box_is_ignored_but_does_not_hide_a_mover() -> None:
    drive = scene(
        boxes(slow=(0.5, 0.5, 0, 1, 1, CAR), fast=(-3, 1.5, 0, 1, 1, CAR)),
        boxes(slow=(0.6, 0.5, 0, 1, 1, CAR), fast=(0.5, 1.5, 0, 1, 1, CAR)),
    )
    truth = mover_truth(drive, 1, GRID)  # 0.1 m in half a second is below 0.5 m/s
    assert cells(truth.moving) == [[10, 11]]
    assert not truth.ignored[10, 11]
    assert truth.ignored.sum() == 8


def test_truth_is_in_the_ego_frame_of_its_keyframe() -> None:
    ego = (Pose.from_xy_yaw(0, 0, 0), Pose.from_xy_yaw(10.0, 0.0, np.pi / 2))
    drive = scene(boxes(a=(0, 3.5, 0, 1, 1, CAR)), boxes(a=(9.5, 3.5, 0, 1, 1, CAR)), ego=ego)
    assert cells(mover_truth(drive, 1, GRID).moving) == [[13, 10]]  # 3.5 m ahead of the ego and 0.5 m to its left
    assert tracks_inside(drive, 0, GRID) == {"a"}
    edge = scene(boxes(whole=(9.0, 0, 0, 1.9, 1, CAR), cut=(9.0, 0, 0, 2.1, 1, CAR)))
    assert tracks_inside(edge, 0, GRID) == {"whole"}


def test_dilation_stops_at_the_edge() -> None:
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = True
    assert cells(grown(mask)) == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize("height", [2, 8, 16])
def test_a_grids_movers(height: int) -> None:
    grid = np.full((3, 3, height), FREE, np.uint8)
    grid[0, 0, -1], grid[1, 1, 0], grid[2, 2, 1] = OCC["pedestrian"], OCC["manmade"], 255
    assert cells(movers_in(grid)) == [[0, 0]]


def test_counts_are_pooled_and_absence_is_nan() -> None:
    empty = np.zeros((4, 4), bool)
    moving, ignored, found = empty.copy(), empty.copy(), empty.copy()
    moving[0, :2], ignored[3], found[0, 1:], found[3, 0] = True, True, True, True
    truth = MoverTruth(moving, ignored)
    one = count(found, truth)  # true 2, found 3, both 1; the cell in the ignored row does not count
    assert (int(one.hit), int(one.found), int(one.true)) == (1, 3, 2)
    assert (float(one.iou()), float(one.precision()), float(one.recall())) == (0.25, pytest.approx(1 / 3), 0.5)
    within = empty.copy()
    within[0, :2] = True
    assert float(count(found, truth, within).iou()) == 0.5
    perfect = count(moving, truth)
    both = one + perfect  # 3 of 3 + 2 cells found and 2 + 2 true: pooled, not the mean of 0.25 and 1
    assert float(both.iou()) == 3 / 6
    nothing = count(empty, MoverTruth(empty, ignored))
    assert np.isnan([nothing.iou(), nothing.precision(), nothing.recall()]).all()
    invented = count(found, MoverTruth(empty, ignored))
    assert float(invented.iou()) == float(invented.precision()) == 0.0
    assert np.isnan(invented.recall())
    assert np.isnan(MoverCounts.zero(4).iou()).all()


def test_a_grid_is_resampled_to_the_true_frame() -> None:
    labels = np.full(GRID.shape, FREE, np.uint8)
    labels[10, 10, 0] = OCC["car"]  # the centre of this cell is (0.5, 0.5)
    frame_T_true = Pose.from_xy_yaw(3.2, 0.0, 0.0).matrix  # the true ego is 3.2 m further on
    found = read_at(labels, frame_T_true, GRID)
    assert cells(found == OCC["car"]) == [[7, 10, 0]]  # whose centre -2.5 lies at 0.7
    gone = read_at(np.zeros(GRID.shape, np.uint8), frame_T_true, GRID)
    assert (gone[:, 0, 0] == FREE).sum() == 3  # x = 9.5, 8.5 and 7.5 lie outside
    turned = read_at(labels, Pose.from_xy_yaw(0, 0, np.pi / 2).matrix, GRID)
    assert cells(turned == OCC["car"]) == [[10, 9, 0]]


def test_the_corridor_of_a_straight_drive() -> None:
    # 10 m/s: 3 v + 9 = 39 m along, and the footprint from 0.602 m behind to 3.482 m ahead of the rear axle
    y = np.zeros(6)
    x = np.array([-0.61, -0.60, 20.0, 42.47, 42.49, -10.0])
    assert corridor(np.stack([x, y], -1), 10.0, 0.0).tolist() == [False, True, True, True, False, False]
    sides = np.array([[20.0, 2.42], [20.0, -2.42], [20.0, 2.43], [20.0, -2.43]])
    assert corridor(sides, 10.0, 0.0).tolist() == [True, True, False, False]
    assert corridor(np.array([[12.4, 0.0], [12.6, 0.0]]), 0.0, 5.0).tolist() == [True, False]  # standing: 9 m ahead, straight


def test_the_corridor_of_a_turn() -> None:
    # 5 m/s and 0.25 rad/s: a left-hand circle of 20 m around (0, 20); after a quarter the ego is at (20, 20)
    on, inner, outer = (np.array([r * np.sin(0.9), 20 - r * np.cos(0.9)]) for r in (20.0, 17.7, 22.3))
    far_in, far_out = (np.array([r * np.sin(0.9), 20 - r * np.cos(0.9)]) for r in (17.4, 22.9))
    assert corridor(np.stack([on, inner, outer, far_in, far_out]), 5.0, 0.25).tolist() == [True, True, True, False, False]
    mirrored = np.stack([on, inner, outer, far_in, far_out]) * [1, -1]
    assert corridor(mirrored, 5.0, -0.25).tolist() == [True, True, True, False, False]
    end = 24 / 20  # 3 v + 9 m along; the front reaches 3.5 m further
    beyond = np.array([[20 * np.sin(a), 20 - 20 * np.cos(a)] for a in (end + 0.15, end + 0.2)])
    assert corridor(beyond, 5.0, 0.25).tolist() == [True, False]


def test_the_corridor_contains_swept_footprints() -> None:
    rng = np.random.default_rng(0)
    for speed, rate in ((8.0, 0.3), (3.0, -0.2), (12.0, 0.0)):
        bend, far = rate / speed, 3 * speed + 9
        along, shift = rng.uniform(0, min(far, 2 / max(abs(bend), 1e-3)), 500), rng.uniform(-1.45, 1.45, 500)
        yaw = bend * along
        x = along * np.sinc(yaw / np.pi)
        y = along * np.sinc(yaw / 2 / np.pi) * np.sin(yaw / 2)
        local = np.stack([rng.uniform(-0.5, 3.3, 500), shift + rng.uniform(-0.9, 0.9, 500)], -1)
        points = np.stack(
            [x + np.cos(yaw) * local[:, 0] - np.sin(yaw) * local[:, 1], y + np.sin(yaw) * local[:, 0] + np.cos(yaw) * local[:, 1]]
        )
        assert corridor(points.T, speed, rate).mean() > 0.995
