"""What a planner is shown of the future while it plans: the arms of `--test-ii`.

Every arm has the same way, candidates, head, past and costs. Only the scene differs in which candidates are read:

- `off`: the present, as if everybody stood still; the world model's future is not computed;
- `shared`: one imagined scene for all candidates, the same whatever the ego does;
- `on`: an imagined scene for each candidate, where the world model was trained to imagine what others do about it. No world model here is yet, so
  that it equals `shared`;
- `shuffled`: what was imagined for a sample of another scene with the same command. A placebo: as sharp as an imagined scene, and of no use;
- `oracle`: the true future. A leak on purpose, and marked everywhere: what a perfect world model would be worth.
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
"""The mark of everything that an oracle planned."""


def uses_future(arm: TestII) -> bool:
    """Whether candidates are read in a scene of the future."""
    return arm != "off"


def marks_of(arm: TestII) -> tuple[str, ...]:
    """What stands over every number of an arm."""
    return (FUTURE_READ,) if arm == "oracle" else ()


def require_candidates(agent: Agent, arm: TestII) -> None:
    """Raises ConfigError for an arm that a planner without candidates does not have."""
    if not agent.planner.config.accelerations and arm in ("shuffled", "oracle"):
        raise ConfigError(f"--test-ii {arm} is for planners with candidates; this one has none (accelerations []): use off or on.")


def planner_of(agent: Agent, arm: TestII, clips: ClipDataset, source: Source) -> Callable[[Inputs], Tensor]:
    """What plans the samples of a data set in an arm. Raises ConfigError as `require_candidates` does."""
    require_candidates(agent, arm)
    if not agent.planner.config.accelerations:
        return partial(agent.plan, ii=uses_future(arm))
    choose = chooser(agent, arm, clips, source)
    return lambda inputs: choose(inputs).best()


def chooser(agent: Agent, arm: TestII, clips: ClipDataset, source: Source) -> Callable[[Inputs], Choice]:
    """What chooses among the candidates of a data set's samples in an arm; only for a planner with candidates."""
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
    """For every sample one of another scene with the same command (of any other scene where there is none), by a fixed draw.

    Raises:
        ConfigError: if there is one scene alone.
    """
    names, numbers = np.unique(np.array(scenes), return_inverse=True)
    if len(names) < 2:
        raise ConfigError("--test-ii shuffled needs two scenes or more: there is no other scene to take an imagined future from.")
    told, generator, out = np.array(commands), np.random.default_rng(0), []
    for number, command in zip(numbers, told, strict=True):
        others = numbers != number
        same = np.flatnonzero(others & (told == command))
        out.append(int(generator.choice(same if len(same) else np.flatnonzero(others))))
    return out


class Passing:
    """Shuffled scenes for planners that drive side by side: each plans in what was imagined last for another, with the same command if any has it."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, Tensor]] = {}

    def __call__(self, names: Sequence[str], inputs: Inputs, imagined: Tensor) -> Tensor:
        """Imagined scenes (B,S,X,Y) passed on to others.

        Raises:
            ConfigError: if there is one scene alone.
        """
        commands = inputs.command.tolist()
        self._last |= {name: (command, scene) for name, command, scene in zip(names, commands, imagined, strict=True)}
        order = sorted(self._last)
        if len(order) < 2:
            raise ConfigError("--test-ii shuffled needs two scenes or more: there is no other scene to take an imagined future from.")
        out = []
        for name, command in zip(names, commands, strict=True):
            at = order.index(name)
            others = order[at + 1 :] + order[:at]
            same = [other for other in others if self._last[other][0] == command]
            out.append(self._last[(same or others)[0]][1])
        return torch.stack(out)
