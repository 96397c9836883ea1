"""The route ahead: where the ego's lane leads, as the current tokens and the command tell it.

The route has a shape and no speed. The planner puts its base path on it, so that the path's shape does not depend on how the ego moved: an
ego that turns a little by mistake is led back, and not farther away. (Planners that read their own motion repeat it in closed loop: de Haan
et al. 2019, arXiv 1905.11979. A path apart from the speed: Jaeger et al. 2023, arXiv 2306.07957.)

The head reads neither ego motion nor speed. It is trained before the planner, on the planned route of each scene (or the driven path where
there is none). Half of its training samples are displaced: the latent and the route are moved to the frame of an ego that stands beside and
turned.

Shapes: B batch, N points of the route, C latent channels, D width, x, y latent cells, R points of a training route.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from iidrive.core.batch import Batch, Inputs
from iidrive.core.errors import ConfigError
from iidrive.core.scene import MANOEUVRES, ROUTE_BEHIND, ROUTE_STEP_M
from iidrive.models.layers import CellGrid, ResBlock, planar, planar_transform, transform_inverse
from iidrive.models.losses import Counts, masked_mean
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.waypoints import WaypointRefiner

_AROUND_M = ((0.0, 0.0), (2.4, 0.0), (-2.4, 0.0), (0.0, 1.6), (0.0, -1.6), (0.0, 3.6), (0.0, -3.6), (0.0, 6.0), (0.0, -6.0))
"""Places around each point at which the latent is sampled (x, y), ego frame, metres: far enough to find both kerbs."""

_FIRST = 0.2
"""Weight of the mean loss of the routes before the last refinement."""


@dataclass(frozen=True)
class RouteConfig:
    """Settings of the route head.

    Attributes:
        points: number of points of the route; 0 for no route head.
        spacing_m: distance between them, metres; a multiple of 0.5.
        width: channels, a multiple of 8.
        refinements: number of refinements of the route with the current latent.
        displaced: fraction of the training samples that are displaced.
        along_m: largest displacement ahead and back, metres.
        aside_m: largest displacement to each side, metres.
        turned_rad: largest turn to each side, radians.
    """

    points: int = 0
    spacing_m: float = 2.5
    width: int = 48
    refinements: int = 3
    displaced: float = 0.5
    along_m: float = 1.0
    aside_m: float = 1.5
    turned_rad: float = 0.35

    def __post_init__(self) -> None:
        if self.width % 8:
            raise ConfigError(f"the route head's width must be a multiple of 8; found {self.width}.")
        if self.spacing_m <= 0 or self.spacing_m % ROUTE_STEP_M:
            raise ConfigError(f"the route's spacing_m must be a multiple of {ROUTE_STEP_M} m; found {self.spacing_m:g}.")


class RouteHead(nn.Module):
    """Predicts the route ahead from the current latent and the command."""

    def __init__(self, config: RouteConfig, latent_width: int, cells: CellGrid) -> None:
        super().__init__()
        self.config, self.cells = config, cells
        width, parts = config.width, (cells.size[0] // 4) * (cells.size[1] // 4)
        self.maps = nn.Sequential(nn.Conv2d(latent_width, width, 1), ResBlock(width, width, 8))
        self.overview = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.place = nn.Parameter(torch.zeros(1, parts, width))
        self.command = nn.Embedding(len(MANOEUVRES), width)
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        self.first = nn.Linear(width, 2 * config.points)
        nn.init.zeros_(self.first.weight)
        nn.init.zeros_(self.first.bias)
        self.refiners = nn.ModuleList(WaypointRefiner(width, config.points, _AROUND_M, cells) for _ in range(config.refinements))

    def forward(self, inputs: Inputs, latent: Float[Tensor, "B C x y"]) -> list[Float[Tensor, "B N 2"]]:
        """The route after every refinement (the last one is final): points `spacing_m` apart, current lidar frame, metres."""
        maps = self.maps(latent)
        overview = self.overview(maps).flatten(2).transpose(1, 2) + self.place
        state = self.command(inputs.command)[:, None]
        state = state + self.attend(state, overview, overview, need_weights=False)[0]
        routes = [self._straight(latent) + self.first(F.relu(state)).unflatten(-1, (self.config.points, 2))]
        for refiner in self.refiners:
            assert isinstance(refiner, WaypointRefiner)
            points = planar(inputs.ego_T_lidar, routes[-1])
            state, shift, _ = refiner(refiner.read(maps, points.flatten(1, 2))[:, None], state)
            routes.append(routes[-1] + shift)
        return [route[:, 0] for route in routes]

    def _straight(self, like: Tensor) -> Float[Tensor, "N 2"]:
        ahead = self.config.spacing_m * torch.arange(1, self.config.points + 1, device=like.device, dtype=like.dtype)
        return torch.stack([torch.zeros_like(ahead), ahead], -1)


class RouteLearner(nn.Module):
    """The route head with its frozen tokenizer, for training."""

    def __init__(self, tokenizer: Tokenizer, head: RouteHead) -> None:
        super().__init__()
        self.tokenizer, self.head = tokenizer.eval().requires_grad_(False), head

    def train(self, mode: bool = True) -> RouteLearner:
        """Set the mode of the head. The tokenizer stays in eval mode."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def compute_modules(self) -> list[nn.Module]:
        """The modules that take most of the time."""
        return [self.head]

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Number of valid elements of a batch: route points that exist."""
        return {"points": self._true(batch, self._displacement(batch))[1].sum()}

    def loss(self, batch: Batch, counts: Counts | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean distance of the points from those of the true route, metres, after the last refinement and, weighted less, before."""
        inputs = batch.inputs
        assert inputs.codes is not None
        moved, some = self._displacement(batch)
        latent = self.tokenizer.latent_of(inputs.codes[:, -1])
        latent = torch.where(some[:, None, None, None], self.head.cells.warp(latent, moved), latent)
        true, known = self._true(batch, (moved, some))
        count = (counts or self.counts(batch))["points"]
        losses = [masked_mean(((route - true).norm(dim=-1) * known).sum(), count) for route in self.head(inputs, latent)]
        parts = {"route": losses[-1], "first": _FIRST * torch.stack(losses[:-1]).mean()}
        return parts["route"] + parts["first"], parts

    def _displacement(self, batch: Batch) -> tuple[Float[Tensor, "B 4 4"], Bool[Tensor, "B"]]:
        """Pose of the displaced ego in the frame of the true one, and whether a sample is displaced. Drawn from `Targets.draw`."""
        config, draw = self.head.config, batch.targets.draw
        some = draw[:, 0] < config.displaced
        x, y, yaw = ((2 * draw[:, k] - 1) * most * some for k, most in ((1, config.along_m), (2, config.aside_m), (3, config.turned_rad)))
        return planar_transform(torch.stack([x, y], -1), yaw.cos(), yaw.sin()), some

    def _true(self, batch: Batch, displacement: tuple[Tensor, Tensor]) -> tuple[Float[Tensor, "B N 2"], Bool[Tensor, "B N"]]:
        """True route of the displaced ego in its lidar frame, and which points are known."""
        assert batch.targets.route is not None
        config = self.head.config
        lidar_T_now = transform_inverse(displacement[0] @ batch.inputs.ego_T_lidar)
        return route_ahead(batch.targets.route, lidar_T_now, config.points, round(config.spacing_m / ROUTE_STEP_M))


def route_ahead(
    route: Float[Tensor, "B R 2"], lidar_T_now: Float[Tensor, "B 4 4"], points: int, every: int
) -> tuple[Float[Tensor, "B N 2"], Bool[Tensor, "B N"]]:
    """Every so many points of a training route, counted from the one nearest to LIDAR_TOP: lidar frame, metres, and which are known.

    Args:
        route: (B,R,2) `Targets.route`, ego frame, metres.
        lidar_T_now: (B,4,4) from the ego frame to the lidar frame.
        points: number N of points.
        every: number of route points from one to the next.
    """
    seen = planar(lidar_T_now, route[:, None])[:, 0]
    near = seen[:, : 2 * ROUTE_BEHIND].norm(dim=-1).nan_to_num(torch.inf).argmin(1)
    index = near[:, None] + every * torch.arange(1, points + 1, device=route.device)
    found = seen.gather(1, index.clamp(max=route.shape[1] - 1)[..., None].expand(-1, -1, 2))
    known = (index < route.shape[1]) & found.isfinite().all(-1)
    return found.nan_to_num(0.0), known
