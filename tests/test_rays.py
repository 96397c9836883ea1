"""RayIoU: the public evaluator's rays and scores, and grids with one wall."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from iidrive.core.errors import DataError
from iidrive.scoring.rays import RayCounts, count_rays, directions, render

CAR, WALL, FREE = 4, 15, 17


def empty() -> np.ndarray:
    return np.full((200, 200, 16), FREE, np.uint8)


@pytest.mark.slow
def test_rays_and_scores_of_the_evaluator(shared: Path) -> None:
    folder = shared / "fixtures" / "protocols"
    expected = json.loads((folder / "occ_aggregate.json").read_text())["rayiou_samples0to3_t0"]
    with np.load(folder / "occ_inputs.npz") as inputs, np.load(folder / "occ_outputs.npz") as outputs:
        gt, pred = inputs["gt"][:4, 0], inputs["pred"][:4, 0]
        pitch, rays = outputs["ray_dirs_pitch"], {"gt": outputs["ray_s0_gt"], "pred": outputs["ray_s0_pred"]}
    assert len(directions()) == expected["n_rays"]
    np.testing.assert_allclose(np.arcsin(directions()[::360, 2]), pitch, atol=1e-6)
    origins = np.array(expected["origins"])
    label, depth = render(np.stack([gt[0], pred[0]]), origins)
    for k, name in enumerate(("gt", "pred")):
        np.testing.assert_array_equal(label[k, : len(rays[name])], rays[name][:, 0])
        np.testing.assert_array_equal(depth[k, : len(rays[name])], rays[name][:, 1])
    total = RayCounts()
    for one, forecast, valid in zip(gt, pred, expected["valid_rays"], strict=True):
        found = count_rays(one, forecast, origins)
        assert found.true.sum() == valid
        total += found
    np.testing.assert_allclose(total.iou(), expected["per_class"], rtol=1e-12)
    np.testing.assert_allclose(np.nanmean(total.iou(), axis=1), expected["per_thr"], rtol=1e-12)
    assert total.ray_iou() == pytest.approx(expected["RayIoU"], rel=1e-12)


@pytest.mark.slow
def test_one_wall() -> None:
    gt, pred = empty(), empty()
    gt[150:, :, :] = WALL  # 20 m ahead of the centre
    pred[154:, :, :] = WALL  # 1.6 m behind it
    found = count_rays(gt, pred, np.array([[0.0, 0.0, 1.0]], np.float32))
    assert found.hit[0, WALL] == 0
    assert found.hit[1, WALL] > 0
    assert found.true[WALL] == found.true.sum() >= found.forecast[WALL]
    assert np.isnan(found.iou()[0, CAR])
    assert count_rays(gt, gt, np.zeros((1, 3), np.float32)).ray_iou() == 1.0


def test_a_ray_ends_where_it_leaves_the_first_voxel_that_is_not_free() -> None:
    grid = empty()
    grid[110, :, :] = CAR
    label, depth = render(grid[None], np.array([[0.2, 0.2, 2.0]], np.float32))
    level = np.abs(directions()[:, 2]).argmin() // 360 * 360  # the pitch nearest to level, azimuth 0
    assert label[0, level] == CAR
    assert depth[0, level] == pytest.approx(4.4 - 0.2, abs=1e-3)


def test_without_occupied_voxels_iou_is_nan() -> None:
    assert np.isnan(count_rays(empty(), empty(), np.zeros((1, 3), np.float32)).ray_iou())


def test_bad_input() -> None:
    with pytest.raises(DataError, match="uint8 grids of shape"):
        render(np.zeros((1, 5, 5, 5), np.uint8), np.zeros((1, 3), np.float32))
    with pytest.raises(DataError, match="finite origins"):
        render(empty()[None], np.full((1, 3), np.nan, np.float32))
