"""The full-size models without their shortcuts: each operation as one would write it down first, in plain torch, with the same weights and results.

`plainly()` is the yardstick of `model.py`. The published code computes like this too, and what it takes depends on the machine: a processor on
which torch's matrix products are slow, or one convolution fast, moves every number that is told in units of something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from iidrive.models import losses, tokenizer, world
from iidrive.models.cpu.convolve import EnlargedConv
from iidrive.models.cpu.products import Linear
from iidrive.models.layers import CellAttention, CellGrid, DeformableAttention
from iidrive.models.norm import Norm
from iidrive.models.quantise import ResidualQuantiser
from iidrive.models.world import InterDecoder, InterLayer


@contextmanager
def plainly() -> Iterator[None]:
    """Every shortcut is replaced by what it is short for."""
    with ExitStack() as stack:
        for owner, name, instead in (
            (tokenizer, "convolve_columns", columns),
            (EnlargedConv, "forward", nn.Sequential.forward),
            (Norm, "forward", norm),
            (CellAttention, "forward", cell_attention),
            (ResidualQuantiser, "nearest", nearest),
            (losses, "focal_sum", focal),
            (losses, "lovasz_of_classes", lovasz),
            (CellGrid, "read", read),
            (Linear, "forward", nn.Linear.forward),
            (DeformableAttention, "forward", deformable_attention),
            (world, "attend", attend),
            (InterDecoder, "forward", inter),
        ):
            stack.enter_context(patch.object(owner, name, instead))
        yield


def columns(labels: Tensor, classes: Tensor, conv: nn.Conv2d) -> Tensor:
    return conv(F.embedding(labels.long(), classes).flatten(3).permute(0, 3, 1, 2))


def norm(self: Norm, x: Tensor) -> Tensor:
    made = F.group_norm(x.contiguous(), self.num_groups, self.weight, self.bias, self.eps)
    return F.silu(made) if self.silu else made


def cell_attention(self: CellAttention, x: Tensor) -> Tensor:
    n = self.norm(x)
    q, k, v = (conv(n).flatten(2) for conv in (self.q, self.k, self.v))
    shares = (torch.bmm(q.transpose(1, 2), k) * q.shape[1] ** -0.5).softmax(2)
    return x + self.out(torch.bmm(v, shares.transpose(1, 2)).view_as(x))


def nearest(self: ResidualQuantiser, v: Tensor) -> Tensor:
    flat, e = rearrange(v, "b c x y -> (b x y) c"), self.codebook
    distance = flat.square().sum(1, keepdim=True) + e.square().sum(1) - 2 * flat @ e.T
    return distance.argmin(1).view(v.shape[0], *v.shape[2:])


def focal(logits: Tensor, target: Tensor, weight: Tensor, alpha: float, gamma: float) -> Tensor:
    truth = F.one_hot(target, logits.shape[1]).to(logits)
    p = logits.sigmoid()
    missed = (1 - p) * truth + p * (1 - truth)
    balance = alpha * truth + (1 - alpha) * (1 - truth)
    each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * balance * missed**gamma
    return (each * weight[:, None]).sum()


def lovasz(logits: Tensor, target: Tensor, bins: int, weights: tuple[float, ...] = ()) -> Tensor:
    shares, parts = logits.softmax(1), []
    for k in range(shares.shape[1]):
        truth = (target == k).to(shares)
        if truth.sum() == 0:
            continue
        error, order = (truth - shares[:, k]).abs().sort(0, descending=True)
        hits = truth[order]
        jaccard = 1 - (hits.sum() - hits.cumsum(0)) / (hits.sum() + (1 - hits).cumsum(0))
        parts.append((error * torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])).sum())
    return torch.stack(parts).mean()


def read(self: CellGrid, maps: Tensor, points_m: Tensor) -> Tensor:
    x, y = self._index(points_m)
    grid = torch.stack([2 * y / (self.size[1] - 1) - 1, 2 * x / (self.size[0] - 1) - 1], -1)
    return F.grid_sample(maps, grid, align_corners=True)


def deformable_attention(self: DeformableAttention, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    batch, count, _ = tokens.shape
    x, y = size
    value = rearrange(self.value(tokens), "b (x y) (h d) -> (b h) d x y", x=x, h=self.heads)
    offsets = self.offsets(tokens).view(batch, count, self.heads, self.points, 2) / tokens.new_tensor([y, x])
    weights = self.weights(tokens).view(batch, count, self.heads, self.points).softmax(-1)
    j, i = ((torch.arange(n, dtype=tokens.dtype) + 0.5) / n for n in (y, x))
    cell = torch.stack([j[None].expand(x, y), i[:, None].expand(x, y)], -1).reshape(count, 1, 1, 2)
    places = rearrange(2 * (cell + offsets) - 1, "b n h p two -> (b h) n p two")
    read = F.grid_sample(value, places, align_corners=False)
    mixed = (read * rearrange(weights, "b n h p -> (b h) 1 n p")).sum(-1)
    return self.out(rearrange(mixed, "(b h) d n -> b n (h d)", b=batch))


def attend(attention: nn.MultiheadAttention, query: Tensor, tokens: Tensor) -> Tensor:
    return attention(query, tokens, tokens)[0]


def inter(self: InterDecoder, x: Tensor, before: Tensor, now: Tensor, time: Tensor, size: tuple[int, int]) -> Tensor:
    memory = torch.cat([before, now], -1) + time.flatten()
    for layer in self:
        assert isinstance(layer, InterLayer)
        x = layer.norms[0](x + layer.attention(x, size))
        x = layer.norms[1](x + layer.mix(layer.join(torch.cat([x, memory], -1))))
        x = layer.norms[2](x + layer.feed_forward(x))
    return x
