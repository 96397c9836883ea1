"""Predicted outcomes of candidate plans, and their cost.

Occupancy probability maps of road users are sampled along the footprint of each candidate: the forecast of each step (ii), or the current
map at every step (no ii). From these samples and the candidate's motion, a small head predicts the collision probability at each step and
the distance to the expert's path. Both are trained on exact labels for every candidate. A third, explicit cost is the fraction of the
footprint that is expected to be occupied in a forecast scene. The candidate with the lowest weighted sum is chosen.

Shapes: B batch, A candidates, S steps, N boxes, P points of a footprint, X, Y cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from iidrive.core.batch import Targets
from iidrive.core.footprint import EGO_SIZE_M
from iidrive.core.scene import FUTURE_STEPS, GridSpec
from iidrive.models.candidates import LIDAR_TO_CENTRE_M, BasePath, footprints, headings, rectangles_meet, shifted
from iidrive.models.layers import constant, mlp, planar, read_grid

_MARGINS_M = (0.0, 0.6, 1.5)
"""Margins around the footprint at which the maps are sampled, metres."""

_LATTICE = ((9, 5), (9, 5), (9, 7))

_PER_STEP = len(_MARGINS_M) + 1 + 3


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of candidates.

    Attributes:
        collision: (B,A,S) learned logits of colliding with a road user at each step.
        distance_m: (B,A) learned distance to the expert's path, metres.
        overlap: (B,A) expected occupied fraction of the footprint, summed over steps; 0 without a forecast.
    """

    collision: Float[Tensor, "B A S"]
    distance_m: Float[Tensor, "B A"]
    overlap: Float[Tensor, "B A"]

    def cost(self, collision_m: float, overlap_m: float, faster: Bool[Tensor, "A"]) -> Float[Tensor, "B A"]:
        """Cost of each candidate, metres: the distance, plus `collision_m` per expected collision, plus `overlap_m` per step with a fully
        occupied footprint.

        The risk of a candidate that is `faster` than the first one (the unchanged plan) is at least that of the first. Otherwise an ego
        that would be hit where it stands would accelerate, because the forecast does not know that the others react to it.
        """
        risk = collision_m * self.collision.sigmoid().sum(-1) + overlap_m * self.overlap
        return self.distance_m + torch.where(faster, risk.maximum(risk[:, :1]), risk)


