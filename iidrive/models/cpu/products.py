"""Matrix products computed by the convolution library (oneDNN), for large float32 products on a CPU.

PyTorch computes matrix products with MKL, which uses half the vector width of AMD processors. A 1x1 convolution is the same product,
computed by oneDNN, which uses the full width and is twice as fast there (benchmarks/README.md; not measured on other processors).

Shapes: M rows, K summed dimension, N columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_LARGE = 2**23
"""Number of multiplications from which the convolution is faster in spite of its overhead."""


def linear(x: Float[Tensor, "*M K"], weight: Float[Tensor, "N K"], bias: Float[Tensor, "N"] | None = None) -> Float[Tensor, "*M N"]:
    """x @ weight.T + bias, as `F.linear`."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() * len(weight) < _LARGE:
        return F.linear(x, weight, bias)
    rows = x.contiguous().view(1, -1, 1, x.shape[-1])  # a row becomes the channels of a cell
    made = F.conv2d(rows.permute(0, 3, 1, 2), weight[:, :, None, None], bias)
    return made.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def crossed(a: Float[Tensor, "K M"], b: Float[Tensor, "K N"]) -> Float[Tensor, "M N"]:
    """a.T @ b. `a` should be the larger matrix."""
    if a.device.type != "cpu" or a.dtype != torch.float32 or a.numel() * b.shape[1] < _LARGE:
        return a.T @ b
    return F.conv2d(a[None, :, :, None], b.T[:, :, None, None])[0, :, :, 0].T


class Linear(nn.Linear):
    """`nn.Linear`, faster for many rows."""

    def forward(self, input: Float[Tensor, "*M K"]) -> Float[Tensor, "*M N"]:
        return linear(input, self.weight, self.bias)
