"""Cases and predictions files: round trips, cases from samples of a scene, joining by token, and invalid files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from make_cases import along, make_cases

from iidrive.core import geometry
from iidrive.core.classes import CATEGORIES
from iidrive.core.errors import DataError
from iidrive.core.scene import Boxes, Command, Keyframe, Pose, Scene, VectorMap
from iidrive.data.source import Source, window
from iidrive.scoring.cases import Cases, read_cases, write_cases
from iidrive.scoring.cases_from_samples import cases_from_samples
from iidrive.scoring.predictions import Predictions, align, read_predictions, write_predictions

CAR = (0.0, 5.0, 0.0, 4.0, 2.0, 1.5, 0.1)


@pytest.fixture
def cases() -> Cases:
    return make_cases([along((0.0, 1.0)), along((0.1, 1.0)), along((1.0, 0.0))], [(0, 0, CAR), (0, 2, CAR), (2, 6, CAR)], masks=[6, 4, 6])


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as found:
        return {key: found[key] for key in found.files}


def rewritten(path: Path, cases: Cases, change: Callable[[dict[str, Any]], object]) -> Path:
    """A cases file in which `change` has altered the arrays."""
    write_cases(path, cases)
    arrays = arrays_of(path)
    change(arrays)
    np.savez(path, **cast(dict[str, Any], arrays))
    return path


def assert_equal(one: Cases, two: Cases) -> None:
    for key in ("gt_ego_fut_offsets", "gt_ego_fut_masks", "box_case", "box_t", "box_agent", "box_label", "box_valid", "box", "pred"):
        np.testing.assert_array_equal(getattr(one, key), getattr(two, key), err_msg=key)
    for key in ("lidar_pose", "ego_pose"):
        np.testing.assert_array_equal(getattr(one, key), getattr(two, key), err_msg=key)
    assert (one.class_names, one.token, one.scene) == (two.class_names, two.token, two.scene)


def test_the_fixture_reads_and_survives_a_round_trip(shared: Path, tmp_path: Path) -> None:
    cases = read_cases(shared / "fixtures" / "protocols" / "inputs.npz")
    assert len(cases) == 400
    assert int(cases.full.sum()) == 360
    assert cases.token[7] == "case-00007"
    assert "joined by row" in cases.note
    write_cases(tmp_path / "again.npz", cases)
    again = read_cases(tmp_path / "again.npz")
    assert_equal(cases, again)
    assert not again.own_tokens


def test_round_trip_with_tokens_is_atomic_and_repeatable(cases: Cases, tmp_path: Path) -> None:
    cases = replace(cases, scene=("a", "a", "b"), pred=np.zeros((3, 6, 2), np.float32))
    write_cases(tmp_path / "one.npz", cases)
    first = (tmp_path / "one.npz").read_bytes()
    write_cases(tmp_path / "one.npz", cases)
    assert (tmp_path / "one.npz").read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["one.npz"]
    found = read_cases(tmp_path / "one.npz")
    assert_equal(cases, found)
    assert found.own_tokens
    assert found.note == ""


def test_a_failed_write_leaves_the_old_file(cases: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.npz"
    write_cases(path, cases)
    before = path.read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(DataError, match="No space left"):
        write_cases(path, cases)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_writing_into_a_missing_folder(cases: Cases, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="check that the folder exists"):
        write_cases(tmp_path / "nowhere" / "one.npz", cases)


def put(key: str, index: object, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda arrays: arrays[key].__setitem__(index, value)


def swap(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda arrays: arrays.__setitem__(key, np.asarray(value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("box"), "not a cases file, missing box;"),
        (
            lambda a: a.update(gt_ego_fut_offsets=a["gt_ego_fut_offsets"][:, :5]),
            r"gt_ego_fut_offsets must have shape \(3, 6, 2\); found \(3, 5, 2\)",
        ),
        (lambda a: a.update(box=a["box"][:2]), r"box must have shape \(3, 7\)"),
        (lambda a: a.update(lidar_pose=np.zeros((3, 6, 3))), r"lidar_pose must have shape \(3, 7, 3\)"),
        (put("gt_ego_fut_offsets", (1, 3, 0), np.nan), "true path of sample sample1 holds NaN or infinity at step 4"),
        (put("gt_ego_fut_masks", (0, 0), 0.5), "may hold only 0 and 1; found 0.5"),
        (put("box", (1, 6), np.nan), "box holds NaN or infinity: row 1, sample sample0, step 2"),
        (put("box", (2, 3), 0.0), "a box has no area: row 2, sample sample2"),
        (put("box", (2, 4), -1.0), "a box has no area: row 2, sample sample2"),
        (put("box_case", 0, 3), r"box_case must be 0..2; found 3 in row 0"),
        (put("box_case", 0, -1), r"box_case must be 0..2; found -1"),
        (put("box_t", 1, 7), r"box_t must be 0..6; found 7 in row 1"),
        (put("box_label", 2, 2), r"box_label must be 0..1; found 2 in row 2"),
        (swap("class_names", ["vehicle.car", "human.pedestrian.adlt"]), "Did you mean 'human.pedestrian.adult'"),
        (swap("class_names", ["car", "car"]), "class_names holds a duplicate"),
        (swap("token", ["a", "b", "a"]), r"repeated: 1 sample \(a\)"),
        (swap("token", ["a", "b"]), "2 tokens for 3 samples"),
        (swap("token", [1, 2, 3]), "token must be a one-dimensional unicode array"),
        (swap("scene", ["a"]), "1 scene names for 3 samples"),
        (swap("token", np.array(["a", "b", None], object)), "'token' holds pickled Python objects"),
        (swap("box_t", [0.0, 1.0, 2.0]), "box_t must hold integers; found float64"),
        (swap("box", [["a"] * 7] * 3), "box must hold numbers"),
        (swap("pred", np.full((3, 6, 2), np.nan)), r"planned path of 2 samples \(sample0, sample2\) holds NaN"),
        (swap("frame", "ego"), "frame of a cases file is 'lidar'"),
    ],
)
def test_each_fault_has_its_own_message(cases: Cases, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    path = rewritten(tmp_path / "bad.npz", cases, change)
    with pytest.raises(DataError, match=message) as error:
        read_cases(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_files(cases: Cases, tmp_path: Path) -> None:
    path = tmp_path / "cases.npz"
    with pytest.raises(DataError, match="no such file"):
        read_cases(path)
    path.write_text("token,x,y\n")
    with pytest.raises(DataError, match="not a readable npz"):
        read_cases(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="not a readable npz"):
        read_cases(path)
    with path.open("wb") as handle:
        np.save(handle, np.zeros(3))
    with pytest.raises(DataError, match="single npy array"):
        read_cases(path)
    write_cases(path, cases)
    whole = path.read_bytes()
    for keep in (30, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:keep])
        with pytest.raises(DataError, match="truncated"):
            read_cases(path)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(b ^ 0xFF for b in whole[middle : middle + 200]) + whole[middle + 200 :])
    with pytest.raises(DataError):
        read_cases(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_cases(tmp_path)


def test_unknown_keys_are_reported(cases: Cases, tmp_path: Path) -> None:
    found = read_cases(rewritten(tmp_path / "c.npz", cases, lambda a: a.update(tokens=a.pop("token"))))
    assert not found.own_tokens
    assert found.ignored_keys == ("tokens",)
    assert "tokens" in found.note


# ---------------------------------------------------------------------------------------------------------------- samples


def driving_scene(n: int) -> Scene:
    """A curve driven at 4 m a step, the lidar 0.94 m ahead of the axle and turned by -pi/2, one parked car and one ghost box."""
    ego_T_lidar = Pose(geometry.yaw_quaternion(-np.pi / 2), np.array([0.94, 0.0, 1.84]))
    keyframes = []
    for i in range(n):
        yaw = 0.1 * i
        boxes = Boxes(
            "global",
            np.array([(20.0, 3.0, 0.5), (5.0, 5.0, 0.5)]),
            np.array([(4.5, 1.9, 1.6), (0.5, 0.5, 1.8)]),
            np.array([0.3, 0.0]),
            np.array([CATEGORIES.index("vehicle.car"), 0]),
            ("car", f"ghost{i}"),
            np.array([-1, 0]),
        )
        pose = Pose.from_xy_yaw(4.0 * i, 0.2 * i * i, yaw)
        keyframes.append(Keyframe(f"t{i}", 500_000 * i, pose, ego_T_lidar, boxes, Command("straight", "oracle")))
    return Scene("scene-1", tuple(keyframes), VectorMap())


@pytest.fixture
def scene() -> Scene:
    return driving_scene(8)


def test_cases_from_samples(scene: Scene, tmp_path: Path) -> None:
    windows = [window(cast(Source, None), scene, i) for i in range(len(scene))]
    cases = cases_from_samples(windows)
    assert cases.token == tuple(f"t{i}" for i in range(8))
    assert cases.scene == ("scene-1",) * 8
    assert cases.class_names == CATEGORIES
    assert cases.gt_ego_fut_masks.sum(axis=1).tolist() == [6, 6, 5, 4, 3, 2, 1, 0]
    assert not cases.gt_ego_fut_offsets[~cases.gt_ego_fut_masks].any()
    for i, (_, target) in enumerate(windows):
        valid = target.trajectory.valid
        np.testing.assert_array_equal(cases.true_path()[i][valid], target.trajectory.points_m[valid])
        for t, boxes in enumerate(target.boxes):
            rows = (cases.box_case == i) & (cases.box_t == t)
            assert rows.sum() == (0 if boxes is None else 2)
            if boxes is not None:
                np.testing.assert_allclose(cases.box[rows], np.column_stack([boxes.centre_m, boxes.size_m, boxes.yaw_rad]))
                assert cases.box_valid[rows].tolist() == [True, False]
                assert cases.box_agent[rows][0] == 0  # the car keeps its number, ghosts get new ones
    assert cases.lidar_pose is not None
    assert cases.ego_pose is not None
    np.testing.assert_allclose(cases.lidar_pose[:, 0], [[0, 0, np.pi / 2]] * 8, atol=1e-9)
    np.testing.assert_allclose(cases.lidar_pose[0, 1:, :2], cases.true_path()[0], atol=1e-5)
    np.testing.assert_allclose(cases.ego_pose[0, :, 2], 0.1 * np.arange(7), atol=1e-9)
    np.testing.assert_allclose(cases.ego_pose[0, :, 0], 4.0 * np.arange(7), atol=1e-9)
    write_cases(tmp_path / "c.npz", cases)
    found = read_cases(tmp_path / "c.npz")
    assert_equal(found, cases)
    assert found.unknown_points == cases.unknown_points == sum(b is not None for _, target in windows for b in target.boxes)
    assert "without a known number of lidar points were kept" in found.note


def test_no_samples_and_samples_without_boxes(scene: Scene) -> None:
    assert len(cases_from_samples([])) == 0
    observation, target = window(cast(Source, None), scene, 7)
    bare = cases_from_samples([(observation, replace(target, boxes=(None,) * 7))])
    assert len(bare) == 1
    assert bare.box.shape == (0, 7)


def test_samples_in_another_frame_are_refused(scene: Scene) -> None:
    observation, target = window(cast(Source, None), scene, 0)
    other = replace(target, trajectory=replace(target.trajectory, frame="ego", reference="rear_axle"))
    with pytest.raises(DataError, match="sample t0: the true path must be that of lidar_top"):
        cases_from_samples([(observation, other)])
    assert target.boxes[0] is not None
    boxes = (replace(target.boxes[0], frame="ego"), *target.boxes[1:])
    with pytest.raises(DataError, match="boxes at step 0 must be in the current lidar frame"):
        cases_from_samples([(observation, replace(target, boxes=boxes))])
    with pytest.raises(DataError, match="repeated: 1 sample"):
        cases_from_samples([(observation, target)] * 2)


# ------------------------------------------------------------------------------------------------------------ predictions


def test_predictions_round_trip_and_join_by_token(cases: Cases, tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    plan = np.arange(36, dtype=np.float32).reshape(3, 6, 2)
    write_predictions(path, ["sample2", "sample0", "sample1"], plan, {"run": "R1", "seed": 3})
    found = read_predictions(path)
    assert found.meta == {"run": "R1", "seed": 3}
    np.testing.assert_array_equal(align(cases, found), plan[[1, 2, 0]])
    assert [p.name for p in tmp_path.iterdir()] == ["p.npz"]


def test_samples_without_a_full_future_need_no_prediction(cases: Cases) -> None:
    joined = align(cases, Predictions(np.ones((2, 6, 2)), ("sample2", "sample0")))
    assert np.isnan(joined[1]).all()
    assert (joined[[0, 2]] == 1).all()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("sample0", "sample2", "zzz"), r"1 sample \(zzz\) not in"),
        (("sample0", "sample1"), r"no prediction for 1 sample \(sample2\)"),
        (("a", "b", "c", "d", "e"), r"5 samples \(a, b, c, …\) not in"),
    ],
)
def test_tokens_that_do_not_match(cases: Cases, tokens: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        align(cases, Predictions(np.zeros((len(tokens), 6, 2)), tokens))


def test_bad_predictions(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    good = np.zeros((2, 6, 2), np.float32)
    with pytest.raises(DataError, match=r"predicted only once; repeated: 1 sample \(a\)"):
        write_predictions(path, ["a", "a"], good)
    with pytest.raises(DataError, match=r"trajectory must have shape \(2, 6, 2\); found \(2, 5, 2\)"):
        write_predictions(path, ["a", "b"], good[:, :5])
    with pytest.raises(DataError, match=r"trajectory must have shape \(1, 6, 2\)"):
        write_predictions(path, ["a"], good)
    for bad in (np.nan, np.inf, 1e300):
        plan = good.astype(np.float64)
        plan[1, 2, 0] = bad
        with pytest.raises(DataError, match=r"planned path of 1 sample \(b\) holds NaN or infinity"):
            write_predictions(path, ["a", "b"], plan)
    assert not path.exists()
    whole = {"token": np.array(["a", "b"]), "trajectory": good, "frame": np.array("lidar"), "reference": np.array("lidar_top")}
    for change, message in (
        ({"frame": np.array("ego")}, "frame is 'ego'.*to_lidar_path"),
        ({"reference": np.array("rear_axle")}, "reference is 'rear_axle'.*to_lidar_path"),
        ({"meta": np.array("{")}, "meta is not JSON"),
        ({"trajectory": good[:, :5]}, r"found \(2, 5, 2\)"),
        ({"token": np.array(["a", None], object)}, "pickled"),
    ):
        np.savez(path, **cast(dict[str, Any], {**whole, **change}))
        with pytest.raises(DataError, match=message) as error:
            read_predictions(path)
        assert str(path) in str(error.value)
    np.savez(path, trajectory=good, token=whole["token"])
    with pytest.raises(DataError, match="not a predictions file: frame, reference missing"):
        read_predictions(path)


def test_a_bare_array_joins_by_row_only_to_cases_without_tokens(cases: Cases, tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    np.savez(path, pred=np.ones((3, 6, 2), np.float32))
    bare = read_predictions(path)
    assert bare.token is None
    with pytest.raises(DataError, match="no sample tokens"):
        align(cases, bare)
    nameless = replace(cases, own_tokens=False)
    assert (align(nameless, bare) == 1).all()
    np.savez(path, pred=np.ones((2, 6, 2), np.float32))
    with pytest.raises(DataError, match="2 paths for 3 samples"):
        align(nameless, read_predictions(path))
