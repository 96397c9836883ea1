"""Interface of a data source, and the observation and target of a sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float

from iidrive.core import geometry
from iidrive.core.scene import (
    FUTURE_STEPS,
    ROUTE_STEP_M,
    Boxes,
    CommandSource,
    GridSpec,
    Keyframe,
    Observation,
    OccGrid,
    OccSource,
    Scene,
    Target,
    Trajectory,
)

Array = np.ndarray


class Source(Protocol):
    """Scenes in named splits. The order of scenes is fixed, and a name always gives the same scene."""

    @property
    def name(self) -> str:
        """Short name, printed with every table: `town`, `nuscenes`, `av2`."""
        ...

    @property
    def command_source(self) -> CommandSource:
        """Where the commands come from. Printed with every table."""
        ...

    @property
    def occupancy_source(self) -> OccSource:
        """Where the occupancy comes from (the least reliable, if several). Printed with every table."""
        ...

    def identity(self) -> dict[str, object]:
        """Plain values that identify the data: name, version, hashes of its tables, or seeds. Written into every run."""
        ...

    def missing(self) -> tuple[str, ...]:
        """One sentence for each thing that the data lack, and what is used instead."""
        ...

    def usual_split(self, part: Literal["train", "val", "test"]) -> str:
        """Name of the default split for training, validation or testing. Sources with two splits use the test split for validation."""
        ...

    def scene_names(self, split: str) -> tuple[str, ...]:
        """Scene names of a split, in order. Raises ConfigError for an unknown split, naming the known ones."""
        ...

    def prepare(self, names: Sequence[str]) -> None:
        """Generate these scenes in advance, if that is slow. Sources that only read files do nothing."""
        ...

    def scene(self, name: str) -> Scene:
        """Read one scene. Raises DataError, naming the file and what to do."""
        ...

    def occupancy(self, scene: Scene, index: int, spec: GridSpec) -> OccGrid:
        """Occupancy of keyframe `index` of `scene` on the grid `spec`, in that keyframe's ego frame."""
        ...


def scenes(source: Source, split: str) -> Iterator[Scene]:
    """The scenes of a split, in order."""
    names = source.scene_names(split)
    source.prepare(names)
    for name in names:
        yield source.scene(name)


def true_path(scene: Scene, index: int) -> Trajectory:
    """Path of the LIDAR_TOP origin over the next six keyframes, in the lidar frame of keyframe `index`, metres.

    As in the SparseDrive and VAD converters, transforms are 3-D, and the offset of each step is rounded to float32 and summed in float32.
    After the scene's end the last point is repeated and `valid` is false.
    """
    now = scene.keyframes[index]
    lidar_T_global = geometry.invert(now.global_T_lidar)
    future = scene.keyframes[index + 1 : index + 1 + FUTURE_STEPS]
    position = np.zeros((FUTURE_STEPS + 1, 2))
    for step, keyframe in enumerate(future, start=1):
        position[step] = geometry.apply(lidar_T_global, keyframe.global_T_lidar[:3, 3])[:2]
    offsets = np.zeros((FUTURE_STEPS, 2), np.float32)
    offsets[: len(future)] = np.diff(position, axis=0)[: len(future)].astype(np.float32)
    valid = np.arange(FUTURE_STEPS) < len(future)
    return Trajectory(np.cumsum(offsets, axis=0, dtype=np.float32), "lidar", "lidar_top", valid)


def intended_path(scene: Scene, index: int) -> Trajectory:
    """Training target of a planner at keyframe `index`: the path that the expert driver would have taken from there.

    It is the true path in scenes whose ego was not disturbed. Frames and units are those of `true_path`.
    """
    if scene.intended is None:
        return true_path(scene, index)
    now, poses = scene.keyframes[index], scene.intended[index]
    lidar = now.ego_T_lidar.translation_m
    xy = geometry.placed(poses[:, :2], poses[:, 2], lidar[:2])
    points = geometry.apply(geometry.invert(now.global_T_lidar), np.column_stack([xy, np.full(len(xy), lidar[2])]))
    valid = np.arange(FUTURE_STEPS) < len(scene) - 1 - index
    return Trajectory(points[:, :2].astype(np.float32), "lidar", "lidar_top", valid)


