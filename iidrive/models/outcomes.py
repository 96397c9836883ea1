"""What each candidate plan would meet, and the choice among them.

A candidate is read along its own footprint in a sequence of maps that say how likely a road user takes each cell: those imagined for each
step (ii), or the present's at every step (no ii). From what was read, and from how the candidate drives, a small head predicts the probability
of a collision at each step and the distance to the path that an expert would drive. Both are trained on exact labels of every candidate of
every sample. Beside them stands an explicit cost: the share of the footprint that is expected to be taken in an imagined scene. The choice
weighs all three.

Shapes: B batch, A candidates, S steps, N boxes, P points of a footprint, X, Y cells, F numbers of a step.
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
from iidrive.models.candidates import LIDAR_TO_CENTRE_M, footprints, headings, rectangles_meet, shifted
from iidrive.models.layers import constant, mlp, planar, read_grid

_MARGINS_M = (0.0, 0.6, 1.5)
"""A footprint is read as it is, and with so much room around it."""

_LATTICE = ((9, 5), (9, 5), (9, 7))

_PER_STEP = len(_MARGINS_M) + 1 + 3


@dataclass(frozen=True)
class Outcomes:
    """Logits (B,A,S) of meeting a road user at each step, and the expected distance (B,A) from the expert's path, metres; both learned.

    `overlap` (B,A) is read: the share of the footprint that is expected to be taken, summed over steps; 0 where no scene was imagined.
    """

    collision: Float[Tensor, "B A S"]
    distance_m: Float[Tensor, "B A"]
    overlap: Float[Tensor, "B A"]

    def cost(self, collision_m: float, overlap_m: float, faster: Bool[Tensor, "A"]) -> Float[Tensor, "B A"]:
        """What a candidate costs, metres: the distance, `collision_m` for every step that is expected to meet somebody, and `overlap_m` for
        every step whose whole footprint is expected to be taken.

        A candidate that is `faster` than the way, which is the first candidate, is never taken to be safer: who would be hit where it stands is not
        to flee forwards, since the others see it and the imagined scene does not know that they do.
        """
        risk = collision_m * self.collision.sigmoid().sum(-1) + overlap_m * self.overlap
        return self.distance_m + torch.where(faster, risk.maximum(risk[:, :1]), risk)


class OutcomeHead(nn.Module):
    """Reads maps along candidates. Holds weights only."""

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
        """Outcomes of candidates (lidar frame) by `maps` (probabilities, present ego frame). `base` is the plan that they vary; `imagined` says
        whether the maps are of their steps or all of the present."""
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
    """The largest and the mean value, bilinear, of every step's map under the candidate's footprint then; 0 outside the map."""
    points = footprints(candidates, lattice, margin_m)
    ego = planar(ego_T_lidar, points.flatten(2, 3)).view_as(points).transpose(1, 2)
    found = read_grid(maps.flatten(0, 1)[:, None], ego.flatten(0, 1), grid)[:, 0]
    return torch.stack([found.amax(-1), found.mean(-1)], -1).unflatten(0, maps.shape[:2]).transpose(1, 2)


def on_the_road(
    way: Float[Tensor, "B S 2"],
    off_road: Float[Tensor, "B X Y"],
    grid: GridSpec,
    ego_T_lidar: Float[Tensor, "B 4 4"],
    shifts_m: tuple[float, ...],
    road_m: float,
) -> Float[Tensor, "B S 2"]:
    """The cheapest of some paths beside a way (lidar frame): what each costs is how far aside it lies, metres, and `road_m` times the share of its
    corners, over all steps, that is expected off the road. Corners have a little room around them; what lies outside the map is road."""
    paths = torch.stack([shifted(way, aside) if aside else way for aside in shifts_m], 1)
    maps = off_road[:, None].expand(-1, way.shape[1], -1, -1)
    off = read_along(paths, maps, grid, ego_T_lidar, (2, 2), _ROOM_M)[..., 1].mean(-1)
    cost = road_m * off + constant([abs(aside) for aside in shifts_m], way)
    return paths[torch.arange(len(way), device=way.device), cost.argmin(1)]


_ROOM_M = 0.2


def collisions(candidates: Float[Tensor, "B A S 2"], targets: Targets, ego_T_lidar: Float[Tensor, "B 4 4"]) -> Bool[Tensor, "B A S"]:
    """Whether each candidate touches a true box at each step: exact labels, for training."""
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
