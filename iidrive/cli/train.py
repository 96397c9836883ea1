"""Commands that train a stage, and the one that writes its tokens."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from iidrive.cli.options import Occupancy, Switch, enter, finish, open_data, places_of_shard, run_options, start, tokens_of
from iidrive.data import Data, DataName
from iidrive.pipeline import recipes, train
from iidrive.pipeline.load import load_tokenizer
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.tokens import tokens_folder
from iidrive.training import checkpoint
from iidrive.training.options import Resume
from iidrive.training.parallel import ParallelConfig


def train_tokenizer(
    run: str = "runs/tokenizer",
    data: DataName = "town",
    root: str = "",
    split: str = "",
    recipe: Recipe = recipes.small(),  # noqa: B008
    occupancy: Occupancy = "auto",
    gts: str = "",
    predicted: str = "",
    version: str = "",
    resume: Resume = "off",
    init: str = "",
    devices: int = 0,
    parallel: ParallelConfig = ParallelConfig(),  # noqa: B008
    tensorboard: Switch = "off",
) -> None:
    """Stage 1: train the scene tokenizer.

    Args:
        run: run folder to write.
        data: embedded towns or nuScenes.
        root: folder of nuScenes.
        split: scenes to train on; default: the usual training split.
        recipe: tiny, demo, small, full or a YAML file; any field can follow, as in --recipe.train_tokenizer.batch 4.
        occupancy: which occupancy of nuScenes to use.
        gts: folder of Occ3D labels (default: ROOT/gts).
        predicted: folder of predicted labels in the Occ3D layout.
        version: version folder of nuScenes, where there are several.
        resume: go on from the newest checkpoint of the run folder; auto: if there is one.
        init: run folder or checkpoint whose weights to start from (fine-tuning).
        devices: processes on this machine, one a GPU; results do not depend on it. Under torchrun or SLURM leave it out.
        spread: samples computed at once on a device, accumulation, workers, and what saves memory or time.
        tensorboard: keep curves in RUN/tensorboard.
    """
    options = run_options(enter(devices, partial(parallel.divide, recipe.train_tokenizer)), parallel, resume, init, tensorboard)
    choice = Data(data, root, version, occupancy, gts, predicted)
    source, split = open_data(choice, recipe, split)
    started = start(run, train.describe("train tokenizer", recipe, source, split), options)
    finish(train.train_tokenizer(recipe, source, split, started, options), choice, recipe, run)


def train_world(
    tokenizer: str,
    run: str = "runs/world",
    tokens: str = "",
    data: DataName = "town",
    root: str = "",
    split: str = "",
    recipe: Recipe = recipes.small(),  # noqa: B008
    occupancy: Occupancy = "auto",
    gts: str = "",
    predicted: str = "",
    version: str = "",
    resume: Resume = "off",
    init: str = "",
    devices: int = 0,
    parallel: ParallelConfig = ParallelConfig(),  # noqa: B008
    tensorboard: Switch = "off",
    allow_mismatch: Switch = "off",
) -> None:
    """Stage 2: train the world model on a tokenizer's tokens.

    Args:
        tokenizer: run folder or checkpoint of stage 1.
        run: run folder to write.
        tokens: token cache written by `iidrive tokens`; default: RUN/tokens, written if absent.
        data: embedded towns or nuScenes.
        root: folder of nuScenes.
        split: scenes to train on; default: the usual training split.
        recipe: tiny, demo, small, full or a YAML file, with overrides.
        occupancy: which occupancy of nuScenes to use.
        gts: folder of Occ3D labels (default: ROOT/gts).
        predicted: folder of predicted labels in the Occ3D layout.
        version: version folder of nuScenes, where there are several.
        resume: go on from the newest checkpoint of the run folder; auto: if there is one.
        init: run folder or checkpoint whose weights to start from (fine-tuning).
        devices: processes on this machine, one a GPU; results do not depend on it. Under torchrun or SLURM leave it out.
        spread: samples computed at once on a device, accumulation, workers, and what saves memory or time.
        tensorboard: keep curves in RUN/tensorboard.
        allow_mismatch: use stages that do not belong together all the same; everything made with them is marked.
    """
    options = run_options(enter(devices, partial(parallel.divide, recipe.train_world)), parallel, resume, init, tensorboard)
    choice = Data(data, root, version, occupancy, gts, predicted)
    source, split = open_data(choice, recipe, split)
    started = start(run, train.describe("train world", recipe, source, split) | {"allow_mismatch": allow_mismatch}, options)
    stage1 = load_tokenizer(tokenizer)
    cache = tokens_of(tokens, stage1, source, split, Path(run), allow_mismatch == "on", process_group=options.process_group)
    path = train.train_world(recipe, stage1, cache, source, split, started, options, allow=allow_mismatch == "on")
    finish(path, choice, recipe, run)


def train_planner(
    world: str,
    train_ii: Switch = "on",
    run: str = "runs/planner",
    tokens: str = "",
    data: DataName = "town",
    root: str = "",
    split: str = "",
    recipe: Recipe = recipes.small(),  # noqa: B008
    occupancy: Occupancy = "auto",
    gts: str = "",
    predicted: str = "",
    version: str = "",
    resume: Resume = "off",
    init: str = "",
    devices: int = 0,
    parallel: ParallelConfig = ParallelConfig(),  # noqa: B008
    tensorboard: Switch = "off",
    allow_mismatch: Switch = "off",
) -> None:
    """Train the planner on top of a world model.

    Args:
        world: run folder or checkpoint of stage 2.
        train_ii: whether the planner learns to use the imagined future.
        run: run folder to write.
        tokens: token cache; default: the world run's, or RUN/tokens, written if absent.
        data: embedded towns or nuScenes.
        root: folder of nuScenes.
        split: scenes to train on; default: the usual training split.
        recipe: tiny, demo, small, full or a YAML file, with overrides.
        occupancy: which occupancy of nuScenes to use.
        gts: folder of Occ3D labels (default: ROOT/gts).
        predicted: folder of predicted labels in the Occ3D layout.
        version: version folder of nuScenes, where there are several.
        resume: go on from the newest checkpoint of the run folder; auto: if there is one.
        init: run folder or checkpoint whose weights to start from (fine-tuning).
        devices: processes on this machine, one a GPU; results do not depend on it. Under torchrun or SLURM leave it out.
        spread: samples computed at once on a device, accumulation, workers, and what saves memory or time.
        tensorboard: keep curves in RUN/tensorboard.
        allow_mismatch: use stages that do not belong together all the same; everything made with them is marked.
    """
    options = run_options(enter(devices, partial(parallel.divide, recipe.train_planner)), parallel, resume, init, tensorboard)
    choice = Data(data, root, version, occupancy, gts, predicted)
    source, split = open_data(choice, recipe, split)
    stage2 = checkpoint.read(world)
    stage2.require_kind("world")
    started = start(run, train.describe("train planner", recipe, source, split) | {"allow_mismatch": allow_mismatch}, options)
    stage1, allow = load_tokenizer(stage2.parent_path("tokenizer")), allow_mismatch == "on"
    near = tokens_folder(Path(world), stage1, source)
    folder = tokens or (str(near) if near.is_dir() else "")
    cache = tokens_of(folder, stage1, source, split, Path(run), allow, process_group=options.process_group)
    path = train.train_planner(recipe, stage2, cache, source, split, started, train_ii == "on", options, allow, stage1)
    finish(path, choice, recipe, run)


def tokens(
    tokenizer: str,
    out: str,
    data: DataName = "town",
    root: str = "",
    split: str = "",
    recipe: Recipe = recipes.small(),  # noqa: B008
    occupancy: Occupancy = "auto",
    gts: str = "",
    predicted: str = "",
    version: str = "",
    shard: str = "0/1",
    devices: int = 0,
) -> None:
    """Write the token cache of a split: the code indices of every keyframe.

    It can be stopped at any moment and started again: scenes that are there and whole are kept, damaged ones are named and written anew.

    Args:
        tokenizer: run folder or checkpoint of stage 1.
        out: folder to write.
        data: embedded towns or nuScenes.
        root: folder of nuScenes.
        split: scenes to tokenize; default: the usual training split.
        recipe: names the towns (seed, number of scenes).
        occupancy: which occupancy of nuScenes to use.
        gts: folder of Occ3D labels (default: ROOT/gts).
        predicted: folder of predicted labels in the Occ3D layout.
        version: version folder of nuScenes, where there are several.
        shard: K/N writes every N-th scene from the K-th on, counted from 0, so that N processes share the work.
        devices: processes on this machine that share the work.
    """
    process_group = enter(devices)
    choice = Data(data, root, version, occupancy, gts, predicted)
    source, split = open_data(choice, recipe, split)
    cache = tokens_of(out, tokenizer, source, split, Path(out), shard=places_of_shard(shard), process_group=process_group)
    whose = split if shard == "0/1" else f"shard {shard} of {split}"
    print(f"tokens of {whose} in {cache.folder}: {cache.frame_bytes} bytes a keyframe, tokenizer {cache.manifest.tokenizer}")
