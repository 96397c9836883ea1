"""The command `study ii`: does a world model help the planner?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from iidrive.analysis.study.arms import ARMS, ArmName
from iidrive.analysis.study.study import TESTS, StudyConfig, TestName, study
from iidrive.cli.options import TownFields, write_json
from iidrive.data.town.source import Town
from iidrive.pipeline import recipes
from iidrive.pipeline.drive import enlarged
from iidrive.pipeline.evaluate import town_of
from iidrive.pipeline.recipes import Recipe
from iidrive.training import checkpoint

DISTURBED = ("swerves", "lapses")
"""Town fields for disturbed training paths of the planner. They are taken from the recipe, not from the world model's towns."""


def ii(
    out: str = "runs/study",
    world: str = "",
    seeds: int = 2,
    scenes: int = 60,
    tries: int = 3,
    tests: tuple[TestName, ...] = tuple(TESTS),
    arms: tuple[ArmName, ...] = tuple(arm.key for arm in ARMS),
    json: str = "",
    recipe: Recipe = recipes.demo(),  # noqa: B008
    towns: TownFields = TownFields(),  # noqa: B008
) -> None:
    """Does a world model help the planner? The same planner with and without an imagined future, in open and in closed loop.

    Args:
        out: folder of the study; existing results in it are reused.
        world: run folder or checkpoint of a world model; default: train one with the recipe.
        seeds: planners per kind, each trained with its own seed.
        scenes: scenes per test; the split is enlarged if needed; 0: all its scenes.
        tries: learning rates tried per kind of planner on the validation scenes; 1: use the recipe's.
        tests: tests to run, of open, closed, hard and displaced.
        arms: arms to run: `none`, the reference of all comparisons, and at least one more.
        json: also write the results to this file.
        recipe: models and trainings, and the towns (a world model's own towns are used, except swerves, lapses and --recipe.town fields).
        towns: town fields set on the command line.
    """
    config = StudyConfig(seeds, scenes, tries, tests, arms)
    if world:
        given = (*towns.given, *DISTURBED)
        recipe = replace(recipe, town=town_of(checkpoint.read_manifest(world), recipe.town, given))
    for split in ("test", "hard"):
        recipe = enlarged(recipe, split, scenes)
    found = study(recipe, Town(recipe.town), Path(out), config, world)
    if json:
        write_json(json, found)
