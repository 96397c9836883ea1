"""The arms of the study: what a planner was trained with, and what it is shown of the future while it plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from iidrive.pipeline.arms import TestII
from iidrive.pipeline.recipes import Recipe

Weights = Literal["present", "ii", "regressor"]
"""Planners that are trained: without imagined futures, with them, and without candidates (the planner that only corrects its proposals)."""

ArmName = Literal["none", "loss only", "shared", "shuffled", "oracle", "regressor"]


@dataclass(frozen=True)
class Arm:
    """`weights` of the planner and its `test_ii`; `what` it is in words."""

    key: ArmName
    weights: Weights
    test_ii: TestII
    what: str


WEIGHTS: tuple[Weights, ...] = ("present", "ii", "regressor")

NONE: ArmName = "none"

ARMS = (
    Arm(NONE, "present", "off", "never saw an imagined future; plans by the present"),
    Arm("loss only", "ii", "off", "saw imagined futures in training; plans by the present"),
    Arm("shared", "ii", "shared", "plans by one imagined future for all candidates"),
    Arm("shuffled", "ii", "shuffled", "plans by what was imagined for another scene (placebo)"),
    Arm("oracle", "ii", "oracle", "plans by the true future (a leak on purpose)"),
    Arm("regressor", "regressor", "on", "has no candidates: corrects its proposals by the imagined latents"),
)

CHOSEN_IN: Mapping[Weights, ArmName] = {"present": NONE, "ii": "shared", "regressor": "regressor"}
"""The arm in which the learning rate of each kind of planner is chosen."""

LEFT_OUT: Mapping[str, str] = {"per candidate": "no world model here was trained to imagine what others do about a candidate"}
"""Arms of the design that cannot be run, and why."""


def recipe_of(recipe: Recipe, weights: Weights, seed: int, rate: float = 1.0) -> Recipe:
    """The recipe that a planner is trained by. `rate` is a factor on its learning rate."""
    training = replace(recipe.train_planner, seed=seed, learning_rate=recipe.train_planner.learning_rate * rate)
    planner = replace(recipe.planner, accelerations=()) if weights == "regressor" else recipe.planner
    return replace(recipe, planner=planner, train_planner=training)
