"""Do probabilities mean what they say? Cells sorted by the probability they were given, and the share of each sort that was truly taken.

A forecaster is calibrated if of the cells to which it gives 30 % about 30 % are taken. Its *calibration error* is the mean over all cells of
the distance between the two, sort by sort (Guo et al., 2017, "On calibration of modern neural networks").

Shapes: H horizons, K sorts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

Array = np.ndarray

EDGES = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
"""Where one sort of probabilities ends and the next begins. Most cells are given almost nothing, so that the first ones are narrow."""


@dataclass(frozen=True)
class Reliability:
    """Of each sort: how many `cells` there are, the sum of the probabilities that they were given (`expected`), how many were `taken`.

    Counts of several batches add up.
    """

    cells: Int[Array, "H K"]
    expected: Float[Array, "H K"]
    taken: Int[Array, "H K"]

    @staticmethod
    def zero(horizons: int) -> Reliability:
        """Nothing counted yet."""
        shape = horizons, len(EDGES) - 1
        return Reliability(np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape, np.int64))

    @staticmethod
    def of(told: Float[Array, "B H X Y"], taken: Bool[Array, "B H X Y"], within: Bool[Array, "B X Y"] | None = None) -> Reliability:
        """Count the cells of some samples, or those `within`, by the probability `told`."""
        sort = np.clip(np.searchsorted(EDGES, told, "right") - 1, 0, len(EDGES) - 2)
        counted = np.ones(told.shape, bool) if within is None else np.broadcast_to(within[:, None], told.shape)
        columns = []
        for h in range(told.shape[1]):
            rows = counted[:, h]
            at = sort[:, h][rows]
            weights = (None, told[:, h][rows].astype(np.float64), taken[:, h][rows])
            columns.append([np.bincount(at, weight, len(EDGES) - 1) for weight in weights])
        cells, expected, hit = (np.stack(part) for part in zip(*columns, strict=True))
        return Reliability(cells.astype(np.int64), expected, hit.astype(np.int64))

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(self.cells + other.cells, self.expected + other.expected, self.taken + other.taken)

    def error(self) -> Float[Array, "H"]:
        """The calibration error, 0..1; NaN without cells."""
        total = self.cells.sum(1)
        return np.divide(abs(self.expected - self.taken).sum(1), total, out=np.full(len(total), np.nan), where=total > 0)

    def share_taken(self) -> Float[Array, "H"]:
        """The share of all cells that was taken, beside which an error is to be read; NaN without cells."""
        total = self.cells.sum(1)
        return np.divide(self.taken.sum(1), total, out=np.full(len(total), np.nan), where=total > 0)

    def to_json(self) -> dict[str, Any]:
        """Plain values, by horizon: the counts, and the calibration error (None without cells)."""
        error, share = ([None if np.isnan(v) else float(v) for v in values] for values in (self.error(), self.share_taken()))
        counts = {"cells": self.cells.tolist(), "expected": self.expected.tolist(), "taken": self.taken.tolist()}
        return {"edges": EDGES.tolist(), "error": error, "share_taken": share, **counts}
