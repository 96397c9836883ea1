"""Predicted outcomes of candidate plans, and their cost.

Occupancy probability maps of road users are sampled along the footprint of each candidate: the forecast of each step (ii), or the current
map at every step (no ii). From these samples and the candidate's motion, a small head predicts the collision probability at each step and
the distance to the expert's path. A second one predicts what else scorers count: whether the time to collision falls below a second, whether
the candidate leaves the road (it also samples the current road), its progress, and its comfort. Both are trained on exact labels for every
candidate (`outcome_labels.py`). A last, explicit cost is the fraction of the footprint that is expected to be occupied in a forecast scene.
The candidate with the lowest weighted sum is chosen.

Shapes: B batch, A candidates, S steps, R steps with a known second after them, F features, P points of a footprint, X, Y cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from iidrive.core.scene import FUTURE_STEPS, GridSpec
from iidrive.models.candidates import BasePath, footprints, shifted
from iidrive.models.layers import constant, mlp, planar, read_grid

_MARGINS_M = (0.0, 0.6, 1.5)
"""Margins around the footprint at which the maps are sampled, metres."""

_LATTICE = ((9, 5), (9, 5), (9, 7))

_PER_STEP = len(_MARGINS_M) + 1 + 3

STEPS_AHEAD = 2
"""Steps within which a time to collision counts as short: 1 s."""


@dataclass(frozen=True)
class Costs:
    """Costs of outcomes, metres of distance from the expert's path.

    Attributes:
        collision_m: of a step with a predicted collision.
        overlap_m: of a step whose whole footprint is occupied in the forecast.
        ttc_m: of a step with a time to collision below 1 s.
        off_road_m: of a step with a corner off the road.
        progress_m: of no progress, relative to the expert's.
        comfort_m: of an uncomfortable candidate.
    """

    collision_m: float
    overlap_m: float
    ttc_m: float = 0.0
    off_road_m: float = 0.0
    progress_m: float = 0.0
    comfort_m: float = 0.0


@dataclass(frozen=True)
class Quality:
    """Predicted outcomes of candidates besides collision and distance.

    Attributes:
        ttc: (B,A,R) logits of a time to collision below 1 s at each step that has a second of labels after it.
        off_road: (B,A,S) logits of a corner off the road at each step.
        progress: (B,A) progress before the first collision or departure from the road, as a fraction of the expert's, 0 to 1.
        uncomfortable: (B,A) logits of exceeding a limit of comfort.
    """

    ttc: Float[Tensor, "B A R"]
    off_road: Float[Tensor, "B A S"]
    progress: Float[Tensor, "B A"]
    uncomfortable: Float[Tensor, "B A"]


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of candidates.

    Attributes:
        collision: (B,A,S) learned logits of colliding with a road user at each step.
        distance_m: (B,A) learned distance to the expert's path, metres.
        overlap: (B,A) expected occupied fraction of the footprint, summed over steps; 0 without a forecast.
        quality: the other outcomes; None for a planner without that head.
    """

    collision: Float[Tensor, "B A S"]
    distance_m: Float[Tensor, "B A"]
    overlap: Float[Tensor, "B A"]
    quality: Quality | None = None

    def cost(self, costs: Costs, faster: Bool[Tensor, "A"]) -> Float[Tensor, "B A"]:
        """Cost of each candidate, metres: the distance, plus the costs of what it is expected to meet.

        The risk of meeting others of a candidate that is `faster` than the first one (the unchanged plan) is at least that of the first.
        Otherwise an ego that would be hit where it stands would accelerate, because a shared forecast does not know that the others react to it.
        The rule is the same with a forecast for each candidate, so that planners differ in nothing but what they read.
        """
        risk = costs.collision_m * self.collision.sigmoid().sum(-1) + costs.overlap_m * self.overlap
        rest = self.distance_m
        if self.quality is not None:
            found = self.quality
            if costs.ttc_m:
                risk = risk + costs.ttc_m * found.ttc.sigmoid().sum(-1)
            if costs.off_road_m or costs.progress_m or costs.comfort_m:
                rest = rest + costs.off_road_m * found.off_road.sigmoid().sum(-1) + costs.progress_m * (1 - found.progress)
                rest = rest + costs.comfort_m * found.uncomfortable.sigmoid()
        return rest + torch.where(faster, risk.maximum(risk[:, :1]), risk)


