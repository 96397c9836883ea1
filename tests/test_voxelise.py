"""Derived occupancy, compared with slow independent implementations."""

from __future__ import annotations

import time

import numpy as np
import pytest
import shapely

from iidrive.core import geometry
from iidrive.core.classes import CATEGORY_INDEX, FREE, OCC, OCC_OF_CATEGORY
from iidrive.core.errors import DataError
from iidrive.core.scene import OCC3D_GRID, Boxes, GridSpec, Pose, VectorMap
from iidrive.data.voxelise import polygon_mask, voxelise

COARSE = GridSpec((80, 80, 8), (-32.0, -32.0, -1.0), 0.8)


def boxes(*entries: tuple[str, tuple[float, float, float], tuple[float, float, float], float]) -> Boxes:
    """(category, centre, (length, width, height), yaw) each."""
    n = len(entries)
    return Boxes(
        "ego",
        np.array([e[1] for e in entries], float).reshape(n, 3),
        np.array([e[2] for e in entries], float).reshape(n, 3),
        np.array([e[3] for e in entries], float),
        np.array([CATEGORY_INDEX[e[0]] for e in entries], np.int64),
        tuple(str(i) for i in range(n)),
        np.full(n, -1),
    )


def slow(found: Boxes, spec: GridSpec) -> np.ndarray:
    """Reference: every voxel centre against every box, largest box first, without extending boxes to the ground."""
    out = np.full(spec.shape, FREE, np.uint8)
    grid = np.stack(np.meshgrid(*(spec.centres(a) for a in range(3)), indexing="ij"), -1)
    for i in np.argsort(-found.size_m.prod(axis=1), kind="stable"):
        d = grid - found.centre_m[i]
        c, s = np.cos(found.yaw_rad[i]), np.sin(found.yaw_rad[i])
        local = np.stack([c * d[..., 0] + s * d[..., 1], c * d[..., 1] - s * d[..., 0], d[..., 2]], -1)
        out[(np.abs(local) <= found.size_m[i] / 2).all(axis=-1)] = OCC_OF_CATEGORY[found.label[i]]
    return out


@pytest.mark.parametrize("spec", [COARSE, GridSpec((60, 40, 16), (-12.0, -8.0, -1.0), 0.4)])
def test_boxes_fill_the_voxels_whose_centre_is_inside(spec):
    rng = np.random.default_rng(0)
    names = list(CATEGORY_INDEX)
    entries = [
        (names[rng.integers(23)], (rng.uniform(-40, 40), rng.uniform(-40, 40), rng.uniform(-1, 4)), tuple(rng.uniform(2, 9, 3)), a)
        for a in rng.uniform(-4, 4, 60)
    ]
    found = boxes(*entries)
    got = voxelise(found, VectorMap(), np.eye(4), spec, reach_ground=False)
    assert got.source == "derived"
    np.testing.assert_array_equal(got.semantics, slow(found, spec))


def test_small_boxes_are_painted_over_large_ones_in_any_order():
    bus = ("vehicle.bus.rigid", (0.0, 0.0, 1.0), (12.0, 3.0, 3.0), 0.0)
    man = ("human.pedestrian.adult", (0.0, 0.0, 1.0), (0.5, 0.5, 1.8), 0.0)
    for order in ((bus, man), (man, bus)):
        got = voxelise(boxes(*order), VectorMap(), np.eye(4), OCC3D_GRID).semantics
        assert (got == OCC["pedestrian"]).any()
        assert got[100, 100, 5] == OCC["pedestrian"]
        assert got[108, 102, 5] == OCC["bus"]


@pytest.mark.parametrize("spec", [OCC3D_GRID, COARSE])
def test_a_thin_box_fills_the_column_of_its_centre(spec):
    cone = ("movable_object.trafficcone", (4.03, -7.97, 0.31), (0.05, 0.05, 0.05), 0.4)
    got = voxelise(boxes(cone), VectorMap(), np.eye(4), spec, reach_ground=False).semantics
    i, j, k = (np.floor((np.array(cone[1]) - spec.lower_m) / spec.voxel_m)).astype(int)
    assert got[i, j, k] == OCC["traffic_cone"]
    assert (got != FREE).sum() == 1


def test_boxes_reach_down_to_the_ground_layer():
    car = boxes(("vehicle.car", (10.0, 0.0, 1.2), (4.0, 2.0, 1.5), 0.0))
    high = voxelise(car, VectorMap(), np.eye(4), OCC3D_GRID, reach_ground=False).semantics[125, 100]
    deep = voxelise(car, VectorMap(), np.eye(4), OCC3D_GRID).semantics[125, 100]
    at_zero = voxelise(car, VectorMap(), np.eye(4), OCC3D_GRID, ground_z_m=0.0).semantics[125, 100]
    assert np.flatnonzero(high != FREE).tolist() == [4, 5, 6]  # centres between 0.45 and 1.95 m
    assert np.flatnonzero(deep != FREE).tolist() == list(range(7))
    assert np.flatnonzero(at_zero != FREE).tolist() == [2, 3, 4, 5, 6]


