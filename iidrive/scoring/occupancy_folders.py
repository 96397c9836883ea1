"""Occupancy of any code base: a folder of predicted label grids, joined to the truth by sample token and scored by the public rules.

Both folders have Occ3D's layout, `<scene>/<sample token>/labels.npz` with `semantics`. A prediction is the present grid, or seven: now and
0.5 to 3.0 s ahead, each in the ego frame of its own keyframe. nuScenes' tables give the order of keyframes and the lidar's origins.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from iidrive.core import geometry
from iidrive.core.errors import ConfigError, DataError, unknown
from iidrive.core.scene import FUTURE_STEPS, OCC3D_GRID, STEP_S, Scene
from iidrive.data.flow import velocities
from iidrive.data.nuscenes.source import NuScenes, labels
from iidrive.data.nuscenes.splits import SPLITS, is_list
from iidrive.data.scene_lists import read_list
from iidrive.scoring.flow_error import FlowErrors, flow_errors
from iidrive.scoring.movers import MoverCounts, MoverTruth, count, mover_truth, movers_in
from iidrive.scoring.npz import few
from iidrive.scoring.occupancy import TIMES, OccupancyScore, iiworld_table
from iidrive.scoring.rays import THRESHOLDS_M, RayCounts, count_rays

Array = np.ndarray

REACH_M = 39.0
"""Origins farther than this from the ego, along x or y, shoot no rays."""
MOST_ORIGINS = 8


@dataclass(frozen=True)
class Result:
    """Histograms and rays of `score.samples` samples. `skipped` samples have no full future; `notes` say what could not be scored and why.

    Where nuScenes' tables give the boxes: `movers` at every time, and the errors of the velocities that were predicted.
    """

    score: OccupancyScore
    rays: RayCounts | None
    skipped: int
    notes: tuple[str, ...]
    movers: MoverCounts | None = None
    flow: FlowErrors | None = None


@dataclass(frozen=True)
class _Sample:
    """A sample's files: predicted, and true at each time. `origins` (o,3) of its rays, metres, ego frame; `at` its scene and keyframe."""

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
) -> Result:
    """Score every sample of the truth folder (of the scenes of `split`, if one is named).

    Raises:
        ConfigError: for an unknown split, and for forecasts where nothing gives the order of keyframes.
        DataError: counting and naming the first few samples that are predicted and unknown, not predicted, or there twice; naming the file
            that is damaged or of another shape.
    """
    scenes = _scenes(tables, split)
    true = labels.listed(Path(truth), scenes)
    found = labels.listed(Path(predicted))
    whose = f"{truth}{f' ({split})' if split else ''}"
    extra = [token for token in found if token not in true]
    if extra:
        raise DataError(f"{predicted}: {few(extra)} not in {whose}; were other samples, or another split, predicted? --split names it.")
    times = len(labels.read_times(next(iter(found.values())), "predicted")[0])
    samples, skipped, notes = _samples(found, true, tables, times, predicted)
    lacking = [token for token in true if token not in found and token not in skipped]
    if lacking:
        raise DataError(
            f"{predicted}: no prediction for {few(lacking)} of {whose}; predict every sample, or name the split that was predicted with --split."
        )
    if not samples:
        raise DataError(f"{whose}: no sample has {FUTURE_STEPS} future keyframes with truth, so there is nothing to score.")
    score, seen, total = OccupancyScore(times), 0, RayCounts()
    movers, flow, known = MoverCounts.zero(times), FlowErrors(), _Movers()
    rays = rays and tables is not None
    truths = _Truth()
    tick = counting(len(samples))
    for sample in samples:
        forecast = _grids(sample.predicted, labels.read_times(sample.predicted, "predicted")[0], times)
        present = sample.true[0]
        now, mask = truths.read(present)
        if len(sample.true) > 1:
            now = np.concatenate([truths.read(path)[0][:1] for path in sample.true])
        real = _grids(present, now, times)
        try:
            score.update(real[None], forecast[None], None if mask is None else mask[None])
            if rays and sample.origins is not None:
                total += count_rays(real[0], forecast[0], sample.origins)
            if sample.at is not None:
                movers += known.count(sample.at, forecast)
                flow += _flow_errors(sample, real, forecast)
        except DataError as error:
            raise DataError(f"{sample.predicted}: {error}") from error
        seen += mask is not None
        tick(sample.token)
    if seen < len(samples):
        notes.append(f"Occ3D is left out: {len(samples) - seen} of {len(samples)} truth files have no mask_camera.")
        score.seen = np.zeros_like(score.seen)
    if tables is None:
        return Result(score, None, len(skipped), tuple(notes))
    if not flow.files:
        notes.append("mAVE is left out: no prediction has an array 'flow' of velocities.")
    return Result(score, total if rays else None, len(skipped), tuple(notes), movers, flow if flow.files else None)


