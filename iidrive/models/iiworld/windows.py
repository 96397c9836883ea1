"""Windows of recorded keyframes as the published roll-out reads them: `iiworld/rollout.py` without a stream.

A window holds the five keyframes before now, which is all that a published stream's motion history remembers, so what is carried can be made
from the window. Two things cannot: where the previous sample's roll-out ended (the quirk `stale-pose` measures from the present pose
here), and the commands of future keyframes (`future-commands` sees the present command at every step).

Shapes: B batch, T frames seen (oldest first, the last is now), S future steps, C latent channels, x, y cells.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from iidrive.core.batch import Inputs, Targets
from iidrive.core.errors import ConfigError
from iidrive.core.scene import STEP_S
from iidrive.models.iiworld.rollout import Carry, Drive, Quirks, at_rest, heading_rad, losses, pose_matrix, roll_out, velocities
from iidrive.models.layers import transform_inverse
from iidrive.models.world import Imagined, WorldModel


def recorded(
    inputs: Inputs,
    latents: Float[Tensor, "B T C x y"],
    quirks: Quirks,
    history: int,
    steps: int,
    targets: tuple[Targets, Float[Tensor, "B S C x y"]] | None = None,
) -> tuple[Drive, Carry]:
    """What the roll-out reads and carries; without what lies `ahead` (targets and their latents), the ego stands still there."""
    if inputs.global_T_now is None:
        raise ConfigError("motion=map tells motions in the axes of the map, but this batch does not say where the ego is in it.")
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
    return drive, Carry(motions[:, -history:], heading[:, now], position[:, now])


def imagine(world: WorldModel, inputs: Inputs, latents: Float[Tensor, "B T C x y"], steps: int) -> Imagined:
    """Roll out from what was seen alone: the decoder is told the predicted motion (published task `high-level-control`)."""
    quirks: Quirks = [q for q in world.config.quirks if q != "true-motion"]
    drive, carry = recorded(inputs, latents, quirks, world.config.history, steps)
    made, _ = roll_out(world, drive, carry, quirks=quirks)
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
    """The published losses of one window; see `published.losses`."""
    quirks = world.config.quirks
    drive, carry = recorded(inputs, latents, quirks, world.config.history, truth.shape[1], (targets, truth))
    made, _ = roll_out(world, drive, carry, teach)
    parts = losses(world.config, made, drive)
    return torch.stack(list(parts.values())).sum(), parts


def quaternion_of(rotation: Float[Tensor, "*B 3 3"]) -> Float[Tensor, "*B 4"]:
    """Unit quaternions (w, x, y, z), of either sign, of rotation matrices.

    The sixteen products 4 q_i q_j are sums of the matrix's entries; the row of the largest square is a multiple of q.
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
    """The same rotations with signs such that neighbours in time lie on the same side."""
    turned = (track[:, 1:] * track[:, :-1]).sum(-1) < 0
    sign = torch.where(turned, -1.0, 1.0).to(track.dtype).cumprod(1)
    return torch.cat([track[:, :1], track[:, 1:] * sign[..., None]], 1)
