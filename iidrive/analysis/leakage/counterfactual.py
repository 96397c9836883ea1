"""The same scenes with another future: up to a keyframe everything is kept as it is, what comes after is replaced.

Whatever a model answers at that keyframe must be the same, bit for bit, on the real and on the counterfactual source. Sources that compute
things of their own are put on top of one: they then read the replaced future, and what they leak shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from iidrive.core.batch import Batch
from iidrive.core.classes import FREE
from iidrive.core.scene import MANOEUVRES, Boxes, Command, CommandSource, GridSpec, Keyframe, OccGrid, OccSource, Pose, Scene
from iidrive.data.source import Source

Array = np.ndarray
Input = Literal["poses", "commands", "boxes", "occupancy", "times"]
Value = Literal["other", "noise"]

INPUTS: tuple[Input, ...] = get_args(Input)
"""What can be replaced in later keyframes."""

RENAMED = "renamed-"


class Wrapped:
    """A source that passes everything on to another; subclasses change some of it."""

    def __init__(self, real: Source) -> None:
        self.real = real

    @property
    def name(self) -> str:
        """As the real source's."""
        return self.real.name

    @property
    def command_source(self) -> CommandSource:
        """As the real source's."""
        return self.real.command_source

    @property
    def occupancy_source(self) -> OccSource:
        """As the real source's."""
        return self.real.occupancy_source

    def identity(self) -> dict[str, object]:
        """As the real source's."""
        return self.real.identity()

    def missing(self) -> tuple[str, ...]:
        """As the real source's."""
        return self.real.missing()

    def usual_split(self, part: Literal["train", "val", "test"]) -> str:
        """As the real source's."""
        return self.real.usual_split(part)

    def scene_names(self, split: str) -> tuple[str, ...]:
        """As the real source's."""
        return self.real.scene_names(split)

    def prepare(self, names: Sequence[str]) -> None:
        """As the real source does."""
        self.real.prepare(names)

    def scene(self, name: str) -> Scene:
        """As the real source's."""
        return self.real.scene(name)

    def occupancy(self, scene: Scene, index: int, spec: GridSpec) -> OccGrid:
        """As the real source's."""
        return self.real.occupancy(scene, index, spec)


@dataclass(frozen=True)
class Change:
    """What replaces the later keyframes: some `inputs` by a `value`, or (`end`) the scene stops at the current keyframe."""

    inputs: frozenset[Input] = frozenset(INPUTS)
    value: Value = "other"
    end: bool = False


class Counterfactual(Wrapped):
    """A source in which scenes go on differently after keyframe `now[scene name]`; scenes that are not named stay as they are."""

    def __init__(self, real: Source, now: Mapping[str, int], change: Change) -> None:
        super().__init__(real)
        self.now, self.change = dict(now), change

    def scene(self, name: str) -> Scene:
        """The scene with its later keyframes replaced."""
        scene = self.real.scene(name)
        if name not in self.now:
            return scene
        now = self.now[name]
        kept, later = scene.keyframes[: now + 1], scene.keyframes[now + 1 :]
        if self.change.end:
            return replace(scene, keyframes=kept)
        drawn = np.random.default_rng([len(later), now])
        return replace(scene, keyframes=(*kept, *(self._other(k, kept[-1], step, drawn) for step, k in enumerate(later, start=1))))

    def occupancy(self, scene: Scene, index: int, spec: GridSpec) -> OccGrid:
        """The real one up to now, another one later."""
        real = self.real.occupancy(self.real.scene(scene.name), index, spec)
        if index <= self.now.get(scene.name, len(scene)) or "occupancy" not in self.change.inputs:
            return real
        if self.change.value == "noise":
            labels = np.random.default_rng([index, 5]).integers(0, FREE + 1, spec.shape).astype(np.uint8)
        else:
            labels = np.roll(real.semantics, (spec.shape[0] // 3, spec.shape[1] // 3), (0, 1))[:, ::-1].copy()
        return replace(real, semantics=labels)

    def _other(self, keyframe: Keyframe, now: Keyframe, step: int, drawn: np.random.Generator) -> Keyframe:
        inputs, noise = self.change.inputs, self.change.value == "noise"
        changed: dict[str, object] = {}
        if "poses" in inputs:
            x, y, yaw = drawn.normal(size=3) * (10.0, 10.0, 1.0) if noise else (-3.0 * step, 2.0 * step, 0.3 * step)
            changed["global_T_ego"] = Pose.from_matrix(now.global_T_ego.matrix @ Pose.from_xy_yaw(x, y, yaw).matrix)
        if "commands" in inputs:
            place = int(drawn.integers(3)) if noise else keyframe.command.index + 1
            changed["command"] = Command(MANOEUVRES[place % 3], keyframe.command.source)
        if "boxes" in inputs:
            moved = replace(keyframe.boxes, centre_m=keyframe.boxes.centre_m + drawn.normal(size=keyframe.boxes.centre_m.shape) * 5)
            changed["boxes"] = moved if noise and len(moved) else Boxes.empty("global") if len(moved) else _stranger(now)
        if "times" in inputs:
            factor = 2.3 if noise else 1.7
            changed["timestamp_us"] = now.timestamp_us + round(factor * (keyframe.timestamp_us - now.timestamp_us))
        return replace(keyframe, **changed)  # pyright: ignore[reportArgumentType]


class Renamed(Wrapped):
    """The same scenes under other names, with other sample tokens: a model that knows samples by name does not know these."""

    def scene(self, name: str) -> Scene:
        """The scene called `renamed-NAME`, or NAME."""
        scene = self.real.scene(real_name(name))
        keyframes = tuple(replace(k, token=RENAMED + k.token) for k in scene.keyframes)
        return replace(scene, name=RENAMED + scene.name, keyframes=keyframes)

    def occupancy(self, scene: Scene, index: int, spec: GridSpec) -> OccGrid:
        """As the real source's."""
        return self.real.occupancy(self.real.scene(real_name(scene.name)), index, spec)


class OtherCommands(Wrapped):
    """The same scenes with every command the next one in MANOEUVRES, at all keyframes: what commands are worth."""

    def scene(self, name: str) -> Scene:
        """The scene with other commands."""
        scene = self.real.scene(name)
        commands = (Command(MANOEUVRES[(k.command.index + 1) % 3], k.command.source) for k in scene.keyframes)
        return replace(scene, keyframes=tuple(replace(k, command=c) for k, c in zip(scene.keyframes, commands, strict=True)))

    def occupancy(self, scene: Scene, index: int, spec: GridSpec) -> OccGrid:
        """As the real source's."""
        return self.real.occupancy(self.real.scene(scene.name), index, spec)


def real_name(name: str) -> str:
    """A scene's name before `Renamed`."""
    return name.removeprefix(RENAMED)


def blank(batch: Batch) -> Batch:
    """The same observations with targets of NaN, nothing valid, no occupancy and code 0: what a model must be able to plan with."""

    def gone(key: str, value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        return torch.full_like(value, torch.nan if value.is_floating_point() else FREE if key == "occupancy" else 0)

    return replace(batch, targets=replace(batch.targets, **{k: gone(k, v) for k, v in vars(batch.targets).items()}))  # pyright: ignore[reportArgumentType]


def _stranger(now: Keyframe) -> Boxes:
    """One car just ahead of the ego."""
    centre = now.global_T_ego.matrix @ np.array([8.0, 0.0, 0.8, 1.0])
    one = np.zeros(1, np.int64)
    return Boxes("global", centre[None, :3], np.array([[4.5, 1.9, 1.6]]), np.zeros(1), one, ("stranger",), one + 9)
