"""The content of the 3-D page of a sample: the truth, the world model's prediction, and the planner's candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, UInt8

from iidrive.core import geometry
from iidrive.core.batch import Batch
from iidrive.core.errors import ConfigError, DataError
from iidrive.core.lineage import joined
from iidrive.core.scene import FUTURE_STEPS, STEP_S, GridSpec, Scene
from iidrive.data.box_tracks import BoxTargets
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack, Frames, OccupancyFrames, read_tracks, scored_clips
from iidrive.data.source import Source
from iidrive.models.forecast import Forecaster
from iidrive.models.outcome_labels import collisions
from iidrive.models.planner import Agent
from iidrive.models.tokenizer import Tokenizer
from iidrive.pipeline import infer
from iidrive.pipeline.forecast_rows import frames_at, real_grids, true_frames
from iidrive.pipeline.load import LoadedAgent, LoadedForecaster, load_agent, load_forecaster
from iidrive.pipeline.pictures import film, telling
from iidrive.pipeline.testset import trained_here
from iidrive.pipeline.tokens import codes_before, codes_in_memory
from iidrive.report.view.live import SceneViews
from iidrive.report.view.page import Candidate, Panel, View
from iidrive.runtime.run_folder import device
from iidrive.scoring.driving.tracking import DT_S, reference
from iidrive.scoring.predictions import Predictions
from iidrive.training.checkpoint import Checkpoint

Array = np.ndarray

STEPS = tuple(range(FUTURE_STEPS + 1))
VIEW_GRID = GridSpec((80, 80, 8), (-32.0, -32.0, -1.0), 0.8)
"""The grid on which predictions files, which have no occupancy, are shown."""

MORE_THAN_FIT = 2**40
"""A number of keyframes larger than memory, which makes OccupancyFrames read frame by frame instead of scene by scene."""


@dataclass(frozen=True)
class Sample:
    """A sample with a full future: its scene, track, keyframe index, and batch of size one with boxes."""

    scene: Scene
    track: EgoTrack
    keyframe: int
    batch: Batch

    @property
    def token(self) -> str:
        """The sample token."""
        return self.track.tokens[self.keyframe]


def view_of_subject(
    found: Checkpoint | Predictions, source: Source, name: str, keyframe: int | None = None, ii: bool = True, marks: tuple[str, ...] = ()
) -> View:
    """A view of a sample of scene `name` with plan and prediction. Default `keyframe`: the one whose next 3 s differ most from driving straight.

    The view shows `marks`, the checkpoint's own marks, and a mark if the model was trained on this scene.

    Raises:
        ConfigError: for other kinds of checkpoints, or a keyframe without a full future.
        DataError: if the predictions do not contain the sample.
    """
    if isinstance(found, Predictions):
        return replace(view_of_predictions(found, source, name, keyframe), marks=marks)
    loaded = _loaded(found)
    own = joined(loaded.manifest.marks, trained_here(loaded.manifest, source, [name]), marks)
    return replace(view_of(loaded.model, source, name, keyframe, ii), marks=own)


def view_of(
    model: Agent | Forecaster, source: Source, name: str, keyframe: int | None = None, ii: bool = True, codes: Frames | None = None
) -> View:
    """A view of a sample with the plan and prediction of a loaded model. `codes`: those of the scene, if they are known already.

    Raises:
        ConfigError: for a keyframe without a full future.
    """
    agent = model if isinstance(model, Agent) else None
    forecaster = model.forecaster if isinstance(model, Agent) else model
    tokenizer = forecaster.tokenizer
    sample = _sample(source, name, keyframe, tokenizer.config.grid, tokenizer, codes)
    view = replace(_true(sample, tokenizer.config.grid), imagined=_imagined(forecaster, sample.batch))
    return view if agent is None else _with_choice(view, agent, sample, ii)


def views_of_subject(
    found: Checkpoint | Predictions, source: Source, name: str, ii: bool = True, marks: tuple[str, ...] = ()
) -> SceneViews:
    """Every sample of a scene as `view_of_subject` shows it, each made when it is asked for. The model is loaded and the scene encoded once.

    Raises:
        ConfigError: for other kinds of checkpoints, and for a scene without any full future. DataError: if no path of predictions belongs to it.
    """
    (track,) = read_tracks(source, [name])
    whole = tuple(np.flatnonzero(track.path_valid.all(1)).tolist())
    if not whole:
        raise ConfigError(f"{name}: no keyframe has a full future of {FUTURE_STEPS * STEP_S:g} s; view another scene.")
    if isinstance(found, Predictions):
        planned = set(found.token or ())
        whole = tuple(keyframe for keyframe in whole if track.tokens[keyframe] in planned)
        if not whole:
            raise DataError(f"{found.where}: no path belongs to a sample of {name} with a full future.")
    telling_one = telling([track])[0].keyframe
    first = telling_one if telling_one in whole else whole[0]
    if isinstance(found, Predictions):
        return SceneViews(name, whole, first, lambda keyframe: replace(view_of_predictions(found, source, name, keyframe), marks=marks))
    loaded = _loaded(found)
    model = loaded.model
    own = joined(loaded.manifest.marks, trained_here(loaded.manifest, source, [name]), marks)
    tokenizer = (model.forecaster if isinstance(model, Agent) else model).tokenizer
    codes = codes_in_memory(tokenizer, source, [track])
    return SceneViews(name, whole, first, lambda keyframe: replace(view_of(model, source, name, keyframe, ii, codes), marks=own))


def view_of_predictions(found: Predictions, source: Source, name: str, keyframe: int | None = None) -> View:
    """A view of a sample with the planned path of a predictions file.

    Raises:
        ConfigError: for a keyframe without a full future.
        DataError: if the predictions do not contain the sample.
    """
    sample = _sample(source, name, keyframe, VIEW_GRID)
    rows = {token: row for row, token in enumerate(found.token or ())}
    if sample.token not in rows:
        raise DataError(
            f"{found.where}: no path of sample {sample.token} ({name}, keyframe {sample.keyframe}); name another with --keyframe."
        )
    plan = torch.from_numpy(found.trajectory[rows[sample.token]]).float()[None, None]
    met = int(collisions(plan, sample.batch.targets, sample.batch.inputs.ego_T_lidar).sum())
    points = _in_ego_frame(plan[0, 0].numpy(), sample)
    one = Candidate(found.where, points, float(met > 0), (str(met),))
    return replace(_true(sample, VIEW_GRID), candidates=(one,), headings=("path", "steps with a box"), chosen=0)


def film_of_subject(found: Checkpoint | Predictions, source: Source, name: str, ii: bool = True) -> Iterator[UInt8[Array, "H W 3"]]:
    """Bird's-eye pictures of all samples of a scene, with plan and prediction.

    Raises:
        ConfigError: for kinds of checkpoints that `view_of_subject` does not accept.
        DataError: if the predictions contain no sample of the scene.
    """
    tracks = read_tracks(source, [name])
    if isinstance(found, Predictions):
        paths = dict(zip(found.token or (), found.trajectory, strict=True))
        if not any(token in paths for token in tracks[0].tokens):
            raise DataError(f"{found.where}: no path belongs to a sample of {name}.")
        return film(source, tracks, None, scored_clips(tracks), {found.where: paths})
    model = _loaded(found).model
    forecaster = model.forecaster if isinstance(model, Agent) else model
    clips = scored_clips(tracks, codes_in_memory(forecaster.tokenizer, source, tracks), source, forecaster.tokenizer.config.grid)
    plans: dict[str, dict[str, Array]] = {}
    if isinstance(model, Agent):
        tokens, paths = infer.plans(partial(model.plan, ii=ii), clips.without_occupancy())
        plans[f"planner, ii {'on' if ii else 'off'}"] = dict(zip(tokens, paths, strict=True))
    return film(source, tracks, forecaster, clips, plans)


def _loaded(found: Checkpoint) -> LoadedAgent | LoadedForecaster:
    kind = found.manifest.kind
    if kind not in ("planner", "world"):
        raise ConfigError(f"{found.path} is a {kind}, which imagines nothing. View a planner, a world model, or predictions.")
    return load_agent(found) if kind == "planner" else load_forecaster(found)


def _sample(
    source: Source, name: str, keyframe: int | None, grid: GridSpec, tokenizer: Tokenizer | None = None, codes: Frames | None = None
) -> Sample:
    """One sample, with codes if a `tokenizer` is given. Only the frames that it needs are read, and encoded unless their `codes` are given."""
    (track,) = read_tracks(source, [name])
    index = telling([track])[0].keyframe if keyframe is None else keyframe
    whole = np.flatnonzero(track.path_valid.all(1))
    if index not in whole:
        raise ConfigError(f"{track.name}: keyframe {index} has no full future; those that have one are 0 to {whole.max(initial=-1)}.")
    scene, spec = source.scene(name), ClipSpec()
    if codes is None and tokenizer is not None:
        codes = codes_before(tokenizer, source, scene, index, spec.past)
    frames = OccupancyFrames(source, grid, MORE_THAN_FIT)
    clips = ClipDataset([track], spec, frames, codes, future=True, labels=BoxTargets(source))
    return Sample(scene, track, index, clips.batch([clips.samples.index((0, index))]).to(device()))


def _true(sample: Sample, grid: GridSpec) -> View:
    frames = true_frames(sample.batch, STEPS)[0]
    here = geometry.invert(sample.scene.keyframes[sample.keyframe].global_T_ego.matrix)
    boxes = []
    for step in STEPS:
        found = sample.scene.keyframes[sample.keyframe + step].boxes
        yaw = geometry.wrap_angle(found.yaw_rad + np.arctan2(here[1, 0], here[0, 0]))
        centre = geometry.apply(here, found.centre_m)
        around = geometry.apply(geometry.invert(frames[step]), centre)[:, :2]
        held = np.all(
            (around >= grid.lower_m[:2]) & (around <= grid.upper_m[:2]), axis=1
        )  # boxes outside the grid would have no ground below them
        boxes.append(np.concatenate([centre, found.size_m, yaw[:, None]], 1).reshape(-1, 7)[held])
    command = sample.scene.keyframes[sample.keyframe].command
    facts = [("scene", sample.track.name), ("keyframe", str(sample.keyframe)), ("token", sample.token)]
    facts.append(("command", f"{command.manoeuvre} ({command.source})"))
    true = Panel(real_grids(sample.batch, STEPS)[0], frames, _poses(frames))
    path = _in_ego_frame(sample.track.path[sample.keyframe], sample)
    lead = "0 to 3 s ahead, seen from the present"
    seconds = [step * STEP_S for step in STEPS]
    return View(f"{sample.track.name}, keyframe {sample.keyframe}", lead, grid, seconds, true, boxes, path_m=path, facts=facts)


def _imagined(forecaster: Forecaster, batch: Batch) -> Panel:
    labels, imagined = forecaster.forecast(batch.inputs, STEPS)
    frames = frames_at(imagined.now_T_frame, STEPS)[0]
    return Panel(labels[0].numpy(force=True), frames, _poses(frames))


def _with_choice(view: View, agent: Agent, sample: Sample, ii: bool) -> View:
    """Add the planner's candidates, or its only plan, to a view, and move the ego of the imagined panel along the chosen one."""
    inputs, state = sample.batch.inputs, "on" if ii else "off"
    facts = [*view.facts, ("ii", state)]
    if not agent.planner.config.accelerations:
        plan = agent.plan(inputs, ii).numpy(force=True)[0]
        one = Candidate("plan", _in_ego_frame(plan, sample), 0.0)
        return replace(view, candidates=(one,), headings=("path",), chosen=0, facts=facts)
    choice = agent.choice(inputs, ii)
    risk = choice.outcomes.collision.sigmoid()[0].numpy(force=True)
    taken = choice.outcomes.overlap[0].tolist()
    met = collisions(choice.candidates, sample.batch.targets, inputs.ego_T_lidar)[0].sum(-1).tolist()
    cost, chosen = choice.cost_m[0].tolist(), int(choice.cost_m[0].argmin())
    paths = choice.candidates[0].numpy(force=True)
    order = np.argsort(agent.planner.config.accelerations, kind="stable").tolist()
    made = [
        Candidate(
            _speed(value),
            _in_ego_frame(path, sample),
            min(max(float(p.max()), overlap), 1.0),
            (f"{p.sum():.2f}", f"{overlap:.2f}", str(hits), f"{metres:.1f}"),
        )
        for value, path, p, overlap, hits, metres in zip(agent.planner.config.accelerations, paths, risk, taken, met, cost, strict=True)
    ]
    assert view.imagined is not None
    imagined = replace(view.imagined, ego=_driven(paths[chosen], sample))
    candidates, headings = [made[k] for k in order], ("m/s²", "expected", "taken", "met", "cost, m")
    return replace(view, imagined=imagined, candidates=candidates, headings=headings, chosen=order.index(chosen), note=_NOTE, facts=facts)


