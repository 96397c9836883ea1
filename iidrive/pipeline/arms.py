"""The arms of `--test-ii`: which future scene a planner uses to score its candidates.

Proposal, candidates, planning head, history and costs are the same in all arms. Only the scene differs:

- `off`: the current scene, as if all objects stood still; the world model's prediction is not computed;
- `shared`: one predicted scene for all candidates, independent of what the ego does;
- `on`: a predicted scene for each candidate, if the world model was trained to predict reactions to it. No world model is yet, so it equals `shared`;
- `shuffled`: the predicted scene of a sample of another scene with the same command. A placebo: realistic, but without information;
- `oracle`: the true future. A deliberate leak, marked in all output, which shows the value of a perfect world model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from iidrive.core.batch import Inputs
from iidrive.core.errors import ConfigError
from iidrive.data.box_tracks import FlowTargets
from iidrive.data.clips import ClipDataset
from iidrive.data.source import Source
from iidrive.models.planner import Agent, Choice

TestII = Literal["off", "on", "shared", "shuffled", "oracle"]

FUTURE_READ = "THE TRUE FUTURE WAS READ: test_ii=oracle"
"""The mark of all results of the oracle arm."""


def uses_future(arm: TestII) -> bool:
    """Whether an arm uses a future scene."""
    return arm != "off"


def marks_of(arm: TestII) -> tuple[str, ...]:
    """Marks of all results of an arm."""
    return (FUTURE_READ,) if arm == "oracle" else ()


def require_candidates(agent: Agent, arm: TestII) -> None:
    """Raise ConfigError if a planner has no candidates and the arm needs them."""
    if not agent.planner.config.accelerations and arm in ("shuffled", "oracle"):
        raise ConfigError(f"--test-ii {arm} is for planners with candidates; this one has none (accelerations []): use off or on.")


def planner_of(agent: Agent, arm: TestII, clips: ClipDataset, source: Source) -> Callable[[Inputs], Tensor]:
    """The plan function of a planner in an arm, for the samples of `clips`. Raises ConfigError as `require_candidates` does."""
    require_candidates(agent, arm)
    if not agent.planner.config.accelerations:
        return partial(agent.plan, ii=uses_future(arm))
    choose = chooser(agent, arm, clips, source)
    return lambda inputs: choose(inputs).best()


def chooser(agent: Agent, arm: TestII, clips: ClipDataset, source: Source) -> Callable[[Inputs], Choice]:
    """The function that chooses among the candidates in an arm, for the samples of `clips`. The planner must have candidates."""
    if arm == "shuffled":
        return _shuffled(agent, clips)
    if arm == "oracle":
        return _oracle(agent, clips, source)
    return partial(agent.choice, ii=uses_future(arm))


def _shuffled(agent: Agent, clips: ClipDataset) -> Callable[[Inputs], Choice]:
    bare = clips.without_occupancy()
    scenes = [clips.tracks[number].name for number, _ in clips.samples]
    other = partners(scenes, clips.inputs["command"].tolist())
    row_of = {clips.token(row): row for row in range(len(clips))}

    def choose(inputs: Inputs) -> Choice:
        theirs = bare.batch([other[row_of[token]] for token in inputs.tokens]).inputs.to(inputs.command.device)
        return agent.choice_in(inputs, agent.scene(theirs, True))

    return choose


def _oracle(agent: Agent, clips: ClipDataset, source: Source) -> Callable[[Inputs], Choice]:
    grid = agent.forecaster.flow_grid
    assert grid is not None
    labelled = clips.without_occupancy().with_labels(FlowTargets(source, grid))
    row_of = {clips.token(row): row for row in range(len(clips))}

    def choose(inputs: Inputs) -> Choice:
        taken = labelled.batch([row_of[token] for token in inputs.tokens]).targets.taken
        assert taken is not None
        return agent.choice_in(inputs, taken[:, 1:].to(inputs.now_T_frame))

    return choose


def partners(scenes: Sequence[str], commands: Sequence[int]) -> list[int]:
    """For every sample the index of a sample of another scene with the same command (of any command if there is none), drawn with a fixed seed.

    Raises:
        ConfigError: if there is only one scene.
    """
    names, numbers = np.unique(np.array(scenes), return_inverse=True)
    if len(names) < 2:
        raise ConfigError("--test-ii shuffled needs at least two scenes, to take the imagined future from another scene.")
    wanted, generator, out = np.array(commands), np.random.default_rng(0), []
    for number, command in zip(numbers, wanted, strict=True):
        others = numbers != number
        same = np.flatnonzero(others & (wanted == command))
        out.append(int(generator.choice(same if len(same) else np.flatnonzero(others))))
    return out


class Passing:
    """Shuffled scenes in closed loop: each scene plans with the last predicted scene of another one, with the same command if there is one."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, Tensor]] = {}

    def __call__(self, names: Sequence[str], inputs: Inputs, imagined: Tensor) -> Tensor:
        """Predicted scenes (B,S,X,Y), exchanged between the scenes `names`.

        Raises:
            ConfigError: if there is only one scene.
        """
        commands = inputs.command.tolist()
        self._last |= {name: (command, scene) for name, command, scene in zip(names, commands, imagined, strict=True)}
        order = sorted(self._last)
        if len(order) < 2:
            raise ConfigError("--test-ii shuffled needs at least two scenes, to take the imagined future from another scene.")
        out = []
        for name, command in zip(names, commands, strict=True):
            at = order.index(name)
            others = order[at + 1 :] + order[:at]
            same = [other for other in others if self._last[other][0] == command]
            out.append(self._last[(same or others)[0]][1])
        return torch.stack(out)
