"""Assess planners and world models on a split: plans → predictions file → reference table; roll-outs → forecast table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from iidrive import evaluate, stages
from iidrive.configs import from_plain
from iidrive.data.loader import Windows
from iidrive.data.source import Source
from iidrive.data.town import TownConfig
from iidrive.eval import score as scoring
from iidrive.eval.cases import Cases, Predictions, align, write_predictions
from iidrive.eval.score import Scores
from iidrive.recipes import Recipe
from iidrive.runs import Run
from iidrive.scene import Seen
from iidrive.train import checkpoint
from iidrive.train.checkpoint import Manifest

Array = np.ndarray
Plan = Callable[[Seen], Tensor]

COMMANDS = {"route": "route (known at the time)", "oracle": "oracle (derived from the true future)"}


@dataclass(frozen=True)
class Assessment:
    """What is printed, and the same as plain values (`scores` has the layout of `iidrive score`'s JSON, plus `about` and `forecast`)."""

    text: str
    scores: dict[str, Any]


def about_line(source: Source, split: str, extra: Mapping[str, object] | None = None) -> str:
    """What stands beside every table: data, split, which occupancy, whose command."""
    parts = {
        "data": f"{source.name} {split}",
        "occupancy": source.occupancy_source,
        "command": COMMANDS[source.command_source],
        **(extra or {}),
    }
    return " · ".join(f"{k}: {v}" for k, v in parts.items())


def plan_and_score(
    name: str, plan: Plan, cases: Cases, windows: Windows, run: Run, about: Mapping[str, object], heading: str
) -> tuple[Scores, dict[str, Float[Array, "6 2"]]]:
    """Plan every sample with a full future, write `predictions-NAME.npz` and its table, and score: (scores, path by token)."""
    tokens, paths = evaluate.plans(plan, windows)
    write_predictions(run.folder / f"predictions-{name}.npz", tokens, paths, dict(about))
    scores = scoring.score(cases, align(cases, Predictions(paths, tokens, {}, name)))
    run.write_text(f"table-{name}.txt", f"{heading}\n{scoring.format_scores(scores)}\n")
    return scores, dict(zip(tokens, paths, strict=True))


def assess(planner: str, source: Source, split: str, train_split: str, recipe: Recipe, run: Run, test_ii: bool) -> Assessment:
    """Evaluate a baseline by name, or a checkpoint: planners by the reference table, world models and planners by the forecast table.

    Raises:
        ConfigError: for an unknown planner name. CheckpointError, LineageError: for checkpoints that do not fit.
    """
    tracks = stages.tracks_of(source, split)
    about: dict[str, Any] = {"planner": planner, "split": split, "occupancy": source.occupancy_source, "command": source.command_source}
    if planner in stages.BASELINES:
        plan = stages.planner_named(planner, recipe, source, train_split, run)
        return _planned(planner, plan, stages.scored_windows(tracks), source, split, run, about, "")
    manifest = checkpoint.read_manifest(planner)
    about |= {"fingerprint": manifest.fingerprint, "parents": [vars(p) for p in manifest.parents], "trained on": trained_on(manifest)}
    if manifest.kind == "ego-mlp":
        return _planned("ego-mlp", stages.load_ego_mlp(planner).plan, stages.scored_windows(tracks), source, split, run, about, "")
    if manifest.kind == "tokenizer":
        return _reconstructed(planner, source, split, run, about)
    driver = stages.load_driver(planner)[0] if manifest.kind == "planner" else None
    forecaster = driver.forecaster if driver else stages.load_forecaster(planner)[0]
    tokenizer_path = stages.locate(manifest, "tokenizer", planner)
    with counting("tokens", len(tracks)) as tick:
        folder = stages.tokens_folder(run.folder, tokenizer_path, source)
        cache = stages.write_tokens(tokenizer_path, source, source.scene_names(split), folder, tick)
    spec = forecaster.tokenizer.config.grid
    forecast = evaluate.forecasts(forecaster, stages.scored_windows(tracks, cache, source, spec), spec)
    text = f"{about_line(source, split)}\n{forecast.table()}\n({forecast.samples} samples)"
    run.write_text("forecast.txt", text + "\n")
    if driver is None:
        return _written(run, Assessment(text, {"forecast": forecast.to_json(), "about": about}))
    about |= {"train_ii": "on" if driver.train_ii else "off", "test_ii": "on" if test_ii else "off"}
    note = ii_note(driver.train_ii, test_ii)
    windows = stages.scored_windows(tracks, cache)
    result = _planned("planner", partial(driver.plan, ii=test_ii), windows, source, split, run, about, note)
    return _written(run, Assessment(f"{text}\n\n{result.text}", {**result.scores, "forecast": forecast.to_json()}))


def trained_on(manifest: Manifest) -> str:
    """Data, split, occupancy and command of a checkpoint's training."""
    data = manifest.data
    return f"{data.get('name')} {data.get('split')}, occupancy {data.get('occupancy')}, command {data.get('command')}"


def ii_note(train_ii: bool, test_ii: bool) -> str:
    """What a combination of train-ii and test-ii means, where it needs saying."""
    if test_ii and not train_ii:
        return "note: the ii branch was never trained; it changes nothing, so this equals ii off."
    return ""


def _planned(name: str, plan: Plan, windows: Windows, source: Source, split: str, run: Run, about: dict[str, Any], note: str) -> Assessment:
    extra = {k: about[k] for k in ("planner", "train_ii", "test_ii", "trained on") if k in about}
    heading = about_line(source, split, extra)
    scores, _ = plan_and_score(name, plan, evaluate.truth(source, split), windows, run, about, heading)
    text = f"{heading}\n{scoring.format_scores(scores)}" + (f"\n{note}" if note else "")
    text += f"\npredictions: {run.folder / f'predictions-{name}.npz'}"
    return _written(run, Assessment(text, {**scoring.to_json(scores), "about": about}))


def _reconstructed(path: str, source: Source, split: str, run: Run, about: dict[str, Any]) -> Assessment:
    tokenizer, _ = stages.load_tokenizer(path)
    names = source.scene_names(split)
    with counting("tokens", len(names)) as tick:
        cache = stages.write_tokens(path, source, names, stages.tokens_folder(run.folder, path, source), tick)
    value = stages.reconstruction_miou(tokenizer, cache, source, stages.tracks_of(source, split))
    text = f"{about_line(source, split)}\nreconstruction mIoU {100 * value:.2f} %"
    run.write_text("reconstruction.txt", text + "\n")
    return _written(run, Assessment(text, {"reconstruction": {"mIoU": value}, "about": about}))


def _written(run: Run, result: Assessment) -> Assessment:
    run.write_json("scores.json", result.scores)
    return result


def town_of(manifest: Manifest, default: TownConfig) -> TownConfig:
    """The towns that a checkpoint was trained among."""
    plain = manifest.about.get("town")
    return from_plain(TownConfig, plain, "the checkpoint's towns") if plain else default


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar over named things, on standard error."""
    named = TextColumn("{task.fields[name]}")
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(compact=True), named)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, name="")
        yield lambda name: bar.update(task, advance=1, name=name)
