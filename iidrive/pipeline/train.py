"""Training of each stage. Each function takes a recipe, a source and a run folder, and returns the last checkpoint.

Every stage follows the same steps: read the tracks of the scenes, build the model, check its parents, write a manifest, and run the training loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iidrive.core.classes import OCC_CLASSES
from iidrive.core.config_io import to_plain
from iidrive.core.errors import CheckpointError, ConfigError, DataError
from iidrive.core.lineage import joined
from iidrive.core.scene import STEP_S, GridSpec
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack, OccupancyFrames, keyframes, read_tracks
from iidrive.data.joint import Joint, mixture, parts_of, tracks_of
from iidrive.data.outcome_targets import OutcomeTargets
from iidrive.data.source import Source
from iidrive.data.tokens import TokenCache
from iidrive.data.town.source import Town
from iidrive.models.baselines import EgoMLP
from iidrive.models.compute import ComputeConfig
from iidrive.models.forecast import Forecaster
from iidrive.models.losses import class_weights, presence_weights
from iidrive.models.planner import Agent, Planner, require_reactions
from iidrive.models.reaction_loss import ReactionLearner
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline import token_check
from iidrive.pipeline.load import LoadedTokenizer, Place, load_forecaster, load_tokenizer, require_width
from iidrive.pipeline.manifests import new_manifest, start_from
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.train_parts import train_flow, train_prior, train_route
from iidrive.pipeline.validate import by_source, held_out, validate_planner, validate_reactions, validate_tokenizer, validate_world
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.progress import counting
from iidrive.runtime.run_folder import Run
from iidrive.simulation.branches import Branches
from iidrive.training import checkpoint
from iidrive.training.loop import fit
from iidrive.training.optim import TrainConfig
from iidrive.training.options import RunOptions
from iidrive.training.state import TrainTask

AUTOCAST = {"bf16": torch.bfloat16, "16": torch.float16}


def describe(what: str, recipe: Recipe, source: Source, split: str) -> dict[str, Any]:
    """The content of run.json for a stage."""
    return {"what": what, "data": source.identity(), "missing": source.missing(), "split": split, "recipe": to_plain(recipe)}


def compute_config(training: TrainConfig, options: RunOptions) -> ComputeConfig:
    """The compute config of the models during a training."""
    return ComputeConfig(AUTOCAST.get(training.precision), options.parallel.activation_checkpointing)


def train_tokenizer(recipe: Recipe, source: Source, split: str, run: Run, options: RunOptions | None = None) -> Path:
    """Train stage 1, the tokenizer, on clips of `clip_frames` keyframes. Every frame of a clip is reconstructed."""
    options = options or RunOptions()
    config, training = recipe.tokenizer, recipe.train_tokenizer
    past = recipe.clip_frames - 1
    tracks = read_tracks(source, split)
    if config.voxel_loss == "balanced" and not config.class_weights:
        counts = class_counts(source, tracks, config.grid, shares=recipe.shares)
        lovasz = presence_weights((counts > 0).sum(0), len(counts))
        config = replace(config, class_weights=class_weights(counts.sum(0)), lovasz_weights=lovasz)
    torch.manual_seed(training.seed)
    compute = compute_config(training, options)
    tokenizer = Tokenizer(config, compute)
    spec = ClipSpec(past=past, future=1, full_future=False, first=past)
    occupancy = OccupancyFrames(source, config.grid, keyframes(tracks))
    clips = ClipDataset(tracks, spec, occupancy, mixture=mixture(source, tracks, recipe.shares))
    manifest = start_from(options.init, tokenizer, new_manifest("tokenizer", config, training, source, split, recipe))
    validate = partial(by_source, partial(validate_tokenizer, tokenizer), held_out(source, training))
    path = fit(TrainTask(tokenizer, tokenizer, manifest, config, tokenizer.prepare, validate), clips, training, run, options)
    options.process_group.barrier()
    if token_check.RECORD not in checkpoint.read_manifest(path).metrics:
        measured = tokenizer if compute == ComputeConfig() else tokenizer.computing(ComputeConfig())
        found = token_check.record(measured, source, tracks)
        options.process_group.barrier()
        if options.process_group.is_rank_zero:
            checkpoint.amend(path, found)
        options.process_group.barrier()
    return path


def train_world(
    recipe: Recipe,
    tokenizer: Place | LoadedTokenizer,
    cache: TokenCache,
    source: Source,
    split: str,
    run: Run,
    options: RunOptions | None = None,
    allow: bool = False,
) -> Path:
    """Train stage 2, the world model, on a tokenizer's tokens. With `allow`, tokens of another tokenizer are used and the world model is marked.

    Raises:
        LineageError: for tokens of another tokenizer, or tokens that fail the 0 s check (see token_check.py).
    """
    options = options or RunOptions()
    stage1 = load_tokenizer(tokenizer)
    marks = cache.require(stage1.checkpoint.lineage, allow)
    config, training = recipe.world, recipe.train_world
    if config.reactions.width:
        raise ConfigError(
            "a reaction net is trained on a finished world model: leave world.reactions.width 0, then `iidrive train reactions`."
        )
    require_width("world model's width", config.width, stage1.model)
    if (config.norm == "batch" or config.motion == "map") and not training.group:
        raise ConfigError(
            "norm=batch and motion=map use several samples together: set their number with --recipe.train_world.group (published: 8)."
        )
    compute = compute_config(training, options)
    torch.manual_seed(training.seed)
    world = WorldModel(config, stage1.model.cells, stage1.model.config.grid, compute)
    tracks = read_tracks(source, split)
    zero, found = token_check.check(stage1.model, stage1.checkpoint.manifest, cache, source, tracks, allow)
    forecaster = Forecaster(stage1.computing(compute).model, world)
    others = _starts_from_others(run, options)
    for part in (world.prior, world.flow):
        if part is not None and others:  # its weights come with the checkpoint
            part.requires_grad_(False)
    if world.prior is not None and not others:
        train_prior(recipe, world.prior, source, split, tracks, run.below("motion"), options)
    if world.flow is not None and not others:
        require_boxes(source, tracks, "train the world model without occupancy flow (--recipe.world.flow.width 0)")
        train_flow(recipe, world.flow, stage1, compute, cache, source, split, tracks, run.below("flow"), options)
    occupancy = OccupancyFrames(source, stage1.model.config.grid, keyframes(tracks)) if config.voxel_weight else None
    clips = ClipDataset(tracks, ClipSpec(), occupancy, cache, future=True, mixture=mixture(source, tracks, recipe.shares))
    manifest = new_manifest("world", config, training, source, split, recipe, (stage1.checkpoint,))
    manifest = replace(manifest, metrics=zero.metrics(), marks=joined(stage1.checkpoint.manifest.marks, marks, found))
    manifest = start_from(options.init, world, manifest, allow, stage1.manifest.origins)
    validate = partial(by_source, partial(validate_world, forecaster, process_group=options.process_group), held_out(source, training))
    return fit(TrainTask(forecaster, world, manifest, config, validate=validate), clips, training, run, options)


def train_reactions(
    recipe: Recipe,
    world: Place,
    cache: TokenCache,
    source: Source,
    split: str,
    run: Run,
    options: RunOptions | None = None,
    allow: bool = False,
    tokenizer: Place | LoadedTokenizer | None = None,
) -> Path:
    """Add a reaction net to a world model and train it on branches of towns (see models/reactions.py). Nothing else of the world model changes.

    Raises:
        ConfigError: for other data than towns, because recorded scenes cannot be branched; or for a world model without occupancy flow.
        LineageError: for tokens of another tokenizer, or tokens that fail the 0 s check.
    """
    options = options or RunOptions()
    training, compute = recipe.train_reactions, compute_config(recipe.train_reactions, options)
    if not isinstance(source, Town):
        raise ConfigError(f"reactions are learned from branched simulations, and {source.name} cannot be branched: use --data town.")
    stage2 = load_forecaster(world, tokenizer, allow, compute)
    stage1, grid = stage2.tokenizer, stage2.model.flow_grid
    if grid is None or not recipe.reactions.width:
        raise ConfigError("a reaction net corrects an occupancy flow: give a world model that has one, and a reactions.width above 0.")
    given = stage2.model.world.config
    if given.reactions.width not in (0, recipe.reactions.width):
        raise ConfigError(f"this world model's reaction net has width {given.reactions.width}: set --recipe.reactions.width to it.")
    marks = cache.require(stage2.lineage, allow)
    tracks = read_tracks(source, split)
    zero, found = token_check.check(stage1.model, stage1.checkpoint.manifest, cache, source, tracks, allow)
    torch.manual_seed(training.seed)
    config = replace(given, reactions=recipe.reactions)
    model = WorldModel(config, stage1.model.cells, stage1.model.config.grid, compute)
    branches = Branches(source, grid)
    clips = ClipDataset(tracks, ClipSpec(), codes=cache, labels=branches)
    prepare_branches(branches, [track.name for track in tracks], options.process_group)
    learner = ReactionLearner(Forecaster(stage1.computing(compute).model, model))
    manifest = new_manifest("world", config, training, source, split, recipe, (stage1.checkpoint,))
    manifest = replace(manifest, metrics=zero.metrics(), marks=joined(stage2.manifest.marks, marks, found))
    manifest = start_from(str(stage2.checkpoint.path), model, manifest, allow, stage2.manifest.origins, ("reactions",))
    validate = partial(validate_reactions, learner, branches=branches, process_group=options.process_group)
    task = TrainTask(learner, model, manifest, config, validate=partial(by_source, validate, held_out(source, training)), stage="reactions")
    return fit(task, clips, training, run, options)


def prepare_branches(branches: Branches, names: Sequence[str], process_group: ProcessGroup) -> None:
    """Make the branches of scenes that are not stored. The processes of a group share the work."""
    with process_group.raise_on_all_ranks(), counting("branches", len(names), process_group) as tick:
        for name in process_group.shard(names):
            branches.prepare(name)
            tick(name)
    process_group.barrier()


def train_planner(
    recipe: Recipe,
    world: Place,
    cache: TokenCache,
    source: Source,
    split: str,
    run: Run,
    train_ii: bool,
    options: RunOptions | None = None,
    allow: bool = False,
    tokenizer: Place | LoadedTokenizer | None = None,
    route: Run | None = None,
) -> Path:
    """Train the planner, with or without the predicted future (`train_ii`). `allow` as in `train_world`; marks of the world model are inherited.

    The route head is trained first, in the run folder `route` (default: `route` below `run`). If it is complete there, it is used as it is: several
    planners can share one.

    Raises:
        LineageError: if the world model's tokenizer is missing, for tokens of another tokenizer, or tokens that fail the 0 s check.
    """
    options, route = options or RunOptions(), route or run.below("route")
    config, training = recipe.planner, recipe.train_planner
    stage2 = load_forecaster(world, tokenizer, allow, compute_config(training, options))
    stage1 = stage2.tokenizer
    marks = cache.require(stage2.lineage, allow)
    require_width("planner's latent_width", config.latent_width, stage1.model)
    tracks = read_tracks(source, split)
    if config.accelerations and not config.fastest_mps:
        config = replace(config, fastest_mps=fastest_mps(tracks))
    torch.manual_seed(training.seed)
    planner = Planner(config, stage1.model.cells)
    zero, found = token_check.check(stage1.model, stage1.checkpoint.manifest, cache, source, tracks, allow)
    if config.accelerations and stage2.model.flow_grid is None:
        raise ConfigError(
            "candidates need the world model's occupancy flow, and this world model has none: train one with "
            "--recipe.world.flow.width 32, or plan without candidates: --recipe.planner.accelerations []."
        )
    require_reactions(config, stage2.model)
    if config.accelerations:
        require_boxes(source, tracks, "plan without candidates (--recipe.planner.accelerations [])")
    if planner.route is not None and not _route_is_given(run, route, options):
        compute = compute_config(training, options)
        train_route(recipe, planner.route, stage1, compute, cache, source, split, tracks, route, options)
    agent = Agent(stage2.model, planner, train_ii)
    labels, mixed = OutcomeTargets(source) if config.accelerations else None, mixture(source, tracks, recipe.shares)
    clips = ClipDataset(tracks, ClipSpec(intended=True), codes=cache, labels=labels, mixture=mixed)
    parents = (stage1.checkpoint, stage2.checkpoint)
    manifest = new_manifest("planner", config, training, source, split, recipe, parents, {"train_ii": train_ii})
    manifest = replace(manifest, metrics=zero.metrics(), marks=joined(stage2.manifest.marks, marks, found))
    manifest = start_from(options.init, planner, manifest, allow, stage2.manifest.origins, ("route", "quality"))
    validate = partial(by_source, partial(validate_planner, agent, process_group=options.process_group), held_out(source, training))
    apart = tuple(head for head in (getattr(planner, "outcomes", None), planner.quality) if head is not None)
    return fit(TrainTask(agent, planner, manifest, config, validate=validate, clipped_separately=apart), clips, training, run, options)


def fastest_mps(tracks: Sequence[EgoTrack]) -> float:
    """The speed that 0.1 % of the steps of all paths to learn from exceed, m/s, rounded up to 0.1."""
    steps = np.concatenate([np.diff(track.intended, axis=1, prepend=0)[track.path_valid] for track in tracks])
    if not len(steps):
        raise DataError("no keyframe has a future, so there is no path to learn from: the scenes are too short, or the split is empty.")
    return max(0.1, float(np.ceil(10 * np.quantile(np.linalg.norm(steps, axis=-1) / STEP_S, 0.999)) / 10))


def train_ego_mlp(recipe: Recipe, source: Source, split: str, run: Run, options: RunOptions | None = None) -> Path:
    """Train the ego-status MLP, a baseline."""
    config, training = recipe.ego_mlp, recipe.train_ego_mlp
    torch.manual_seed(training.seed)
    model = EgoMLP(config)
    tracks = read_tracks(source, split)
    clips = ClipDataset(tracks, ClipSpec(intended=True), mixture=mixture(source, tracks, recipe.shares))
    manifest = new_manifest("ego-mlp", config, training, source, split, recipe)
    return fit(TrainTask(model, model, manifest, config), clips, training, run, options)


def class_counts(
    source: Source, tracks: list[EgoTrack], grid: GridSpec, keyframes_: int = 512, shares: Mapping[str, float] | None = None
) -> np.ndarray:
    """Number of voxels per class in each of about `keyframes_` keyframes, spread evenly over scenes and time: (keyframes, classes).

    With `shares` of several sources, each source has its share of the keyframes, at least one.
    """
    if shares and isinstance(source, Joint):
        of = {part: max(1, round(keyframes_ * shares[part.name] / sum(shares.values()))) for part in source.sources}
        return np.concatenate([class_counts(part, tracks_of(source, part, tracks), grid, some) for part, some in of.items()])
    counts = []
    for i in range(min(keyframes_, keyframes(tracks))):
        track = tracks[i * len(tracks) // keyframes_ if len(tracks) > keyframes_ else i % len(tracks)]
        index = (i * 7919) % len(track.tokens)
        labels = source.occupancy(source.scene(track.name), index, grid).semantics
        counts.append(np.bincount(labels.ravel(), minlength=256)[: len(OCC_CLASSES)])
    return np.stack(counts)


def require_boxes(source: Source, tracks: list[EgoTrack], otherwise: str) -> None:
    """Raise DataError if a source has no box in any scene: unannotated space would be learnt as free."""
    for part in parts_of(source):
        own = tracks_of(source, part, tracks)
        if not any(len(keyframe.boxes) for track in own for keyframe in part.scene(track.name).keyframes):
            raise DataError(
                f"{part.name}: none of the {len(own)} scenes has boxes, so nothing says what moves in them. Leave the source out, or {otherwise}."
            )


def _starts_from_others(run: Run, options: RunOptions) -> bool:
    """Whether a training starts from other weights, or a resumed one did."""
    if options.init or options.resume == "off":
        return bool(options.init)
    for path in checkpoint.newest_first(run.folder):
        with suppress(CheckpointError):  # a damaged checkpoint is reported when training resumes
            return bool(checkpoint.read_manifest(path).origins)
    return False


def _route_is_given(run: Run, route: Run, options: RunOptions) -> bool:
    """Whether the route head's weights come with the checkpoint that a planner's training starts from, so that it need not be trained."""
    if options.init:
        return bool(checkpoint.read_manifest(options.init).architecture.get("route", {}).get("points"))
    return _starts_from_others(run, options) and not route.folder.exists()
