"""The rows of the forecast table for one batch: the prediction of every forecaster, and its counts against the truth.

Shapes: B samples, H horizons, h horizons ahead of 0 s, X, Y, Z voxels. Every grid is in the ego frame at its horizon, predicted or true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from iidrive.core import geometry
from iidrive.core.batch import Batch
from iidrive.core.classes import FREE, IGNORE
from iidrive.core.scene import STEP_S, GridSpec, Scene
from iidrive.data.box_tracks import FlowTargets
from iidrive.data.clips import ClipDataset
from iidrive.data.source import Source
from iidrive.models.baselines import copy_last, copy_warped
from iidrive.models.ego_motion import constant_turn
from iidrive.models.forecast import Forecaster
from iidrive.models.layers import identity, transform_inverse
from iidrive.models.transport import constant_turn_moves, transport, true_moves, without_boxes
from iidrive.scoring import metrics
from iidrive.scoring.forecast import ALL_CELLS, CORRIDOR, RowCounts
from iidrive.scoring.movers import (
    MoverCounts,
    MoverTruth,
    cell_points,
    cells_of,
    corridor,
    count,
    mover_truth,
    movers_in,
    read_at,
    tracks_inside,
)
from iidrive.scoring.reliability import Reliability

Array = np.ndarray

_BOXES = "knows the tracked boxes at present, which no model is given"
ROWS = {
    "world model": "",
    "copy last": "",
    "copy warped": "",
    "copy warped, true motion (oracle)": "knows the ego's true future motion",
    "transport": _BOXES,
    "transport, true flow": "knows the true future motion of the ego and of every tracked box",
    "world model, true path (oracle)": "knows the ego's true future motion",
}
"""All rows in the order of the table, and the future information that a privileged row uses."""


@dataclass(frozen=True)
class Rows:
    """Predictions of one forecaster.

    `labels`: its grids. `now_T_frame`: their predicted ego frames; None if the forecaster predicts no motion, and its grids are in the true frames.
    `taken`: predicted probability of a road user in each cell of the occupancy flow at the horizons ahead, current ego frame; None without a flow.
    """

    labels: UInt8[Array, "B H X Y Z"]
    now_T_frame: Float[Array, "B H 4 4"] | None = None
    taken: Float[Array, "B h x y"] | None = None


@dataclass(frozen=True)
class BatchTruth:
    """Ground truth of a batch.

    `at`: scene and keyframe index of each sample. `movers`: movers at each horizon. `movers_seen`: only those inside the grid at t = 0.
    `corridor`: cells of the corridor in the true frame of each horizon. `unseen`: voxels out of sight at t = 0. `ceiling`: counts of the
    true occupancy against `movers` and `movers_seen`.
    """

    at: tuple[tuple[Scene, int], ...]
    movers: tuple[tuple[MoverTruth, ...], ...]
    movers_seen: tuple[tuple[MoverTruth, ...], ...]
    corridor: Bool[Array, "B H X Y"]
    unseen: Bool[Array, "B H X Y Z"]
    ceiling: tuple[MoverCounts, MoverCounts]


class Truths:
    """Ground truth of a source's keyframes on one grid. The last scenes are cached, because each keyframe is the future of several samples."""

    def __init__(self, source: Source, spec: GridSpec, scenes: int = 4) -> None:
        self.source, self.spec, self.limit = source, spec, scenes
        self.kept: dict[str, tuple[Scene, dict[int, MoverTruth]]] = {}

    def of(self, clips: ClipDataset, rows: Sequence[int], batch: Batch, steps: Sequence[int]) -> BatchTruth:
        """The ground truth of samples `rows` of `clips`, which are those in `batch`, at horizons `steps`."""
        assert batch.inputs.occupancy is not None
        at, movers, inside_now = [], [], []
        for row in rows:
            number, index = clips.samples[row]
            scene, _ = self._scene(clips.tracks[number].name)
            at.append((scene, index))
            movers.append(self.movers(scene.name, [index + step for step in steps]))
            tracks = tracks_inside(scene, index, self.spec)
            inside_now.append(tuple(mover_truth(scene, index + step, self.spec, tracks) for step in steps))
        now_T_true = true_frames(batch, steps)
        now = batch.inputs.occupancy[:, -1].numpy(force=True)
        unknown = now == IGNORE
        driven = constant_turn(batch.inputs)[:, 0].numpy(force=True).astype(np.float64)
        corridors = np.zeros((*now_T_true.shape[:2], *self.spec.shape[:2]), bool)
        unseen = np.zeros((*now_T_true.shape[:2], *self.spec.shape), bool)
        for b, h in np.ndindex(*now_T_true.shape[:2]):
            points = cell_points(self.spec) @ now_T_true[b, h, :2, :2].T + now_T_true[b, h, :2, 3]
            corridors[b, h] = corridor(points, driven[b, 0, 3] / STEP_S, float(geometry.heading(driven[b])) / STEP_S)
            x, y, inside = cells_of(points, self.spec)
            unseen[b, h] = unknown[b][x, y] if unknown[b].any() else False
            unseen[b, h][~inside] = True
        real = real_grids(batch, steps)
        shown = movers_in(real)
        ceiling = count_movers(shown, movers), count_movers(shown, inside_now)
        return BatchTruth(tuple(at), tuple(movers), tuple(inside_now), corridors, unseen, ceiling)

    def movers(self, name: str, indices: Sequence[int]) -> tuple[MoverTruth, ...]:
        """The movers at some keyframes of a scene."""
        scene, found = self._scene(name)
        for index in indices:
            if index not in found:
                found[index] = mover_truth(scene, index, self.spec)
        return tuple(found[index] for index in indices)

    def _scene(self, name: str) -> tuple[Scene, dict[int, MoverTruth]]:
        if name not in self.kept:
            self.kept[name] = (self.source.scene(name), {})
            while len(self.kept) > self.limit:
                self.kept.pop(next(iter(self.kept)))
        return self.kept[name]


