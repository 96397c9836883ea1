"""Whole images of polygons, from the row intervals that scoring looks cells up in."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from iidrive.scoring.raster import row_intervals

Array = np.ndarray


def fill(corner: Float[Array, "p 4 2"], image: Int[Array, "p"], n_images: int, size: int) -> Bool[Array, "i s s"]:
    """The images themselves, [image, row, column], of polygons drawn into image `image[k]` of `n_images`."""
    out = np.zeros((n_images, size, size + 1), np.int32)
    top, bottom = np.clip(corner[:, :, 1].min(axis=1), 0, size), np.clip(corner[:, :, 1].max(axis=1), -1, size - 1)
    deepest = int(max(0, (bottom - top + 1).max(initial=0)))
    row = top[:, None] + np.arange(deepest)
    first, last = row_intervals(corner, row, size)
    k, r = np.nonzero((first <= last) & (row <= bottom[:, None]))
    at = row[k, r].astype(np.int64)
    np.add.at(out, (image[k], at, first[k, r].astype(np.int64)), 1)
    np.add.at(out, (image[k], at, last[k, r].astype(np.int64) + 1), -1)
    return np.cumsum(out, axis=2, dtype=np.int32)[:, :, :size] > 0
