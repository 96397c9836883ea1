"""The planner: it predicts a base path, varies it into candidates, and chooses the one with the lowest predicted cost.

- From ego motion and command it proposes K corrections of the path expected by the world model's motion prior.
- Each proposal samples the current latent along its waypoints and corrects itself, twice. The best-scored proposal is the base path.
- With a route head (`route.py`) the base path keeps its distances and takes its shape from the route ahead.
- If the base path leaves the road shown by the current tokens, a path shifted sideways replaces it.
- Candidates follow the base path at other speeds (`candidates.py`). A head predicts their outcomes (`outcomes.py`), and the cheapest is the
  plan.
- **ii**: outcomes are predicted from the world model's forecast of every step: one for all candidates, or with `per_candidate` one for each.
  Without ii they are predicted from the current scene, as if all road users stood still, and the forecast is not computed.

Without candidates (`accelerations` empty: the *regressor*), the proposals are refined once more under ii by sampling the forecast latents
at their waypoints, and the best-scored one is the plan. That refinement is initialised to zero, so an untrained ii branch changes nothing.

Shapes: B batch, K proposals, A candidates, S steps, C latent channels, D width, x, y latent cells, X, Y cells of the occupancy flow, P
points, E features of a point. Paths are LIDAR_TOP positions in the current lidar frame, metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from iidrive.core.batch import Batch, Inputs
from iidrive.core.errors import ConfigError
from iidrive.core.scene import FUTURE_STEPS, MANOEUVRES, STEP_S
from iidrive.models.baselines import ctrv
from iidrive.models.candidates import CREEP_M, BasePath, along, smoothed, smoothing, speed_profiles, travelled
from iidrive.models.ego_motion import MOTION, ego_status, lidar_path, step_before
from iidrive.models.forecast import CurrentOccupancy, Forecaster
from iidrive.models.layers import CellGrid, ResBlock, constant, planar, transform_inverse
from iidrive.models.losses import Counts, masked_mean
from iidrive.models.outcome_labels import OutcomeLabels, outcome_labels
from iidrive.models.outcomes import Costs, OutcomeHead, Outcomes, Quality, QualityHead, on_the_road, sample
from iidrive.models.route import RouteConfig, RouteHead
from iidrive.models.waypoints import WaypointRefiner
from iidrive.models.world import Imagined


@dataclass(frozen=True)
class PlannerConfig:
    """Settings of the planner.

    Attributes:
        latent_width: channels of the latent; must equal the tokenizer's latent width.
        width: channels of the planner, a multiple of 8.
        proposals: number of proposals per command.
        refinements: number of refinements of a proposal with the current latent.
        history: number of past ego motions in the input.
        reach_m: distance of the four points that are sampled around each waypoint, metres.
        ii_fraction: fraction of a training batch for which outcomes of candidates are learned (without candidates: that is also planned
            with ii). Scenes are expensive, and outcomes need fewer samples than base paths.
        best_weight: weight of the best proposal's distance relative to the expected distance under the scores.
        accelerations: accelerations that candidates add to the base path's speed, m/s², starting with 0; empty for none (the regressor).
        collision_m: cost of a step with a predicted collision, metres of distance from the expert's path.
        overlap_m: cost of a step whose whole footprint is occupied in the forecast, metres of distance from the expert's path.
        fastest_mps: speed that no candidate exceeds before smoothing, m/s; 0 for no limit. An ego that is faster already brakes gently to it.
            In training, 0 stands for the speed that 0.1 % of the training paths' steps exceed: an imitation does not know speeds at which
            nobody drove, and accelerates further there.
        shifts_m: sideways shifts of the base path to try before candidates are made, metres, starting with 0; empty for no shifts.
        road_m: cost of a path whose corners are off the road at all steps, in metres of sideways shift.
        smooth: weight of a candidate's squared third differences relative to its squared distance from the unsmoothed path; 0 for no
            smoothing.
        quality_width: channels of the head that predicts time to collision, road, progress and comfort; 0 for no such head.
        ttc_m: cost of a step with a predicted time to collision below 1 s, metres. It needs the quality head, and so do the next three.
        off_road_m: cost of a step predicted to be off the road, metres.
        progress_m: cost of making no progress, metres.
        comfort_m: cost of a candidate that is predicted to be uncomfortable, metres.
        held: with ii, hold the world model's occupancy of now at every step instead of its forecast. A control: it reads the same history with
            the same costs, but no future.
        per_candidate: with ii, read each candidate in a forecast of its own, in which others react to it. Needs a world model with a reaction net.
        counts_on: with per_candidate, whose reactions a candidate is read with: those of followers, who are behind the ego now and at fault if
            they hit it, or those of all.
        route: settings of the route head; with 0 points the best proposal gives the base path its shape too. Only used with candidates.
    """

    latent_width: int = 128
    width: int = 64
    proposals: int = 6
    refinements: int = 2
    history: int = 5
    reach_m: float = 2.4
    ii_fraction: float = 0.5
    best_weight: float = 0.2
    accelerations: tuple[float, ...] = ()
    collision_m: float = 10.0
    overlap_m: float = 20.0
    fastest_mps: float = 0.0
    shifts_m: tuple[float, ...] = ()
    road_m: float = 40.0
    smooth: float = 0.0
    quality_width: int = 0
    ttc_m: float = 0.0
    off_road_m: float = 0.0
    progress_m: float = 0.0
    comfort_m: float = 0.0
    held: bool = False
    per_candidate: bool = False
    counts_on: Literal["all", "followers"] = "followers"
    route: RouteConfig = field(default_factory=RouteConfig)

    def __post_init__(self) -> None:
        if self.width % 8:
            raise ConfigError(f"the planner's width must be a multiple of 8; found {self.width}.")
        if not 1 <= self.history <= 5:
            raise ConfigError(f"the planner's history must be 1 to 5 motions (clips have five past keyframes); found {self.history}.")
        if self.accelerations and self.accelerations[0] != 0:
            raise ConfigError(f"accelerations must begin with 0, for the base path at its own speed; found {self.accelerations}.")
        if self.shifts_m and self.shifts_m[0] != 0:
            raise ConfigError(f"shifts_m must begin with 0, for the base path itself; found {self.shifts_m}.")
        if not 0 <= self.fastest_mps < float("inf"):
            raise ConfigError(f"fastest_mps must be 0 or a positive number; found {self.fastest_mps}.")
        if not 0 <= self.smooth < float("inf"):
            raise ConfigError(f"smooth must be 0 or a positive number; found {self.smooth}.")
        if self.per_candidate and (self.held or not self.accelerations):
            raise ConfigError("per_candidate needs candidates, and a forecast that is not held: set accelerations, and leave held out.")
        needing = [name for name in ("ttc_m", "off_road_m", "progress_m", "comfort_m") if getattr(self, name)]
        if needing and not self.quality_width:
            raise ConfigError(f"{', '.join(needing)} weigh outcomes that the quality head predicts: set quality_width, or leave them 0.")

    def costs(self) -> Costs:
        """Costs of a candidate's outcomes."""
        return Costs(self.collision_m, self.overlap_m, self.ttc_m, self.off_road_m, self.progress_m, self.comfort_m)