def forecast_rows(forecaster: Forecaster, batch: Batch, spec: GridSpec, steps: Sequence[int], oracle: bool) -> dict[str, Rows]:
    """Predictions of the world model and of the copy baselines; with `oracle` also of the world model along the true path, if it supports that."""
    inputs, at = batch.inputs, list(steps)
    assert inputs.occupancy is not None
    now = inputs.occupancy[:, -1]
    now = torch.where(now == IGNORE, FREE, now)
    true, own = batch.targets.now_T_frame, constant_turn(inputs)
    later = [step - 1 for step in at if step > 0]

    def copied(ahead: torch.Tensor) -> UInt8[Array, "B H X Y Z"]:
        """Prepend the current grid if step 0 is requested."""
        return torch.cat([now[:, None]] * (len(at) - len(later)) + [ahead], 1).numpy(force=True)

    labels, imagined = forecaster.forecast(inputs, at)
    taken = None if imagined.flow is None else imagined.flow.taken[:, [step for step in at if step > 0]].sigmoid().numpy(force=True)
    out = {
        "world model": Rows(labels.numpy(force=True), frames_at(imagined.now_T_frame, at), taken),
        "copy last": Rows(copied(copy_last(now, len(later)))),
        "copy warped": Rows(copied(copy_warped(now, own[:, later], spec)), frames_at(own, at)),
        "copy warped, true motion (oracle)": Rows(copied(copy_warped(now, true[:, later], spec))),
    }
    if oracle and forecaster.world.config.motion != "map":
        frames = torch.cat([identity(true).expand(len(true), 1, 4, 4), true], 1)
        led, _ = forecaster.forecast(inputs, at, transform_inverse(frames[:, :-1]) @ frames[:, 1:])
        out["world model, true path (oracle)"] = Rows(led.numpy(force=True))
    return out


def transport_rows(at: Sequence[tuple[Scene, int]], batch: Batch, spec: GridSpec, steps: Sequence[int]) -> dict[str, Rows]:
    """Predictions that move the current voxels with their boxes: at constant turn rate and velocity, and with the true motion."""
    assert batch.inputs.occupancy is not None
    now = batch.inputs.occupancy[:, -1].numpy(force=True)
    now = np.where(now == IGNORE, np.uint8(FREE), now)
    own, true = frames_at(constant_turn(batch.inputs), steps), true_frames(batch, steps)

    ahead = [h for h, step in enumerate(steps) if step > 0]
    made = {"transport": np.repeat(now[:, None], len(steps), 1), "transport, true flow": np.repeat(now[:, None], len(steps), 1)}
    for b, place in enumerate(at):
        foreseen = constant_turn_moves(*place, [steps[h] for h in ahead])
        known = true_moves(*place, [steps[h] for h in ahead])
        ground = without_boxes(now[b], foreseen.boxes, spec)
        for row, moves, frames in (("transport", foreseen, own), ("transport, true flow", known, true)):
            made[row][b, ahead] = transport(now[b], ground, moves, frames[b, ahead], spec)
    return {"transport": Rows(made["transport"], own), "transport, true flow": Rows(made["transport, true flow"])}


