"""Stage 2: the world model. From latents up to now, ego motion and a command it predicts the next latent and the ego's next pose, step by
step.

- Intra encoder: a plan query attends to the current latent at three scales, with deformable attention and convolutions in between.
- Plan head: predicts the ego's next motion from the query and the command. The next latent is conditioned on it.
- Inter decoder: predicts the next latent from the fused scales and past latents.
- The rollout applies the step to its own output. The rollout state is an argument and a return value.

The architecture is the world model of I2-World (Liao et al., ICCV 2025, arXiv 2507.09144), with deliberate differences from the published
code (which the recipe `published` and `iiworld/rollout.py` reproduce with the same modules). The state holds real past latents. Motion is
in the ego frame, with the identity at rest. No true future motion or command is read outside the loss. Maps are warped to the predicted
next ego frame before the decoder (`align="warp"`), whose output is added to the last observed latent, warped to the same frame
(`residual="warped"`). The plan head corrects the motion predicted by a motion prior (`motion="prior"`) or the last observed motion
(`"last"`).

Shapes: B batch, T frames up to now (oldest first), S future steps, C latent channels, x, y cells, N = x*y tokens, M motion features, H past
motions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from iidrive.core.batch import Inputs
from iidrive.core.errors import ConfigError
from iidrive.core.scene import FUTURE_STEPS, MANOEUVRES, GridSpec
from iidrive.models import cpu
from iidrive.models.compute import ComputeConfig, in_autocast
from iidrive.models.cpu.products import Linear, linear
from iidrive.models.ego_motion import MOTION, MotionPrior, constant_turn, motion_between, past_motions
from iidrive.models.iiworld.quirks import Quirk
from iidrive.models.layers import BatchNorm, CellGrid, DeformableAttention, identity, mlp, planar_transform, transform_inverse
from iidrive.models.norm import Norm
from iidrive.models.occupancy_flow import FlowConfig, FlowNet, OccupancyFlow
from iidrive.models.reactions import ReactionConfig, ReactionNet


@dataclass(frozen=True)
class WorldConfig:
    """Settings of the world model.

    Attributes:
        width: channels of the tokens; must equal the tokenizer's latent width.
        heads: number of attention heads.
        strides: stride of each intra layer's convolutions.
        decoder_layers: number of inter decoder layers.
        feed_forward: hidden width of a decoder layer's MLP.
        history: number of keyframes in the rollout state, including the current one.
        plan_width: width of a motion embedding and of the plan head.
        norm: normalisation of the intra layers: group, or batch (published).
        align: warp maps to the next ego frame before the decoder (warp), or not (none, published).
        residual: add the decoder's output to the warped last observed latent (warped), or use it as the prediction (none, published).
        motion: what the plan head corrects, in the ego frame: prior (prediction of the motion prior), last (last observed motion) or none
            (its output is the motion). map (published): motions in map axes, with poses chained as quaternions.
        quirks: peculiarities of the published rollout to reproduce, with motion=map (see models/iiworld/quirks.py).
        start: initial weights: PyTorch's defaults (torch), or xavier for all matrices except the motion embedding's (published).
        prior_width: width of the motion prior.
        flow: settings of the occupancy flow of road users; without one, road users come from the decoder (published).
        reactions: settings of the net that changes the occupancy flow for each candidate of the planner. It needs the occupancy flow.
        latent_weights: weight of the latent loss at each future step.
        trajectory_weight: weight of the ego's position error.
        rotation_weight: weight of the ego's heading error.
        voxel_weight: weight of the voxel loss of one decoded step; 0 for none.
        teacher_decay: at training progress p (0 to 1) the truth replaces a predicted step with probability exp(-teacher_decay p).
    """

    width: int = 128
    heads: int = 8
    strides: tuple[int, ...] = (1, 2, 2)
    decoder_layers: int = 3
    feed_forward: int = 512
    history: int = 5
    plan_width: int = 64
    norm: Literal["batch", "group"] = "group"
    align: Literal["warp", "none"] = "warp"
    residual: Literal["warped", "none"] = "warped"
    motion: Literal["prior", "last", "none", "map"] = "prior"
    quirks: tuple[Quirk, ...] = ()
    start: Literal["torch", "xavier"] = "torch"
    prior_width: int = 256
    flow: FlowConfig = field(default_factory=FlowConfig)
    reactions: ReactionConfig = field(default_factory=ReactionConfig)
    latent_weights: tuple[float, ...] = (1.0, 0.85, 0.7, 0.55, 0.4, 0.25)
    trajectory_weight: float = 0.01
    rotation_weight: float = 1.0
    voxel_weight: float = 0.0
    teacher_decay: float = 2.5

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"width must be a multiple of heads; found {self.width} and {self.heads}.")
        if self.norm == "group" and self.width % 8:
            raise ConfigError(f"with norm=group the width must be a multiple of 8; found {self.width}.")
        if not 1 <= self.history <= 5:
            raise ConfigError(f"the world model's history must be 1 to 5 keyframes (clips have five past keyframes); found {self.history}.")
        if len(self.latent_weights) != FUTURE_STEPS:
            raise ConfigError(f"latent_weights needs {FUTURE_STEPS} numbers, one per step; found {len(self.latent_weights)}.")
        if self.motion == "map" and (self.align, self.residual) != ("none", "none"):
            raise ConfigError(f"motion=map needs align=none and residual=none; found {self.align} and {self.residual}.")
        if self.motion == "map" and self.voxel_weight:
            raise ConfigError("motion=map has the published losses only: it needs voxel_weight=0.")
        if self.reactions.width and not self.flow.width:
            raise ConfigError("the reaction net corrects the occupancy flow: set flow.width, or leave reactions.width 0.")
        if self.quirks and self.motion != "map":
            raise ConfigError(f"quirks belong to the rollout in map axes: they need motion=map; found {self.motion}.")


@dataclass(frozen=True)
class RolloutState:
    """Rollout state: latents and motions of the last frames, oldest first. Gradients flow through `now` only.

    Attributes:
        before: (B,T-1,C,x,y) earlier latents, each in its own ego frame.
        now: (B,C,x,y) the current latent.
        now_T_frame: (B,T,4,4) from the ego frame of each latent to the current one.
        motions: (B,H,M) past motions.
        anchor: (B,C,x,y) the last observed latent. It is always warped in one step, because repeated warping would blur it.
        now_T_anchor: (B,4,4) from the anchor's ego frame to the current one.
        expected: (B,S,M) motions of the next steps that the plan head corrects.
    """

    before: Float[Tensor, "B T1 C x y"]
    now: Float[Tensor, "B C x y"]
    now_T_frame: Float[Tensor, "B T 4 4"]
    motions: Float[Tensor, "B H M"]
    anchor: Float[Tensor, "B C x y"]
    now_T_anchor: Float[Tensor, "B 4 4"]
    expected: Float[Tensor, "B S M"]

    def observed(self, latent: Float[Tensor, "B C x y"], where: Bool[Tensor, "B"]) -> RolloutState:
        """The state with an observed latent as the current one and as the anchor, for the samples in `where`."""
        here = where[:, None, None, None]
        now = torch.where(here, latent, self.now)
        eye = identity(self.now_T_anchor).expand_as(self.now_T_anchor)
        anchor = torch.where(here, latent, self.anchor)
        now_T_anchor = torch.where(where[:, None, None], eye, self.now_T_anchor)
        return RolloutState(self.before, now, self.now_T_frame, self.motions, anchor, now_T_anchor, self.expected)


@dataclass(frozen=True)
class Imagined:
    """A rollout.

    Attributes:
        latents: (B,S,C,x,y) predicted latents, each in its own predicted ego frame.
        now_T_frame: (B,S,4,4) from each predicted ego frame to the current one.
        flow: occupancy flow of road users in the current ego frame; None if the world model has none.
    """

    latents: Float[Tensor, "B S C x y"]
    now_T_frame: Float[Tensor, "B S 4 4"]
    flow: OccupancyFlow | None = None


class IntraLayer(nn.Module):
    """Deformable attention over cells, attention of the plan query to the cells, then a strided residual block."""

    def __init__(self, config: WorldConfig, stride: int, compute: ComputeConfig) -> None:
        super().__init__()
        self.compute = compute
        width = config.width
        self.attention = DeformableAttention(width, config.heads)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.plan_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.plan_attention = nn.MultiheadAttention(width, config.heads, batch_first=True)
        self.plan_mlp = mlp(width, width, width)
        self.conv1 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = (BatchNorm(width) if config.norm == "batch" else Norm(8, width) for _ in range(2))
        self.skip = nn.Conv2d(width, width, 1, stride=stride, bias=False) if stride > 1 else nn.Identity()

    @in_autocast
    def forward(self, tokens: Float[Tensor, "B N C"], plan: Float[Tensor, "B 1 C"], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        tokens = self.norms[0](tokens + self.attention(tokens, size))
        plan = self.plan_norms[0](plan)
        plan = plan + self.plan_mlp(attend(self.plan_attention, plan, tokens))
        tokens, plan = self.norms[1](tokens), self.plan_norms[1](plan)
        maps = rearrange(tokens, "b (x y) c -> b c x y", x=size[0])
        h = F.relu(self.norm1(self.conv1(maps)))
        return F.relu(self.norm2(self.conv2(h)) + self.skip(maps)), plan


def attend(attention: nn.MultiheadAttention, query: Float[Tensor, "B 1 C"], tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B 1 C"]:
    """Attention of a single query. Key and value projections are applied to the query and to the attended mean, not to every token.

    Per head, with q = Wq x + bq, the scores q (Wk t + bk) over tokens t become (Wk^T q) t, because q bk is the same for all tokens and
    cancels in the softmax. The sum of p (Wv t + bv) over tokens becomes Wv (p t) + bv, because probabilities p sum to one. Plain version:
    `plain.attend`.
    """
    heads, width = attention.num_heads, attention.embed_dim
    to_query, to_key, to_value = attention.in_proj_weight.view(3, heads, -1, width)
    query_bias, _, value_bias = attention.in_proj_bias.view(3, heads, -1)
    asked = torch.einsum("bc,hdc->bhd", query[:, 0], to_query) + query_bias
    scores = torch.einsum("bhd,hdc->bhc", asked * attention.head_dim**-0.5, to_key) @ tokens.transpose(1, 2)
    read = torch.einsum("bhc,hdc->bhd", scores.softmax(-1) @ tokens, to_value) + value_bias
    return attention.out_proj(read.flatten(1))[:, None]


class InterLayer(nn.Module):
    """Decoder layer: deformable attention, fusion with the memory by two small MLPs, and a feed-forward MLP, each followed by layer
    norm.
    """

    def __init__(self, config: WorldConfig) -> None:
        super().__init__()
        width = config.width
        self.attention = DeformableAttention(width, config.heads)
        self.join = mlp(width * (1 + config.history), width, width)
        self.mix = mlp(width, width, width)
        self.feed_forward = mlp(width, config.feed_forward, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Float[Tensor, "B N C"], remembered: Float[Tensor, "B N C"], size: tuple[int, int]) -> Float[Tensor, "B N C"]:
        x = self.norms[0](x + self.attention(x, size))
        x = self.norms[1](x + self.mixed(x, remembered))
        # On a CPU the wide hidden layer is recomputed in the backward pass: saves four times the tokens' memory for 2 % of a step's time.
        change = (
            checkpoint(self.feed_forward, x, use_reentrant=False, preserve_rng_state=False)
            if torch.is_grad_enabled() and cpu.pays_for(x)
            else self.feed_forward(x)
        )
        assert isinstance(change, Tensor)
        return self.norms[2](x + change)

    def of_memory(self) -> Float[Tensor, "C D"]:
        """The columns of `join`'s first weight matrix that multiply the memory."""
        first = self.join[0]
        assert isinstance(first, nn.Linear)
        return first.weight[:, first.out_features :]

    def mixed(self, x: Float[Tensor, "B N C"], remembered: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """`mix(join([x, memory]))`, where `remembered` = memory @ of_memory().T.

        Two consecutive linear maps are merged: mix[0](join[2](h)) = (W_mix W_join) h + (W_mix b_join + b_mix). Plain version:
        `plain.mixed`.
        """
        first, _, last = self.join
        into, _, out = self.mix
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        assert isinstance(into, nn.Linear)
        both = F.relu(linear(x, first.weight[:, : x.shape[-1]], first.bias) + remembered)
        return out(F.relu(linear(both, into.weight @ last.weight, into(last.bias))))


class InterDecoder(nn.ModuleList):
    """A sequence of inter layers.

    The memory is constant, so one product computes its part for all layers. Plain version: `plain.inter_decoder`.
    """

    def __init__(self, config: WorldConfig, compute: ComputeConfig) -> None:
        super().__init__(InterLayer(config) for _ in range(config.decoder_layers))
        self.compute = compute

    @in_autocast
    def forward(
        self,
        x: Float[Tensor, "B N C"],
        before: Float[Tensor, "B N D"],
        now: Float[Tensor, "B N C"],
        time: Float[Tensor, "T C"],
        size: tuple[int, int],
    ) -> Float[Tensor, "B N C"]:
        """Decode tokens.

        Args:
            x: (B,N,C) tokens.
            before: (B,N,D) earlier latents, concatenated along channels.
            now: (B,N,C) the current latent.
            time: (T,C) time embeddings of the latents, the same for every cell.
            size: cells along x and y.
        """
        layers = [layer for layer in self if isinstance(layer, InterLayer)]
        weight = torch.cat([layer.of_memory() for layer in layers])
        to_before, to_now = weight.split([before.shape[-1], now.shape[-1]], 1)
        remembered = linear(now, to_now, F.linear(time.flatten(), weight)) + linear(before, to_before)
        for layer, part in zip(layers, remembered.split(x.shape[-1], -1), strict=True):
            x = layer(x, part, size)
        return x


class WorldModel(nn.Module):
    """The world model: a step and the rollout. It has no state of its own (see `RolloutState`)."""

    def __init__(self, config: WorldConfig, cells: CellGrid, grid: GridSpec, compute: ComputeConfig | None = None) -> None:
        """Make a world model for a tokenizer with these latent cells and this occupancy grid."""
        super().__init__()
        self.config, self.cells, self.compute = config, cells, compute or ComputeConfig()
        if self.compute.activation_checkpointing and config.norm == "batch":
            raise ConfigError(
                "activation checkpointing would count BatchNorm's statistics twice: switch it off for a world model with norm=batch."
            )
        width = config.width
        x, y = cells.size
        self.row = nn.Parameter(torch.rand(x, width // 2))
        self.column = nn.Parameter(torch.rand(y, width - width // 2))
        self.time = nn.Parameter(torch.randn(config.history + 1, width) * 0.02)
        self.outside = nn.Parameter(torch.zeros(width)) if config.align == "warp" else None
        self.motion_embed = mlp(MOTION, config.plan_width, config.plan_width)
        self.motion_time = nn.Parameter(torch.randn(config.history, config.plan_width) * 0.02)
        self.prior = MotionPrior(config.prior_width, config.history) if config.motion == "prior" else None
        self.plan_query = nn.Linear(config.history * config.plan_width, width)
        self.intra = nn.ModuleList(IntraLayer(config, stride, self.compute) for stride in config.strides)
        self.fuse = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in config.strides)
        self.plan_head = nn.Sequential(
            nn.Linear(width, config.plan_width), nn.Softplus(), nn.Linear(config.plan_width, len(MANOEUVRES) * 6)
        )
        self.condition = mlp(12, width, width)
        self.inter = InterDecoder(config, self.compute)
        self.change = Linear(width, width) if config.residual == "warped" else nn.Identity()
        self.flow = FlowNet(config.flow, width, config.history, cells, grid, self.compute) if config.flow.width else None
        self.reactions: ReactionNet | None = None
        if self.flow is not None and config.reactions.width:
            self.reactions = ReactionNet(config.reactions, config.flow.width, self.flow.fine, self.compute)
        self._reset()

    def compute_modules(self) -> list[nn.Module]:
        """The modules that take most of the time. They are compiled and run in mixed precision."""
        return [*self.intra, self.inter, *(net for net in (self.flow, self.reactions) if net is not None)]

    def _reset(self) -> None:
        """Initialise weights. If the config uses a base motion or latent, the plan head and the decoder start with zero corrections."""
        if self.config.start == "xavier":
            for name, p in self.named_parameters():
                if p.dim() > 1 and not name.startswith(("motion_", "plan_query", "prior", "flow", "reactions")):
                    nn.init.xavier_uniform_(p)
        if self.config.motion in ("prior", "last"):
            last = self.plan_head[2]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        if isinstance(self.change, nn.Linear):
            nn.init.zeros_(self.change.weight)
            nn.init.zeros_(self.change.bias)

    def initial_state(self, inputs: Inputs, latents: Float[Tensor, "B T C x y"]) -> RolloutState:
        """State at the start of a rollout, from observed frames and their latents (the last is the current one)."""
        keep, now_T_frame = self.config.history, inputs.now_T_frame
        motions = past_motions(now_T_frame, inputs.known, inputs.age_s)
        future = self.prior(inputs) if self.prior is not None else constant_turn(inputs)
        start = identity(future).expand(len(future), 1, 4, 4)
        expected = motion_between(transform_inverse(torch.cat([start, future[:, :-1]], 1)) @ future)
        before, now = _in_a_row(latents[:, -keep:-1]), latents[:, -1]
        return RolloutState(before, now, now_T_frame[:, -keep:], motions[:, -keep:], now, now_T_frame[:, -1], expected)

    def step(
        self,
        state: RolloutState,
        command: Int[Tensor, "B"],
        true_motion: Float[Tensor, "B 4 4"] | None = None,
        teach: Bool[Tensor, "B"] | None = None,
    ) -> tuple[RolloutState, Float[Tensor, "B C x y"], Float[Tensor, "B 4 4"]]:
        """Predict one step. Returns the next state, the next latent and the predicted motion now_T_next (B,4,4).

        For samples in `teach`, the decoder is conditioned on `true_motion` (now_T_next) instead of the predicted motion. Only the loss and
        the oracle rollout pass it.
        """
        maps, plan = self.encode(state.now, state.motions)
        predicted = self._move(plan, command, state.expected[:, 0] if self.config.motion == "prior" else state.motions[:, -1])
        used = predicted if true_motion is None or teach is None else torch.where(teach[:, None, None], true_motion, predicted)
        latent = self._imagine(maps, state, used)
        next_T_now = transform_inverse(used.detach())
        frames = torch.cat([next_T_now[:, None] @ state.now_T_frame, identity(used).expand(len(used), 1, 4, 4)], 1)
        after = RolloutState(
            _in_a_row(state.before, state.now.detach()[:, None])[:, 1:],
            latent,
            frames[:, 1:],
            torch.cat([state.motions, motion_between(used.detach())[:, None]], 1)[:, 1:],
            state.anchor,
            next_T_now @ state.now_T_anchor,
            torch.cat([state.expected[:, 1:], state.expected[:, -1:]], 1),
        )
        return after, latent, predicted

    def imagine(
        self,
        state: RolloutState,
        command: Int[Tensor, "B"],
        steps: int = FUTURE_STEPS,
        true_motion: Float[Tensor, "B S 4 4"] | None = None,
    ) -> Imagined:
        """Roll out `steps` steps under one command.

        With `true_motion` (B,S,4,4), prev_T_next of every step, the ego follows it and every step is conditioned on it (oracle).
        """
        latents, frames = [], []
        now_T_frame = identity(state.now_T_frame).expand(len(command), 4, 4)
        told = torch.ones(len(command), dtype=torch.bool, device=command.device)
        for k in range(steps):
            if true_motion is None:
                state, latent, moved = self.step(state, command)
            else:
                moved = true_motion[:, k]
                state, latent, _ = self.step(state, command, moved, told)
            now_T_frame = now_T_frame @ moved
            latents.append(latent)
            frames.append(now_T_frame)
        return Imagined(torch.stack(latents, 1), torch.stack(frames, 1))

    def encode(self, now: Float[Tensor, "B C x y"], motions: Float[Tensor, "B H M"]) -> tuple[Tensor, Tensor]:
        """Intra encoder. Returns the fused maps (B,C,x,y) of the current latent and the plan query (B,C)."""
        size = self.cells.size
        position = torch.cat([self.column[None].expand(size[0], -1, -1), self.row[:, None].expand(-1, size[1], -1)], -1)
        tokens = rearrange(now, "b c x y -> b (x y) c") + position.flatten(0, 1) + self.time[-1]
        plan = self.plan_query((self.motion_embed(motions) + self.motion_time).flatten(1))[:, None]
        fused = torch.zeros_like(now)
        for layer, conv in zip(self.intra, self.fuse, strict=True):
            maps, plan = layer(tokens, plan, size)
            size = (maps.shape[2], maps.shape[3])
            tokens = rearrange(maps, "b c x y -> b (x y) c")
            # conv(interpolate(maps)) on the small map: they commute, as interpolation is linear over cells with weights that sum to one
            made = conv(maps)
            fused = fused + (
                made if size == self.cells.size else F.interpolate(made, self.cells.size, mode="bilinear", align_corners=False)
            )
        return fused, plan[:, 0]

    def head(self, plan: Float[Tensor, "B C"], command: Int[Tensor, "B"]) -> Float[Tensor, "B 6"]:
        """Output of the plan head for a command: translation (x, y) and an unnormalised quaternion (w, x, y, z)."""
        heads = self.plan_head(plan).view(len(plan), len(MANOEUVRES), 6)
        return heads[torch.arange(len(plan), device=plan.device), command]

    def decode(
        self,
        here: Float[Tensor, "B C x y"],
        before: Float[Tensor, "B T1 C x y"],
        now: Float[Tensor, "B C x y"],
        next_T_now: Float[Tensor, "B 4 4"],
    ) -> Float[Tensor, "B C x y"]:
        """Inter decoder: the next latent, or its change, from fused maps, earlier latents (oldest first), the current latent and the
        motion.
        """
        x, y = self.cells.size
        vector = torch.cat([next_T_now[:, :3, :3].flatten(1), next_T_now[:, :3, 3]], -1)
        tokens = rearrange(here, "b c x y -> b (x y) c") + self.condition(vector)[:, None]
        state = rearrange(before, "b t c x y -> b (x y) (t c)"), rearrange(now, "b c x y -> b (x y) c")
        tokens = self.inter(tokens, *state, self.time[:-1], (x, y))
        return rearrange(self.change(tokens), "b (x y) c -> b c x y", x=x)

    def _move(self, plan: Tensor, command: Tensor, base: Tensor) -> Tensor:
        """Planar motion now_T_next from the plan query: the base plus the head's correction, or the head's output without a base."""
        out = self.head(plan, command)
        if self.config.motion in ("prior", "last"):
            out = out + base[:, :6]
        w, z = out[:, 2], out[:, 5]
        norm = (w.square() + z.square()).clamp(min=1e-6)
        return planar_transform(out[:, :2], (w.square() - z.square()) / norm, 2 * w * z / norm)

    def _imagine(self, fused: Tensor, state: RolloutState, now_T_next: Tensor) -> Tensor:
        """The next latent in its own ego frame."""
        here, before, now = fused, state.before, state.now
        if self.outside is not None:
            here, before, now = self._aligned(fused, state, now_T_next.detach(), self.outside)
        out = self.decode(here, before, now, transform_inverse(now_T_next))
        if self.config.residual == "none":
            return out
        points_m = self.cells.seen_from(transform_inverse(state.now_T_anchor) @ now_T_next.detach())
        return out + self.cells.read(state.anchor, points_m) + torch.where(self.cells.inside(points_m) == 0, now, 0.0)

    def _aligned(self, fused: Tensor, state: RolloutState, now_T_next: Tensor, outside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fused maps, earlier latents and the current latent, warped to the next ego frame."""
        batch, frames = state.before.shape[:2]
        frame_T_next = transform_inverse(state.now_T_frame) @ now_T_next[:, None]
        # Separate calls: earlier latents need no gradient, and the backward pass of sampling costs six times as much as the forward pass.
        before = self.cells.warp(state.before.flatten(0, 1), frame_T_next[:, :-1].flatten(0, 1)).unflatten(0, (batch, frames))
        now = self.cells.warp(state.now, frame_T_next[:, -1])
        points_m = self.cells.seen_from(now_T_next)
        return self.cells.read(fused, points_m) + outside[:, None, None] * (1 - self.cells.inside(points_m)), before, now


def _in_a_row(*maps: Float[Tensor, "B _ C x y"]) -> Float[Tensor, "B T C x y"]:
    """`torch.cat(maps, 1)` in channels_last layout, in which the maps are sampled and concatenated."""
    return torch.cat([m.permute(0, 1, 3, 4, 2) for m in maps], 1).permute(0, 1, 4, 2, 3)
