"""Occupancy scores of the public evaluators, all from one set of confusion matrices.

- II-World (commit 083911f9): mIoU without camera mask, leaving out classes with an IoU of exactly 0; IoU of occupied voxels, where unknown (255)
  ground truth counts as occupied. Both are rounded to two decimals of a percent. The average is the mean of the rounded values at 1, 2 and 3 s.
- OccWorld (commit 1ee7f77e): mIoU where absent classes count as 1; IoU; both also averaged over 1, 2 and 3 s. Voxels of unknown ground truth
  count as predicted, and as occupied in the ground truth.
- Occ3D: mIoU of the current grid inside the camera mask, over the classes in the ground truth.
- RayIoU is in `rays`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from iidrive.core.classes import FREE, IGNORE
from iidrive.core.errors import DataError
from iidrive.core.text import ruled
from iidrive.scoring import metrics

Array = np.ndarray

TIMES = 7
"""Now and the six future keyframes."""
_SECONDS = ((1, 2), (2, 4), (3, 6))


@dataclass
class OccupancyScore:
    """Accumulates confusion matrices of `times` grids per sample, t = 0 first: `update` with every batch, `merge` over processes, then `compute`.

    `hist` [time, truth, forecast] counts voxels with known ground truth. `unknown` [time, forecast] counts voxels with unknown ground truth.
    `seen` [truth, forecast] counts voxels of the current grid inside the camera mask. `samples` is the number of samples.
    """

    times: int = TIMES
    samples: int = 0
    hist: Int64[Array, "t 18 18"] = field(init=False)
    unknown: Int64[Array, "t 18"] = field(init=False)
    seen: Int64[Array, "18 18"] = field(init=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set all counts to zero."""
        self.samples = 0
        self.hist = np.zeros((self.times, metrics.N_CLASSES, metrics.N_CLASSES), np.int64)
        self.unknown = np.zeros((self.times, metrics.N_CLASSES), np.int64)
        self.seen = np.zeros((metrics.N_CLASSES, metrics.N_CLASSES), np.int64)

    def update(
        self, gt: UInt8[Array, "b t x y z"], pred: UInt8[Array, "b t x y z"], mask_camera: Bool[Array, "b x y z"] | None = None
    ) -> None:
        """Count a batch. `mask_camera` is the camera mask of the current grid.

        Raises:
            DataError: for another number of times, for a predicted class above 17, or as `metrics.confusion` does.
        """
        if gt.ndim < 3 or gt.shape[1] != self.times:
            raise DataError(f"grids must have shape (batch, {self.times} times, x, y, z), now first; found {gt.shape}.")
        found = [metrics.confusion(gt[:, t], pred[:, t]) for t in range(self.times)]
        blind = [np.bincount(pred[:, t][gt[:, t] == IGNORE], minlength=metrics.N_CLASSES) for t in range(self.times)]
        if (highest := max(map(len, blind)) - 1) > FREE:
            raise DataError(
                f"the prediction holds class {highest}; classes are 0..{FREE}, and {IGNORE} (unknown) in the ground truth only."
            )
        if mask_camera is not None:
            self.seen = self.seen + metrics.confusion(gt[:, 0], pred[:, 0], mask_camera)
        self.hist = self.hist + np.stack(found)
        self.unknown = self.unknown + np.stack(blind)
        self.samples += len(gt)

    def merge(self, others: Iterable[OccupancyScore]) -> OccupancyScore:
        """Add the counts of other processes; returns self. Raises DataError for another number of times."""
        for other in others:
            if other.times != self.times:
                raise DataError(
                    f"scores of {self.times} and of {other.times} times cannot be merged; use the same number of times everywhere."
                )
            self.hist, self.unknown, self.seen = self.hist + other.hist, self.unknown + other.unknown, self.seen + other.seen
            self.samples += other.samples
        return self

    def compute(self) -> dict[str, object]:
        """Scores of all rules, in percent (see the functions below). OccWorld's need future times; Occ3D's need camera masks."""
        out: dict[str, object] = {"n": self.samples, "iiworld": iiworld(self.hist, self.unknown)}
        if self.times > 1:
            out["occworld"] = occworld(self.hist, self.unknown)
        if self.seen.any():
            out["occ3d"] = occ3d(self.seen)
        return out


