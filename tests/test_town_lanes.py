"""Lanes and junctions of the town's map: no gaps, correct directions, and the expert drives in the lanes of its route."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import shapely

from iidrive.core import geometry
from iidrive.core.errors import DataError
from iidrive.core.scene import Lane, Scene
from iidrive.data.town.agents import EGO_AXLE_M
from iidrive.data.town.source import Town, TownConfig

CONFIG = TownConfig(train_scenes=8, val_scenes=1, test_scenes=1)


@pytest.fixture(scope="module")
def town() -> Town:
    return Town(CONFIG)


@pytest.fixture(scope="module")
def some(town: Town) -> list[Scene]:
    return [town.scene(name) for name in town.scene_names("train")]


def path(scene: Scene) -> np.ndarray:
    """The ego's centre at every keyframe."""
    poses = np.array([k.global_T_ego.matrix for k in scene.keyframes])
    return poses[:, :2, 3] + EGO_AXLE_M * poses[:, :2, 0]


@pytest.mark.slow
def test_centrelines_lie_in_their_lanes_and_lead_into_each_other(some: list[Scene]) -> None:
    for scene in some:
        lanes = {lane.id: lane for lane in scene.map.lanes}
        assert len(lanes) == len(scene.map.lanes) > 30
        junctions = {j.id: j.polygon for j in scene.map.junctions}
        for lane in lanes.values():
            assert lane.polygon.is_valid
            assert shapely.covers(lane.polygon.buffer(1e-6), shapely.LineString(lane.centreline_m))
            assert not lane.junction or lane.junction in junctions
            for other in lane.successors:
                np.testing.assert_allclose(lane.centreline_m[-1], lanes[other].centreline_m[0], atol=1e-9)


@pytest.mark.slow
def test_there_is_no_gap_between_a_lane_and_the_next(some: list[Scene]) -> None:
    """A band of 2.4 m across the joint of two lanes is covered by them. At junctions it is covered by lanes and junction."""
    for scene in some[:4]:
        lanes = {lane.id: lane for lane in scene.map.lanes}
        junctions = {j.id: j.polygon for j in scene.map.junctions}
        near = shapely.LineString(path(scene)).buffer(40)
        joints = 0
        for lane in lanes.values():
            for other in (lanes[k] for k in lane.successors):
                line = shapely.LineString(np.concatenate([lane.centreline_m[-3:], other.centreline_m[1:3]]))
                if not near.contains(line):
                    continue
                joints += 1
                street = [part.polygon for part in (lane, other) if not part.junction]
                crossed = [junctions[part.junction] for part in (lane, other) if part.junction]
                for covering in (shapely.union_all([lane.polygon, other.polygon]), shapely.union_all(street + crossed)):
                    assert shapely.covers(covering.buffer(0.02), line.buffer(1.2, cap_style="flat"))
        assert joints > 15


@pytest.mark.slow
def test_lanes_of_streets_share_edges_and_do_not_overlap(some: list[Scene]) -> None:
    for scene in some[:4]:
        streets = [lane.polygon for lane in scene.map.lanes if not lane.junction and lane.id.startswith("lane")]
        whole = shapely.union_all(streets)
        assert sum(p.area for p in streets) == pytest.approx(whole.area, abs=0.2)
        # No slivers between neighbours: widening by a millimetre adds what the outlines are long, and closes nothing.
        grown = whole.buffer(0.001)
        assert grown.area - whole.area == pytest.approx(0.001 * whole.length, rel=0.05)
        assert shapely.covers(
            scene.map.layers["drivable_area"].buffer(0.3), shapely.intersection(whole, shapely.LineString(path(scene)).buffer(30))
        )


@pytest.mark.slow
def test_directions_are_those_of_traffic(some: list[Scene]) -> None:
    """Vehicles in a street's lane head along its centreline."""
    turned = []
    for scene in some:
        streets = [lane for lane in scene.map.lanes if not lane.junction]
        tree = shapely.STRtree([lane.polygon for lane in streets])
        first, last = scene.keyframes[0].boxes, scene.keyframes[4].boxes
        for i, track in enumerate(first.track):
            if track not in last.track or np.hypot(*(last.centre_m[last.track.index(track)] - first.centre_m[i])[:2]) < 4:
                continue
            for k in tree.query(shapely.Point(first.centre_m[i, :2]), predicate="intersects"):
                line = streets[k].centreline_m
                at = min(int(np.argmin(((line - first.centre_m[i, :2]) ** 2).sum(-1))), len(line) - 2)
                d = line[at + 1] - line[at]
                turned.append(abs(float(geometry.wrap_angle(np.arctan2(d[1], d[0]) - first.yaw_rad[i]))))
    assert len(turned) > 30
    assert max(turned) < np.pi / 2
    assert np.median(turned) < 0.1


@pytest.mark.slow
def test_the_expert_keeps_to_the_lanes_of_its_route(town: Town, some: list[Scene]) -> None:
    held = []
    for scene in some:
        route = set(town.route(scene.name).lane_ids)
        own = [lane.polygon for lane in scene.map.lanes if lane.id in route and not lane.junction]
        allowed = shapely.union_all([*own, *(j.polygon for j in scene.map.junctions)])
        held.append(shapely.intersects_xy(allowed, path(scene)))
        # The way of the route is whole: every lane is a successor of the one before.
        lanes = {lane.id: lane for lane in scene.map.lanes}
        known = [k for k in town.route(scene.name).lane_ids if k in lanes]
        assert all(b in lanes[a].successors for a, b in itertools.pairwise(known))
    assert np.concatenate(held).mean() >= 0.99


def test_a_lane_needs_a_centreline() -> None:
    with pytest.raises(DataError, match="lane a"):
        Lane("a", shapely.Polygon([(0, 0), (1, 0), (1, 1)]), np.zeros((1, 2)))
