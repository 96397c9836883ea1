"""Voxel losses with gradients in closed form. Logits are processed in chunks, so no intermediate tensor of their full size is stored.

On a GPU the focal loss processes all logits at once, and the Lovász loss has its own implementation (`losses.py`) with the same weights.

Shapes: V voxels, K classes, N voxels of one class.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from iidrive.models import cpu

_AT_ONCE = 2**15
"""Voxels per chunk: few enough for intermediate tensors to fit the CPU cache."""


def _at_once(logits: Tensor) -> int:
    return _AT_ONCE if cpu.pays_for(logits) else max(len(logits), 1)


def focal_sum(
    logits: Float[Tensor, "V K"], target: Int[Tensor, "V"], weight: Float[Tensor, "V"], alpha: float, gamma: float
) -> Float[Tensor, ""]:
    """Sigmoid focal loss summed over classes and weighted voxels. Plain version: `plain.focal_sum`."""
    made = _Focal.apply(exact(logits), target, weight, alpha, gamma)
    assert isinstance(made, Tensor)
    return made


def lovasz_of_classes(
    logits: Float[Tensor, "V K"], target: Int[Tensor, "V"], bins: int, weights: tuple[float, ...] = ()
) -> Float[Tensor, ""]:
    """Lovász-softmax: mean over the classes that are present, or their weighted sum. `bins` is as in `losses.lovasz`.

    Plain version: `plain.lovasz_of_classes`.
    """
    made = _Lovasz.apply(exact(logits), target, bins, weights)
    assert isinstance(made, Tensor)
    return made


def exact(logits: Tensor) -> Tensor:
    """Convert half-precision logits to float32."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


class _Focal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor, alpha: float, gamma: float) -> Tensor:
        ctx.save_for_backward(logits, target, weight)
        ctx.alpha, ctx.gamma = alpha, gamma
        total = logits.new_zeros(())
        for z, index, weighting in zip(*(v.split(_at_once(logits)) for v in (logits, target, weight)), strict=True):
            absent = (1 - alpha) * z.sigmoid().pow_(gamma) * F.softplus(z)
            x = z.gather(1, index[:, None])
            present = alpha * (-x).sigmoid().pow(gamma) * F.softplus(-x)
            total += ((absent.sum(1) + (present - absent.gather(1, index[:, None]))[:, 0]) * weighting).sum()
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        logits, target, weight = ctx.saved_tensors
        alpha, gamma = ctx.alpha, ctx.gamma
        back = torch.empty_like(logits)
        for z, index, weighting, out in zip(*(v.split(_at_once(logits)) for v in (logits, target, weight, back)), strict=True):
            x = z.gather(1, index[:, None])
            torch.mul(_focal_gradient(z, gamma), (1 - alpha) * grad * weighting[:, None], out=out)
            out.scatter_(1, index[:, None], _focal_gradient(-x, gamma) * (-alpha * grad * weighting[:, None]))
        return back, None, None, None, None


def _focal_gradient(z: Tensor, gamma: float) -> Tensor:
    """Derivative of sigmoid(z) ** gamma * softplus(z)."""
    p = z.sigmoid()
    return ((1 - p) * F.softplus(z)).mul_(gamma).add_(p).mul_(p.pow_(gamma))


class _Lovasz(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, bins: int, weights: tuple[float, ...]) -> Tensor:
        probabilities = logits.new_empty(logits.shape[1], len(logits))
        for piece, out in zip(logits.split(_AT_ONCE), probabilities.split(_AT_ONCE, 1), strict=True):
            out.copy_(piece.softmax(1).T)
        present = torch.bincount(target, minlength=len(probabilities)).nonzero()[:, 0].tolist()
        target = target.to(torch.uint8)
        weights = weights or (1 / len(present),) * len(probabilities)
        total, inner, gradients = logits.new_zeros(()), torch.zeros_like(probabilities[0]), torch.zeros_like(probabilities)
        for k in present:
            truth = target == k
            error = torch.where(truth, 1 - probabilities[k], probabilities[k])
            gradient = (histogram_weights(error, truth, bins) if bins else sorted_weights(error, truth)).mul_(weights[k])
            total += error.dot(gradient)
            gradients[k] = torch.where(truth, -gradient, gradient)
            inner.addcmul_(gradients[k], probabilities[k])
        # gradient of the softmax, written over its values
        for probability, gradient in zip(probabilities, gradients, strict=True):
            probability.mul_(gradient.sub_(inner))
        ctx.save_for_backward(probabilities)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        (gradients,) = ctx.saved_tensors
        back = gradients.new_empty(gradients.shape[::-1])
        for gradient, out in zip(gradients.split(_AT_ONCE, 1), back.split(_AT_ONCE), strict=True):
            torch.mul(gradient.T, grad, out=out)
        return back, None, None, None


