"""Derived occupancy on made clouds whose answer can be worked out by hand: a wall, a moving box, what is hidden; its files and their readers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shapely import box as rectangle
from tiny_av2 import FIRST_NS, STEP_NS
from tiny_av2 import make as make_av2
from tiny_av2 import write as write_feather
from tiny_nuscenes import edit, lay_sweeps, make

from iidrive.cli.main import main
from iidrive.core import geometry
from iidrive.core.classes import CATEGORY_INDEX, FREE, IGNORE, OCC
from iidrive.core.errors import ConfigError, DataError
from iidrive.core.scene import OCC3D_GRID, Boxes, Command, GridSpec, Keyframe, Pose, Scene, VectorMap
from iidrive.data import Data
from iidrive.data.av2.source import AV2, AV2Config
from iidrive.data.derive import files
from iidrive.data.derive.grids import Derived, SceneOccupancy
from iidrive.data.derive.objects import BoxesOverTime, inside, thinned
from iidrive.data.derive.surroundings import accumulate, bounds, ground_of
from iidrive.data.derive.sweeps import HasSweeps, Sweep
from iidrive.data.nuscenes.source import NuScenes, NuScenesConfig
from iidrive.data.nuscenes.sweeps import read_points
from iidrive.data.town.source import Town, TownConfig
from iidrive.data.town.visibility import visible
from iidrive.pipeline.derive import write_occupancy

LIDAR = np.array([0.0, 0.0, 1.8])
SPEC = GridSpec((60, 40, 10), (-2.0, -8.0, -1.0), 0.4)
"""x in [-2, 22], y in [-8, 8], z in [-1, 3]; a voxel's centre in x is -1.8 + 0.4 i."""


def boxes(*rows: tuple[str, str, float, float]) -> Boxes:
    """Boxes of 4 x 2 x 1.6 m that stand on z = 0 and head along x: (track, category, x, y)."""
    centre = np.array([(x, y, 0.8) for _, _, x, y in rows]).reshape(-1, 3)
    label = np.array([CATEGORY_INDEX[category] for _, category, _, _ in rows], np.int64)
    n = len(rows)
    return Boxes("global", centre, np.tile((4.0, 2.0, 1.6), (n, 1)), np.zeros(n), label, tuple(row[0] for row in rows), np.full(n, -1))


def scene(*moments: Boxes, surroundings: VectorMap | None = None) -> Scene:
    """A car that stands at the origin for some keyframes."""
    ego, lidar = Pose.from_xy_yaw(0.0, 0.0, 0.0), Pose(geometry.yaw_quaternion(-np.pi / 2), LIDAR)
    frames = [Keyframe(f"k{k}", k * 500_000, ego, lidar, held, Command("straight", "oracle")) for k, held in enumerate(moments)]
    return Scene("made", tuple(frames), surroundings or VectorMap())