def iiworld_occupied(hist: Int64[Array, "18 18"], unknown: Int64[Array, "18"]) -> Int64[Array, "2 2"]:
    """Binary confusion matrix [truth, forecast] of free and occupied voxels, where unknown truth counts as occupied."""
    out = metrics.occupied(hist)
    out[1] += (unknown[FREE], unknown[:FREE].sum())
    return out


def iiworld(hist: Int64[Array, "t 18 18"], unknown: Int64[Array, "t 18"]) -> dict[str, list[float]]:
    """`mIoU` and `IoU` at every time, percent with two decimals; with seven times also `average`, the means [mIoU, IoU] over 1, 2 and 3 s."""
    miou = [round(100 * metrics.miou(h, "iiworld"), 2) for h in hist]
    iou = [round(100 * float(metrics.class_iou(iiworld_occupied(h, u))[1]), 2) for h, u in zip(hist, unknown, strict=True)]
    out = {"mIoU": miou, "IoU": iou}
    if len(hist) == TIMES:
        out["average"] = [float(np.mean([values[t] for _, t in _SECONDS])) for values in (miou, iou)]
    return out


def iiworld_table(scores: dict[str, list[float]]) -> str:
    """II-World's printed table: 1, 2, 3 s and their average."""
    lines = [["Time", "mIoU", "IoU"]]
    lines += [[f"{s:.1f}s", _shown(scores["mIoU"][t]), _shown(scores["IoU"][t])] for s, t in _SECONDS]
    lines.append(["Average", *(_shown(value) for value in scores["average"])])
    return ruled(lines)


def _shown(percent: float) -> str:
    return "-" if np.isnan(percent) else f"{percent:.2f}"


def occworld_totals(hist: Int64[Array, "t 18 18"], unknown: Int64[Array, "t 18"]) -> dict[str, Int64[Array, "t c"]]:
    """OccWorld's voxel counts per time: `seen` (truth), `positive` (forecast) and `correct` (both) of the 17 classes, and of occupied (`vox_…`).

    OccWorld does not ignore unknown ground truth: these voxels count as predicted, and as occupied in the truth.
    """
    taken = np.stack([iiworld_occupied(h, u) for h, u in zip(hist, unknown, strict=True)])
    return {
        "total_seen": hist.sum(axis=2)[:, :FREE],
        "total_positive": (hist.sum(axis=1) + unknown)[:, :FREE],
        "total_correct": np.diagonal(hist, axis1=1, axis2=2)[:, :FREE],
        "vox_total_seen": taken[:, 1].sum(axis=1, keepdims=True),
        "vox_total_positive": taken[:, :, 1].sum(axis=1, keepdims=True),
        "vox_total_correct": taken[:, 1, 1:],
    }


def occworld(hist: Int64[Array, "t 18 18"], unknown: Int64[Array, "t 18"]) -> dict[str, list[float]]:
    """`mIoU` and `IoU` at the future times, percent; with seven times also `average`, the means [mIoU, IoU] over 1, 2 and 3 s.

    NaN at a time whose ground truth has no class. OccWorld itself would report 100 % there, although there is nothing to forecast.
    """
    total = occworld_totals(hist[1:], unknown[1:])
    out: dict[str, list[float]] = {}
    for name, kind in (("mIoU", "total"), ("IoU", "vox_total")):
        seen, positive, correct = (total[f"{kind}_{part}"] for part in ("seen", "positive", "correct"))
        iou = np.divide(correct, seen + positive - correct, out=np.ones(seen.shape), where=seen > 0)
        out[name] = np.where((seen > 0).any(axis=1), 100 * iou.mean(axis=1), np.nan).tolist()
    if len(hist) == TIMES:
        out["average"] = [float(np.mean([values[t - 1] for _, t in _SECONDS])) for values in (out["mIoU"], out["IoU"])]
    return out


def occ3d(seen: Int64[Array, "18 18"]) -> float:
    """Occ3D's mIoU of the voxels inside the camera mask, percent with two decimals."""
    return round(100 * metrics.miou(seen, "occ3d"), 2)
