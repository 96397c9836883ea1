"""The synthetic town: reproducible, no leak of the future in commands, no collisions, and not solvable by constant velocity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely

from iidrive.core import geometry
from iidrive.core.classes import CATEGORIES, CATEGORY_INDEX, FREE, OCC
from iidrive.core.errors import ConfigError, DataError
from iidrive.core.scene import OCC3D_GRID, Boxes, GridSpec, Scene
from iidrive.data.source import true_path, window
from iidrive.data.town.record import ego_headings, paint_boxes
from iidrive.data.town.route import COMMAND_M
from iidrive.data.town.source import SPLITS, Town, TownConfig, scene_seed
from iidrive.data.town.static import column_table, fill

COARSE = GridSpec((80, 80, 8), (-32.0, -32.0, -1.0), 0.8)
CONFIG = TownConfig(train_scenes=8, val_scenes=2, test_scenes=2, cached_scenes=12)


@pytest.fixture(scope="module")
def town() -> Town:
    return Town(CONFIG)


@pytest.fixture(scope="module")
def some(town: Town) -> list[Scene]:
    return [town.scene(name) for name in town.scene_names("train")]


def lidar_xy(scene: Scene) -> np.ndarray:
    return np.array([k.global_T_lidar[:2, 3] for k in scene.keyframes])


def yaws(scene: Scene) -> np.ndarray:
    return geometry.heading(np.array([k.global_T_ego.matrix for k in scene.keyframes]))


def outline(boxes: Boxes, grow_m: float = 0.0) -> np.ndarray:
    size = boxes.size_m + grow_m
    return np.asarray(shapely.polygons(geometry.box_corners_bev(boxes.centre_m[:, :2], size[:, 0], size[:, 1], boxes.yaw_rad)))


@pytest.mark.slow
def test_the_same_name_gives_the_same_scene(town: Town, some: list[Scene]) -> None:
    # The other instance builds scenes in another order and keeps only one, so neither cache nor order can matter.
    other = Town(replace(CONFIG, cached_scenes=1))
    other.scene("town-val-00001")
    again = other.scene(some[2].name)
    for a, b in zip(some[2].keyframes, again.keyframes, strict=True):
        assert (a.token, a.timestamp_us, a.command) == (b.token, b.timestamp_us, b.command)
        assert a.global_T_ego.matrix.tobytes() == b.global_T_ego.matrix.tobytes()
        assert a.boxes.track == b.boxes.track
        for name in ("centre_m", "size_m", "yaw_rad", "label", "lidar_points"):
            assert getattr(a.boxes, name).tobytes() == getattr(b.boxes, name).tobytes()
    for layer, shape in some[2].map.layers.items():
        assert shapely.to_wkb(shape) == shapely.to_wkb(again.map.layers[layer])
    for spec in (COARSE, OCC3D_GRID):
        one, two = town.occupancy(some[2], 7, spec), other.occupancy(again, 7, spec)
        assert one.semantics.tobytes() == two.semantics.tobytes()


@pytest.mark.slow
def test_another_seed_gives_another_scene(some: list[Scene]) -> None:
    other = Town(replace(CONFIG, seed=1)).scene(some[0].name)
    assert not np.allclose(lidar_xy(other), lidar_xy(some[0]))


@pytest.mark.slow
def test_splits_are_disjoint(town: Town) -> None:
    seeds = [scene_seed(CONFIG, name) for split in SPLITS for name in town.scene_names(split)]
    assert len(seeds) == 12
    assert len(set(seeds)) == 12
    train, val = town.scene("town-train-00000"), town.scene("town-val-00000")
    assert not {k.token for k in train.keyframes} & {k.token for k in val.keyframes}
    assert not np.allclose(lidar_xy(train), lidar_xy(val))


@pytest.mark.slow
def test_unknown_names_are_refused(town: Town) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        town.scene_names("trian")
    for name in ("town-train-00008", "town-trian-00000", "scene-0061", "town-val-1"):
        with pytest.raises(DataError, match="no scene"):
            town.scene(name)
    with pytest.raises(ConfigError, match="keyframes"):
        TownConfig(keyframes=1)


@pytest.mark.slow
def test_identity_has_all_fields_that_scenes_depend_on(town: Town) -> None:
    identity = town.identity()
    assert identity["source"] == "town"
    assert identity["seed"] == 0
    assert "cached_scenes" not in identity
    assert Town(replace(CONFIG, traffic=0.5)).identity() != identity


@pytest.mark.slow
def test_scenes_look_like_nuscenes(some: list[Scene]) -> None:
    tokens = [k.token for s in some for k in s.keyframes]
    assert len(set(tokens)) == len(some) * 41
    for scene in some:
        assert len(scene) == 41
        assert set(np.diff([k.timestamp_us for k in scene.keyframes])) == {500_000}
        label: dict[str, int] = {}
        size: dict[str, tuple[float, ...]] = {}
        for keyframe in scene.keyframes:
            boxes = keyframe.boxes
            assert len(set(boxes.track)) == len(boxes)
            away = np.hypot(*(boxes.centre_m[:, :2] - keyframe.global_T_ego.translation_m[:2]).T)
            assert (away < 80).all()
            np.testing.assert_array_equal(boxes.lidar_points > 0, away <= 55)
            np.testing.assert_allclose(boxes.centre_m[:, 2], boxes.size_m[:, 2] / 2)
            for track, k, s in zip(boxes.track, boxes.label, boxes.size_m, strict=True):
                assert label.setdefault(track, int(k)) == k
                assert size.setdefault(track, tuple(s)) == tuple(s)
        # LIDAR_TOP: 1.84 m high, its x axis to the right of the ego's.
        lidar = scene.keyframes[0].ego_T_lidar.matrix
        np.testing.assert_allclose(lidar[:3, 3], [0.94, 0, 1.84])
        np.testing.assert_allclose(lidar[:3, :2], [[0, 1], [-1, 0], [0, 0]], atol=1e-12)
    seen = {CATEGORIES[k] for s in some for f in s.keyframes for k in f.boxes.label}
    assert {"vehicle.car", "vehicle.bicycle", "vehicle.truck", "human.pedestrian.adult"} <= seen


@pytest.mark.slow
def test_layers_of_the_map(some: list[Scene]) -> None:
    for scene in some:
        layers = scene.map.layers
        assert set(layers) == {
            "drivable_area", "walkway", "ped_crossing", "lane_divider", "road_divider", "centreline", "building", "vegetation"
        }  # fmt: skip
        path = np.array([k.global_T_ego.translation_m[:2] for k in scene.keyframes])
        assert shapely.intersects_xy(layers["drivable_area"], path).all()
        assert shapely.area(shapely.intersection(layers["walkway"], layers["drivable_area"])) < 1e-6
        assert not shapely.intersects_xy(shapely.buffer(layers["building"], 0), path).any()


@pytest.mark.slow
def test_nobody_touches_the_ego(some: list[Scene]) -> None:
    """The box of 4.084 x 1.85 m, 0.5 m ahead of LIDAR_TOP, with every heading that a protocol may derive from six steps."""
    for scene in some:
        path, yaw = lidar_xy(scene), yaws(scene)
        for headings in ego_headings(path, yaw):
            centre = path + 0.5 * np.stack([np.cos(headings), np.sin(headings)], -1)
            body = shapely.polygons(geometry.box_corners_bev(centre, np.full(41, 4.084), np.full(41, 1.85), headings))
            for polygon, keyframe in zip(np.asarray(body), scene.keyframes, strict=True):
                assert not shapely.intersects(polygon, outline(keyframe.boxes)).any()


@pytest.mark.slow
def test_boxes_in_motion_touch_nothing(some: list[Scene]) -> None:
    for scene in some:
        first = {t: c for k in scene.keyframes[::-1] for t, c in zip(k.boxes.track, k.boxes.centre_m, strict=True)}
        last = {t: c for k in scene.keyframes for t, c in zip(k.boxes.track, k.boxes.centre_m, strict=True)}
        for keyframe in scene.keyframes[::4]:
            shapes = outline(keyframe.boxes)
            i, j = shapely.STRtree(shapes).query(shapes, predicate="intersects")
            for a, b in zip(i[i < j], j[i < j], strict=True):
                ends = [keyframe.boxes.track[k] for k in (a, b)]
                assert all(np.allclose(first[t], last[t]) for t in ends)


@pytest.mark.slow
def test_vehicles_keep_to_the_road_and_people_off_it(some: list[Scene]) -> None:
    vehicles, people = [], []
    for scene in some:
        near = np.array([k.global_T_ego.translation_m[:2] for k in scene.keyframes])
        for keyframe in scene.keyframes[::8]:
            boxes = keyframe.boxes
            close = ((boxes.centre_m[:, None, :2] - near) ** 2).sum(-1).min(1) < 50**2
            on_road = shapely.intersects_xy(scene.map.layers["drivable_area"], boxes.centre_m[:, :2])
            vehicles.append(on_road[close & (boxes.label == CATEGORY_INDEX["vehicle.car"])])
            people.append(on_road[close & (boxes.label == CATEGORY_INDEX["human.pedestrian.adult"])])
    assert np.concatenate(vehicles).mean() > 0.99
    assert np.concatenate(people).mean() < 0.25


@pytest.mark.slow
def test_ego_moves_like_a_car(some: list[Scene]) -> None:
    speeds = np.array([np.hypot(*np.diff(lidar_xy(s), axis=0).T) / 0.5 for s in some])
    assert speeds.max() < 13.5
    assert 3.0 < speeds.mean() < 8.0
    assert 0.02 < (speeds < 0.2).mean() < 0.4
    change = np.diff(speeds, axis=1) / 0.5
    assert change.min() > -7.0
    assert change.min() < -1.0
    assert 1.0 < change.max() < 3.5
    turned = [np.abs(np.unwrap(yaws(s)) - yaws(s)[0]).max() > np.pi / 3 for s in some]
    assert np.mean(turned) >= 1 / 3
    # The rear axle rolls where it points: sideways it hardly moves.
    for scene in some:
        axle = np.array([k.global_T_ego.translation_m[:2] for k in scene.keyframes])
        step, yaw = np.diff(axle, axis=0), np.unwrap(yaws(scene))
        middle = (yaw[1:] + yaw[:-1]) / 2
        assert np.abs(step[:, 1] * np.cos(middle) - step[:, 0] * np.sin(middle)).max() < 0.25


@pytest.mark.slow
def test_constant_velocity_is_a_poor_plan(some: list[Scene]) -> None:
    wrong = []
    for scene in some:
        path = lidar_xy(scene)
        for k in range(1, 35):
            step = (path[k] - path[k - 1]) @ scene.keyframes[k].global_T_lidar[:2, :2]
            wrong.append(np.linalg.norm(true_path(scene, k).points_m - step * np.arange(1, 7)[:, None], axis=1))
    error = np.mean(wrong, axis=0)
    assert error[1] > 0.5
    assert error[5] > 2.5


@pytest.mark.slow
def test_commands_depend_on_the_route_only(town: Town, some: list[Scene]) -> None:
    assert town.command_source == "route"
    told = set()
    for scene in some:
        route = town.route(scene.name)
        for keyframe in scene.keyframes:
            here = keyframe.global_T_ego.translation_m[:2]
            assert keyframe.command == route.command(here)
            s = route.station(here)
            due = [m for begin, end, m in route.turns if begin - COMMAND_M <= s <= end]
            assert keyframe.command.manoeuvre == (due[0] if due else "straight")
            assert keyframe.command.source == "route"
            told.add(keyframe.command.manoeuvre)
    assert told == {"left", "right", "straight"}


@pytest.mark.slow
def test_commands_do_not_depend_on_traffic(town: Town) -> None:
    """The same town without traffic has the same route, although the ego then drives differently."""
    empty = Town(replace(CONFIG, traffic=0.0, pedestrians=0.0, parked=0.0))
    same = 0
    for name in town.scene_names("train")[:3]:
        busy, quiet = town.route(name), empty.route(name)
        if busy.points.shape == quiet.points.shape and np.array_equal(busy.points, quiet.points):
            assert busy.turns == quiet.turns
            same += not np.allclose(lidar_xy(town.scene(name)), lidar_xy(empty.scene(name)))
    assert same >= 1


@pytest.mark.slow
@pytest.mark.parametrize("spec", [COARSE, OCC3D_GRID], ids=["coarse", "fine"])
def test_occupancy_has_ground_under_the_ego(town: Town, some: list[Scene], spec: GridSpec) -> None:
    ground = int((-0.01 - spec.lower_m[2]) // spec.voxel_m)
    i, j = (int(-spec.lower_m[k] / spec.voxel_m) for k in (0, 1))
    for scene in some:
        grid = town.occupancy(scene, 20, spec)
        assert grid.source == "labels"
        assert grid.semantics[i, j, ground] == OCC["driveable_surface"]
        assert (grid.semantics[i, j, ground + 1 :] == FREE).all() or spec is COARSE
        assert (grid.semantics[..., :ground] == FREE).all()
        assert (grid.semantics[..., ground] != FREE).all()
    classes = set(np.unique([town.occupancy(s, 20, spec).semantics for s in some]))
    assert {OCC[c] for c in ("car", "pedestrian", "sidewalk", "terrain", "manmade", "vegetation")} <= classes


@pytest.mark.slow
def test_static_objects_do_not_move(town: Town, some: list[Scene]) -> None:
    """Two keyframes agree at the same global points, except at voxel edges and for moving objects."""
    spec = OCC3D_GRID
    standing = np.array([OCC[c] for c in ("driveable_surface", "other_flat", "sidewalk", "terrain", "manmade", "vegetation")])
    moved = 0
    for scene in some[:4]:
        one, two = scene.keyframes[8], scene.keyframes[20]
        moved += np.hypot(*(lidar_xy(scene)[20] - lidar_xy(scene)[8])) > 5
        there = geometry.invert(two.global_T_ego.matrix) @ one.global_T_ego.matrix
        centres = np.stack(np.meshgrid(*(spec.centres(k) for k in range(3)), indexing="ij"), -1).reshape(-1, 3)
        at = np.floor((geometry.apply(there, centres) - spec.lower_m) / spec.voxel_m).astype(int)
        inside = ((at >= 0) & (at < spec.shape)).all(1)
        a = town.occupancy(scene, 8, spec).semantics.reshape(-1)[inside]
        b = town.occupancy(scene, 20, spec).semantics[tuple(at[inside].T)]
        both = np.isin(a, standing) & np.isin(b, standing)
        assert both.sum() > 10_000
        assert (a == b)[both].mean() > 0.95
        assert ((a == FREE) == (b == FREE)).mean() > 0.95
    assert moved >= 2


@pytest.mark.slow
def test_boxes_in_occupancy_follow_the_boxes(town: Town, some: list[Scene]) -> None:
    """Every pedestrian in the grid fills at least one voxel at its position, also on the coarse grid."""
    adult, found = CATEGORY_INDEX["human.pedestrian.adult"], 0
    for scene in some:
        keyframe = scene.keyframes[10]
        boxes = keyframe.boxes.moved(geometry.invert(keyframe.global_T_ego.matrix), "ego")
        grid = town.occupancy(scene, 10, COARSE).semantics
        at = np.floor((boxes.centre_m[:, :2] - COARSE.lower_m[:2]) / 0.8).astype(int)
        for k in np.flatnonzero((boxes.label == adult) & ((at >= 0) & (at < 80)).all(1)):
            found += 1
            assert OCC["pedestrian"] in grid[at[k, 0], at[k, 1]]
    assert found > 10


def test_a_box_fills_the_voxels_whose_centres_it_holds() -> None:
    spec = GridSpec((20, 20, 6), (-4.0, -4.0, -0.6), 0.4)
    grid = np.full(spec.shape, FREE, np.uint8)
    label = np.array([CATEGORY_INDEX["vehicle.car"], CATEGORY_INDEX["movable_object.trafficcone"]])
    centre, size = np.array([[0.0, 0, 0.6], [3.0, 3.0, 0.1]]), np.array([[2.4, 0.8, 1.2], [0.05, 0.05, 0.2]])
    boxes = Boxes("ego", centre, size, np.array([np.pi / 2, 0.3]), label, ("a", "b"), np.ones(2, np.int64))
    paint_boxes(grid, boxes, spec)
    # Turned by 90 degrees: 2.4 m long across 6 voxels of y, 0.8 m wide across 2 of x, centres 0.4 and 0.8 m high (1.2 is its top).
    car = np.argwhere(grid == OCC["car"])
    np.testing.assert_array_equal(car.min(0), [9, 7, 2])
    np.testing.assert_array_equal(car.max(0)[:2], [10, 12])
    assert len(car) == 2 * 6 * (car.max(0)[2] - 1)
    np.testing.assert_array_equal(np.argwhere(grid == OCC["traffic_cone"]), [[17, 17, 1]])


def test_columns_have_ground_below_and_objects_above() -> None:
    table = column_table(-1.0, 16, 0.4)
    assert (table[:, :2] == FREE).all()
    assert set(table[:, 2]) == {OCC[c] for c in ("terrain", "driveable_surface", "sidewalk", "other_flat")}
    building = table[1]
    np.testing.assert_array_equal(np.flatnonzero(building == OCC["manmade"]), np.arange(3, 10))


def test_fill_takes_cells_whose_centre_is_inside() -> None:
    ring = shapely.Point(3.1, 4.2).buffer(2.5).difference(shapely.Point(3.3, 4.0).buffer(1.0))
    two = shapely.union(ring, shapely.box(6.05, 0.3, 12.0, 1.45))
    window_, mask = fill(two, np.array([0.0, 0.0]), 0.25, (40, 36))
    painted = np.zeros((40, 36), bool)
    painted[window_] = mask
    x, y = np.meshgrid((np.arange(40) + 0.5) * 0.25, (np.arange(36) + 0.5) * 0.25, indexing="ij")
    np.testing.assert_array_equal(painted, shapely.contains_xy(two, x, y))


@pytest.mark.slow
def test_towns_give_observations_and_targets(town: Town, some: list[Scene]) -> None:
    observation, target = window(town, some[0], 12, spec=COARSE)
    assert len(observation.occupancy) == 5
    assert len(target.occupancy) == 6
    assert target.trajectory.complete()
    assert not window(town, some[0], 38)[1].trajectory.complete()