@dataclass(frozen=True)
class Sampled:
    """What heads read of candidates.

    Attributes:
        steps: (B,A,S,F) features of each step: the maps under the footprint, and the motion.
        whole: (B,A,3) features of the whole candidate.
        away_m: (B,A) mean distance from the base path, metres.
        overlap: (B,A) expected occupied fraction of the footprint, summed over steps; 0 without a forecast.
    """

    steps: Float[Tensor, "B A S F"]
    whole: Float[Tensor, "B A 3"]
    away_m: Float[Tensor, "B A"]
    overlap: Float[Tensor, "B A"]


def sample(
    candidates: Float[Tensor, "B A S 2"],
    base: Float[Tensor, "B S 2"],
    maps: Float[Tensor, "B *A S X Y"],
    imagined: bool,
    grid: GridSpec,
    ego_T_lidar: Float[Tensor, "B 4 4"],
) -> Sampled:
    """Sample maps along candidates.

    Args:
        candidates: (B,A,S,2) paths in the current lidar frame, metres.
        base: (B,S,2) the plan that the candidates vary, lidar frame, metres.
        maps: (B,S,X,Y) occupancy probabilities of road users in the current ego frame, or (B,A,S,X,Y) for each candidate.
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
    return Sampled(torch.cat([seen, driven], -1), whole, away.mean(-1), mean[..., 0].sum(-1) * float(imagined))


class OutcomeHead(nn.Module):
    """Predicts collisions and the distance to the expert's path from what was sampled along candidates."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = mlp(FUTURE_STEPS * _PER_STEP + 3, 2 * width, width)
        self.out = nn.Linear(width, FUTURE_STEPS + 1)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.bias.copy_(torch.tensor([-4.0] * FUTURE_STEPS + [0.0]))

    def forward(self, sampled: Sampled) -> Outcomes:
        """Outcomes of candidates, without `quality`."""
        made = self.out(F.relu(self.net(torch.cat([sampled.steps.flatten(2), sampled.whole], -1))))
        return Outcomes(made[..., :-1], (sampled.away_m + made[..., -1]).clamp(min=0), sampled.overlap)


class QualityHead(nn.Module):
    """Predicts the other outcomes from what was sampled along candidates, the current road under them, and the ego's motion so far."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = mlp(FUTURE_STEPS * (_PER_STEP + 2 + 2) + 3 + 2, 2 * width, width)
        self.out = nn.Linear(width, 2 * FUTURE_STEPS - STEPS_AHEAD + 2)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.bias.copy_(torch.tensor([-4.0] * (2 * FUTURE_STEPS - STEPS_AHEAD) + [2.0, -4.0]))

    def forward(
        self,
        sampled: Sampled,
        candidates: Float[Tensor, "B A S 2"],
        off_road: Float[Tensor, "B X Y"],
        before: Float[Tensor, "B 2"],
        grid: GridSpec,
        ego_T_lidar: Float[Tensor, "B 4 4"],
    ) -> Quality:
        """Quality of candidates.

        Args:
            sampled: what was sampled along them.
            candidates: (B,A,S,2) paths in the current lidar frame, metres.
            off_road: (B,X,Y) probability that a cell is not road, current ego frame.
            before: (B,2) the ego's position one step ago, current lidar frame, metres.
            grid: grid of `off_road`.
            ego_T_lidar: (B,4,4) LIDAR_TOP to ego frame.
        """
        road = read_along(candidates, off_road[:, None].expand(-1, candidates.shape[2], -1, -1), grid, ego_T_lidar, (2, 2))
        start = before[:, None].expand(-1, candidates.shape[1], -1)
        steps = torch.cat([sampled.steps, road, candidates / 20], -1).flatten(2)
        made = self.out(F.relu(self.net(torch.cat([steps, sampled.whole, start / 5], -1))))
        ttc, off, rest = made.split([FUTURE_STEPS - STEPS_AHEAD, FUTURE_STEPS, 2], -1)
        return Quality(ttc, off, rest[..., 0].sigmoid(), rest[..., 1])


def read_along(
    candidates: Float[Tensor, "B A S 2"],
    maps: Float[Tensor, "B *A S X Y"],
    grid: GridSpec,
    ego_T_lidar: Float[Tensor, "B 4 4"],
    lattice: tuple[int, int] = (9, 5),
    margin_m: float = 0.0,
) -> Float[Tensor, "B A S 2"]:
    """Largest and mean value (last axis) of each step's map under the candidate's footprint at that step. Bilinear; 0 outside the map.

    The maps are the same for all candidates, or each has its own.
    """
    if maps.dim() == 5:
        count = candidates.shape[1]
        alone = candidates.flatten(0, 1)[:, None], maps.flatten(0, 1), grid, ego_T_lidar.repeat_interleave(count, 0), lattice, margin_m
        return read_along(*alone).view(*candidates.shape[:3], 2)
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
