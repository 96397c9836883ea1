"""Tokenizer and world model combined: occupancy forecasts from codes, and the loss of the world model.

The tokenizer is frozen and not part of the trained weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from iidrive.core.batch import Batch, Inputs
from iidrive.core.classes import IGNORE
from iidrive.core.errors import ConfigError
from iidrive.core.scene import GridSpec
from iidrive.models.iiworld import windows as recorded_windows
from iidrive.models.layers import constant, identity, transform_inverse
from iidrive.models.losses import Counts, masked_mean, voxel_counts
from iidrive.models.occupancy_flow import OccupancyFlow
from iidrive.models.reactions import from_behind
from iidrive.models.road_users import DRIVEABLE, ROAD_USERS, movable_classes, transported
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import Imagined, RolloutState, WorldModel


@dataclass(frozen=True)
class CurrentOccupancy:
    """Current occupancy on the cells of the occupancy flow, in the current ego frame.

    Attributes:
        taken: (B,X,Y) probability that a road user occupies a cell.
        off_road: (B,X,Y) probability that a cell is neither road nor occupied by a road user.
    """

    taken: Float[Tensor, "B X Y"]
    off_road: Float[Tensor, "B X Y"]


class Forecaster(nn.Module):
    """A world model and the tokenizer that it was trained with."""

    def __init__(self, tokenizer: Tokenizer, world: WorldModel) -> None:
        super().__init__()
        self.tokenizer, self.world = tokenizer.eval().requires_grad_(False), world

    def train(self, mode: bool = True) -> Forecaster:
        """Set the mode of the world model. The tokenizer stays in eval mode."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def compute_modules(self) -> list[nn.Module]:
        """The modules that take most of the time. They are compiled and run in mixed precision."""
        return [*self.tokenizer.compute_modules(), *self.world.compute_modules()]

    @torch.no_grad()
    def latents(self, codes: Int[Tensor, "B T n"]) -> Float[Tensor, "B T C x y"]:
        """Latents of code indices."""
        return self.tokenizer.latent_of(codes)

    def initial_state(self, inputs: Inputs) -> RolloutState:
        """Rollout state of the world model at the current keyframe."""
        return self.world.initial_state(inputs, self._observed_latents(inputs))

    @torch.no_grad()
    def imagine(self, inputs: Inputs, steps: int, true_motion: Float[Tensor, "B S 4 4"] | None = None) -> Imagined:
        """Roll out the world model: latents and ego poses of the next steps.

        Args:
            inputs: the samples.
            steps: number of steps.
            true_motion: (B,S,4,4) true ego motion prev_T_next of every step, which the ego then follows. This is an oracle, as in some
                publications; results must be labelled as such. None to predict the ego motion.

        Raises:
            ConfigError: for `true_motion` and a world model with motion=map, which does not support it.
        """
        latents = self._observed_latents(inputs)
        if self.world.config.motion == "map":
            if true_motion is not None:
                raise ConfigError("motion=map cannot be rolled out along the true path: leave true_motion out.")
            imagined = recorded_windows.imagine(self.world, inputs, latents, steps)
        else:
            imagined = self.world.imagine(self.world.initial_state(inputs, latents), inputs.command, steps, true_motion)
        return imagined if self.world.flow is None else replace(imagined, flow=self.world.flow.of(inputs, latents))

    @torch.no_grad()
    def forecast(
        self, inputs: Inputs, at: Sequence[int], true_motion: Float[Tensor, "B S 4 4"] | None = None
    ) -> tuple[UInt8[Tensor, "B H X Y Z"], Imagined]:
        """Occupancy at the steps `at`, each in its own predicted ego frame, and the rollout. Step 0 is the reconstructed current frame.

        With an occupancy flow, current road users are moved by the flow, and all other classes come from the decoded latents. `true_motion`
        is an oracle (see `imagine`).
        """
        assert inputs.codes is not None
        imagined = self.imagine(inputs, max(at), true_motion)
        present = self.tokenizer.labels(self.latents(inputs.codes[:, -1]))
        ahead = [step - 1 for step in at if step > 0]
        without = None if imagined.flow is None else movable_classes(present)
        later = [self.tokenizer.labels(imagined.latents[:, step], without) for step in ahead]
        if imagined.flow is not None and ahead:
            later = self._with_road_users(torch.stack(later, 1), present, imagined, imagined.flow, ahead).unbind(1)
        shown = iter(later)
        return torch.stack([next(shown) if step > 0 else present for step in at], 1), imagined

    def _with_road_users(
        self,
        ground: UInt8[Tensor, "B H X Y Z"],
        present: UInt8[Tensor, "B X Y Z"],
        imagined: Imagined,
        flow: OccupancyFlow,
        ahead: list[int],
    ) -> UInt8[Tensor, "B H X Y Z"]:
        assert self.world.flow is not None
        net = self.world.flow
        taken, flow_m, frames = (
            torch.stack([told[:, step] for step in ahead], 1) for told in (flow.taken[:, 1:].sigmoid(), flow.flow_m, imagined.now_T_frame)
        )
        return transported(ground, present, taken, net.config.threshold, flow_m, frames, self.tokenizer.config.grid, net.fine)

    @property
    def flow_grid(self) -> GridSpec | None:
        """Grid of the occupancy flow; None if there is none."""
        return None if self.world.flow is None else self.world.flow.fine

    @torch.no_grad()
    def occupancy_flow(self, inputs: Inputs) -> OccupancyFlow:
        """Occupancy flow of samples, without rolling out the world model."""
        assert self.world.flow is not None
        return self.world.flow.of(inputs, self._observed_latents(inputs))

    @torch.no_grad()
    def taken(self, inputs: Inputs, held: bool = False) -> Float[Tensor, "B S X Y"]:
        """Probability that a road user occupies each cell at every future step, from the occupancy flow, in the current ego frame.

        With `held`, that of now at every step.
        """
        found = self.occupancy_flow(inputs).taken.sigmoid()
        return found[:, :1].expand_as(found[:, 1:]) if held else found[:, 1:]

    @torch.no_grad()
    def taken_for(self, inputs: Inputs, candidates: Float[Tensor, "B A S 2"], followers: bool = False) -> Float[Tensor, "B A S X Y"]:
        """As `taken`, if the ego follows each of the candidates (lidar frame, metres): the others react to it. With `followers`, only those
        who are behind the ego now.
        """
        net, flow = self.world.reactions, self.occupancy_flow(inputs)
        assert net is not None
        reacting = net.of(flow, candidates, inputs.ego_T_lidar).sigmoid()
        if not followers:
            return reacting
        return torch.where(from_behind(flow, net.fine)[:, None], reacting, flow.taken[:, None, 1:].sigmoid())

    @torch.no_grad()
    def current_occupancy(self, inputs: Inputs) -> CurrentOccupancy:
        """Current occupancy, decoded from the current latent without the world model, on the cells of the occupancy flow."""
        assert inputs.codes is not None
        assert self.flow_grid is not None
        taken, road = self.tokenizer.read(self.latents(inputs.codes[:, -1]), _shown)
        voxels = taken.shape[1] // self.flow_grid.shape[0]
        if voxels == 1:
            return CurrentOccupancy(taken, 1 - road)
        return CurrentOccupancy(F.max_pool2d(taken[:, None], voxels)[:, 0], 1 - F.avg_pool2d(road[:, None], voxels)[:, 0])

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Numbers of valid elements of a batch: future steps that exist; with a voxel loss, also known voxels and frames that it
        decodes.
        """
        steps = {"steps": batch.targets.valid.sum()}
        return {**steps, **voxel_counts(_decoded(batch)[1])} if self.world.config.voxel_weight else steps

    def loss(self, batch: Batch, counts: Counts | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Latent, trajectory, rotation and (if weighted) voxel losses of a rollout with scheduled sampling.

        At training progress p (0 to 1) the true latent replaces the predicted one with probability exp(-teacher_decay * p), for each sample
        and step. The voxel loss decodes one random step of each sample through the frozen decoder.
        """
        config, inputs, targets = self.world.config, batch.inputs, batch.targets
        assert targets.codes is not None
        truth = self.latents(targets.codes)
        rate = math.exp(-config.teacher_decay * batch.progress)
        if config.motion == "map":
            return recorded_windows.loss(self.world, inputs, self._observed_latents(inputs), targets, truth, targets.draw < rate)
        frames = torch.cat([identity(truth).expand(len(truth), 1, 4, 4), targets.now_T_frame], 1)
        motions = transform_inverse(frames[:, :-1]) @ frames[:, 1:]
        state = self.initial_state(inputs)
        step = partial(checkpoint, self.world.step, use_reentrant=False) if self.world.compute.activation_checkpointing else self.world.step
        latents, poses = [], []
        pose = identity(truth).expand(len(truth), 4, 4)
        for k in range(truth.shape[1]):
            teach = targets.draw[:, k] < rate
            state, latent, moved = step(state, inputs.command, motions[:, k], teach)
            pose = pose @ moved
            latents.append(latent)
            poses.append(pose)
            state = state.observed(truth[:, k], teach)
        predicted, chain = torch.stack(latents, 1), torch.stack(poses, 1)
        weight = targets.valid * constant(config.latent_weights[: truth.shape[1]], truth)
        counts = counts or self.counts(batch)
        sums = {
            "latent": ((predicted - truth).square().mean((2, 3, 4)) * weight).sum(),
            "trajectory": config.trajectory_weight * (_distance(chain, targets.now_T_frame) * targets.valid).sum(),
            "rotation": config.rotation_weight * ((1 - _half_cosine(chain, targets.now_T_frame)) * targets.valid).sum(),
        }
        parts = {name: masked_mean(total, counts["steps"]) for name, total in sums.items()}
        if config.voxel_weight:
            step, labels = _decoded(batch)
            logits = self.tokenizer.decode(predicted[torch.arange(len(truth), device=truth.device), step])
            parts["voxel"] = config.voxel_weight * self.tokenizer.voxel_loss(logits, labels, counts)[0]
        return torch.stack(list(parts.values())).sum(), parts

    def _observed_latents(self, inputs: Inputs) -> Float[Tensor, "B T C x y"]:
        assert inputs.codes is not None
        return self.latents(inputs.codes[:, -self.world.config.history :])


