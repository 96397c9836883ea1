"""The study: train the planners, test every arm in open loop, in closed loop, from displaced starts and on hard scenes, and compare the arms.

Tokenizer, world model, candidates, planning head, history, labels, training steps and scenes are the same in all arms. The arms differ in whether
imagined futures are used in training, and in which predicted future the candidates are scored with. All results are written below one folder, and
existing results are reused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from iidrive.analysis.study.arms import ARMS, CHOSEN_IN, NONE, WEIGHTS, Arm, ArmName, Weights, recipe_of
from iidrive.analysis.study.open_loop import kept_as, of_true_path, open_loop
from iidrive.analysis.study.results import METRICS, Setting, answer_lines, described, rank_correlations, report
from iidrive.core.config_io import to_plain
from iidrive.core.errors import ConfigError
from iidrive.core.scene import Scene
from iidrive.data.clips import ClipDataset, scored_clips
from iidrive.data.tokens import TokenCache
from iidrive.data.town.source import Town
from iidrive.pipeline.arms import planner_of
from iidrive.pipeline.baselines import BASELINES
from iidrive.pipeline.drive import EXPERT, Driven, draw, drive_all
from iidrive.pipeline.drivers import Driver, drivers_of, planning
from iidrive.pipeline.evaluate import Plan
from iidrive.pipeline.load import LoadedAgent, has_reactions, load_agent, load_tokenizer
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.testset import TestSet
from iidrive.pipeline.tokens import tokens_folder, write_tokens
from iidrive.pipeline.train import describe, train_planner, train_reactions, train_tokenizer, train_world
from iidrive.report.page import Page, Table, write_index
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.progress import counting
from iidrive.runtime.run_folder import Run
from iidrive.scoring.driving.summary import Row
from iidrive.simulation.loop import LoopConfig
from iidrive.training import checkpoint
from iidrive.training.options import RunOptions

Array = np.ndarray

RATES = (1.0, 0.5, 2.0)
"""Factors on the learning rate, tried in this order."""

EVENT_M = 10.0
"""Cost of a collision event in metres of L2, used to choose a learning rate on `val`."""


TestName = Literal["open", "closed", "hard", "displaced"]

TESTS: Mapping[TestName, tuple[str, str, LoopConfig | None]] = {
    "open": ("open loop, test", "test", None),
    "closed": ("closed loop, test", "test", LoopConfig()),
    "hard": ("closed loop, hard", "hard", LoopConfig()),
    "displaced": ("closed loop, test, displaced starts", "test", LoopConfig(displace=True)),
}
"""Test name → (title in tables, split, closed-loop config; None for open loop)."""


@dataclass(frozen=True)
class StudyConfig:
    """Size of the study.

    Attributes:
        seeds: planners trained per kind, each with its own seed.
        scenes: scenes per test; 0: all scenes of the split from `first` on.
        first: number of the first scene of each test; those before it are left out.
        tries: learning rates tried on `val` per kind of planner, 1 to 3; 1: use the recipe's.
        tests: tests to run.
        arms: arms to run: `none`, the reference of all comparisons, and at least one more.
    """

    seeds: int = 2
    scenes: int = 60
    first: int = 0
    tries: int = 3
    tests: tuple[TestName, ...] = tuple(TESTS)
    arms: tuple[ArmName, ...] = tuple(arm.key for arm in ARMS)

    def __post_init__(self) -> None:
        if not self.tests:
            raise ConfigError(f"a study needs at least one test of {', '.join(TESTS)}; found none.")
        if NONE not in self.arms or len(set(self.arms)) < 2:
            known = ", ".join(arm.key for arm in ARMS)
            raise ConfigError(
                f"a study needs the arm `{NONE}`, the reference of all comparisons, and one more of {known}; found {list(self.arms)}."
            )
        if self.seeds < 1 or min(self.scenes, self.first) < 0 or not 1 <= self.tries <= len(RATES):
            raise ConfigError(
                f"a study needs at least 1 seed, 0 or more scenes, a first scene from 0 on and 1 to {len(RATES)} tries; found {self.seeds} seeds, "
                f"{self.scenes} scenes, first scene {self.first} and {self.tries} tries."
            )

    def names(self, town: Town, split: str) -> tuple[str, ...]:
        """The scenes of a test. Raises ConfigError if the split ends before the first one."""
        everyone = town.scene_names(split)
        if self.first >= len(everyone):
            raise ConfigError(f"the study's first scene is number {self.first}, and {split} has {len(everyone)}: set more with --scenes.")
        return everyone[self.first : self.first + self.scenes if self.scenes else None]

    @property
    def done(self) -> tuple[Arm, ...]:
        """The arms to run, in the order of ARMS."""
        return tuple(arm for arm in ARMS if arm.key in self.arms)

    @property
    def weights(self) -> tuple[Weights, ...]:
        """The kinds of planners that these arms need."""
        return tuple(kind for kind in WEIGHTS if kind in {arm.weights for arm in self.done})


@dataclass(frozen=True)
class Base:
    """What all arms share: a world model, its tokens of the training scenes, and the run folder of the route head.

    `reacting`: the same world model with a reaction net, for the planners that need one; None if no arm does.
    """

    world: Path
    cache: TokenCache
    route: Path
    reacting: Path | None = None

    def world_of(self, weights: Weights) -> Path:
        """The world model of a kind of planner."""
        if weights != "reacting":
            return self.world
        assert self.reacting is not None
        return self.reacting


def study(
    recipe: Recipe, town: Town, out: Path, config: StudyConfig, world: str = "", process_group: ProcessGroup | None = None
) -> dict[str, object]:
    """Run or continue a study below `out`, and write study.txt, study.json and index.html. `world`: run folder or checkpoint of a world model.

    The processes of a group train together, and share the scenes of the tests.

    Raises:
        ConfigError: if the world model has no occupancy flow, which is needed to score candidates, or if a split has no scene number
            `config.first`.
    """
    for test in config.tests:
        config.names(town, TESTS[test][1])
    about = describe("study ii", recipe, town, "test") | {"study": to_plain(config), "world": world}
    run = Run.start(out, about, resume=True, process_group=process_group)
    base = prepare(recipe, town, run, world, "reacting" in config.weights)
    rates: dict[Weights, float] = {weights: tuned(recipe, town, base, run, weights, config.tries) for weights in config.weights}
    agents: dict[tuple[Weights, int], LoadedAgent] = {
        (weights, seed): load_agent(trained(recipe, town, base, run, weights, seed, rates[weights]))
        for weights in rates
        for seed in range(config.seeds)
    }
    settings, pictures = tests(recipe, town, run, config, agents)
    fixed = [
        f"world model: {checkpoint.read_manifest(base.world).fingerprint}; {config.seeds} planner seeds per kind; recipe {recipe.name}",
        f"learning rate factor, chosen on val from {config.tries} tries each: {', '.join(f'{k} x {v:g}' for k, v in rates.items())}",
    ]
    opened, closed = (next((s for s in settings if s.name == TESTS[name][0]), None) for name in ("open", "closed"))
    correlations = rank_correlations(opened, closed) if opened and closed else []
    text = report(settings, fixed) + "\n\n" + "\n".join(one.sentence() for one in correlations)
    values = {
        "arms": {arm.key: arm.what for arm in config.done},
        "rates": rates,
        "settings": {setting.name: setting.to_json() for setting in settings},
        "misleads": [vars(one) for one in correlations],
    }
    run.write_text("study.txt", text + "\n")
    run.write_json("study.json", values)
    if run.process_group.is_rank_zero:
        write_index(out, _page(settings, fixed, [one.sentence() for one in correlations], pictures))
    print(text)
    return values


def prepare(recipe: Recipe, town: Town, run: Run, world: str, reactions: bool) -> Base:
    """The given world model, or one trained here if `world` is empty; and its tokens of the training scenes.

    With `reactions`, a reaction net is added to it, unless it has one.
    """
    auto, out = RunOptions(run.process_group, resume="auto"), run.folder

    def begin(stage: str) -> Run:
        return Run.start(out / stage, describe(f"train {stage}", recipe, town, "train"), True, run.process_group)

    if not world:
        tokenizer = train_tokenizer(recipe, town, "train", begin("tokenizer"), auto)
        train_world(recipe, tokenizer, _tokens(tokenizer, town, run), town, "train", begin("world"), auto)
    found = checkpoint.read(world or out / "world")
    base = Base(found.path, _tokens(found.parent_path("tokenizer"), town, run), out / "route")
    if not reactions:
        return base
    if has_reactions(found.manifest):
        return replace(base, reacting=base.world)
    return replace(base, reacting=train_reactions(recipe, base.world, base.cache, town, "train", begin("reactions"), auto))


def _tokens(tokenizer: str | Path, town: Town, run: Run) -> TokenCache:
    used, names, process_group = load_tokenizer(tokenizer), town.scene_names("train"), run.process_group
    with counting("tokens", len(names), process_group) as tick:
        return write_tokens(used, town, names, tokens_folder(run.folder, used, town), tick, process_group=process_group)


def trained(recipe: Recipe, town: Town, base: Base, run: Run, weights: Weights, seed: int, rate: float) -> Path:
    """Train a planner, or continue its training, and return its checkpoint. All planners have the same route head, which is trained once.

    The run folder is named by kind, seed and rate, so that the planner with the chosen rate is not trained again.
    """
    own, process_group = recipe_of(recipe, weights, seed, rate), run.process_group
    mine = Run.start(_folder(run.folder, weights, seed, rate), describe("train planner", own, town, "train"), True, process_group)
    options, route = RunOptions(process_group, resume="auto"), Run(base.route, process_group)
    return train_planner(own, base.world_of(weights), base.cache, town, "train", mine, weights != "present", options, route=route)


def _folder(out: Path, weights: Weights, seed: int, rate: float) -> Path:
    return out / "planners" / f"{weights}-{seed}-x{rate:g}"


def tuned(recipe: Recipe, town: Town, base: Base, run: Run, weights: Weights, tries: int) -> float:
    """The learning rate factor with the lowest cost on `val`: mean L2 plus EVENT_M per collision event."""
    if tries == 1:
        return RATES[0]
    on = TestSet(town, "val", run.below("val"))
    arm = next(arm for arm in ARMS if arm.key == CHOSEN_IN[weights])
    costs = []
    for rate in RATES[:tries]:
        loaded = load_agent(trained(recipe, town, base, run, weights, 0, rate))
        values = open_loop(_plan(loaded, arm, on), _clips(loaded, on), on, _kept(on, arm, loaded))
        costs.append(float(values["L2"].mean() + EVENT_M * values["events"].sum() / len(on.cases.token)))
    return RATES[int(np.argmin(costs))]


def tests(
    recipe: Recipe, town: Town, run: Run, config: StudyConfig, agents: Mapping[tuple[Weights, int], LoadedAgent]
) -> tuple[list[Setting], list[tuple[str, str]]]:
    """Results of every arm and baseline in every test, and pictures of the scenes in which planning with and without ii differ most."""
    settings, pictures = [], []
    for name, split, loop in (TESTS[test] for test in config.tests):
        names = config.names(town, split)
        town.prepare(names)
        own = run.below(name.replace(", ", "-").replace(" ", "-"))
        own.folder.mkdir(parents=True, exist_ok=True)
        on = TestSet(town, split, own, names)
        if loop is None:
            settings.append(_open(name, on, recipe, agents, config))
            continue
        setting, driven = _closed(name, on, recipe, agents, config, loop)
        settings.append(setting)
        if run.process_group.is_rank_zero:
            for path in draw(driven, (f"{NONE}, seed 0", f"{_foresight(config)}, seed 0"), own.folder / "pictures"):
                pictures.append((f"{name}: {path.stem}", str(path.relative_to(run.folder))))
    return settings, pictures


def _foresight(config: StudyConfig) -> str:
    """The arm drawn beside the arm without ii: `shared`, or else the first other arm."""
    others = [key for key in config.arms if key != NONE]
    return "shared" if "shared" in others else others[0]


def _open(name: str, on: TestSet, recipe: Recipe, agents: Mapping[tuple[Weights, int], LoadedAgent], config: StudyConfig) -> Setting:
    values = {}
    for arm in config.done:
        rows = []
        for seed in range(config.seeds):
            loaded = agents[arm.weights, seed]
            rows.append(open_loop(_plan(loaded, arm, on), _clips(loaded, on), on, _kept(on, arm, loaded), with_pdm=True))
        values[arm.key] = {metric: np.stack([row[metric] for row in rows]) for metric in rows[0]}
    others, bare = {}, scored_clips(on.tracks)
    for driver in _baselines(on, recipe):
        kept = kept_as(on, driver.name, str(driver.lineage))
        others[driver.name] = open_loop(lambda inputs, plan=driver.plan: plan(inputs, ()), bare, on, kept, with_pdm=True)
    others[EXPERT] = of_true_path(on, kept_as(on, EXPERT))
    return Setting(name, tuple(track.name for track in on.tracks), {"manoeuvre": _manoeuvres(on)}, values, others)


def _kept(on: TestSet, arm: Arm, loaded: LoadedAgent) -> Path:
    return kept_as(on, arm.key, loaded.manifest.fingerprint)


def _closed(
    name: str, on: TestSet, recipe: Recipe, agents: Mapping[tuple[Weights, int], LoadedAgent], config: StudyConfig, loop: LoopConfig
) -> tuple[Setting, Driven]:
    drivers = _baselines(on, recipe)
    for arm in config.done:
        for seed in range(config.seeds):
            loaded = agents[arm.weights, seed]
            plan = planning(loaded.model, arm.test_ii)
            drivers.append(Driver(f"{arm.key}, seed {seed}", plan, loaded.model.forecaster.tokenizer, loaded.lineage))
    driven = drive_all(drivers, on, loop)
    values, drives = {}, []
    for arm in config.done:
        seeds = [driven.row(f"{arm.key}, seed {seed}") for seed in range(config.seeds)]
        rows = [_by_scene(row) for row in seeds]
        values[arm.key] = {metric: np.stack([row[metric] for row in rows]) for metric in rows[0]}
        drives.append(Row.of_seeds(arm.key, seeds))
    beside = [row for row in driven.rows if row.name in (*BASELINES, EXPERT)]
    others = {row.name: _by_scene(row) for row in beside}
    kinds = {"manoeuvre": _manoeuvres(on)}
    conflicts = tuple(scene.conflict.kind if scene.conflict else "none" for scene in _scenes(on))
    if set(conflicts) != {"none"}:
        kinds["conflict"] = conflicts
    return Setting(name, tuple(score.name for score in driven.rows[0].scores), kinds, values, others, (*drives, *beside)), driven


def _by_scene(row: Row) -> dict[str, Float[Array, "s"]]:
    progress = np.array([value if (value := score.parts["EP"]) is not None else np.nan for score in row.scores])
    return {"EPDMS": row.epdms, "EP": progress, "at_fault": row.at_fault, "departures": row.departures}


def _baselines(on: TestSet, recipe: Recipe) -> list[Driver]:
    return [driver for name in BASELINES for driver in drivers_of(name, (), on, recipe)]


def _plan(loaded: LoadedAgent, arm: Arm, on: TestSet) -> Plan:
    return planner_of(loaded.model, arm.test_ii, _clips(loaded, on), on.source)


def _clips(loaded: LoadedAgent, on: TestSet) -> ClipDataset:
    return scored_clips(on.tracks, on.tokens(loaded.world.tokenizer))


def _scenes(on: TestSet) -> list[Scene]:
    return [on.source.scene(track.name) for track in on.tracks]


def _manoeuvres(on: TestSet) -> tuple[str, ...]:
    """The turns on each scene's route: left, right, both, or straight."""
    kinds = []
    for scene in _scenes(on):
        turns = sorted({k.command.manoeuvre for k in scene.keyframes} - {"straight"})
        kinds.append(" and ".join(turns) or "straight")
    return tuple(kinds)


def _page(settings: Sequence[Setting], fixed: Sequence[str], correlations: Sequence[str], pictures: list[tuple[str, str]]) -> Page:
    header, *answers = answer_lines(settings)
    tables: list[tuple[str, str | Table]] = [
        ("Answers, in collisions per scene", Table(header, answers)),
        ("The arms", described(settings[0].values)),
    ]
    for setting in settings:
        header, *lines = setting.lines()
        tables.append((f"{setting.name}, {len(setting.scenes)} scenes: means and 95 % intervals over scenes", Table(header, lines)))
        for metric in setting.metrics:
            header, *lines = setting.difference_lines(metric)
            title = f"{setting.name}: differences in {METRICS[metric][0]}, paired by scene, corrected by Holm"
            tables.append((title, Table(header, lines)))
        tables += [(title, Table(lines[0], lines[1:])) for title, lines in setting.tables().items()]
    if correlations:
        tables.append(("Rank correlation of open loop and closed loop", "\n".join(correlations)))
    lead = "The same planner, with and without a world model's imagined future."
    return Page("Does a world model help the planner?", lead, [], tables, pictures, list(fixed))