def sorted_weights(error: Float[Tensor, "*K N"], truth: Bool[Tensor, "*K N"]) -> Float[Tensor, "*K N"]:
    """Gradient of the Lovász extension for each class, from errors sorted in descending order.

    It is the increase of the Jaccard loss when one more element is misclassified: 1 / union for a true element, and
    intersection / (union before * union after) for a false one, which enlarges the union.
    """
    values, order = _descending(error, truth)
    hits = values.cumsum(-1, dtype=torch.int32)
    total = hits[..., -1:]
    union = (total + 1 - hits).add_(torch.arange(error.shape[-1], device=error.device, dtype=torch.int32))
    # for a true element the union before it may be 0, but is not used
    steps = torch.where(values.bool(), 1, (total - hits).to(error.dtype).div_(union - 1)).div_(union)
    return torch.empty_like(error).scatter_(-1, order, steps)


def _descending(error: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Truth values from the largest error to the smallest, and their indices.

    Non-negative floats sort like their bits as integers, and integers are sorted by radix sort, which is much faster. Errors are at most 1,
    which leaves one bit for the truth value.
    """
    if error.dtype != torch.float32:
        order = error.argsort(descending=True)
        return truth.gather(-1, order).int(), order
    values, order = torch.add(truth, error.view(torch.int32), alpha=-2).sort()
    return values.bitwise_and_(1), order


def histogram_weights(error: Float[Tensor, "N"], truth: Bool[Tensor, "N"], bins: int) -> Float[Tensor, "N"]:
    """As `sorted_weights`, from a histogram: elements in the same of `bins` equal intervals share one weight per truth value."""
    place = interval(error, bins)
    count = torch.bincount(place, minlength=bins).double()
    hits = torch.bincount(place[truth], minlength=bins).double()
    for_false, for_true = weights_of_intervals(count, hits)
    return torch.where(truth, for_true.to(error.dtype)[place], for_false.to(error.dtype)[place])


def interval(error: Float[Tensor, "*N"], bins: int) -> Int[Tensor, "*N"]:
    """Index of the interval, of `bins` equal ones, that an error in [0, 1] falls into; the largest errors have index 0.

    NaN goes to an arbitrary interval; the loss is NaN anyway.
    """
    return (error * -bins).add_(bins - 1e-3).nan_to_num_(0).clamp_(0, bins - 1).long()


def weights_of_intervals(
    count: Float64[Tensor, "*K N"], hits: Float64[Tensor, "*K N"]
) -> tuple[Float64[Tensor, "*K N"], Float64[Tensor, "*K N"]]:
    """Weights of the false and of the true elements of each interval, from the numbers of its elements and of its true elements."""
    total = hits.sum(-1, keepdim=True)
    wrong_hits, seen = (whole.long().cumsum(-1).to(whole.dtype) for whole in (hits, count))  # integer sums are deterministic on a GPU
    jaccard = _jaccard(wrong_hits, seen, total)
    step = torch.diff(jaccard, prepend=torch.zeros_like(total))
    # In an interval, a true element adds 1 / union and a false one intersection / union^2, both evaluated at its middle.
    union = (total + seen - wrong_hits - (count - hits) / 2).clamp(min=1)
    for_true, for_false = 1 / union, (total - wrong_hits + hits / 2) / union.square()
    scale = step / (hits * for_true + (count - hits) * for_false).clamp(min=1e-12)
    return for_false * scale, for_true * scale


def _jaccard(hits: Tensor, seen: Tensor, total: Tensor) -> Tensor:
    """Jaccard loss if the `seen` elements with the largest errors, `hits` of them true, are misclassified."""
    return 1 - (total - hits) / (total + seen - hits).clamp(min=1)
