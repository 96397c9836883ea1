"""The nuScenes source: the real mini version, and tiny generated roots with splits, maps and versions."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import shapely
import tiny_nuscenes
from scipy.spatial.transform import Rotation

from iidrive.core import geometry
from iidrive.core.classes import CATEGORIES, FREE, OCC
from iidrive.core.errors import ConfigError, DataError
from iidrive.core.scene import OCC3D_GRID, GridSpec
from iidrive.data.nuscenes.map import LocationMap
from iidrive.data.nuscenes.source import NuScenes, NuScenesConfig
from iidrive.data.nuscenes.splits import SPLITS
from iidrive.data.source import Source, scenes, true_path, window
from iidrive.data.voxelise import voxelise

COARSE = GridSpec((80, 80, 8), (-32.0, -32.0, -1.0), 0.8)
LABELLED = "29796060110c4163b07f06eff4af0753"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def mini(nuscenes_root: Path, cache: str) -> NuScenes:
    return NuScenes(NuScenesConfig(str(nuscenes_root), cache=cache))


@pytest.fixture(scope="module")
def labelled(nuscenes_root: Path, shared: Path, cache: str) -> NuScenes:
    return NuScenes(NuScenesConfig(str(nuscenes_root), gts=str(shared / "data" / "occ3d" / "gts"), cache=cache))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_nuscenes.make(tmp_path / "nuscenes")


def opened(root: Path, **options) -> NuScenes:
    return NuScenes(NuScenesConfig(str(root), cache=str(root.parent / "cache"), **options))


# --- the real mini set


@pytest.mark.slow
def test_mini_has_every_keyframe_and_box(mini):
    found = list(scenes(mini, "all"))
    assert len(found) == 10
    assert sum(len(s) for s in found) == 404
    assert sum(len(k.boxes) for s in found for k in s.keyframes) == 18532
    assert len({t for s in found for k in s.keyframes for t in k.boxes.track}) == 911
    assert sum((k.boxes.lidar_points >= 0).sum() for s in found for k in s.keyframes) == 4583
    assert mini.scene_names("mini_val") == ("scene-0103", "scene-0916")
    assert len(mini.scene_names("mini_train")) == 8
    source: Source = mini
    assert (source.name, source.command_source, source.occupancy_source) == ("nuscenes", "oracle", "derived")


@pytest.mark.slow
def test_mini_first_box_and_pose_are_those_of_the_tables(mini):
    scene = mini.scene("scene-0061")
    first = scene.keyframes[0]
    assert first.token == "ca9a282c9e77460f8360f564131a8af5"
    assert first.timestamp_us == 1532402927647951
    np.testing.assert_allclose(first.global_T_ego.translation_m, [411.3039349319818, 1180.8903791765097, 0.0])
    np.testing.assert_allclose(first.ego_T_lidar.translation_m, [0.943713, 0.0, 1.84023])
    assert first.boxes.track[0] == "3843d35144d84c02b387678f9bc7f2ed"
    assert CATEGORIES[first.boxes.label[0]] == "human.pedestrian.adult"
    np.testing.assert_array_equal(first.boxes.centre_m[0], [423.6, 1167.637, 1.109])
    np.testing.assert_array_equal(first.boxes.size_m[0], [0.891, 0.934, 1.835])  # length, width, height
    assert first.boxes.yaw_rad[0] == pytest.approx(2 * np.arctan2(-0.8037634161558317, 0.5949490489525194))
    assert first.boxes.lidar_points[0] == 6


@pytest.mark.slow
def test_mini_future_path_and_commands_by_an_independent_way(mini, nuscenes_root):
    folder = nuscenes_root / "v1.0-mini"
    pose = {r["token"]: r for r in json.loads((folder / "ego_pose.json").read_text())}
    calibration = {r["token"]: r for r in json.loads((folder / "calibrated_sensor.json").read_text())}
    data = {r["sample_token"]: r for r in json.loads((folder / "sample_data.json").read_text())}

    def lidar_to_global(sample: str) -> np.ndarray:
        out = np.eye(4)
        for record in (pose[data[sample]["ego_pose_token"]], calibration[data[sample]["calibrated_sensor_token"]]):
            step = np.eye(4)
            step[:3, :3] = Rotation.from_quat(np.roll(record["rotation"], -1)).as_matrix()
            step[:3, 3] = record["translation"]
            out = out @ step
        return out

    commands = Counter()
    for scene in scenes(mini, "all"):
        frames = [lidar_to_global(k.token) for k in scene.keyframes]
        for i, keyframe in enumerate(scene.keyframes):
            ahead = [np.linalg.solve(frames[i], f)[:2, 3] for f in frames[i + 1 : i + 7]] or [np.zeros(2)]
            ahead += [ahead[-1]] * (6 - len(ahead))
            np.testing.assert_allclose(true_path(scene, i).points_m, ahead, atol=2e-5)
            expected = "right" if ahead[-1][0] >= 2 else "left" if ahead[-1][0] <= -2 else "straight"
            assert keyframe.command.manoeuvre == expected
            assert keyframe.command.source == "oracle"
            commands[expected] += 1
    assert commands == {"straight": 349, "left": 33, "right": 22}


def test_mini_uses_the_label_where_there_is_one(labelled, shared):
    scene = labelled.scene("scene-1077")
    assert scene.keyframes[27].token == LABELLED
    got = labelled.occupancy(scene, 27, OCC3D_GRID)
    with np.load(shared / "data" / "occ3d" / "gts" / "scene-1077" / LABELLED / "labels.npz") as arrays:
        np.testing.assert_array_equal(got.semantics, arrays["semantics"])
        np.testing.assert_array_equal(got.camera_mask, arrays["mask_camera"].astype(bool))
    assert got.source == "labels"
    assert labelled.occupancy(scene, 26, OCC3D_GRID).source == "derived"
    assert labelled.occupancy_source == "derived"
    assert labelled.identity()["occupancy_keyframes"] == {"labels": 1, "derived": 403}
    coarse = labelled.occupancy(scene, 27, COARSE)
    assert coarse.semantics.shape == COARSE.shape
    assert coarse.source == "labels"


def test_derived_occupancy_agrees_with_the_real_label_as_documented(labelled):
    scene = labelled.scene("scene-1077")
    keyframe = scene.keyframes[27]
    label = labelled.occupancy(scene, 27, OCC3D_GRID)
    boxes = keyframe.boxes.moved(geometry.invert(keyframe.global_T_ego.matrix), "ego")
    derived = voxelise(boxes, scene.map, keyframe.global_T_ego, OCC3D_GRID).semantics
    assert label.camera_mask is not None

    def iou(name: str, mask: np.ndarray) -> float:
        p, t = (derived == OCC[name]) & mask, (label.semantics == OCC[name]) & mask
        return (p & t).sum() / (p | t).sum()

    everywhere = np.ones(OCC3D_GRID.shape, bool)
    assert iou("driveable_surface", label.camera_mask) == pytest.approx(0.945, abs=0.01)
    assert iou("driveable_surface", everywhere) == pytest.approx(0.633, abs=0.01)
    assert iou("car", label.camera_mask) == pytest.approx(0.886, abs=0.01)
    assert iou("car", everywhere) == pytest.approx(0.664, abs=0.01)


@pytest.mark.slow
def test_mini_maps_agree_with_the_path_driven(mini, nuscenes_root):
    for scene in scenes(mini, "all"):
        path = shapely.points(np.array([k.global_T_ego.translation_m[:2] for k in scene.keyframes]))
        road, lanes = scene.map.layers["drivable_area"], scene.map.layers["centreline"]
        assert shapely.is_valid(road)
        assert shapely.contains(road, path).all()
        assert np.median(shapely.distance(lanes, path)) < 1.5
        assert shapely.get_num_coordinates(list(scene.map.layers.values())).sum() < 12000
    assert "ped_crossing" not in mini.scene("scene-0061").map.layers
    raw = json.loads((nuscenes_root / "maps/expansion/singapore-onenorth.json").read_text())["arcline_path_3"]
    ends = [path[-1]["end_pose"][:2] for path in raw.values()]
    drawn = LocationMap(nuscenes_root / "maps/expansion/singapore-onenorth.json").features["centreline"]
    last = np.array([shapely.get_coordinates(line)[-1] for line in drawn])
    assert np.abs(last - ends).max() < 1e-3
    assert all(np.linalg.norm(np.diff(shapely.get_coordinates(line), axis=0), axis=1).max() < 1.0 + 1e-6 for line in drawn)


def test_mini_reports_what_is_missing(labelled):
    told = " / ".join(labelled.missing())
    assert "num_lidar_pts is unknown for 13949 of 18532 boxes" in told
    assert "labels exist for 1 of 404 keyframes; the others are derived" in told
    assert "singapore-onenorth.json has no walkway, ped_crossing" in told


@pytest.mark.slow
def test_window_cuts_a_sample(mini):
    observation, target = window(mini, mini.scene("scene-0103"), 10, spec=COARSE)
    assert len(observation.occupancy) == 5
    assert len(target.occupancy) == 6
    assert target.trajectory.complete()


# --- splits


def test_official_splits_have_the_official_sizes():
    assert {name: len(names) for name, names in SPLITS.items()} == {"train": 700, "val": 150, "test": 150, "mini_train": 8, "mini_val": 2}
    together = [n for s in ("train", "val", "test") for n in SPLITS[s]]
    assert len(set(together)) == 1000
    assert set(SPLITS["mini_train"]) | set(SPLITS["mini_val"]) <= set(SPLITS["train"]) | set(SPLITS["val"])
    assert {"scene-0103", "scene-0916", "scene-0003", "scene-1073"} <= set(SPLITS["val"])


def test_invalid_splits_are_refused(tiny):
    source = opened(tiny)
    assert source.scene_names("all") == source.scene_names("mini_val") == ("scene-0103", "scene-0916")
    with pytest.raises(ConfigError, match="Did you mean 'mini_val'"):
        source.scene_names("minival")
    with pytest.raises(ConfigError, match=r"none of the 150 scenes of split 'test'.*mini_val, all"):
        source.scene_names("test")
    with pytest.raises(DataError, match=r"'val' has 150 scenes.*lacks 148.*scene-0003"):
        source.scene_names("val")
    with pytest.raises(DataError, match="Did you mean 'scene-0916'"):
        source.scene("scene-0961")


# --- a tiny root


def test_tiny_root_gives_the_values_in_its_tables(tiny):
    source = opened(tiny)
    scene = source.scene("scene-0916")
    assert len(scene) == 8
    assert [k.command.manoeuvre for k in scene.keyframes] == ["left"] * 3 + [
        "straight"
    ] * 5  # 2.5 m to the left after five steps, 1.9 m after four
    second = scene.keyframes[1]
    np.testing.assert_allclose(second.global_T_ego.translation_m, [102.5, 50.0, 0.0])  # not the sweep's pose, not the camera's
    assert second.boxes.lidar_points.tolist() == [12, -1]
    np.testing.assert_allclose(second.boxes.size_m[0], [4.6, 1.9, 1.7])
    assert second.boxes.yaw_rad == pytest.approx(0.3)
    assert set(scene.map.layers) == {"drivable_area", "walkway", "ped_crossing", "lane_divider", "centreline"}
    assert shapely.is_empty(scene.map.layers["ped_crossing"])
    road = scene.map.layers["drivable_area"]
    assert shapely.is_valid(road)
    x0, _, x1, _ = shapely.bounds(road)
    assert (x0, x1) == pytest.approx((-20.0, scene.keyframes[-1].global_T_ego.translation_m[0] + 120.0))
    assert shapely.contains_xy(road, 15, 50)
    assert not shapely.contains_xy(road, 6, 50)
    occupancy = source.occupancy(source.scene("scene-0103"), 0, OCC3D_GRID).semantics
    assert occupancy[125, 92, 3] == OCC["car"]  # 10.2 m ahead, 3 m to the right
    assert occupancy[150, 100, 0] == OCC["driveable_surface"]
    assert occupancy[115, 100, 0] == FREE  # the hole
    assert occupancy[150, 113, 0] == OCC["sidewalk"]


def test_writing_to_a_scene_does_not_change_the_source(tiny):
    source = opened(tiny)
    for array in (source.scene("scene-0103").keyframes[0].boxes.centre_m, source.scene("scene-0103").keyframes[0].boxes.yaw_rad):
        array += 5
    again = source.scene("scene-0103").keyframes[0].boxes
    assert again.yaw_rad == pytest.approx(0.3)
    np.testing.assert_allclose(again.centre_m[0], [10.0, 47.0, 0.85])


def test_a_keyframe_without_boxes_is_fine(tiny):
    tiny_nuscenes.edit(tiny, "sample_annotation", list.clear)
    tiny_nuscenes.edit(tiny, "instance", list.clear)
    scene = opened(tiny).scene("scene-0103")
    assert [len(k.boxes) for k in scene.keyframes] == [0] * 8


# --- roots and maps that are not whole


def test_wrong_roots_are_explained(tiny, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"no v1\.0-\* folder \(found nothing\)"):
        opened(empty)
    with pytest.raises(DataError, match="is not a folder"):
        opened(tmp_path / "nowhere")
    with pytest.raises(DataError, match="itself a version folder"):
        opened(tiny / "v1.0-mini")
    with pytest.raises(ConfigError, match="needs --root"):
        NuScenes(NuScenesConfig(""))
    with pytest.raises(DataError, match=r"unknown version 'v1\.0-minni'.*Did you mean 'v1\.0-mini'"):
        opened(tiny, version="v1.0-minni")


def test_with_two_versions_one_must_be_named(tiny):
    tiny_nuscenes.make(tiny, scenes=("scene-0103",), keyframes=3, version="v1.0-trainval")
    with pytest.raises(ConfigError, match=r"v1\.0-mini, v1\.0-trainval"):
        opened(tiny)
    assert opened(tiny, version="v1.0-trainval").scene_names("all") == ("scene-0103",)
    assert len(opened(tiny, version="v1.0-mini").scene_names("all")) == 2


def test_maps_that_are_missing_or_broken(tiny):
    path = tiny / "maps" / "expansion" / "tinytown.json"
    whole = json.loads(path.read_text())
    for change, message in (
        (lambda m: m.pop("node"), "'node'"),
        (lambda m: m["node"].pop(0), "'n0'"),
        (lambda m: m["node"][0].update(x=float("nan")), "node n0"),
        (lambda m: m["polygon"].pop(0), "'p0'"),
        (lambda m: m["arcline_path_3"]["lane-0"][0].update(shape="LXR"), "'X'"),
        (lambda m: m["arcline_path_3"]["lane-0"][0].update(radius=10**400), "too large for any length"),
    ):
        broken = json.loads(json.dumps(whole))
        change(broken)
        path.write_text(json.dumps(broken))
        with pytest.raises(DataError, match=rf"tinytown\.json.*{message}"):
            opened(tiny).scene("scene-0103")
    path.write_text(json.dumps(whole)[:700])
    with pytest.raises(DataError, match=r"tinytown\.json is not a complete map"):
        opened(tiny).scene("scene-0103")
    path.unlink()
    source = opened(tiny)
    scene = source.scene("scene-0103")
    assert not scene.map.layers
    assert (source.occupancy(scene, 0, OCC3D_GRID).semantics == OCC["car"]).any()
    assert "maps/expansion lacks tinytown.json" in " ".join(source.missing())


def test_identity_is_plain_and_follows_the_tables(tiny):
    before = opened(tiny).identity()
    assert json.loads(json.dumps(before)) == before
    assert before["version"] == "v1.0-mini"
    tiny_nuscenes.edit(tiny, "scene", lambda r: r[0].update(description="changed"))
    after = opened(tiny).identity()
    assert after["scene_sha256"] != before["scene_sha256"]
    assert dataclasses.asdict(opened(tiny).config)["root"] == str(tiny)
