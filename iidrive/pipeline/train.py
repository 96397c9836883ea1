"""Training of each stage. Each function takes a recipe, a source and a run folder, and returns the last checkpoint.

Every stage follows the same steps: read the tracks of the scenes, build the model, check its parents, write a manifest, and run the training loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from iidrive.core.classes import OCC_CLASSES
from iidrive.core.config_io import to_plain
from iidrive.core.errors import CheckpointError, ConfigError, DataError
from iidrive.core.lineage import INITIAL, Lineage, Parent, joined
from iidrive.core.scene import GridSpec
from iidrive.data.box_tracks import BoxTargets, FlowTargets
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack, OccupancyFrames, keyframes, read_tracks
from iidrive.data.joint import Joint, mixture, parts_of, splits_of, tracks_of
from iidrive.data.scene_lists import is_list
from iidrive.data.source import Source
from iidrive.data.tokens import TokenCache
from iidrive.models.baselines import EgoMLP
from iidrive.models.compute import ComputeConfig
from iidrive.models.ego_motion import MotionPrior
from iidrive.models.forecast import Forecaster
from iidrive.models.losses import class_weights, presence_weights
from iidrive.models.occupancy_flow import FlowLearner, FlowNet
from iidrive.models.planner import Agent, Planner
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline import token_check
from iidrive.pipeline.load import LoadedTokenizer, Place, load_forecaster, load_tokenizer, require_width
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.validate import by_source, held_out, validate_planner, validate_tokenizer, validate_world
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.run_folder import Run, code_version
from iidrive.training import checkpoint
from iidrive.training.checkpoint import Checkpoint, Manifest
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
    manifest = start_from(options.init, tokenizer, _manifest("tokenizer", config, training, source, split, recipe))
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
    others = bool(options.init) or (options.resume != "off" and _started_from_others(run))
    for part in (world.prior, world.flow):
        if part is not None and others:  # its weights come with the checkpoint
            part.requires_grad_(False)
    if world.prior is not None and not others:
        _train_prior(recipe, world.prior, source, split, tracks, run.below("motion"), options)
    if world.flow is not None and not others:
        require_boxes(source, tracks, "train the world model without occupancy flow (--recipe.world.flow.width 0)")
        _train_flow(recipe, world.flow, stage1, compute, cache, source, split, tracks, run.below("flow"), options)
    occupancy = OccupancyFrames(source, stage1.model.config.grid, keyframes(tracks)) if config.voxel_weight else None
    clips = ClipDataset(tracks, ClipSpec(), occupancy, cache, future=True, mixture=mixture(source, tracks, recipe.shares))
    manifest = _manifest("world", config, training, source, split, recipe, (stage1.checkpoint,))
    manifest = replace(manifest, metrics=zero.metrics(), marks=joined(stage1.checkpoint.manifest.marks, marks, found))
    manifest = start_from(options.init, world, manifest, allow, stage1.manifest.origins)
    validate = partial(by_source, partial(validate_world, forecaster, process_group=options.process_group), held_out(source, training))
    return fit(TrainTask(forecaster, world, manifest, config, validate=validate), clips, training, run, options)


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
) -> Path:
    """Train the planner, with or without the predicted future (`train_ii`). `allow` as in `train_world`; marks of the world model are inherited.

    Raises:
        LineageError: if the world model's tokenizer is missing, for tokens of another tokenizer, or tokens that fail the 0 s check.
    """
    options = options or RunOptions()
    config, training = recipe.planner, recipe.train_planner
    stage2 = load_forecaster(world, tokenizer, allow, compute_config(training, options))
    stage1 = stage2.tokenizer
    marks = cache.require(stage2.lineage, allow)
    require_width("planner's latent_width", config.latent_width, stage1.model)
    torch.manual_seed(training.seed)
    agent = Agent(stage2.model, Planner(config, stage1.model.cells), train_ii)
    tracks = read_tracks(source, split)
    zero, found = token_check.check(stage1.model, stage1.checkpoint.manifest, cache, source, tracks, allow)
    if config.accelerations and stage2.model.flow_grid is None:
        raise ConfigError(
            "candidates need the world model's occupancy flow, and this world model has none: train one with "
            "--recipe.world.flow.width 32, or plan without candidates: --recipe.planner.accelerations []."
        )
    if config.accelerations:
        require_boxes(source, tracks, "plan without candidates (--recipe.planner.accelerations [])")
    labels, mixed = BoxTargets(source) if config.accelerations else None, mixture(source, tracks, recipe.shares)
    clips = ClipDataset(tracks, ClipSpec(intended=True), codes=cache, labels=labels, mixture=mixed)
    parents = (stage1.checkpoint, stage2.checkpoint)
    manifest = _manifest("planner", config, training, source, split, recipe, parents, {"train_ii": train_ii})
    manifest = replace(manifest, metrics=zero.metrics(), marks=joined(stage2.manifest.marks, marks, found))
    manifest = start_from(options.init, agent.planner, manifest, allow, stage2.manifest.origins)
    validate = partial(by_source, partial(validate_planner, agent, process_group=options.process_group), held_out(source, training))
    apart = (agent.planner.outcomes,) if config.accelerations else ()
    return fit(
        TrainTask(agent, agent.planner, manifest, config, validate=validate, clipped_separately=apart), clips, training, run, options
    )


def train_ego_mlp(recipe: Recipe, source: Source, split: str, run: Run, options: RunOptions | None = None) -> Path:
    """Train the ego-status MLP, a baseline."""
    config, training = recipe.ego_mlp, recipe.train_ego_mlp
    torch.manual_seed(training.seed)
    model = EgoMLP(config)
    tracks = read_tracks(source, split)
    clips = ClipDataset(tracks, ClipSpec(intended=True), mixture=mixture(source, tracks, recipe.shares))
    manifest = _manifest("ego-mlp", config, training, source, split, recipe)
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


def start_from(init: str, module: nn.Module, manifest: Manifest, allow: bool = False, fine_tuned_from: tuple[Parent, ...] = ()) -> Manifest:
    """Initialise a model from the checkpoint `init` ("": keep its weights). Returns the manifest with that checkpoint as an ancestor.

    A checkpoint of a later stage stands for its own model of this kind: `town-small` is a planner, and gives its tokenizer to a tokenizer.
    `fine_tuned_from` are the checkpoints that the parent's own training started from: a model of theirs may be trained on with the fine-tuned parent.

    Raises:
        CheckpointError: for a checkpoint of another kind or architecture.
        LineageError: for a world model or planner with other parents; with `allow` a mark is added instead.
    """
    if not init:
        return manifest
    found = checkpoint.read(init)
    if any(parent.kind == manifest.kind for parent in found.manifest.parents):
        found = checkpoint.read(found.parent_path(manifest.kind))
    found.require_kind(manifest.kind)
    marks: list[tuple[str, ...]] = []
    for parent in manifest.parents[-1:]:
        if found.manifest.parent(parent.kind).fingerprint not in [origin.fingerprint for origin in fine_tuned_from]:
            marks.append(found.require_parent(parent.kind, Lineage(parent.kind, parent.fingerprint, parent.path), allow))
    checkpoint.load_weights(module, found.weights(), init)
    origin = Parent(INITIAL + found.manifest.kind, str(found.folder.resolve()), found.manifest.fingerprint)
    above = (*manifest.parents, origin)
    return replace(manifest, parents=above, marks=joined(manifest.marks, found.manifest.marks, *marks)).also_trained_on(found.manifest)


def _train_prior(
    recipe: Recipe, prior: MotionPrior, source: Source, split: str, tracks: list[EgoTrack], run: Run, options: RunOptions
) -> None:
    """Train the world model's motion prior from ego poses, or resume its training; then freeze it.

    Only rank 0 trains, because a step is shorter than one all-reduce.
    """
    config = {"width": recipe.world.prior_width, "history": recipe.world.history}
    manifest = _manifest("motion", config, recipe.train_motion, source, split, recipe)
    resume = "off" if options.resume == "off" else "auto"
    process_group = options.process_group
    Run.start(run.folder, {"what": "train motion prior", "config": manifest.training}, resume != "off", process_group)
    alone = replace(options, process_group=ProcessGroup(), resume=resume, stop_at=None)
    with process_group.raise_on_all_ranks():
        if process_group.is_rank_zero:
            clips = ClipDataset(tracks, ClipSpec(), mixture=mixture(source, tracks, recipe.shares))
            fit(TrainTask(prior, prior, manifest, config), clips, recipe.train_motion, run, alone)
    if not process_group.is_rank_zero:
        weights = checkpoint.load_tensors(run.folder)
        checkpoint.load_weights(prior.to(next(iter(weights.values())).dtype), weights, str(run.folder))
    prior.requires_grad_(False)


def _train_flow(
    recipe: Recipe,
    net: FlowNet,
    stage1: LoadedTokenizer,
    compute: ComputeConfig,
    cache: TokenCache,
    source: Source,
    split: str,
    tracks: list[EgoTrack],
    run: Run,
    options: RunOptions,
) -> None:
    """Train the world model's occupancy flow on the same tokens, or resume its training; then freeze it."""
    learner = FlowLearner(stage1.computing(compute).model, net)
    manifest = _manifest("flow", recipe.world.flow, recipe.train_flow, source, split, recipe, (stage1.checkpoint,))
    resume = "off" if options.resume == "off" else "auto"
    Run.start(run.folder, {"what": "train occupancy flow", "config": manifest.training}, resume != "off", options.process_group)
    labels = FlowTargets(source, net.fine)
    clips = ClipDataset(tracks, ClipSpec(), codes=cache, labels=labels, mixture=mixture(source, tracks, recipe.shares))
    to_its_end = replace(options, resume=resume, stop_at=None)
    fit(TrainTask(learner, net, manifest, recipe.world.flow), clips, recipe.train_flow, run, to_its_end)
    net.requires_grad_(False)