class _Movers:
    """True movers of the scene that was used last: a keyframe is the future of several samples."""

    def __init__(self) -> None:
        self.scene, self.found = "", dict[int, MoverTruth]()

    def count(self, at: tuple[Scene, int], forecast: UInt8[Array, "t 200 200 16"]) -> MoverCounts:
        """The movers of one sample's grids."""
        scene, index = at
        if scene.name != self.scene:
            self.scene, self.found = scene.name, {}
        for i in range(index, index + len(forecast)):
            if i not in self.found:
                self.found[i] = mover_truth(scene, i, OCC3D_GRID)
        each = [count(movers_in(grid), self.found[index + t]) for t, grid in enumerate(forecast)]
        return MoverCounts(*(np.array([int(getattr(c, part)) for c in each]) for part in ("hit", "found", "true")))


def _flow_errors(sample: _Sample, real: UInt8[Array, "t 200 200 16"], forecast: UInt8[Array, "t 200 200 16"]) -> FlowErrors:
    """Errors of the velocities that a sample's file holds, none if it holds none."""
    assert sample.at is not None
    predicted = labels.read_flow(sample.predicted, len(forecast))
    if predicted is None:
        return FlowErrors()
    scene, index = sample.at
    total = FlowErrors(files=1)
    for t, velocity in enumerate(predicted):
        true, known = velocities(scene, index + t, real[t], OCC3D_GRID)
        total += flow_errors(real[t], true, known, forecast[t], velocity)
    return total


class _Truth:
    """The truth files that were read last: a grid is the future of several samples."""

    def __init__(self) -> None:
        self.kept: OrderedDict[Path, tuple[Array, Array | None]] = OrderedDict()

    def read(self, path: Path) -> tuple[Array, Array | None]:
        """Labels and camera mask of a file."""
        if path not in self.kept:
            self.kept[path] = labels.read_times(path, "labels")
        self.kept.move_to_end(path)
        while len(self.kept) > 2 * TIMES:
            self.kept.popitem(last=False)
        return self.kept[path]


def lidar_origins(scene: Scene, index: int) -> Float[Array, "o 3"]:
    """Where SparseOcc's evaluator lets rays begin: LIDAR_TOP of the scene's keyframes near keyframe `index`, in its ego frame, at most 8."""
    now = scene.keyframes[index]
    lidar_T_global = geometry.invert(now.global_T_lidar)
    points = np.stack([(lidar_T_global @ k.global_T_lidar)[:3, 3] for k in scene.keyframes]).astype(np.float32).astype(np.float64)
    points[index] = 0.0
    origins = geometry.apply(now.ego_T_lidar.matrix, points)
    near = origins[(np.abs(origins[:, :2]) < REACH_M).all(axis=1)]
    if len(near) > MOST_ORIGINS:
        near = near[np.round(np.linspace(0, len(near) - 1, MOST_ORIGINS)).astype(np.int64)]
    return near


def _scenes(tables: NuScenes | None, split: str) -> Sequence[str] | None:
    """Names of the scenes to score; None: all that the truth folder has."""
    if tables is not None:
        return tables.scene_names(split or "all")
    if not split or split == "all":
        return None
    if is_list(split):
        return read_list(split)
    if split not in SPLITS:
        raise ConfigError(unknown("split", split, (*SPLITS, "all")))
    return SPLITS[split]


def _samples(
    found: Mapping[str, Path], true: Mapping[str, Path], tables: NuScenes | None, times: int, predicted: str | Path
) -> tuple[list[_Sample], set[str], list[str]]:
    """The samples to score, the tokens of those that cannot be, and what to say."""
    if times not in (1, TIMES):
        raise DataError(f"{predicted}: a file holds the present grid, or {TIMES} (now and 0.5 to 3.0 s ahead); found {times} in the first.")
    notes = [] if tables else ["RayIoU is left out: the lidar's origins stand in nuScenes' tables; add --root."]
    if times == 1:
        notes.append("OccWorld is left out: it scores forecasts, and these files hold the present alone.")
    if tables is None:
        several = times > 1 and len(labels.read_times(next(iter(true.values())), "labels")[0]) == times
        if times > 1 and not several:
            raise ConfigError(
                f"{predicted} holds forecasts; to pair them with later keyframes their order must be known: add --root, the nuScenes folder."
            )
        return [_Sample(t, found[t], (path,), None) for t, path in true.items() if t in found], set(), notes
    samples, skipped, rest = [], set(), set(true)
    for name in dict.fromkeys(path.parents[1].name for path in true.values()):
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
                samples.append(_Sample(token, found[token], tuple(true[t] for t in ahead), lidar_origins(scene, i), (scene, i)))
    if rest:
        raise DataError(
            f"{next(iter(true.values())).parents[2]}: {few(sorted(rest))} that these nuScenes tables do not have; is it another version?"
        )
    return samples, skipped, notes


