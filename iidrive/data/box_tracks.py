"""Tracked boxes of a scene, and training labels made from them: where each box is now and at every future step.

Only training losses read these labels. They are never a model input.

Shapes: T keyframes of a scene, n tracks, H = S + 1 times of a sample (now, then S future steps), X, Y cells.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from iidrive.core import geometry
from iidrive.core.classes import MOVABLE, OCC_OF_CATEGORY
from iidrive.core.footprint import MARGIN_CELLS, rectangles
from iidrive.core.scene import FUTURE_STEPS, GridSpec, Scene
from iidrive.data.source import Source

Array = np.ndarray

MOST_BOXES = 64
"""Maximum number of boxes in a sample's labels. Batches are padded to this size."""

_BEYOND_M = 12.0
"""A box whose centre is farther than this outside the grid cannot reach into it, metres."""


@dataclass(frozen=True)
class BoxTracks:
    """n tracks at H times in one frame.

    Attributes:
        centre_m: (H,n,3) centres, metres; 0 where unknown.
        yaw_rad: (H,n) headings; 0 where unknown.
        known: (H,n) true where the track has a box.
        size_m: (n,2) length and width, metres.
        label: (n,) occupancy class.
    """

    centre_m: Float[Array, "H n 3"]
    yaw_rad: Float[Array, "H n"]
    known: Bool[Array, "H n"]
    size_m: Float[Array, "n 2"]
    label: UInt8[Array, "n"]

    @staticmethod
    def of(scene: Scene) -> BoxTracks:
        """All tracks of a scene at all its keyframes, in the global frame. A track has the size and label of its first box."""
        place: dict[str, int] = {}
        first = []
        for keyframe in scene.keyframes:
            boxes = keyframe.boxes
            for i, track in enumerate(boxes.track):
                if track not in place:
                    place[track] = len(place)
                    first.append((boxes.size_m[i, :2], OCC_OF_CATEGORY[boxes.label[i]]))
        shape = len(scene), len(place)
        centre, yaw, known = np.zeros((*shape, 3)), np.zeros(shape), np.zeros(shape, bool)
        for t, keyframe in enumerate(scene.keyframes):
            at = [place[track] for track in keyframe.boxes.track]
            centre[t, at], yaw[t, at], known[t, at] = keyframe.boxes.centre_m, keyframe.boxes.yaw_rad, True
        sizes = np.array([size for size, _ in first]).reshape(-1, 2)
        return BoxTracks(centre, yaw, known, sizes, np.array([label for _, label in first], np.uint8))

    def around(self, scene: Scene, index: int, reach_m: float, steps: int = FUTURE_STEPS) -> BoxTracks:
        """Tracks near the ego at keyframe `index` and the next `steps` keyframes, in the ego frame of keyframe `index`.

        A track is near if |x| and |y| of its centre are below `reach_m` at any of these times. After the scene's end, `known` is false.
        """
        ego_T_global = geometry.invert(scene.keyframes[index].global_T_ego.matrix)
        at = np.minimum(np.arange(index, index + steps + 1), len(scene) - 1)
        known = self.known[at] & (np.arange(index, index + steps + 1) < len(scene))[:, None]
        centre = geometry.apply(ego_T_global, self.centre_m[at])
        near = (known & (abs(centre[..., :2]) < reach_m).all(-1)).any(0)
        yaw = self.yaw_rad[at][:, near]
        direction = np.stack([np.cos(yaw), np.sin(yaw)], -1) @ ego_T_global[:2, :2].T
        return BoxTracks(
            centre[:, near], np.arctan2(direction[..., 1], direction[..., 0]), known[:, near], self.size_m[near], self.label[near]
        )


@dataclass(frozen=True)
class FlowLabels:
    """Bird's-eye-view occupancy and backward flow of road users, in the current ego frame.

    Attributes:
        taken: (H,X,Y) true for cells inside a box of a movable class, now and at every future step.
        flow_m: (S,X,Y,2) from an occupied cell of a future step to where the same point of its box is now, along x and y, metres. NaN for
            free cells, and if the box is unknown now.
    """

    taken: Bool[Array, "H X Y"]
    flow_m: Float32[Array, "S X Y 2"]