_NOTE = (
    "Candidates follow the proposed path at different speeds. They are drawn side by side, the slowest on the left, with a mark at the position at "
    "the time shown. Expected: predicted number of steps with a collision. Taken: steps whose footprint is occupied in the scene that the planner "
    "uses. Met: steps with a true collision. Green: predicted free; red: predicted collision. The wide one was chosen, because it costs least. "
    "Dashed: the true path."
)


def _speed(acceleration_mps2: float) -> str:
    return "as proposed" if acceleration_mps2 == 0 else f"{acceleration_mps2:+g}"


def _poses(frames: Float[Array, "S 4 4"]) -> Float[Array, "S 3"]:
    return np.stack([frames[:, 0, 3], frames[:, 1, 3], np.arctan2(frames[:, 1, 0], frames[:, 0, 0])], 1)


def _driven(plan: Float[Array, "6 2"], sample: Sample) -> Float[Array, "S 3"]:
    """x, y, yaw of the rear axle at every step when LIDAR_TOP follows a plan, current ego frame."""
    lever = float(sample.track.ego_T_lidar[sample.keyframe][0, 3])
    told = reference(plan[None].astype(np.float64), lever)
    every: Sequence[int] = [round(step * STEP_S / DT_S) for step in STEPS]
    return np.concatenate([told.xy_m[0, every], told.yaw_rad[0, every, None]], 1)


def _in_ego_frame(path: Float[Array, "6 2"], sample: Sample) -> Float[Array, "7 2"]:
    """Positions of LIDAR_TOP transformed from the lidar frame to the ego frame, preceded by its current position."""
    points = np.concatenate([np.zeros((1, 3)), np.concatenate([path, np.zeros((len(path), 1))], 1)])
    return geometry.apply(sample.track.ego_T_lidar[sample.keyframe].astype(np.float64), points)[:, :2]