@dataclass(frozen=True)
class Proposals:
    """Proposed paths (B,K,S,2) in the current lidar frame, metres, and their scores (B,K), logits."""

    paths: Float[Tensor, "B K S 2"]
    scores: Float[Tensor, "B K"]

    def best(self) -> Float[Tensor, "B S 2"]:
        """The path with the highest score."""
        return self.paths[torch.arange(len(self.paths), device=self.paths.device), self.scores.argmax(1)]


@dataclass(frozen=True)
class Choice:
    """Candidates (B,A,S,2), their predicted outcomes, and their costs (B,A), metres."""

    candidates: Float[Tensor, "B A S 2"]
    outcomes: Outcomes
    cost_m: Float[Tensor, "B A"]

    def best(self) -> Float[Tensor, "B S 2"]:
        """The cheapest candidate."""
        return self.candidates[torch.arange(len(self.candidates), device=self.candidates.device), self.cost_m.argmin(1)]


class Planner(nn.Module):
    """Network that predicts proposals from a latent, ego motion and command, and the outcomes of candidates."""

    def __init__(self, config: PlannerConfig, cells: CellGrid) -> None:
        super().__init__()
        self.config = config
        width = config.width
        status = config.history * (MOTION + 1) + len(MANOEUVRES)
        self.status = nn.Sequential(nn.Linear(status, 2 * width), nn.ReLU(), nn.Linear(2 * width, width), nn.ReLU())
        self.modes = nn.Linear(width, len(MANOEUVRES) * config.proposals * width)
        self.first = nn.Linear(width, FUTURE_STEPS * 2 + 1)
        self.present = nn.Sequential(nn.Conv2d(config.latent_width, width, 1), ResBlock(width, width, 8))
        self.overview = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        around = tuple((config.reach_m * x, config.reach_m * y) for x, y in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)))
        self.refiners = nn.ModuleList(WaypointRefiner(width, FUTURE_STEPS, around, cells) for _ in range(config.refinements))
        self.route = RouteHead(config.route, config.latent_width, cells) if config.accelerations and config.route.points else None
        if config.accelerations:
            self.outcomes = OutcomeHead(width)
            self.register_buffer("accelerations", torch.tensor(config.accelerations), persistent=False)
            self.accelerations: Tensor
            self.register_buffer("smoothing", smoothing(config.smooth), persistent=False)
            self.smoothing: Tensor
        else:
            self.future = nn.Sequential(nn.Conv2d(config.latent_width, width, 1), nn.ReLU())
            self.ii_refiner = WaypointRefiner(width, FUTURE_STEPS, around, cells)
        self.quality = QualityHead(config.quality_width) if config.accelerations and config.quality_width else None

    def forward(
        self, inputs: Inputs, latent: Float[Tensor, "B C x y"], base: Float[Tensor, "B S 2"]
    ) -> tuple[list[Proposals], Float[Tensor, "B K D"]]:
        """Proposals after every refinement (the last ones are final), and the state for `refine`. `base` is the path that they correct."""
        status = self.status(ego_status(inputs, self.config.history))
        modes = self.modes(status).view(len(latent), len(MANOEUVRES), self.config.proposals, -1)
        state = modes[torch.arange(len(latent), device=latent.device), inputs.command]
        maps = self.present(latent)
        overview = self.overview(maps).flatten(2).transpose(1, 2)
        state = state + self.attend(state, overview, overview, need_weights=False)[0]
        out = self.first(F.relu(state))
        stages = [Proposals(base[:, None] + out[..., :-1].unflatten(-1, (FUTURE_STEPS, 2)), out[..., -1])]
        for refiner in self.refiners:
            assert isinstance(refiner, WaypointRefiner)
            points = planar(inputs.ego_T_lidar, stages[-1].paths)
            read = refiner.read(maps, points.flatten(1, 2)).unflatten(1, points.shape[1:3])
            state, shift, score = refiner(read, state)
            stages.append(Proposals(stages[-1].paths + shift, stages[-1].scores + score))
        return stages, state

    def base_path(self, inputs: Inputs, latent: Float[Tensor, "B C x y"], plan: Proposals) -> BasePath:
        """The best proposal. With a route head, its distances along the route ahead."""
        path = drivable(plan.best())
        if self.route is None:
            return BasePath.alone(path)
        line = self.route(inputs, latent)[-1]
        return BasePath(drivable(along(line, travelled(path)[:, None])[:, 0]), line)

    def candidates(self, inputs: Inputs, base: BasePath) -> Float[Tensor, "B A S 2"]:
        """Candidates: the base path at other speeds, the first at its own. With `smooth`, each continues the ego's past motion smoothly.

        Where a candidate stands, it creeps on by 5 mm per step: evaluators derive a heading from the path, and repeated points have none.
        """
        before = step_before(inputs, base.path)
        paths = speed_profiles(base, self.accelerations, self.config.fastest_mps or math.inf, before.norm(dim=-1) / STEP_S)
        if self.config.smooth:
            paths = smoothed(paths, before, self.smoothing)
        return drivable(paths.flatten(0, 1), creep_m=CREEP_M).view_as(paths)

    def refine(self, inputs: Inputs, plan: Proposals, state: Float[Tensor, "B K D"], imagined: Imagined) -> Proposals:
        """The regressor's ii branch: correct proposals with the forecast latent of each waypoint's time."""
        points = planar(inputs.ego_T_lidar, plan.paths)
        future_T_now = transform_inverse(imagined.now_T_frame)
        moved = torch.einsum("bsij,bksj->bksi", future_T_now[..., :2, :2], points) + future_T_now[:, None, :, :2, 3]
        maps = self.future(imagined.latents.flatten(0, 1))
        by_step = moved.transpose(1, 2).flatten(0, 1)
        read = self.ii_refiner.read(maps, by_step).unflatten(0, (len(points), FUTURE_STEPS)).transpose(1, 2)
        _, shift, score = self.ii_refiner(read, state)
        return Proposals(plan.paths + shift, plan.scores + score)


