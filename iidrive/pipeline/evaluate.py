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

from iidrive.core.config_io import from_plain
from iidrive.core.errors import ConfigError
from iidrive.core.lineage import Lineage, mark_lines, mark_numbers
from iidrive.core.scene import Inputs
from iidrive.data.clips import ClipDataset
from iidrive.data.source import Source
from iidrive.data.town.source import TownConfig
from iidrive.pipeline import infer, stages
from iidrive.pipeline.recipes import Recipe
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.run_folder import Run
from iidrive.scoring import score as scoring
from iidrive.scoring.cases import Cases, Predictions, align, write_predictions
from iidrive.scoring.sampled import rows_beside
from iidrive.scoring.score import Scores
from iidrive.training import checkpoint
from iidrive.training.checkpoint import Manifest

Array = np.ndarray
Plan = Callable[[Inputs], Tensor]

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
    name: str, plan: Plan, cases: Cases, clips: ClipDataset, run: Run, about: Mapping[str, object], heading: str, lineage: Lineage
) -> tuple[Scores, dict[str, Float[Array, "6 2"]]]:
    """Plan every sample with a full future and score: (scores, path by token).

    Writes `predictions-NAME.npz`, its table, and `rows-NAME.npz`, the scores sample by sample that `iidrive compare` reads.
    """
    tokens, paths = infer.plans(plan, clips, run.process_group)
    made = {**about, "lineage": lineage.child("predictions").to_plain()}
    predictions = run.folder / f"predictions-{name}.npz"
    if run.process_group.is_rank_zero:
        write_predictions(predictions, tokens, paths, made)
    scores = scoring.score(cases, align(cases, Predictions(paths, tokens, {}, name)))
    if run.process_group.is_rank_zero:
        scoring.write_per_sample(rows_beside(predictions), scores, scene=cases.scene, of=predictions, marks=lineage.marks)
    run.write_text(f"table-{name}.txt", f"{mark_lines(lineage.marks)}{heading}\n{scoring.format_scores(scores)}\n")
    return scores, dict(zip(tokens, paths, strict=True))


def assess(
    planner: str,
    source: Source,
    split: str,
    train_split: str,
    recipe: Recipe,
    run: Run,
    test_ii: bool,
    world: str = "",
    tokenizer: str = "",
    allow: bool = False,
) -> Assessment:
    """Evaluate a baseline by name, or a checkpoint: planners by the reference table, world models and planners by the forecast table.

    `world` and `tokenizer` take the place of the models that a checkpoint names, where they are the same ones; with `allow`, others too, and
    everything that is printed or written is marked.

    Raises:
        ConfigError: for an unknown planner name. CheckpointError, LineageError: for checkpoints that do not fit.
    """
    tracks = stages.tracks_of(source, split)
    about: dict[str, Any] = {"planner": planner, "split": split, "occupancy": source.occupancy_source, "command": source.command_source}
    if planner in stages.BASELINES:
        plan = stages.planner_named(planner, recipe, source, train_split, run)
        lineage = stages.lineage_of_baseline(planner, run)
        return _planned(planner, plan, stages.scored_clips(tracks), source, split, run, about, lineage, "")
    manifest = checkpoint.read_manifest(planner)
    if (world and manifest.kind != "planner") or (tokenizer and manifest.kind not in ("planner", "world")):
        raise ConfigError(f"{planner} is a {manifest.kind}: --world is for planners, --tokenizer for planners and world models.")
    about["trained on"] = trained_on(manifest)
    if manifest.kind == "ego-mlp":
        plan = stages.load_ego_mlp(planner).plan
        return _planned("ego-mlp", plan, stages.scored_clips(tracks), source, split, run, about, manifest.lineage(planner), "")
    if manifest.kind == "tokenizer":
        return _reconstructed(planner, source, split, run, about)
    agent = None
    if manifest.kind == "planner":
        agent, manifest = stages.load_agent(planner, world or None, tokenizer or None, allow)
        forecaster = agent.forecaster
    else:
        forecaster, manifest = stages.load_forecaster(planner, tokenizer or None, allow)
    lineage, tokenizer = manifest.lineage(planner), manifest.parent("tokenizer").path
    with counting("tokens", len(tracks), run.process_group) as tick:
        folder = stages.tokens_folder(run.folder, tokenizer, source)
        cache = stages.write_tokens(tokenizer, source, source.scene_names(split), folder, tick, process_group=run.process_group)
    spec = forecaster.tokenizer.config.grid
    forecast = infer.forecasts(forecaster, stages.scored_clips(tracks, cache, source, spec), spec, run.process_group, source=source)
    text = f"{mark_lines(lineage.marks)}{about_line(source, split)}\n{forecast.table()}\n({forecast.samples} samples)"
    run.write_text("forecast.txt", text + "\n")
    if agent is None:
        return _written(run, text, {"forecast": forecast.to_json()}, about, lineage)
    about |= {"train_ii": "on" if agent.train_ii else "off", "test_ii": "on" if test_ii else "off"}
    note = ii_note(agent.train_ii, test_ii)
    clips = stages.scored_clips(tracks, cache)
    result = _planned("planner", partial(agent.plan, ii=test_ii), clips, source, split, run, about, lineage, note)
    numbers = {k: v for k, v in result.scores.items() if k not in ("about", "marks")}
    return _written(run, f"{text}\n\n{result.text}", {**numbers, "forecast": forecast.to_json()}, about, lineage)


