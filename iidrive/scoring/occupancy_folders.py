"""Occupancy of any code base: a folder of predicted label grids, joined to the ground truth by sample token and scored by the public rules.

All layouts and formats of `data.occupancy_files` are accepted. A prediction is the current grid, or seven grids: now and 0.5 to 3.0 s ahead, each
in the ego frame of its own keyframe. The nuScenes tables give the order of keyframes and the lidar origins.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from iidrive.core import geometry
from iidrive.core.class_tables import OCC3D_VOXELS, ClassTable
from iidrive.core.errors import ConfigError, DataError
from iidrive.core.scene import FUTURE_STEPS, OCC3D_GRID, Scene
from iidrive.data.flow import velocities
from iidrive.data.nuscenes.source import NuScenes
from iidrive.data.occupancy_files import OccFile, listed, scenes_of
from iidrive.data.occupancy_grids import has_mask, read_flow, read_grids
from iidrive.scoring.flow_error import FlowErrors, flow_errors
from iidrive.scoring.movers import MoverCounts, MoverTruth, count, mover_truth, movers_in
from iidrive.scoring.npz import few
from iidrive.scoring.occupancy import TIMES, OccupancyScore
from iidrive.scoring.occupancy_sides import Written, advice, common_folder, of_scenes, scene_names
from iidrive.scoring.rays import RayCounts, count_rays

Array = np.ndarray

REACH_M = 39.0
"""Origins with |x| or |y| beyond this, metres from the ego, are not used."""
MOST_ORIGINS = 8


@dataclass(frozen=True)
class Result:
    """Confusion matrices and ray counts of `score.samples` samples.

    `skipped`: number of samples without a full future. `notes`: what could not be scored, and why. With nuScenes tables, which give the boxes,
    `movers` are the mover counts at every time and `flow` the errors of the predicted velocities.
    """

    score: OccupancyScore
    rays: RayCounts | None
    skipped: int
    notes: tuple[str, ...]
    movers: MoverCounts | None = None
    flow: FlowErrors | None = None


@dataclass(frozen=True)
class _Sample:
    """The files of a sample: prediction, and truth at each time.

    `origins` (o,3): ray origins, ego frame, metres. `at`: scene and keyframe index.
    """

    token: str
    predicted: Path
    true: tuple[Path, ...]
    origins: Array | None
    at: tuple[Scene, int] | None = None


def score_folders(
    predicted: str | Path,
    truth: str | Path,
    tables: NuScenes | None = None,
    split: str = "",
    rays: bool = True,
    counting: Callable[[int], Callable[[str], None]] = lambda total: lambda name: None,
    written: Written = Written(),  # noqa: B008 - frozen
) -> Result:
    """Score every sample of the truth folder, or of the scenes of `split`. `counting(total)` returns a function that is called after each sample.

    Raises:
        ConfigError: for an unknown split, for forecasts if the order of keyframes is unknown, and for class tables on different grids.
        DataError: if samples are missing, unknown or duplicated, or if a file is damaged, has another shape or other class numbers.
    """
    table_notes = written.notes()
    scenes = scene_names(tables, split)
    true = of_scenes(listed(Path(truth), "labels"), scenes, tables, truth)
    found = listed(Path(predicted), "predicted")
    whose = f"{truth}{f' ({split})' if split else ''}"
    extra = [token for token in found if token not in true]
    if extra:
        raise DataError(f"{predicted}: {few(extra)} not in {whose}; if another split was predicted, name it with --split.{advice(extra)}")
    times = len(read_grids(next(iter(found.values())).path, "predicted", written.predicted).labels)
    samples, skipped, notes = _samples(found, true, tables, times, predicted, written.truth)
    lacking = [token for token in true if token not in found and token not in skipped]
    if lacking:
        raise DataError(
            f"{predicted}: no prediction for {few(lacking)} of {whose}; predict every sample, or name the split that was predicted with --split."
        )
    if not samples:
        raise DataError(f"{whose}: no sample has {FUTURE_STEPS} future keyframes with truth, so there is nothing to score.")
    seen = sum(has_mask(sample.true[0]) for sample in samples)
    masked = seen == len(samples)
    if not masked:
        notes.append(f"Occ3D is left out: {len(samples) - seen} of {len(samples)} truth files have no mask_camera.")
    boxes = tables is not None and written.truth.voxels == OCC3D_VOXELS
    if tables is not None and not boxes:
        notes.append(f"RayIoU and movers are left out: they need Occ3D's grid, and {written.truth.name}'s grid is different.")
    score, total = OccupancyScore(times), RayCounts()
    movers, flow, known = MoverCounts.zero(times), FlowErrors(), _Movers()
    rays = rays and boxes
    truths = _Truth(written.truth)
    tick = counting(len(samples))
    for sample in samples:
        forecast = _grids(sample.predicted, read_grids(sample.predicted, "predicted", written.predicted).labels, times)
        present = sample.true[0]
        now, mask = truths.read(present)
        if len(sample.true) > 1:
            now = np.concatenate([truths.read(path)[0][:1] for path in sample.true])
        real = _grids(present, now, times)
        try:
            score.update(real[None], forecast[None], mask[None] if masked and mask is not None else None)
            if rays and sample.origins is not None:
                total += count_rays(real[0], forecast[0], sample.origins)
            if boxes and sample.at is not None:
                movers += known.count(sample.at, forecast)
                flow += _flow_errors(sample, real, forecast)
        except DataError as error:
            raise DataError(f"{sample.predicted}: {error}") from error
        tick(sample.token)
    notes += table_notes
    if not boxes:
        return Result(score, None, len(skipped), tuple(notes))
    if not flow.files:
        notes.append("mAVE is left out: no prediction has a 'flow' array of velocities.")
    return Result(score, total if rays else None, len(skipped), tuple(notes), movers, flow if flow.files else None)


class _Movers:
    """Keeps the true movers of the current scene, because each keyframe is the future of several samples."""

    def __init__(self) -> None:
        self.scene, self.found = "", dict[int, MoverTruth]()

    def count(self, at: tuple[Scene, int], forecast: UInt8[Array, "t 200 200 16"]) -> MoverCounts:
        """Mover counts of one sample's grids, one per time."""
        scene, index = at
        if scene.name != self.scene:
            self.scene, self.found = scene.name, {}
        for i in range(index, index + len(forecast)):
            if i not in self.found:
                self.found[i] = mover_truth(scene, i, OCC3D_GRID)
        each = [count(movers_in(grid), self.found[index + t]) for t, grid in enumerate(forecast)]
        return MoverCounts(*(np.array([int(getattr(c, part)) for c in each]) for part in ("hit", "found", "true")))


