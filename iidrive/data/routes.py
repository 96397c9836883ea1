"""Training labels of the route: the line that the ego is to follow (see `source.route_line`), around each keyframe.

Only training losses read these labels. They are never a model input.

Shapes: n points of a line, R points of a label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from iidrive.core import geometry
from iidrive.core.scene import ROUTE_AHEAD, ROUTE_BEHIND, ROUTE_STEP_M
from iidrive.data.clips import EgoTrack

Array = np.ndarray

_SEARCHED_M = (5.0, 40.0)
"""Search range behind and ahead of the previous keyframe's place along a route, metres."""


class RouteTargets:
    """Clip label `route` by (scene name, keyframe): R points `ROUTE_STEP_M` apart along the route (see `core.batch.Targets`)."""

    def __init__(self, tracks: Sequence[EgoTrack]) -> None:
        self._labels = {track.name: windows(track) for track in tracks}

    def __call__(self, name: str, index: int) -> dict[str, Array]:
        return {"route": self._labels[name][index]}


def windows(track: EgoTrack) -> Float32[Array, "t R 2"]:
    """The part of the route around each keyframe, from `ROUTE_BEHIND` points before the nearest one to `ROUTE_AHEAD` points after it.

    Ego frame of the keyframe, metres; NaN beyond the ends of the route.
    """
    line, lidar = track.route_m, (track.global_T_ego @ track.ego_T_lidar)[:, :2, 3]
    around = np.arange(-ROUTE_BEHIND, ROUTE_AHEAD + 1)
    label = np.full((len(lidar), len(around), 2), np.nan, np.float32)
    back, ahead, place = *(round(reach / ROUTE_STEP_M) for reach in _SEARCHED_M), 0
    for t, here in enumerate(lidar):
        low, high = (max(place - back, 0), place + ahead) if t else (0, len(line))
        place = low + int(((line[low:high] - here) ** 2).sum(-1).argmin())
        inside = (place + around >= 0) & (place + around < len(line))
        points = line[(place + around)[inside]]
        flat = np.concatenate([points, np.full((len(points), 1), track.global_T_ego[t, 2, 3])], -1)
        label[t, inside] = geometry.apply(geometry.invert(track.global_T_ego[t]), flat)[:, :2]
    return label
