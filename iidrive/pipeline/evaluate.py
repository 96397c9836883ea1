"""Evaluate planners, world models and tokenizers on a split.

    planner:     plans → predictions file → reference table
    world model: rollouts → forecast table
    tokenizer:   codes → reconstruction mIoU

There is one function per kind of model. Each returns the printed text and the same results as plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from iidrive.core.batch import Inputs
from iidrive.core.errors import ConfigError
from iidrive.core.lineage import Lineage, joined, mark_lines, mark_numbers
from iidrive.data.clips import ClipDataset, OccupancyFrames, keyframes, scored_clips
from iidrive.data.tokens import TokenCache
from iidrive.models.forecast import Forecaster
from iidrive.models.tokenizer import Tokenizer
from iidrive.pipeline import infer
from iidrive.pipeline.arms import TestII, chooser, marks_of, require_candidates, uses_future
from iidrive.pipeline.baselines import BASELINES, baseline
from iidrive.pipeline.choices import choices
from iidrive.pipeline.load import load_agent, load_ego_mlp, load_forecaster, load_tokenizer
from iidrive.pipeline.pdm import pdm
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.testset import TestSet, about_line, trained_on
from iidrive.scoring import metrics
from iidrive.scoring import score as scoring
from iidrive.scoring.forecast import ForecastScores
from iidrive.scoring.predictions import Predictions, align, write_predictions
from iidrive.scoring.sampled import rows_beside
from iidrive.scoring.score import Scores
from iidrive.scoring.tables import format_scores
from iidrive.training import checkpoint
from iidrive.training.checkpoint import Checkpoint

Array = np.ndarray
Plan = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Shown:
    """Results for the HTML page.

    `clips`: the evaluated samples. `planned`, `plans`: a planner's scores and its paths by token. `forecast`, `forecaster`: a world model's
    scores and the model. `failures`: token → why a planner with candidates collides.
    """

    clips: ClipDataset
    planned: Scores | None = None
    plans: Mapping[str, Float[Array, "6 2"]] = field(default_factory=dict)
    forecast: ForecastScores | None = None
    forecaster: Forecaster | None = None
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Assessment:
    """The printed text, and the results as plain values. `scores` has the layout of `iidrive score`'s JSON, plus `about` and `forecast`."""

    text: str
    scores: dict[str, Any]
    shown: Shown | None = None


@dataclass(frozen=True)
class Use:
    """How to evaluate a checkpoint.

    `test_ii`: the future that the planner uses (see arms.py). `explain`: whether to write its choices for every sample. `world`, `tokenizer`: other
    stages to use; "": its own. `allow`: whether mismatched stages are allowed.
    """

    test_ii: TestII = "off"
    explain: bool = False
    world: str = ""
    tokenizer: str = ""
    allow: bool = False


@dataclass(frozen=True)
class Result:
    """The result of evaluating one model: text, values, a description, and the lineage."""

    text: str
    numbers: dict[str, Any]
    about: dict[str, Any]
    lineage: Lineage
    shown: Shown | None = None


def evaluate(planner: str | Checkpoint, on: TestSet, recipe: Recipe, train_split: str, use: Use | None = None) -> Assessment:
    """Evaluate a baseline by name, or a checkpoint. The ego-status MLP is trained with `recipe` on `train_split`.

    With `use.allow`, mismatched stages are used, and all output is marked.

    Raises:
        ConfigError: for an unknown planner name.
        CheckpointError: for a missing or damaged checkpoint.
        LineageError: for mismatched stages.
    """
    use = use or Use()
    if isinstance(planner, str) and planner in BASELINES:
        made = baseline(planner, recipe, on.source, train_split, on.run)
        return _written(on, _planned(planner, made.plan, scored_clips(on.tracks), on, {"planner": planner}, made.lineage))
    found = checkpoint.read(planner)
    kind = found.manifest.kind
    if (use.world and kind != "planner") or (use.tokenizer and kind not in ("planner", "world")):
        raise ConfigError(f"{found.path} is a {kind}: --world is for planners, --tokenizer for planners and world models.")
    if kind not in EVALUATORS:
        raise ConfigError(f"{found.path} is a {kind} model, which cannot be evaluated alone; expected one of {', '.join(EVALUATORS)}.")
    return _written(on, EVALUATORS[kind](found, on, use))