class OutcomeHead(nn.Module):
    """Predicts outcomes from maps sampled along candidates."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = mlp(FUTURE_STEPS * _PER_STEP + 3, 2 * width, width)
        self.out = nn.Linear(width, FUTURE_STEPS + 1)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.bias.copy_(torch.tensor([-4.0] * FUTURE_STEPS + [0.0]))

    def forward(
        self,
        candidates: Float[Tensor, "B A S 2"],
        base: Float[Tensor, "B S 2"],
        maps: Float[Tensor, "B S X Y"],
        imagined: bool,
        grid: GridSpec,
        ego_T_lidar: Float[Tensor, "B 4 4"],
    ) -> Outcomes:
        """Outcomes of candidates.

        Args:
            candidates: (B,A,S,2) paths in the current lidar frame, metres.
            base: (B,S,2) the plan that the candidates vary, lidar frame, metres.
            maps: (B,S,X,Y) occupancy probabilities of road users in the current ego frame.
            imagined: whether the maps are forecasts of their steps; false if all are the current map.
            grid: grid of the maps.
            ego_T_lidar: (B,4,4) LIDAR_TOP to ego frame.
        """
        ways = zip(_LATTICE, _MARGINS_M, strict=True)
        read = torch.stack([read_along(candidates, maps, grid, ego_T_lidar, lattice, margin) for lattice, margin in ways], -1)
        worst, mean = read[..., 0, :], read[..., 1, :1]
        seen = torch.cat([torch.logit(worst.clamp(1e-3, 1 - 1e-3)) / 4, mean], -1)
        hops = torch.diff(candidates, dim=2, prepend=torch.zeros_like(candidates[:, :, :1])).norm(dim=-1)
        own = torch.diff(base, dim=1, prepend=torch.zeros_like(base[:, :1])).norm(dim=-1)[:, None].expand_as(hops)
        away = (candidates - base[:, None]).norm(dim=-1)
        driven = torch.stack([hops / 5, (hops - own) / 2, away / 5], -1)
        whole = torch.stack([own[..., 0] / 5, away.mean(-1), torch.full_like(away[..., 0], float(imagined))], -1)
        made = self.out(F.relu(self.net(torch.cat([torch.cat([seen, driven], -1).flatten(2), whole], -1))))
        overlap = mean[..., 0].sum(-1) * float(imagined)
        return Outcomes(made[..., :-1], (away.mean(-1) + made[..., -1]).clamp(min=0), overlap)


def read_along(
    candidates: Float[Tensor, "B A S 2"],
    maps: Float[Tensor, "B S X Y"],
    grid: GridSpec,
    ego_T_lidar: Float[Tensor, "B 4 4"],
    lattice: tuple[int, int] = (9, 5),
    margin_m: float = 0.0,
) -> Float[Tensor, "B A S 2"]:
    """Largest and mean value (last axis) of each step's map under the candidate's footprint at that step. Bilinear; 0 outside the map."""
    points = footprints(candidates, lattice, margin_m)
    ego = planar(ego_T_lidar, points.flatten(2, 3)).view_as(points).transpose(1, 2)
    found = read_grid(maps.flatten(0, 1)[:, None], ego.flatten(0, 1), grid)[:, 0]
    return torch.stack([found.amax(-1), found.mean(-1)], -1).unflatten(0, maps.shape[:2]).transpose(1, 2)


def on_the_road(
    base: BasePath,
    off_road: Float[Tensor, "B X Y"],
    grid: GridSpec,
    ego_T_lidar: Float[Tensor, "B 4 4"],
    shifts_m: tuple[float, ...],
    road_m: float,
) -> BasePath:
    """Shift a base path and its line sideways (lidar frame), by the cheapest of `shifts_m`.

    The cost is |shift| in metres plus `road_m` times the mean off-road probability of the footprint's corners (with a small margin) over
    all steps. Outside the map counts as road.
    """
    paths, lines = (torch.stack([shifted(p, aside) if aside else p for aside in shifts_m], 1) for p in (base.path, base.line))
    maps = off_road[:, None].expand(-1, base.path.shape[1], -1, -1)
    off = read_along(paths, maps, grid, ego_T_lidar, (2, 2), _ROOM_M)[..., 1].mean(-1)
    best = (road_m * off + constant([abs(aside) for aside in shifts_m], base.path)).argmin(1)
    rows = torch.arange(len(best), device=best.device)
    return BasePath(paths[rows, best], lines[rows, best])


_ROOM_M = 0.2


def collisions(candidates: Float[Tensor, "B A S 2"], targets: Targets, ego_T_lidar: Float[Tensor, "B 4 4"]) -> Bool[Tensor, "B A S"]:
    """Collision labels for training: whether each candidate (lidar frame, metres) touches a true box at each step."""
    assert targets.boxes is not None
    assert targets.boxes_known is not None
    forward = headings(candidates)
    centre = planar(ego_T_lidar, candidates + LIDAR_TO_CENTRE_M * forward)
    forward = torch.einsum("bij,basj->basi", ego_T_lidar[:, :2, :2], forward)
    boxes = targets.boxes[:, :, 1:].transpose(1, 2)[:, None]  # B 1 S N 5
    other = torch.stack([boxes[..., 2].cos(), boxes[..., 2].sin()], -1)
    size = constant(EGO_SIZE_M, candidates)
    meet = rectangles_meet(centre[..., None, :], forward[..., None, :], boxes[..., :2], other, size, boxes[..., 3:])
    return (meet & targets.boxes_known[:, :, 1:].transpose(1, 2)[:, None]).any(-1)