def _grids(path: Path, grids: Array, times: int) -> Array:
    if len(grids) != times:
        raise DataError(f"{path}: {len(grids)} grids, where the first prediction has {times}; write the same times for every sample.")
    return grids


def to_json(result: Result) -> dict[str, object]:
    """All scores as plain values, in percent; NaN as None."""
    found = result.score.compute()
    if result.rays is not None:
        each = 100 * result.rays.iou()
        means = [float(np.nanmean(row)) if not np.isnan(row).all() else float("nan") for row in each]
        found["rayiou"] = {
            "RayIoU": 100 * result.rays.ray_iou(),
            "per_threshold": {f"{metres:g} m": value for metres, value in zip(THRESHOLDS_M, means, strict=True)},
            "per_class": each.tolist(),
        }
    if result.movers is not None:
        parts = (("IoU", result.movers.iou()), ("precision", result.movers.precision()), ("recall", result.movers.recall()))
        found["movers"] = {name: (100 * values).tolist() for name, values in parts}
    if result.flow is not None:
        found["flow"] = {"mAVE_mps": result.flow.mave(), "per_class_mps": result.flow.per_class(), "files": result.flow.files}
    seconds = [k * STEP_S for k in range(result.score.times)]
    plain = _plain({**found, "n_skipped": result.skipped, "seconds": seconds, "notes": list(result.notes)})
    assert isinstance(plain, dict)
    return plain


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and np.isnan(value) else value


RULES = {
    "iiworld": ("II-World", "no camera mask; classes of IoU 0 left out; unknown truth is occupied in IoU"),
    "occworld": ("OccWorld", "no camera mask; absent classes count as 1; unknown truth counts against the forecast"),
    "occ3d": ("Occ3D", "within the camera mask, now; classes absent from the truth left out"),
    "rayiou": ("RayIoU", "what a lidar would see, now; mean of 1, 2 and 4 m"),
}


def format_result(result: Result) -> str:
    """The rules side by side in percent, what each means, and what was left out."""
    found = to_json(result)
    times = result.score.times
    heads = ["now"] if times == 1 else ["now", "1 s", "2 s", "3 s", "average"]
    lines = [f"{'':<10}{'':<7}" + "".join(f"{head:>9}" for head in heads)]
    for key, (name, meaning) in RULES.items():
        for metric, values in _rows(found.get(key), times):
            shown = "".join(f"{'-' if value is None else f'{value:.2f}':>9}" for value in values)
            lines.append(f"{name:<10}{metric:<7}{shown:<{9 * len(heads)}}  {meaning}")
            name = meaning = ""
    if result.movers is not None:
        at = [k for k in (0, 2, 4, 6) if k < times]
        shown = "".join(f"{'-' if np.isnan(v) else f'{100 * v:.2f}':>9}" for v in result.movers.iou()[at])
        lines.append(f"{'movers':<10}{'IoU':<7}{shown:<{9 * len(heads)}}  moving road users from above, true boxes against predicted cells")
    if result.flow is not None:
        value = result.flow.mave()
        told = "none was right" if np.isnan(value) else f"{value:.3f} m/s"
        lines.append(f"mAVE: {told}, mean over movable classes of the velocity error in voxels whose class is right")
    rays = found.get("rayiou")
    if isinstance(rays, dict):
        lines.append("RayIoU at " + ", ".join(f"{k}: {'-' if v is None else f'{v:.2f}'}" for k, v in rays["per_threshold"].items()))
    if times == TIMES:
        lines += ["II-World's own table:", iiworld_table(result.score.compute()["iiworld"])]  # pyright: ignore[reportArgumentType]
    skipped = (
        f"skipped {result.skipped}: the scene, or its truth, ends before {STEP_S * FUTURE_STEPS:.1f} s"
        if result.skipped
        else "skipped none"
    )
    lines.append(f"scored {result.score.samples} samples; {skipped}.")
    return "\n".join([*(line.rstrip() for line in lines), *result.notes])


def _rows(found: object, times: int) -> list[tuple[str, list[float | None]]]:
    """(metric, values under the heads) of a rule's scores."""
    if found is None:
        return []
    rest: list[float | None] = [] if times == 1 else [None] * 4
    if not isinstance(found, dict):
        return [("mIoU", [found, *rest])]  # pyright: ignore[reportReturnType]
    if "RayIoU" in found:
        return [("", [found["RayIoU"], *rest])]
    at = [k for k in (0, 2, 4, 6) if k < times]
    rows = []
    for m, metric in enumerate(("mIoU", "IoU")):
        values = found[metric] if len(found[metric]) == times else [None, *found[metric]]
        rows.append((metric, [*(values[k] for k in at), *([found["average"][m]] if times > 1 else [])]))
    return rows
