"""Calibration of predicted probabilities: cells binned by predicted probability, and the fraction of each bin that is truly occupied.

A forecaster is calibrated if 30 % of the cells with a predicted probability of 30 % are occupied. The calibration error is the expected
calibration error (ECE): the mean over all cells of |mean prediction - fraction occupied| of their bin (Guo et al., 2017, "On calibration of modern
neural networks").

Shapes: H horizons, K bins, B samples, X, Y cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

Array = np.ndarray

EDGES = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
"""Edges of the bins. Most cells have a probability near 0, so the first bins are narrow."""


@dataclass(frozen=True)
class Reliability:
    """Counts per horizon and bin. Add the counts of several batches with `+`.

    `cells`: number of cells. `expected`: sum of their predicted probabilities. `taken`: number of truly occupied cells.
    """

    cells: Int[Array, "H K"]
    expected: Float[Array, "H K"]
    taken: Int[Array, "H K"]

    @staticmethod
    def zero(horizons: int) -> Reliability:
        """Counts of zero."""
        shape = horizons, len(EDGES) - 1
        return Reliability(np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape, np.int64))

    @staticmethod
    def of(predicted: Float[Array, "B H X Y"], taken: Bool[Array, "B H X Y"], within: Bool[Array, "B X Y"] | None = None) -> Reliability:
        """Count the cells of some samples, or only those `within`, by `predicted` probability, 0..1."""
        bins = np.clip(np.searchsorted(EDGES, predicted, "right") - 1, 0, len(EDGES) - 2)
        counted = np.ones(predicted.shape, bool) if within is None else np.broadcast_to(within[:, None], predicted.shape)
        columns = []
        for h in range(predicted.shape[1]):
            rows = counted[:, h]
            at = bins[:, h][rows]
            weights = (None, predicted[:, h][rows].astype(np.float64), taken[:, h][rows])
            columns.append([np.bincount(at, weight, len(EDGES) - 1) for weight in weights])
        cells, expected, hit = (np.stack(part) for part in zip(*columns, strict=True))
        return Reliability(cells.astype(np.int64), expected, hit.astype(np.int64))

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(self.cells + other.cells, self.expected + other.expected, self.taken + other.taken)

    def error(self) -> Float[Array, "H"]:
        """Calibration error per horizon, 0..1; NaN if no cell was counted."""
        total = self.cells.sum(1)
        return np.divide(abs(self.expected - self.taken).sum(1), total, out=np.full(len(total), np.nan), where=total > 0)

    def share_taken(self) -> Float[Array, "H"]:
        """Fraction of all cells that is occupied, per horizon; NaN if no cell was counted. Compare the calibration error with it."""
        total = self.cells.sum(1)
        return np.divide(self.taken.sum(1), total, out=np.full(len(total), np.nan), where=total > 0)

    def to_json(self) -> dict[str, Any]:
        """Plain values per horizon: the counts and the calibration error (None if no cell was counted)."""
        error, share = ([None if np.isnan(v) else float(v) for v in values] for values in (self.error(), self.share_taken()))
        counts = {"cells": self.cells.tolist(), "expected": self.expected.tolist(), "taken": self.taken.tolist()}
        return {"edges": EDGES.tolist(), "error": error, "share_taken": share, **counts}