def lattice(x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], step: float = 0.1) -> np.ndarray:
    """Points of a block of points, ends included."""
    axes = [np.linspace(low, high, round((high - low) / step) + 1) for low, high in (x, y, z)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def occupancy(of: Scene, *clouds: np.ndarray, at: tuple[int, ...] = (0,)) -> SceneOccupancy:
    """The occupancy of a scene whose lidar measured some clouds, each at a keyframe."""
    over_time = BoxesOverTime.of(of)
    sweeps = [Sweep(500_000 * k, cloud, LIDAR) for k, cloud in zip(at, clouds, strict=True)]
    return SceneOccupancy.of(of, accumulate(of, sweeps, over_time), over_time)


def voxel(made: Derived, x: float, y: float, z: float) -> int:
    """The class of the voxel that holds a point; 255 where it is not known."""
    place = tuple(np.floor((np.array([x, y, z]) - np.array(SPEC.lower_m)) / SPEC.voxel_m).astype(int))
    return int(made.semantics[place]) if made.known[place] else IGNORE


WALL = lattice((10.1, 10.1), (-3.0, 3.0), (0.4, 2.6))
FLOOR = lattice((1.0, 20.0), (-6.0, 6.0), (0.0, 0.0), 0.2)
"""The wall's cloud has no floor behind it: a lidar does not see it there."""


def test_a_wall_is_occupied_free_before_it_and_unknown_behind() -> None:
    made = occupancy(scene(boxes(), boxes()), np.concatenate([WALL, FLOOR[FLOOR[:, 0] < 10]])).keyframe(0, SPEC)
    assert [voxel(made, 10.1, y, 1.8) for y in (-2.5, 0.0, 2.5)] == [OCC["others"]] * 3
    assert {voxel(made, x, 0.0, 1.8) for x in np.arange(0.6, 9.4, 0.4)} == {FREE}, "the ray from the lidar at 1.8 m"
    assert {voxel(made, x, 0.0, 1.8) for x in np.arange(10.6, 20.0, 0.4)} == {IGNORE}
    assert voxel(made, 5.0, 0.0, -0.1 + 0.1) == OCC["other_flat"], "ground that no map names"
    assert {voxel(made, 5.0, 0.0, z) for z in (-0.9, -0.5)} == {IGNORE}, "below the ground"
    assert voxel(made, 5.0, 7.5, 2.5) == IGNORE, "no ray went there"
    assert (made.semantics[~made.known] == FREE).all(), "as in Occ3D, voxels of mask 0 hold 17"


def test_what_a_mask_says_is_seen_is_not_hidden_now() -> None:
    """A wall that stands nearer, measured from the side, hides the wall behind it from the lidar's place at the keyframe."""
    near = lattice((6.1, 6.1), (-6.0, 6.0), (0.4, 3.0))
    standing = scene(boxes(), boxes())
    over_time = BoxesOverTime.of(standing)
    sweeps = [Sweep(0, near, LIDAR), Sweep(1, WALL, np.array([8.0, 0.0, 1.8]))]
    made = SceneOccupancy.of(standing, accumulate(standing, sweeps, over_time), over_time).keyframe(0, SPEC)
    behind = (30, 20, 7)  # x = 10.2, y = 0.2, z = 2.0
    assert made.known[behind]
    assert made.semantics[behind] == OCC["others"]
    assert not made.seen[behind]
    before = (20, 20, 7)
    assert made.seen[before]
    assert (made.known | ~made.seen).all()


def test_looking_at_some_voxels_alone_finds_no_others() -> None:
    """Of some voxels, those are seen that are seen among all, but for a face whose free neighbour was not looked at."""
    rng = np.random.default_rng(0)
    semantics = np.where(rng.random(SPEC.shape) < 0.03, OCC["car"], FREE).astype(np.uint8)
    some = rng.random(SPEC.shape) < 0.5
    everywhere, found = visible(semantics, SPEC, LIDAR), visible(semantics, SPEC, LIDAR, some)
    assert not (found & ~(everywhere & some)).any()
    assert (found == (everywhere & some))[semantics == FREE].all()
    assert 0 < found.sum() < some.sum()


def test_points_in_a_moving_box_move_with_its_track() -> None:
    """A car drives from x = 8 to x = 14 while its back is measured at both ends; its left side is measured at the second keyframe alone."""
    moving = scene(boxes(("car", "vehicle.car", 8.0, 0.0)), boxes(("car", "vehicle.car", 14.0, 0.0)))
    back = lattice((6.1, 6.1), (-0.9, 0.9), (0.3, 1.5))
    side = lattice((12.1, 15.9), (0.9, 0.9), (0.3, 1.5))
    whole = occupancy(moving, back, np.concatenate([back + np.array([6, 0, 0]), side]), at=(0, 1))
    first, second = whole.keyframe(0, SPEC), whole.keyframe(1, SPEC)
    for made, x in ((first, 8.0), (second, 14.0)):
        assert voxel(made, x - 1.9, 0.0, 0.9) == OCC["car"], "its back"
        assert voxel(made, x + 1.5, 0.9, 0.9) == OCC["car"], "its side, which was measured at the second keyframe alone"
        assert voxel(made, x + 0.5, -0.1, 0.9) == IGNORE, "nobody looks into it"
    assert voxel(first, 12.1, 0.0, 0.9) != OCC["car"], "it is not there yet"
    assert not np.isin(first.semantics, [OCC["others"], OCC["other_flat"]]).any(), "no point of it stays behind as a standing thing"
    assert voxel(second, 6.1, 0.0, 1.3) == FREE, "rays to where it is later passed where it was"


def test_a_ray_of_another_moment_does_not_empty_a_box() -> None:
    """At the second keyframe the car is gone and rays pass where it stood; at the first one its inside stays unknown."""
    moving = scene(boxes(("car", "vehicle.car", 8.0, 0.0)), boxes(("car", "vehicle.car", 14.0, 5.0)))
    back = lattice((6.1, 6.1), (-0.9, 0.9), (0.3, 1.5))
    made = occupancy(moving, back, WALL, at=(0, 1)).keyframe(0, SPEC)
    assert voxel(made, 8.5, 0.1, 1.3) == IGNORE
    assert voxel(made, 5.0, 0.1, 1.7) == FREE


def test_a_box_with_hardly_a_point_is_filled() -> None:
    still = scene(boxes(("car", "vehicle.car", 8.0, 0.0)), boxes(("car", "vehicle.car", 14.0, 0.0)))
    made = occupancy(still, np.array([[6.1, 0.0, 1.0]] * 4)).keyframe(0, SPEC)
    assert voxel(made, 8.5, -0.1, 0.9) == OCC["car"]


def test_a_parked_car_is_there_when_nobody_annotates_it() -> None:
    """Three keyframes of a car that stands and of one that drives off; neither is annotated at the fourth."""
    stands, drives = ("a", "vehicle.car", 8.0, 3.0), [("b", "vehicle.car", 8.0 + 2 * k, -3.0) for k in range(3)]
    moments = [boxes(stands, drive) for drive in drives] + [boxes()]
    over_time = BoxesOverTime.of(scene(*moments))
    assert over_time.boxes[3].track == ("a",)
    short = BoxesOverTime.of(scene(*[boxes(stands)] * 2, boxes()))
    assert short.boxes[2].track == (), "annotated twice: nobody saw it stand"


def test_boxes_between_keyframes() -> None:
    """Half way in time is half way in place; of a turn, the short way. A track of one keyframe is there for a quarter of a second."""
    one = boxes(("a", "vehicle.car", 0.0, 0.0), ("left", "vehicle.car", 5.0, 0.0))
    two = boxes(("a", "vehicle.car", 3.0, 0.0), ("new", "vehicle.car", 9.0, 0.0))
    object.__setattr__(one, "yaw_rad", np.array([np.pi - 0.1, 0.0]))
    object.__setattr__(two, "yaw_rad", np.array([-np.pi + 0.1, 0.0]))
    over_time = BoxesOverTime(np.array([0, 500_000]), (one, two))
    half = over_time.at(250_000)
    assert half.track == ("a", "left", "new")
    np.testing.assert_allclose(half.centre_m[0], (1.5, 0, 0.8))
    assert abs(half.yaw_rad[0]) == pytest.approx(np.pi)
    assert over_time.at(100_000).track == ("a", "left")
    assert over_time.at(400_000).track == ("a", "new")
    np.testing.assert_allclose(over_time.at(900_000).centre_m[0], (3, 0, 0.8), err_msg="after the last keyframe they stand")


def test_a_box_holds_its_points_but_the_ground_below_it() -> None:
    found = list(
        inside(np.array([[0.0, 0.0, 0.05], [1.9, 0.9, 0.8], [2.2, 0.0, 0.8], [0.0, 0.0, 1.65]]), boxes(("a", "vehicle.car", 0, 0)), 0.1)
    )
    ((box, rows, local),) = found
    assert (box, sorted(rows.tolist())) == (0, [1, 3])
    np.testing.assert_allclose(local[rows.tolist().index(1)], (1.9, 0.9, 0.0))


def test_the_ground_is_a_lower_envelope() -> None:
    """On a slope of 5 % with a hall of 6 m height on it: the ground is known beside the hall, and rises by 20 % at most below its roof."""
    slope = lattice((-10, 30), (-10, 10), (0, 0), 0.4)
    slope[:, 2] = 0.05 * slope[:, 0]
    roof = (np.abs(slope[:, 0] - 10) < 3) & (np.abs(slope[:, 1]) < 3)
    slope[roof, 2] = 6.0
    spec = bounds(scene(boxes(), boxes()), 0.4)
    ground = ground_of(slope, spec)
    np.testing.assert_allclose(ground(np.array([[-5.0, 5.0], [20.0, -5.0]])), (-0.25, 1.0), atol=0.1)
    assert 0.3 < ground(np.array([[10.0, 0.0]]))[0] < 1.4
    assert np.isnan(ground(np.array([[50.0, 50.0], [1e4, 0.0]]))).all(), "no point is near"
    assert np.isnan(ground_of(slope[:3], spec).z_m).all(), "too few points"


def test_the_map_names_the_ground() -> None:
    """A road with a crossing and a walkway; a kerb stone of 0.5 m is none of them. Where no point was measured, the map stands in."""
    surroundings = VectorMap(
        {
            "drivable_area": rectangle(0, -4, 30, 4),
            "ped_crossing": rectangle(5, 4, 7, 6),
            "walkway": rectangle(0, 4, 30, 7),
        }
    )
    stone = lattice((8.0, 8.3), (5.0, 5.3), (0.1, 0.55), 0.05)
    floor = FLOOR[(FLOOR[:, 0] < 14) & (np.hypot(FLOOR[:, 0] - 12, FLOOR[:, 1]) > 1.5)]
    made = occupancy(scene(boxes(), boxes(), surroundings=surroundings), np.concatenate([floor, stone])).keyframe(0, SPEC)
    assert voxel(made, 4.0, 0.1, 0.1) == OCC["driveable_surface"]
    assert voxel(made, 6.1, 5.1, 0.1) == OCC["driveable_surface"], "a crossing is driven over"
    assert voxel(made, 10.1, 5.1, 0.1) == OCC["sidewalk"]
    assert voxel(made, 10.1, -5.1, 0.1) == OCC["other_flat"]
    assert voxel(made, 8.1, 5.1, 0.5) == OCC["others"]
    column = [voxel(made, 12.1, 0.1, z) for z in np.arange(-0.8, 1.0, 0.4)]
    assert OCC["driveable_surface"] in column, "a hole in the cloud, on the map's road"


def test_rays_stop_a_voxel_before_their_point_and_leave_the_grid_quietly() -> None:
    around = accumulate(
        scene(boxes(), boxes()), [Sweep(0, np.array([[6.0, 0.0, 1.8], [500.0, 0.0, 1.8], [0.0, 0.0, 90.0]]), LIDAR)], _still()
    )
    assert around is not None
    x = np.arange(0.0, 7.0, 0.2)
    line = np.stack([x, 0 * x, 0 * x + 1.8], -1)
    assert around.was_passed(line[x < 5.2]).all()
    assert around.was_passed(np.array([[40.0, 0.0, 1.8]])).all(), "the far ray"
    assert len(around.static_m) == 1, "points out of reach are no points of it"
    assert accumulate(scene(boxes(), boxes()), [], _still()) is None


def _still() -> BoxesOverTime:
    return BoxesOverTime.of(scene(boxes(), boxes()))


def test_one_point_of_a_cube_is_kept() -> None:
    points = np.array([[0.01, 0.0, 0.0], [0.09, 0.05, 0.05], [0.11, 0.0, 0.0], [-0.01, 0.0, 0.0]])
    assert thinned(points, 0.1).tolist() == [True, False, True, True]
    assert not len(thinned(np.zeros((0, 3)), 0.1))


def test_without_sweeps_boxes_and_map_say_what_is_known() -> None:
    surroundings = VectorMap({"drivable_area": rectangle(0, -4, 30, 4)})
    standing = scene(boxes(("car", "vehicle.car", 8.0, 0.0)), boxes(), surroundings=surroundings)
    made = SceneOccupancy.of(standing, None, BoxesOverTime.of(standing)).keyframe(0, SPEC)
    assert voxel(made, 8.1, 0.1, 0.9) == OCC["car"]
    assert voxel(made, 4.1, 0.1, -0.8) == OCC["driveable_surface"]
    assert {voxel(made, 4.1, 0.1, z) for z in (-0.4, 0.4, 1.1)} == {FREE}, "the air above a road, where a road user would be annotated"
    assert voxel(made, 4.1, 0.1, 2.1) == IGNORE
    assert {voxel(made, 4.1, 6.1, z) for z in (-0.8, 0.4)} == {IGNORE}, "beside the road nobody annotated anything"


def test_surfaces_follow_the_ground() -> None:
    surroundings = VectorMap({"drivable_area": rectangle(0, -4, 30, 4)})
    rising = scene(boxes(), boxes(), surroundings=surroundings)
    made = SceneOccupancy.of(rising, None, BoxesOverTime.of(rising), lambda xy: np.where(xy[:, 0] < 20, 0.1 * xy[:, 0], np.nan)).keyframe(
        0, SPEC
    )
    assert voxel(made, 2.2, 0.1, 0.3) == OCC["driveable_surface"]  # 0.22 m up: the voxel from 0.2 m on
    assert voxel(made, 10.2, 0.1, 1.1) == OCC["driveable_surface"]  # 1.02 m up
    assert voxel(made, 10.2, 0.1, 0.1) == IGNORE
    assert {voxel(made, 21.0, 0.1, z) for z in (-0.8, 0.1, 1.0)} == {IGNORE}, "where the ground is not known, neither is the road"


# ------------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def nuscenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make(tmp_path / "nuscenes")


def test_sweeps_of_nuscenes_are_found_by_its_tables(nuscenes: Path) -> None:
    """The lidar is turned: its +y is the car's +x. It stands at (0.9, 0, 1.8); the first keyframe is at (0, 50)."""
    assert list(NuScenes(str(nuscenes)).sweeps(NuScenes(str(nuscenes)).scene("scene-0103"), 1)) == [], "no file, no sweep"
    lay_sweeps(nuscenes, np.array([[1.0, 10.0, -0.5], [0.0, 0.5, -0.5], [np.nan, 0.0, 0.0]]))
    source = NuScenes(str(nuscenes))
    found = list(source.sweeps(source.scene("scene-0103"), 1))
    assert len(found) == 16, "keyframes and what lies between them, of this scene"
    keyframe = next(one for one in found if one.origin_m[0] < 5)
    np.testing.assert_allclose(keyframe.origin_m, (0.9, 50.0, 1.8), atol=1e-6)
    np.testing.assert_allclose(
        keyframe.points_m, [(10.9, 49.0, 1.3)], atol=1e-6, err_msg="the second is of the car itself, the third no number"
    )
    assert len(list(source.sweeps(source.scene("scene-0103"), 5))) == 4


def test_damaged_sweeps_name_their_file(nuscenes: Path, tmp_path: Path) -> None:
    lay_sweeps(nuscenes, np.array([[1.0, 10.0, -0.5]]))
    file = nuscenes / "samples" / "scene-0103-sample-00-lidar"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"scene-0103-sample-00-lidar: 19 bytes are no whole points"):
        read_points(file)
    file.unlink()
    source = NuScenes(str(nuscenes))
    with pytest.raises(DataError, match=r"scene-0103-sample-00-lidar: no such file.*--sweeps 0"):
        write_occupancy(source, ["scene-0103"], tmp_path / "gts", 1)
    os.mkfifo(file)
    with pytest.raises(DataError, match="not a regular file"):
        read_points(file)
    far = tmp_path / "far.bin"
    np.array([[1, 2, 3, 0, 0], [1e30, 0, 0, 0, 0]], np.float32).tofile(far)
    with pytest.raises(DataError, match=r"far\.bin: 1 of 2 points are farther away than 10000 m"):
        read_points(far)


