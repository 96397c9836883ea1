"""Hard scenes: the named road user would be hit by an ego that keeps its route and speed, and the expert driver hits nobody."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely

from iidrive.core import geometry
from iidrive.core.classes import CATEGORIES
from iidrive.core.errors import ConfigError
from iidrive.core.scene import Boxes, Scene
from iidrive.data.town.agents import EGO_AXLE_M
from iidrive.data.town.config import FACTORS
from iidrive.data.town.hard import HARD_KINDS
from iidrive.data.town.source import Town, TownConfig
from iidrive.data.town.stored import decode, encode
from iidrive.data.town.traffic import EgoState
from iidrive.data.town.world import hard_kind

CONFIG = TownConfig(hard_scenes=6)
NUMBERS = range(6)


@pytest.fixture(scope="module")
def town() -> Town:
    return Town(CONFIG)


def name(number: int) -> str:
    return f"town-hard-{number:05d}"


def outline(boxes: Boxes) -> np.ndarray:
    return np.asarray(
        shapely.polygons(geometry.box_corners_bev(boxes.centre_m[:, :2], boxes.size_m[:, 0], boxes.size_m[:, 1], boxes.yaw_rad))
    )


def body(xy: np.ndarray, yaw: float) -> shapely.Polygon:
    """The ego's box of 4.084 x 1.85 m, with its centre 1.44 m ahead of the rear axle."""
    centre = xy + EGO_AXLE_M * np.array([np.cos(yaw), np.sin(yaw)])
    return shapely.Polygon(geometry.box_corners_bev(centre, np.asarray(4.084), np.asarray(1.85), np.asarray(yaw)))


def conflict_scene(town: Town, number: int) -> Scene:
    scene = town.scene(name(number))
    assert scene.conflict
    return scene


@pytest.mark.slow
def test_surroundings_follow_the_staged_route_of_a_left_turn() -> None:
    """In this scene the staged left turn is far from the town's random route."""
    scene = Town(replace(CONFIG, hard_scenes=60)).scene("town-hard-00047")
    assert scene.conflict
    assert scene.conflict.kind == "left_turn"
    driven = np.stack([k.global_T_ego.translation_m[:2] for k in scene.keyframes])
    assert shapely.intersects_xy(scene.map.layers["drivable_area"], driven).all()


@pytest.mark.slow
def test_the_hard_split_cycles_through_the_kinds(town: Town) -> None:
    assert town.scene_names("hard") == tuple(map(name, NUMBERS))
    assert [town.scene(name(k)).conflict.kind for k in NUMBERS] == list(HARD_KINDS)  # pyright: ignore
    assert len(TownConfig().identity()) == 9
    assert "hard_scenes" not in TownConfig().identity()
    assert len(Town(TownConfig()).scene_names("hard")) == 60


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS, ids=HARD_KINDS)
def test_keeping_route_and_speed_ends_in_a_collision(town: Town, number: int) -> None:
    """Measured once more: the scene is set going from the keyframe, and a body is pushed along the route's line at the speed it has
    there.
    """
    scene = conflict_scene(town, number)
    conflict = scene.conflict
    assert conflict
    assert conflict.track in scene.keyframes[conflict.keyframe].boxes.track
    assert 0.1 <= conflict.within_s <= 4.0
    live, line = town.live(scene.name, conflict.keyframe), shapely.LineString(town.route(scene.name).points)
    start, speed = line.project(shapely.Point(live.ego.xy_m)), live.ego.speed_mps
    assert speed >= 2.0
    first = None
    for step in range(1, 41):
        live.step()
        here, ahead = (shapely.get_coordinates(line.interpolate(start + speed * 0.1 * step + d))[0] for d in (0.0, 0.25))
        boxes = live.boxes()
        other = outline(boxes)[boxes.track.index(conflict.track)]
        if body(here, float(np.arctan2(*(ahead - here)[::-1]))).intersects(other):
            first = step * 0.1
            break
    assert first == pytest.approx(conflict.within_s, abs=0.11)


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS, ids=HARD_KINDS)
def test_the_expert_gets_through(town: Town, number: int) -> None:
    scene = conflict_scene(town, number)
    for keyframe in scene.keyframes:
        pose = keyframe.global_T_ego.matrix
        assert not shapely.intersects(body(pose[:2, 3], float(geometry.heading(pose))), outline(keyframe.boxes)).any()
    path = np.array([k.global_T_ego.translation_m[:2] for k in scene.keyframes])
    assert np.hypot(*np.diff(path, axis=0).T).sum() > 20


