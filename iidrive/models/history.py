"""Warping of past encoder maps to the current frame, in two ways.

`once`: each past map is warped directly from its own frame to the current one. `stream` (published): a buffer is passed from frame to frame
and warped at each step, so the oldest map is resampled once per slot. The buffer is an argument and a return value.

Frames may be mirrored for augmentation. A mirror is a 4x4 matrix, equal to its inverse, that maps an ego frame to the mirrored one.

Shapes: B batch, T frames of a clip (oldest first), X, Y, Z voxels, C channels, x, y cells, J past frames (newest first).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float64, UInt8
from torch import Tensor

from iidrive.models import cpu
from iidrive.models.layers import CellGrid, identity, rigid_inverse, transform_inverse


@dataclass(frozen=True)
class Stream:
    """The published history buffer: past maps (newest first) in the frame of the last one, and the mirror of that frame."""

    maps: Float[Tensor, "B J C x y"]
    mirror: Float[Tensor, "B 4 4"]


def warp_once(
    cells: CellGrid,
    clip: Float[Tensor, "B T C x y"],
    now_T_frame: Float[Tensor, "B T 4 4"],
    history: int,
    mirrors: Float[Tensor, "B T 4 4"] | None = None,
) -> Float[Tensor, "B J C x y"]:
    """Past maps of a clip, warped to its last frame. The earliest map is repeated for frames before it.

    Args:
        cells: grid of the maps.
        clip: (B,T,C,x,y) maps of the frames.
        now_T_frame: (B,T,4,4) from each frame to the current one.
        history: number J of past maps.
        mirrors: (B,T,4,4) mirrors of the frames; None for none.
    """
    past = []
    for step in range(history):
        index = max(clip.shape[1] - 2 - step, 0)
        frame_T_now = rigid_inverse(now_T_frame[:, index].double()).to(clip.dtype)
        if mirrors is not None:
            frame_T_now = mirrors[:, index] @ frame_T_now @ mirrors[:, -1]
        past.append(cells.warp(clip[:, index], frame_T_now))
    return torch.stack(past, 1)


def warp_stream(
    cells: CellGrid,
    clip: Float[Tensor, "B T C x y"],
    now_T_frame: Float[Tensor, "B T 4 4"],
    history: int,
    mirrors: Float[Tensor, "B T 4 4"] | None = None,
    stale_mirror: bool = False,
) -> Float[Tensor, "B J C x y"]:
    """As `warp_once`, with a stream that starts at the clip's first frame (see `advance`)."""
    eye = identity(clip).expand(len(clip), 4, 4)
    stream, past = None, clip[:, :1]
    for k in range(clip.shape[1]):
        prev_T_now = _between(now_T_frame[:, max(k - 1, 0)].double(), now_T_frame[:, k].double()).to(clip.dtype)
        mirror = eye if mirrors is None else mirrors[:, k]
        past, stream = advance(cells, stream, clip[:, k], prev_T_now, mirror, history, stale_mirror=stale_mirror)
    return past


def _between(now_T_prev: Float64[Tensor, "B 4 4"], now_T_next: Float64[Tensor, "B 4 4"]) -> Float64[Tensor, "B 4 4"]:
    """prev_T_next, computed in the same way as `rigid_inverse`."""
    if cpu.pays_for(now_T_prev):
        return torch.linalg.solve_ex(now_T_prev, now_T_next).result
    return transform_inverse(now_T_prev) @ now_T_next


def advance(
    cells: CellGrid,
    stream: Stream | None,
    now: Float[Tensor, "B C x y"],
    prev_T_now: Float[Tensor, "B 4 4"],
    mirror: Float[Tensor, "B 4 4"],
    history: int,
    starts: Bool[Tensor, "B"] | None = None,
    stale_mirror: bool = False,
) -> tuple[Float[Tensor, "B J C x y"], Stream]:
    """Advance a stream by one frame. Returns the past maps in the (mirrored) current frame, and the stream for the next frame.

    No gradient flows into past maps. For samples where a sequence `starts`, the past is filled with copies of the current map. With
    `stale_mirror` (published) the stored mirror stays that of the sequence's first frame, although the maps are warped to later frames.
    """
    now = now.detach()
    copies = now[:, None].expand(-1, history, -1, -1, -1)
    if stream is None:
        stream = Stream(copies, mirror)
    elif starts is not None:
        new = starts[:, None, None]
        stream = Stream(torch.where(new[..., None, None], copies, stream.maps), torch.where(new, mirror, stream.mirror))
        prev_T_now = torch.where(new, identity(prev_T_now), prev_T_now)
    then_T_now = stream.mirror @ prev_T_now @ mirror
    flat = rearrange(stream.maps, "b j c x y -> b (j c) x y")
    past = rearrange(cells.warp(flat, then_T_now), "b (j c) x y -> b j c x y", j=history)
    kept = torch.cat([now[:, None], past[:, :-1]], 1)
    return past, Stream(kept, stream.mirror if stale_mirror else mirror)


def mirrored(
    occupancy: UInt8[Tensor, "B T X Y Z"], draw: Float[Tensor, "B"], mirror: Literal["none", "clip", "frame"]
) -> tuple[UInt8[Tensor, "B T X Y Z"], Float[Tensor, "B T 4 4"] | None]:
    """Mirror clips at random in x and y. Returns the clips and the mirrors of their frames (None without mirroring).

    The flips are given by bits of each clip's `draw`, for the whole clip (`clip`) or for every frame (`frame`).
    """
    if mirror == "none":
        return occupancy, None
    frames = torch.arange(occupancy.shape[1], device=draw.device)
    place = 2 * (frames if mirror == "frame" else torch.zeros_like(frames))
    bits = (draw.double() * 2**20).long()[:, None] >> place
    sign = draw.new_ones(*bits.shape, 4)
    for axis in (0, 1):
        flip = (bits >> axis) % 2 == 1
        occupancy = torch.where(flip[..., None, None, None], occupancy.flip(2 + axis), occupancy)
        sign[..., axis] = torch.where(flip, -1.0, 1.0)
    return occupancy, torch.diag_embed(sign)
