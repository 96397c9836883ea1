"""Counterfactual sources: the same scenes up to a keyframe, with everything after that keyframe replaced.

A model's output at that keyframe must be identical, bit for bit, on the real and on the counterfactual source. A source that computes inputs can be
wrapped around a counterfactual source; it then reads the replaced future, so its leaks show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import shapely
import torch
from torch import Tensor

from iidrive.core.batch import Batch
from iidrive.core.classes import FREE
from iidrive.core.scene import MANOEUVRES, Boxes, Command, CommandSource, GridSpec, Keyframe, OccGrid, OccSource, Pose, Scene, VectorMap
from iidrive.data.source import Source

Array = np.ndarray
Input = Literal["poses", "commands", "boxes", "occupancy", "times"]
Value = Literal["other", "noise"]

INPUTS: tuple[Input, ...] = get_args(Input)
"""Inputs that can be replaced in later keyframes."""

Label = Literal["boxes", "map"]

LABELS: tuple[Label, ...] = get_args(Label)
"""Labels of the present that no model is given at test time."""

MOVED_M = (23.0, -17.0)
"""How far a replaced map lies from the real one, metres."""

RENAMED = "renamed-"


class Wrapped:
    """A source that forwards everything to another source. Subclasses override parts of it."""

    def __init__(self, real: Source) -> None:
        self.real = real

    @property
    def name(self) -> str:
        """As in the real source."""
        return self.real.name

    @property
    def command_source(self) -> CommandSource:
        """As in the real source."""
        return self.real.command_source

    @property
    def occupancy_source(self) -> OccSource:
        """As in the real source."""
        return self.real.occupancy_source

    def identity(self) -> dict[str, object]:
        """As in the real source."""
        return self.real.identity()

    def missing(self) -> tuple[str, ...]:
        """As in the real source."""
        return self.real.missing()

    def usual_split(self, part: Literal["train", "val", "test"]) -> str:
        """As in the real source."""
        return self.real.usual_split(part)

    def scene_names(self, split: str) -> tuple[str, ...]:
        """As in the real source."""
        return self.real.scene_names(split)

    def prepare(self, names: Sequence[str]) -> None:
        """As in the real source."""
        self.real.prepare(names)

    def scene(self, name: str) -> Scene:
        """As in the real source."""
        return self.real.scene(name)

    def occupancy(self, scene: Scene, index: int, spec: GridSpec) -> OccGrid:
        """As in the real source."""
        return self.real.occupancy(scene, index, spec)


@dataclass(frozen=True)
class Change:
    """How later keyframes are changed: `inputs` are replaced by `value`, or, with `end`, the scene ends at the current keyframe."""

    inputs: frozenset[Input] = frozenset(INPUTS)
    value: Value = "other"
    end: bool = False


class Counterfactual(Wrapped):
    """A source whose scenes are changed after keyframe `now[scene name]`. Scenes that are not in `now` are unchanged."""

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
        """The real occupancy up to the current keyframe, a different one after it."""
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


class _OfRealScenes(Wrapped):
    """A source that changes scenes, but not their occupancy."""

    def occupancy(self, scene: Scene, index: int, spec: GridSpec) -> OccGrid:
        """That of the real scene."""
        return self.real.occupancy(self.real.scene(scene.name), index, spec)


class Unlabelled(_OfRealScenes):
    """A source whose labels are replaced: boxes up to the current keyframe, or the map with the planned route, or both.

    Occupancy is that of the real scene, even where a source computes it from boxes: a model is given occupancy.
    """

    def __init__(self, real: Source, now: Mapping[str, int], labels: frozenset[Label] = frozenset(LABELS)) -> None:
        super().__init__(real)
        self.now, self.labels = dict(now), labels

    def scene(self, name: str) -> Scene:
        """The scene with other labels. Scenes that are not in `now` are unchanged."""
        scene = self.real.scene(name)
        if name not in self.now:
            return scene
        if "boxes" in self.labels:
            seen, later = scene.keyframes[: self.now[name] + 1], scene.keyframes[self.now[name] + 1 :]
            scene = replace(scene, keyframes=(*(replace(k, boxes=_stranger(k)) for k in seen), *later))
        if "map" in self.labels:
            route = None if scene.route_m is None else scene.route_m + MOVED_M
            scene = replace(scene, map=_moved(scene.map), route_m=route, conflict=None)
        return scene


class Renamed(Wrapped):
    """The same scenes with other scene names and sample tokens. A model that looks samples up by name cannot find them."""

    def scene(self, name: str) -> Scene:
        """The scene NAME, given as `renamed-NAME` or NAME."""
        scene = self.real.scene(real_name(name))
        keyframes = tuple(replace(k, token=RENAMED + k.token) for k in scene.keyframes)
        return replace(scene, name=RENAMED + scene.name, keyframes=keyframes)

    def occupancy(self, scene: Scene, index: int, spec: GridSpec) -> OccGrid:
        """As in the real source."""
        return self.real.occupancy(self.real.scene(real_name(scene.name)), index, spec)


class OtherCommands(_OfRealScenes):
    """The same scenes with every command replaced by the next one in MANOEUVRES, to measure the effect of commands."""

    def scene(self, name: str) -> Scene:
        """The scene with other commands."""
        scene = self.real.scene(name)
        commands = (Command(MANOEUVRES[(k.command.index + 1) % 3], k.command.source) for k in scene.keyframes)
        return replace(scene, keyframes=tuple(replace(k, command=c) for k, c in zip(scene.keyframes, commands, strict=True)))


def real_name(name: str) -> str:
    """The scene name without the prefix of `Renamed`."""
    return name.removeprefix(RENAMED)


def blank(batch: Batch) -> Batch:
    """The same observations without targets (NaN, not valid, free, code 0). A model must be able to plan from them."""

    def blanked(key: str, value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        return torch.full_like(value, torch.nan if value.is_floating_point() else FREE if key == "occupancy" else 0)

    return replace(batch, targets=replace(batch.targets, **{k: blanked(k, v) for k, v in vars(batch.targets).items()}))  # pyright: ignore[reportArgumentType]


def _moved(real: VectorMap) -> VectorMap:
    """The map, elsewhere."""

    def moved(shape: Any) -> Any:
        return shapely.transform(shape, lambda points: points + MOVED_M)

    lanes = [replace(lane, polygon=moved(lane.polygon), centreline_m=lane.centreline_m + MOVED_M) for lane in real.lanes]
    junctions = [replace(junction, polygon=moved(junction.polygon)) for junction in real.junctions]
    return VectorMap({name: moved(shape) for name, shape in real.layers.items()}, lanes, junctions)


def _stranger(now: Keyframe) -> Boxes:
    """One car 8 m ahead of the ego, in the global frame."""
    centre = now.global_T_ego.matrix @ np.array([8.0, 0.0, 0.8, 1.0])
    one = np.zeros(1, np.int64)
    return Boxes("global", centre[None, :3], np.array([[4.5, 1.9, 1.6]]), np.zeros(1), one, ("stranger",), one + 9)
