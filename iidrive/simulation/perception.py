"""Errors of the occupancy that a planner sees in closed loop: missing columns, and road users at wrong distances."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8

from iidrive.core.classes import FREE
from iidrive.core.scene import Boxes

Array = np.ndarray

_NEAREST = 0.3
"""A road user is never seen at less than this fraction of its true distance."""

Seed = tuple[int, ...]


@dataclass(frozen=True)
class Perception:
    """Errors of perception, drawn for every keyframe from its seed.

    Attributes:
        dropped: fraction of the occupancy's columns that are set to free.
        depth_error: standard deviation of the error of a box's distance from the ego, as a fraction of that distance. Errors are along the
            line of sight, as those of a camera are.
    """

    dropped: float = 0.0
    depth_error: float = 0.0

    def boxes(self, boxes: Boxes, ego_m: Float[Array, "2"], seed: Seed) -> Boxes:
        """Boxes (global frame) where they are seen from the ego at `ego_m`."""
        if not self.depth_error:
            return boxes
        factor = 1 + self.depth_error * np.random.default_rng((*seed, 1)).standard_normal(len(boxes))
        centre = boxes.centre_m.copy()
        centre[:, :2] = ego_m + (centre[:, :2] - ego_m) * factor.clip(min=_NEAREST)[:, None]
        return replace(boxes, centre_m=centre)

    def occupancy(self, semantics: UInt8[Array, "X Y Z"], seed: Seed) -> UInt8[Array, "X Y Z"]:
        """Occupancy with some columns free."""
        if not self.dropped:
            return semantics
        gone = np.random.default_rng(seed).random(semantics.shape[:2]) < self.dropped
        return np.where(gone[..., None], np.uint8(FREE), semantics)
