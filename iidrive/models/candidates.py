"""Candidate plans: a path at other speeds, or shifted sideways, and the footprints of the ego along it.

Shapes: B batch, A candidates, S steps, P points of a footprint. Paths are LIDAR_TOP positions in the current lidar frame (x right,
y forward), metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iidrive.core.footprint import EGO_SIZE_M
from iidrive.core.scene import FUTURE_STEPS, STEP_S
from iidrive.models.layers import constant
from iidrive.models.repeatable import running_sum

_PIECES = 10
"""Number of pieces of constant speed per step."""

_LEAST_M = 0.1
"""A segment shorter than this is not used to compute a heading, metres."""

_SHIFT_M = 12.0
"""A shifted path moves sideways over this distance, metres."""


@dataclass(frozen=True)
class BasePath:
    """The path that candidates vary.

    Attributes:
        path: (B,S,2) the base path, one point per step.
        line: (B,N,2) the line that it and its candidates follow, from the ego on: the route ahead, or the base path itself.
    """

    path: Float[Tensor, "B S 2"]
    line: Float[Tensor, "B N 2"]

    @staticmethod
    def alone(path: Float[Tensor, "B S 2"]) -> BasePath:
        """A base path whose candidates follow itself."""
        return BasePath(path, path)

    def select(self, rows: Int[Tensor, "b"]) -> BasePath:
        """The samples at these rows of the batch."""
        return BasePath(self.path[rows], self.line[rows])


def speed_profiles(
    base: BasePath, added_mps2: Float[Tensor, "A"], fastest_mps: float = math.inf, now_mps: Float[Tensor, "B"] | None = None
) -> Float[Tensor, "B A S 2"]:
    """The base path at other speeds: the constant accelerations `added_mps2` are added to its own speed, without driving backwards or faster
    than `fastest_mps`. If the ego is faster than that at `now_mps`, the limit falls to it by 1 m/s².

    After stopping by braking, the ego creeps on by 5 mm per step. Evaluators derive a heading from the path, and a path that does not move
    would look like a turn to the side. Beyond its end, a line continues straight.
    """
    paths = base.path
    hops = torch.diff(paths, dim=1, prepend=torch.zeros_like(paths[:, :1]))
    length = hops.norm(dim=-1)
    count = hops.shape[1] * _PIECES
    time = (torch.arange(count, device=paths.device, dtype=paths.dtype) + 1) * (STEP_S / _PIECES)
    own = (length / STEP_S).repeat_interleave(_PIECES, 1)[:, None]
    added = added_mps2[:, None] * time
    limit = own.new_full((), fastest_mps) if now_mps is None else (now_mps[:, None, None] - _EASES_MPS2 * time).clamp(min=fastest_mps)
    speed = (own + added).clamp(min=0).minimum(limit)
    stopped = ((speed <= _STOPPED_MPS).cummax(2).values) & (own[..., :1] + added <= 0) & (added_mps2 < 0)[:, None]
    gone = running_sum(torch.where(stopped, CREEP_M / STEP_S, speed), 2)[..., _PIECES - 1 :: _PIECES] * (STEP_S / _PIECES)
    return along(base.line, gone)


_EASES_MPS2 = 1.0
_STOPPED_MPS = 0.01
CREEP_M = 0.005
"""Least distance that a candidate moves per step, metres."""


def travelled(paths: Float[Tensor, "B S 2"]) -> Float[Tensor, "B S"]:
    """Distance along each path from the ego to every point, metres."""
    return running_sum(torch.diff(paths, dim=1, prepend=torch.zeros_like(paths[:, :1])).norm(dim=-1), 1)


def along(paths: Float[Tensor, "B S 2"], gone_m: Float[Tensor, "B A N"]) -> Float[Tensor, "B A N 2"]:
    """Points of each path at the distances `gone_m` from its start.

    Beyond its end a path continues straight (forward if it has not moved).
    """
    hops = torch.diff(paths, dim=1, prepend=torch.zeros_like(paths[:, :1]))
    length = hops.norm(dim=-1)
    arc = running_sum(length, 1)
    unit = hops / length.clamp(min=1e-6)[..., None]
    on_hop = (gone_m[..., None] - (arc - length)[:, None, None]).clamp(min=0).minimum(length[:, None, None])
    ahead = constant((0.0, 1.0), paths)
    last = torch.where(length[:, -1:] > _LEAST_M, unit[:, -1], ahead)
    beyond = (gone_m - arc[:, -1, None, None]).clamp(min=0)
    return torch.einsum("bans,bsi->bani", on_hop, unit) + beyond[..., None] * last[:, None, None]


def smoothing(weight: float) -> Float[Tensor, "S S+1"]:
    """Smoothing matrix (S,S+1): maps S+1 points, the ego's position one step ago and then a path, to the smoothed path.

    The smoothed path minimises the squared distance to the path plus `weight` times its squared third differences (regularised least
    squares, Whittaker 1923). The differences include the current position and the one before, so the path continues the ego's motion with
    little jerk.
    """
    steps = FUTURE_STEPS
    third = torch.diff(torch.eye(steps + 2, dtype=torch.float64), n=3, dim=0)
    before, ahead = third[:, 0], third[:, 2:]  # the current position is the origin
    right = torch.cat([-weight * (ahead.T @ before)[:, None], torch.eye(steps, dtype=torch.float64)], 1)
    return torch.linalg.solve(torch.eye(steps, dtype=torch.float64) + weight * ahead.T @ ahead, right).float()


def smoothed(paths: Float[Tensor, "B A S 2"], before: Float[Tensor, "B 2"], matrix: Float[Tensor, "S S+1"]) -> Float[Tensor, "B A S 2"]:
    """Smooth paths with the matrix of `smoothing`. `before` is the ego's position one step ago, current lidar frame, metres."""
    points = torch.cat([before[:, None, None].expand(-1, paths.shape[1], 1, 2), paths], 2)
    return torch.einsum("st,bati->basi", matrix.to(paths.dtype), points)