def flow_labels(boxes: BoxTracks, spec: GridSpec) -> FlowLabels:
    """Flow labels of one sample. `boxes` and the grid are in its current ego frame. Where boxes overlap, the smaller one owns the cell."""
    moments = len(boxes.known)
    taken = np.zeros((moments, *spec.shape[:2]), bool)
    origin = np.full((moments - 1, *spec.shape[:2], 2), np.nan, np.float32)
    moment, box = np.nonzero(boxes.known & MOVABLE[boxes.label])
    large_first = np.argsort(-boxes.size_m.prod(1)[box], kind="stable")  # NumPy keeps the last write: the smaller box
    moment, box = moment[large_first], box[large_first]
    cells = rectangles(boxes.centre_m[moment, box, :2], boxes.size_m[box], boxes.yaw_rad[moment, box], spec, MARGIN_CELLS * spec.voxel_m)
    when, which = moment[cells.box], box[cells.box]
    taken[when, cells.x, cells.y] = True
    later = when > 0
    when, which, x, y, local = (part[later] for part in (when, which, cells.x, cells.y, cells.local_m))
    here = np.stack([spec.centres(0)[x], spec.centres(1)[y]], -1)
    then = geometry.placed(boxes.centre_m[0, which, :2], boxes.yaw_rad[0, which], local)
    origin[when - 1, x, y] = np.where(boxes.known[0, which, None], then - here, np.nan)
    return FlowLabels(taken, origin)


class SceneBoxes:
    """Tracks near the ego of a sample: (scene name, keyframe) → `BoxTracks`. Caches the most recently used scenes, at most `scenes`."""

    def __init__(self, source: Source, reach_m: float, scenes: int = 512) -> None:
        self.source, self.reach_m, self.limit = source, reach_m, scenes
        self.kept: OrderedDict[str, tuple[Scene, BoxTracks]] = OrderedDict()

    def __call__(self, name: str, index: int) -> BoxTracks:
        if name not in self.kept:
            scene = self.source.scene(name)
            self.kept[name] = scene, BoxTracks.of(scene)
            while len(self.kept) > self.limit:
                self.kept.popitem(last=False)
        self.kept.move_to_end(name)
        scene, tracks = self.kept[name]
        return tracks.around(scene, index, self.reach_m)


class FlowTargets:
    """Clip labels `taken` and `flow_m` by (scene name, keyframe); see `FlowLabels`."""

    def __init__(self, source: Source, spec: GridSpec) -> None:
        self.spec = spec
        self.boxes = SceneBoxes(source, max(map(abs, (*spec.lower_m[:2], *spec.upper_m[:2]))) + _BEYOND_M)

    def __call__(self, name: str, index: int) -> dict[str, Array]:
        return vars(flow_labels(self.boxes(name, index), self.spec))


class BoxTargets:
    """Clip labels `boxes` and `boxes_known` by (scene name, keyframe): the `MOST_BOXES` boxes nearest to the ego (see
    `core.batch.Targets`).
    """

    def __init__(self, source: Source, reach_m: float = 60.0) -> None:
        self.boxes = SceneBoxes(source, reach_m)

    def __call__(self, name: str, index: int) -> dict[str, Array]:
        found = self.boxes(name, index)
        far = np.where(found.known, np.hypot(found.centre_m[..., 0], found.centre_m[..., 1]), np.inf).min(0)
        near = np.argsort(far, kind="stable")[:MOST_BOXES]
        moments = len(found.known)
        boxes, known = np.zeros((MOST_BOXES, moments, 5), np.float32), np.zeros((MOST_BOXES, moments), bool)
        boxes[: len(near), :, :2] = found.centre_m[:, near, :2].transpose(1, 0, 2)
        boxes[: len(near), :, 2] = found.yaw_rad[:, near].T
        boxes[: len(near), :, 3:] = found.size_m[near, None]
        known[: len(near)] = found.known[:, near].T
        return {"boxes": boxes, "boxes_known": known}