def evaluate_planner(found: Checkpoint, on: TestSet, use: Use) -> Result:
    """Evaluate a planner: the forecast table of its world model, then its own reference table."""
    loaded = load_agent(found, use.world or None, use.tokenizer or None, use.allow)
    agent, lineage = loaded.model, on.judged(loaded.checkpoint)
    lineage = replace(lineage, marks=joined(lineage.marks, marks_of(use.test_ii)))
    switches = {"train_ii": "on" if agent.train_ii else "off", "test_ii": use.test_ii}
    about = {"planner": str(found.path), "trained on": trained_on(loaded.manifest), **switches}
    cache = on.tokens(loaded.world.tokenizer)
    clips = scored_clips(on.tracks, cache, on.source, agent.forecaster.tokenizer.config.grid)
    require_candidates(agent, use.test_ii)
    choose = chooser(agent, use.test_ii, clips, on.source) if agent.planner.config.accelerations else None
    text, forecast = _forecast(agent.forecaster, clips, on, on.judged(loaded.checkpoint))
    numbers: dict[str, Any] = {"forecast": forecast.to_json()}
    failures: dict[str, str] = {}
    if choose is not None:
        untrained = "the outcome head was trained only with the current scene; it treats the imagined scene as if it were the current one."
        made = choices(choose, agent.planner.config.accelerations, clips, on.source, on.run.process_group)
        planned = _scored(Predictions(made.paths, made.tokens, where="planner"), clips, on, about, lineage)
        numbers = {**numbers, "choices": made.to_json()}
        planned, failures = replace(planned, text=f"{planned.text}\n{made.text()}"), made.failures()
        if use.explain:
            on.run.write_text("choices.jsonl", made.lines())
            planned = replace(planned, text=f"{planned.text}\nchoices: {on.run.folder / 'choices.jsonl'}")
    else:
        untrained = "the ii branch was never trained and has no effect, so this equals ii off."
        plan = partial(agent.plan, ii=uses_future(use.test_ii))
        planned = _planned("planner", plan, clips.without_occupancy(), on, about, lineage)
    note = "" if agent.train_ii or not uses_future(use.test_ii) else f"\nnote: {untrained}"
    assert planned.shown is not None
    shown = replace(planned.shown, clips=clips, forecast=forecast, forecaster=agent.forecaster, failures=failures)
    return replace(planned, text=f"{text}\n\n{planned.text}{note}", numbers={**planned.numbers, **numbers}, shown=shown)


def evaluate_world(found: Checkpoint, on: TestSet, use: Use) -> Result:
    """Evaluate a world model: the forecast table."""
    loaded = load_forecaster(found, use.tokenizer or None, use.allow)
    clips = scored_clips(on.tracks, on.tokens(loaded.tokenizer), on.source, loaded.model.tokenizer.config.grid)
    lineage = on.judged(loaded.checkpoint)
    text, forecast = _forecast(loaded.model, clips, on, lineage)
    about = {"planner": str(found.path), "trained on": trained_on(loaded.manifest)}
    shown = Shown(clips, forecast=forecast, forecaster=loaded.model)
    return Result(text, {"forecast": forecast.to_json()}, about, lineage, shown)


def evaluate_tokenizer(found: Checkpoint, on: TestSet, use: Use) -> Result:
    """Evaluate a tokenizer: reconstruction mIoU over all keyframes."""
    loaded = load_tokenizer(found)
    value = reconstruction_miou(loaded.model, on.tokens(loaded), on)
    lineage = on.judged(found)
    text = f"{mark_lines(lineage.marks)}{about_line(on.source, on.split)}\nreconstruction mIoU {100 * value:.2f} %"
    on.run.write_text("reconstruction.txt", text + "\n")
    about = {"planner": str(found.path), "trained on": trained_on(found.manifest)}
    return Result(text, {"reconstruction": {"mIoU": value}}, about, lineage)


def evaluate_ego_mlp(found: Checkpoint, on: TestSet, use: Use) -> Result:
    """Evaluate a trained ego-status MLP: the reference table."""
    about = {"planner": str(found.path), "trained on": trained_on(found.manifest)}
    return _planned("ego-mlp", load_ego_mlp(found).plan, scored_clips(on.tracks), on, about, on.judged(found))


EVALUATORS: dict[str, Callable[[Checkpoint, TestSet, Use], Result]] = {
    "planner": evaluate_planner,
    "world": evaluate_world,
    "tokenizer": evaluate_tokenizer,
    "ego-mlp": evaluate_ego_mlp,
}
"""Evaluation function by kind of checkpoint."""