def count_rows(
    rows: Mapping[str, Rows], batch: Batch, steps: Sequence[int], spec: GridSpec, truth: BatchTruth | None
) -> dict[str, RowCounts]:
    """Count every row of a batch against the truth. Without `truth`, only mIoU and IoU are counted."""
    real, true = real_grids(batch, steps), true_frames(batch, steps)
    out = {}
    for name, row in rows.items():
        histogram = np.stack([metrics.confusion(real[:, h], row.labels[:, h]) for h in range(len(steps))])
        counts = RowCounts.zero(len(steps))
        if truth is None:
            out[name] = replace(counts, samples=len(real), histogram=histogram)
            continue
        labels, in_true_frame = row.labels, histogram
        path_m, paths = counts.path_m, 0
        if row.now_T_frame is not None:
            ahead = [h for h, step in enumerate(steps) if step > 0]
            labels = labels.copy()
            frame_T_true = geometry.invert(row.now_T_frame) @ true
            for b in range(len(real)):
                for h in ahead:
                    labels[b, h] = read_at(row.labels[b, h], frame_T_true[b, h], spec)
            in_true_frame = np.stack([metrics.confusion(real[:, h], labels[:, h]) for h in range(len(steps))])
            off = np.linalg.norm(row.now_T_frame[..., :2, 3] - true[..., :2, 3], axis=-1)
            path_m, paths = np.where(np.array(steps) > 0, off.sum(0), np.nan), len(real)
        unseen = np.stack([metrics.confusion(real[:, h], labels[:, h], truth.unseen[:, h]) for h in range(len(steps))])
        found = movers_in(labels)
        movers, inside_now = count_movers(found, truth.movers), count_movers(found, truth.movers_seen)
        within = count_movers(found, truth.movers, truth.corridor)
        out[name] = RowCounts(len(real), histogram, in_true_frame, unseen, movers, inside_now, within, path_m, paths)
    return out


def count_probabilities(
    taken: Float[Array, "B h x y"], clips: ClipDataset, rows: Sequence[int], batch: Batch, labels: FlowTargets, steps: Sequence[int]
) -> dict[str, Reliability]:
    """Count the cells of a batch (samples `rows` of `clips`) by predicted probability at the steps ahead, for all cells and for the corridor."""
    ahead = [step for step in steps if step > 0]
    samples = [clips.samples[row] for row in rows]
    true = np.stack([labels(clips.tracks[number].name, index)["taken"][ahead] for number, index in samples])
    driven = constant_turn(batch.inputs)[:, 0].numpy(force=True).astype(np.float64)
    points = cell_points(labels.spec)
    swept = np.stack([corridor(points, one[0, 3] / STEP_S, float(geometry.heading(one)) / STEP_S) for one in driven])
    return {ALL_CELLS: Reliability.of(taken, true), CORRIDOR: Reliability.of(taken, true, swept)}


def real_grids(batch: Batch, steps: Sequence[int]) -> UInt8[Array, "B H X Y Z"]:
    """True occupancy at some steps."""
    assert batch.inputs.occupancy is not None
    assert batch.targets.occupancy is not None
    return torch.cat([batch.inputs.occupancy[:, -1:], batch.targets.occupancy], 1)[:, list(steps)].numpy(force=True)


def true_frames(batch: Batch, steps: Sequence[int]) -> Float[Array, "B H 4 4"]:
    """True ego frames at some steps, relative to the current ego frame."""
    return frames_at(batch.targets.now_T_frame, steps)


def frames_at(now_T_future: torch.Tensor, steps: Sequence[int]) -> Float[Array, "B H 4 4"]:
    """Frames at some steps, from the frames of steps 1, 2, …; the frame at step 0 is the identity."""
    frames = now_T_future.double()
    eye = identity(frames).expand(len(frames), 1, 4, 4)
    return torch.cat([eye, frames], 1)[:, list(steps)].numpy(force=True)


def count_movers(
    found: Bool[Array, "B H X Y"], movers: Sequence[Sequence[MoverTruth]], within: Bool[Array, "B H X Y"] | None = None
) -> MoverCounts:
    """Count the movers found in each sample of a batch at each horizon against the true ones, all cells or those `within` a mask."""
    horizons = [
        [count(found[b, h], truth, None if within is None else within[b, h]) for b, truth in enumerate(truths)]
        for h, truths in enumerate(zip(*movers, strict=True))
    ]
    return MoverCounts(*(np.array([sum(int(getattr(c, part)) for c in cells) for cells in horizons]) for part in ("hit", "found", "true")))
