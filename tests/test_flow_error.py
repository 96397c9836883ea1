"""Velocity errors of voxels, and movers: hand-computed values, and scored folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_nuscenes
from test_movers import CAR, GRID, boxes, scene

from iidrive.core.classes import FREE, OCC
from iidrive.core.errors import DataError
from iidrive.core.scene import OCC3D_GRID
from iidrive.data.flow import velocities
from iidrive.data.nuscenes.source import NuScenes, NuScenesConfig
from iidrive.data.voxelise import voxelise
from iidrive.scoring.flow_error import FlowErrors, flow_errors
from iidrive.scoring.occupancy_folders import score_folders
from iidrive.scoring.occupancy_report import format_result, to_json


def test_errors_by_hand() -> None:
    truth = np.full((2, 2, 2), FREE, np.uint8)
    truth[0, 0], truth[1, 1], truth[0, 1] = OCC["car"], OCC["pedestrian"], OCC["manmade"]
    predicted = truth.copy()
    predicted[0, 0, 1] = OCC["truck"]  # a wrong class does not count
    known = np.ones(truth.shape, bool)
    known[1, 1, 1] = False
    true_mps, predicted_mps = np.zeros((*truth.shape, 2)), np.zeros((*truth.shape, 2))
    true_mps[0, 0], predicted_mps[0, 0] = (4, 0), (1, 4)  # error 5
    predicted_mps[1, 1, 0], predicted_mps[0, 1] = (0, 1), (9, 9)  # error 1; a building is not movable
    one = flow_errors(truth, true_mps, known, predicted, predicted_mps)
    found = one.per_class()
    assert (found["car"], found["pedestrian"]) == (5.0, 1.0)
    assert np.isnan(found["truck"])
    assert set(found) == {"bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian", "trailer", "truck"}
    assert one.mave() == 3.0
    more = one + FlowErrors(error_mps=np.eye(18)[OCC["car"]] * 0, voxels=np.eye(18, dtype=np.int64)[OCC["car"]], files=1)
    assert more.per_class()["car"] == 2.5  # pooled over voxels
    assert np.isnan(FlowErrors().mave())


def test_velocities_of_voxels() -> None:
    drive = scene(
        boxes(a=(-3.5, 0.5, 0, 1, 1, CAR)),
        boxes(a=(0.5, 0.5, 0, 1, 1, CAR), new=(5.5, 5.5, 0, 1, 1, CAR)),
        boxes(new=(5.5, 6.5, 0, 1, 1, CAR)),
    )
    grid = np.full(GRID.shape, FREE, np.uint8)
    grid[10, 10], grid[15, 15], grid[0, 0] = OCC["car"], OCC["car"], OCC["manmade"]
    found, known = velocities(drive, 1, grid, GRID)
    np.testing.assert_allclose(found[10, 10, 0], [8, 0], atol=1e-5)  # velocity of the half second before
    np.testing.assert_allclose(found[15, 15, 0], [0, 2], atol=1e-5)  # velocity of the half second after, because the box is new
    assert found[0, 0, 0].tolist() == [0, 0]
    assert known[[10, 15, 0], [10, 15, 0]].all()
    assert not known[5, 5].any()
    _, known = velocities(drive, 0, np.where(grid == OCC["car"], np.uint8(FREE), grid), GRID)
    assert known[0, 0].all()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NuScenes]:
    """Tiny nuScenes with labels made of its boxes, and the same grids as predictions, with true velocities."""
    folder = tmp_path_factory.mktemp("flow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        source = NuScenes(NuScenesConfig(str(tiny_nuscenes.make(folder / "root", keyframes=2))))
    for name in source.scene_names("all"):
        found = source.scene(name)
        for i, keyframe in enumerate(found.keyframes):
            ego_T_global = np.linalg.inv(keyframe.global_T_ego.matrix)
            grid = voxelise(keyframe.boxes.moved(ego_T_global, "ego"), found.map, keyframe.global_T_ego, OCC3D_GRID).semantics
            flow = np.nan_to_num(velocities(found, i, grid, OCC3D_GRID)[0])
            for kind, arrays in (("gts", {"semantics": grid}), ("pred", {"semantics": grid, "flow": flow})):
                path = folder / kind / name / keyframe.token / "labels.npz"
                path.parent.mkdir(parents=True)
                np.savez_compressed(path, allow_pickle=False, **arrays)
    return folder, source


@pytest.mark.slow
def test_folders_with_boxes(folders: tuple[Path, NuScenes]) -> None:
    folder, tables = folders
    result = score_folders(folder / "pred", folder / "gts", tables, "all", rays=False)
    found = to_json(result)
    assert found["flow"]["mAVE_mps"] == pytest.approx(0, abs=1e-6)
    assert found["flow"]["files"] == 4
    # the walking pedestrian: its voxels are 0.4 m, its box is enlarged by 0.12 m, so the grid shows a part of it and nothing else
    assert found["movers"]["precision"] == [100.0]
    assert 0 < found["movers"]["recall"][0] < 100
    text = format_result(result)
    assert "movers" in text
    assert "mAVE: 0.000 m/s" in text
    bare = score_folders(folder / "gts", folder / "gts", tables, "all", rays=False)
    assert "flow" not in to_json(bare)
    assert any("no prediction has a 'flow' array" in note for note in bare.notes)
    alone = to_json(score_folders(folder / "pred", folder / "gts"))
    assert "movers" not in alone


@pytest.mark.slow
def test_zero_velocity_is_wrong_by_the_pedestrians_speed(folders: tuple[Path, NuScenes], tmp_path: Path) -> None:
    folder, tables = folders
    for path in (folder / "pred").glob("*/*/labels.npz"):
        there = tmp_path / path.relative_to(folder / "pred")
        there.parent.mkdir(parents=True)
        np.savez_compressed(there, allow_pickle=False, semantics=np.load(path)["semantics"], flow=np.zeros((200, 200, 16, 2), np.float32))
    errors = to_json(score_folders(tmp_path, folder / "gts", tables, "all", rays=False))["flow"]["per_class_mps"]
    scene_ = tables.scene(tables.scene_names("all")[0])
    places = [dict(zip(k.boxes.label.tolist(), k.boxes.centre_m, strict=True)) for k in scene_.keyframes]
    (walker,) = {label for label in places[0] if np.linalg.norm(places[1][label] - places[0][label]) > 0.1}
    seconds = (scene_.keyframes[1].timestamp_us - scene_.keyframes[0].timestamp_us) / 1e6
    assert errors["pedestrian"] == pytest.approx(np.linalg.norm((places[1][walker] - places[0][walker])[:2]) / seconds, rel=1e-3)
    assert errors["car"] == pytest.approx(0, abs=1e-5)
    broken = next(tmp_path.glob("*/*/labels.npz"))
    semantics = np.load(broken)["semantics"]
    for flow in (np.zeros((3, 2), np.float32), np.full((200, 200, 16, 2), 1e30, np.float32), np.full((200, 200, 16, 2), np.nan)):
        np.savez_compressed(broken, allow_pickle=False, semantics=semantics, flow=flow)
        with pytest.raises(DataError, match=r"'flow' must hold velocities .* of at most 1000 m/s"):
            score_folders(tmp_path, folder / "gts", tables, "all", rays=False)