@pytest.mark.slow
def test_named_road_users_have_the_category_of_their_kind(town: Town) -> None:
    found = {}
    for k in NUMBERS:
        scene = conflict_scene(town, k)
        conflict = scene.conflict
        assert conflict
        boxes = scene.keyframes[conflict.keyframe].boxes
        at = boxes.track.index(conflict.track)
        tracks = [b.centre_m[b.track.index(conflict.track), :2] for b in (f.boxes for f in scene.keyframes) if conflict.track in b.track]
        found[conflict.kind] = CATEGORIES[boxes.label[at]], float(np.hypot(*np.ptp(tracks, axis=0)))
    assert found["jaywalker"][0] == "human.pedestrian.adult"
    assert found["cyclist_beside"][0] == "vehicle.bicycle"
    assert found["double_parking"][1] == 0
    assert {found[k][0] for k in ("cut_in", "left_turn")} == {"vehicle.car"}
    assert min(found[k][1] for k in ("cut_in", "jaywalker", "cyclist_beside", "left_turn")) > 3


@pytest.mark.slow
def test_the_ego_leaves_its_lane_only_to_pass(town: Town) -> None:
    """It moves at least 1 m to the left to pass a blocking vehicle, and at most 0.5 m elsewhere on straight lanes."""
    scene = conflict_scene(town, HARD_KINDS.index("double_parking"))
    line = shapely.LineString(town.route(scene.name).points)
    away = [line.distance(shapely.Point(k.global_T_ego.translation_m[:2])) for k in scene.keyframes]
    assert max(away) > 1.0
    assert np.median(away) < 0.5


@pytest.mark.slow
def test_a_branch_in_which_the_ego_brakes_does_not_change_the_other(town: Town) -> None:
    """The cut-in is triggered by a near ego. In the branch where the ego stands, the car keeps its lane."""
    scene = conflict_scene(town, 0)
    conflict = scene.conflict
    assert conflict
    keyframe = max(conflict.keyframe - 1, 0)
    one = town.live(scene.name, keyframe)
    other = one.copy()
    for _ in range(60):
        one.step()
    recorded = scene.keyframes[keyframe + 12].boxes
    assert one.boxes().centre_m.tobytes() == recorded.centre_m.tobytes()
    start = other.ego
    for _ in range(60):
        other.step(EgoState(start.xy_m, start.heading_rad, 0.0))
    at = [b.centre_m[b.track.index(conflict.track), :2] for b in (one.boxes(), other.boxes())]
    assert np.hypot(*(at[0] - at[1])) > 1.0


@pytest.mark.slow
def test_fractions_make_training_scenes_hard_and_do_not_change_the_test_split() -> None:
    config = replace(CONFIG, cut_ins=0.5, jaywalkers=0.25, train_scenes=400, val_scenes=40, test_scenes=40)
    kinds = [hard_kind(config, f"town-train-{k:05d}") for k in range(400)]
    assert 160 < kinds.count("cut_in") < 240
    assert 70 < kinds.count("jaywalker") < 130
    assert kinds.count("cut_in") + kinds.count("jaywalker") + kinds.count(None) == 400
    assert any(hard_kind(config, f"town-val-{k:05d}") for k in range(40))
    assert not any(hard_kind(config, f"town-test-{k:05d}") for k in range(40))
    assert not any(hard_kind(CONFIG, f"town-train-{k:05d}") for k in range(40))
    always = Town(replace(CONFIG, jaywalkers=1.0, seed=3))
    scene = always.scene("town-train-00000")
    assert scene.conflict
    assert scene.conflict.kind == "jaywalker"
    assert always.identity() != Town(replace(CONFIG, seed=3)).identity()
    world = always._world("town-train-00000")
    assert decode(encode(world)).scene.conflict == scene.conflict
    with pytest.raises(ConfigError, match="must not add up to more than 1"):
        replace(CONFIG, **dict.fromkeys(FACTORS, 0.2))
    with pytest.raises(ConfigError, match="cut_ins"):
        replace(CONFIG, cut_ins=-0.1)
