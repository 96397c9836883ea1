"""Baseline planners by name: kinematic planners, and the ego-status MLP, which is trained when needed unless iidrive ships the same one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from iidrive.core.batch import Inputs
from iidrive.core.config_io import to_plain
from iidrive.core.errors import ConfigError, unknown
from iidrive.core.lineage import Lineage
from iidrive.data.source import Source
from iidrive.models.baselines import KINEMATIC
from iidrive.pipeline.load import load_ego_mlp
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.train import train_ego_mlp
from iidrive.runtime.run_folder import Run
from iidrive.training import checkpoint, shipped
from iidrive.training.checkpoint import Checkpoint
from iidrive.training.options import RunOptions

BASELINES = (*KINEMATIC, "ego-mlp")
"""Names of the baseline planners."""


@dataclass(frozen=True)
class Baseline:
    """A planner that needs no checkpoint from the user, and its lineage."""

    plan: Callable[[Inputs], Tensor]
    lineage: Lineage


def baseline(name: str, recipe: Recipe, source: Source, train_split: str, run: Run, anew: bool = True) -> Baseline:
    """A baseline planner by name.

    `ego-mlp` is trained on `train_split` and saved in the run folder. If `anew` is false, an existing training there is continued or reused. Weights
    shipped with iidrive are used instead if they come from the same training.

    Raises:
        ConfigError: for an unknown name.
    """
    if name in KINEMATIC:
        return Baseline(KINEMATIC[name], Lineage(name))
    if name != "ego-mlp":
        raise ConfigError(unknown("planner", name, BASELINES))
    ready = _shipped(recipe, source, train_split)
    if ready is not None:
        return Baseline(load_ego_mlp(ready).plan, ready.lineage)
    if run.process_group.is_rank_zero and anew:
        shutil.rmtree(run.folder / name, ignore_errors=True)
    run.process_group.barrier()
    started = Run.start(run.folder / name, {"for": name}, not anew, run.process_group)
    train_ego_mlp(recipe, source, train_split, started, RunOptions(run.process_group, resume="off" if anew else "auto"))
    found = checkpoint.read(run.folder / name)
    return Baseline(load_ego_mlp(found).plan, found.lineage)


def _shipped(recipe: Recipe, source: Source, train_split: str) -> Checkpoint | None:
    """The shipped ego-status MLP that was trained with the same recipe on the same scenes, if there is one."""
    wanted = (to_plain(recipe.ego_mlp), to_plain(recipe.train_ego_mlp), train_split, _training_data(source.identity()))
    for name in shipped.sets():
        found = checkpoint.read(f"{name}/ego-mlp")
        manifest = found.manifest
        if (manifest.architecture, manifest.training, manifest.data["split"], _training_data(manifest.data)) == wanted:
            return found
    return None


def _training_data(identity: Mapping[str, object]) -> dict[str, object]:
    """The part of a source's identity that determines the training scenes."""
    others = ("val_scenes", "test_scenes", "hard_scenes", "split", "occupancy", "command")
    return {key: value for key, value in to_plain(dict(identity)).items() if key not in others}
