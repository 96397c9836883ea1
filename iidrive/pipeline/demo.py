"""The main job in one go: train tokenizer, world model and planner, evaluate beside the baselines, print tables, draw pictures."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from iidrive.core.config_io import to_plain
from iidrive.core.scene import FUTURE_STEPS
from iidrive.core.text import aligned
from iidrive.data import Data
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack, scored_clips
from iidrive.data.source import Source, window
from iidrive.data.tokens import TokenCache
from iidrive.models.planner import Agent
from iidrive.pipeline import infer
from iidrive.pipeline.baselines import BASELINES, baseline
from iidrive.pipeline.evaluate import TestSet, about_line, plan_and_score, reconstruction_miou
from iidrive.pipeline.load import LoadedAgent, LoadedTokenizer, Place, load_agent
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.tokens import write_tokens
from iidrive.pipeline.train import describe, train_planner, train_tokenizer, train_world
from iidrive.report.figures import ScenePanel, scene_figure
from iidrive.report.page import Page, Table, write_index
from iidrive.runtime.progress import counting
from iidrive.runtime.run_folder import Run, device, peak_memory_gb
from iidrive.scoring.forecast import ForecastScores
from iidrive.scoring.score import Scores, to_json
from iidrive.scoring.tables import format_scores

Array = np.ndarray
Plans = dict[str, dict[str, Float[Array, "6 2"]]]


@dataclass(frozen=True)
class Trained:
    """Where the three models of a run lie."""

    tokenizer: Path
    world: Path
    planner: Path


def run(recipe: Recipe, data: Data, out: Path) -> None:
    """Train on the usual training split, test on the usual test split; everything goes below `out`."""
    began = time.perf_counter()
    source = data.open(recipe.town)
    for sentence in source.missing():
        print(f"note: {sentence}")
    for old in ("tokenizer", "world", "planner", "tokens-train", "tokens-test", "ego-mlp", "pictures"):
        shutil.rmtree(out / old, ignore_errors=True)
    train, test = source.usual_split("train"), source.usual_split("test")
    whole = Run.start(out, {"what": "demo", "recipe": to_plain(recipe), "data": source.identity(), "train": train, "test": test})
    trained = train_all(recipe, source, train, out)
    on = TestSet(source, test, whole)
    loaded = load_agent(trained.planner)
    tokenizer = loaded.model.forecaster.tokenizer
    cache = _tokens(loaded.world.tokenizer, source, test, out / "tokens-test")
    clips = scored_clips(on.tracks, cache, source, tokenizer.config.grid)
    forecast = infer.forecasts(loaded.model.forecaster, clips, tokenizer.config.grid, source=source)
    reconstruction = reconstruction_miou(tokenizer, cache, on)
    scores, plans = score_all(recipe, train, loaded, clips.without_occupancy(), on)
    about = about_line(source, test, {"recipe": recipe.name})
    summary = summary_table(scores)
    seconds = time.perf_counter() - began
    print(f"\n{about}\n")
    for name in ("planner, ii off", "planner, ii on"):
        print(f"{name}\n{format_scores(scores[name])}\n")
    print(aligned([summary.header, *summary.rows]))
    print(f"\n{forecast.table()}\n\ntokenizer: reconstruction mIoU {100 * reconstruction:.2f} %")
    pictures = draw(on, loaded.model, clips, plans)
    values = {name: to_json(s)["sparsedrive"] for name, s in scores.items()}
    whole.write_json("scores.json", {"planning": values, "forecast": forecast.to_json(), "reconstruction": reconstruction})
    index = write_index(out, _page(recipe, source, test, about, scores, summary, forecast, reconstruction, pictures, seconds))
    print(f"\n{seconds / 60:.1f} min, {peak_memory_gb():.1f} GB at most. Pictures and tables: {index}")


def train_all(recipe: Recipe, source: Source, split: str, out: Path) -> Trained:
    """Stage 1, tokens, stage 2, planner (ii on while training)."""

    def begin(stage: str, **about: str) -> Run:
        return Run.start(out / stage, describe(f"train {stage}", recipe, source, split) | about)

    tokenizer = train_tokenizer(recipe, source, split, begin("tokenizer"))
    cache = _tokens(tokenizer, source, split, out / "tokens-train")
    world = train_world(recipe, tokenizer, cache, source, split, begin("world"))
    planner = train_planner(recipe, world, cache, source, split, begin("planner", train_ii="on"), train_ii=True)
    return Trained(tokenizer, world, planner)


def score_all(recipe: Recipe, train: str, loaded: LoadedAgent, clips: ClipDataset, on: TestSet) -> tuple[dict[str, Scores], Plans]:
    """Every baseline, and the planner with ii off and on, on the same samples."""
    bare = scored_clips(on.tracks)
    scores: dict[str, Scores] = {}
    plans: Plans = {}
    for name in BASELINES:
        made = baseline(name, recipe, on.source, train, on.run)
        heading, about = about_line(on.source, on.split, {"planner": name}), {"planner": name, "split": on.split}
        scores[name], plans[name] = plan_and_score(name, made.plan, bare, on, about, heading, made.lineage)
    for ii in (False, True):
        state = "on" if ii else "off"
        about = {"planner": "planner", "split": on.split, "train_ii": "on", "test_ii": state}
        name = f"planner, ii {state}"
        heading = about_line(on.source, on.split, {"planner": recipe.name, "train_ii": "on", "test_ii": state})
        plan = partial(loaded.model.plan, ii=ii)
        scores[name], plans[name] = plan_and_score(f"planner-ii-{state}", plan, clips, on, about, heading, loaded.lineage)
    return scores, plans


def summary_table(scores: dict[str, Scores]) -> Table:
    """One row a planner: L2 and collisions by the reference protocol, prefix means at 1, 2, 3 s and their average."""
    header = ["planner", "L2 1s", "L2 2s", "L2 3s", "L2 avg", "obj_box_col 1s", "2s", "3s", "avg", "events"]
    rows = []
    for name, s in scores.items():
        l2 = [s.columns["L2"][i] for i in (1, 3, 5)] + [s.average["L2"]]
        col = [s.columns["obj_box_col"][i] for i in (1, 3, 5)] + [s.average["obj_box_col"]]
        shown = ["-" if np.isnan(v) else f"{100 * v:.3f}%" for v in col]
        events = str(int(s.events["obj_box_col"].sum())) if "obj_box_col" in s.events else "-"
        rows.append([name, *(f"{v:.4f}" for v in l2), *shown, events])
    return Table(header, rows)


def draw(on: TestSet, agent: Agent, clips: ClipDataset, plans: Plans) -> list[tuple[str, str]]:
    """One picture a held-out scene (at most twelve), at the keyframe where the ego's speed changes most over the next 3 s."""
    pictures = []
    chosen = on.tracks[:12]
    row_of = {sample: row for row, sample in enumerate(clips.samples)}
    with counting("pictures", len(chosen)) as tick:
        for place, track in enumerate(chosen):
            scene = on.source.scene(track.name)
            index = _telling(track)
            observation, target = window(on.source, scene, index, past=ClipSpec().past)
            batch = clips.batch([row_of[place, index]])
            assert batch.inputs.occupancy is not None
            assert batch.targets.occupancy is not None
            imagined, _ = agent.forecaster.forecast(batch.inputs.to(device()), infer.HORIZON_STEPS)
            real = torch.cat([batch.inputs.occupancy[:, -1:], batch.targets.occupancy], 1)[0].numpy()
            shown = ("ctrv", "ego-mlp", "planner, ii off", "planner, ii on")
            panel = ScenePanel(
                f"{track.name}, keyframe {index}",
                observation,
                target,
                scene.map,
                {name: plans[name][observation.token] for name in shown},
                tuple(real[list(infer.HORIZON_STEPS)]),
                tuple(imagined[0].numpy(force=True)),
                agent.forecaster.tokenizer.config.grid,
            )
            path = scene_figure(panel, on.run.folder / "pictures" / f"{track.name}.png")
            pictures.append((f"{track.name} ({on.split}), keyframe {index}", f"pictures/{path.name}"))
            tick(track.name)
    return pictures


