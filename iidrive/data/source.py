"""What a source of scenes must offer, and how scenes are cut into windows of past and future."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float

from iidrive.core import geometry
from iidrive.core.scene import (
    FUTURE_STEPS,
    Boxes,
    CommandSource,
    GridSpec,
    Keyframe,
    Observation,
    OccGrid,
    OccSource,
    Pose,
    Scene,
    Target,
    Trajectory,
)

Array = np.ndarray


class Source(Protocol):
    """A set of scenes in named splits. Scenes come in a fixed order; the same name always gives the same scene."""

    @property
    def name(self) -> str:
        """Short name, printed beside every table: `town`, `nuscenes`."""
        ...

    @property
    def command_source(self) -> CommandSource:
        """Where this source's commands come from; stands beside every table."""
        ...

    @property
    def occupancy_source(self) -> OccSource:
        """Where this source's occupancy comes from (the weakest, if several); stands beside every table."""
        ...

    def identity(self) -> dict[str, object]:
        """Plain values that pin down the data: name, version, root's table hashes or seeds. Written into every run."""
        ...

    def missing(self) -> tuple[str, ...]:
        """What the data lack and what stands in for it, a sentence each."""
        ...

    def usual_split(self, part: Literal["train", "val", "test"]) -> str:
        """The name of the split that is meant for training, for choosing (val), or for testing; val is test where there is no third one."""
        ...

    def scene_names(self, split: str) -> tuple[str, ...]:
        """Scene names of a split, in order. Raises ConfigError for an unknown split, naming the known ones."""
        ...

    def prepare(self, names: Sequence[str]) -> None:
        """Make ready what is slow to make, for scenes that are about to be read in bulk; nothing where scenes are only read."""
        ...

    def scene(self, name: str) -> Scene:
        """One scene. Raises DataError naming the file and what to do."""
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
    """The path of the LIDAR_TOP origin over the next six keyframes, in the lidar frame of keyframe `index`, full 3-D transforms.

    Follows the SparseDrive/VAD converters: per-step offsets are rounded to float32 and cumulated in float32. Past the end of the
    scene the last point stands in, with `valid` false.
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
    """What a planner is taught at keyframe `index`: the path that the driver would have taken if nothing had disturbed the ego from then on. It is
    the true path where nothing did."""
    true = true_path(scene, index)
    if scene.intended is None:
        return true
    now = scene.keyframes[index]
    lidar_T_global, ego_T_lidar = geometry.invert(now.global_T_lidar), now.ego_T_lidar.matrix
    poses = np.stack([Pose.from_xy_yaw(*pose).matrix for pose in scene.intended[index]])
    points = (lidar_T_global @ poses @ ego_T_lidar)[:, :2, 3]
    return Trajectory(points.astype(np.float32), "lidar", "lidar_top", true.valid)


def boxes_ahead(scene: Scene, index: int) -> tuple[Boxes | None, ...]:
    """Boxes at steps 0..6 after keyframe `index`, in its lidar frame.

    As the converters do: each keyframe's boxes are first put into their own lidar frame, then carried by the 4x4 between the two
    lidar frames.
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
    """Cut one sample: what exists up to keyframe `index`, and what comes after. Occupancy is read only when `spec` is given.

    `path` is the true path where it was computed already.
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
    """Rear-axle positions with headings in the current ego frame → LIDAR_TOP positions in the current lidar frame."""
    lidar_T_ego = geometry.invert(ego_T_lidar)
    lever = ego_T_lidar[:3, 3]
    x = points_m[:, 0] + np.cos(yaw_rad) * lever[0] - np.sin(yaw_rad) * lever[1]
    y = points_m[:, 1] + np.sin(yaw_rad) * lever[0] + np.cos(yaw_rad) * lever[1]
    return geometry.apply(lidar_T_ego, np.stack([x, y, np.full(len(x), lever[2])], -1))[:, :2]
