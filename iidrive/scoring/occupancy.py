"""Occupancy scores of the public evaluators from one set of histograms, which are collected sample by sample and add up over processes.

- II-World (commit 083911f9): mIoU without camera mask, classes of IoU exactly 0 left out; IoU of occupied against free, for which unknown
  (255) truth is occupied; both rounded to two decimals of a percent, and the average is the mean of the rounded 1, 2 and 3 s.
- OccWorld (commit 1ee7f77e): mIoU with absent classes as 1; IoU; the average over 1, 2 and 3 s; unknown truth counts as
  forecast, and as occupied.
- Occ3D: mIoU of the present grid within the camera's mask, over classes that the truth has.
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
    """Collects histograms of `times` grids a sample (now first): `update` on every batch, `merge` over processes, read at the end.

    `hist` [time, truth, forecast] counts known voxels, `unknown` [time, forecast] those whose truth is unknown, `seen` [truth, forecast]
    those of the present grid within the camera's mask; `samples` how many were given.
    """

    times: int = TIMES
    samples: int = 0
    hist: Int64[Array, "t 18 18"] = field(init=False)
    unknown: Int64[Array, "t 18"] = field(init=False)
    seen: Int64[Array, "18 18"] = field(init=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.samples = 0
        self.hist = np.zeros((self.times, metrics.N_CLASSES, metrics.N_CLASSES), np.int64)
        self.unknown = np.zeros((self.times, metrics.N_CLASSES), np.int64)
        self.seen = np.zeros((metrics.N_CLASSES, metrics.N_CLASSES), np.int64)

    def update(
        self, gt: UInt8[Array, "b t x y z"], pred: UInt8[Array, "b t x y z"], mask_camera: Bool[Array, "b x y z"] | None = None
    ) -> None:
        """Count a batch; `mask_camera` is that of the present grid.

        Raises:
            DataError: for another number of times, for a predicted class above 17 anywhere, and as `metrics.confusion` does.
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
        """Add what other processes collected; returns itself. Raises DataError for another number of times."""
        for other in others:
            if other.times != self.times:
                raise DataError(f"scores of {self.times} and of {other.times} times cannot be merged; collect the same times everywhere.")
            self.hist, self.unknown, self.seen = self.hist + other.hist, self.unknown + other.unknown, self.seen + other.seen
            self.samples += other.samples
        return self

    def compute(self) -> dict[str, object]:
        """All scores, in percent: see the functions below. OccWorld's, which are of forecasts, only where there are future times."""
        out: dict[str, object] = {"n": self.samples, "iiworld": iiworld(self.hist, self.unknown)}
        if self.times > 1:
            out["occworld"] = occworld(self.hist, self.unknown)
        if self.seen.any():
            out["occ3d"] = occ3d(self.seen)
        return out


def iiworld_occupied(hist: Int64[Array, "18 18"], unknown: Int64[Array, "18"]) -> Int64[Array, "2 2"]:
    """Free and occupied [truth, forecast], with voxels of unknown truth as occupied."""
    out = metrics.occupied(hist)
    out[1] += (unknown[FREE], unknown[:FREE].sum())
    return out


def iiworld(hist: Int64[Array, "t 18 18"], unknown: Int64[Array, "t 18"]) -> dict[str, list[float]]:
    """`mIoU` and `IoU` of every time, percent with two decimals; with seven times also `average`: mIoU and IoU over 1, 2 and 3 s."""
    miou = [round(100 * metrics.miou(h, "iiworld"), 2) for h in hist]
    iou = [round(100 * float(metrics.class_iou(iiworld_occupied(h, u))[1]), 2) for h, u in zip(hist, unknown, strict=True)]
    out = {"mIoU": miou, "IoU": iou}
    if len(hist) == TIMES:
        out["average"] = [float(np.mean([values[t] for _, t in _SECONDS])) for values in (miou, iou)]
    return out


def iiworld_table(scores: dict[str, list[float]]) -> str:
    """II-World's printed table of 1, 2, 3 s and their average."""
    lines = [["Time", "mIoU", "IoU"]]
    lines += [[f"{s:.1f}s", _shown(scores["mIoU"][t]), _shown(scores["IoU"][t])] for s, t in _SECONDS]
    lines.append(["Average", *(_shown(value) for value in scores["average"])])
    return ruled(lines)


def _shown(percent: float) -> str:
    return "-" if np.isnan(percent) else f"{percent:.2f}"


def occworld_totals(hist: Int64[Array, "t 18 18"], unknown: Int64[Array, "t 18"]) -> dict[str, Int64[Array, "t c"]]:
    """OccWorld's sums: truth (`seen`), forecast (`positive`) and both (`correct`) of the 17 classes, and of occupied voxels (`vox_…`).

    It knows no unknown truth: such voxels count as forecast, and as occupied in the truth.
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
    """`mIoU` and `IoU` of the future times, percent, and with seven times `average`: mIoU and IoU over 1, 2 and 3 s.

    NaN at a time at which no class is in the truth: there is nothing to forecast, and OccWorld's 100 % would be no result.
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
    """mIoU of voxels within the camera's mask, percent with two decimals."""
    return round(100 * metrics.miou(seen, "occ3d"), 2)
