"""Live scenes: exactly as recorded with the expert driver, and with reactions of the others if the ego drives differently."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import shapely

from iidrive.core import geometry
from iidrive.core.scene import Boxes, GridSpec, Pose
from iidrive.data.town.live import LiveScene
from iidrive.data.town.source import Town, TownConfig
from iidrive.data.town.traffic import EgoState, Traffic

CONFIG = TownConfig(train_scenes=12, val_scenes=1, test_scenes=1)
NAME = "town-train-00001"
SPEC = GridSpec((40, 40, 8), (-16.0, -16.0, -1.0), 0.8)


@pytest.fixture(scope="module")
def town() -> Town:
    return Town(CONFIG)


@pytest.fixture(scope="module")
def begun(town: Town) -> LiveScene:
    return town.live(NAME, keyframe=8)


def bits(boxes: Boxes) -> tuple[object, ...]:
    arrays = (boxes.centre_m, boxes.size_m, boxes.yaw_rad, boxes.label, boxes.lidar_points)
    return boxes.track, *(a.tobytes() for a in arrays)


def state(traffic: Traffic) -> tuple[object, ...]:
    return *(getattr(traffic, name).tobytes() for name in Traffic.STATE), deepcopy((traffic.waiting, traffic.holding))


def put(ego: EgoState) -> Pose:
    return Pose.from_xy_yaw(float(ego.xy_m[0]), float(ego.xy_m[1]), ego.heading_rad)


@pytest.mark.slow
def test_with_the_expert_driver_a_scene_goes_on_as_recorded(town: Town, begun: LiveScene) -> None:
    scene, live = town.scene(NAME), begun.copy()
    for index in range(8, len(scene)):
        recorded = scene.keyframes[index]
        assert bits(live.boxes()) == bits(recorded.boxes)
        assert put(live.ego).matrix.tobytes() == recorded.global_T_ego.matrix.tobytes()
        assert live.time_s == 0.5 * index
        for _ in range(5):
            live.step()
    here = town.occupancy_at(NAME, put(begun.ego), begun.boxes(), SPEC)
    assert here.semantics.tobytes() == town.occupancy(scene, 8, SPEC).semantics.tobytes()


@pytest.mark.slow
def test_copies_are_independent(begun: LiveScene) -> None:
    before = state(begun.traffic)
    one, other = begun.copy(), begun.copy()
    for _ in range(60):
        one.step(EgoState(begun.ego.xy_m, begun.ego.heading_rad, 0.0))
    assert state(begun.traffic) == before == state(other.traffic)
    straight = begun.copy()
    for _ in range(60):
        other.step()
        straight.step()
    assert state(other.traffic) == state(straight.traffic) != state(one.traffic)


@pytest.mark.slow
def test_others_do_the_same_when_the_recorded_path_is_given(begun: LiveScene) -> None:
    """Bit for bit: the others react to the ego's state, not to who drives it."""
    own, given = begun.copy(), begun.copy()
    for _ in range(150):
        own.step()
        given.step(own.ego)
        assert bits(given.boxes()) == bits(own.boxes())
        np.testing.assert_array_equal(given.ego.xy_m, own.ego.xy_m)
    assert given.traffic.s.tobytes() == own.traffic.s.tobytes()


def followed(town: Town) -> tuple[LiveScene, int]:
    """A time at which a vehicle drives less than 25 m behind the moving ego in its lane, and the index of that vehicle."""
    for name in town.scene_names("train"):
        live = town.live(name)
        for _ in range(100):
            live.step()
            traffic = live.traffic
            to = traffic.xy[0] - traffic.xy
            along = to[:, 0] * np.cos(traffic.psi) + to[:, 1] * np.sin(traffic.psi)
            across = to[:, 1] * np.cos(traffic.psi) - to[:, 0] * np.sin(traffic.psi)
            same = np.cos(traffic.psi - traffic.psi[0]) > 0.98
            behind = np.flatnonzero((along > 6) & (along < 25) & (np.abs(across) < 0.7) & same & (traffic.v > 3) & (traffic.v[0] > 3))
            if len(behind):
                return live, int(behind[0])
    raise AssertionError("nobody ever follows the ego")


@pytest.mark.slow
def test_vehicles_behind_a_stopped_ego_brake(town: Town) -> None:
    live, follower = followed(town)
    traffic, start = live.traffic, live.traffic.ego
    before = traffic.v[follower]
    stopped = EgoState(start.xy_m, start.heading_rad, 0.0)
    for _ in range(80):
        live.step(stopped)
        bodies = geometry.box_corners_bev(
            traffic.xy + traffic.axle[:, None] * np.stack([np.cos(traffic.psi), np.sin(traffic.psi)], -1),
            traffic.length, 2 * traffic.half_width, traffic.psi,
        )  # fmt: skip
        one, other = (shapely.Polygon(bodies[k]) for k in (0, follower))
        assert not one.intersects(other)
    assert before > 3
    assert traffic.v[follower] < 0.1
    np.testing.assert_array_equal(live.ego.xy_m, start.xy_m)


@pytest.mark.slow
def test_an_ego_that_stands_at_a_junction_lets_others_go(town: Town) -> None:
    """It has reserved the junction at first, and releases it after standing at its line for more than five seconds."""
    for name in town.scene_names("train"):
        live = town.live(name)
        traffic = live.traffic
        for _ in range(120):
            live.step()
            gates, k = traffic.movers[0].route.gates, int(traffic.gate[0])
            if k and gates[k - 1].stop_s - traffic.s[0] - traffic.front[0] > 0.5 and 0 in traffic.holding.get(gates[k - 1].node, {}):
                break
        else:
            continue
        node = gates[k - 1].node
        stopped = EgoState(live.ego.xy_m, live.ego.heading_rad, 0.0)
        for _ in range(45):
            live.step(stopped)
        assert 0 in traffic.holding[node]
        for _ in range(10):
            live.step(stopped)
        assert 0 not in traffic.holding[node]
        assert 0 not in traffic.waiting[node]
        return
    raise AssertionError("the ego never has a junction before it reaches the line")


@pytest.mark.slow
def test_an_ego_far_from_its_route_holds_no_junction(begun: LiveScene) -> None:
    live = begun.copy()
    start = live.ego
    right = np.array([np.sin(start.heading_rad), -np.cos(start.heading_rad)])
    last = live.traffic.movers[0].route.gates[-1]  # far ahead, so that it is not given back by driving on
    live.traffic.holding.setdefault(last.node, {})[0] = last.link
    live.step(start)
    assert 0 in live.traffic.holding[last.node]
    live.step(EgoState(start.xy_m + 30 * right, start.heading_rad, 0.0))
    live.step(EgoState(start.xy_m + 30 * right, start.heading_rad, 0.0))
    assert all(0 not in held for held in live.traffic.holding.values())