def require_reactions(config: PlannerConfig, forecaster: Forecaster) -> None:
    """Raise ConfigError for a planner with a forecast for each candidate on a world model that has none."""
    if config.per_candidate and forecaster.world.reactions is None:
        raise ConfigError(
            "planner.per_candidate needs a world model with a reaction net: add one with `iidrive train reactions WORLD`, or leave it out."
        )


class Agent(nn.Module):
    """A planner with the frozen forecaster that provides its latents and forecasts. Its route head is frozen too."""

    def __init__(self, forecaster: Forecaster, planner: Planner, train_ii: bool) -> None:
        super().__init__()
        require_reactions(planner.config, forecaster)
        self.forecaster, self.planner, self.train_ii = forecaster.eval().requires_grad_(False), planner, train_ii
        if planner.route is not None:
            planner.route.requires_grad_(False)

    def train(self, mode: bool = True) -> Agent:
        """Set the mode of the planner. The forecaster stays in eval mode."""
        super().train(mode)
        self.forecaster.eval()
        return self

    def compute_modules(self) -> list[nn.Module]:
        """The modules that take most of the time: those of the forecaster."""
        return self.forecaster.compute_modules()

    @torch.no_grad()
    def plan(self, inputs: Inputs, ii: bool, shared: bool = False) -> Float[Tensor, "B S 2"]:
        """Plans of a batch, LIDAR_TOP positions in the current lidar frame, metres. Without `ii` no forecast is computed. `shared`: see `scene`."""
        assert inputs.codes is not None
        if self.planner.config.accelerations:
            return self.choice(inputs, ii, shared).best()
        stages, state = self.planner(inputs, self.forecaster.latents(inputs.codes[:, -1]), self._prior_path(inputs))
        plan = self.planner.refine(inputs, stages[-1], state, self.forecaster.imagine(inputs, FUTURE_STEPS)) if ii else stages[-1]
        return drivable(plan.best())

    @torch.no_grad()
    def both(self, inputs: Inputs) -> Float[Tensor, "B 2 S 2"]:
        """Plans without ii and with it (axis 1), equal to those of `plan`. Both use the same base path and the same current occupancy."""
        if not self.planner.config.accelerations:
            return torch.stack([self.plan(inputs, ii) for ii in (False, True)], 1)
        return torch.stack([choice.best() for choice in self.both_choices(inputs)], 1)

    @torch.no_grad()
    def both_choices(self, inputs: Inputs) -> list[Choice]:
        """As `choice`, without ii and with it. Both use the same base path and the same current occupancy."""
        seen = self.forecaster.current_occupancy(inputs)
        base = self.base_path(inputs, seen)
        return [self.choose(inputs, base, self.scene(inputs, base, ii, seen), ii, seen) for ii in (False, True)]

    @torch.no_grad()
    def choice(self, inputs: Inputs, ii: bool, shared: bool = False) -> Choice:
        """Candidates of a batch and their predicted outcomes. Only for a planner with candidates. `shared`: see `scene`."""
        needed = not ii or self.planner.config.shifts_m or self.planner.quality is not None
        seen = self.forecaster.current_occupancy(inputs) if needed else None
        base = self.base_path(inputs, seen)
        return self.choose(inputs, base, self.scene(inputs, base, ii, seen, shared), ii, seen)

    @torch.no_grad()
    def choice_in(self, inputs: Inputs, base: BasePath, scene: Float[Tensor, "B *A S X Y"]) -> Choice:
        """As `choice` with ii, with a given forecast instead of the world model's: occupancy probabilities of road users, (B,S,X,Y) for all
        candidates of the base path, or (B,A,S,X,Y) for each.
        """
        return self.choose(inputs, base, scene, True)

    @torch.no_grad()
    def base_path(self, inputs: Inputs, seen: CurrentOccupancy | None = None) -> BasePath:
        """The path that candidates vary (see `Planner.base_path`), shifted sideways if it leaves the road and `shifts_m` are given.

        `seen` is the current occupancy, if it has been computed already.
        """
        assert inputs.codes is not None
        config, grid = self.planner.config, self.forecaster.flow_grid
        latent = self.forecaster.latents(inputs.codes[:, -1])
        stages, _ = self.planner(inputs, latent, self._prior_path(inputs))
        base = self.planner.base_path(inputs, latent, stages[-1])
        if not config.shifts_m or grid is None:
            return base
        off_road = (seen or self.forecaster.current_occupancy(inputs)).off_road
        return on_the_road(base, off_road, grid, inputs.ego_T_lidar, config.shifts_m, config.road_m)

    @torch.no_grad()
    def scene(
        self, inputs: Inputs, base: BasePath, ii: bool, seen: CurrentOccupancy | None = None, shared: bool = False
    ) -> Float[Tensor, "B *A S X Y"]:
        """Occupancy probabilities of road users at every step: the forecast with ii, the current occupancy without.

        The forecast is one for all candidates (B,S,X,Y), see `PlannerConfig.held`; or, with `PlannerConfig.per_candidate` and not `shared`,
        one for each candidate of the base path (B,A,S,X,Y).
        """
        config = self.planner.config
        if ii and config.per_candidate and not shared:
            return self.forecaster.taken_for(inputs, self.planner.candidates(inputs, base), config.counts_on == "followers")
        if ii:
            return self.forecaster.taken(inputs, config.held)
        return (seen or self.forecaster.current_occupancy(inputs)).taken[:, None].expand(-1, FUTURE_STEPS, -1, -1)

    def choose(
        self, inputs: Inputs, base: BasePath, scene: Float[Tensor, "B *A S X Y"], ii: bool, seen: CurrentOccupancy | None = None
    ) -> Choice:
        """Candidates of a base path and their predicted outcomes in a scene.

        `ii` says whether the scene is a forecast. A head that was not trained with forecasts treats it like a current scene. `seen` is the
        current occupancy, if it has been computed already.
        """
        planner, grid = self.planner, self.forecaster.flow_grid
        assert grid is not None
        candidates = planner.candidates(inputs, base)
        sampled = sample(candidates, base.path, scene, ii and self.train_ii, grid, inputs.ego_T_lidar)
        outcomes = planner.outcomes(sampled)
        if planner.quality is not None:
            off_road = (seen or self.forecaster.current_occupancy(inputs)).off_road
            before = step_before(inputs, base.path)
            outcomes = replace(outcomes, quality=planner.quality(sampled, candidates, off_road, before, grid, inputs.ego_T_lidar))
        return Choice(candidates, outcomes, outcomes.cost(planner.config.costs(), planner.accelerations > 0))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Numbers of valid elements of a batch: samples with a future step, and those of them that are also planned with ii."""
        exists = batch.targets.valid.any(1)
        return {"samples": exists.sum(), "samples_ii": exists[constant(self._with_ii(batch), batch.inputs.command)].sum()}

    def loss(self, batch: Batch, counts: Counts | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Distance of the proposals to the true path (expected under the scores, plus that of the nearest). For some samples, also the
        losses of the candidates' outcomes, or of the plan with ii.
        """
        inputs, targets = batch.inputs, batch.targets
        assert inputs.codes is not None
        latent = self.forecaster.latents(inputs.codes[:, -1])
        stages, state = self.planner(inputs, latent, self._prior_path(inputs))
        counts = counts or self.counts(batch)
        losses = [masked_mean(self._distance(stage, targets.path, targets.valid), counts["samples"]) for stage in stages]
        parts = {"plan": losses[-1], "first": 0.2 * torch.stack(losses[:-1]).mean()}
        some = self._with_ii(batch)
        if self.planner.config.accelerations:
            with torch.no_grad():
                base = self.planner.base_path(inputs, latent, stages[-1])
            parts |= self._outcome_losses(batch, base, some, counts)
            return torch.stack(list(parts.values())).sum(), parts
        if self.train_ii:
            parts["plan_ii"] = torch.zeros_like(parts["plan"])
        if self.train_ii and some:
            part, some = inputs.select(some), constant(some, inputs.command)
            imagined = self.forecaster.imagine(part, FUTURE_STEPS)
            refined = self.planner.refine(part, Proposals(stages[-1].paths[some], stages[-1].scores[some]), state[some], imagined)
            parts["plan_ii"] = masked_mean(self._distance(refined, targets.path[some], targets.valid[some]), counts["samples_ii"])
        return torch.stack(list(parts.values())).sum(), parts

    def _outcome_losses(self, batch: Batch, base: BasePath, some: list[int], counts: Counts) -> dict[str, Tensor]:
        """Losses of outcomes for the rows `some`, without ii and, if trained, with ii: cross entropy of what happens or not, error of
        distance and progress.
        """
        names = ["collision", "distance", *(("quality",) if self.planner.quality is not None else ())]
        modes = (("", False), ("_ii", True))[: 1 + self.train_ii]
        if not some:
            return {name + suffix: base.path.new_zeros(()) for suffix, _ in modes for name in names}
        rows = constant(some, batch.inputs.command)
        inputs, targets = batch.inputs.select(some), batch.targets.select(rows)
        base, valid = base.select(rows), targets.valid
        candidates, seen = self.planner.candidates(inputs, base), self.forecaster.current_occupancy(inputs)
        truth = outcome_labels(candidates, targets, inputs.ego_T_lidar, step_before(inputs, base.path))
        whole, begun = valid.all(1), valid.any(1)
        parts = {}
        for suffix, ii in modes:
            found = self.choose(inputs, base, self.scene(inputs, base, ii, seen), ii, seen).outcomes
            parts["collision" + suffix] = masked_mean((_entropy(found.collision, truth.collision) * whole).sum(), counts["samples_ii"])
            off = (found.distance_m - truth.distance_m).abs().mean(1)
            parts["distance" + suffix] = 0.2 * masked_mean((off * begun).sum(), counts["samples_ii"])
            if found.quality is not None:
                parts["quality" + suffix] = masked_mean((_quality_loss(found.quality, truth) * whole).sum(), counts["samples_ii"])
        return parts

    def _with_ii(self, batch: Batch) -> list[int]:
        """Rows of a batch for which outcomes are learned, or that are also planned with ii: the fraction `ii_fraction` of the global batch,
        evenly spaced and starting with its first sample.
        """
        share = self.planner.config.ii_fraction
        places = range(len(batch.targets.valid)) if batch.place is None else batch.place
        return [row for row, place in enumerate(places) if math.ceil((place + 1) * share) > math.ceil(place * share)]

    @torch.no_grad()
    def _prior_path(self, inputs: Inputs) -> Tensor:
        """The path that proposals correct: from the world model's motion prior, or constant turn rate and velocity if it has none."""
        prior = self.forecaster.world.prior
        return ctrv(inputs) if prior is None else lidar_path(prior(inputs), inputs.ego_T_lidar)

    def _distance(self, plan: Proposals, path: Tensor, valid: Tensor) -> Tensor:
        steps = valid.sum(1).clamp(min=1)
        distance = ((plan.paths - path[:, None]).norm(dim=-1) * valid[:, None]).sum(-1) / steps[:, None]
        expected = (plan.scores.softmax(1) * distance).sum(1)
        per_sample = expected + self.planner.config.best_weight * distance.min(1).values
        return (per_sample * valid.any(1)).sum()


