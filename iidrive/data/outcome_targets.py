"""Training labels for the outcomes of candidate plans: tracked boxes, and the drivable area of the map.

Only training losses read these labels. They are never a model input.
"""

from __future__ import annotations

import numpy as np
import shapely
from jaxtyping import Bool

from iidrive.core import geometry
from iidrive.core.scene import ROAD_GRID, Scene
from iidrive.data.box_tracks import BoxTargets
from iidrive.data.source import Source

Array = np.ndarray


class OutcomeTargets:
    """Clip labels `boxes`, `boxes_known`, `drivable` and `road_known` by (scene name, keyframe); see `core.batch.Targets`."""

    def __init__(self, source: Source) -> None:
        self.source, self.boxes = source, BoxTargets(source)

    def __call__(self, name: str, index: int) -> dict[str, Array]:
        area = drivable_area(self.source.scene(name), index)
        known = area is not None
        road = area if area is not None else np.zeros(ROAD_GRID.shape[:2], bool)
        return {**self.boxes(name, index), "drivable": road, "road_known": np.array(known)}


def drivable_area(scene: Scene, index: int) -> Bool[Array, "X Y"] | None:
    """Whether the centre of each cell of `ROAD_GRID` around the ego at keyframe `index` is in the map's drivable area; None without a map."""
    layer = scene.map.layers.get("drivable_area")
    if layer is None:
        return None
    shapely.prepare(layer)
    cells = np.stack([*np.meshgrid(ROAD_GRID.centres(0), ROAD_GRID.centres(1), indexing="ij"), np.zeros(ROAD_GRID.shape[:2])], -1)
    there = geometry.apply(scene.keyframes[index].global_T_ego.matrix, cells)
    return np.asarray(shapely.intersects_xy(layer, there[..., 0], there[..., 1]))
