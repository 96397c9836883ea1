"""The stages of the job, each a function of a recipe, a source and a run folder: tokenizer → tokens → world model → planner → scores."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iidrive.core.classes import OCC_CLASSES
from iidrive.core.config_io import from_plain, to_plain
from iidrive.core.errors import CheckpointError, ConfigError, unknown
from iidrive.core.lineage import INITIAL, Lineage, Parent, joined
from iidrive.core.scene import GridSpec, Inputs, Scene
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack, Frames, OccupancyFrames
from iidrive.data.source import Source, scenes
from iidrive.data.tokens import TokenCache, build
from iidrive.models.baselines import KINEMATIC, EgoMLP, EgoMLPConfig
from iidrive.models.ego_motion import MotionPrior
from iidrive.models.forecast import Forecaster
from iidrive.models.losses import class_weights, presence_weights
from iidrive.models.planner import Agent, Planner, PlannerConfig
from iidrive.models.tokenizer import Tokenizer, TokenizerConfig
from iidrive.models.world import WorldConfig, WorldModel
from iidrive.pipeline import infer, token_check
from iidrive.pipeline.recipes import Recipe
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.run_folder import Run, code_version, device
from iidrive.scoring import metrics
from iidrive.scoring.cases import Predictions, align
from iidrive.scoring.score import format_scores, score
from iidrive.training import checkpoint
from iidrive.training.checkpoint import Manifest
from iidrive.training.loop import fit
from iidrive.training.optim import TrainConfig
from iidrive.training.options import RunOptions
from iidrive.training.state import TrainTask

PAST = 5
"""Keyframes before now in the windows of stage 2 and of planners."""

Report = Callable[[str], None]


def describe(what: str, recipe: Recipe, source: Source, split: str) -> dict[str, Any]:
    """What run.json says of a stage."""
    return {"what": what, "data": source.identity(), "missing": source.missing(), "split": split, "recipe": to_plain(recipe)}


def tracks_of(source: Source, split: str) -> list[EgoTrack]:
    """What windows need of every scene of a split."""
    return [EgoTrack.of(scene) for scene in scenes(source, split)]


def keyframes(tracks: Iterable[EgoTrack]) -> int:
    """How many keyframes scenes have in all."""
    return sum(len(track.tokens) for track in tracks)


def class_counts(source: Source, tracks: list[EgoTrack], spec: GridSpec, keyframes_: int = 512) -> np.ndarray:
    """Voxels of every class in each of about `keyframes_` keyframes, spread evenly over scenes and time: (keyframes, classes)."""
    counts = []
    for i in range(min(keyframes_, keyframes(tracks))):
        track = tracks[i * len(tracks) // keyframes_ if len(tracks) > keyframes_ else i % len(tracks)]
        index = (i * 7919) % len(track.tokens)
        labels = source.occupancy(source.scene(track.name), index, spec).semantics
        counts.append(np.bincount(labels.ravel(), minlength=256)[: len(OCC_CLASSES)])
    return np.stack(counts)


def train_tokenizer(recipe: Recipe, source: Source, split: str, run: Run, options: RunOptions | None = None) -> Path:
    """Stage 1. Clips of `clip_frames` keyframes, every frame of which is reconstructed."""
    options = options or RunOptions()
    config, training = recipe.tokenizer, recipe.train_tokenizer
    past = recipe.clip_frames - 1
    tracks = tracks_of(source, split)
    if config.voxel_loss == "balanced" and not config.class_weights:
        counts = class_counts(source, tracks, config.grid)
        lovasz = presence_weights((counts > 0).sum(0), len(counts))
        config = replace(config, class_weights=class_weights(counts.sum(0)), lovasz_weights=lovasz)
    torch.manual_seed(training.seed)
    tokenizer = Tokenizer(config)
    cut = ClipSpec(past=past, future=1, full_future=False, first=past)
    clips = ClipDataset(tracks, cut, OccupancyFrames(source, config.grid, keyframes(tracks)))
    manifest = start_from(options.init, tokenizer, _manifest("tokenizer", config, training, source, split, recipe))
    validate = partial(_validate_tokenizer, tokenizer, source, _held_out(source, training))
    task = TrainTask(tokenizer, tokenizer, tokenizer.loss, tokenizer.counts, manifest, config, tokenizer.prepare, validate)
    path = fit(task, clips, training, run, options)
    options.process_group.barrier()
    if token_check.RECORD not in checkpoint.read_manifest(path).metrics:
        found = token_check.measure(tokenizer, source, tracks)
        options.process_group.barrier()
        if options.process_group.is_rank_zero:
            checkpoint.amend(path, {token_check.RECORD: found})
        options.process_group.barrier()
    return path


def tokens_folder(run: Path, tokenizer_path: str | Path, source: Source) -> Path:
    """Where a run keeps its own tokens: a folder named by the tokenizer and the data, so that others never meet there."""
    identity = json.dumps(to_plain({**source.identity(), "occupancy": source.occupancy_source}), sort_keys=True)
    mark = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return run / "tokens" / f"{checkpoint.read_manifest(tokenizer_path).fingerprint}-{mark}"


def write_tokens(
    tokenizer_path: str | Path,
    source: Source,
    names: Iterable[str],
    folder: str | Path,
    report: Report = lambda name: None,
    warn: Report = warnings.warn,
    process_group: ProcessGroup | None = None,
) -> TokenCache:
    """Token cache of some scenes: `report` hears of every scene that is done, `warn` of every file that had to be written anew.

    The processes of a `process_group` share the scenes; the files are the same for any number of them.
    """
    process_group = process_group or ProcessGroup()
    tokenizer, manifest = load_tokenizer(tokenizer_path)
    config = tokenizer.config
    cells = sum(tokenizer.quantiser.level_cells)
    encode = partial(scene_codes, tokenizer, source)
    with process_group.raise_on_all_ranks():
        cache = build(
            source, process_group.shard(list(names)), encode, folder, manifest.fingerprint, config.quantiser.codes, cells, report, warn
        )
    return cache


@torch.no_grad()
def scene_codes(tokenizer: Tokenizer, source: Source, scene: Scene) -> np.ndarray:
    """Code indices (T, n) of all keyframes of a scene."""
    occupancy = np.stack([source.occupancy(scene, i, tokenizer.config.grid).semantics for i in range(len(scene))])
    poses = np.stack([k.global_T_ego.matrix for k in scene.keyframes])
    return tokenizer.tokenize_scene(torch.from_numpy(occupancy).to(device()), torch.from_numpy(poses).to(device())).numpy(force=True)


def train_world(
    recipe: Recipe,
    tokenizer_path: str | Path,
    cache: TokenCache,
    source: Source,
    split: str,
    run: Run,
    options: RunOptions | None = None,
    allow: bool = False,
) -> Path:
    """Stage 2, on the tokens of one tokenizer. `allow`: tokens of another one are used all the same, and the world model is marked.

    Raises:
        LineageError: for tokens of another tokenizer, or that it does not decode (see selfcheck.py).
    """
    options = options or RunOptions()
    tokenizer, parent = load_tokenizer(tokenizer_path)
    marks = cache.require(parent.lineage(tokenizer_path), allow)
    config, training = recipe.world, recipe.train_world
    _require_width("world model's width", config.width, tokenizer)
    if (config.norm == "batch" or config.motion == "map") and not training.group:
        raise ConfigError(
            "norm=batch and motion=map look at several samples together: say how many with --recipe.train_world.group (published: 8)."
        )
    torch.manual_seed(training.seed)
    forecaster = Forecaster(tokenizer, WorldModel(config, tokenizer.cells))
    tracks = tracks_of(source, split)
    zero, found = token_check.check(tokenizer, parent, cache, source, tracks, allow)
    if forecaster.world.prior is not None:
        if options.init or (options.resume != "off" and _tuned(run)):  # its prior comes with its other weights
            forecaster.world.prior.requires_grad_(False)
        else:
            _train_prior(recipe, forecaster.world.prior, source, split, tracks, run.below("motion"), options)
    occupancy = OccupancyFrames(source, tokenizer.config.grid, keyframes(tracks)) if config.voxel_weight else None
    clips = ClipDataset(tracks, ClipSpec(past=PAST), occupancy, cache, future=True)
    parents = (_parent("tokenizer", tokenizer_path, parent),)
    manifest = _manifest("world", config, training, source, split, recipe, parents)
    manifest = replace(manifest, metrics=zero.metrics(), marks=joined(parent.marks, marks, found))
    manifest = start_from(options.init, forecaster.world, manifest, allow)
    validate = partial(_validate_world, forecaster, source, _held_out(source, training), options.process_group)
    task = TrainTask(forecaster, forecaster.world, forecaster.loss, forecaster.counts, manifest, config, validate=validate)
    return fit(task, clips, training, run, options)


def _tuned(run: Run) -> bool:
    """Whether the training of a run that is to be resumed started from other weights."""
    for path in checkpoint.newest_first(run.folder):
        with suppress(CheckpointError):  # a damaged one is named when it is read to go on
            return bool(checkpoint.read_manifest(path).origins)
    return False


def _train_prior(
    recipe: Recipe, prior: MotionPrior, source: Source, split: str, tracks: list[EgoTrack], run: Run, options: RunOptions
) -> None:
    """Train the world model's motion prior from ego poses alone, or go on with the one of the run that is resumed; it is then left as it is.

    One process does it while the others wait: its steps are shorter than what it takes to agree on one.
    """
    config = {"width": recipe.world.prior_width, "history": recipe.world.history}
    manifest = _manifest("motion", config, recipe.train_motion, source, split, recipe)
    resume = "off" if options.resume == "off" else "auto"
    Run.start(run.folder, {"what": "train motion prior", "config": manifest.training}, resume != "off", options.process_group)
    task = TrainTask(prior, prior, prior.loss, prior.counts, manifest, config)
    process_group = options.process_group
    with process_group.raise_on_all_ranks():
        if process_group.is_rank_zero:
            fit(
                task,
                ClipDataset(tracks, ClipSpec(past=PAST)),
                recipe.train_motion,
                run,
                replace(options, process_group=ProcessGroup(), resume=resume, stop_at=None),
            )
    if not process_group.is_rank_zero:
        weights = checkpoint.load_tensors(run.folder)
        checkpoint.load_weights(prior.to(next(iter(weights.values())).dtype), weights, str(run.folder))
    prior.requires_grad_(False)


def train_planner(
    recipe: Recipe,
    world_path: str | Path,
    cache: TokenCache,
    source: Source,
    split: str,
    run: Run,
    train_ii: bool,
    options: RunOptions | None = None,
    allow: bool = False,
) -> Path:
    """The planner, with or without the imagined future while training. `allow` as for `train_world`; a world model's marks are inherited.

    Raises:
        LineageError: for a world model whose tokenizer is no longer there, for tokens of another tokenizer, or that it does not decode.
    """
    options = options or RunOptions()
    forecaster, world = load_forecaster(world_path, allow=allow)
    marks = cache.require(world.lineage(world_path), allow)
    config, training = recipe.planner, recipe.train_planner
    _require_width("planner's latent_width", config.latent_width, forecaster.tokenizer)
    torch.manual_seed(training.seed)
    agent = Agent(forecaster, Planner(config, forecaster.tokenizer.cells), train_ii)
    tracks = tracks_of(source, split)
    tokenizer = checkpoint.read_manifest(world.parent("tokenizer").path)
    zero, found = token_check.check(forecaster.tokenizer, tokenizer, cache, source, tracks, allow)
    clips = ClipDataset(tracks, ClipSpec(past=PAST), codes=cache)
    parents = (world.parent("tokenizer"), _parent("world", world_path, world))
    manifest = _manifest("planner", config, training, source, split, recipe, parents, {"train_ii": train_ii})
    manifest = replace(manifest, metrics=zero.metrics(), marks=joined(world.marks, marks, found))
    manifest = start_from(options.init, agent.planner, manifest, allow)
    validate = partial(_validate_planner, agent, source, _held_out(source, training), options.process_group)
    task = TrainTask(agent, agent.planner, agent.loss, agent.counts, manifest, config, validate=validate)
    return fit(task, clips, training, run, options)


def train_ego_mlp(recipe: Recipe, source: Source, split: str, run: Run, options: RunOptions | None = None) -> Path:
    """The ego-status baseline."""
    config, training = recipe.ego_mlp, recipe.train_ego_mlp
    torch.manual_seed(training.seed)
    model = EgoMLP(config)
    clips = ClipDataset(tracks_of(source, split), ClipSpec(past=PAST))
    manifest = _manifest("ego-mlp", config, training, source, split, recipe)
    return fit(TrainTask(model, model, model.loss, model.counts, manifest, config), clips, training, run, options)


def load_tokenizer(path: str | Path) -> tuple[Tokenizer, Manifest]:
    """A tokenizer from its checkpoint, ready to use."""
    manifest = checkpoint.read_manifest(path)
    checkpoint.require_kind(manifest, "tokenizer", path)
    tokenizer = Tokenizer(from_plain(TokenizerConfig, manifest.architecture, str(path)))
    checkpoint.load_weights(tokenizer, checkpoint.load(path, manifest), str(path))
    return tokenizer.to(device()).eval().requires_grad_(False), manifest


def load_forecaster(path: str | Path, tokenizer_path: str | Path | None = None, allow: bool = False) -> tuple[Forecaster, Manifest]:
    """A world model with its tokenizer (the one it names, unless another place is given).

    The manifest that comes back is the world model's as it was put together here: its parent is the tokenizer in use, where it lies now.

    Raises:
        LineageError: for another tokenizer than it was trained on; with `allow` the manifest is marked instead.
    """
    manifest = checkpoint.read_manifest(path)
    checkpoint.require_kind(manifest, "world", path)
    tokenizer_path = tokenizer_path or locate(manifest, "tokenizer", path)
    found = checkpoint.read_manifest(tokenizer_path)
    marks = checkpoint.require_parent(manifest, "tokenizer", found.lineage(tokenizer_path), path, allow)
    tokenizer, _ = load_tokenizer(tokenizer_path)
    config = from_plain(WorldConfig, manifest.architecture, str(path))
    _require_width("world model's width", config.width, tokenizer)
    world = WorldModel(config, tokenizer.cells)
    checkpoint.load_weights(world, checkpoint.load(path, manifest), str(path))
    used = replace(
        manifest, parents=(_parent("tokenizer", tokenizer_path, found), *manifest.origins), marks=joined(manifest.marks, found.marks, marks)
    )
    return Forecaster(tokenizer, world).to(device()).eval().requires_grad_(False), used


def load_agent(
    path: str | Path, world_path: str | Path | None = None, tokenizer_path: str | Path | None = None, allow: bool = False
) -> tuple[Agent, Manifest]:
    """A planner with its world model and tokenizer (those it names, unless other places are given; a given world model brings its own).

    The manifest that comes back is the planner's as it was put together here: its parents are the models in use, where they lie now.

    Raises:
        LineageError: if they are not those it was trained on; with `allow` the manifest is marked instead.
    """
    manifest = checkpoint.read_manifest(path)
    checkpoint.require_kind(manifest, "planner", path)
    if world_path is None:
        world_path, tokenizer_path = locate(manifest, "world", path), tokenizer_path or locate(manifest, "tokenizer", path)
    forecaster, world = load_forecaster(world_path, tokenizer_path, allow)
    marks = [checkpoint.require_parent(manifest, kind, world.lineage(world_path), path, allow) for kind in ("world", "tokenizer")]
    config = from_plain(PlannerConfig, manifest.architecture, str(path))
    _require_width("planner's latent_width", config.latent_width, forecaster.tokenizer)
    planner = Planner(config, forecaster.tokenizer.cells)
    checkpoint.load_weights(planner, checkpoint.load(path, manifest), str(path))
    used = replace(
        manifest,
        parents=(*world.parents, _parent("world", world_path, world), *manifest.origins),
        marks=joined(manifest.marks, world.marks, *marks),
    )
    return Agent(forecaster, planner, bool(manifest.about.get("train_ii"))).to(device()).eval(), used


def load_ego_mlp(path: str | Path) -> EgoMLP:
    """The ego-status baseline from its checkpoint."""
    manifest = checkpoint.read_manifest(path)
    checkpoint.require_kind(manifest, "ego-mlp", path)
    model = EgoMLP(from_plain(EgoMLPConfig, manifest.architecture, str(path)))
    checkpoint.load_weights(model, checkpoint.load(path, manifest), str(path))
    return model.to(device()).eval().requires_grad_(False)


def planner_named(name: str, recipe: Recipe, source: Source, train_split: str, run: Run) -> Callable[[Inputs], Tensor]:
    """A baseline planner by name; `ego-mlp` is trained on the spot, on `train_split`, and kept in the run folder."""
    if name in KINEMATIC:
        return KINEMATIC[name]
    if name == "ego-mlp":
        if run.process_group.is_rank_zero:
            shutil.rmtree(run.folder / "ego-mlp", ignore_errors=True)
        run.process_group.barrier()
        started = Run.start(run.folder / "ego-mlp", {"for": name}, process_group=run.process_group)
        return load_ego_mlp(train_ego_mlp(recipe, source, train_split, started, RunOptions(run.process_group))).plan
    raise ConfigError(unknown("planner", name, BASELINES))


BASELINES = (*KINEMATIC, "ego-mlp")
"""Planners by name."""


def lineage_of_baseline(name: str, run: Run) -> Lineage:
    """The chain of a planner that `planner_named` gave."""
    folder = run.folder / "ego-mlp"
    return checkpoint.read_manifest(folder).lineage(folder) if name == "ego-mlp" else Lineage(name)


def reconstruction_miou(tokenizer: Tokenizer, cache: TokenCache, source: Source, tracks: list[EgoTrack]) -> float:
    """mIoU of keyframes decoded from their tokens, 0..1."""
    occupancy = OccupancyFrames(source, tokenizer.config.grid, keyframes(tracks))
    rows = ((track.name, np.arange(len(track.tokens))) for track in tracks)
    return metrics.miou(infer.reconstruction(tokenizer, cache, occupancy, rows))


def scored_clips(
    tracks: list[EgoTrack], cache: Frames | None = None, source: Source | None = None, spec: GridSpec | None = None
) -> ClipDataset:
    """Every sample with a full future, the first keyframe of a scene included; with future occupancy when a source and a grid are given."""
    occupancy = OccupancyFrames(source, spec, keyframes(tracks)) if source is not None and spec is not None else None
    return ClipDataset(tracks, ClipSpec(past=PAST), occupancy, cache, future=occupancy is not None)


def start_from(init: str, module: nn.Module, manifest: Manifest, allow: bool = False) -> Manifest:
    """Give a model that is to be trained the weights of a checkpoint ("": leave it as it is); returns its manifest with that ancestor.

    Raises:
        CheckpointError: for a checkpoint of another kind or architecture.
        LineageError: for a world model or planner that was trained on other parents; with `allow` that is a mark instead.
    """
    if not init:
        return manifest
    found = checkpoint.read_manifest(init)
    checkpoint.require_kind(found, manifest.kind, init)
    marks: list[tuple[str, ...]] = []
    for parent in manifest.parents[-1:]:
        given = Lineage(parent.kind, parent.fingerprint, parent.path)
        marks.append(checkpoint.require_parent(found, parent.kind, given, init, allow))
    checkpoint.load_weights(module, checkpoint.load(init, found), init)
    origin = Parent(INITIAL + found.kind, str(checkpoint.find(init).resolve()), found.fingerprint)
    return replace(manifest, parents=(*manifest.parents, origin), marks=joined(manifest.marks, found.marks, *marks))


def _held_out(source: Source, training: TrainConfig) -> list[EgoTrack]:
    """The first scenes of the usual test split: what a training is validated on, if it is."""
    if not training.validate_every:
        return []
    return [EgoTrack.of(source.scene(name)) for name in source.scene_names(source.usual_split("test"))[: training.validate_scenes]]


def _validate_tokenizer(tokenizer: Tokenizer, source: Source, tracks: list[EgoTrack]) -> tuple[dict[str, float], str]:
    """Reconstruction mIoU."""
    found = token_check.measure(tokenizer, source, tracks)
    return {"mIoU": found}, f"reconstruction mIoU {100 * found:.2f} %"


def _validate_world(
    forecaster: Forecaster, source: Source, tracks: list[EgoTrack], process_group: ProcessGroup
) -> tuple[dict[str, float], str]:
    """Forecast mIoU, mean over 1, 2, 3 s, of tokens written on the spot."""
    spec = forecaster.tokenizer.config.grid
    clips = scored_clips(tracks, _codes(forecaster.tokenizer, source, tracks), source, spec)
    scores = infer.forecasts(forecaster, clips, spec, process_group, source=source)
    ahead = scores.miou("world model")[1:]
    numbers = {"mIoU": ahead, "movers_IoU": scores.figure("world model", "movers_IoU")[1:]}
    found = {f"{name}_{s}s": v for name, values in numbers.items() for s, v in enumerate(values, 1) if not np.isnan(v)}
    return {"mIoU": float(np.mean(ahead)), **found}, scores.table()


def _validate_planner(agent: Agent, source: Source, tracks: list[EgoTrack], process_group: ProcessGroup) -> tuple[dict[str, float], str]:
    """The reference table; the first number is minus the average L2, so that more is better."""
    clips = scored_clips(tracks, _codes(agent.forecaster.tokenizer, source, tracks))
    tokens, paths = infer.plans(partial(agent.plan, ii=agent.train_ii), clips, process_group)
    cases = infer.truth(source, "", [track.name for track in tracks])
    scores = score(cases, align(cases, Predictions(paths, tokens, {}, "validation")))
    return {"minus_L2": -scores.average["L2"], "obj_box_col": scores.average["obj_box_col"]}, format_scores(scores)


def _codes(tokenizer: Tokenizer, source: Source, tracks: list[EgoTrack]) -> Frames:
    """Codes of whole scenes, written on the spot."""
    held = {track.name: scene_codes(tokenizer, source, source.scene(track.name)) for track in tracks}
    return lambda name, rows: held[name][rows]


def _manifest(
    kind: checkpoint.Kind,
    config: Any,
    training: TrainConfig,
    source: Source,
    split: str,
    recipe: Recipe,
    parents: tuple[Parent, ...] = (),
    about: dict[str, Any] | None = None,
) -> Manifest:
    data = {**source.identity(), "split": split, "occupancy": source.occupancy_source, "command": source.command_source}
    about = {"recipe": recipe.name, "town": to_plain(recipe.town), **(about or {})}
    return Manifest(kind, "", to_plain(config), 0, code_version(), to_plain(data), to_plain(training), {}, about, parents)


def _require_width(what: str, width: int, tokenizer: Tokenizer) -> None:
    wanted = tokenizer.config.latent_width
    if width != wanted:
        raise ConfigError(f"the {what} is {width}, but this tokenizer's latents are {wanted} wide. Use the recipe it was trained with.")


def _parent(kind: str, path: str | Path, manifest: Manifest) -> Parent:
    return Parent(kind, str(checkpoint.find(path).resolve()), manifest.fingerprint)


def locate(manifest: Manifest, kind: str, path: str | Path) -> Path:
    """Where a parent lies now: at its recorded place, or at the same place relative to a run folder that was moved as a whole."""
    return checkpoint.moved(manifest.parent(kind).path, path)
