"""Selection of interesting samples, and their figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float, UInt8

from iidrive.core.scene import FUTURE_STEPS
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack
from iidrive.data.source import Source, window
from iidrive.models.forecast import Forecaster
from iidrive.pipeline import infer
from iidrive.pipeline.testset import TestSet
from iidrive.report.figures import ScenePanel, scene_figure, scene_picture
from iidrive.runtime.progress import counting
from iidrive.runtime.run_folder import device
from iidrive.scoring.score import Scores

Array = np.ndarray
Plans = Mapping[str, Mapping[str, Float[Array, "6 2"]]]
Imagined = Mapping[int, UInt8[Array, "H X Y Z"]]

WORST = 10


@dataclass(frozen=True)
class Sample:
    """A sample: index of its track, and keyframe index."""

    track: int
    keyframe: int


@dataclass(frozen=True)
class Bad:
    """A badly planned sample: number of steps with a collision, and mean L2 in metres."""

    sample: Sample
    token: str
    events: int
    l2_m: float


def telling(tracks: Sequence[EgoTrack], most: int = 12) -> list[Sample]:
    """For each of the first `most` tracks, the keyframe whose next 3 s differ most from driving straight ahead at constant speed."""
    return [Sample(number, _telling(track)) for number, track in enumerate(tracks[:most])]


def worst(scores: Scores, tracks: Sequence[EgoTrack], most: int = WORST) -> list[Bad]:
    """The worst samples of a planner: most steps with a collision first, then largest mean L2. At most two per scene."""
    events = np.asarray(scores.steps.per_step.get("obj_box_col", np.zeros((len(scores.token), 1)))).sum(1)
    if "obj_box_col" not in scores.events:
        events = np.zeros(len(scores.token))
    far = np.asarray(scores.steps.per_step["L2"], np.float64).mean(1)
    row_of = {token: row for row, token in enumerate(scores.token)}
    found = []
    for number, track in enumerate(tracks):
        rows = [(k, row_of[token]) for k, token in enumerate(track.tokens) if token in row_of and scores.steps.evaluated[row_of[token]]]
        found += [Bad(Sample(number, k), track.tokens[k], int(events[row]), float(far[row])) for k, row in rows]
    of_scene: dict[int, int] = {}
    chosen = []
    for bad in sorted(found, key=lambda one: (-one.events, -one.l2_m, one.token)):
        of_scene[bad.sample.track] = of_scene.get(bad.sample.track, 0) + 1
        if of_scene[bad.sample.track] <= 2 and len(chosen) < most:
            chosen.append(bad)
    return chosen


def draw(
    on: TestSet,
    forecaster: Forecaster | None,
    clips: ClipDataset,
    plans: Plans,
    samples: Sequence[Sample],
    start: str = "",
    imagined: Imagined = MappingProxyType({}),
) -> list[tuple[str, str]]:
    """Draw one picture per sample below the run folder's pictures/. Returns (caption, path relative to the run folder).

    With a forecaster, `clips` must hold codes and occupancy, and true and predicted occupancy are drawn, too. File names begin with `start`.
    `imagined` holds forecasts that are known already, by row of `clips`, at `infer.HORIZON_STEPS`.
    """
    pictures = []
    row_of = {sample: row for row, sample in enumerate(clips.samples)}
    with counting("pictures", len(samples)) as tick:
        for sample in samples:
            track = on.tracks[sample.track]
            row = row_of[sample.track, sample.keyframe]
            panel = _panel(on.source, on.tracks, forecaster, clips, plans, sample, row, imagined.get(row))
            name = f"{start}{track.name}-{sample.keyframe}.png" if start else f"{track.name}.png"
            path = scene_figure(panel, on.run.folder / "pictures" / name)
            pictures.append((f"{track.name} ({on.split}), keyframe {sample.keyframe}, {panel.observation.token}", f"pictures/{path.name}"))
            tick(track.name)
    return pictures


def film(
    source: Source, tracks: Sequence[EgoTrack], forecaster: Forecaster | None, clips: ClipDataset, plans: Plans
) -> Iterator[UInt8[Array, "H W 3"]]:
    """The pictures that `draw` would draw of all samples in `clips`, as RGB pixels, one by one."""
    with counting("frames", len(clips.samples)) as tick:
        for row, (track, keyframe) in enumerate(clips.samples):
            yield scene_picture(_panel(source, tracks, forecaster, clips, plans, Sample(track, keyframe), row))
            tick(tracks[track].name)


def _panel(
    source: Source,
    tracks: Sequence[EgoTrack],
    forecaster: Forecaster | None,
    clips: ClipDataset,
    plans: Plans,
    sample: Sample,
    row: int,
    imagined: UInt8[Array, "H X Y Z"] | None = None,
) -> ScenePanel:
    track = tracks[sample.track]
    scene = source.scene(track.name)
    observation, target = window(source, scene, sample.keyframe, past=ClipSpec().past)
    shown = {name: made[observation.token] for name, made in plans.items() if observation.token in made}
    panel = ScenePanel(f"{track.name}, keyframe {sample.keyframe}", observation, target, scene.map, shown)
    return panel if forecaster is None else _with_occupancy(panel, forecaster, clips, row, imagined)


def _with_occupancy(
    panel: ScenePanel, forecaster: Forecaster, clips: ClipDataset, row: int, imagined: UInt8[Array, "H X Y Z"] | None
) -> ScenePanel:
    batch = clips.batch([row])
    assert batch.inputs.occupancy is not None
    assert batch.targets.occupancy is not None
    if imagined is None:
        imagined = forecaster.forecast(batch.inputs.to(device()), infer.HORIZON_STEPS)[0][0].numpy(force=True)
    real = torch.cat([batch.inputs.occupancy[:, -1:], batch.targets.occupancy], 1)[0].numpy()
    shown = tuple(real[list(infer.HORIZON_STEPS)]), tuple(imagined)
    return replace(panel, true_occupancy=shown[0], imagined=shown[1], spec=forecaster.tokenizer.config.grid)


def _telling(track: EgoTrack) -> int:
    paths = track.path.astype(np.float64)
    speed = np.linalg.norm(np.diff(track.global_T_ego[:, :3, 3], axis=0, prepend=track.global_T_ego[:1, :3, 3]), axis=1)
    straight = speed[:, None, None] * np.arange(1, FUTURE_STEPS + 1)[:, None] * np.array([0.0, 1.0])
    change = np.linalg.norm(paths - straight, axis=-1).mean(-1)
    return int(np.argmax(np.where(track.path_valid.all(1) & (np.arange(len(paths)) > ClipSpec().past), change, -1)))
