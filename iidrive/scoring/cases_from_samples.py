"""Cases built from the samples of a data source.

Shape letters: n samples, k boxes of one step.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float, Float32

from iidrive.core import geometry
from iidrive.core.classes import CATEGORIES
from iidrive.core.errors import DataError
from iidrive.core.scene import FUTURE_STEPS, Observation, Target
from iidrive.scoring.cases import Cases

Array = np.ndarray


def cases_from_samples(samples: Iterable[tuple[Observation, Target]]) -> Cases:
    """The ground truth of the given samples, in their order.

    Boxes of all categories are kept. Boxes without lidar points are marked not valid; an unknown count (-1) counts as valid. Offsets are
    chosen so that their cumulative sum gives back the trajectory's float32 positions.

    Raises:
        DataError: if a sample's trajectory or boxes are not in the current lidar frame, or a token appears twice.
    """
    token, scene, offsets, masks, lidar_pose, ego_pose, rows = [], [], [], [], [], [], []
    for i, (observation, target) in enumerate(samples):
        path = target.trajectory
        if path.frame != "lidar" or path.reference != "lidar_top":
            raise DataError(
                f"sample {target.token}: the true path must be that of lidar_top in the lidar frame; "
                f"found {path.reference} in the {path.frame} frame."
            )
        token.append(target.token)
        scene.append(observation.scene)
        valid = np.asarray(path.valid, bool)
        offsets.append(_offsets(np.asarray(path.points_m, np.float32), valid))
        masks.append(valid)
        poses = _poses(observation, target)
        lidar_pose.append(poses[0])
        ego_pose.append(poses[1])
        rows.extend(_box_rows(i, target))
    n = len(token)
    columns = list(zip(*rows, strict=True)) or [[np.zeros(0, np.int64)]] * 5 + [[np.zeros((0, 7))]]
    case, step, agent, label, lidar_points, box = (np.concatenate(column) for column in columns)
    return Cases(
        gt_ego_fut_offsets=np.array(offsets, np.float32).reshape(n, FUTURE_STEPS, 2),
        gt_ego_fut_masks=np.array(masks, bool).reshape(n, FUTURE_STEPS),
        class_names=CATEGORIES,
        box_case=case.astype(np.int32),
        box_t=step.astype(np.int8),
        box_agent=agent.astype(np.int32),
        box_label=label.astype(np.int8),
        box_valid=lidar_points != 0,
        box=box,
        token=tuple(token),
        scene=tuple(scene),
        lidar_pose=np.array(lidar_pose).reshape(n, FUTURE_STEPS + 1, 3),
        ego_pose=np.array(ego_pose).reshape(n, FUTURE_STEPS + 1, 3),
        unknown_points=int((lidar_points < 0).sum()),
    )


def _offsets(points: Float32[Array, "6 2"], valid: Bool[Array, "6"]) -> Float32[Array, "6 2"]:
    """Per-step float32 offsets whose cumulative sum rounds to `points`; 0 where not valid."""
    out = np.zeros((FUTURE_STEPS, 2), np.float32)
    total = np.zeros(2)
    for t in np.flatnonzero(valid):
        out[t] = points[t] - total
        total += out[t]
    return out


def _poses(observation: Observation, target: Target) -> tuple[Float[Array, "7 3"], Float[Array, "7 3"]]:
    """x, y, heading of LIDAR_TOP (its +y axis) and of the ego (its +x axis) at steps 0..6. Past the end of the scene the last pose is repeated."""
    frames = (observation.now, *target.keyframes[:FUTURE_STEPS])
    lidar = np.stack([k.global_T_lidar for k in frames])
    ego = np.stack([k.global_T_ego.matrix for k in frames])
    lidar, ego = geometry.invert(lidar[0]) @ lidar, geometry.invert(ego[0]) @ ego
    heading = (np.arctan2(lidar[:, 1, 1], lidar[:, 0, 1]), geometry.heading(ego))
    moved = [np.column_stack([T[:, :2, 3], h]) for T, h in zip((lidar, ego), heading, strict=True)]
    last = np.minimum(np.arange(FUTURE_STEPS + 1), len(frames) - 1)
    return moved[0][last], moved[1][last]


def _box_rows(i: int, target: Target) -> Iterable[tuple[Array, ...]]:
    """Columns of the boxes of sample `i`, one tuple per existing step: sample, step, agent, label, lidar points (k,) and box (k,7)."""
    agents: dict[str, int] = {}
    for t, boxes in enumerate(target.boxes):
        if boxes is None:
            continue
        if boxes.frame != "lidar":
            raise DataError(f"sample {target.token}: boxes at step {t} must be in the current lidar frame; found '{boxes.frame}'.")
        k = len(boxes)
        agent = np.array([agents.setdefault(track, len(agents)) for track in boxes.track], np.int64)
        box = np.column_stack([boxes.centre_m, boxes.size_m, boxes.yaw_rad])
        yield np.full(k, i), np.full(k, t), agent, boxes.label, boxes.lidar_points, box.reshape(k, 7)