def _shown(logits: Float[Tensor, "B X Y Z K"]) -> tuple[Float[Tensor, "B X Y"], Float[Tensor, "B X Y"]]:
    """How likely a road user takes each column, and how likely there is road, with a road user on it or without."""
    found = logits.softmax(-1)
    user = found[..., constant(ROAD_USERS, logits.new_empty(0, dtype=torch.long))].sum(-1)
    return user.amax(-1), (user + found[..., DRIVEABLE]).amax(-1)


def _decoded(batch: Batch) -> tuple[Int[Tensor, "B"], UInt8[Tensor, "B X Y Z"]]:
    """The random future step of each sample that the voxel loss decodes, and its labels (unknown after the scene's end)."""
    targets = batch.targets
    assert targets.occupancy is not None
    step = (targets.draw[:, -1] * 1e4 % 1 * targets.valid.shape[1]).long()
    rows = torch.arange(len(step), device=step.device)
    return step, torch.where(targets.valid[rows, step][:, None, None, None], targets.occupancy[rows, step], IGNORE)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Smooth-L1 distance between the positions of two poses, metres."""
    return nn.functional.smooth_l1_loss(a[..., :2, 3], b[..., :2, 3], reduction="none").sum(-1)


def _half_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Absolute inner product of the yaw quaternions of two poses."""
    yaw = torch.atan2(a[..., 1, 0], a[..., 0, 0]) - torch.atan2(b[..., 1, 0], b[..., 0, 0])
    return (yaw / 2).cos().abs()
