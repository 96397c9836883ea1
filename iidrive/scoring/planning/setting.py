"""Input shared by all planning protocols, prepared once: paths, which samples have a full future, and the boxes near a path.

Shape letters: n samples, m boxes of all samples and steps, k of them near a path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64

from iidrive.core.errors import DataError
from iidrive.core.scene import FUTURE_STEPS
from iidrive.scoring.cases import Cases, require_finite

Array = np.ndarray

REACH_M = 6.0
"""Largest distance from a path point to any point of the ego box, over all protocols, metres."""
GRID_REACH_M = 44.0
"""Beyond this |x| or |y|, metres, a raster protocol may clamp the ego to the border of its 100 m grid, where any box may hit it."""

_AT_ONCE = 1 << 15

VEHICLES = ("car", "truck", "construction_vehicle", "bus", "trailer", "motorcycle", "bicycle")
"""Detection classes that the raster protocols treat as vehicles."""


@dataclass(frozen=True)
class PlanningSteps:
    """Per-sample results of a protocol.

    `exists`: the sample has a future keyframe at the step. `evaluated`: the sample counts. `per_step`: (n,6) arrays by row name, bool for
    collisions and float32 metres for distances. `detail`: the arrays of the per-sample file, under the evaluator's own names.
    """

    exists: Bool[Array, "n 6"]
    evaluated: Bool[Array, "n"]
    per_step: Mapping[str, Array]
    detail: Mapping[str, Array]

    @property
    def full(self) -> Bool[Array, "n"]:
        """Whether the sample has all six future keyframes."""
        return np.asarray(self.exists.all(axis=1))

    def take(self, rows: Int[Array, "k"]) -> PlanningSteps:
        """The given samples, in that order."""
        cut = [{name: value[rows] for name, value in group.items()} for group in (self.per_step, self.detail)]
        return PlanningSteps(self.exists[rows], self.evaluated[rows], *cut)


def joined(parts: Sequence[PlanningSteps]) -> PlanningSteps:
    """Concatenate the samples of all parts."""
    groups = [{name: np.concatenate([getattr(p, g)[name] for p in parts]) for name in getattr(parts[0], g)} for g in ("per_step", "detail")]
    return PlanningSteps(np.concatenate([p.exists for p in parts]), np.concatenate([p.evaluated for p in parts]), *groups)


@dataclass(frozen=True)
class Setting:
    """Cases and planned paths, prepared for the protocols.

    `path`: planned LIDAR_TOP positions, float32 metres; all 0 if the path has a value that is not finite. `true`: true positions, 0 where not
    finite. `full`: all six future keyframes exist. `planned`: the whole planned path is finite. `row`: indices of the future boxes near either
    path. `step`: flat step of these boxes (6 * sample + 0..5).
    """

    cases: Cases
    path: Float32[Array, "n 6 2"]
    true: Float32[Array, "n 6 2"]
    full: Bool[Array, "n"]
    planned: Bool[Array, "n"]
    row: Int[Array, "k"]
    step: Int64[Array, "k"]

    def distance(self) -> Float32[Array, "n 6"]:
        """Distance between planned and true position, metres, computed by PyTorch in float32 as in the evaluators."""
        offset = torch.from_numpy(self.path) - torch.from_numpy(self.true)
        return (offset**2).sum(dim=-1).sqrt().numpy()

    def named(self, names: Sequence[str]) -> Bool[Array, "k"]:
        """Whether each near box has one of the given detection classes."""
        return of_classes(self.cases, names)[self.cases.box_label[self.row]]


def prepare(cases: Cases, trajectories: Float[Array, "n 6 2"]) -> Setting:
    """Check the paths and find the boxes that any protocol may need.

    Raises:
        DataError: if the paths have another shape than (n,6,2), or a sample with a full future has NaN or infinity in its path.
    """
    path = np.asarray(trajectories, np.float32)
    n = len(cases)
    if path.shape != (n, FUTURE_STEPS, 2):
        raise DataError(f"{cases.where}: expected paths of shape {(n, FUTURE_STEPS, 2)} for {n} samples; found {path.shape}.")
    full = cases.full
    require_finite(path, full, cases.token, cases.where)
    planned = np.all(np.isfinite(path), axis=(1, 2)).reshape(n)
    path = path if planned.all() else np.where(planned[:, None, None], path, np.float32(0))
    true = cases.true_path()
    # Missing future keyframes may hold any value, and they have no boxes.
    true = np.where(np.isfinite(true), true, np.float32(0))
    row, step = _near(cases, path, true)
    return Setting(cases, path, true, full, planned, row, step)


def _near(cases: Cases, path: Float32[Array, "n 6 2"], true: Float32[Array, "n 6 2"]) -> tuple[Int[Array, "k"], Int64[Array, "k"]]:
    """Boxes within reach of the planned or the true position, and their flat step. At the border of the grid all boxes of the step are kept."""
    if not len(cases.box):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    # One circle per step covers both positions. Step 0 has no circle (NaN), so no box is near it.
    middle, half = (path + true) / 2, np.linalg.norm(path - true, axis=2) / 2
    border = (np.abs(path).max(axis=2) > GRID_REACH_M) | (np.abs(true).max(axis=2) > GRID_REACH_M)
    widest = 0.5 * float(np.hypot(cases.box[:, 3].max(), cases.box[:, 4].max()))
    x, y, reach = np.full((3, len(cases), FUTURE_STEPS + 1), np.nan)
    x[:, 1:], y[:, 1:] = middle[..., 0], middle[..., 1]
    reach[:, 1:] = np.where(border, np.inf, half + REACH_M)
    x, y, reach = (value.reshape(-1) for value in (x, y, reach))
    widest_reach = reach + widest
    rows, ats = [], []
    # In chunks that fit the CPU cache: first x of all boxes, with the reach of the widest box, then y of the remaining ones.
    for start in range(0, len(cases.box), _AT_ONCE):
        piece = slice(start, start + _AT_ONCE)
        at = cases.box_case[piece].astype(np.int64) * (FUTURE_STEPS + 1) + cases.box_t[piece]
        found = np.flatnonzero(np.abs(cases.box[piece, 0] - x[at]) <= widest_reach[at])
        at, found = at[found], found + start
        kept = np.abs(cases.box[found, 1] - y[at]) <= widest_reach[at]
        rows.append(found[kept])
        ats.append(at[kept])
    row, at = np.concatenate(rows), np.concatenate(ats)
    size = 0.5 * np.hypot(cases.box[row, 3], cases.box[row, 4])
    kept = np.hypot(cases.box[row, 0] - x[at], cases.box[row, 1] - y[at]) <= reach[at] + size
    row, at = row[kept], at[kept]
    # Flat steps have six steps per sample and leave out step 0.
    return row, at - at // (FUTURE_STEPS + 1) - 1


def of_classes(cases: Cases, names: Sequence[str]) -> Bool[Array, "c"]:
    """Whether each name in `class_names` is one of the given detection classes, directly or through its nuScenes category."""
    return np.array([DETECTION_OF.get(name, name) in names for name in cases.class_names], bool)


def road_users(cases: Cases) -> Bool[Array, "c"]:
    """Whether each name in `class_names` is a vehicle or a human, the classes that ST-P3 and VAD track."""
    kind = of_classes(cases, (*VEHICLES, "pedestrian"))
    return kind | np.array([name.startswith(("vehicle.", "human.")) for name in cases.class_names], bool)


def agent_numbers(cases: Cases) -> tuple[Int64[Array, "m"], int]:
    """A number per box that identifies its sample and agent, the same at every step; and an upper bound of these numbers."""
    agents = int(cases.box_agent.max(initial=0)) + 1
    key = cases.box_case.astype(np.int64) * agents + cases.box_agent
    if len(cases) * agents <= 16 * len(key) + (1 << 20):
        return key, len(cases) * agents
    known, dense = np.unique(key, return_inverse=True)
    return dense.reshape(-1), len(known)


DETECTION_OF: dict[str, str] = {
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
"""nuScenes category → detection class, as in the nuScenes detection task. The other nine categories have none."""


def needs_poses(cases: Cases) -> tuple[Float[Array, "n 7 3"], Float[Array, "n 7 3"]]:
    """The lidar and ego poses, needed by protocols in the ego frame; 0 where not finite, as they may be beyond the true path.

    Raises:
        DataError: if the cases have none.
    """
    if cases.lidar_pose is None or cases.ego_pose is None:
        raise DataError(
            f"{cases.where}: a protocol in the ego frame needs `lidar_pose` and `ego_pose` (n,7,3); add them or leave the protocol out."
        )
    return _finite(cases.lidar_pose), _finite(cases.ego_pose)


def _finite(pose: Float[Array, "n 7 3"]) -> Float[Array, "n 7 3"]:
    finite = np.isfinite(pose)
    return pose if finite.all() else np.where(finite, pose, 0)