def _telling(track: EgoTrack) -> int:
    """The keyframe whose next 3 s differ most from going straight on."""
    paths = track.path.astype(np.float64)
    speed = np.linalg.norm(np.diff(track.global_T_ego[:, :3, 3], axis=0, prepend=track.global_T_ego[:1, :3, 3]), axis=1)
    straight = speed[:, None, None] * np.arange(1, FUTURE_STEPS + 1)[:, None] * np.array([0.0, 1.0])
    change = np.linalg.norm(paths - straight, axis=-1).mean(-1)
    return int(np.argmax(np.where(track.path_valid.all(1) & (np.arange(len(paths)) > ClipSpec().past), change, -1)))


def _tokens(tokenizer: Place | LoadedTokenizer, source: Source, split: str, folder: Path) -> TokenCache:
    names = source.scene_names(split)
    with counting("tokens", len(names)) as tick:
        return write_tokens(tokenizer, source, names, folder, tick)


def _page(
    recipe: Recipe,
    source: Source,
    test: str,
    about: str,
    scores: dict[str, Scores],
    summary: Table,
    forecast: ForecastScores,
    reconstruction: float,
    pictures: list[tuple[str, str]],
    seconds: float,
) -> Page:
    tables: list[tuple[str, str | Table]] = [("All planners by the same protocol (SparseDrive's)", summary)]
    tables += [(f"Reference table: {name}", format_scores(scores[name])) for name in ("planner, ii off", "planner, ii on")]
    tables.append(("Forecasting, percent; mIoU and IoU in the ego frame that each forecaster predicts", forecast.table()))
    facts = [
        ("recipe", recipe.name),
        ("data", f"{source.name} {test}, {forecast.samples} samples"),
        ("occupancy", source.occupancy_source),
        ("command", source.command_source),
        ("reconstruction mIoU", f"{100 * reconstruction:.2f} %"),
        ("time", f"{seconds / 60:.1f} min"),
        ("memory", f"{peak_memory_gb():.1f} GB at most"),
    ]
    notes = [
        f"Every number here is of the recipe '{recipe.name}', trained in this run.",
        "Two planners whose collisions differ by a handful of events, or whose L2 differs by millimetres, do not differ.",
    ]
    return Page("iidrive: tokenizer, world model, planner", about, facts, tables, pictures, notes)
