"""Occupancy files of nuScenes: which one is used, which are refused, and conversion to other grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_nuscenes

from iidrive.core.classes import FREE, IGNORE, OCC
from iidrive.core.errors import ConfigError, DataError
from iidrive.core.scene import OCC3D_GRID, GridSpec, OccGrid
from iidrive.data.nuscenes.source import NuScenes, NuScenesConfig, labels


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_nuscenes.make(tmp_path / "nuscenes")


def opened(root: Path, **options) -> NuScenes:
    return NuScenes(NuScenesConfig(str(root), cache=str(root.parent / "cache"), **options))


def write_labels(root: Path, folder: str, index: int, **arrays: np.ndarray) -> Path:
    path = root / folder / "scene-0103" / f"scene-0103-sample-{index:02d}" / "labels.npz"
    path.parent.mkdir(parents=True)
    np.savez_compressed(path, allow_pickle=True, **arrays)
    return path


def label_arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    semantics = np.full(OCC3D_GRID.shape, FREE, np.uint8)
    semantics[20:22, 30:32, 0:2] = OCC["truck"]
    mask = np.zeros(OCC3D_GRID.shape, np.uint8)
    mask[20, 30, 0] = 1
    return {"semantics": semantics, "mask_camera": mask, "mask_lidar": mask, **changes}


def test_auto_takes_labels_then_predicted_then_derived(tiny):
    write_labels(tiny, "gts", 0, **label_arrays())
    write_labels(tiny, "stcocc", 0, semantics=label_arrays()["semantics"])
    write_labels(tiny, "stcocc", 1, arr_0=label_arrays()["semantics"])
    source = opened(tiny, predicted=str(tiny / "stcocc"))
    scene = source.scene("scene-0103")
    got = [source.occupancy(scene, i, OCC3D_GRID) for i in range(3)]
    assert [g.source for g in got] == ["labels", "predicted", "derived"]
    assert got[0].camera_mask is not None
    assert got[1].camera_mask is None
    assert source.occupancy_source == "predicted"
    assert opened(tiny).occupancy_source == "derived"
    assert opened(tiny, occupancy="derived").occupancy(scene, 0, OCC3D_GRID).source == "derived"
    told = " ".join(source.missing())
    assert "labels exist for 1 of 16 keyframes; the others are predicted and derived" in told
    assert "predicted occupancy exists for 2 of 16" in told


@pytest.mark.parametrize("where", ["{s}/{t}/pred.npz", "{s}/{t}/labels.npy", "{s}/{t}.npz", "{t}.npy", "{t}.npz"])
def test_predictions_in_the_formats_of_other_code_bases(where, tiny):
    """In any layout, of any integer dtype, with an axis of length 1; but not seven grids, and not another class numbering."""
    want = label_arrays()["semantics"]
    path = tiny / "others" / where.format(s="scene-0103", t="scene-0103-sample-00")
    path.parent.mkdir(parents=True)

    def write(grid: np.ndarray) -> None:
        np.save(path, grid) if path.suffix == ".npy" else np.savez_compressed(path, pred=grid)

    write(want[None].astype(np.float32))
    source = opened(tiny, predicted=str(tiny / "others"))
    scene = source.scene("scene-0103")
    assert [source.occupancy(scene, k, OCC3D_GRID).source for k in (0, 1)] == ["predicted", "derived"]
    np.testing.assert_array_equal(source.occupancy(scene, 0, OCC3D_GRID).semantics, want)
    assert "predicted occupancy exists for 1 of 16" in " ".join(source.missing())
    for grid, message in (
        (np.stack([want] * 7), "7 grids, but only one \\(of the current time\\) is allowed"),
        (np.where(want == FREE, 16, want), "In openocc 16 is free, but Occ3D's numbers are expected here"),
        (np.argwhere(want < FREE)[:, [0, 1, 2, 0]], "write dense grids"),
    ):
        write(grid)
        with pytest.raises(DataError, match=message):
            source.occupancy(scene, 0, OCC3D_GRID)


def test_a_required_file_that_is_missing_is_an_error(tiny):
    with pytest.raises(ConfigError, match="give `gts`"):
        opened(tiny, occupancy="labels")
    with pytest.raises(ConfigError, match="give `predicted`"):
        opened(tiny, occupancy="predicted")
    with pytest.raises(ConfigError, match="Did you mean 'labels'"):
        opened(tiny, occupancy="label")
    with pytest.raises(DataError, match="`gts` must hold"):
        opened(tiny, gts=str(tiny / "nowhere"))
    write_labels(tiny, "gts", 0, **label_arrays())
    source = opened(tiny, occupancy="labels")
    assert source.occupancy_source == "labels"
    with pytest.raises(DataError, match=r"scene-0103-sample-01.labels\.npz is missing"):
        source.occupancy(source.scene("scene-0103"), 1, OCC3D_GRID)


LABEL_FAULTS = {
    "wrong shape": (label_arrays(semantics=np.zeros((100, 100, 16), np.uint8)), r"'semantics' must be uint8.*\(100, 100, 16\)"),
    "wrong dtype": (label_arrays(semantics=np.zeros(OCC3D_GRID.shape, np.int64)), "found int64"),
    "unknown class": (label_arrays(semantics=np.full(OCC3D_GRID.shape, 23, np.uint8)), "class 23"),
    "other class numbers": (
        label_arrays(semantics=np.full(OCC3D_GRID.shape, 16, np.uint8)),
        "class 16 fills 100 % .*In openocc 16 is free, but Occ3D's numbers are expected here",
    ),
    "no semantics": ({"arr_0": label_arrays()["semantics"]}, "no array 'semantics'; found arr_0"),
    "pickled": (label_arrays(semantics=np.array([{"a": 1}], dtype=object)), "not a readable"),
}


@pytest.mark.parametrize("fault", LABEL_FAULTS)
def test_a_broken_label_file_is_named(tiny, fault):
    arrays, message = LABEL_FAULTS[fault]
    path = write_labels(tiny, "gts", 2, **arrays)
    source = opened(tiny)
    with pytest.raises(DataError, match=message) as caught:
        source.occupancy(source.scene("scene-0103"), 2, OCC3D_GRID)
    assert str(path) in str(caught.value)


def test_labels_need_no_camera_mask(tiny):
    write_labels(tiny, "gts", 0, semantics=label_arrays()["semantics"])
    source = opened(tiny)
    found = source.occupancy(source.scene("scene-0103"), 0, OCC3D_GRID)
    assert (found.source, found.camera_mask) == ("labels", None)
    np.testing.assert_array_equal(found.semantics, label_arrays()["semantics"])


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_label_file_is_named(tiny, keep):
    path = write_labels(tiny, "gts", 2, **label_arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    source = opened(tiny)
    with pytest.raises(DataError, match=r"labels\.npz is not a readable"):
        source.occupancy(source.scene("scene-0103"), 2, OCC3D_GRID)


def test_labels_on_other_grids(tiny):
    write_labels(tiny, "gts", 0, **label_arrays())
    source = opened(tiny)
    scene = source.scene("scene-0103")
    coarse = source.occupancy(scene, 0, GridSpec((100, 100, 8), (-40.0, -40.0, -1.0), 0.8))
    assert coarse.camera_mask is not None
    assert np.argwhere(coarse.semantics == OCC["truck"]).tolist() == [[10, 15, 0]]
    assert np.argwhere(coarse.camera_mask).tolist() == [[10, 15, 0]]
    assert np.count_nonzero(coarse.semantics != FREE) == 1
    crop = source.occupancy(scene, 0, GridSpec((10, 10, 16), (-34.0, -30.0, -1.0), 0.4)).semantics
    assert np.argwhere(crop == OCC["truck"])[0].tolist() == [5, 5, 0]
    for shape, lower, voxel in (
        ((100, 100, 8), (-40.0, -40.0, -1.0), 0.5),
        ((80, 80, 8), (-32.1, -32.0, -1.0), 0.8),
        ((200, 200, 16), (-39.6, -40.0, -1.0), 0.4),
        ((200, 200, 16), (-40.4, -40.0, -1.0), 0.4),
    ):
        with pytest.raises(ConfigError, match="must lie inside"):
            source.occupancy(scene, 0, GridSpec(shape, lower, voxel))


def test_block_rule_equals_a_plain_loop():
    rng = np.random.default_rng(3)
    for m, values in ((2, [0, 3, 3, 11, FREE, IGNORE]), (4, [FREE, IGNORE, 5, 2]), (2, [FREE, IGNORE])):
        spec = GridSpec((8, 8, 8), (0.0, 0.0, 0.0), 0.4)
        fine = OccGrid(rng.choice(np.array(values, np.uint8), spec.shape), spec, "labels")
        n = 8 // m
        got = labels.regrid(fine, GridSpec((n, n, n), (0.0, 0.0, 0.0), 0.4 * m)).semantics
        for i, j, k in np.ndindex(n, n, n):
            block = fine.semantics[i * m : i * m + m, j * m : j * m + m, k * m : k * m + m].ravel()
            votes = [int(v) for v in block if v < FREE]
            empty = IGNORE if (block == IGNORE).all() else FREE
            expected = min([(-votes.count(c), c) for c in set(votes)], default=(0, empty))[1]
            assert got[i, j, k] == expected
