"""Training of the small parts that come before their stage: the world model's motion prior and occupancy flow, and the planner's route head.

Each part has a folder of its own below the stage's run folder, is trained to its end (or resumed), and is then frozen.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from iidrive.data.box_tracks import FlowTargets
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack
from iidrive.data.joint import mixture
from iidrive.data.routes import RouteTargets
from iidrive.data.source import Source
from iidrive.data.tokens import TokenCache
from iidrive.models.compute import ComputeConfig
from iidrive.models.ego_motion import MotionPrior
from iidrive.models.occupancy_flow import FlowLearner, FlowNet
from iidrive.models.route import RouteHead, RouteLearner
from iidrive.pipeline.load import LoadedTokenizer
from iidrive.pipeline.manifests import new_manifest
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.validate import by_source, held_out, validate_flow
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.run_folder import Run
from iidrive.training import checkpoint
from iidrive.training.loop import fit
from iidrive.training.optim import TrainConfig
from iidrive.training.options import RunOptions
from iidrive.training.state import TrainTask


def train_prior(
    recipe: Recipe, prior: MotionPrior, source: Source, split: str, tracks: list[EgoTrack], run: Run, options: RunOptions
) -> None:
    """Train the world model's motion prior from ego poses, or resume its training; then freeze it.

    Only rank 0 trains, because a step is shorter than one all-reduce.
    """
    config = {"width": recipe.world.prior_width, "history": recipe.world.history}
    manifest = new_manifest("motion", config, recipe.train_motion, source, split, recipe)
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


def train_flow(
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
    manifest = new_manifest("flow", recipe.world.flow, recipe.train_flow, source, split, recipe, (stage1.checkpoint,))
    labels = FlowTargets(source, net.fine)
    clips = ClipDataset(tracks, ClipSpec(), codes=cache, labels=labels, mixture=mixture(source, tracks, recipe.shares))
    scenes = held_out(source, recipe.train_flow)
    validate = partial(by_source, partial(validate_flow, learner, process_group=options.process_group), scenes)
    task = TrainTask(learner, net, manifest, recipe.world.flow, validate=validate)
    _fit_to_the_end(task, clips, recipe.train_flow, run, options, "train occupancy flow")


def train_route(
    recipe: Recipe,
    head: RouteHead,
    stage1: LoadedTokenizer,
    compute: ComputeConfig,
    cache: TokenCache,
    source: Source,
    split: str,
    tracks: list[EgoTrack],
    run: Run,
    options: RunOptions,
) -> None:
    """Train the planner's route head on the same tokens, or resume its training; then freeze it."""
    learner = RouteLearner(stage1.computing(compute).model, head)
    manifest = new_manifest("route", recipe.planner.route, recipe.train_route, source, split, recipe, (stage1.checkpoint,))
    spec = ClipSpec(full_future=False)  # the route is known at the end of a scene too
    clips = ClipDataset(tracks, spec, codes=cache, labels=RouteTargets(tracks), mixture=mixture(source, tracks, recipe.shares))
    _fit_to_the_end(TrainTask(learner, head, manifest, recipe.planner.route), clips, recipe.train_route, run, options, "train route")


def _fit_to_the_end(task: TrainTask, clips: ClipDataset, training: TrainConfig, run: Run, options: RunOptions, what: str) -> None:
    """Train a part, or resume its training, and freeze it. `what`: how run.json names it."""
    resume = "off" if options.resume == "off" else "auto"
    Run.start(run.folder, {"what": what, "config": task.manifest.training}, resume != "off", options.process_group)
    fit(task, clips, training, run, replace(options, resume=resume, stop_at=None))
    task.module.requires_grad_(False)
