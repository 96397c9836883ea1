"""mAVE: mean absolute velocity error of occupied voxels.

The absolute velocity error (AVE) of a class is the mean norm of the difference between predicted and true velocity over its true positives, m/s.
mAVE is the mean over the eight movable classes, as in OccScore of the CVPR 2024 occupancy and flow challenge.

In the challenge, true positives are lidar rays that end within 2 m of the truth in the correct class. Here they are *voxels* of the correct class,
without rays. So the two metrics are not comparable.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from iidrive.core.classes import MOVABLE, OCC_CLASSES

Array = np.ndarray


@dataclass(frozen=True)
class FlowErrors:
    """Sums per class over true-positive voxels with a known true velocity. `files` is the number of files with a predicted flow.

    Add the sums of several samples with `+`.
    """

    error_mps: Float[Array, "18"] = field(default_factory=lambda: np.zeros(len(OCC_CLASSES)))
    voxels: Int[Array, "18"] = field(default_factory=lambda: np.zeros(len(OCC_CLASSES), np.int64))
    files: int = 0

    def __add__(self, other: FlowErrors) -> FlowErrors:
        return FlowErrors(self.error_mps + other.error_mps, self.voxels + other.voxels, self.files + other.files)

    def per_class(self) -> dict[str, float]:
        """AVE of every movable class, m/s; NaN for a class without true positives."""
        ave = np.divide(self.error_mps, self.voxels, out=np.full(len(self.voxels), np.nan), where=self.voxels > 0)
        return {name: float(ave[i]) for i, name in enumerate(OCC_CLASSES) if MOVABLE[i]}

    def mave(self) -> float:
        """Mean AVE over the movable classes with true positives, m/s; NaN if there is none."""
        found = [value for value in self.per_class().values() if not np.isnan(value)]
        return float(np.mean(found)) if found else float("nan")


def flow_errors(
    truth: UInt8[Array, "X Y Z"],
    true_mps: Float[Array, "X Y Z 2"],
    known: Bool[Array, "X Y Z"],
    predicted: UInt8[Array, "X Y Z"],
    predicted_mps: Float[Array, "X Y Z 2"],
) -> FlowErrors:
    """Velocity errors of one grid, over correctly predicted movable voxels whose true velocity is `known`. Velocities are (x, y), m/s."""
    use = known & MOVABLE[truth] & (predicted == truth)
    error = np.linalg.norm(predicted_mps[use].astype(np.float64) - true_mps[use], axis=-1)
    label = truth[use]
    n = len(OCC_CLASSES)
    return FlowErrors(np.bincount(label, weights=error, minlength=n), np.bincount(label, minlength=n))
