"""The arms of `--test-ii`: which future scene a planner uses to score its candidates.

Proposal, candidates, planning head, history and costs are the same in all arms. Only the scene differs:

- `off`: the current scene, as if all objects stood still; the world model's prediction is not computed;
- `shared`: one predicted scene for all candidates, independent of what the ego does;
- `on`: a predicted scene for each candidate, in which others react to it, if planner and world model were trained so (`planner.per_candidate`).
  Otherwise it equals `shared`;
- `shuffled`: the predicted scene of a sample of another scene with the same command. A placebo: realistic, but without information. In
  closed loop the sample is recorded too (`Placebo`), so it does not depend on how other scenes are driven;
- `oracle`: the true future: in open loop what was recorded, in closed loop a copy of the simulation, run once (the ego follows its base path), or
  with `planner.per_candidate` once for each candidate. A deliberate leak, marked in all output, which shows the value of a perfect world model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np
from torch import Tensor

from iidrive.core.batch import Inputs
from iidrive.core.errors import ConfigError
from iidrive.data.box_tracks import FlowTargets
from iidrive.data.clips import ClipDataset, ClipSpec, EgoTrack
from iidrive.data.source import Source
from iidrive.data.town.config import ALL_SPLITS, scene_seed
from iidrive.data.town.source import Town
from iidrive.models.planner import Agent, Choice
from iidrive.models.tokenizer import Tokenizer
from iidrive.pipeline.tokens import scene_codes

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
    return partial(agent.choice, ii=uses_future(arm), shared=arm == "shared")


def _shuffled(agent: Agent, clips: ClipDataset) -> Callable[[Inputs], Choice]:
    bare = clips.without_occupancy()
    scenes = [clips.tracks[number].name for number, _ in clips.samples]
    other = partners(scenes, clips.inputs["command"].tolist())
    row_of = {clips.token(row): row for row in range(len(clips))}

    def choose(inputs: Inputs) -> Choice:
        theirs = bare.batch([other[row_of[token]] for token in inputs.tokens]).inputs.to(inputs.command.device)
        return shuffled_choice(agent, inputs, theirs)

    return choose


def shuffled_choice(agent: Agent, inputs: Inputs, theirs: Inputs) -> Choice:
    """The choice among a sample's own candidates by what is imagined for another sample. With `per_candidate`, others react to the candidates."""
    base = agent.base_path(inputs)
    return agent.choice_in(inputs, base, agent.scene(theirs, base, True))


def _oracle(agent: Agent, clips: ClipDataset, source: Source) -> Callable[[Inputs], Choice]:
    grid = agent.forecaster.flow_grid
    assert grid is not None
    labelled = clips.without_occupancy().with_labels(FlowTargets(source, grid))
    row_of = {clips.token(row): row for row in range(len(clips))}

    def choose(inputs: Inputs) -> Choice:
        taken = labelled.batch([row_of[token] for token in inputs.tokens]).targets.taken
        assert taken is not None
        return agent.choice_in(inputs, agent.base_path(inputs), taken[:, 1:].to(inputs.now_T_frame))

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


class Placebo:
    """Shuffled inputs in closed loop: what the ego of another scene of the town sees, driven by the town's own driver.

    Which sample a scene gets depends only on its name, keyframe and command. So it does not depend on the scenes that are driven with it, on
    the number of processes, or on what was driven before. Tracks and codes of the other scenes are kept in memory.
    """

    def __init__(self, town: Town, tokenizer: Tokenizer) -> None:
        """`tokenizer`: makes the codes of the other scenes."""
        self.town, self.tokenizer = town, tokenizer
        self._tracks: dict[str, EgoTrack] = {}
        self._codes: dict[str, np.ndarray] = {}

    def __call__(self, names: Sequence[str], keyframes: Sequence[int], commands: Sequence[int]) -> Inputs:
        """Inputs of the samples of `elsewhere`, one for each scene of `names` at its keyframe with its command."""
        found = [self.elsewhere(*asked) for asked in zip(names, keyframes, commands, strict=True)]
        clips = ClipDataset([track for track, _ in found], ClipSpec(full_future=False), codes=self._frames)
        first = np.cumsum([0, *(len(track.tokens) for track, _ in found[:-1])])
        return clips.batch([int(start) + at for start, (_, at) in zip(first, found, strict=True)]).inputs

    def elsewhere(self, name: str, keyframe: int, command: int) -> tuple[EgoTrack, int]:
        """The scene and keyframe that the scene `name` is given at one of its keyframes.

        It is the nearest scene before it in its split in which the command occurs, else the nearest one after it; there, the nearest keyframe
        with the command. If no other scene has the command, it is the same keyframe of the scene before it (of the second one for the first).

        Raises:
            ConfigError: if the split has only one scene.
        """
        _, split, number = scene_seed(self.town.config, name)
        everyone = self.town.scene_names(ALL_SPLITS[split])
        others = [*everyone[:number][::-1], *everyone[number + 1 :]]
        if not others:
            raise ConfigError("--test-ii shuffled needs at least two scenes in the split, to take the imagined future from another scene.")
        for other in others:
            same = np.flatnonzero(self._track(other).command == command)
            if len(same):
                return self._track(other), int(same[np.abs(same - keyframe).argmin()])
        track = self._track(others[0])
        return track, min(keyframe, len(track.tokens) - 1)

    def _track(self, name: str) -> EgoTrack:
        if name not in self._tracks:
            self._tracks[name] = EgoTrack.of(self.town.scene(name))
        return self._tracks[name]

    def _frames(self, name: str, rows: np.ndarray) -> np.ndarray:
        if name not in self._codes:
            self._codes[name] = scene_codes(self.tokenizer, self.town, self.town.scene(name))
        return self._codes[name][rows]
