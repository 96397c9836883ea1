"""Commands that train a stage, and `tokens`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from iidrive.cli.options import DataOptions, Switch, TrainOptions, enter
from iidrive.cli.training_run import finish, places_of_shard, start, tokens_of
from iidrive.core.errors import ConfigError
from iidrive.data.source import Source
from iidrive.data.tokens import TokenCache
from iidrive.pipeline import recipes
from iidrive.pipeline import train as training
from iidrive.pipeline.load import LoadedTokenizer, load_tokenizer
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.tokens import tokens_folder
from iidrive.runtime.run_folder import Run
from iidrive.training import checkpoint
from iidrive.training.checkpoint import Checkpoint
from iidrive.training.options import RunOptions


def train_tokenizer(
    train: TrainOptions = TrainOptions(run="runs/tokenizer"),  # noqa: B008
    where: DataOptions = DataOptions(),  # noqa: B008
    recipe: Recipe = recipes.small(),  # noqa: B008
) -> None:
    """Stage 1: train the scene tokenizer.

    Args:
        train: run folder, initialisation and parallelism.
        where: scenes to train on.
        recipe: models and trainings.
    """
    options = train.enter(recipe.train_tokenizer)
    source, split = where.open(recipe, "train")
    started = start(train.run, training.describe("train tokenizer", recipe, source, split), options)
    finish(training.train_tokenizer(recipe, source, split, started, options), where, recipe, train.run)


def train_world(
    tokenizer: str,
    tokens: str = "",
    train: TrainOptions = TrainOptions(run="runs/world"),  # noqa: B008
    where: DataOptions = DataOptions(),  # noqa: B008
    recipe: Recipe = recipes.small(),  # noqa: B008
) -> None:
    """Stage 2: train the world model on a tokenizer's tokens.

    Args:
        tokenizer: run folder or checkpoint of stage 1.
        tokens: token cache written by `iidrive tokens`; default: RUN/tokens, written if missing.
        train: run folder, initialisation and parallelism.
        where: scenes to train on.
        recipe: models and trainings.
    """
    options, allow = train.enter(recipe.train_world), train.allow_mismatch == "on"
    source, split = where.open(recipe, "train")
    about = training.describe("train world", recipe, source, split) | {"allow_mismatch": train.allow_mismatch}
    started = start(train.run, about, options)
    stage1 = load_tokenizer(tokenizer)
    cache = tokens_of(tokens, stage1, source, split, Path(train.run), allow, process_group=options.process_group)
    path = training.train_world(recipe, stage1, cache, source, split, started, options, allow=allow)
    finish(path, where, recipe, train.run)


def train_reactions(
    world: str,
    tokens: str = "",
    train: TrainOptions = TrainOptions(run="runs/reactions"),  # noqa: B008
    where: DataOptions = DataOptions(),  # noqa: B008
    recipe: Recipe = recipes.small(),  # noqa: B008
) -> None:
    """Add a reaction net to a world model: what others do if the ego follows a given plan. It learns from branched simulations of towns.

    Planners on the new world model can read each candidate in a forecast of its own: --recipe.planner.per_candidate true.

    Args:
        world: run folder or checkpoint of stage 2. Only the reaction net is trained.
        tokens: token cache; default: that of the world model's run, else RUN/tokens.
        train: run folder and parallelism.
        where: scenes to branch: towns only.
        recipe: models and trainings.
    """
    options, allow = train.enter(recipe.train_reactions), train.allow_mismatch == "on"
    if options.init:
        raise ConfigError("train reactions starts from the world model that it is given: leave --init out.")
    begun = _on_world("train reactions", world, tokens, train, where, recipe, options)
    path = training.train_reactions(recipe, begun.world, begun.cache, begun.source, begun.split, begun.run, options, allow, begun.tokenizer)
    finish(path, where, recipe, train.run)


def train_planner(
    world: str,
    train_ii: Switch = "on",
    tokens: str = "",
    train: TrainOptions = TrainOptions(run="runs/planner"),  # noqa: B008
    where: DataOptions = DataOptions(),  # noqa: B008
    recipe: Recipe = recipes.small(),  # noqa: B008
) -> None:
    """Train the planner on top of a world model.

    Args:
        world: run folder or checkpoint of stage 2.
        train_ii: whether the planner is trained with the imagined future.
        tokens: token cache; default: that of the world model's run, else RUN/tokens.
        train: run folder, initialisation and parallelism.
        where: scenes to train on.
        recipe: models and trainings.
    """
    options, allow = train.enter(recipe.train_planner), train.allow_mismatch == "on"
    begun = _on_world("train planner", world, tokens, train, where, recipe, options)
    path = training.train_planner(
        recipe, begun.world, begun.cache, begun.source, begun.split, begun.run, train_ii == "on", options, allow, begun.tokenizer
    )
    finish(path, where, recipe, train.run)


@dataclass(frozen=True)
class _Begun:
    """What a training on top of a world model starts with. The tokenizer is that of the world model, and so are the tokens."""

    source: Source
    split: str
    run: Run
    world: Checkpoint
    tokenizer: LoadedTokenizer
    cache: TokenCache


def _on_world(what: str, world: str, tokens: str, train: TrainOptions, where: DataOptions, recipe: Recipe, options: RunOptions) -> _Begun:
    """Start a training on top of a world model. `tokens`: token cache; by default that of the world model's run if there is one, else RUN/tokens."""
    source, split = where.open(recipe, "train")
    stage2 = checkpoint.read(world)
    stage2.require_kind("world")
    about = training.describe(what, recipe, source, split) | {"allow_mismatch": train.allow_mismatch}
    started = start(train.run, about, options)
    stage1 = load_tokenizer(stage2.parent_path("tokenizer"))
    near = tokens_folder(Path(world), stage1, source)
    tokens, allow = tokens or (str(near) if near.is_dir() else ""), train.allow_mismatch == "on"
    cache = tokens_of(tokens, stage1, source, split, Path(train.run), allow, process_group=options.process_group)
    return _Begun(source, split, started, stage2, stage1, cache)


def tokens(
    tokenizer: str,
    out: str,
    shard: str = "0/1",
    devices: int = 0,
    where: DataOptions = DataOptions(),  # noqa: B008
    recipe: Recipe = recipes.small(),  # noqa: B008
) -> None:
    """Write the token cache of a split: the code indices of every keyframe.

    The command can be stopped and restarted at any time: complete scenes are kept; damaged ones are reported and written again.

    Args:
        tokenizer: run folder or checkpoint of stage 1.
        out: folder to write.
        shard: K/N writes every N-th scene starting with scene K (from 0), to share the work among N processes.
        devices: processes on this machine that share the work.
        where: scenes to tokenize; default: the usual training split.
        recipe: the towns (seed, number of scenes).
    """
    process_group = enter(devices)
    source, split = where.open(recipe, "train")
    cache = tokens_of(out, tokenizer, source, split, Path(out), shard=places_of_shard(shard), process_group=process_group)
    whose = split if shard == "0/1" else f"shard {shard} of {split}"
    print(f"tokens of {whose} in {cache.folder}: {cache.frame_bytes} bytes per keyframe, tokenizer {cache.manifest.tokenizer}")
