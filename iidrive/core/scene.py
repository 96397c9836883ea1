"""Data types that the packages of iidrive share. All are validated when they are made.

Frames are right-handed, in metres. `global` is the map frame. `ego` has its origin at the rear axle on the ground: x forward, y left, z up.
`lidar` has its origin at LIDAR_TOP: **x right, y forward**. A keyframe is one moment of a scene (2 Hz), identified by its sample token.

`Observation` holds what exists at or before the current keyframe, `Target` what comes after. They are separate types, so no model can read
the future by mistake.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import shapely
from jaxtyping import Bool, Float, Int, UInt8

from iidrive.core import geometry
from iidrive.core.classes import CATEGORIES, FREE, IGNORE, OCC_CLASSES
from iidrive.core.errors import DataError

Array = np.ndarray
Frame = Literal["global", "ego", "lidar"]
Reference = Literal["lidar_top", "rear_axle"]
OccSource = Literal["labels", "derived", "predicted"]
CommandSource = Literal["route", "oracle"]
Manoeuvre = Literal["right", "left", "straight"]

MANOEUVRES: tuple[Manoeuvre, ...] = ("right", "left", "straight")
"""Order of the one-hot command in SparseDrive's and VAD's files."""

STEP_S = 0.5
"""Nominal time between keyframes, seconds (in nuScenes the real spacing is 0.40 to 0.60 s)."""

FUTURE_STEPS = 6
"""Positions in a plan: 0.5 s, 1.0 s, … 3.0 s ahead."""

ROUTE_STEP_M = 0.5
"""Distance between two points of a route in training targets, metres."""

ROUTE_BEHIND, ROUTE_AHEAD = 16, 94
"""Points of a route in training targets behind and ahead of the one nearest to the ego."""


def _fixed(value: Array) -> Array:
    """The same array, now read-only, because it is cached and shared."""
    value.setflags(write=False)
    return value


def _finite(name: str, value: Array) -> None:
    if not np.isfinite(value).all():
        raise DataError(f"{name} holds NaN or infinity; every value must be a finite number.")


@dataclass(frozen=True)
class Pose:
    """A rigid transform `dst_T_src`: rotation as a unit quaternion (w, x, y, z), translation in metres.

    Raises:
        DataError: for NaN, wrong shapes, or a quaternion whose norm is more than 1e-3 from 1.
    """

    rotation: Float[Array, "4"]
    translation_m: Float[Array, "3"]

    def __post_init__(self) -> None:
        rotation = np.asarray(self.rotation, dtype=np.float64)
        translation = np.asarray(self.translation_m, dtype=np.float64)
        if rotation.shape != (4,) or translation.shape != (3,):
            raise DataError(
                "a pose needs a quaternion (w, x, y, z) and a translation (x, y, z); "
                f"found shapes {rotation.shape} and {translation.shape}."
            )
        _finite("a pose", rotation)
        _finite("a pose", translation)
        norm = float(np.linalg.norm(rotation))
        if abs(norm - 1) > 1e-3:
            raise DataError(f"a pose's quaternion must have norm 1; found {norm:.6f} in {rotation.tolist()}.")
        object.__setattr__(self, "rotation", rotation / norm)
        object.__setattr__(self, "translation_m", translation)

    @staticmethod
    def from_matrix(transform: Float[Array, "4 4"]) -> Pose:
        """The pose of a 4x4 rigid transform."""
        return Pose(geometry.matrix_to_quaternion(transform[:3, :3]), transform[:3, 3])

    @staticmethod
    def from_xy_yaw(x_m: float, y_m: float, yaw_rad: float) -> Pose:
        """A planar pose at z = 0."""
        return Pose(geometry.yaw_quaternion(yaw_rad), np.array([x_m, y_m, 0.0]))

    @cached_property
    def matrix(self) -> Float[Array, "4 4"]:
        """The 4x4 transform, float64, read-only."""
        return _fixed(geometry.rigid(geometry.quaternion_to_matrix(self.rotation), self.translation_m))


@dataclass(frozen=True)
class Boxes:
    """N tracked boxes at one moment in one frame.

    `centre_m` (N,3); `size_m` (N,3) length (along the heading), width, height; `yaw_rad` (N,) of the heading;
    `label` (N,) index into `classes.CATEGORIES`; `track` (N,) instance tokens; `lidar_points` (N,), -1 where unknown.

    Raises:
        DataError: for NaN, a negative size, an unknown label or arrays of different lengths.
    """

    frame: Frame
    centre_m: Float[Array, "n 3"]
    size_m: Float[Array, "n 3"]
    yaw_rad: Float[Array, "n"]
    label: Int[Array, "n"]
    track: tuple[str, ...]
    lidar_points: Int[Array, "n"]

    def __post_init__(self) -> None:
        n = len(self.track)
        expected = {"centre_m": (n, 3), "size_m": (n, 3), "yaw_rad": (n,), "label": (n,), "lidar_points": (n,)}
        for name, shape in expected.items():
            if np.shape(getattr(self, name)) != shape:
                raise DataError(f"boxes with {n} tracks need {name} of shape {shape}; found {np.shape(getattr(self, name))}.")
        for name in ("centre_m", "size_m", "yaw_rad"):
            bad = ~np.isfinite(getattr(self, name)).reshape(n, 3 if name != "yaw_rad" else 1).all(axis=1)
            if bad.any():
                raise DataError(f"box of track {self.track[int(np.argmax(bad))]}: {name} holds NaN or infinity.")
        negative = (self.size_m < 0).any(axis=1)
        if negative.any():
            i = int(np.argmax(negative))
            raise DataError(f"box of track {self.track[i]} has a negative size {self.size_m[i].tolist()} (length, width, height, metres).")
        unknown_label = (self.label < 0) | (self.label >= len(CATEGORIES))
        if unknown_label.any():
            i = int(np.argmax(unknown_label))
            raise DataError(f"box of track {self.track[i]} has label {int(self.label[i])}; labels are 0..{len(CATEGORIES) - 1}.")

    def __len__(self) -> int:
        return len(self.track)

    @staticmethod
    def empty(frame: Frame) -> Boxes:
        """No boxes."""
        zero = np.zeros((0, 3))
        return Boxes(frame, zero, zero, np.zeros(0), np.zeros(0, np.int64), (), np.zeros(0, np.int64))

    def moved(self, dst_T_src: Float[Array, "4 4"], frame: Frame) -> Boxes:
        """The boxes in another frame. The yaw is rotated in the xy plane only."""
        direction = np.stack([np.cos(self.yaw_rad), np.sin(self.yaw_rad)], -1) @ dst_T_src[:2, :2].T
        yaw = np.arctan2(direction[:, 1], direction[:, 0])
        return Boxes(frame, geometry.apply(dst_T_src, self.centre_m), self.size_m, yaw, self.label, self.track, self.lidar_points)

    def select(self, keep: Bool[Array, "n"]) -> Boxes:
        """The boxes where `keep` is true."""
        track = tuple(t for t, k in zip(self.track, keep, strict=True) if k)
        return Boxes(
            self.frame, self.centre_m[keep], self.size_m[keep], self.yaw_rad[keep], self.label[keep], track, self.lidar_points[keep]
        )

    def found_in(self, other: Boxes) -> Int[Array, "n"]:
        """For each box, the index of the same track in `other`; -1 if it has none."""
        place = {track: i for i, track in enumerate(other.track)}
        return np.array([place.get(track, -1) for track in self.track], np.int64)


@dataclass(frozen=True)
class GridSpec:
    """A box of cubic voxels in the ego frame.

    Attributes:
        shape: voxels along x, y and z.
        lower_m: lower corner (x, y, z), metres.
        voxel_m: edge of a voxel, metres.
    """

    shape: tuple[int, int, int] = (200, 200, 16)
    lower_m: tuple[float, float, float] = (-40.0, -40.0, -1.0)
    voxel_m: float = 0.4

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or self.voxel_m <= 0:
            raise DataError(f"a grid needs at least one voxel a side and a positive edge; found {self.shape} and {self.voxel_m} m.")

    @property
    def upper_m(self) -> tuple[float, float, float]:
        """Upper corner, metres."""
        x, y, z = (low + n * self.voxel_m for low, n in zip(self.lower_m, self.shape, strict=True))
        return (x, y, z)

    def centres(self, axis: int) -> Float[Array, "n"]:
        """Voxel centres along one axis, metres in the ego frame."""
        return self.lower_m[axis] + (np.arange(self.shape[axis]) + 0.5) * self.voxel_m


OCC3D_GRID = GridSpec()
"""200x200x16 voxels of 0.4 m; x, y in [-40, 40], z in [-1, 5.4] m of the ego frame."""


ROAD_GRID = GridSpec((160, 160, 1), (-32.0, -32.0, 0.0), 0.4)
"""Cells of the drivable area in training targets, current ego frame."""


@dataclass(frozen=True)
class OccGrid:
    """Semantic occupancy around the ego at one keyframe.

    Attributes:
        semantics: (X,Y,Z) uint8, classes 0..16, 17 free, 255 unknown.
        spec: the grid.
        source: `labels` of the dataset, `derived` from boxes and map, or `predicted` by a model.
        camera_mask: (X,Y,Z) true for voxels that a camera sees; None if unknown.

    Raises:
        DataError: if shape, dtype or a class index does not fit.
    """

    semantics: UInt8[Array, "x y z"]
    spec: GridSpec
    source: OccSource
    camera_mask: Bool[Array, "x y z"] | None = None

    def __post_init__(self) -> None:
        if self.semantics.shape != self.spec.shape:
            raise DataError(f"occupancy of shape {self.semantics.shape} does not fit its grid {self.spec.shape}.")
        if self.semantics.dtype != np.uint8:
            raise DataError(f"occupancy must be uint8; found {self.semantics.dtype}.")
        if self.camera_mask is not None and self.camera_mask.shape != self.spec.shape:
            raise DataError(f"camera mask of shape {self.camera_mask.shape} does not fit its grid {self.spec.shape}.")
        counts = np.bincount(self.semantics.ravel(), minlength=256)
        counts[IGNORE] = 0
        if counts[len(OCC_CLASSES) :].any():
            bad = len(OCC_CLASSES) + int(np.argmax(counts[len(OCC_CLASSES) :] > 0))
            raise DataError(f"occupancy holds class {bad}; classes are 0..{FREE} ({FREE} free) and {IGNORE} unknown.")


@dataclass(frozen=True)
class Lane:
    """One lane of a street, or one lane through a junction, in the global frame.

    Attributes:
        id: name of the lane.
        polygon: area of the lane. Lanes of streets do not overlap.
        centreline_m: (n,2) points in driving order, metres. The driving direction at a point is that of the nearest segment.
        successors: ids of the lanes that follow, as far as the map reaches.
        junction: id of the junction that the lane leads through; empty for a lane of a street.

    Raises:
        DataError: for a centreline that is not two or more finite points.
    """

    id: str
    polygon: shapely.Polygon
    centreline_m: Float[Array, "n 2"]
    successors: tuple[str, ...] = ()
    junction: str = ""

    def __post_init__(self) -> None:
        points = np.asarray(self.centreline_m)
        if points.ndim != 2 or len(points) < 2 or points.shape[1] != 2:
            raise DataError(f"lane {self.id}: a centreline is at least two points (x, y); found shape {points.shape}.")
        _finite(f"the centreline of lane {self.id}", points)


@dataclass(frozen=True)
class Junction:
    """A junction: the drivable area between the ends of the lanes of the streets that meet, in the global frame."""

    id: str
    polygon: shapely.Geometry


@dataclass(frozen=True)
class VectorMap:
    """Map layers in the global frame: name → shapely geometry (polygons for surfaces, lines for dividers and centrelines).

    Layer names: `drivable_area`, `walkway`, `ped_crossing`, `lane_divider`, `road_divider`, `centreline`, `building`, `vegetation`.
    A layer that a source does not have is absent, not empty. `lanes` and `junctions` say where traffic may drive and in which direction.
    Both are empty if the source does not have them.
    """

    layers: Mapping[str, shapely.Geometry] = field(default_factory=dict)
    lanes: Sequence[Lane] = ()
    junctions: Sequence[Junction] = ()


@dataclass(frozen=True)
class Trajectory:
    """Positions of a vehicle over the next six steps of 0.5 s.

    Attributes:
        points_m: (6,2) positions in the `frame` of the current keyframe, metres.
        frame: `lidar` or `ego`.
        reference: the point of the vehicle that the positions belong to.
        valid: (6,) false after the scene ended.

    Raises:
        DataError: for another number of steps, NaN, or an unknown frame.
    """

    points_m: Float[Array, "6 2"]
    frame: Literal["lidar", "ego"]
    reference: Reference
    valid: Bool[Array, "6"]

    def __post_init__(self) -> None:
        points = np.asarray(self.points_m)
        if points.shape != (FUTURE_STEPS, 2):
            raise DataError(f"a trajectory has {FUTURE_STEPS} steps of (x, y), 0.5 s apart; found shape {points.shape}.")
        if np.shape(self.valid) != (FUTURE_STEPS,):
            raise DataError(f"a trajectory needs {FUTURE_STEPS} validity flags; found shape {np.shape(self.valid)}.")
        if self.frame not in ("lidar", "ego"):
            raise DataError(f"a trajectory's frame is 'lidar' or 'ego'; found '{self.frame}'.")
        _finite("a trajectory", points)

    def complete(self) -> bool:
        """Whether all six steps exist."""
        return bool(self.valid.all())


@dataclass(frozen=True)
class Command:
    """Driving command. Its source is `route` (known in advance) or `oracle` (derived from the true future)."""

    manoeuvre: Manoeuvre
    source: CommandSource

    def __post_init__(self) -> None:
        if self.manoeuvre not in MANOEUVRES or self.source not in ("route", "oracle"):
            raise DataError(f"a command is one of {MANOEUVRES} from 'route' or 'oracle'; found '{self.manoeuvre}' from '{self.source}'.")

    @property
    def index(self) -> int:
        """Index into the one-hot (right, left, straight)."""
        return MANOEUVRES.index(self.manoeuvre)


@dataclass(frozen=True)
class Keyframe:
    """One moment of a scene: sample token, time, ego pose, LIDAR_TOP pose in the ego frame, command, and boxes in the global frame."""

    token: str
    timestamp_us: int
    global_T_ego: Pose
    ego_T_lidar: Pose
    boxes: Boxes
    command: Command

    def __post_init__(self) -> None:
        if self.boxes.frame != "global":
            raise DataError(f"keyframe {self.token}: boxes must be in the global frame; found '{self.boxes.frame}'.")

    @cached_property
    def global_T_lidar(self) -> Float[Array, "4 4"]:
        """4x4 transform from LIDAR_TOP to the global frame, read-only."""
        return _fixed(self.global_T_ego.matrix @ self.ego_T_lidar.matrix)


@dataclass(frozen=True)
class Conflict:
    """A planned collision course in a scene. If the ego kept its route and speed from `keyframe` on, it would hit `track` after `within_s`
    seconds.

    `kind` is the kind of conflict, such as `jaywalker`.
    """

    kind: str
    track: str
    keyframe: int
    within_s: float


@dataclass(frozen=True)
class Scene:
    """Consecutive keyframes (about 40 at 2 Hz) and the map around them.

    Attributes:
        name: name of the scene.
        keyframes: t keyframes in order of time.
        map: map around them.
        conflict: the conflict that the scene was built around; None if there is none.
        intended: (t,6,3) for scenes whose ego was disturbed: the path that the expert driver would have taken from each keyframe, six steps
            of x, y, yaw of the rear axle, metres and radians, global frame. It is a training target. The keyframes hold the driven path.
        route_m: (n,2) planned route of the ego, global frame, metres; None if the data have none. It is a training target.

    Raises:
        DataError: if times do not increase or a token is repeated.
    """

    name: str
    keyframes: tuple[Keyframe, ...]
    map: VectorMap
    conflict: Conflict | None = None
    intended: Float[Array, "t 6 3"] | None = None
    route_m: Float[Array, "n 2"] | None = None

    def __post_init__(self) -> None:
        times = [k.timestamp_us for k in self.keyframes]
        if any(b <= a for a, b in itertools.pairwise(times)):
            raise DataError(f"scene {self.name}: keyframe times must increase; found {times}.")
        tokens = [k.token for k in self.keyframes]
        if len(set(tokens)) != len(tokens):
            raise DataError(f"scene {self.name}: two keyframes have the same sample token.")

    def __len__(self) -> int:
        return len(self.keyframes)


@dataclass(frozen=True)
class Observation:
    """Keyframes up to and including the current one, oldest first.

    Attributes:
        scene: name of the scene.
        keyframes: the current keyframe (last) and the earlier ones that exist, at most the clip's history.
        occupancy: one grid per keyframe; empty if the clip was read without occupancy.
    """

    scene: str
    keyframes: tuple[Keyframe, ...]
    occupancy: tuple[OccGrid, ...] = ()

    def __post_init__(self) -> None:
        if not self.keyframes:
            raise DataError(f"scene {self.scene}: an observation needs at least the current keyframe.")
        if self.occupancy and len(self.occupancy) != len(self.keyframes):
            raise DataError(f"scene {self.scene}: {len(self.occupancy)} occupancy grids for {len(self.keyframes)} keyframes.")

    @property
    def now(self) -> Keyframe:
        """The current keyframe."""
        return self.keyframes[-1]

    @property
    def token(self) -> str:
        """Sample token of the current keyframe."""
        return self.now.token


@dataclass(frozen=True)
class Target:
    """What came after the current keyframe. No model may read it at test time.

    Attributes:
        token: sample token of the current keyframe.
        keyframes: the next keyframes that exist, at most six.
        occupancy: one grid per keyframe, or empty.
        trajectory: path of the LIDAR_TOP origin in the current lidar frame.
        boxes: boxes at steps 0 (now) to 6 in the current lidar frame; None after the scene ended.
    """

    token: str
    keyframes: tuple[Keyframe, ...]
    occupancy: tuple[OccGrid, ...]
    trajectory: Trajectory
    boxes: tuple[Boxes | None, ...]
