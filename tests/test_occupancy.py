"""Occupancy scores: histograms, scores and tables of the public evaluators, and collecting them in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from public import aggregates, outputs, protocols

from iidrive.core.errors import DataError
from iidrive.scoring.occupancy import OccupancyScore, iiworld, iiworld_occupied, iiworld_table, occ3d, occworld, occworld_totals


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return protocols(shared)


@pytest.fixture(scope="module")
def grids(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "occ_inputs.npz") as found:
        seen = np.unpackbits(found["mask_camera"], axis=-1).astype(bool).reshape(6, 7, 200, 200, 16)[:, 0]
        return {"gt": found["gt"], "pred": found["pred"], "seen": seen}


@pytest.fixture(scope="module")
def expected(shared: Path) -> dict[str, np.ndarray]:
    return outputs(shared, "occ")


@pytest.fixture(scope="module")
def aggregate(shared: Path) -> dict[str, Any]:
    return aggregates(shared, "occ")


def collect(grids: dict[str, np.ndarray], samples: slice) -> OccupancyScore:
    score = OccupancyScore()
    score.update(grids["gt"][samples], grids["pred"][samples], grids["seen"][samples])
    return score


@pytest.fixture(scope="module")
def score(grids: dict[str, np.ndarray]) -> OccupancyScore:
    """Collected by two processes."""
    return collect(grids, slice(0, 2)).merge([collect(grids, slice(2, 6))])


def test_histograms(score: OccupancyScore, expected: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(score.hist, expected["iiworld_hist"])
    np.testing.assert_array_equal(score.seen, expected["occ3d_masked_hist_t0"])
    two = np.stack([iiworld_occupied(h, u) for h, u in zip(score.hist, score.unknown, strict=True)])
    np.testing.assert_array_equal(two, expected["iiworld_iou_hist"])


def test_ii_worlds_scores_and_table(score: OccupancyScore, grids: dict[str, np.ndarray], aggregate: dict[str, Any]) -> None:
    found = iiworld(score.hist, score.unknown)
    assert found["mIoU"] == [row["miou"] for row in aggregate["iiworld"]]
    assert found["IoU"] == [row["iou"] for row in aggregate["iiworld"]]
    later = collect(grids, slice(1, 6))
    theirs = aggregate["iiworld_forecasting_samples1to5"]
    found = iiworld(later.hist, later.unknown)
    for s, t in ((0, 0), (1.0, 2), (2.0, 4), (3.0, 6)):
        assert (found["mIoU"][t], found["IoU"][t]) == (theirs[f"semantics_miou_time_{s}s"], theirs[f"binary_iou_time_{s}s"])
    assert iiworld_table(found) == aggregate["iiworld_forecasting_table"]


def test_occworlds_sums_and_scores(score: OccupancyScore, expected: dict[str, np.ndarray], aggregate: dict[str, Any]) -> None:
    for name, value in occworld_totals(score.hist[1:], score.unknown[1:]).items():
        np.testing.assert_array_equal(value, expected[f"occworld_{name}"], err_msg=name)
    found, theirs = occworld(score.hist, score.unknown), aggregate["occworld"]
    np.testing.assert_allclose(found["mIoU"], theirs["miou"], rtol=1e-6)
    np.testing.assert_allclose(found["IoU"], theirs["iou"], rtol=1e-6)
    np.testing.assert_allclose(found["average"], [theirs["avg_miou"], theirs["avg_iou"]], rtol=1e-6)


def test_occ3d(score: OccupancyScore, aggregate: dict[str, Any]) -> None:
    assert occ3d(score.seen) == aggregate["occ3d_masked_t0"]["miou"]
    assert score.compute()["occ3d"] == occ3d(score.seen)


def test_parts_in_any_order_and_reset() -> None:
    rng = np.random.default_rng(0)
    gt, pred = (rng.integers(0, 18, (4, 2, 5, 5, 3)).astype(np.uint8) for _ in range(2))
    gt[0, 0, 0] = 255
    whole, parts = OccupancyScore(times=2), [OccupancyScore(times=2) for _ in range(4)]
    whole.update(gt, pred)
    for i in (2, 0, 3, 1):
        parts[i].update(gt[i : i + 1], pred[i : i + 1])
    merged = OccupancyScore(times=2).merge(parts)
    assert merged.samples == whole.samples == 4
    assert merged.compute() == whole.compute()
    whole.reset()
    assert whole.samples == 0
    assert not whole.hist.any()


def test_other_times_are_refused() -> None:
    with pytest.raises(DataError, match="7 times"):
        OccupancyScore().update(np.zeros((1, 2, 3, 3, 3), np.uint8), np.zeros((1, 2, 3, 3, 3), np.uint8))
    with pytest.raises(DataError, match="cannot be merged"):
        OccupancyScore().merge([OccupancyScore(times=2)])