def trained_on(manifest: Manifest) -> str:
    """Data, split, occupancy and command of a checkpoint's training."""
    data = manifest.data
    return f"{data.get('name', data.get('source'))} {data.get('split')}, occupancy {data.get('occupancy')}, command {data.get('command')}"


def ii_note(train_ii: bool, test_ii: bool) -> str:
    """What a combination of train-ii and test-ii means, where it needs saying."""
    if test_ii and not train_ii:
        return "note: the ii branch was never trained; it changes nothing, so this equals ii off."
    return ""


def _planned(
    name: str, plan: Plan, clips: ClipDataset, source: Source, split: str, run: Run, about: dict[str, Any], lineage: Lineage, note: str
) -> Assessment:
    extra = {k: about[k] for k in ("planner", "train_ii", "test_ii", "trained on") if k in about}
    heading = about_line(source, split, extra)
    scores, _ = plan_and_score(name, plan, infer.truth(source, split), clips, run, about, heading, lineage)
    text = f"{mark_lines(lineage.marks)}{heading}\n{scoring.format_scores(scores)}" + (f"\n{note}" if note else "")
    text += f"\npredictions: {run.folder / f'predictions-{name}.npz'}\nlineage: {lineage}"
    return _written(run, text, scoring.to_json(scores), about, lineage)


def _reconstructed(path: str, source: Source, split: str, run: Run, about: dict[str, Any]) -> Assessment:
    tokenizer, manifest = stages.load_tokenizer(path)
    names = source.scene_names(split)
    with counting("tokens", len(names), run.process_group) as tick:
        cache = stages.write_tokens(
            path, source, names, stages.tokens_folder(run.folder, path, source), tick, process_group=run.process_group
        )
    value = stages.reconstruction_miou(tokenizer, cache, source, stages.tracks_of(source, split))
    text = f"{about_line(source, split)}\nreconstruction mIoU {100 * value:.2f} %"
    run.write_text("reconstruction.txt", text + "\n")
    return _written(run, text, {"reconstruction": {"mIoU": value}}, about, manifest.lineage(path))


def _written(run: Run, text: str, numbers: dict[str, Any], about: dict[str, Any], lineage: Lineage) -> Assessment:
    scores = {**mark_numbers(numbers, lineage.marks), "about": {**about, "lineage": lineage.child("scores").to_plain()}}
    run.write_json("scores.json", scores)
    return Assessment(text, scores)


def town_of(manifest: Manifest, default: TownConfig) -> TownConfig:
    """The towns that a checkpoint was trained among."""
    plain = manifest.about.get("town")
    return from_plain(TownConfig, plain, "the checkpoint's towns") if plain else default


@contextmanager
def counting(what: str, total: int, process_group: ProcessGroup | None = None) -> Iterator[Callable[[str], None]]:
    """A progress bar over named things, on standard error; of several processes rank 0 shows its own part."""
    process_group = process_group or ProcessGroup()
    named = TextColumn("{task.fields[name]}")
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(compact=True), named)
    with Progress(*columns, console=Console(stderr=True), disable=not process_group.is_rank_zero) as bar:
        task = bar.add_task(what, total=len(process_group.shard(range(total))), name="")
        yield lambda name: bar.update(task, advance=1, name=name)
