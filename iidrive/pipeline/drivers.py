"""Planners that can drive in closed loop: baselines, checkpoints with an arm of `--test-ii`, and functions given as `module:function`."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iidrive.core.batch import Inputs
from iidrive.core.errors import ConfigError, unknown
from iidrive.core.lineage import Lineage, joined
from iidrive.core.scene import FUTURE_STEPS, GridSpec
from iidrive.data.town.source import Town
from iidrive.models.planner import Agent
from iidrive.models.tokenizer import Tokenizer
from iidrive.pipeline.arms import Placebo, TestII, marks_of, require_candidates, shuffled_choice, uses_future
from iidrive.pipeline.baselines import BASELINES, baseline
from iidrive.pipeline.load import load_agent, load_ego_mlp
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.testset import TestSet, trained_on
from iidrive.scoring.driving.tracking import STEPS, follow, reference
from iidrive.simulation.driven import LEVER_M, PAST, DrivenScene
from iidrive.simulation.foresight import true_occupancy
from iidrive.simulation.loop import Plan, joined_states
from iidrive.training import checkpoint, shipped
from iidrive.training.checkpoint import Checkpoint


def subject_of(planner: str) -> str | Checkpoint:
    """The planner named on the command line: a baseline's name, a checkpoint, or `module:function`.

    Raises:
        ConfigError: for anything else.
    """
    if planner in BASELINES:
        return planner
    if shipped.exists(planner):
        return checkpoint.read(planner)
    if ":" in planner:
        return planner
    raise ConfigError(
        f"{unknown('planner', planner, (*BASELINES, *shipped.names()))} Or give a run folder, a checkpoint, or module:function."
    )


@dataclass(frozen=True)
class Driver:
    """A planner that can drive in closed loop: row name, plan function, tokenizer of its codes (None: it needs no codes), and lineage.

    `ought_to_move`: whether plans that never leave the origin are an error. `source`: digest of the source of a function, which has no
    fingerprint; None if its source cannot be read, so that its drives cannot be recognised later.
    """

    name: str
    plan: Plan
    tokenizer: Tokenizer | None
    lineage: Lineage
    about: Mapping[str, object] = field(default_factory=dict)
    ought_to_move: bool = True
    source: str | None = ""


def drivers_of(subject: str | Checkpoint, test_ii: Sequence[TestII], on: TestSet, recipe: Recipe) -> list[Driver]:
    """Drivers of a baseline, a planner's checkpoint (one driver per value of `test_ii`), or a `module:function`.

    Raises:
        ConfigError: for a model that does not plan.
    """
    if isinstance(subject, str) and subject in BASELINES:
        made = baseline(subject, recipe, on.source, on.source.usual_split("train"), on.run)
        return [Driver(subject, _blind(made.plan), None, made.lineage, ought_to_move=subject != "still")]
    if isinstance(subject, str):
        return [Driver(subject, _blind(imported(subject)), None, Lineage(subject), source=source_of(_found(subject), subject))]
    kind, about = subject.manifest.kind, {"trained on": trained_on(subject.manifest)}
    if kind == "ego-mlp":
        return [Driver("ego-mlp", _blind(load_ego_mlp(subject).plan), None, on.judged(subject), about)]
    if kind != "planner":
        raise ConfigError(
            f"{subject.path} is a {kind}, which does not plan: drive a planner, an ego-mlp, or one of {', '.join(BASELINES)}."
        )
    loaded = load_agent(subject)
    lineage, tokenizer = on.judged(loaded.checkpoint), loaded.model.forecaster.tokenizer
    about |= {"train_ii": "on" if loaded.model.train_ii else "off"}
    drivers = []
    for arm in test_ii:
        marked = replace(lineage, marks=joined(lineage.marks, marks_of(arm)))
        drivers.append(Driver(f"planner, ii {arm}", planning(loaded.model, arm), tokenizer, marked, {**about, "test_ii": arm}))
    return drivers


def driver_of(plan: Callable[[Inputs], Tensor], name: str) -> Driver:
    """A driver from any function from a batch of inputs to paths (B,6,2) of LIDAR_TOP, lidar frame, metres."""
    return Driver(name, _blind(plan), None, Lineage(name), source=source_of(plan))


def planning(agent: Agent, arm: TestII) -> Plan:
    """The closed-loop plan function of a planner for an arm of `--test-ii`. Raises ConfigError for an arm that the planner does not support."""
    require_candidates(agent, arm)
    placebos: dict[Town, Placebo] = {}

    def shuffled(inputs: Inputs, scenes: Sequence[DrivenScene]) -> Tensor:
        town, keyframes = scenes[0].town, [len(scene.keyframes) - 1 - PAST for scene in scenes]
        placebo = placebos.setdefault(town, Placebo(town, agent.forecaster.tokenizer))
        theirs = placebo([scene.name for scene in scenes], keyframes, inputs.command.tolist()).to(inputs.command.device)
        return shuffled_choice(agent, inputs, theirs).best()

    def oracle(inputs: Inputs, scenes: Sequence[DrivenScene]) -> Tensor:
        grid = agent.forecaster.flow_grid
        assert grid is not None
        base = agent.base_path(inputs)
        each = agent.planner.candidates(inputs, base).unbind(1) if agent.planner.config.per_candidate else [base.path]
        taken = [_true_futures(scenes, path, grid) for path in each]
        return agent.choice_in(inputs, base, (torch.stack(taken, 1) if len(taken) > 1 else taken[0]).to(inputs.now_T_frame)).best()

    special: dict[TestII, Plan] = {"shuffled": shuffled, "oracle": oracle}
    return special.get(arm, _blind(partial(agent.plan, ii=uses_future(arm), shared=arm == "shared")))


def _true_futures(scenes: Sequence[DrivenScene], paths: Tensor, grid: GridSpec) -> Tensor:
    """Cells (B,S,X,Y) that others will occupy at every step while the ego of each scene follows a path (B,S,2), lidar frame, metres."""
    states = follow(joined_states(scenes), reference(paths.numpy(force=True).astype(np.float64), LEVER_M), STEPS)
    taken = [true_occupancy(scene, [s.select(np.array([row])) for s in states], grid) for row, scene in enumerate(scenes)]
    return torch.from_numpy(np.stack(taken))


def _blind(plan: Callable[[Inputs], Tensor]) -> Plan:
    """A plan function that ignores the scenes."""
    return lambda inputs, scenes: plan(inputs)


def imported(name: str) -> Callable[[Inputs], Tensor]:
    """Import `module:function`: a function from a batch of inputs to paths (B,6,2), as a tensor or an array.

    Raises:
        ConfigError: if the module or function does not exist, or, when called, if the function returns anything else.
    """
    found = _found(name)
    if not callable(found):
        raise ConfigError(f"{name} cannot be called; expected a function from a batch of inputs to paths (B,6,2).")

    def plan(inputs: Inputs) -> Tensor:
        made = torch.as_tensor(found(inputs))
        wanted = (len(inputs.tokens), FUTURE_STEPS, 2)
        if tuple(made.shape) != wanted or not bool(torch.isfinite(made).all()):
            raise ConfigError(f"{name} must return finite paths of shape {wanted}, metres; found shape {tuple(made.shape)}.")
        return made

    return plan


def _found(name: str) -> Any:
    """What `module:function` names. Raises ConfigError if it does not exist."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name}: expected an importable module:function of a planner ({error}).") from None


def source_of(plan: Callable[..., object], name: str = "") -> str | None:
    """Digest of what a planner function is: its module and name, and the source file of the module.

    None where these do not say what the function does, or where no source file can be read: a lambda, a function made by another one, an
    object, a builtin, or what was typed into an interactive session. What else the function reads, such as other modules or weights, is not
    in the digest.

    Args:
        plan: the function.
        name: where it was found, as `module:function`. If not given, `plan` must be what its own module has under its name.
    """
    own, called = str(getattr(plan, "__module__", "")), str(getattr(plan, "__qualname__", ""))
    if not name and getattr(sys.modules.get(own), called, None) is not plan:
        return None
    digest = hashlib.sha256(f"{name} {own}:{called}".encode())
    for module in {name.partition(":")[0] or own: None, own: None}:
        file = Path(getattr(sys.modules.get(module), "__file__", None) or "")
        if file.suffix != ".py" or not file.is_file():
            return None
        digest.update(file.read_bytes())
    return digest.hexdigest()
