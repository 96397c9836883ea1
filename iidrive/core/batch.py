"""Samples as tensors: what a model gets (`Inputs`), what came after (`Targets`), and both together (`Batch`). Causality is a type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Float64, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """Observations of B samples as tensors: T frames, oldest first, the last is now. What a model gets, and all that it gets.

    `now_T_frame` (B,T,4,4) carries points of each frame's ego frame into the current one; `known` (B,T) is false where the scene had
    not begun (there, the earliest frame stands in); `age_s` (B,T) seconds before now; `command` (B,) index into MANOEUVRES;
    `ego_T_lidar` (B,4,4); `occupancy` (B,T,X,Y,Z) labels or `codes` (B,T,n) token indices, as the stage needs. `global_T_now` (B,4,4) is
    where the ego is in the map: only the published world model's roll-out, which thinks in map axes, reads it.
    """

    tokens: tuple[str, ...]
    now_T_frame: Float[Tensor, "B T 4 4"]
    known: Bool[Tensor, "B T"]
    age_s: Float[Tensor, "B T"]
    command: Int[Tensor, "B"]
    ego_T_lidar: Float[Tensor, "B 4 4"]
    occupancy: UInt8[Tensor, "B T X Y Z"] | None = None
    codes: Int[Tensor, "B T n"] | None = None
    global_T_now: Float64[Tensor, "B 4 4"] | None = None

    def to(self, device: torch.device) -> Inputs:
        """The same on another device."""
        return _moved(self, device)

    def select(self, rows: Sequence[int]) -> Inputs:
        """Some of the samples."""
        index = torch.cat([self.command.new_full((1,), row) for row in rows])  # written on the device, which waits for nothing then
        part = {k: v[index] for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, tokens=tuple(self.tokens[row] for row in rows), **part)


@dataclass(frozen=True)
class Targets:
    """Targets of B samples as tensors, S future steps; `valid` (B,S) false where the scene had ended (the last frame stands in).

    `path` (B,S,2) is the LIDAR_TOP origin's in the current lidar frame. `draw` (B,S) are uniform numbers that follow from the seed and the
    sample's place in the training order, for scheduled sampling and the like: they do not depend on how a batch is shared out.
    `taken` (B,S+1,X,Y) says which cells around the ego are a road user's, at present and at every step, and `flow_m` (B,S,X,Y,2) the way
    back from there to where that road user is at present, NaN where nobody knows. `boxes` (B,N,S+1,5) are tracked boxes around the ego at
    present and at every step (x, y, heading, length, width), `boxes_known` (B,N,S+1) says which are there. All are in the present ego frame
    (data/box_tracks.py).
    """

    now_T_frame: Float[Tensor, "B S 4 4"]
    valid: Bool[Tensor, "B S"]
    path: Float[Tensor, "B S 2"]
    draw: Float[Tensor, "B S"]
    occupancy: UInt8[Tensor, "B S X Y Z"] | None = None
    codes: Int[Tensor, "B S n"] | None = None
    taken: Bool[Tensor, "B H X Y"] | None = None
    flow_m: Float[Tensor, "B S X Y 2"] | None = None
    boxes: Float[Tensor, "B N H 5"] | None = None
    boxes_known: Bool[Tensor, "B N H"] | None = None

    def to(self, device: torch.device) -> Targets:
        """The same on another device."""
        return _moved(self, device)

    def select(self, rows: Int[Tensor, "b"]) -> Targets:
        """Some of the samples."""
        return _each(self, lambda tensor: tensor[rows])


Part = TypeVar("Part", "Inputs", "Targets")


def _moved(part: Part, device: torch.device) -> Part:
    return _each(part, lambda tensor: tensor.to(device, non_blocking=True))


def _each(part: Part, change: Callable[[Tensor], Tensor]) -> Part:
    return replace(part, **{k: change(v) for k, v in vars(part).items() if isinstance(v, Tensor)})


@dataclass(frozen=True)
class Batch:
    """B training samples. Models read `inputs` to predict and `targets` only inside their loss.

    `progress` is the share of the training already done, 0..1, for schedules. `place` is every sample's place in the global batch, where this
    is a part of one.
    """

    inputs: Inputs
    targets: Targets
    progress: float = 1.0
    place: Sequence[int] | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def as_type(self, dtype: torch.dtype) -> Batch:
        """The same with single-precision numbers in another precision."""

        def change(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if tensor.dtype == torch.float32 else tensor

        return replace(self, inputs=_each(self.inputs, change), targets=_each(self.targets, change))

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from where a GPU copies while the processor goes on."""
        return replace(self, inputs=_each(self.inputs, Tensor.pin_memory), targets=_each(self.targets, Tensor.pin_memory))
