"""The demo: evaluates the shipped weights, or trains all three models, and compares them with the baselines in tables and pictures."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from iidrive.core.config_io import to_plain
from iidrive.core.errors import DataError
from iidrive.core.lineage import Lineage
from iidrive.core.text import aligned
from iidrive.core.untrusted.json_text import read_json
from iidrive.data import Data
from iidrive.data.clips import ClipDataset, scored_clips
from iidrive.data.source import Source
from iidrive.data.tokens import TokenCache
from iidrive.models.baselines import KINEMATIC
from iidrive.pipeline import infer
from iidrive.pipeline.arms import TestII
from iidrive.pipeline.baselines import BASELINES, Baseline, baseline
from iidrive.pipeline.choices import Choices, choices_without_and_with_ii
from iidrive.pipeline.drive import drive_all, drive_rows
from iidrive.pipeline.drivers import drivers_of
from iidrive.pipeline.evaluate import Assessment, plan_and_score, reconstruction_miou, score_plans
from iidrive.pipeline.load import LoadedAgent, LoadedTokenizer, Place, load_agent, load_ego_mlp
from iidrive.pipeline.pages import charts_of, forecast_table, worst_table
from iidrive.pipeline.pictures import Sample, draw, telling, worst
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.testset import TestSet, about_line
from iidrive.pipeline.tokens import write_tokens
from iidrive.pipeline.train import describe, train_planner, train_tokenizer, train_world
from iidrive.pipeline.view import view_of
from iidrive.report.page import Page, Table, write_index
from iidrive.report.view.page import write_view
from iidrive.runtime.beside import beside
from iidrive.runtime.progress import counting
from iidrive.runtime.run_folder import Run, peak_memory_gb
from iidrive.scoring.forecast import ForecastScores
from iidrive.scoring.predictions import Predictions
from iidrive.scoring.score import Scores, to_json
from iidrive.scoring.tables import format_scores
from iidrive.simulation.loop import LoopConfig
from iidrive.training import checkpoint

Array = np.ndarray
Plans = dict[str, dict[str, Float[Array, "6 2"]]]

SHIPPED = "town-small"
"""The shipped weights that the demo evaluates."""

VIEW = "scene.html"

STATES: tuple[TestII, ...] = ("off", "on")
"""What the planner is driven with."""

DRIVEN = 3
"""Number of test scenes driven in closed loop."""


@dataclass(frozen=True)
class Trained:
    """Checkpoint folders of the three models of a run."""

    tokenizer: Path
    world: Path
    planner: Path


def show(recipe: Recipe, data: Data, out: Path) -> None:
    """Evaluate the shipped weights: open loop, forecast, and a few scenes in closed loop. Everything is written below `out`."""
    began = time.perf_counter()
    on = _begin(recipe, data, out, {"weights": SHIPPED}, ("tokens-test", "pictures", "rollouts"))
    mlp = checkpoint.read(f"{SHIPPED}/ego-mlp")
    baselines = {name: Baseline(KINEMATIC[name], Lineage(name)) for name in KINEMATIC}
    baselines["ego-mlp"] = Baseline(load_ego_mlp(mlp).plan, on.judged(mlp))
    with beside(_drive_alone, recipe, data, out) as wait:

        def driven() -> Assessment:
            wait()
            return _drive(recipe, on)

        _shown(SHIPPED, recipe, load_agent(SHIPPED), baselines, on, began, driven)
    print("Train your own in minutes and see both in one table: iidrive demo --train")


def run(recipe: Recipe, data: Data, out: Path) -> None:
    """Train on the usual training split and test on the usual test split. Everything is written below `out`."""
    began = time.perf_counter()
    old = ("tokenizer", "world", "planner", "tokens-train", "tokens-test", "ego-mlp", "pictures")
    on = _begin(recipe, data, out, {}, old)
    train = on.source.usual_split("train")
    trained = train_all(recipe, on.source, train, out)
    baselines = {name: baseline(name, recipe, on.source, train, on.run) for name in BASELINES}
    _shown("planner", recipe, load_agent(trained.planner), baselines, on, began)


def _begin(recipe: Recipe, data: Data, out: Path, about: dict[str, str], old: tuple[str, ...]) -> TestSet:
    source = data.open(recipe.town)
    for sentence in source.missing():
        print(f"note: {sentence}")
    for name in old:
        shutil.rmtree(out / name, ignore_errors=True)
    train, test = source.usual_split("train"), source.usual_split("test")
    told = {"what": "demo", "recipe": to_plain(recipe), "data": source.identity(), "train": train, "test": test}
    return TestSet(source, test, Run.start(out, told | about))


def _drive(recipe: Recipe, on: TestSet) -> Assessment:
    """Score the drives through the first test scenes in closed loop. Drives that are not in the run folder are made."""
    return drive_rows(checkpoint.read(SHIPPED), STATES, _first(on), recipe, LoopConfig(), ())


def _drive_alone(recipe: Recipe, data: Data, out: Path) -> None:
    """Make these drives, in the run folder."""
    source = data.open(recipe.town)
    on = _first(TestSet(source, source.usual_split("test"), Run(out)))
    drive_all(drivers_of(checkpoint.read(SHIPPED), STATES, on, recipe), on, LoopConfig())


def _first(on: TestSet) -> TestSet:
    return TestSet(on.source, on.split, on.run, tuple(on.source.scene_names(on.split)[:DRIVEN]))


def _shown(
    name: str,
    recipe: Recipe,
    loaded: LoadedAgent,
    baselines: Mapping[str, Baseline],
    on: TestSet,
    began: float,
    drive: Callable[[], Assessment] | None = None,
) -> None:
    """Score the models, print and draw the results, and write the page. `drive` gives the results of the closed loop."""
    source, out = on.source, on.run.folder
    tokenizer = loaded.model.forecaster.tokenizer
    cache = _tokens(loaded.world.tokenizer, source, on.split, out / "tokens-test")
    clips = scored_clips(on.tracks, cache, source, tokenizer.config.grid)
    scores, plans, made = score_all(name, recipe, loaded, baselines, clips.without_occupancy(), on)
    states = [f"{name}, ii off", f"{name}, ii on"]
    shown, bad = telling(on.tracks), worst(scores[states[1]], on.tracks)
    drawn = {row for row, sample in enumerate(clips.samples) if Sample(*sample) in (*shown, *(one.sample for one in bad))}
    imagined: dict[int, Array] = {}

    def hear(rows: Sequence[int], labels: Array) -> None:
        imagined.update({row: grids for row, grids in zip(rows, labels, strict=True) if row in drawn})

    forecast = infer.forecasts(loaded.model.forecaster, clips, tokenizer.config.grid, source=source, hear=hear)
    reconstruction = reconstruction_miou(tokenizer, cache, on, forecast)
    about = about_line(source, on.split, {"weights": name} if drive else {"recipe": recipe.name})
    driven = drive() if drive else None
    summary = _beside_earlier(name, summary_table(scores), on)
    seconds = time.perf_counter() - began
    print(f"\n{about}\n")
    tables = {state: _reference(scores[state], made.get(state)) for state in states}
    for state, table in tables.items():
        print(f"{state}\n{table}\n")
    print(aligned([summary.header, *summary.rows]))
    print(f"\n{forecast.table()}\n\ntokenizer: reconstruction mIoU {100 * reconstruction:.2f} %")
    if driven:
        print(f"\nclosed loop\n{driven.text}")
    beside_it = {row: plans[row] for row in ("ctrv", "ego-mlp", *states)}
    pictures = draw(on, loaded.model.forecaster, clips, beside_it, shown, imagined=imagined)
    charts = charts_of(scores, forecast, out)
    pictures = charts + pictures + draw(on, loaded.model.forecaster, clips, beside_it, [one.sample for one in bad], "worst-", imagined)
    values: dict[str, Any] = {
        "planning": {name: to_json(s)["sparsedrive"] for name, s in scores.items()},
        "forecast": forecast.to_json(),
        "reconstruction": reconstruction,
    }
    if made:
        values["choices"] = {state: one.to_json() for state, one in made.items()}
    if driven:
        values["drive"] = driven.scores
        strips = sorted((out / "pictures").glob("drive-*.png"))
        pictures = [(f"{path.stem.removeprefix('drive-')} driven in closed loop", f"pictures/{path.name}") for path in strips] + pictures
    on.run.write_json("scores.json", values)
    place = _saved(scores[states[0]], scores[states[1]], on)
    failures = made[states[1]].failures() if made else {}
    below = worst_table(bad, on, failures)
    page = _page(name, recipe, on, about, tables, summary, forecast, reconstruction, pictures, seconds, driven, below)
    write_view(view_of(loaded.model, source, on.tracks[place.track].name, place.keyframe, codes=cache), out / VIEW)
    index = write_index(out, page)
    print(f"\n{seconds / 60:.1f} min, {peak_memory_gb():.1f} GB at most. Pictures and tables: {index}")


def _reference(scores: Scores, made: Choices | None) -> str:
    """The reference table of a planner and, if it has candidates, what it chose among."""
    return format_scores(scores) if made is None else f"{format_scores(scores)}\n{made.text()}"


def _saved(off: Scores, on_: Scores, on: TestSet) -> Sample:
    """The sample in which ii avoids most collisions; if there is none, the sample of the first scene with the most turning or braking."""
    spared = off.steps.per_step["obj_box_col"].sum(1) - on_.steps.per_step["obj_box_col"].sum(1).astype(float)
    row = int(np.argmax(np.where(off.steps.evaluated, spared, -np.inf)))
    if spared[row] <= 0:
        return telling(on.tracks, 1)[0]
    return next(Sample(k, track.tokens.index(off.token[row])) for k, track in enumerate(on.tracks) if off.token[row] in track.tokens)


def train_all(recipe: Recipe, source: Source, split: str, out: Path) -> Trained:
    """Train stage 1, write tokens, then train stage 2 and the planner (with train_ii on)."""

    def begin(stage: str, **about: str) -> Run:
        return Run.start(out / stage, describe(f"train {stage}", recipe, source, split) | about)

    tokenizer = train_tokenizer(recipe, source, split, begin("tokenizer"))
    cache = _tokens(tokenizer, source, split, out / "tokens-train")
    world = train_world(recipe, tokenizer, cache, source, split, begin("world"))
    planner = train_planner(recipe, world, cache, source, split, begin("planner", train_ii="on"), train_ii=True)
    return Trained(tokenizer, world, planner)


def score_all(
    name: str, recipe: Recipe, loaded: LoadedAgent, baselines: Mapping[str, Baseline], clips: ClipDataset, on: TestSet
) -> tuple[dict[str, Scores], Plans, dict[str, Choices]]:
    """Scores and plans of the baselines and of the planner `name` with ii off and on, on the same samples.

    Also what the planner chose among in each state; empty for a planner without candidates.
    """
    bare = scored_clips(on.tracks)
    scores: dict[str, Scores] = {}
    plans: Plans = {}
    for known, made in baselines.items():
        heading, about = about_line(on.source, on.split, {"planner": known}), {"planner": known, "split": on.split}
        scores[known], plans[known] = plan_and_score(known, made.plan, bare, on, about, heading, made.lineage)
    choices: dict[str, Choices] = {}
    if loaded.model.planner.config.accelerations:
        each = choices_without_and_with_ii(loaded.model, clips, on.source, on.run.process_group)
        choices = {f"{name}, ii {state}": one for state, one in zip(("off", "on"), each, strict=True)}
        tokens, paths = each[0].tokens, np.stack([one.paths for one in each], 1)
    else:
        tokens, paths = infer.plans(loaded.model.both, clips, on.run.process_group)
    for k, state in enumerate(("off", "on")):
        about = {"planner": name, "split": on.split, "train_ii": "on", "test_ii": state}
        row = f"{name}, ii {state}"
        heading = about_line(
            on.source, on.split, {"planner": recipe.name if name == "planner" else name, "train_ii": "on", "test_ii": state}
        )
        judged = on.judged(loaded.checkpoint)
        scores[row], plans[row] = score_plans(Predictions(paths[:, k], tokens, where=f"{name}-ii-{state}"), on, about, heading, judged)
    return scores, plans, choices


def _beside_earlier(name: str, summary: Table, on: TestSet) -> Table:
    """The rows of this run, and those of other models that were evaluated in the same folder on the same scenes."""
    file, test = on.run.folder / "planners.json", {**on.source.identity(), "split": on.split}
    test.pop("train_scenes", None)
    rows: dict[str, list[list[str]]] = {}
    if file.is_file():
        try:
            held = read_json(file)
            if held["test"] == test:
                rows = {str(key): [[str(cell) for cell in row] for row in value] for key, value in held["rows"].items()}
        except (DataError, LookupError, TypeError, AttributeError):
            pass  # written by another version: show only the rows of this run
    own = [list(row) for row in summary.rows]
    rows[name] = [row for row in own if row[0].startswith(name)]
    on.run.write_json("planners.json", {"test": test, "rows": rows})
    others = [row for key, some in rows.items() if key != name for row in some if len(row) == len(summary.header)]
    return Table(summary.header, [*own, *others])


def summary_table(scores: dict[str, Scores]) -> Table:
    """One row per planner: L2 and collisions by the reference protocol, prefix means at 1, 2, 3 s and their average."""
    header = ["planner", "L2 1s", "L2 2s", "L2 3s", "L2 avg", "obj_box_col 1s", "2s", "3s", "avg", "events"]
    rows = []
    for name, s in scores.items():
        l2 = [s.columns["L2"][i] for i in (1, 3, 5)] + [s.average["L2"]]
        col = [s.columns["obj_box_col"][i] for i in (1, 3, 5)] + [s.average["obj_box_col"]]
        shown = ["-" if np.isnan(v) else f"{100 * v:.3f}%" for v in col]
        events = str(int(s.events["obj_box_col"].sum())) if "obj_box_col" in s.events else "-"
        rows.append([name, *(f"{v:.4f}" for v in l2), *shown, events])
    return Table(header, rows)


def _tokens(tokenizer: Place | LoadedTokenizer, source: Source, split: str, folder: Path) -> TokenCache:
    names = source.scene_names(split)
    with counting("tokens", len(names)) as tick:
        return write_tokens(tokenizer, source, names, folder, tick)


def _page(
    name: str,
    recipe: Recipe,
    on: TestSet,
    about: str,
    references: Mapping[str, str],
    summary: Table,
    forecast: ForecastScores,
    reconstruction: float,
    pictures: list[tuple[str, str]],
    seconds: float,
    driven: Assessment | None,
    bad: Table,
) -> Page:
    tables: list[tuple[str, str | Table]] = [("All planners by the same protocol (SparseDrive's)", summary)]
    if driven:
        tables.append((f"The first {DRIVEN} scenes in closed loop, others react", driven.text))
    tables += [(f"Reference table: {state}", text) for state, text in references.items()]
    tables.append((f"The worst samples of {name}, ii on, at most two of a scene", bad))
    tables.append(("Forecasting, percent; mIoU and IoU in the ego frame that each forecaster predicts", forecast_table(forecast)))
    tables.append(("All figures of the forecasts", forecast.table()))
    source = on.source
    facts = [
        ("weights" if driven else "recipe", name if driven else recipe.name),
        ("data", f"{source.name} {on.split}, {forecast.samples} samples"),
        ("occupancy", source.occupancy_source),
        ("command", source.command_source),
        ("reconstruction mIoU", f"{100 * reconstruction:.2f} %"),
        ("time", f"{seconds / 60:.1f} min"),
        ("memory", f"{peak_memory_gb():.1f} GB at most"),
    ]
    made = f"come with iidrive (iidrive weights {name})" if driven else f"are of the recipe '{recipe.name}', trained in this run"
    notes = [
        f"The models behind these numbers {made}. None of these scenes trained them.",
        "Two planners whose collisions differ by a handful of events, or whose L2 differs by millimetres, do not differ.",
    ]
    views = [("True beside imagined occupancy, and what the planner chose among: drag to turn, space plays.", VIEW)]
    return Page("iidrive: tokenizer, world model, planner", about, facts, tables, pictures, notes, views)
