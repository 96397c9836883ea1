"""Occupancy metrics: confusion matrices, and the IoUs computed from them.

There are 18 Occ3D classes. Class 17 is free; 255 is unknown ground truth and is never counted. Confusion matrices (histograms) are int64 with
[ground truth, predicted] indices. Sum them over samples and processes first, then compute IoUs.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from iidrive.core.classes import FREE, IGNORE, OCC_CLASSES
from iidrive.core.errors import ConfigError, DataError, unknown

Array = np.ndarray

N_CLASSES = len(OCC_CLASSES)

AbsentRule = Literal["nowhere", "iiworld", "occ3d", "occworld"]
"""How the mean over the 17 non-free classes treats absent classes.

`nowhere` (default): a class is left out if it is neither in the ground truth nor predicted; a class that is only predicted counts as 0.
`iiworld`: a class is left out if it is in neither, or if its IoU is exactly 0. `occ3d`: a class is left out if absent from the ground truth.
`occworld`: a class counts as 1 if absent from the ground truth; if the ground truth has no class at all, the mean is NaN.
"""

_WORD = 8
_CHUNK = 1 << 20
"""Voxels per chunk. It bounds the memory of temporary arrays."""


def confusion(gt: UInt8[Array, "*shape"], pred: UInt8[Array, "*shape"], mask: Bool[Array, "*shape"] | None = None) -> Int64[Array, "18 18"]:
    """Count voxels by [ground truth, predicted] class. Unknown (255) ground truth and voxels where `mask` is false are not counted.

    Raises:
        DataError: for other dtypes, different shapes, or a counted class above 17.
    """
    if gt.dtype != np.uint8 or pred.dtype != np.uint8:
        raise DataError(f"occupancy must be uint8; found {gt.dtype} (ground truth) and {pred.dtype} (predicted).")
    if gt.shape != pred.shape or (mask is not None and (mask.shape != gt.shape or mask.dtype != bool)):
        found = "" if mask is None else f" and a {mask.dtype} mask of shape {mask.shape}"
        raise DataError(f"ground truth and prediction (and a bool mask) must have the same shape; found {gt.shape}, {pred.shape}{found}.")
    a, b = (gt.reshape(-1), pred.reshape(-1)) if mask is None else (gt[mask], pred[mask])
    counts = np.zeros((256, 256), np.int64)
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    words = a.size // _WORD * _WORD
    for start in range(0, words, _CHUNK):
        x, y = a[start : min(start + _CHUNK, words)], b[start : min(start + _CHUNK, words)]
        # Most voxels are free in both grids. Skip them eight at a time, then one at a time, and count only the rest.
        mixed = ((x != FREE) | (y != FREE)).view(np.uint64)
        word = np.flatnonzero(mixed != 0)
        rest = np.flatnonzero(mixed.take(word).view(bool))
        counts += _pairs(*(z.view(np.uint64).take(word).view(np.uint8).take(rest) for z in (x, y)))
        counts[FREE, FREE] += x.size - rest.size
    counts += _pairs(a[words:], b[words:])
    counts[IGNORE] = 0
    for name, total in (("ground truth", counts.sum(axis=1)), ("prediction", counts.sum(axis=0))):
        if total[N_CLASSES:].any():
            wrong = N_CLASSES + int(np.argmax(total[N_CLASSES:] > 0))
            raise DataError(
                f"the {name} holds class {wrong}; classes are 0..{N_CLASSES - 1}, and {IGNORE} (unknown) in the ground truth only."
            )
    return counts[:N_CLASSES, :N_CLASSES].copy()


def _pairs(a: UInt8[Array, "n"], b: UInt8[Array, "n"]) -> Int64[Array, "256 256"]:
    pair = a.astype(np.intp)
    pair <<= 8
    pair |= b
    return np.bincount(pair, minlength=256 * 256).reshape(256, 256)


def class_iou(hist: Int64[Array, "18 18"]) -> Float64[Array, "18"]:
    """Intersection over union of each class; NaN for a class that is neither in the ground truth nor predicted."""
    hit = np.diag(hist).astype(np.float64)
    union = hist.sum(axis=0) + hist.sum(axis=1) - hit
    return np.divide(hit, union, out=np.full(len(hit), np.nan), where=union > 0)


def miou(hist: Int64[Array, "18 18"], absent: AbsentRule = "nowhere") -> float:
    """Mean IoU over the 17 non-free classes, 0..1; NaN if no class is left. `AbsentRule` explains the treatment of absent classes.

    Raises:
        ConfigError: for an unknown rule.
    """
    if absent not in get_args(AbsentRule):
        raise ConfigError(unknown("rule for absent classes", absent, get_args(AbsentRule)))
    iou = class_iou(hist)[:FREE]
    in_truth = hist.sum(axis=1)[:FREE] > 0
    if absent == "iiworld":
        iou = iou[iou != 0]
    elif absent == "occ3d":
        iou = iou[in_truth]
    elif absent == "occworld":
        iou = np.where(in_truth, iou, 1.0) if in_truth.any() else np.full(FREE, np.nan)
    kept = iou[~np.isnan(iou)]
    return float(kept.mean()) if len(kept) else float("nan")


def occupied(hist: Int64[Array, "18 18"]) -> Int64[Array, "2 2"]:
    """The binary confusion matrix [ground truth, predicted]: index 0 is free, index 1 is occupied by any class."""
    taken = hist[:FREE, :FREE].sum()
    return np.array([[hist[FREE, FREE], hist[FREE, :FREE].sum()], [hist[:FREE, FREE].sum(), taken]], np.int64)


def iou_occupied(hist: Int64[Array, "18 18"]) -> float:
    """IoU of occupied voxels of any class, 0..1; NaN if nothing is occupied in either grid.

    II-World counts unknown (255) ground truth as occupied. To reproduce that, replace 255 by any non-free class before counting.
    """
    return float(class_iou(occupied(hist))[1])
