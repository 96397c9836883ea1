"""The command `study ii`: does a world model help the planner?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from iidrive.analysis.study.arms import ARMS, ArmName
from iidrive.analysis.study.study import TESTS, StudyConfig, TestName, study
from iidrive.analysis.transfer.transfer import transfer as transfer_
from iidrive.cli.options import DataOptions, TownFields, enter, write_json
from iidrive.core.errors import ConfigError
from iidrive.data.town.source import Town
from iidrive.pipeline import recipes
from iidrive.pipeline.drive import enlarged
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.testset import town_of
from iidrive.training import checkpoint

DISTURBED = ("swerves", "lapses")
"""Town fields for disturbed training paths of the planner. They are taken from the recipe, not from the world model's towns."""


def ii(
    out: str = "runs/study",
    world: str = "",
    seeds: int = 2,
    scenes: int = 60,
    first: int = 0,
    tries: int = 3,
    tests: tuple[TestName, ...] = tuple(TESTS),
    arms: tuple[ArmName, ...] = tuple(arm.key for arm in ARMS),
    json: str = "",
    devices: int = 0,
    recipe: Recipe = recipes.demo(),  # noqa: B008
    towns: TownFields = TownFields(),  # noqa: B008
) -> None:
    """Does a world model help the planner? The same planner with and without an imagined future, in open and in closed loop.

    Args:
        out: folder of the study; existing results in it are reused.
        world: run folder or checkpoint of a world model; default: train one with the recipe.
        seeds: planners per kind, each trained with its own seed.
        scenes: scenes per test; the split is enlarged if needed; 0: all its scenes.
        first: number of the first scene of each test, to ask scenes that nobody has looked at.
        tries: learning rates tried per kind of planner on the validation scenes; 1: use the recipe's.
        tests: tests to run, of open, closed, hard and displaced.
        arms: arms to run: `none`, the reference of all comparisons, and at least one more.
        json: also write the results to this file.
        devices: processes on this machine that train together and share the scenes of the tests.
        recipe: models and trainings, and the towns (a world model's own towns are used, except swerves, lapses and --recipe.town fields).
        towns: town fields set on the command line.
    """
    config, process_group = StudyConfig(seeds, scenes, first, tries, tests, arms), enter(devices)
    if world:
        given = (*towns.given, *DISTURBED)
        recipe = replace(recipe, town=town_of(checkpoint.read_manifest(world), recipe.town, given))
    for split in ("test", "hard"):
        recipe = enlarged(recipe, split, first + scenes if scenes else 0)
    found = study(recipe, Town(recipe.town), Path(out), config, world, process_group)
    if json and process_group.is_rank_zero:
        write_json(json, found)


def transfer(
    out: str = "runs/transfer",
    towns: str = "",
    json: str = "",
    recipe: Recipe = recipes.small(),  # noqa: B008
    where: DataOptions = DataOptions(data="nuscenes"),  # noqa: B008
) -> None:
    """What do towns teach about real streets? Trained on towns, on real data, on real data after towns; tested on each real dataset.

    Args:
        out: folder of the comparison; what it holds already is not done again.
        towns: run folder or set of weights of a planner that towns trained, as town-small; default: one is trained by the recipe.
        json: where to write the numbers besides.
        recipe: what is trained, and how; names the towns.
        where: real data, one source or several: they train together, on the usual training splits, and are tested on apart.
    """
    if "town" in where.data.split(","):
        raise ConfigError(f"--data {where.data}: a transfer is to real data; towns train in any case. Name nuscenes, av2 or both.")
    source, _ = where.open(recipe, "train")
    found = transfer_(recipe, Town(recipe.town), source, Path(out), towns)
    print(found.pop("text"))
    if json:
        write_json(json, found)