def _entropy(logits: Float[Tensor, "B A *s"], truth: Bool[Tensor, "B A *s"]) -> Float[Tensor, "B"]:
    """Cross entropy, mean over candidates and sum over steps."""
    return F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="none").mean(1).flatten(1).sum(1)


def _quality_loss(found: Quality, truth: OutcomeLabels) -> Float[Tensor, "B"]:
    """Loss of the quality head for each sample."""
    entropies = _entropy(found.ttc, truth.ttc) + _entropy(found.off_road, truth.off_road)
    entropies = entropies + _entropy(found.uncomfortable[..., None], truth.uncomfortable[..., None])
    return entropies + (found.progress - truth.progress).abs().mean(1)


def drivable(paths: Float[Tensor, "B S 2"], per_forward: float = 1.0, least_m: float = 0.1, creep_m: float = 0.0) -> Float[Tensor, "B S 2"]:
    """Paths (lidar frame, metres) without steps that no car can drive: backwards, or sideways by more than `per_forward` times forwards.

    Each step is judged by the heading before it. The heading starts straight ahead and follows every step longer than `least_m`; a shorter
    step keeps it. Normal driving is not changed. Noise of a few centimetres at standstill, which would look like turning on the spot, is
    removed. Every step goes forwards by at least `creep_m`.
    """
    heading = constant((0.0, 1.0), paths).expand(len(paths), 2)
    hops = torch.diff(paths, dim=1, prepend=torch.zeros_like(paths[:, :1]))
    points, here = [], torch.zeros_like(paths[:, 0])
    for hop in hops.unbind(1):
        left = torch.stack([-heading[:, 1], heading[:, 0]], -1)
        forward = (hop * heading).sum(-1, keepdim=True).clamp(min=creep_m)
        reach = per_forward * forward * (forward > least_m)
        sideways = (hop * left).sum(-1, keepdim=True)
        kept = forward * heading + torch.maximum(torch.minimum(sideways, reach), -reach) * left
        here = here + kept
        points.append(here)
        length = kept.norm(dim=-1, keepdim=True)
        heading = torch.where(length > least_m, kept / length.clamp(min=1e-6), heading)
    return torch.stack(points, 1)
