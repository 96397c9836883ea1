"""Load models from checkpoints. Each manifest and each weight file is read once; a loaded stage has its model and its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from iidrive.core.config_io import from_plain
from iidrive.core.errors import ConfigError
from iidrive.core.lineage import Lineage, joined
from iidrive.models.baselines import EgoMLP, EgoMLPConfig
from iidrive.models.compute import ComputeConfig
from iidrive.models.forecast import Forecaster
from iidrive.models.planner import Agent, Planner, PlannerConfig
from iidrive.models.tokenizer import Tokenizer, TokenizerConfig
from iidrive.models.world import WorldConfig, WorldModel
from iidrive.runtime.run_folder import device
from iidrive.training import checkpoint
from iidrive.training.checkpoint import Checkpoint, Manifest

Model = TypeVar("Model", bound=nn.Module)
Place = str | Path | Checkpoint
"""A run folder, a checkpoint folder, or a checkpoint whose manifest has been read."""


class Stage:
    """Properties of every loaded stage."""

    checkpoint: Checkpoint

    @property
    def manifest(self) -> Manifest:
        """The checkpoint's manifest, with the parents in use and all marks."""
        return self.checkpoint.manifest

    @property
    def lineage(self) -> Lineage:
        """The lineage, with the parents in use."""
        return self.checkpoint.lineage


@dataclass(frozen=True)
class LoadedTokenizer(Stage):
    """A tokenizer in eval mode, and its checkpoint."""

    model: Tokenizer
    checkpoint: Checkpoint

    def computing(self, compute: ComputeConfig) -> LoadedTokenizer:
        """The same weights in a tokenizer with another compute config."""
        if compute == ComputeConfig():
            return self
        return replace(self, model=_ready(self.model.computing(compute)))


@dataclass(frozen=True)
class LoadedForecaster(Stage):
    """A world model with its tokenizer. The manifest is the world model's; its parent is the tokenizer in use."""

    model: Forecaster
    checkpoint: Checkpoint
    tokenizer: LoadedTokenizer


@dataclass(frozen=True)
class LoadedAgent(Stage):
    """A planner with its world model and tokenizer. The manifest is the planner's; its parents are the stages in use."""

    model: Agent
    checkpoint: Checkpoint
    world: LoadedForecaster


def load(place: Place, allow: bool = False) -> LoadedTokenizer | LoadedForecaster | LoadedAgent | EgoMLP:
    """Load a checkpoint of any kind: a tokenizer, a world model with its tokenizer, a planner with both, or an ego-status MLP.

    Raises:
        CheckpointError: if the checkpoint is missing or damaged.
        LineageError: for mismatched stages; with `allow` their manifests are marked instead.
    """
    found = checkpoint.read(place)
    kind = found.manifest.kind
    if kind == "planner":
        return load_agent(found, allow=allow)
    if kind == "world":
        return load_forecaster(found, allow=allow)
    return load_ego_mlp(found) if kind == "ego-mlp" else load_tokenizer(found)


def has_reactions(manifest: Manifest) -> bool:
    """Whether a checkpoint is a world model with a reaction net."""
    return manifest.kind == "world" and bool(manifest.architecture.get("reactions", {}).get("width"))


def load_tokenizer(place: Place | LoadedTokenizer) -> LoadedTokenizer:
    """Load a tokenizer. A tokenizer that is already loaded is returned unchanged.

    Raises:
        CheckpointError: if the checkpoint is missing or damaged.
        LineageError: if the weights do not match the manifest.
    """
    if isinstance(place, LoadedTokenizer):
        return place
    found = checkpoint.read(place)
    found.require_kind("tokenizer")
    model = Tokenizer(from_plain(TokenizerConfig, found.manifest.architecture, str(found.path)))
    _fill(model, found.weights(), found)
    return LoadedTokenizer(_ready(model), found)


def load_forecaster(
    place: Place,
    tokenizer: Place | LoadedTokenizer | None = None,
    allow: bool = False,
    compute: ComputeConfig | None = None,
) -> LoadedForecaster:
    """Load a world model with its tokenizer (its own, unless another is given).

    Raises:
        LineageError: for a tokenizer other than its own; with `allow` the manifest is marked instead.
    """
    compute = compute or ComputeConfig()
    found = checkpoint.read(place)
    found.require_kind("world")
    used = load_tokenizer(tokenizer or found.parent_path("tokenizer"))
    marks = found.require_parent("tokenizer", used.checkpoint.lineage, allow)
    config = from_plain(WorldConfig, found.manifest.architecture, str(found.path))
    require_width("world model's width", config.width, used.model)
    world = WorldModel(config, used.model.cells, used.model.config.grid, compute)
    _fill(world, found.weights(), found)
    manifest = replace(
        found.manifest,
        parents=(used.checkpoint.as_parent, *found.manifest.origins),
        marks=joined(found.manifest.marks, used.checkpoint.manifest.marks, marks),
    ).also_trained_on(used.checkpoint.manifest)
    model = Forecaster(used.computing(compute).model, world)
    return LoadedForecaster(_ready(model), replace(found, manifest=manifest), used)


def load_agent(
    place: Place,
    world: Place | LoadedForecaster | None = None,
    tokenizer: Place | LoadedTokenizer | None = None,
    allow: bool = False,
) -> LoadedAgent:
    """Load a planner with its world model and tokenizer (its own, unless others are given). A given world model comes with its own tokenizer.

    Raises:
        LineageError: for stages other than its own; with `allow` the manifest is marked instead.
    """
    found = checkpoint.read(place)
    found.require_kind("planner")
    if world is None:
        world, tokenizer = found.parent_path("world"), tokenizer or found.parent_path("tokenizer")
    used = world if isinstance(world, LoadedForecaster) else load_forecaster(world, tokenizer, allow)
    marks = [found.require_parent(kind, used.lineage, allow) for kind in ("world", "tokenizer")]
    config = from_plain(PlannerConfig, found.manifest.architecture, str(found.path))
    require_width("planner's latent_width", config.latent_width, used.model.tokenizer)
    planner = Planner(config, used.model.tokenizer.cells)
    _fill(planner, found.weights(), found)
    manifest = replace(
        found.manifest,
        parents=(*used.manifest.parents, used.checkpoint.as_parent, *found.manifest.origins),
        marks=joined(found.manifest.marks, used.manifest.marks, *marks),
    ).also_trained_on(used.manifest)
    agent = Agent(used.model, planner, bool(found.manifest.about.get("train_ii"))).to(device()).eval()
    return LoadedAgent(agent, replace(found, manifest=manifest), used)


def load_ego_mlp(place: Place) -> EgoMLP:
    """Load an ego-status MLP. Raises as `load_tokenizer` does."""
    found = checkpoint.read(place)
    found.require_kind("ego-mlp")
    model = EgoMLP(from_plain(EgoMLPConfig, found.manifest.architecture, str(found.path)))
    _fill(model, found.weights(), found)
    return _ready(model)


def require_width(what: str, width: int, tokenizer: Tokenizer) -> None:
    """Raise ConfigError unless a model's width equals the tokenizer's latent width."""
    wanted = tokenizer.config.latent_width
    if width != wanted:
        raise ConfigError(f"the {what} is {width}, but this tokenizer's latent width is {wanted}. Use the recipe it was trained with.")


def _fill(model: nn.Module, weights: Mapping[str, Tensor], found: Checkpoint) -> None:
    checkpoint.load_weights(model, weights, str(found.path))


def _ready(model: Model) -> Model:
    return model.to(device()).eval().requires_grad_(False)
