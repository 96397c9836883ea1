"""Three tiny chains of tokenizer, tokens, world model and planner, which differ only in the seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from iidrive.data.town.source import Town
from iidrive.pipeline import recipes
from iidrive.pipeline.tokens import write_tokens
from iidrive.pipeline.train import train_planner, train_tokenizer, train_world
from iidrive.runtime.run_folder import Run

RECIPE = replace(recipes.tiny(), town=replace(recipes.tiny().town, train_scenes=2, test_scenes=1, keyframes=12))
TOWN = Town(RECIPE.town)


@dataclass(frozen=True)
class Chain:
    """The run folders of one chain."""

    tokenizer: Path
    tokens: Path
    world: Path
    planner: Path


def train_chain(folder: Path, seed: int) -> Chain:
    """Train all three stages below `folder`."""
    recipe = replace(
        RECIPE,
        train_tokenizer=replace(RECIPE.train_tokenizer, samples=8, seed=seed),
        train_motion=replace(RECIPE.train_motion, samples=4, seed=seed),
        train_world=replace(RECIPE.train_world, samples=4, seed=seed),
        train_planner=replace(RECIPE.train_planner, samples=4, seed=seed),
    )
    chain = Chain(*(folder / name for name in ("tokenizer", "tokens", "world", "planner")))
    train_tokenizer(recipe, TOWN, "train", Run.start(chain.tokenizer, {}))
    cache = write_tokens(chain.tokenizer, TOWN, TOWN.scene_names("train"), chain.tokens)
    train_world(recipe, chain.tokenizer, cache, TOWN, "train", Run.start(chain.world, {}))
    train_planner(recipe, chain.world, cache, TOWN, "train", Run.start(chain.planner, {}), train_ii=True)
    return chain
