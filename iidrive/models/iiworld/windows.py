"""The published rollout (`iiworld/rollout.py`) on single clips instead of a stream.

A clip has five keyframes before now, which is the length of the published motion history, so the state can be computed from the clip. Two
things cannot: the end of the previous sample's rollout (the quirk `stale-pose` uses the current pose instead), and the commands of future
keyframes (`future-commands` uses the current command at every step).

Shapes: B batch, T frames (oldest first, the last is now), S future steps, C latent channels, x, y cells.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from iidrive.core.batch import Inputs, Targets
from iidrive.core.errors import ConfigError
from iidrive.core.scene import STEP_S
from iidrive.models.iiworld.rollout import Drive, Quirks, StreamState, at_rest, heading_rad, losses, pose_matrix, roll_out, velocities
from iidrive.models.layers import transform_inverse
from iidrive.models.world import Imagined, WorldModel


def recorded(
    inputs: Inputs,
    latents: Float[Tensor, "B T C x y"],
    quirks: Quirks,
    history: int,
    steps: int,
    targets: tuple[Targets, Float[Tensor, "B S C x y"]] | None = None,
) -> tuple[Drive, StreamState]:
    """Input and state of the rollout for clips. Without `targets` (targets and their latents), the ego stands still in the future."""
    if inputs.global_T_now is None:
        raise ConfigError("motion=map needs the ego's pose in the map (global_T_now), but this batch has none.")
    now = inputs.now_T_frame.shape[1] - 1
    if targets is None:
        future, valid = inputs.now_T_frame[:, -1:].expand(-1, steps, -1, -1), inputs.known[:, -1:].expand(-1, steps)
        latents_ahead = latents[:, -1:].expand(-1, steps, -1, -1, -1)
    else:
        future, valid, latents_ahead = targets[0].now_T_frame, targets[0].valid, targets[1]
    poses = inputs.global_T_now[:, None].double() @ torch.cat([inputs.now_T_frame, future], 1).double()
    rotation, position = continuous(quaternion_of(poses[..., :3, :3])), poses[..., :3, 3]
    heading = heading_rad(rotation, "roll-for-yaw" in quirks)
    speed = (position[:, 1:] - position[:, :-1])[..., :2].norm(dim=-1) / STEP_S
    velocity = velocities(heading[:, 1:] - heading[:, :-1], speed, heading[:, 1:], quirks)
    velocity = torch.cat([velocity[:, :1], velocity], 1)
    command = inputs.command[:, None].expand(-1, steps)
    starts = ~inputs.known[:, -2]
    whole = Drive(latents[:, -1:], rotation, position, velocity[:, :-1], command, valid, starts)
    motions = torch.where(inputs.known[:, :-1, None], whole.motions[:, :now], at_rest(quirks, position))
    both, before = torch.cat([latents[:, -1:], latents_ahead], 1), latents[:, -history:-1]
    drive = Drive(both, rotation[:, now:], position[:, now:], velocity[:, now:-1], command, valid, starts, before)
    return drive, StreamState(motions[:, -history:], heading[:, now], position[:, now])


def imagine(world: WorldModel, inputs: Inputs, latents: Float[Tensor, "B T C x y"], steps: int) -> Imagined:
    """Roll out from observed frames only, conditioned on the predicted motion (published task `high-level-control`)."""
    quirks: Quirks = [q for q in world.config.quirks if q != "true-motion"]
    drive, state = recorded(inputs, latents, quirks, world.config.history, steps)
    made, _ = roll_out(world, drive, state, quirks=quirks)
    now_T_map = transform_inverse(pose_matrix(drive.rotation[:, 0], drive.position[:, 0]))
    frames = now_T_map[:, None] @ pose_matrix(made.rotation, made.position)
    return Imagined(made.latents, frames.to(latents.dtype))


def loss(
    world: WorldModel,
    inputs: Inputs,
    latents: Float[Tensor, "B T C x y"],
    targets: Targets,
    truth: Float[Tensor, "B S C x y"],
    teach: Bool[Tensor, "B S"],
) -> tuple[Tensor, dict[str, Tensor]]:
    """The published losses of clips; see `rollout.losses`."""
    quirks = world.config.quirks
    drive, state = recorded(inputs, latents, quirks, world.config.history, truth.shape[1], (targets, truth))
    made, _ = roll_out(world, drive, state, teach)
    parts = losses(world.config, made, drive)
    return torch.stack(list(parts.values())).sum(), parts


def quaternion_of(rotation: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B 4"]:
    """Unit quaternions (w, x, y, z), of either sign, of rotation matrices.

    The sixteen products 4 q_i q_j are sums of the matrix's entries. The row with the largest q_i² is a multiple of q.
    """
    m = rotation
    one = torch.ones_like(m[..., 0, 0])
    x, y, z = (m[..., i, i] for i in range(3))
    wx, wy, wz = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    xy, xz, yz = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    rows = [one + x + y + z, wx, wy, wz, wx, one + x - y - z, xy, xz, wy, xy, one - x + y - z, yz, wz, xz, yz, one - x - y + z]
    products = torch.stack(rows, -1).unflatten(-1, (4, 4))
    largest = products.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = products.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4))[..., 0, :]
    return torch.nn.functional.normalize(row, dim=-1)


def continuous(track: Float[Tensor, "B T 4"]) -> Float[Tensor, "B T 4"]:
    """Quaternions over time with signs chosen so that neighbours have a positive inner product."""
    turned = (track[:, 1:] * track[:, :-1]).sum(-1) < 0
    sign = torch.where(turned, -1.0, 1.0).to(track.dtype).cumprod(1)
    return torch.cat([track[:, :1], track[:, 1:] * sign[..., None]], 1)
