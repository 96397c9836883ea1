"""Folders of predicted occupancy: joined by token, scored as the functions score."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_nuscenes
from test_cli import fails

from iidrive.cli.main import main
from iidrive.data.nuscenes.source import NuScenes, NuScenesConfig
from iidrive.scoring.occupancy import OccupancyScore
from iidrive.scoring.occupancy_folders import lidar_origins, score_folders
from iidrive.scoring.rays import RayCounts, count_rays

SCENES, KEYFRAMES = ("scene-0103", "scene-0916"), 8
SHAPE = (200, 200, 16)


def write(folder: Path, scene: str, token: str, **arrays: np.ndarray) -> Path:
    path = folder / scene / token / "labels.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=True, **arrays)
    return path


def drawn(seed: int) -> np.ndarray:
    """A floor, some boxes of other classes, and some unknown voxels."""
    rng = np.random.default_rng(seed)
    grid = np.full(SHAPE, 17, np.uint8)
    grid[..., 0] = 11
    for label in (4, 7, 10, 15, 16):
        x, y = rng.integers(0, 180, 2)
        grid[x : x + 20, y : y + 20, 1:6] = label
    return grid


def name(scene: str, k: int) -> str:
    return f"{scene}-sample-{k:02d}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nuScenes root with labels of every keyframe, and two folders of predictions: the present (`now`) and seven times (`ahead`)."""
    folder = tmp_path_factory.mktemp("world")
    root = tiny_nuscenes.make(folder / "root", SCENES, KEYFRAMES)
    for s, scene in enumerate(SCENES):
        for k in range(KEYFRAMES):
            real = drawn(100 * s + k)
            real[:3, :3, :3] = 255
            mask = np.zeros(SHAPE, np.uint8)
            mask[:, 50:150] = 1
            write(root / "gts", scene, name(scene, k), semantics=real, mask_camera=mask, mask_lidar=mask)
            write(folder / "now", scene, name(scene, k), semantics=np.roll(drawn(100 * s + k), 1, axis=0))
            if k + 7 <= KEYFRAMES:
                later = np.stack([drawn(100 * s + k + t) for t in range(7)])
                write(folder / "ahead", scene, name(scene, k), semantics=np.roll(later, 2, axis=1).astype(np.int64))
    return folder


@pytest.fixture(autouse=True)
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / "cache"))
    monkeypatch.chdir(world)


