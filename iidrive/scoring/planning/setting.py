"""What every planning protocol starts from, prepared once: paths, who has a full future, and the few boxes that come near an ego.

Shape letters: n samples, m boxes of all samples and steps, k of them near an ego.
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
"""No ego box of any protocol reaches farther than this from the path's point."""
GRID_REACH_M = 44.0
"""Beyond this a raster protocol may press the ego into the border of its 100 m grid, where any box may meet it."""

_AT_ONCE = 1 << 15

VEHICLES = ("car", "truck", "construction_vehicle", "bus", "trailer", "motorcycle", "bicycle")
"""Detection classes that the raster protocols call vehicles."""


@dataclass(frozen=True)
class PlanningSteps:
    """What a protocol finds for each sample; `full` marks those with six future keyframes, `evaluated` those that count.

    `per_step` are (n,6) arrays under the names of the printed rows: whether a sample is an event at a step (bool), or metres (float32).
    `detail` are the arrays of the per-sample file, under the evaluator's own names.
    """

    full: Bool[Array, "n"]
    evaluated: Bool[Array, "n"]
    per_step: Mapping[str, Array]
    detail: Mapping[str, Array]

    def take(self, rows: Int[Array, "k"]) -> PlanningSteps:
        """The given samples, in that order."""
        cut = [{name: value[rows] for name, value in group.items()} for group in (self.per_step, self.detail)]
        return PlanningSteps(self.full[rows], self.evaluated[rows], *cut)


def joined(parts: Sequence[PlanningSteps]) -> PlanningSteps:
    """The samples of all parts, one after the other."""
    groups = [{name: np.concatenate([getattr(p, g)[name] for p in parts]) for name in getattr(parts[0], g)} for g in ("per_step", "detail")]
    return PlanningSteps(np.concatenate([p.full for p in parts]), np.concatenate([p.evaluated for p in parts]), *groups)


@dataclass(frozen=True)
class Setting:
    """Cases and planned paths as the protocols take them.

    `path`, `true`: planned and true LIDAR_TOP positions in float32; 0 in samples of `missing`, and the planned path also where it is not
    finite in a sample without a full future. `full`: all six future keyframes exist. `planned`: the whole planned path is finite.
    `row`: the boxes of future steps that come near either path; `step`: their flat step (sample times 6, plus 0..5).
    """

    cases: Cases
    path: Float32[Array, "n 6 2"]
    true: Float32[Array, "n 6 2"]
    full: Bool[Array, "n"]
    planned: Bool[Array, "n"]
    row: Int[Array, "k"]
    step: Int64[Array, "k"]

    def distance(self) -> Float32[Array, "n 6"]:
        """Metres between the planned and the true position, by PyTorch's float32 as the evaluators do."""
        offset = torch.from_numpy(self.path) - torch.from_numpy(self.true)
        return (offset**2).sum(dim=-1).sqrt().numpy()

    def named(self, names: Sequence[str]) -> Bool[Array, "k"]:
        """Which near boxes have one of the given detection classes."""
        return of_classes(self.cases, names)[self.cases.box_label[self.row]]


def prepare(cases: Cases, trajectories: Float[Array, "n 6 2"]) -> Setting:
    """Check the paths and find the boxes that any protocol may have to look at.

    Raises:
        DataError: for another shape, or NaN or infinity in the path of a sample with a full future.
    """
    path = np.asarray(trajectories, np.float32)
    n = len(cases)
    if path.shape != (n, FUTURE_STEPS, 2):
        raise DataError(f"{cases.where}: {n} samples need paths of shape {(n, FUTURE_STEPS, 2)}; found {path.shape}.")
    full = cases.full
    require_finite(path, full, cases.token, cases.where)
    planned = np.all(np.isfinite(path), axis=(1, 2)).reshape(n)
    path = path if planned.all() else np.where(planned[:, None, None], path, np.float32(0))
    true = cases.true_path()
    # A row of an unknown future may hold anything, but no box stands there.
    true = np.where(np.isfinite(true), true, np.float32(0))
    row, step = _near(cases, path, true)
    return Setting(cases, path, true, full, planned, row, step)


def _near(cases: Cases, path: Float32[Array, "n 6 2"], true: Float32[Array, "n 6 2"]) -> tuple[Int[Array, "k"], Int64[Array, "k"]]:
    """Boxes within reach of the planned or the true position, and their flat step; all boxes of steps at the border of the grid."""
    if not len(cases.box):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    # One circle a step holds both positions. Step 0 has none: nothing is near it.
    middle, half = (path + true) / 2, np.linalg.norm(path - true, axis=2) / 2
    border = (np.abs(path).max(axis=2) > GRID_REACH_M) | (np.abs(true).max(axis=2) > GRID_REACH_M)
    widest = 0.5 * float(np.hypot(cases.box[:, 3].max(), cases.box[:, 4].max()))
    x, y, reach = np.full((3, len(cases), FUTURE_STEPS + 1), np.nan)
    x[:, 1:], y[:, 1:] = middle[..., 0], middle[..., 1]
    reach[:, 1:] = np.where(border, np.inf, half + REACH_M)
    x, y, reach = (value.reshape(-1) for value in (x, y, reach))
    widest_reach = reach + widest
    rows, ats = [], []
    # In pieces that stay in the cache: one coordinate of all boxes with the widest box's reach, then the other of those left.
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
    # Flat steps count six a sample, without the present.
    return row, at - at // (FUTURE_STEPS + 1) - 1


def of_classes(cases: Cases, names: Sequence[str]) -> Bool[Array, "c"]:
    """Which of the cases' class names are one of the given detection classes, directly or as a nuScenes category."""
    return np.array([DETECTION_OF.get(name, name) in names for name in cases.class_names], bool)


def road_users(cases: Cases) -> Bool[Array, "c"]:
    """Which of the cases' class names ST-P3 and VAD follow: vehicles and humans."""
    kind = of_classes(cases, (*VEHICLES, "pedestrian"))
    return kind | np.array([name.startswith(("vehicle.", "human.")) for name in cases.class_names], bool)


def agent_numbers(cases: Cases) -> tuple[Int64[Array, "m"], int]:
    """A number for each sample's agent, the same at every step, and how many there may be: never many more than boxes."""
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
"""nuScenes category → detection class, as the nuScenes detection task maps them; the other nine categories have none."""


def needs_poses(cases: Cases) -> tuple[Float[Array, "n 7 3"], Float[Array, "n 7 3"]]:
    """The lidar and ego poses, which a protocol in the ego frame needs. Raises DataError where the cases have none."""
    if cases.lidar_pose is None or cases.ego_pose is None:
        raise DataError(
            f"{cases.where}: a protocol in the ego frame needs `lidar_pose` and `ego_pose` (n,7,3); add them or leave the protocol out."
        )
    return cases.lidar_pose, cases.ego_pose
