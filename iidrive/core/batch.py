"""Samples as tensors: `Inputs` (what a model may see), `Targets` (what came after) and `Batch` (both).

Inputs and targets are separate types, so a model cannot read the future by mistake.

Shapes: B samples, T input frames, S future steps, H = S + 1 times (now and every step), X Y Z voxels, n tokens, N boxes, R points of a route.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Float64, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """The only input of a model: T frames of B samples, oldest first. The last frame is the current one.

    Attributes:
        tokens: sample token of each current frame.
        now_T_frame: (B,T,4,4) from each frame's ego frame to the current ego frame.
        known: (B,T) false before the scene began. There, all values repeat the earliest frame.
        age_s: (B,T) seconds before the current frame.
        command: (B,) index into `MANOEUVRES`.
        ego_T_lidar: (B,4,4) from LIDAR_TOP to the ego frame.
        occupancy: (B,T,X,Y,Z) class labels; None if the stage reads tokens.
        codes: (B,T,n) token indices; None if the stage reads occupancy.
        global_T_now: (B,4,4) ego pose in the global frame. Only the rollout of the published world model reads it.
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
        """Copy to `device`."""
        return _moved(self, device)

    def select(self, rows: Sequence[int]) -> Inputs:
        """The samples at these rows of the batch."""
        index = torch.cat([self.command.new_full((1,), row) for row in rows])  # built on the device: a copy from the host would synchronise
        part = {k: v[index] for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, tokens=tuple(self.tokens[row] for row in rows), **part)


@dataclass(frozen=True)
class Targets:
    """Training targets of B samples over S future steps.

    Attributes:
        now_T_frame: (B,S,4,4) from each future ego frame to the current ego frame.
        valid: (B,S) false after the scene ended. There, all values repeat the last frame.
        path: (B,S,2) positions of the LIDAR_TOP origin in the current lidar frame, metres.
        draw: (B,S) uniform random numbers in [0, 1), for scheduled sampling. They depend only on the seed and the sample's position in the
            training order, not on how a batch is split.
        occupancy: (B,S,X,Y,Z) class labels.
        codes: (B,S,n) token indices.
        taken: (B,H,X,Y) true for cells that a road user occupies, now and at every step. Current ego frame (data/box_tracks.py).
        flow_m: (B,S,X,Y,2) backward flow: from a cell at a step to where the same road user is now, metres; NaN where unknown.
        boxes: (B,N,H,5) tracked boxes now and at every step: x, y, heading, length, width, metres and radians, current ego frame.
        boxes_known: (B,N,H) true where a track has a box.
        drivable: (B,X,Y) true for cells of `ROAD_GRID` whose centre is in the drivable area of the map (data/outcome_targets.py).
        road_known: (B,) false for samples without a map.
        route: (B,R,2) the route around the ego, current ego frame, metres; NaN where unknown (data/routes.py).
        driven: (B,S,2) path of the ego in the branch that `taken` is of, lidar frame, metres (simulation/branches.py).
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
    drivable: Bool[Tensor, "B X Y"] | None = None
    road_known: Bool[Tensor, "B"] | None = None
    route: Float[Tensor, "B R 2"] | None = None
    driven: Float[Tensor, "B S 2"] | None = None

    def to(self, device: torch.device) -> Targets:
        """Copy to `device`."""
        return _moved(self, device)

    def select(self, rows: Int[Tensor, "b"]) -> Targets:
        """The samples at these rows of the batch."""
        return _each(self, lambda tensor: tensor[rows])


Part = TypeVar("Part", "Inputs", "Targets")


def _moved(part: Part, device: torch.device) -> Part:
    return _each(part, lambda tensor: tensor.to(device, non_blocking=True))


def _each(part: Part, change: Callable[[Tensor], Tensor]) -> Part:
    return replace(part, **{k: change(v) for k, v in vars(part).items() if isinstance(v, Tensor)})


@dataclass(frozen=True)
class Batch:
    """B training samples. Models predict from `inputs`; only their loss reads `targets`.

    Attributes:
        inputs: what the model may see.
        targets: what came after.
        progress: fraction of the training already done, 0 to 1, for schedules.
        place: index of each sample in the global batch; None if this is the whole batch.
    """

    inputs: Inputs
    targets: Targets
    progress: float = 1.0
    place: Sequence[int] | None = None

    def to(self, device: torch.device) -> Batch:
        """Copy to `device`."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))

    def as_type(self, dtype: torch.dtype) -> Batch:
        """Convert float32 tensors to `dtype`. Other dtypes are unchanged."""

        def change(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if tensor.dtype == torch.float32 else tensor

        return replace(self, inputs=_each(self.inputs, change), targets=_each(self.targets, change))

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory, for asynchronous copies to a GPU."""
        return replace(self, inputs=_each(self.inputs, Tensor.pin_memory), targets=_each(self.targets, Tensor.pin_memory))
