"""Rollout of the published world model (I2-World, arXiv 2507.09144, github lzzzzzm/II-World), with the modules of `world.py`.

Motions are in map axes, and poses are chained as quaternions. The published model keeps state in its modules. Here the state is a `StreamState`,
an argument and a return value: a sample gets the state of the sample one keyframe earlier, or None at the start of a sequence. Mistakes of
the published code have names in `iiworld/quirks.py` and are reproduced only if the config lists them.

Poses are float64, so that large map coordinates lose no precision. The published code uses float32 (0.1 mm of noise).

Shapes: B batch, S steps, H past motions, T = H latents in memory, C channels, x, y cells, M = 9 motion features: translation (x, y) in map
axes, quaternion (w, x, y, z), three velocities.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from iidrive.core.errors import ConfigError
from iidrive.core.scene import STEP_S
from iidrive.models.iiworld.quirks import Quirk
from iidrive.models.layers import constant, transform_inverse
from iidrive.models.repeatable import running_sum
from iidrive.models.world import WorldConfig, WorldModel

Quirks = Collection[Quirk]


@dataclass(frozen=True)
class Drive:
    """Recorded data of B samples, from now (index 0) on.

    Attributes:
        latents: (B,S+1,C,x,y) latents.
        rotation: (B,S+1,4) ego rotations in the map, unit quaternions (w, x, y, z).
        position: (B,S+1,3) ego positions in the map, metres.
        velocity: (B,S,3) vx, vy (m/s) and yaw rate (rad/s) of each frame.
        command: (B,S) index into `MANOEUVRES`.
        valid: (B,S) whether the frame after step k exists.
        starts: (B,) whether the sample is the first of its sequence.
        before: (B,T-1,C,x,y) latents before now, oldest first; not needed with the quirk `copied-memory`.
    """

    latents: Float[Tensor, "B S1 C x y"]
    rotation: Float64[Tensor, "B S1 4"]
    position: Float64[Tensor, "B S1 3"]
    velocity: Float64[Tensor, "B S 3"]
    command: Int[Tensor, "B S"]
    valid: Bool[Tensor, "B S"]
    starts: Bool[Tensor, "B"]
    before: Float[Tensor, "B T1 C x y"] | None = None

    @property
    def translations(self) -> Float64[Tensor, "B S 2"]:
        """Recorded translations, map axes, metres."""
        return self.position[:, 1:, :2] - self.position[:, :-1, :2]

    @property
    def turns(self) -> Float64[Tensor, "B S 4"]:
        """Recorded rotations now_q_next, in the earlier ego frame of each step."""
        return quaternion_product(quaternion_inverse(self.rotation[:, :-1]), self.rotation[:, 1:])

    @property
    def next_T_now(self) -> Float64[Tensor, "B S 4 4"]:
        """Recorded motions as 4x4 transforms."""
        return _relative(self.rotation[:, 1:], self.position[:, 1:], self.rotation[:, :-1], self.position[:, :-1])

    @property
    def motions(self) -> Float64[Tensor, "B S M"]:
        """Recorded motions as features of the motion history."""
        return torch.cat([self.translations, self.turns, self.velocity], -1)


@dataclass(frozen=True)
class StreamState:
    """State that is passed from sample to sample.

    Attributes:
        motions: (B,H,M) recorded motions, oldest first.
        heading_rad: (B,) heading at the end of the last rollout (the roll angle with the quirk `roll-for-yaw`).
        position_m: (B,3) position in the map at the end of the last rollout.
    """

    motions: Float64[Tensor, "B H M"]
    heading_rad: Float64[Tensor, "B"]
    position_m: Float64[Tensor, "B 3"]


@dataclass(frozen=True)
class RollOut:
    """Predictions of S steps: latents, translations in map axes (metres), rotations, poses in the map, velocities for the motion history,
    and next_T_now.
    """

    latents: Float[Tensor, "B S C x y"]
    translations: Float[Tensor, "B S 2"]
    turns: Float[Tensor, "B S 4"]
    rotation: Float64[Tensor, "B S 4"]
    position: Float64[Tensor, "B S 3"]
    velocity: Float64[Tensor, "B S 3"]
    next_T_now: Float64[Tensor, "B S 4 4"]


def begin(drive: Drive, state: StreamState | None, quirks: Quirks, history: int) -> StreamState:
    """Initial state of a sample: at rest at the current pose if its sequence starts or `state` is None."""
    heading = heading_rad(drive.rotation[:, 0], "roll-for-yaw" in quirks)
    still = at_rest(quirks, drive.rotation).expand(len(drive.starts), history, 9)
    if state is None:
        return StreamState(still, heading, drive.position[:, 0])
    fresh = drive.starts if "stale-pose" in quirks else torch.ones_like(drive.starts)
    return StreamState(
        torch.where(drive.starts[:, None, None], still, state.motions),
        torch.where(fresh, heading, state.heading_rad),
        torch.where(fresh[:, None], drive.position[:, 0], state.position_m),
    )


def at_rest(quirks: Quirks, like: Tensor) -> Float[Tensor, "M"]:
    """Motion features for the time before a sequence."""
    rotation = [1.0, 1.0, 1.0, 1.0] if "ones-rotation" in quirks else [1.0, 0.0, 0.0, 0.0]
    return constant((0.0, 0.0, *rotation, 0.0, 0.0, 0.0), like)


def roll_out(
    world: WorldModel,
    drive: Drive,
    state: StreamState | None = None,
    teach: Bool[Tensor, "B S"] | None = None,
    quirks: Quirks | None = None,
) -> tuple[RollOut, StreamState]:
    """Roll out S steps. Returns the predictions and the state for the next sample.

    Where `teach` is true (in training only), the recorded frame after a step replaces the predicted one. Gradients flow through the current
    latent and pose, not through memory and motion history. `quirks` override the config's.
    """
    quirks = world.config.quirks if quirks is None else quirks
    state = begin(drive, state, quirks, world.config.history)
    now, rotation, position = drive.latents[:, 0], drive.rotation[:, 0], drive.position[:, 0]
    memory, motions = _memory(drive, quirks, world.config.history), state.motions
    heading, last = state.heading_rad, state.position_m
    steps: list[tuple[Tensor, ...]] = []
    for k in range(drive.command.shape[1]):
        fused, plan = world.encode(now, motions.to(now.dtype))
        out = world.head(plan, drive.command[:, max(k - 1, 0) if "future-commands" in quirks else 0])
        translation, turn = out[:, :2], F.normalize(out[:, 2:], dim=-1)
        pair = (turn.double(), rotation) if "swapped-rotation" in quirks else (rotation, turn.double())
        next_rotation = quaternion_product(*pair)
        next_position = position + F.pad(translation.double(), (0, 1))
        next_T_now = _relative(next_rotation, next_position, rotation, position)
        told = drive.next_T_now[:, k] if "true-motion" in quirks else next_T_now
        latent = world.decode(fused, memory[:, :-1], memory[:, -1], told.to(now.dtype))
        reached = heading_rad(next_rotation.detach(), "roll-for-yaw" in quirks)
        moved = next_position.detach() - last
        speed = moved[:2].norm() / STEP_S if "batch-speed" in quirks else moved[:, :2].norm(dim=-1) / STEP_S
        velocity = velocities(reached - heading, speed, reached, quirks)
        if "rate-first" in quirks:
            velocity = velocity.roll(1, -1)
        heading, last = reached, next_position.detach()
        steps.append((latent, translation, turn, next_rotation, next_position, velocity, next_T_now))
        if k + 1 == drive.command.shape[1]:
            break
        taught = torch.zeros_like(drive.starts) if teach is None else teach[:, k]
        step = torch.cat([translation.double(), turn.double(), velocity], -1).detach()
        motions = torch.cat([motions[:, 1:], torch.where(taught[:, None], drive.motions[:, k], step)[:, None]], 1)
        now = torch.where(taught[:, None, None, None], drive.latents[:, k + 1], latent)
        rotation = torch.where(taught[:, None], drive.rotation[:, k + 1], next_rotation)
        position = torch.where(taught[:, None], drive.position[:, k + 1], next_position)
        memory = torch.cat([memory[:, 1:], now.detach()[:, None]], 1)
    observed = torch.cat([state.motions[:, 1:], drive.motions[:, :1]], 1)
    return RollOut(*(torch.stack(parts, 1) for parts in zip(*steps, strict=True))), StreamState(observed, heading, last)


def losses(config: WorldConfig, made: RollOut, drive: Drive) -> dict[str, Tensor]:
    """Weighted latent loss of each step, trajectory loss and rotation loss. Their sum is the training loss."""
    weight = constant(config.latent_weights, made.latents)
    error = (made.latents - drive.latents[:, 1:]).square().mean((2, 3, 4)) * drive.valid
    latent = weight * error.sum(0) / drive.valid.sum(0).clamp(min=1)
    reached = running_sum(made.translations.double(), 1), running_sum(drive.translations, 1)
    distance = (reached[0] - reached[1]).square().sum(-1)
    trajectory = (distance * drive.valid * weight).mean(1)
    if "trajectory-mean-twice" in config.quirks:
        trajectory = trajectory / len(trajectory)
    turn = 1 - (made.turns * drive.turns).sum(-1).abs()
    if "rotation-everywhere" not in config.quirks:
        turn = turn * drive.valid
    return {
        **{f"latent_{k + 1}": latent[k] for k in range(len(latent))},
        "trajectory": (config.trajectory_weight * trajectory.mean()).to(latent.dtype),
        "rotation": (config.rotation_weight * turn.sum(1).mean()).to(latent.dtype),
    }


def velocities(
    turned_rad: Float64[Tensor, "*B"], speed: Float64[Tensor, "*B"], heading: Float64[Tensor, "*B"], quirks: Quirks
) -> Float64[Tensor, "*B 3"]:
    """(vx, vy, yaw rate) of one step, m/s and rad/s. Forward is vy, because the published data rotate velocities by 90 degrees."""
    roll = "roll-for-yaw" in quirks
    rate = turned_rad if roll else torch.atan2(turned_rad.sin(), turned_rad.cos())
    direction = torch.pi / 2 + (heading if roll else torch.zeros_like(heading))
    return torch.stack([speed * direction.cos(), speed * direction.sin(), rate / STEP_S], -1)


def heading_rad(rotation: Float64[Tensor, "*B 4"], roll: bool) -> Float64[Tensor, "*B"]:
    """Yaw of a quaternion, or its roll if `roll`: the result of the yaw formula if (w, x, y, z) is misread as (x, y, z, w)."""
    w, x, y, z = rotation.unbind(-1)
    if roll:
        return torch.atan2(2 * (w * x + y * z), 1 - 2 * (x * x + y * y))
    return torch.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def quaternion_product(a: Float[Tensor, "*B 4"], b: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 4"]:
    """Quaternion product a * b: rotate by b, then by a."""
    (w, v), (u, t) = (a[..., :1], a[..., 1:]), (b[..., :1], b[..., 1:])
    return torch.cat([w * u - (v * t).sum(-1, keepdim=True), w * t + u * v + torch.linalg.cross(v, t)], -1)


def quaternion_inverse(q: Float[Tensor, "*B 4"]) -> Float[Tensor, "*B 4"]:
    """Inverse of a unit quaternion."""
    return torch.cat([q[..., :1], -q[..., 1:]], -1)


def pose_matrix(rotation: Float[Tensor, "*B 4"], position: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 4 4"]:
    """4x4 transform of a unit quaternion and a translation."""
    w, v = rotation[..., :1, None], rotation[..., 1:]
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    eye = torch.eye(3, device=v.device, dtype=v.dtype)
    upper = torch.cat([eye + 2 * w * cross + 2 * cross @ cross, position[..., None]], -1)
    bottom = constant((0.0, 0.0, 0.0, 1.0), v).expand(*upper.shape[:-2], 1, 4)
    return torch.cat([upper, bottom], -2)


def _relative(next_rotation: Tensor, next_position: Tensor, rotation: Tensor, position: Tensor) -> Tensor:
    """next_T_now of two poses in the map."""
    return transform_inverse(pose_matrix(next_rotation, next_position)) @ pose_matrix(rotation, position)


def _memory(drive: Drive, quirks: Quirks, history: int) -> Tensor:
    now = drive.latents[:, :1]
    if "copied-memory" in quirks:
        return now.expand(-1, history, -1, -1, -1)
    if drive.before is None:
        raise ConfigError("without the quirk copied-memory the rollout needs the latents before now; found none.")
    return torch.cat([drive.before, now], 1)[:, -history:]
