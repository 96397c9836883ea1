"""Train on towns, on real data, and on real data after towns; test all three on every real dataset, beside baselines.

All results are written below one folder. Existing results are reused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from iidrive.analysis.transfer.results import FEW_SCENES, Cell, Measured, table
from iidrive.core.config_io import to_plain
from iidrive.core.errors import ConfigError
from iidrive.data.clips import ClipDataset, scored_clips
from iidrive.data.joint import parts_of
from iidrive.data.source import Source
from iidrive.data.tokens import TokenCache
from iidrive.models.baselines import KINEMATIC
from iidrive.pipeline import infer
from iidrive.pipeline.arms import planner_of
from iidrive.pipeline.evaluate import Plan
from iidrive.pipeline.load import LoadedAgent, load_agent
from iidrive.pipeline.pdm import pdm
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.testset import TestSet, about_line, trained_on
from iidrive.pipeline.tokens import tokens_folder, write_tokens
from iidrive.pipeline.train import describe, train_planner, train_tokenizer, train_world
from iidrive.runtime.run_folder import Run
from iidrive.scoring.forecast import ForecastScores
from iidrive.scoring.predictions import Predictions, align
from iidrive.scoring.protocols import PROTOCOLS
from iidrive.scoring.score import Scores, score_possible
from iidrive.scoring.stats import mean_interval
from iidrive.training import checkpoint, shipped
from iidrive.training.options import RunOptions

Array = np.ndarray

TOWNS, REAL, BOTH = "towns only", "real only", "towns, then real"
BASELINE = "ctrv"
COPY = "copy warped"
"""The baseline forecast beside those of the world models."""


@dataclass(frozen=True)
class Planned:
    """Results of a planner on one dataset: plans by sample token, and forecasts of each scene if it has a world model."""

    plans: Mapping[str, Float[Array, "6 2"]]
    forecasts: Sequence[ForecastScores]


def transfer(recipe: Recipe, towns: Source, real: Source, out: Path, trained: str = "") -> dict[str, Any]:
    """Run or resume the comparison below `out`. Writes transfer.txt and transfer.json, and returns the latter.

    `real` is one source, or several as one: they are trained on together and tested separately. `trained` is a run folder or set of weights with a
    planner trained on towns; without it, one is trained by the recipe like the others.

    Raises:
        ConfigError: if test scenes of the real data are also training scenes, or `trained` was trained on one of the test scenes.
    """
    run = Run.start(out, describe("study transfer", recipe, real, real.usual_split("train")) | {"towns": trained}, resume=True)
    made = {TOWNS: checkpoint.find(trained) if trained else train_all(recipe, towns, out / "towns")}
    made[REAL] = train_all(recipe, real, out / "real")
    made[BOTH] = train_all(recipe, real, out / "both", str(made[TOWNS]))
    text, found = [], {}
    for source in parts_of(real):
        lines, values = test(source, {name: load_agent(path) for name, path in made.items()}, run)
        text.append(lines)
        found[source.name] = values
    told = "\n\n".join(text)
    run.write_text("transfer.txt", told + "\n")
    values = {"recipe": recipe.name, "planners": {name: _fingerprint(path) for name, path in made.items()}, "data": found}
    run.write_json("transfer.json", to_plain(values))
    return {**values, "text": told}


def train_all(recipe: Recipe, source: Source, out: Path, init: str = "") -> Path:
    """Train all stages on a source's usual training split, each initialised from `init` if given. Existing stages are resumed."""
    split, options = source.usual_split("train"), RunOptions(resume="auto", init=init)

    def begin(stage: str) -> Run:
        started = Run.start(out / stage, describe(f"train {stage}", recipe, source, split) | {"init": init}, resume=True)
        started.write_json("recipe.json", to_plain(recipe))
        return started

    tokenizer = train_tokenizer(recipe, source, split, begin("tokenizer"), options)
    cache = _tokens(tokenizer, source, source.scene_names(split), out)
    world = train_world(recipe, tokenizer, cache, source, split, begin("world"), options)
    return train_planner(recipe, world, cache, source, split, begin("planner"), True, options)


