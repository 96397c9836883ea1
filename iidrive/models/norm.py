"""Group normalisation, optionally followed by SiLU.

For channels_last tensors on a CPU it is one autograd function that saves only its input.

Shapes: B batch, C channels, N cells.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from iidrive.models import cpu


class Norm(nn.GroupNorm):
    """GroupNorm, then SiLU if `silu`. Plain version: `plain.norm`.

    PyTorch's CPU kernel for channels_last tensors has relative errors of up to 1e-2, so this class has its own.
    """

    def __init__(self, groups: int, channels: int, eps: float = 1e-5, silu: bool = False) -> None:
        super().__init__(groups, channels, eps)
        self.silu = silu

    def forward(self, input: Float[Tensor, "B C X Y"]) -> Float[Tensor, "B C X Y"]:
        cells = input.permute(0, 2, 3, 1)
        if input.is_contiguous() or not cells.is_contiguous() or not cpu.pays_for(input) or input.dtype == torch.bfloat16:
            made = super().forward(input.contiguous())
            return F.silu(made) if self.silu else made
        made = _ChannelsLast.apply(cells.flatten(1, 2), self.weight, self.bias, self.num_groups, self.eps, self.silu)
        assert isinstance(made, Tensor)
        return made.view(cells.shape).permute(0, 3, 1, 2)


class _ChannelsLast(torch.autograd.Function):
    """`Norm` for tensors (B,N,C)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        mean = _mean_in_groups(x.mean(1), groups)
        rate = (_mean_in_groups((x - mean[:, None]).square_().mean(1), groups) + eps).rsqrt()
        ctx.save_for_backward(x, weight, bias, mean, rate)
        ctx.groups, ctx.silu = groups, silu
        made = _scaled(x, weight, bias, mean, rate)
        return F.silu(made, inplace=True) if silu else made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        x, weight, bias, mean, rate = ctx.saved_tensors
        if ctx.silu:
            grad = torch.ops.aten.silu_backward(grad.contiguous(), _scaled(x, weight, bias, mean, rate))
        total, along = grad.sum(1), (grad * x).sum(1)
        mean_total, mean_along = (_mean_in_groups(weight * v, ctx.groups) / x.shape[1] for v in (total, along))
        slope = (mean_total * mean - mean_along) * rate.pow(3)
        level = -slope * mean - mean_total * rate
        back = (grad * (weight * rate)[:, None]).addcmul_(x, slope[:, None]).add_(level[:, None])
        return back, ((along - mean * total) * rate).sum(0), total.sum(0), None, None, None


def _mean_in_groups(values: Float[Tensor, "B C"], groups: int) -> Float[Tensor, "B C"]:
    """Mean over the channels of each group, repeated for every channel."""
    means = values.unflatten(1, (groups, -1)).mean(2)
    return means.repeat_interleave(values.shape[1] // groups, 1)


def _scaled(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rate: Tensor) -> Tensor:
    """(x - mean) * rate * weight + bias."""
    scale = weight * rate
    return torch.addcmul((bias - mean * scale)[:, None], x, scale[:, None])