def plan_and_score(
    name: str, plan: Plan, clips: ClipDataset, on: TestSet, about: Mapping[str, object], heading: str, lineage: Lineage
) -> tuple[Scores, dict[str, Float[Array, "6 2"]]]:
    """Plan every sample with a full future and score the plans: (scores, path by token).

    Writes `predictions-NAME.npz`, `table-NAME.txt`, and `rows-NAME.npz` with the per-sample scores that `iidrive compare` reads.
    """
    return score_plans(_plan_all(name, plan, clips, on), on, about, heading, lineage)


def score_plans(
    planned: Predictions, on: TestSet, about: Mapping[str, object], heading: str, lineage: Lineage
) -> tuple[Scores, dict[str, Float[Array, "6 2"]]]:
    """Like `plan_and_score`, for plans that exist already, with sample tokens. NAME is their `where`."""
    run, cases, name, paths = on.run, on.cases, planned.where, planned.trajectory
    assert planned.token is not None
    made = {**about, "lineage": lineage.child("predictions").to_plain()}
    predictions = run.folder / f"predictions-{name}.npz"
    if run.process_group.is_rank_zero:
        write_predictions(predictions, planned.token, paths, made)
    scores = scoring.score(cases, align(cases, planned))
    if run.process_group.is_rank_zero:
        scoring.write_per_sample(rows_beside(predictions), scores, scene=cases.scene, of=predictions, marks=lineage.marks)
    run.write_text(f"table-{name}.txt", f"{mark_lines(lineage.marks)}{heading}\n{format_scores(scores)}\n")
    return scores, dict(zip(planned.token, paths, strict=True))


def reconstruction_miou(tokenizer: Tokenizer, cache: TokenCache, on: TestSet, counted: ForecastScores | None = None) -> float:
    """mIoU of all keyframes decoded from their tokens, 0..1.

    `counted`: the forecast of the same tokens, which has decoded and counted the keyframes with a full future already.
    """
    occupancy = OccupancyFrames(on.source, tokenizer.config.grid, keyframes(on.tracks))
    left = [(track.name, np.flatnonzero(~track.path_valid.all(1) | (counted is None))) for track in on.tracks]
    found = infer.reconstruction(tokenizer, cache, occupancy, (one for one in left if len(one[1])))
    return metrics.miou(found if counted is None else found + counted.present)


def _forecast(forecaster: Forecaster, clips: ClipDataset, on: TestSet, lineage: Lineage) -> tuple[str, ForecastScores]:
    """The forecast table as text, which is also written to the run, and the scores."""
    scores = infer.forecasts(forecaster, clips, forecaster.tokenizer.config.grid, on.run.process_group, source=on.source)
    text = f"{mark_lines(lineage.marks)}{about_line(on.source, on.split)}\n{scores.table()}\n({scores.samples} samples)"
    on.run.write_text("forecast.txt", text + "\n")
    return text, scores


def _planned(name: str, plan: Plan, clips: ClipDataset, on: TestSet, about: dict[str, Any], lineage: Lineage) -> Result:
    return _scored(_plan_all(name, plan, clips, on), clips, on, about, lineage)


def _plan_all(name: str, plan: Plan, clips: ClipDataset, on: TestSet) -> Predictions:
    tokens, paths = infer.plans(plan, clips, on.run.process_group)
    return Predictions(paths, tokens, where=name)


def _scored(planned: Predictions, clips: ClipDataset, on: TestSet, about: dict[str, Any], lineage: Lineage) -> Result:
    about = {"planner": about["planner"], **on.about, **about}
    heading = about_line(on.source, on.split, {k: about[k] for k in ("planner", "train_ii", "test_ii", "trained on") if k in about})
    scores, plans = score_plans(planned, on, about, heading, lineage)
    numbers = scoring.to_json(scores)
    text = f"{mark_lines(lineage.marks)}{heading}\n{format_scores(scores)}"
    if on.pdm:
        driven = pdm(planned.where, on.source, on.tracks, plans, on.run.process_group)
        text, numbers = f"{text}\n\n{driven.text()}", {**numbers, "pdm": driven.to_json()}
    text += f"\npredictions: {on.run.folder / f'predictions-{planned.where}.npz'}\nlineage: {lineage}"
    return Result(text, numbers, about, lineage, Shown(clips, scores, plans))


def _written(on: TestSet, result: Result) -> Assessment:
    about = {"planner": result.about["planner"], **on.about, **result.about, "lineage": result.lineage.child("scores").to_plain()}
    scores = {**mark_numbers(result.numbers, result.lineage.marks), "about": about}
    on.run.write_json("scores.json", scores)
    return Assessment(result.text, scores, result.shown)