def _started_from_others(run: Run) -> bool:
    """Whether the training of a resumed run was initialised from other weights."""
    for path in checkpoint.newest_first(run.folder):
        with suppress(CheckpointError):  # a damaged checkpoint is reported when training resumes
            return bool(checkpoint.read_manifest(path).origins)
    return False


def _manifest(
    kind: checkpoint.Kind,
    config: Any,
    training: TrainConfig,
    source: Source,
    split: str,
    recipe: Recipe,
    parents: tuple[Checkpoint, ...] = (),
    about: dict[str, Any] | None = None,
) -> Manifest:
    data = {**source.identity(), "split": split, "occupancy": source.occupancy_source, "command": source.command_source}
    entries = [_trained_on(kind, part, own) for part, own in splits_of(source, split)]
    if isinstance(source, Joint):
        data["shares"] = dict(recipe.shares)
        for part, entry in zip(source.sources, entries, strict=True):
            entry |= {"occupancy": part.occupancy_source, "command": part.command_source, "share": recipe.shares.get(part.name)}
    about = {"recipe": recipe.name, "town": to_plain(recipe.town), "trained_on": entries, **(about or {})}
    above = tuple(parent.as_parent for parent in parents)
    made = Manifest(kind, "", to_plain(config), 0, code_version(), to_plain(data), to_plain(training), {}, about, above)
    return made.also_trained_on(*(parent.manifest for parent in parents))


def _trained_on(kind: checkpoint.Kind, source: Source, split: str) -> dict[str, Any]:
    """One source that trains a model."""
    own: dict[str, Any] = {"kind": kind, "source": source.name, "seed": source.identity().get("seed"), "split": split}
    if is_list(split):
        own["scenes"] = list(source.scene_names(split))  # the file may change or go
    return own
