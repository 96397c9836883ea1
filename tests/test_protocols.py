"""SparseDrive's protocol on cases small enough to compute by hand; its own outputs are in test_planning_fixtures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from make_cases import along, make_cases, random_cases, reordered

from iidrive.core import geometry
from iidrive.core.errors import ConfigError, DataError
from iidrive.scoring.cases import Cases
from iidrive.scoring.planning.setting import PlanningSteps, prepare
from iidrive.scoring.planning.sparsedrive import sparsedrive, sparsedrive_hits, sparsedrive_yaw
from iidrive.scoring.protocols import PROTOCOLS, protocol_named, protocols_named

RIGHT, FORWARD = (1.0, 0.0), (0.0, 1.0)
FRONT_M = 0.5 + float(np.float32(4.084)) / 2
SIDE_M = float(np.float32(1.85)) / 2


def evaluate(cases: Cases, path: np.ndarray) -> PlanningSteps:
    return sparsedrive(prepare(cases, path))


def hits(path: np.ndarray, *boxes: tuple[int, tuple[float, ...]]) -> list[int]:
    """Steps 1..6 at which one path collides with boxes given as (step, seven numbers)."""
    path = path[None].astype(np.float32)
    box = np.array([b for _, b in boxes], np.float64).reshape(-1, 7)
    step = np.array([t - 1 for t, _ in boxes], np.int64)
    return (np.flatnonzero(sparsedrive_hits(path, sparsedrive_yaw(path), box, np.arange(len(box)), step)[0]) + 1).tolist()


def test_a_still_ego_looks_straight_ahead() -> None:
    rng = np.random.default_rng(0)
    path = rng.uniform(-0.1, 0.1, (6, 2)).astype(np.float32)
    assert sparsedrive_yaw(path[None])[0] == pytest.approx([np.pi / 2] * 6)


def test_standing_still_is_measured_from_the_first_to_the_last_point() -> None:
    circle = np.array([(5, 0), (5, 1), (5, 2), (5, 2), (5, 1), (5, 0.4)], np.float32)
    assert sparsedrive_yaw(circle[None])[0] == pytest.approx([np.pi / 2] * 6)
    circle[-1] = (5, 0.5)
    assert sparsedrive_yaw(circle[None])[0, 0] == pytest.approx(np.arctan2(1, 5))


def test_heading_is_a_central_difference_and_backward_at_the_end() -> None:
    path = np.array([(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 5)], np.float32)
    assert sparsedrive_yaw(path[None])[0] == pytest.approx([np.pi / 2] * 4 + [np.arctan2(1, 1), 0.0])


def test_one_straight_path_hits_one_box_at_one_step() -> None:
    # Step 2 is at y = 5: the ego box reaches from 5.5 - 2.042 to 5.5 + 2.042. A 1 m cube at y = 8 begins at 7.5.
    assert hits(along(FORWARD), (2, (0, 8.0, 0, 1, 1, 1, 0))) == [2]
    assert hits(along(FORWARD), (2, (0, 8.1, 0, 1, 1, 1, 0))) == []
    assert hits(along(FORWARD), (2, (0, 2.9, 0, 1, 1, 1, 0))) == []  # ends at 3.4, the ego begins at 3.458
    assert hits(along(FORWARD), (2, (0, 3.0, 0, 1, 1, 1, 0))) == [2]


def test_touching_counts_and_a_gap_of_a_nanometre_does_not() -> None:
    # Along +x the heading is exactly 0, so corners are exact: the front at step 1 stands at 2.5 + FRONT_M.
    front = 2.5 + FRONT_M
    assert hits(along(RIGHT), (1, (front + 1, 0, 0, 2, 2, 2, 0))) == [1]
    assert hits(along(RIGHT), (1, (front + 1 + 1e-9, 0, 0, 2, 2, 2, 0))) == []
    assert hits(along(RIGHT), (1, (3, SIDE_M + 1 + 1e-9, 0, 2, 2, 2, 0))) == []
    assert hits(along(RIGHT), (1, (3, SIDE_M + 1, 0, 2, 2, 2, 0))) == [1]


def test_length_lies_along_the_heading() -> None:
    across = (1, (3, 4, 0, 8, 0.5, 2, np.pi / 2))  # 8 m along y, centred 4 m to the left: reaches y = 0
    assert hits(along(RIGHT), across) == [1]
    assert hits(along(RIGHT), (1, (3, 4, 0, 8, 0.5, 2, 0))) == []


@pytest.mark.parametrize("size", [(0, 0), (2, 0), (-2, -1), (-2, 1)])
def test_degenerate_boxes_still_collide(size: tuple[float, float]) -> None:
    assert hits(along(FORWARD), (1, (0, 3, 0, *size, 1, 0.3))) == [1]
    assert hits(along(FORWARD), (1, (20, 3, 0, *size, 1, 0.3))) == []


def test_no_boxes_no_hit() -> None:
    assert hits(along(FORWARD)) == []


def test_a_nan_box_raises() -> None:
    with pytest.raises(DataError, match="NaN"):
        hits(along(FORWARD), (1, (0, 3, 0, 1, np.nan, 1, 0)))


def test_a_step_where_the_true_path_collides_too_does_not_count() -> None:
    car = (0.0, 5.0, 0.0, 1.0, 1.0, 1.0, 0.0)
    cases = make_cases([along(FORWARD), along(RIGHT)], [(0, 2, car), (1, 2, car)])
    steps = evaluate(cases, np.stack([along(FORWARD), along(FORWARD)]))
    assert steps.detail["gt_col"].sum(axis=1).tolist() == [1, 0]
    assert steps.detail["pred_col_raw"].sum(axis=1).tolist() == [1, 1]
    assert steps.detail["obj_box_col"].sum(axis=1).tolist() == [0, 1]
    assert steps.detail["L2"][0].tolist() == [0] * 6
    assert steps.detail["L2"][1] == pytest.approx(2.5 * np.sqrt(2) * np.arange(1, 7), rel=1e-6)


def test_current_boxes_and_boxes_without_lidar_points_are_not_obstacles() -> None:
    car = (0.0, 5.0, 0.0, 1.0, 1.0, 1.0, 0.0)
    cases = make_cases([along(FORWARD)], [(0, 0, car), (0, 2, car)])
    assert evaluate(cases, cases.true_path()).detail["gt_col"].sum() == 1
    assert evaluate(replace(cases, box_valid=np.array([True, False])), cases.true_path()).detail["gt_col"].sum() == 0


def test_incomplete_samples_are_zero_and_may_hold_nan() -> None:
    car = (0.0, 5.0, 0.0, 1.0, 1.0, 1.0, 0.0)
    cases = make_cases([along(FORWARD)] * 2, [(0, 2, car), (1, 2, car)], masks=[5, 6])
    path = cases.true_path().copy()
    path[0] = np.nan
    steps = evaluate(cases, path)
    assert steps.evaluated.tolist() == [False, True]
    for field in ("gt_col", "pred_col_raw", "obj_box_col", "L2", "yaw_gt", "yaw_pred"):
        assert not steps.detail[field][0].any(), field
    assert steps.detail["gt_col"][1].sum() == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_plan_with_nan_raises_and_is_named(bad: float) -> None:
    cases = make_cases([along(FORWARD)] * 2)
    path = cases.true_path().copy()
    path[1, 3, 0] = bad
    with pytest.raises(DataError, match=r"1 sample \(sample1\)"):
        evaluate(cases, path)


def test_a_plan_of_five_steps_raises() -> None:
    cases = make_cases([along(FORWARD)])
    with pytest.raises(DataError, match=r"\(1, 6, 2\).*\(1, 5, 2\)"):
        evaluate(cases, cases.true_path()[:, :5])


def test_unknown_protocol_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'sparsedrive'"):
        protocol_named("sparsdrive")
    assert all(name == row.name for name, row in PROTOCOLS.items())


def test_lists_of_protocols() -> None:
    assert protocols_named("vad, sparsedrive,vad") == ("vad", "sparsedrive")
    assert protocols_named("all") == tuple(PROTOCOLS)
    with pytest.raises(ConfigError, match="Did you mean 'uniad'"):
        protocols_named("vad,unaid")
    with pytest.raises(ConfigError, match="no protocol was named"):
        protocols_named(" ,")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_distance_filter_changes_no_decision(seed: int) -> None:
    cases, path = random_cases(seed, n=3, boxes_per_step=4)
    yaw = sparsedrive_yaw(path)
    rows = np.arange(len(cases.box))
    step = cases.box_case.astype(np.int64) * 6 + np.maximum(cases.box_t.astype(np.int64), 1) - 1
    fast = sparsedrive_hits(path, yaw, cases.box, rows, step).ravel()
    ego_centre = (path + 0.5 * np.stack([np.cos(yaw), np.sin(yaw)], -1)).reshape(-1, 2)
    ego = np.asarray(shapely.polygons(geometry.box_corners_bev(ego_centre, np.full(18, 4.084), np.full(18, 1.85), yaw.ravel())))
    other = np.asarray(shapely.polygons(geometry.box_corners_bev(cases.box[:, :2], cases.box[:, 3], cases.box[:, 4], cases.box[:, 6])))
    slow = np.zeros(18, bool)
    for box, at in zip(other, step, strict=True):
        slow[at] |= bool(shapely.intersects(ego[at], box))
    np.testing.assert_array_equal(fast, slow)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_samples_are_independent(seed: int) -> None:
    cases, path = random_cases(seed, n=6, boxes_per_step=4)
    order = np.random.default_rng(seed).permutation(6)
    one, two = evaluate(cases, path), evaluate(reordered(cases, order), path[order])
    np.testing.assert_array_equal(one.evaluated[order], two.evaluated)
    for field, value in one.detail.items():
        np.testing.assert_array_equal(value[order], two.detail[field], err_msg=field)


def _turned(cases: Cases, path: np.ndarray, angle: float, mirror: bool) -> tuple[np.ndarray, np.ndarray]:
    """Paths and boxes turned about the origin, and mirrored in x before that."""
    side = -1.0 if mirror else 1.0
    cos, sin = np.cos(angle), np.sin(angle)

    def move(xy: np.ndarray) -> np.ndarray:
        x, y = side * xy[..., 0], xy[..., 1]
        return np.stack([x * cos - y * sin, x * sin + y * cos], axis=-1)

    box = cases.box.copy()
    box[:, :2] = move(box[:, :2])
    box[:, 6] = (np.pi - box[:, 6] if mirror else box[:, 6]) + angle
    return move(path.astype(np.float64)).astype(np.float32), box


def _gap_m(cases: Cases, path: np.ndarray, yaw: np.ndarray) -> float:
    """How far the nearest pair of boxes is from changing its mind: distance apart, or depth of overlap."""
    centre = (path + 0.5 * np.stack([np.cos(yaw), np.sin(yaw)], -1)).reshape(-1, 2)
    size = np.full(len(centre), 1.0)
    ego = np.asarray(shapely.polygons(geometry.box_corners_bev(centre, 4.084 * size, 1.85 * size, yaw.ravel())))
    other = np.asarray(shapely.polygons(geometry.box_corners_bev(cases.box[:, :2], cases.box[:, 3], cases.box[:, 4], cases.box[:, 6])))
    at = cases.box_case.astype(np.int64) * 6 + np.maximum(cases.box_t.astype(np.int64), 1) - 1
    apart, depth = shapely.distance(ego[at], other), shapely.area(shapely.intersection(ego[at], other))
    return float(np.where(apart > 0, apart, depth).min())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), angle=st.floats(-np.pi, np.pi), mirror=st.booleans())
def test_rotating_or_mirroring_the_world_changes_nothing(seed: int, angle: float, mirror: bool) -> None:
    cases, path = random_cases(seed, n=2, boxes_per_step=4)
    yaw = sparsedrive_yaw(path)
    if _gap_m(cases, path, yaw) < 1e-3 or (np.linalg.norm(path[:, -1] - path[:, 0], axis=1) < 0.6).any():
        return  # on the edge of a decision rounding decides; and standing still means looking along +y, which does turn
    rows = np.arange(len(cases.box))
    step = cases.box_case.astype(np.int64) * 6 + np.maximum(cases.box_t.astype(np.int64), 1) - 1
    other_path, other_box = _turned(cases, path, angle, mirror)
    found = sparsedrive_hits(other_path, sparsedrive_yaw(other_path), other_box, rows, step)
    np.testing.assert_array_equal(found, sparsedrive_hits(path, yaw, cases.box, rows, step))


@settings(max_examples=25, deadline=None)
@given(length=st.floats(0, 8), width=st.floats(0, 4), quarter=st.integers(0, 3), gap=st.sampled_from([-1e-6, 0.0, 1e-6]))
def test_touching_from_every_side(length: float, width: float, quarter: int, gap: float) -> None:
    # Along +x the ego's front at step 1 is exact; a box of any size, degenerate too, whose own turn is a multiple of a quarter.
    reach = (length, width)[quarter % 2] / 2
    found = hits(along(RIGHT), (1, (2.5 + FRONT_M + reach + gap, 0, 0, length, width, 1, quarter * np.pi / 2)))
    if gap:
        assert found == ([1] if gap < 0 else [])


@settings(max_examples=25, deadline=None)
@given(yaw=st.floats(-np.pi, np.pi), x=st.floats(-6, 6), y=st.floats(-6, 6))
def test_a_box_turned_half_way_round_is_the_same_box(yaw: float, x: float, y: float) -> None:
    box = (2.5 + x, y, 0.0, 4.0, 2.0, 1.5, yaw)
    turned = (*box[:6], yaw + np.pi)
    wider, thinner = ((*box[:3], 4.0 + e, 2.0 + e, 1.5, yaw) for e in (1e-6, -1e-6))
    if hits(along(RIGHT), (1, wider)) == hits(along(RIGHT), (1, thinner)):
        assert hits(along(RIGHT), (1, box)) == hits(along(RIGHT), (1, turned))