def _flow_errors(sample: _Sample, real: UInt8[Array, "t 200 200 16"], forecast: UInt8[Array, "t 200 200 16"]) -> FlowErrors:
    """Velocity errors of one sample; zero counts if its file has no flow."""
    assert sample.at is not None
    predicted = read_flow(sample.predicted, len(forecast))
    if predicted is None:
        return FlowErrors()
    scene, index = sample.at
    total = FlowErrors(files=1)
    for t, velocity in enumerate(predicted):
        true, known = velocities(scene, index + t, real[t], OCC3D_GRID)
        total += flow_errors(real[t], true, known, forecast[t], velocity)
    return total


class _Truth:
    """Keeps the truth files read last, because each grid is the future of several samples."""

    def __init__(self, table: ClassTable) -> None:
        self.table, self.kept = table, OrderedDict[Path, tuple[Array, Array | None]]()

    def read(self, path: Path) -> tuple[Array, Array | None]:
        """Labels and camera mask (None if absent) of a truth file."""
        if path not in self.kept:
            found = read_grids(path, "labels", self.table)
            self.kept[path] = found.labels, found.mask
        self.kept.move_to_end(path)
        while len(self.kept) > 2 * TIMES:
            self.kept.popitem(last=False)
        return self.kept[path]


def lidar_origins(scene: Scene, index: int) -> Float[Array, "o 3"]:
    """Ray origins of SparseOcc's evaluator: LIDAR_TOP of the scene's keyframes near keyframe `index`, in its ego frame, metres; at most 8."""
    now = scene.keyframes[index]
    lidar_T_global = geometry.invert(now.global_T_lidar)
    points = np.stack([(lidar_T_global @ k.global_T_lidar)[:3, 3] for k in scene.keyframes]).astype(np.float32).astype(np.float64)
    points[index] = 0.0
    origins = geometry.apply(now.ego_T_lidar.matrix, points)
    near = origins[(np.abs(origins[:, :2]) < REACH_M).all(axis=1)]
    if len(near) > MOST_ORIGINS:
        near = near[np.round(np.linspace(0, len(near) - 1, MOST_ORIGINS)).astype(np.int64)]
    return near


def _samples(
    found: Mapping[str, OccFile],
    true: Mapping[str, OccFile],
    tables: NuScenes | None,
    times: int,
    predicted: str | Path,
    table: ClassTable,
) -> tuple[list[_Sample], set[str], list[str]]:
    """The samples to score, the tokens of samples without a full future, and notes."""
    if times not in (1, TIMES):
        raise DataError(
            f"{predicted}: expected files with 1 grid (now) or {TIMES} grids (now and 0.5 to 3.0 s ahead); found {times} in the first file."
        )
    notes = [] if tables else ["RayIoU is left out: the lidar origins are in the nuScenes tables; add --root."]
    if times == 1:
        notes.append("OccWorld is left out: it scores forecasts, and these files hold only the current grid.")
    if tables is None:
        several = times > 1 and len(read_grids(next(iter(true.values())).path, "labels", table).labels) == times
        if times > 1 and not several:
            raise ConfigError(
                f"{predicted} holds forecasts, and the order of keyframes is needed to pair them: add --root, the nuScenes folder."
            )
        return [_Sample(t, found[t].path, (file.path,), None) for t, file in true.items() if t in found], set(), notes
    samples, skipped, rest = [], set(), set(true)
    for name in scenes_of(true):
        scene = tables.scene(name)
        names = [keyframe.token for keyframe in scene.keyframes]
        for i, token in enumerate(names):
            if token not in true:
                continue
            rest.discard(token)
            ahead = names[i : i + times]
            if len(ahead) < times or any(t not in true for t in ahead):
                skipped.add(token)
            elif token in found:
                samples.append(_Sample(token, found[token].path, tuple(true[t].path for t in ahead), lidar_origins(scene, i), (scene, i)))
    if rest:
        raise DataError(f"{common_folder(true)}: {few(sorted(rest))} not in these nuScenes tables; is it another version?")
    return samples, skipped, notes


def _grids(path: Path, grids: Array, times: int) -> Array:
    if len(grids) != times:
        raise DataError(f"{path}: {len(grids)} grids, but the first prediction has {times}; write the same times for every sample.")
    return grids