def headings(paths: Float[Tensor, "*B S 2"]) -> Float[Tensor, "*B S 2"]:
    """Unit vectors along each path at its points: the direction from the point before to the one after; forward if it does not move."""
    padded = torch.cat([torch.zeros_like(paths[..., :1, :]), paths], -2)
    hop = torch.cat([padded[..., 2:, :] - padded[..., :-2, :], padded[..., -1:, :] - padded[..., -2:-1, :]], -2)
    length = hop.norm(dim=-1, keepdim=True)
    unit = [constant((0.0, 1.0), paths).expand_as(hop[..., 0, :])]
    for k in range(hop.shape[-2]):
        unit.append(torch.where(length[..., k, :] > _LEAST_M, hop[..., k, :] / length[..., k, :].clamp(min=1e-6), unit[-1]))
    return torch.stack(unit[1:], -2)


def shifted(paths: Float[Tensor, "B S 2"], aside_m: float) -> Float[Tensor, "B S 2"]:
    """Paths shifted to the left by `aside_m` (to the right if negative), smoothly over their first 12 m. Shorter paths are shifted by less."""
    heading = headings(paths)
    left = torch.stack([-heading[..., 1], heading[..., 0]], -1)
    share = (travelled(paths) / _SHIFT_M).clamp(max=1)
    return paths + (aside_m * share.square() * (3 - 2 * share))[..., None] * left


def footprints(paths: Float[Tensor, "*B S 2"], points: tuple[int, int] = (9, 5), margin_m: float = 0.0) -> Float[Tensor, "*B S P 2"]:
    """Points of the ego's rectangle at every step, lidar frame, metres: a lattice over its length and width, including the edge.

    Args:
        paths: (*B,S,2) paths.
        points: number of points along the length and the width.
        margin_m: the rectangle is enlarged by this on every side, metres.
    """
    forward = headings(paths)
    left = torch.stack([-forward[..., 1], forward[..., 0]], -1)
    size = [side + 2 * margin_m for side in EGO_SIZE_M]
    along_m, left_m = (
        torch.linspace(-side / 2, side / 2, n, device=paths.device, dtype=paths.dtype) for side, n in zip(size, points, strict=True)
    )
    lattice = torch.stack(torch.meshgrid(along_m + LIDAR_TO_CENTRE_M, left_m, indexing="ij"), -1).flatten(0, 1)
    return paths[..., None, :] + lattice[:, :1] * forward[..., None, :] + lattice[:, 1:] * left[..., None, :]


LIDAR_TO_CENTRE_M = 0.5
"""Distance from LIDAR_TOP forward to the ego's centre, metres, as in SparseDrive's protocol."""


def rectangles_meet(
    centre: Float[Tensor, "*B 2"],
    forward: Float[Tensor, "*B 2"],
    other_centre: Float[Tensor, "*B 2"],
    other_forward: Float[Tensor, "*B 2"],
    size_m: Float[Tensor, "*B 2"],
    other_size_m: Float[Tensor, "*B 2"],
) -> Float[Tensor, "*B"]:
    """Whether pairs of rectangles touch or overlap (separating axis theorem). `forward` are unit vectors. Shapes broadcast."""
    between = other_centre - centre
    left, other_left = (torch.stack([-f[..., 1], f[..., 0]], -1) for f in (forward, other_forward))
    meet = torch.ones((), dtype=torch.bool, device=centre.device)
    for axis in (forward, left, other_forward, other_left):
        reach = sum(
            (axis * side).sum(-1).abs() * size[..., k] / 2
            for k, side, size in (
                (0, forward, size_m),
                (1, left, size_m),
                (0, other_forward, other_size_m),
                (1, other_left, other_size_m),
            )
        )
        meet = meet & ((axis * between).sum(-1).abs() <= reach)
    return meet