SWEEP_DAMAGE: dict[str, tuple[str, Callable[[list[dict[str, Any]]], object], str]] = {
    "a time that is text": ("sample_data", lambda r: r[0].update(timestamp="now"), r"sample_data.*timestamp now; expected an integer"),
    "a time beyond int64": ("sample_data", lambda r: r[0].update(timestamp=10**20), r"sample_data.*expected an integer"),
    "a list as file": ("sample_data", lambda r: r[0].update(filename=[]), r"sample_data.*filename \[\]; expected a string"),
    "a sweep twice": ("sample_data", lambda r: r.append({**r[0], "token": "copy"}), "the sweep samples/scene-0103-sample-00-sweep of"),
    "a pose twice": ("ego_pose", lambda r: r.append({**r[0], "translation": [0, 0, 9]}), r"ego_pose.*appears twice"),
}


@pytest.mark.parametrize("name", SWEEP_DAMAGE)
def test_damaged_tables_of_sweeps_are_named(name: str, nuscenes: Path) -> None:
    """The first record is of a sweep between keyframes, which nothing else reads."""
    table, change, message = SWEEP_DAMAGE[name]
    lay_sweeps(nuscenes, np.array([[1.0, 10.0, -0.5]]))
    edit(nuscenes, table, change)
    with pytest.raises(DataError, match=message):
        list(NuScenes(str(nuscenes)).sweeps(NuScenes(str(nuscenes)).scene("scene-0103"), 1))


