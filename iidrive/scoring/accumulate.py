"""Planning scores accumulated batch by batch in a training or test loop: `update`, `merge` or `gather` over processes, `compute`, `reset`.

Per-sample values are kept by sample token. So the order of batches and the number of processes do not change the result, and a sample that a
distributed sampler repeats counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch.distributed as distributed
from jaxtyping import Float

from iidrive.core.errors import DataError
from iidrive.core.scene import FUTURE_STEPS
from iidrive.scoring import npz
from iidrive.scoring.cases import DETECTION_NAMES, Cases
from iidrive.scoring.planning.setting import PlanningSteps, joined, prepare
from iidrive.scoring.protocols import protocol_named, protocols_named
from iidrive.scoring.score import Scores, aggregate

Array = np.ndarray

Boxes = Sequence[Sequence[Array]]
"""One list per sample, with one array per step."""


class PlanningScore:
    """Scores of the named protocols (`"sparsedrive"`, `"vad,uniad"`, `"all"` or a sequence) over all samples added so far.

    Samples are averaged in the order of their tokens. So L2 may differ in the seventh digit from an evaluator that uses another order.
    """

    def __init__(self, protocols: str | Sequence[str] = "sparsedrive") -> None:
        self.names = protocols_named(protocols)
        self.reset()

    def reset(self) -> None:
        """Remove all samples."""
        self._tokens: list[str] = []
        self._parts: dict[str, list[PlanningSteps]] = {name: [] for name in self.names}
        self._obstacles: dict[str, bool] = dict.fromkeys(self.names, False)

    def __len__(self) -> int:
        return len(set(self._tokens))

    def update(self, cases: Cases, trajectories: Float[Array, "n 6 2"]) -> None:
        """Add a batch: the ground truth of its samples (`batch_cases` or `Cases`) and their planned LIDAR_TOP paths, lidar frame, metres.

        Raises:
            DataError: if the cases have no sample tokens, or as `score` does. Nothing is added then.
        """
        if not cases.own_tokens:
            raise DataError(f"{cases.where}: samples are collected by their tokens; give every sample a token.")
        setting = prepare(cases, trajectories)
        found = {name: protocol_named(name).evaluate(setting) for name in self.names}
        self._tokens += cases.token
        for name, steps in found.items():
            self._parts[name].append(steps)
            self._obstacles[name] |= protocol_named(name).has_obstacles(cases)

    def merge(self, others: Iterable[PlanningScore]) -> PlanningScore:
        """Add the samples of other collectors of the same protocols; returns self. Raises DataError for other protocols."""
        for other in others:
            if other.names != self.names:
                raise DataError(
                    f"scores of {', '.join(self.names)} and of {', '.join(other.names)} cannot be merged; use the same protocols everywhere."
                )
            self._tokens += other._tokens
            for name in self.names:
                self._parts[name] += other._parts[name]
                self._obstacles[name] |= other._obstacles[name]
        return self

    def gather(self) -> PlanningScore:
        """The samples of all processes of the default `torch.distributed` group, on every rank; self if there is no group."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return self
        everyone: list[PlanningScore] = [self] * distributed.get_world_size()
        distributed.all_gather_object(everyone, self)
        return PlanningScore(self.names).merge(everyone)

    def compute(self) -> dict[str, Scores]:
        """Scores by protocol.

        Raises:
            DataError: if nothing was added, no sample has a full future, or a sample was added twice with different values.
        """
        if not self._tokens:
            raise DataError("no sample was added; call update before compute.")
        token = np.array(self._tokens)
        order = np.argsort(token, kind="stable")
        again = np.flatnonzero(token[order][1:] == token[order][:-1]) + 1
        rows = np.delete(order, again)
        scores: dict[str, Scores] = {}
        for name in self.names:
            steps = joined(self._parts[name])
            self._agree(steps.take(order[again - 1]), steps.take(order[again]), token[order[again]])
            scores[name] = aggregate(protocol_named(name), steps.take(rows), tuple(token[rows].tolist()), obstacles=self._obstacles[name])
        return scores

    def _agree(self, one: PlanningSteps, two: PlanningSteps, token: Array) -> None:
        differ = np.zeros(len(token), bool)
        for name, value in one.detail.items():
            other = two.detail[name]
            same = (value == other) | ((value != value) & (other != other))
            differ |= ~np.all(same, axis=tuple(range(1, same.ndim)))
        if differ.any():
            names = npz.few(list(dict.fromkeys(token[differ].tolist())))
            raise DataError(f"{names} came twice with different plans or ground truth; score one model on one data set.")


def batch_cases(
    token: Sequence[str],
    offsets: Float[Array, "b 6 2"],
    masks: Float[Array, "b 6"],
    boxes: Boxes,
    labels: Boxes | None = None,
    agents: Boxes | None = None,
    valid: Boxes | None = None,
    now: bool = False,
) -> Cases:
    """The ground truth of a batch from plain lists, as the data loaders of SparseDrive or VAD hold it.

    Args:
        token: sample tokens.
        offsets: per-step offsets of the true LIDAR_TOP path, lidar frame, metres.
        masks: whether each future keyframe exists.
        boxes: `boxes[i][t]` (k,7) holds x, y, z, length, width, height, yaw in the lidar frame of sample i's keyframe, at step t+1 (6 lists),
            or, with `now`, at steps 0..6 (7 lists).
        labels: `labels[i][t]` (k,) are indices into the ten nuScenes detection classes; default: all cars.
        agents: `agents[i][t]` (k,) are agent numbers, the same at every step; without them VAD's and ST-P3's protocols track no agent.
        valid: `valid[i][t]` (k,) is true if the box has lidar points; default: all true.
        now: whether `boxes` include step 0.

    Raises:
        DataError: if the lists do not match, and as `Cases` does.
    """
    steps = FUTURE_STEPS + now
    for i, row in enumerate(boxes):
        if len(row) != steps:
            raise DataError(f"sample {token[i]}: expected {steps} lists of boxes, one per step; found {len(row)}.")
    flat = [np.asarray(one, np.float64).reshape(-1, 7) for row in boxes for one in row]
    count = np.array([len(one) for one in flat], np.int64)
    box = np.concatenate(flat) if flat else np.zeros((0, 7))
    at = np.repeat(np.arange(len(flat)), count)

    def column(given: Boxes | None, what: str, default: Array) -> Array:
        if given is None:
            return default
        parts = [np.asarray(one).reshape(-1) for row in given for one in row]
        if [len(part) for part in parts] != count.tolist():
            raise DataError(f"{what} must have one entry per box at every step of every sample.")
        return np.concatenate(parts) if parts else default

    # Without agent numbers every box is its own agent.
    alone = np.arange(len(box)) - np.repeat(np.concatenate([[0], np.cumsum(count)])[::steps][:-1], count.reshape(-1, steps).sum(axis=1))
    return Cases(
        gt_ego_fut_offsets=np.asarray(offsets, np.float32),
        gt_ego_fut_masks=np.asarray(masks).astype(bool),
        class_names=DETECTION_NAMES,
        box_case=at // steps,
        box_t=at % steps + (0 if now else 1),
        box_agent=column(agents, "agents", alone).astype(np.int64),
        box_label=column(labels, "labels", np.zeros(len(box), np.int64)).astype(np.int64),
        box_valid=column(valid, "valid", np.ones(len(box), bool)).astype(bool),
        box=box,
        token=tuple(token),
        where="the batch",
    )