def route_line(scene: Scene) -> Float[Array, "n 2"]:
    """The line that the ego is to follow, as points `ROUTE_STEP_M` apart, global frame, metres. It is a training target.

    It is the planned route, or the path that LIDAR_TOP drove if the data have no routes. Standstill adds no points.
    """
    points = _driven(scene) if scene.route_m is None else scene.route_m
    arc = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    at = np.arange(0.0, arc[-1] + 1e-9, ROUTE_STEP_M)
    return np.stack([np.interp(at, arc, points[:, axis]) for axis in (0, 1)], -1)


def _driven(scene: Scene) -> Float[Array, "n 2"]:
    """The positions of LIDAR_TOP, without those that are hardly farther than the one before."""
    kept: list[Array] = []
    for keyframe in scene.keyframes:
        point = keyframe.global_T_lidar[:2, 3]
        if not kept or np.hypot(*(point - kept[-1])) >= _STANDS_M:
            kept.append(point)
    return np.stack(kept)


_STANDS_M = 0.05
"""A keyframe nearer than this to the one before adds no point to a driven line, metres."""


def boxes_ahead(scene: Scene, index: int) -> tuple[Boxes | None, ...]:
    """Boxes at steps 0 to 6 after keyframe `index`, in its lidar frame; None after the scene's end.

    As in the SparseDrive and VAD converters, boxes are transformed to the lidar frame of their own keyframe first, then to that of `index`.
    """
    lidar_T_global = geometry.invert(scene.keyframes[index].global_T_lidar)
    out: list[Boxes | None] = []
    for step in range(FUTURE_STEPS + 1):
        if index + step >= len(scene):
            out.append(None)
            continue
        keyframe = scene.keyframes[index + step]
        own = keyframe.boxes.moved(geometry.invert(keyframe.global_T_lidar), "lidar")
        out.append(own.moved(lidar_T_global @ keyframe.global_T_lidar, "lidar") if step else own)
    return tuple(out)


def window(
    source: Source,
    scene: Scene,
    index: int,
    past: int = 4,
    future: int = FUTURE_STEPS,
    spec: GridSpec | None = None,
    path: Trajectory | None = None,
) -> tuple[Observation, Target]:
    """Observation and target of the sample at keyframe `index`.

    Args:
        source: reads the occupancy.
        scene: the scene.
        index: the current keyframe.
        past: maximum number of earlier keyframes.
        future: maximum number of later keyframes.
        spec: grid of the occupancy; None to read none.
        path: the true path, if it is known already.
    """
    first = max(0, index - past)
    seen = range(first, index + 1)
    ahead = range(index + 1, min(len(scene), index + 1 + future))

    def grids(indices: range) -> tuple[OccGrid, ...]:
        return tuple(source.occupancy(scene, i, spec) for i in indices) if spec is not None else ()

    def frames(indices: range) -> tuple[Keyframe, ...]:
        return tuple(scene.keyframes[i] for i in indices)

    observation = Observation(scene.name, frames(seen), grids(seen))
    token = scene.keyframes[index].token
    target = Target(token, frames(ahead), grids(ahead), path or true_path(scene, index), boxes_ahead(scene, index))
    return observation, target


def to_lidar_path(points_m: Float[Array, "6 2"], yaw_rad: Float[Array, "6"], ego_T_lidar: Float[Array, "4 4"]) -> Float[Array, "6 2"]:
    """Convert rear-axle positions with headings in the current ego frame to LIDAR_TOP positions in the current lidar frame, metres."""
    lidar_T_ego = geometry.invert(ego_T_lidar)
    lever = ego_T_lidar[:3, 3]
    x = points_m[:, 0] + np.cos(yaw_rad) * lever[0] - np.sin(yaw_rad) * lever[1]
    y = points_m[:, 1] + np.sin(yaw_rad) * lever[0] + np.cos(yaw_rad) * lever[1]
    return geometry.apply(lidar_T_ego, np.stack([x, y, np.full(len(x), lever[2])], -1))[:, :2]
