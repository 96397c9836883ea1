"""The arms of the study: how a planner is trained, and which predicted future it uses to plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from iidrive.pipeline.arms import TestII
from iidrive.pipeline.recipes import Recipe

Weights = Literal["present", "held", "ii", "reacting", "regressor"]
"""Trained planners: without imagined futures, with the world model's scene of now held still, with one imagined future, with one for each
candidate, and without candidates (a regressor that corrects its proposals)."""

ArmName = Literal["none", "held", "loss only", "shared", "per candidate", "shuffled", "oracle", "regressor"]


@dataclass(frozen=True)
class Arm:
    """An arm: the trained `weights`, the planner's `test_ii`, and a description."""

    key: ArmName
    weights: Weights
    test_ii: TestII
    what: str


WEIGHTS: tuple[Weights, ...] = ("present", "held", "ii", "reacting", "regressor")

NONE: ArmName = "none"

ARMS = (
    Arm(NONE, "present", "off", "never saw an imagined future; plans by the present"),
    Arm("held", "held", "on", "reads the same history with the same costs as `shared`, but the world model's scene of now is held still"),
    Arm("loss only", "ii", "off", "saw imagined futures in training; plans by the present"),
    Arm("shared", "ii", "shared", "plans by one imagined future for all candidates"),
    Arm(
        "per candidate",
        "reacting",
        "on",
        "plans by a future imagined for each candidate, in which followers (planner.counts_on: or all) react to it",
    ),
    Arm("shuffled", "ii", "shuffled", "plans by what was imagined for another scene (placebo)"),
    Arm("oracle", "ii", "oracle", "plans by the true future (a leak on purpose)"),
    Arm("regressor", "regressor", "on", "has no candidates: corrects its proposals by the imagined latents"),
)

BESIDE: tuple[tuple[ArmName, ArmName], ...] = (("shared", "held"), ("per candidate", "shared"))
"""Arms that are compared besides each with `none`. `shared` and `held` differ in nothing but the future: in one the world model's scene moves, in
the other it stands still. `per candidate` and `shared` differ in whether others react to the candidate in it."""

CHOSEN_IN: Mapping[Weights, ArmName] = {
    "present": NONE,
    "held": "held",
    "ii": "shared",
    "reacting": "per candidate",
    "regressor": "regressor",
}
"""The arm with which the learning rate of each kind of planner is chosen."""


def recipe_of(recipe: Recipe, weights: Weights, seed: int, rate: float = 1.0) -> Recipe:
    """The recipe for training one planner. `rate` is a factor on the learning rate."""
    training = replace(recipe.train_planner, seed=seed, learning_rate=recipe.train_planner.learning_rate * rate)
    planner = recipe.planner
    if weights == "regressor":
        planner = replace(planner, accelerations=())
    elif weights == "held":
        planner = replace(planner, held=True)
    elif weights == "reacting":
        planner = replace(planner, per_candidate=True)
    return replace(recipe, planner=planner, train_planner=training)