def expected(folder: str, times: int, scenes: tuple[str, ...] = SCENES, cast: bool = False) -> tuple[OccupancyScore, RayCounts]:
    """The scores of the functions; of rays, which take a second a keyframe, only if they are asked for."""
    score, rays = OccupancyScore(times), RayCounts()
    source = NuScenes(NuScenesConfig("root"))
    for scene in scenes:
        for k in range(KEYFRAMES - times + 1):
            found = [np.load(f"root/gts/{scene}/{name(scene, k + t)}/labels.npz") for t in range(times)]
            pred = np.load(f"{folder}/{scene}/{name(scene, k)}/labels.npz")["semantics"].astype(np.uint8).reshape(times, *SHAPE)
            real = np.stack([f["semantics"] for f in found])
            score.update(real[None], pred[None], found[0]["mask_camera"].astype(bool)[None])
            if cast:
                rays += count_rays(real[0], pred[0], lidar_origins(source.scene(scene), k))
    return score, rays


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "times", "scenes", "samples"), [("now", 1, SCENES[1:], 8), ("ahead", 7, SCENES, 4)])
def test_scores_are_those_of_the_functions(
    folder: str, times: int, scenes: tuple[str, ...], samples: int, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, split, predicted = tmp_path / "occ.json", tmp_path / "scenes.txt", tmp_path / folder
    split.write_text("\n".join(scenes))
    predicted.mkdir()
    for scene in scenes:
        (predicted / scene).symlink_to(world / folder / scene)
    main(["score-occupancy", str(predicted), "--root", "root", "--json", str(out), "--split", str(split)])
    printed = capsys.readouterr().out
    found, (score, rays) = json.loads(out.read_text()), expected(folder, times, scenes, cast=True)
    want = score.compute()
    assert found["n"] == samples
    assert found["n_skipped"] == KEYFRAMES * len(scenes) - samples
    assert found["iiworld"] == want["iiworld"]
    assert found["occ3d"] == want["occ3d"]
    assert found["rayiou"]["RayIoU"] == 100 * rays.ray_iou()
    assert f"scored {samples} samples" in printed
    assert ("occworld" in found) == (times == 7)
    if times == 7:
        assert found["occworld"] == want["occworld"]
        assert "II-World's own table" in printed
        assert "skipped 12" in printed
    else:
        assert "OccWorld is left out" in printed


@pytest.mark.slow
def test_a_truth_folder_is_enough_for_the_current_time(capsys: pytest.CaptureFixture[str]) -> None:
    main(["score-occupancy", "now", "--truth", "root/gts", "--split", "mini_val"])
    printed = capsys.readouterr().out
    assert "scored 16 samples" in printed
    assert "RayIoU is left out" in printed
    found = score_folders("now", "root/gts").score.compute()
    assert found == expected("now", 1)[0].compute()


@pytest.mark.slow
def test_flat_folders_get_their_scenes_from_the_tables(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files named by tokens alone, forecasts included: the scores of the folders with scenes."""
    for kind, folder in (("ahead", world / "ahead"), ("truth", world / "root" / "gts")):
        (tmp_path / kind).mkdir()
        for path in folder.glob("*/*/labels.npz"):
            (tmp_path / kind / f"{path.parent.name}.npz").symlink_to(path)
    found = score_folders(tmp_path / "ahead", tmp_path / "truth", NuScenes(NuScenesConfig("root")), "mini_val", rays=False)
    assert found.score.compute() == expected("ahead", 7)[0].compute()
    assert found.skipped == 12
    assert "has no scene names" in fails(
        capsys, "score-occupancy", str(tmp_path / "ahead"), "--truth", str(tmp_path / "truth"), "--split", "mini_val"
    )


@pytest.mark.slow
def test_truth_of_seven_times_needs_no_order(world: Path, tmp_path: Path) -> None:
    real = np.stack([drawn(t) for t in range(7)])
    write(tmp_path / "truth", "scene-1", "a", semantics=real)
    write(tmp_path / "pred", "scene-1", "a", arr_0=np.roll(real, 1, axis=1))
    result = score_folders(tmp_path / "pred", tmp_path / "truth")
    score = OccupancyScore()
    score.update(real[None], np.roll(real, 1, axis=1)[None])
    assert result.score.compute() == score.compute()
    assert any("no mask_camera" in note for note in result.notes)


@pytest.mark.slow
def test_origins_of_rays() -> None:
    """The lidar of every keyframe of the scene near this one, in its ego frame; at most eight."""
    scene = NuScenes(NuScenesConfig("root")).scene(SCENES[0])
    found = lidar_origins(scene, 2)
    assert found.shape == (8, 3)
    np.testing.assert_allclose(found[2], tiny_nuscenes.LIDAR_TRANSLATION)
    assert (found[:2, 0] < found[2, 0]).all()
    assert (found[3:, 0] > found[2, 0]).all()


@pytest.mark.slow
def test_wrong_folders_give_a_one_sentence_error(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = drawn(0)
    for folder, scene, token, arrays in (
        ("extra", "scene-0103", "nobody", {"semantics": now}),
        ("few", "scene-0103", name("scene-0103", 0), {"semantics": now}),
        ("twice", "scene-0103", "a", {"semantics": now}),
        ("twice", "scene-0916", "a", {"semantics": now}),
        ("shape", "scene-0103", "a", {"semantics": now[:100]}),
        ("kind", "scene-0103", "a", {"semantics": now.astype(np.float32) + 0.5}),
        ("class", "scene-0103", "a", {"semantics": np.where(now == 11, 18, now)}),
        ("names", "scene-0103", "a", {"occupancy": now}),
        ("three", "scene-0103", "a", {"semantics": np.stack([now] * 3)}),
        ("one", "scene-0103", "a", {"semantics": now}),
        ("mixed", "scene-0103", "a", {"semantics": now}),
        ("mixed", "scene-0103", "b", {"semantics": np.stack([now] * 7)}),
        ("two", "scene-0103", "a", {"semantics": now}),
        ("two", "scene-0103", "b", {"semantics": now}),
    ):
        write(tmp_path / folder, scene, token, **arrays)
    (tmp_path / "empty").mkdir()
    broken = write(tmp_path / "broken", "scene-0103", "a", semantics=now)
    broken.write_bytes(broken.read_bytes()[:200])
    root = ["--root", "root", "--rays", "off"]
    for folder, options, message in (
        ("now", [], "needs the ground truth: --truth"),
        ("now", ["--truth", "root/gts", "--version", "v1.0-mini"], "add --root"),
        ("now", ["--root", "nowhere"], "nowhere has no folder gts/"),
        ("now", ["--root", "nowhere", "--truth", "root/gts"], "nowhere is not a folder"),
        ("now", ["--truth", "nowhere"], "nowhere is not a folder"),
        ("nowhere", root, "nowhere is not a folder"),
        ("now", [*root, "--split", "vall"], "unknown split 'vall'"),
        ("now", ["--truth", "root/gts", "--split", "vall"], "unknown split 'vall'"),
        ("now", ["--truth", "root/gts", "--split", "train"], "of the split's 700 scenes"),
        ("ahead", ["--truth", "root/gts"], "add --root, the nuScenes folder"),
        ("extra", root, "1 sample (nobody) not in root/gts (mini_val)"),
        ("few", root, "no prediction for 15 samples"),
        ("twice", root, "sample a has two files, in scene-0103 and in scene-0916"),
        ("empty", root, "no <scene>/<sample token>/labels.npz or <sample token>.npz in it"),
        ("shape", ["--truth", "one"], "must hold integers in shape (200, 200, 16)"),
        ("kind", ["--truth", "one"], "must hold integers"),
        ("class", ["--truth", "one"], "the prediction holds class 18"),
        ("names", ["--truth", "one"], "has no array 'semantics'"),
        ("three", ["--truth", "one"], "expected files with 1 grid (now) or 7 grids"),
        ("broken", ["--truth", "one"], "not a readable .npz file"),
        ("mixed", ["--truth", "two"], "7 grids, but the first prediction has 1"),
        ("one", ["--truth", "one", "--root", "root", "--split", "all"], "1 sample (a) not in these nuScenes tables"),
    ):
        given = [str(tmp_path / o) if (tmp_path / o).is_dir() else o for o in options]
        predicted = tmp_path / folder if (tmp_path / folder).is_dir() else folder
        assert message in fails(capsys, "score-occupancy", str(predicted), *given), (folder, options)


@pytest.mark.slow
def test_real_labels_against_themselves(shared: Path, nuscenes_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gts = shared / "data" / "occ3d" / "gts"
    main(["score-occupancy", str(gts), "--truth", str(gts), "--root", str(nuscenes_root), "--split", "all"])
    printed = capsys.readouterr().out
    assert printed.count("100.00") == 7  # II-World's two, Occ3D, RayIoU and its three thresholds
