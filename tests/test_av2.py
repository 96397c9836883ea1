"""Argoverse 2 sensor logs: generated ones, and real ones if they are available."""

from __future__ import annotations

import builtins
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from scipy.spatial.transform import Rotation

from iidrive.cli.main import main
from iidrive.core.classes import CATEGORIES, OCC
from iidrive.core.errors import ConfigError, DataError
from iidrive.core.scene import OCC3D_GRID, GridSpec
from iidrive.data import Data
from iidrive.data.av2.categories import CATEGORY, WITHOUT_COUNTERPART
from iidrive.data.av2.log import AXLE_HEIGHT_M, keyframe_moments, read_log
from iidrive.data.av2.map import map_file, read_map
from iidrive.data.av2.source import AV2, AV2Config
from iidrive.data.source import true_path
from iidrive.data.town.source import TownConfig
from iidrive.scoring.cases import read_cases
from iidrive.scoring.predictions import write_predictions

pytest.importorskip("pyarrow", reason="Argoverse 2 is read with pyarrow: pip install 'iidrive[av2]'")
import tiny_av2

SPEC = GridSpec((80, 80, 8), (-32.0, -32.0, -1.6), 0.8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tiny_av2.make(tmp_path / "av2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> AV2:
    """Generated logs that no test modifies."""
    return AV2(tiny_av2.make(tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def real_root(shared: Path) -> Path:
    """Three real logs."""
    if not (shared / "data" / "av2").is_dir():
        pytest.skip("the shared data have no Argoverse 2 logs (data/av2)")
    return shared / "data" / "av2"


@pytest.fixture(scope="module")
def real(real_root: Path) -> AV2:
    return AV2(real_root)


def test_a_made_log_in_numbers(whole: AV2) -> None:
    scene = whole.scene("log-b")
    assert len(scene) == 12  # timestamps 0, 5, …, 55 of 56
    first = scene.keyframes[0]
    assert first.token == "log-b_315970000000000000"
    assert np.diff([k.timestamp_us for k in scene.keyframes]).tolist() == [500_000] * 11
    for k, keyframe in enumerate(scene.keyframes):
        np.testing.assert_allclose(keyframe.global_T_ego.translation_m, [500.0 + 2.5 * k, 0, 0], atol=1e-9)  # on the ground
        car = keyframe.boxes.track.index("log-b-car-1")
        np.testing.assert_allclose(keyframe.boxes.centre_m[car], [560, 3, 0.85], atol=1e-9)
        assert keyframe.boxes.size_m[car].tolist() == [4.6, 1.9, 1.7]
        assert abs(keyframe.boxes.yaw_rad[car]) == pytest.approx(np.pi)
        walker = keyframe.boxes.track.index("log-b-walker-1")
        np.testing.assert_allclose(keyframe.boxes.centre_m[walker], [520, -8 + 0.5 * k, 0.9], atol=1e-9)
        assert [CATEGORIES[label] for label in keyframe.boxes.label] == ["vehicle.car", "human.pedestrian.adult"]
        assert keyframe.boxes.lidar_points.tolist() == [10, 10]
    np.testing.assert_allclose(first.ego_T_lidar.translation_m, [1.3, 0, 1.6 + AXLE_HEIGHT_M], atol=1e-12)
    np.testing.assert_allclose(first.ego_T_lidar.matrix[:3, :3], [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], atol=1e-12)  # x right, y forward
    np.testing.assert_allclose(true_path(scene, 0).points_m, [[0, 2.5 * t] for t in range(1, 7)], atol=1e-5)


def test_a_made_map(whole: AV2) -> None:
    found = whole.scene("log-a").map
    assert set(found.layers) == {"drivable_area", "ped_crossing", "lane_divider", "road_divider", "centreline"}
    assert found.layers["drivable_area"].bounds == (-50, -10, 150, 10)
    assert found.layers["ped_crossing"].area == pytest.approx(3 * 20)
    # the yellow line is in both lanes, with opposite directions
    assert found.layers["road_divider"].length == pytest.approx(90)
    assert found.layers["lane_divider"].length == pytest.approx(2 * 90 + 200)  # the outer lines, and the bicycle lane's
    lanes = {lane.id: lane for lane in found.lanes}
    assert set(lanes) == {"1", "2", "11", "12"}
    np.testing.assert_allclose(lanes["1"].centreline_m, [[-50, 2], [40, 2]])
    np.testing.assert_allclose(lanes["11"].centreline_m, [[40, 6], [-50, 6]])
    assert lanes["1"].successors == ("2",)  # 99 is not on the map
    assert lanes["12"].successors == ("11",)
    assert lanes["1"].junction == lanes["11"].junction == ""
    assert lanes["2"].junction == lanes["12"].junction == found.junctions[0].id
    assert found.junctions[0].polygon.equals(shapely.box(40, 0, 150, 8))


def test_derived_occupancy_has_road_car_and_pedestrian(whole: AV2) -> None:
    scene = whole.scene("log-a")
    grid = whole.occupancy(scene, 11, OCC3D_GRID)  # the ego stands at x = 27.5
    assert grid.source == "derived"

    def at(x: float, y: float, z: float) -> int:
        place = [int((v - low) / 0.4) for v, low in zip((x, y, z), OCC3D_GRID.lower_m, strict=True)]
        return int(grid.semantics[tuple(place)])

    assert at(60 - 27.5, 3, 0.9) == OCC["car"]
    assert at(20 - 27.5, -2.5, 0.9) == OCC["pedestrian"]
    assert at(10, -9.5, -0.8) == OCC["driveable_surface"]
    assert at(10, -11, -0.8) == at(10, 5, 0.9) == OCC["free"]


def test_every_category_is_mapped_or_listed_as_without_counterpart() -> None:
    assert set(CATEGORY.values()) <= set(CATEGORIES)
    assert not set(CATEGORY) & set(WITHOUT_COUNTERPART)
    assert len(CATEGORY) + len(WITHOUT_COUNTERPART) == 30  # the official taxonomy


def test_keyframes_follow_the_time_and_not_the_count() -> None:
    even = np.arange(20) * 100_000_000
    assert (keyframe_moments(even, "x") == even[[0, 5, 10, 15]]).all()
    one_missing = np.delete(even, 5)  # 0.4 s and 0.6 s are equally near: the earlier one is used, and the next is 0.5 s later
    assert (keyframe_moments(one_missing, "x") // 100_000_000 == [0, 4, 9, 14, 19]).all()
    late = even + np.where(np.arange(20) == 10, 40_000_000, 0)
    assert (keyframe_moments(late, "x") == late[[0, 5, 10, 15]]).all()
    assert (keyframe_moments(even[:1], "x") == 0).all()
    with pytest.raises(
        DataError, match=r"x: keyframes are 0.5 s apart, but there are no annotations from 200000000 to 800000000 ns \(0.60 s\)"
    ):
        keyframe_moments(np.delete(even, [3, 4, 5, 6, 7]), "x")


def test_both_layouts_and_a_root_that_is_one_level_off(root: Path, tmp_path: Path) -> None:
    names = AV2(root).scene_names("val")
    assert names == AV2(root / "sensor").scene_names("val") == ("log-b", "log-c")
    assert AV2(root).identity() == AV2(root / "sensor").identity()
    for given, what in ((root / "sensor" / "val", "split"), (root / "sensor" / "val" / "log-b", "log")):
        with pytest.raises(DataError, match=f"{given} is itself a {what}; `root` must be {root / 'sensor'}"):
            AV2(given)
    with pytest.raises(DataError, match="holds no train/, val/ or test/"):
        AV2(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        AV2(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="needs --root"):
        AV2("")
    (root / "sensor" / "train" / "log-b").mkdir()
    with pytest.raises(DataError, match="log log-b is in train/ and in val/"):
        AV2(root)


def test_splits(root: Path, tmp_path: Path) -> None:
    source = AV2(root)
    assert source.scene_names("train") == ("log-a",)
    assert source.scene_names("all") == ("log-a", "log-b", "log-c")
    with pytest.raises(ConfigError, match="has no split 'test'; splits that it has: train, val, all"):
        source.scene_names("test")
    listed = tmp_path / "fold.txt"
    listed.write_text("log-c\nlog-a\n")
    assert source.scene_names(str(listed)) == ("log-c", "log-a")
    listed.write_text("log-c\nlog-x\n")
    with pytest.raises(DataError, match=r"fold.txt: 1 of 2 logs are not in .*\(log-x\)"):
        source.scene_names(str(listed))


def test_identity_changes_with_the_files(root: Path) -> None:
    before = AV2(root).identity()
    assert before["logs"] == {"train": 1, "val": 2}
    table = root / "sensor" / "val" / "log-c" / "annotations.feather"
    tiny_av2.edit(table, lambda columns: [column.pop() for column in columns.values()])
    assert AV2(root).identity()["files_sha256"] != before["files_sha256"]


Change = Callable[[Path], object]


def column(name: str, value: Any, row: int = 0, file: str = "annotations.feather") -> Change:
    """A change that writes one value into a column of a log's file."""
    return lambda log: tiny_av2.edit(log / file, lambda columns: columns[name].__setitem__(row, value))


def without(name: str, file: str = "annotations.feather") -> Change:
    return lambda log: tiny_av2.edit(log / file, lambda columns: columns.pop(name))


def cut(name: str) -> Change:
    """A change that truncates a file to half its size, like an interrupted download."""

    def change(log: Path) -> None:
        path = next(log.glob(name))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return change


def in_map(change: Callable[[dict[str, Any]], object]) -> Change:
    def changed(log: Path) -> None:
        path = next((log / "map").iterdir())
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return changed


def double(log: Path) -> None:
    tiny_av2.edit(log / "annotations.feather", lambda columns: [values.append(values[0]) for values in columns.values()])


def fewer_poses(log: Path) -> None:
    tiny_av2.edit(log / "city_SE3_egovehicle.feather", lambda columns: [values.pop(10) for values in columns.values()])


POSES, CALIBRATION = "city_SE3_egovehicle.feather", "calibration/egovehicle_SE3_sensor.feather"


@pytest.mark.parametrize(
    ("change", "file", "sentence"),
    [
        (lambda log: (log / "annotations.feather").unlink(), "annotations.feather", "no such file"),
        (lambda log: (log / POSES).unlink(), POSES, "no such file"),
        (cut("annotations.feather"), "annotations.feather", "not a complete feather file"),
        (cut(POSES), POSES, "not a complete feather file"),
        (cut("map/*.json"), "map/log_map_archive_log-b____MIA_city_1.json", "JSON"),
        (without("track_uuid"), "annotations.feather", "there is no column 'track_uuid'"),
        (without("tx_m", POSES), POSES, "there is no column 'tx_m'"),
        (column("tx_m", float("nan")), "annotations.feather", "column 'tx_m' holds nan"),
        (column("ty_m", float("inf"), 0, POSES), POSES, "column 'ty_m' holds inf"),
        (column("tx_m", 9e4, 10, POSES), POSES, "the car moves"),
        (column("length_m", -4.0), "annotations.feather", "expected more than 0"),
        (column("qw", 3.0), "annotations.feather", "the quaternion in row 0 has norm"),
        (
            column("category", "REGULAR_VEHICEL"),
            "annotations.feather",
            "unknown category 'REGULAR_VEHICEL'. Did you mean 'REGULAR_VEHICLE'?",
        ),
        (column("track_uuid", "y" * 300), "annotations.feather", "column 'track_uuid' holds 'yyy"),
        (column("track_uuid", None), "annotations.feather", "column 'track_uuid' is empty in 1 of"),
        (double, "annotations.feather", "track log-b-car-1 appears twice"),
        (fewer_poses, POSES, "no pose at 315970000500000000 ns"),
        (column("sensor_name", "down_lidar", 0, CALIBRATION), CALIBRATION, "expected one row for the sensor up_lidar; found down_lidar"),
        (in_map(lambda m: m.pop("lane_segments")), "map/log_map_archive_log-b____MIA_city_1.json", "no table or field 'lane_segments'"),
        (
            in_map(lambda m: m["drivable_areas"]["1"]["area_boundary"][0].update(x=float("nan"))),
            "map/log_map_archive_log-b____MIA_city_1.json",
            "finite x and y",
        ),
        *(
            (in_map(lambda m, change=change: m["lane_segments"]["11"].update(change)), "map/log_map_archive_log-b____MIA_city_1.json", said)
            for change, said in (
                ({"id": float("nan")}, "lane 11 has the id nan"),
                ({"id": 12}, "lane 11 has the id 12"),
                ({"successors": "x"}, "and the successors x"),
                ({"successors": [True]}, "and the successors [True]"),
                ({"left_lane_mark_type": "DOUBLE_SOLID_YELLOG"}, "marks by name"),
            )
        ),
    ],
)
def test_a_damaged_log_is_left_out_and_named_and_the_others_are_read(
    root: Path, tmp_path: Path, change: Change, file: str, sentence: str
) -> None:
    log = root / "sensor" / "val" / "log-b"
    change(log)
    source = AV2(root)
    assert source.scene_names("val") == ("log-c",)
    told = [line for line in source.missing() if "left out" in line and "nuScenes" not in line]
    assert len(told) == 1
    assert told[0].startswith("log log-b is left out: ")
    assert str(log / file) in told[0]
    assert sentence in told[0]
    with pytest.raises(DataError, match="log-b"):
        source.scene("log-b")
    listed = tmp_path / "complete.txt"  # a list of scenes must be complete
    listed.write_text("log-b\nlog-c\n")
    with pytest.raises(DataError, match=r"complete.txt: log log-b cannot be read: .*log-b"):
        source.scene_names(str(listed))


@pytest.mark.parametrize("names", [("1", "11"), ("11", "1")])
def test_a_shared_boundary_is_yellow_if_one_lane_says_so(names: tuple[str, str], tmp_path: Path) -> None:
    """Lanes 1 and 11 share y = 4. The order of the lanes in the file does not matter."""
    log = tiny_av2.log(tmp_path / "log-b")

    def change(whole: dict[str, Any]) -> None:
        lanes = whole["lane_segments"]
        whole["lane_segments"] = {name: lanes[name] for name in names}
        lanes["1"]["left_lane_mark_type"] = "DASHED_WHITE"

    in_map(change)(log)
    path = map_file(log)
    assert path is not None
    layers = read_map(path).layers
    assert layers["road_divider"].bounds == (-50, 4, 40, 4)
    assert layers["lane_divider"].bounds == (-50, 0, 40, 8)
    assert layers["lane_divider"].length == 180


def test_one_broken_log_among_many(tmp_path: Path) -> None:
    names = tuple(f"log-{k:03d}" for k in range(20))
    root = tiny_av2.make(tmp_path, {"val": names}, moments=11)
    (root / "sensor" / "val" / "log-007" / "annotations.feather").write_bytes(b"")
    assert AV2(root).scene_names("val") == tuple(name for name in names if name != "log-007")
    for name in names[:8]:
        (root / "sensor" / "val" / name / "annotations.feather").write_bytes(b"")
    told = AV2(root).missing()
    assert sum(line.startswith("log log-") for line in told) == 5
    assert "and 3 more logs are left out" in told
    for name in names:
        (root / "sensor" / "val" / name / "annotations.feather").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 20 logs of split 'val' can be read: .*log-000.annotations.feather"):
        AV2(root).scene_names("val")


def test_log_summaries_are_cached_until_their_files_change(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = AV2Config(str(root), str(tmp_path / "cache"))
    read: list[str] = []

    def counted(folder: Path) -> Any:
        read.append(folder.name)
        return read_log(folder)

    monkeypatch.setattr("iidrive.data.av2.source.read_log", counted)
    told = AV2(config).missing()
    assert read == ["log-a", "log-b", "log-c"]
    read.clear()
    again = AV2(config)
    assert again.missing() == told
    assert read == []
    assert again.scene_names("val") == ("log-b", "log-c")
    assert len(again.scene("log-b")) == 12
    assert read == ["log-b"]
    read.clear()
    tiny_av2.edit(root / "sensor" / "val" / "log-c" / "annotations.feather", lambda columns: columns.pop("track_uuid"))
    assert AV2(config).scene_names("val") == AV2(config).scene_names("val") == ("log-b",)
    assert read == ["log-c", "log-c"]  # unreadable logs are tried every time
    for damaged in ("", "[]", "{}", '{"version": 1, "logs": 2}', '{"logs": {"log-a": 3}}'):
        read.clear()
        next((tmp_path / "cache").iterdir()).write_text(damaged)
        AV2(config).missing()
        assert read == ["log-a", "log-b", "log-c"]


def test_a_log_without_map_has_no_road(root: Path) -> None:
    log = root / "sensor" / "val" / "log-c"
    for path in (log / "map").iterdir():
        path.unlink()
    source = AV2(root)
    assert source.scene_names("val") == ("log-b", "log-c")
    assert f"{log / 'map' / 'log_map_archive_….json'} is missing: 1 of 3 logs have no map" in source.missing()
    scene = source.scene("log-c")
    assert not scene.map.layers
    assert not (source.occupancy(scene, 0, SPEC).semantics == OCC["driveable_surface"]).any()


def test_a_log_without_calibration_has_the_usual_lidar(root: Path) -> None:
    path = root / "sensor" / "val" / "log-c" / CALIBRATION
    path.unlink()
    source = AV2(root)
    assert f"{path} is missing: in 1 of 3 logs the lidar stands where it usually does" in source.missing()
    np.testing.assert_allclose(source.scene("log-c").keyframes[0].ego_T_lidar.translation_m, [1.35, 0, 1.64 + AXLE_HEIGHT_M], atol=1e-12)
    np.testing.assert_allclose(source.scene("log-b").keyframes[0].ego_T_lidar.translation_m, [1.3, 0, 1.6 + AXLE_HEIGHT_M], atol=1e-12)


def test_cuboids_of_the_ego_and_of_unmapped_categories_are_left_out(root: Path) -> None:
    table = root / "sensor" / "train" / "log-a" / "annotations.feather"

    def add_ego(columns: tiny_av2.Columns) -> None:
        for k in range(56):
            row = {"timestamp_ns": tiny_av2.FIRST_NS + k * tiny_av2.STEP_NS, "track_uuid": "ego", "category": "EGO_VEHICLE"}
            row |= {"length_m": 4.9, "width_m": 2.0, "height_m": 1.5, "num_interior_pts": 0} | tiny_av2.pose(1.4, 0.0, 0.5, 0.0)
            for name, values in columns.items():
                values.append(row[name])

    tiny_av2.edit(table, add_ego)
    source = AV2(root)
    assert {track for k in source.scene("log-a").keyframes for track in k.boxes.track} == {"log-a-car-1", "log-a-walker-1"}
    assert f"{table} has cuboids of the car itself: left out of 1 logs" in source.missing()
    assert "nuScenes has no category for 36 STOP_SIGN: these cuboids are left out of the keyframes" in source.missing()


def test_the_test_split_has_no_cuboids_and_is_refused(root: Path) -> None:
    log = tiny_av2.log(root / "sensor" / "test" / "log-t")
    (log / "annotations.feather").unlink()
    source = AV2(root)
    assert source.scene_names("all") == ("log-a", "log-b", "log-c")
    with pytest.raises(DataError, match=r"log-t/annotations.feather is missing: the cuboids of Argoverse 2's test split are not public"):
        source.scene_names("test")
    assert sum("log-t/annotations.feather" in line for line in source.missing()) == 1


def test_camera_and_lidar_folders_do_not_matter(root: Path) -> None:
    before = AV2(root).identity()
    (root / "sensor" / "val" / "log-b" / "sensors" / "cameras" / "ring_front_center").mkdir(parents=True)
    assert AV2(root).identity() == before


def test_without_pyarrow_one_sentence_says_what_to_install(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def refused(name: str, *arguments: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return real_import(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", refused)
    with pytest.raises(ConfigError, match=r"pip install 'iidrive\[av2\]'"):
        AV2(root)


def test_options_that_only_nuscenes_has_are_refused(root: Path) -> None:
    for data, named in (
        (Data("av2", str(root), version="v1.0"), "--version"),
        (Data("av2", str(root), occupancy="labels"), "--occupancy labels"),
        (Data("av2", str(root), version="v", predicted="p"), "--version, --predicted"),
    ):
        with pytest.raises(ConfigError, match=named):
            data.open(TownConfig())


def lines(text: str) -> dict[str, list[str]]:
    """The rows of the reference table, by their first word."""
    return {cells[0]: cells[1:] for line in text.splitlines() if (cells := line.replace("|", " ").split()) and len(cells) > 6}


def test_the_true_path_of_made_logs_scores_zero(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["score", "--data", "av2", "--root", str(root), "--json", str(tmp_path / "s.json")])
    shown = capsys.readouterr().out
    assert "24 samples of av2 val, 12 with a full future" in shown
    found = json.loads((tmp_path / "s.json").read_text())["sparsedrive"]
    assert found["n_scored"] == 12
    assert found["per_step"]["L2"] == [0.0] * 6


@pytest.mark.slow
def test_commands_that_work_on_nuscenes_work_here(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training, tokens, evaluation, audit and cases, each as small as possible."""
    monkeypatch.chdir(tmp_path)
    data = ["--data", "av2", "--root", str(root)]
    main(["cases", *data, "--out", "c.npz"])
    main(["evaluate", "ctrv", *data, "--recipe", "tiny"])
    assert "data: av2 val · occupancy: derived · command: oracle" in capsys.readouterr().out
    main(["score", "c.npz"])
    main(["train", "tokenizer", *data, "--recipe", "tiny", "--run", "t"])
    main(["tokens", "t", "tokens", *data])
    main(["train", "world", "t", *data, "--recipe", "tiny", "--run", "w", "--tokens", "tokens"])
    main(["train", "planner", "w", *data, "--recipe", "tiny", "--run", "p"])
    main(["evaluate", "p", *data, "--test-ii", "on", "--run", "e"])
    main(["audit", "p", *data, "--samples", "4"])
    shown = capsys.readouterr().out
    assert f"next: iidrive train world t --data=av2 --root={root}" in shown


@pytest.mark.slow
def test_a_plan_into_a_parked_car_collides(root: Path, tmp_path: Path) -> None:
    data = ["--data", "av2", "--root", str(root)]
    main(["cases", *data, "--out", str(tmp_path / "c.npz")])
    cases = read_cases(str(tmp_path / "c.npz"))
    paths = cases.true_path()
    # the car of log-b stands 60 m ahead of the first keyframe's axle and 3 m to its left, so 58.7 m ahead of the lidar
    paths[cases.token.index("log-b_315970000000000000")] = [[-3.0 * t / 6, 58.7 * t / 6] for t in range(1, 7)]
    write_predictions(str(tmp_path / "p.npz"), cases.token, paths)
    main(["score", *data, "--predictions", str(tmp_path / "p.npz"), "--json", str(tmp_path / "s.json")])
    found = json.loads((tmp_path / "s.json").read_text())["sparsedrive"]
    assert found["events"]["obj_box_col"] == [0, 0, 0, 0, 0, 1]
    assert found["events"]["obj_col"] == [0] * 6


def raw(log: Path, name: str) -> dict[str, np.ndarray]:
    """The columns of a feather file as arrays, read by pyarrow's record batches and not by iidrive."""
    import pyarrow.ipc

    table = pyarrow.ipc.open_file(str(log / name)).read_all()
    return {column: np.array(table[column].to_pylist()) for column in table.column_names}


def transforms(columns: dict[str, np.ndarray]) -> np.ndarray:
    """4x4 of a table's quaternions and translations, by scipy."""
    out = np.tile(np.eye(4), (len(columns["qw"]), 1, 1))
    out[:, :3, :3] = Rotation.from_quat(np.stack([columns[q] for q in ("qx", "qy", "qz", "qw")], -1)).as_matrix()
    out[:, :3, 3] = np.stack([columns[t] for t in ("tx_m", "ty_m", "tz_m")], -1)
    return out


def test_real_boxes_and_poses_equal_an_independent_reading(real: AV2, real_root: Path) -> None:
    boxes = 0
    for log in sorted((real_root / "sensor").glob("*/*")):
        annotations, pose_table = raw(log, "annotations.feather"), raw(log, "city_SE3_egovehicle.feather")
        cuboids, poses = transforms(annotations), dict(zip(pose_table["timestamp_ns"].tolist(), transforms(pose_table), strict=True))
        moments = np.unique(annotations["timestamp_ns"])[::5]
        scene = real.scene(log.name)
        assert [k.token for k in scene.keyframes] == [f"{log.name}_{at}" for at in moments]
        assert len(scene) == 32
        for keyframe, at in zip(scene.keyframes, moments.tolist(), strict=True):
            pose = poses[at]
            on_ground = pose[:3, 3] - AXLE_HEIGHT_M * pose[:3, 2]
            np.testing.assert_allclose(keyframe.global_T_ego.translation_m, on_ground, atol=1e-6)
            np.testing.assert_allclose(keyframe.global_T_ego.matrix[:3, :3], pose[:3, :3], atol=1e-6)
            rows = np.flatnonzero((annotations["timestamp_ns"] == at) & ~np.isin(annotations["category"], WITHOUT_COUNTERPART))
            expected = pose @ cuboids[rows]
            assert keyframe.boxes.track == tuple(annotations["track_uuid"][rows])
            np.testing.assert_allclose(keyframe.boxes.centre_m, expected[:, :3, 3], atol=1e-6)
            turn = Rotation.from_matrix(expected[:, :3, :3]).as_euler("ZYX")[:, 0] - keyframe.boxes.yaw_rad
            np.testing.assert_allclose(np.cos(turn), 1, atol=1e-9)
            for column, name in enumerate(("length_m", "width_m", "height_m")):
                np.testing.assert_array_equal(keyframe.boxes.size_m[:, column], annotations[name][rows])
            np.testing.assert_array_equal(keyframe.boxes.lidar_points, annotations["num_interior_pts"][rows])
            boxes += len(rows)
    assert boxes > 7000


def test_real_tracks_last_over_keyframes(real: AV2) -> None:
    for name in real.scene_names("all"):
        lengths = Counter(track for keyframe in real.scene(name).keyframes for track in keyframe.boxes.track)
        assert max(lengths.values()) == 32


def test_the_real_ego_stands_on_the_ground_of_the_height_raster(real: AV2, real_root: Path) -> None:
    for log in sorted((real_root / "sensor").glob("*/*")):
        place = json.loads(next((log / "map").glob("*Sim2*.json")).read_text())
        raster = np.load(next((log / "map").glob("*ground_height*.npy"))).astype(float)
        at = np.array([k.global_T_ego.translation_m for k in real.scene(log.name).keyframes])
        column, row = np.floor((at[:, :2] + place["t"]) * place["s"]).astype(int).T
        assert abs(np.nanmedian(at[:, 2] - raster[row, column])) < 0.05


def test_real_cars_stand_on_the_road_and_in_lanes(real: AV2) -> None:
    for name in real.scene_names("all"):
        scene = real.scene(name)
        path = shapely.points([k.global_T_ego.translation_m[:2] for k in scene.keyframes])
        assert shapely.contains(scene.map.layers["drivable_area"], path).all()
        lanes = shapely.union_all([lane.polygon for lane in scene.map.lanes])
        assert shapely.contains(lanes, path).mean() > 0.9
        forward = np.array([k.global_T_ego.matrix[:2, 0] for k in scene.keyframes])
        agree = []
        for point, heading in zip(path, forward, strict=True):
            inside = [lane for lane in scene.map.lanes if lane.polygon.contains(point) and not lane.junction]
            for lane in inside:
                pieces = shapely.linestrings(np.stack([lane.centreline_m[:-1], lane.centreline_m[1:]], 1))
                piece = int(np.argmin(shapely.distance(pieces, point)))
                direction = lane.centreline_m[piece + 1] - lane.centreline_m[piece]
                agree.append(float(direction @ heading / np.linalg.norm(direction)))
        assert np.median(agree) > 0.98  # the car drives the way its lane runs


def test_the_true_path_of_real_logs_scores_zero(real: AV2, real_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["score", "--data", "av2", "--root", str(real_root), "--split", "all", "--json", str(tmp_path / "s.json")])
    assert "96 samples of av2 all, 78 with a full future" in capsys.readouterr().out
    found = json.loads((tmp_path / "s.json").read_text())["sparsedrive"]
    assert found["n_scored"] == 78  # 3 logs, each without its last six keyframes
    assert found["per_step"]["L2"] == [0.0] * 6


def test_missing_parts_of_real_logs_are_reported(real: AV2) -> None:
    assert "val holds 2 of the 150 official logs: scores are of these" in real.missing()
    assert "nuScenes has no category for 123 SIGN: these cuboids are left out of the keyframes" in real.missing()
    assert not any("log " in line for line in real.missing())


def test_text_that_is_not_utf_8_is_named(root: Path) -> None:
    path = root / "sensor" / "val" / "log-b" / "annotations.feather"
    import pyarrow
    from pyarrow import feather

    feather.write_feather(pyarrow.table(tiny_av2.read(path)), str(path), compression="uncompressed")
    content = path.read_bytes()
    assert b"REGULAR_VEHICLE" in content
    path.write_bytes(content.replace(b"REGULAR_VEHICLE", b"REGULAR\xe6VEHICLE", 1))
    with pytest.raises(DataError, match=r"annotations\.feather: not a complete feather file"):
        AV2(root).scene("log-b")
