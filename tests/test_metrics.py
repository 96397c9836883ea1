"""Occupancy histograms and IoUs: the outputs of public evaluators, and grids of a few voxels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from iidrive.core.errors import ConfigError, DataError
from iidrive.scoring.metrics import class_iou, confusion, iou_occupied, miou, occupied


def grid(*classes: int) -> np.ndarray:
    return np.array(classes, np.uint8)


@pytest.fixture(scope="module")
def occ(shared: Path) -> dict[str, np.ndarray]:
    folder = shared / "fixtures" / "protocols"
    with np.load(folder / "occ_inputs.npz") as inputs, np.load(folder / "occ_outputs.npz") as outputs:
        return {**{k: inputs[k] for k in inputs.files}, **{k: outputs[k] for k in outputs.files if "hist" in k}}


def test_histograms_of_ii_world(occ: dict[str, np.ndarray], shared: Path) -> None:
    expected = json.loads((shared / "fixtures" / "protocols" / "occ_aggregate.json").read_text())["iiworld"]
    for t in range(7):
        hist = confusion(occ["gt"][:, t], occ["pred"][:, t])
        np.testing.assert_array_equal(hist, occ["iiworld_hist"][t])
        assert round(100 * miou(hist, "iiworld"), 2) == expected[t]["miou"]
        assert 100 * miou(hist) == pytest.approx(expected[t]["miou_plain_nanmean"])
        np.testing.assert_allclose(class_iou(hist), expected[t]["per_class"])


def test_ii_worlds_iou_counts_unknown_voxels_as_occupied(occ: dict[str, np.ndarray], shared: Path) -> None:
    expected = json.loads((shared / "fixtures" / "protocols" / "occ_aggregate.json").read_text())["iiworld"]
    assert (occ["gt"] == 255).any()
    taken = np.where(occ["gt"] == 255, np.uint8(0), occ["gt"])
    for t in range(7):
        hist = confusion(taken[:, t], occ["pred"][:, t])
        np.testing.assert_array_equal(occupied(hist), occ["iiworld_iou_hist"][t])
        assert round(100 * iou_occupied(hist), 2) == expected[t]["iou"]


def test_camera_mask_and_rule_of_occ3d(occ: dict[str, np.ndarray], shared: Path) -> None:
    expected = json.loads((shared / "fixtures" / "protocols" / "occ_aggregate.json").read_text())
    seen = np.unpackbits(occ["mask_camera"], axis=-1).astype(bool).reshape(6, 7, 200, 200, 16)
    hist = confusion(occ["gt"][:, 0], occ["pred"][:, 0], seen[:, 0])
    np.testing.assert_array_equal(hist, occ["occ3d_masked_hist_t0"])
    assert round(100 * miou(hist, "occ3d"), 2) == expected["occ3d_masked_t0"]["miou"]


def test_rule_of_occworld(occ: dict[str, np.ndarray], shared: Path) -> None:
    expected = json.loads((shared / "fixtures" / "protocols" / "occ_aggregate.json").read_text())["occworld"]
    for t in range(1, 7):
        assert 100 * miou(occ["iiworld_hist"][t], "occworld") == pytest.approx(expected["miou"][t - 1], abs=1e-3)


def test_by_hand() -> None:
    hist = confusion(grid(4, 4, 4, 17, 17, 7), grid(4, 4, 17, 4, 17, 7))
    assert hist.sum() == 6
    assert hist[4, 17] == 1  # rows are the ground truth
    assert hist[17, 4] == 1
    iou = class_iou(hist)
    assert (iou[4], iou[7], iou[17]) == (2 / 4, 1.0, 1 / 3)
    assert np.isnan(iou[0])
    assert miou(hist) == 0.75
    assert iou_occupied(hist) == 3 / 5
    assert occupied(hist).tolist() == [[1, 1], [1, 3]]


def test_the_rules_differ_on_absent_classes() -> None:
    hist = confusion(grid(4, 4, 17), grid(4, 4, 9))  # class 9 is predicted and nowhere true
    assert miou(hist) == 0.5
    assert miou(hist, "iiworld") == 1.0
    assert miou(hist, "occ3d") == 1.0
    assert miou(hist, "occworld") == 1.0
    missed = confusion(grid(4, 9), grid(4, 17))  # class 9 is true and nowhere predicted
    assert miou(missed) == miou(missed, "occ3d") == 0.5
    assert miou(missed, "iiworld") == 1.0
    assert miou(missed, "occworld") == pytest.approx(16 / 17)


def test_unknown_truth_and_masked_voxels_do_not_count() -> None:
    gt, pred = grid(4, 255, 7, 17), grid(4, 4, 9, 17)
    assert confusion(gt, pred).sum() == 3
    hist = confusion(gt, pred, np.array([True, True, False, True]))
    assert hist.sum() == 2
    assert miou(hist) == 1.0


def test_histograms_add_up_and_perfect_is_one() -> None:
    rng = np.random.default_rng(0)
    gt = rng.integers(0, 18, (2, 1200, 1000), dtype=np.uint8)  # more than one chunk
    pred = rng.integers(0, 18, gt.shape, dtype=np.uint8)
    slow = np.zeros((18, 18), np.int64)
    np.add.at(slow, (gt.ravel(), pred.ravel()), 1)
    np.testing.assert_array_equal(confusion(gt, pred), slow)
    np.testing.assert_array_equal(confusion(gt[0], pred[0]) + confusion(gt[1], pred[1]), slow)
    assert miou(confusion(gt, gt)) == iou_occupied(confusion(gt, gt)) == 1.0


def test_empty_is_nan_not_zero() -> None:
    assert np.isnan(miou(confusion(grid(17, 255), grid(17, 3))))
    assert np.isnan(iou_occupied(confusion(grid(17), grid(17))))


@pytest.mark.parametrize(
    ("gt", "pred", "message"),
    [
        (grid(18), grid(0), "ground truth holds class 18"),
        (grid(0), grid(255), "prediction holds class 255"),
        (grid(0, 1), grid(0), "the same shape"),
        (grid(0).astype(np.int64), grid(0), "uint8; found int64"),
    ],
)
def test_bad_grids(gt: np.ndarray, pred: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        confusion(gt, pred)


def test_unknown_rule() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'iiworld'"):
        miou(np.zeros((18, 18), np.int64), "ii-world")  # pyright: ignore[reportArgumentType]