def test(source: Source, agents: Mapping[str, LoadedAgent], run: Run) -> tuple[str, dict[str, Any]]:
    """Test every planner on the usual test split of one dataset: (table, plain values)."""
    split = source.usual_split("test")
    on = TestSet(source, split, run)
    names = [track.name for track in on.tracks]
    seen = [name for name in source.scene_names(source.usual_split("train")) if name in names]
    if seen:
        raise ConfigError(f"{source.name}: {len(seen)} of the test scenes train ({', '.join(seen[:3])}); a transfer is measured on others.")
    for name, agent in agents.items():
        if marks := on.marks(agent.manifest):
            raise ConfigError(f"{name}: {marks[0]}; a transfer is measured on scenes that no model has seen.")
    rows, values = [], {}
    forecasts: dict[str, Sequence[ForecastScores]] = {}
    for name, agent in agents.items():
        planned = run_agent(agent, on)
        forecasts[name] = planned.forecasts
        rows.append(measured(name, planned, on, "world model"))
        values[name] = {"trained on": trained_on(agent.manifest), **rows[-1].to_json()}
    bare = scored_clips(on.tracks)
    baseline = Planned(_plans(KINEMATIC[BASELINE], bare), next(iter(forecasts.values())))
    rows.append(measured(f"{BASELINE}; {COPY}", baseline, on, COPY))
    values[rows[-1].name] = rows[-1].to_json()
    lines = [about_line(source, split), table(rows)]
    if len(names) < FEW_SCENES:
        lines.append(
            f"{len(names)} test scenes prove little: an interval over so few scenes is too narrow, and rows whose intervals overlap do not differ."
        )
    return "\n".join(lines), {"split": split, "scenes": names, "samples": len(bare), "rows": values}


def run_agent(agent: LoadedAgent, on: TestSet) -> Planned:
    """Plan with ii on, and forecast each scene separately, for the bootstrap over scenes."""
    cache = on.tokens(agent.world.tokenizer)
    forecaster = agent.model.forecaster
    grid = forecaster.tokenizer.config.grid
    clips = scored_clips(on.tracks, cache, on.source, grid)
    plan = planner_of(agent.model, "on", clips, on.source)
    each = [scored_clips([track], cache, on.source, grid) for track in on.tracks]
    return Planned(_plans(plan, clips.without_occupancy()), [infer.forecasts(forecaster, one, grid, source=on.source) for one in each])


def measured(name: str, planned: Planned, on: TestSet, forecaster: str) -> Measured:
    """One row: L2 and collisions by SparseDrive's protocol, EPDMS, the forecast's mIoU and movers IoU; intervals by bootstrap over scenes.

    `to_json` also has the averages of every other protocol that the data allow, and why the rest are left out.
    """
    tokens = tuple(planned.plans)
    paths = np.stack([planned.plans[token] for token in tokens])
    found, left_out = score_possible(on.cases, align(on.cases, Predictions(paths, tokens, {}, name)), list(PROTOCOLS))
    by_name = {scores.protocol: scores for scores in found}
    reference = by_name["sparsedrive"]
    driven = pdm(name, on.source, on.tracks, planned.plans).to_json()
    cells = {
        "L2 avg": l2(reference, on),
        "obj_box_col avg": Cell(100 * reference.average["obj_box_col"]),
        "EPDMS": Cell(*(100 * value for value in (driven["epdms"], *driven["epdms_interval"]))),
    }
    counts = [scores.rows[forecaster] for scores in planned.forecasts]
    for figure, shown in (("mIoU", "mIoU"), ("movers_IoU", "movers IoU")):
        for horizon in (1, 2, 3):
            cells[f"{shown} {horizon} s"] = Cell.of_counts(counts, figure, horizon)
    return Measured(name, cells, {protocol: dict(scores.average) for protocol, scores in by_name.items()}, driven, tuple(left_out))


def l2(scores: Scores, on: TestSet) -> Cell:
    """The protocol's average L2, metres. It is a mean over samples: of each, the mean of its 1 s, 2 s and 3 s prefix means."""
    kept = scores.steps.evaluated
    per_step = np.asarray(scores.steps.per_step["L2"], np.float64)[kept]
    each = np.mean([per_step[:, : k + 1].mean(1) for k in (1, 3, 5)], axis=0)
    scene = np.unique(np.asarray(on.cases.scene)[kept], return_inverse=True)[1]
    return Cell(scores.average["L2"], *mean_interval(each, scene))


def _plans(plan: Plan, clips: ClipDataset) -> dict[str, Float[Array, "6 2"]]:
    tokens, paths = infer.plans(plan, clips)
    return dict(zip(tokens, paths, strict=True))


def _tokens(tokenizer: Path, source: Source, names: Sequence[str], out: Path) -> TokenCache:
    return write_tokens(tokenizer, source, names, tokens_folder(out, tokenizer, source))


def _fingerprint(path: Path) -> dict[str, str]:
    return {"fingerprint": checkpoint.read_manifest(path).fingerprint, "path": shipped.name_of(path) or str(path)}