@pytest.mark.slow
def test_derived_files_are_never_taken_for_labels(nuscenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data = tmp_path / "gts", ["--data", "nuscenes", "--root", str(nuscenes)]
    main(["occupancy", *data, "--split", "mini_val", "--out", str(out)])
    assert "16 keyframes of 2 scenes of nuscenes mini_val" in capsys.readouterr().out
    source = NuScenes(NuScenesConfig(str(nuscenes), gts=str(out)))
    scene_ = source.scene("scene-0103")
    grid = source.occupancy(scene_, 2, OCC3D_GRID)
    assert (grid.source, source.occupancy_source) == ("derived", "derived")
    assert (grid.semantics == IGNORE).any(), "what nobody knows is unknown, not free"
    with np.load(files.place(out, "scene-0103", scene_.keyframes[2].token)) as held:
        assert ((held["mask_lidar"] == 0) == (grid.semantics == IGNORE)).all()
        assert (held["semantics"][held["mask_lidar"] == 0] == FREE).all()
    plain = NuScenes(str(nuscenes))
    assert (plain.occupancy(scene_, 2, OCC3D_GRID).semantics != IGNORE).all(), "without the files, as before"
    assert plain.identity() != source.identity(), "tokens of one are not taken for the other's"
    assert any("holds derived occupancy for 16 of 16 keyframes" in sentence for sentence in source.missing())
    with pytest.raises(ConfigError, match="holds derived occupancy"):
        NuScenes(NuScenesConfig(str(nuscenes), gts=str(out), occupancy="labels"))
    main(["occupancy", *data, "--split", "mini_val", "--out", str(out)])
    assert "0 keyframes of 2 scenes" in (told := capsys.readouterr().out)
    assert "16 were there" in told
    main(["score-occupancy", str(out), "--truth", str(out), "--rays", "off"])
    assert "holds derived occupancy, not labels" in " ".join(capsys.readouterr().err.split())


def test_other_folders_are_left_alone(nuscenes: Path, tmp_path: Path) -> None:
    source = NuScenes(str(nuscenes))
    (tmp_path / "gts" / "scene-0103").mkdir(parents=True)
    with pytest.raises(DataError, match=r"is not empty and has no derived.json: it may hold labels"):
        write_occupancy(source, ["scene-0103"], tmp_path / "gts")
    write_occupancy(source, ["scene-0103"], tmp_path / "new", every=5)
    with pytest.raises(DataError, match="derived from other data, or in another way"):
        write_occupancy(source, ["scene-0103"], tmp_path / "new", every=0)


def test_towns_have_nothing_to_derive(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    town = Town(TownConfig(train_scenes=1, keyframes=4))
    assert not isinstance(town, HasSweeps)
    with pytest.raises(ConfigError, match="known exactly") as error:
        write_occupancy(town, [], tmp_path)
    with pytest.raises(SystemExit):
        main(["occupancy", "--out", str(tmp_path / "x")])
    assert str(error.value) in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_argoverse_sweeps_and_ground(tmp_path: Path) -> None:
    """Points are in the egovehicle frame, 0.31 m above the ground; heights lie on pixels of half a metre, shifted by 100 m."""
    pytest.importorskip("pyarrow")
    root = make_av2(tmp_path / "av2")
    log = root / "sensor" / "val" / "log-b"
    for k in (0, 1):
        columns = {"x": [10.0, 1.0], "y": [1.0, 0.0], "z": [0.5, 0.5]}
        write_feather(log / "sensors" / "lidar" / f"{FIRST_NS + k * STEP_NS}.feather", columns)
    heights = np.full((400, 1500), np.nan, np.float16)
    heights[200:220, 1200:1210] = 2.5
    np.save(log / "map" / "log-b_ground_height_surface____MIA.npy", heights)
    source = AV2(AV2Config(str(root), str(tmp_path / "cache")))
    with pytest.raises(DataError, match=r"log-b_ground_height_surface____MIA.npy: where its pixels lie"):
        source.ground(source.scene("log-b"))
    place = log / "map" / "log-b___img_Sim2_city.json"
    for change in ({"t": [1e300, 100.0]}, {"t": [100.0, True]}, {"R": ["1.0", 0.0, 0.0, 1.0]}, {"s": float("nan")}, {"s": -2.0}, {"s": []}):
        place.write_text(json.dumps({"R": [1.0, 0.0, 0.0, 1.0], "t": [100.0, 100.0], "s": 2.0} | change))
        with pytest.raises(DataError, match=r"Sim2_city\.json: expected R, t and s"):
            source.ground(source.scene("log-b"))
    place.write_text('{"R": [1.0, 0.0, 0.0, 1.0], "t": [100.0, 100.0], "s": 2.0}')
    np.save(log / "map" / "log-b_ground_height_surface____MIA.npy", np.where(heights == 2.5, np.float16(np.inf), heights))
    with pytest.raises(DataError, match=r"MIA\.npy: expected heights of at most 10000 m"):
        source.ground(source.scene("log-b"))
    np.save(log / "map" / "log-b_ground_height_surface____MIA.npy", heights)
    ground = source.ground(source.scene("log-b"))
    assert ground is not None
    np.testing.assert_array_equal(
        ground(np.array([[500.0, 0.0], [504.9, 9.9], [505.1, 0.0], [1e5, 0.0], [-1e5, 0.0]])), [2.5, 2.5, *[np.nan] * 3]
    )
    scene_ = source.scene("log-b")
    x = scene_.keyframes[0].global_T_ego.translation_m[0]
    found = list(source.sweeps(scene_, 1))
    assert [sweep.timestamp_us for sweep in found] == [FIRST_NS // 1000, (FIRST_NS + STEP_NS) // 1000]
    np.testing.assert_allclose(found[0].points_m, [(x + 10.0, 1.0, 0.81)], atol=1e-6, err_msg="the second point is of the car itself")
    np.testing.assert_allclose(found[1].origin_m, (x + 0.5 + 1.3, 0.0, 1.6 + 0.31), atol=1e-6)
    made = write_occupancy(source, ["log-b"], tmp_path / "gts", 1)
    assert (made.keyframes, made.sweeps) == (len(scene_), 2)
    derived = Data("av2", str(root), gts=str(tmp_path / "gts")).open(TownConfig())
    grid = derived.occupancy(scene_, 0, OCC3D_GRID)
    assert (grid.source, (grid.semantics == IGNORE).any()) == ("derived", True)
    other = source.scene("log-c")
    with pytest.raises(DataError, match=r"labels.npz is missing: write it with `iidrive occupancy --data av2`"):
        derived.occupancy(other, 0, OCC3D_GRID)
    with pytest.raises(DataError, match=r"a folder that `iidrive occupancy` wrote"):
        AV2(AV2Config(str(root), str(tmp_path / "cache"), str(tmp_path)))
    for name in ("x", "9" * 30):
        (log / "sensors" / "lidar" / f"{name}.feather").touch()
        with pytest.raises(DataError, match=rf"{name}\.feather: a sweep is named by its moment"):
            list(source.sweeps(scene_, 1))
        (log / "sensors" / "lidar" / f"{name}.feather").unlink()


def test_the_layout_is_that_of_real_labels(shared: Path, nuscenes_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, types and shapes of the one real frame; what is said to be free there is free, and cars and road lie where the label has them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = NuScenes(str(nuscenes_root))
    real_file = next((shared / "data" / "occ3d" / "gts" / "scene-1077").glob("*/labels.npz"))
    whole = source.scene("scene-1077")
    index = [keyframe.token for keyframe in whole.keyframes].index(real_file.parent.name)
    made = SceneOccupancy.of(whole, None, BoxesOverTime.of(whole)).keyframe(index, OCC3D_GRID)
    path = files.place(tmp_path, "scene-1077", real_file.parent.name)
    files.write(path, made)
    assert path.relative_to(tmp_path) == real_file.relative_to(real_file.parents[2])
    with np.load(real_file) as real, np.load(path) as ours:
        assert set(real.files) == set(ours.files) == {"semantics", "mask_lidar", "mask_camera"}
        for name in real.files:
            assert (real[name].dtype, real[name].shape) == (ours[name].dtype, ours[name].shape)
        known = ours["mask_lidar"] == 1
        free = known & (ours["semantics"] == FREE)
        assert (real["semantics"][free] == FREE).mean() > 0.95
        for name in ("car", "driveable_surface"):
            one, other = ((semantics == OCC[name]) & known for semantics in (real["semantics"], ours["semantics"]))
            assert (one & other).sum() / (one | other).sum() > 0.6, name