def test_boxes_outside_or_none_leave_the_grid_free():
    far = boxes(("vehicle.car", (60.0, 0.0, 1.0), (4.0, 2.0, 1.6), 0.0), ("vehicle.car", (0.0, 0.0, 30.0), (4.0, 2.0, 1.6), 0.0))
    up = voxelise(far, VectorMap(), np.eye(4), OCC3D_GRID, reach_ground=False)
    none = voxelise(Boxes.empty("ego"), VectorMap(), np.eye(4), OCC3D_GRID)
    assert (up.semantics == FREE).all()
    assert (none.semantics == FREE).all()


def test_boxes_in_another_frame_are_refused():
    with pytest.raises(DataError, match="'global'"):
        voxelise(Boxes.empty("global"), VectorMap(), np.eye(4), OCC3D_GRID)


def test_surfaces_are_painted_on_one_layer_with_the_road_on_top():
    layers = {"drivable_area": shapely.box(-20, -4, 20, 4), "walkway": shapely.box(-20, 0, 20, 8), "lane_divider": shapely.LineString()}
    for ground, layer in ((-0.6, 0), (0.0, 2), (0.3, 3)):
        got = voxelise(Boxes.empty("ego"), VectorMap(layers), np.eye(4), OCC3D_GRID, ground_z_m=ground).semantics
        assert np.flatnonzero((got != FREE).any(axis=(0, 1))).tolist() == [layer]
        assert (got == OCC["driveable_surface"]).sum() == 100 * 20
        assert (got == OCC["sidewalk"]).sum() == 100 * 10
    below = voxelise(Boxes.empty("ego"), VectorMap(layers), np.eye(4), OCC3D_GRID, ground_z_m=-3.0).semantics
    assert (below == FREE).all()


def test_surfaces_follow_the_pose_like_a_point_in_polygon_test():
    rng = np.random.default_rng(1)
    road = shapely.union_all([shapely.Point(*rng.uniform(-30, 30, 2)).buffer(rng.uniform(2, 9)) for _ in range(25)])
    road = road.difference(shapely.box(-3, -6, 4, 7))
    pose = Pose(geometry.yaw_quaternion(0.7), np.array([4.0, -3.0, 0.2]))
    tilt = geometry.rigid(geometry.quaternion_to_matrix(np.array([np.cos(0.02), np.sin(0.02), 0, 0])), np.zeros(3))
    for transform in (pose, pose.matrix @ tilt):
        got = voxelise(Boxes.empty("ego"), VectorMap({"drivable_area": road}), transform, OCC3D_GRID, ground_z_m=-0.6).semantics[..., 0]
        x, y = np.meshgrid(OCC3D_GRID.centres(0), OCC3D_GRID.centres(1), indexing="ij")
        matrix = transform.matrix if isinstance(transform, Pose) else transform
        world = geometry.apply(matrix, np.stack([x, y, np.full_like(x, -0.6)], -1))
        expected = shapely.contains_xy(road, world[..., 0], world[..., 1])
        np.testing.assert_array_equal(got == OCC["driveable_surface"], expected)
        assert 0.05 < expected.mean() < 0.95


def test_overlaps_holes_and_ring_directions_of_polygons():
    hole = [(2, 2), (4, 2), (4, 4), (2, 4)]
    square = [(0, 0), (6, 0), (6, 6), (0, 6)]
    for shell in (square, square[::-1]):
        for inner in (hole, hole[::-1]):
            first = shapely.Polygon(shell, [inner])
            mixed = shapely.GeometryCollection(
                [shapely.MultiPolygon([first, shapely.box(5, 5, 8, 8)]), shapely.LineString([(0, 0), (9, 9)])]
            )
            got = polygon_mask(mixed, np.eye(2), np.zeros(2), (9, 10))
            assert got.shape == (9, 10)
            assert got.sum() == 36 - 4 + 9 - 1
            assert not got[2:4, 2:4].any()
            assert got[5, 5]
    assert not polygon_mask(shapely.Polygon(), np.eye(2), np.zeros(2), (3, 3)).any()


@pytest.mark.slow
def test_fast_enough_for_training():
    rng = np.random.default_rng(2)
    many = boxes(*[("vehicle.car", (*rng.uniform(-38, 38, 2), 0.8), (4.5, 1.9, 1.6), a) for a in rng.uniform(-3, 3, 120)])
    road = shapely.union_all([shapely.Point(*rng.uniform(-60, 60, 2)).buffer(8, quad_segs=16) for _ in range(60)])
    for spec, budget_s in ((OCC3D_GRID, 0.015), (COARSE, 0.005)):
        best = np.inf
        for _ in range(8):
            start = time.perf_counter()
            voxelise(many, VectorMap({"drivable_area": road, "walkway": road}), np.eye(4), spec)
            best = min(best, time.perf_counter() - start)
        assert best < budget_s
