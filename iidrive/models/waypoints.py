"""Waypoints: a network that corrects paths by what the latent holds around their points.

Shapes: B batch, K paths, N points of a path, D width, x, y latent cells, P points, E features of a point.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from iidrive.models.layers import CellGrid, mlp


class WaypointRefiner(nn.Module):
    """Predicts corrections of paths from map features sampled at and around their points.

    Args:
        width: channels of the maps and of the state.
        points: number of points of a path.
        around_m: places around each point (x, y) at which the maps are sampled, ego frame, metres.
        cells: grid of the maps.
    """

    def __init__(self, width: int, points: int, around_m: tuple[tuple[float, float], ...], cells: CellGrid) -> None:
        super().__init__()
        self.cells, self.points = cells, points
        self.register_buffer("around", torch.tensor(around_m), persistent=False)
        self.around: Tensor
        self.point = mlp(len(around_m) * width + 2, width, width)
        self.path = mlp(points * width + width, 2 * width, width)
        self.correct = nn.Linear(width, points * 2 + 1)
        nn.init.zeros_(self.correct.weight)
        nn.init.zeros_(self.correct.bias)

    def read(self, maps: Float[Tensor, "B D x y"], points_m: Float[Tensor, "B P 2"]) -> Float[Tensor, "B P E"]:
        """Features (B,P,E) of points in the maps' ego frame, metres."""
        values = self.cells.read(maps, points_m[:, :, None] + self.around)
        return torch.cat([values.permute(0, 2, 3, 1).flatten(2), points_m / 20], -1)

    def forward(self, read: Float[Tensor, "B K N E"], state: Float[Tensor, "B K D"]) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the new state, the corrections of the paths (B,K,N,2) and of the scores (B,K)."""
        points = self.point(read).flatten(2)
        state = state + self.path(torch.cat([points, state], -1))
        out = self.correct(F.relu(state))
        return state, out[..., :-1].unflatten(-1, (self.points, 2)), out[..., -1]
