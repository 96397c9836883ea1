"""Losses over semantic voxels: focal (one-vs-all, weighted by distance), balanced cross entropy, and Lovász-softmax.

A loss is a sum over valid elements divided by a count. The default count is the number of valid elements, which gives a mean. When a batch
is split, pass each part the count of the whole batch; the losses of the parts then add up to the loss of the whole.

Shapes: V voxels (any shape), K classes, B samples. Label 255 is unknown and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from iidrive.core.classes import IGNORE
from iidrive.models import cpu
from iidrive.models.cpu.voxel_losses import exact, focal_sum, interval, lovasz_of_classes, sorted_weights, weights_of_intervals
from iidrive.models.layers import constant

Array = np.ndarray
Counts = Mapping[str, Tensor]
"""Numbers of valid elements in the whole batch, by name. The terms of a loss are divided by them."""


def masked_mean(total: Float[Tensor, ""], count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """`total` / `count`; 0 if `count` is 0. `total` is the sum over valid elements, or over a part of them."""
    return total / count.clamp(min=1).to(total.dtype)


def voxel_counts(labels: UInt8[Tensor, "B *V"]) -> dict[str, Tensor]:
    """Number of known voxels, and of frames with at least one."""
    known = (labels != IGNORE).flatten(1).sum(1)
    return {"voxels": known.sum(), "frames": (known > 0).sum()}


def distance_weight(size: tuple[int, int], device: torch.device) -> Float[Tensor, "X Y"]:
    """Weights from 1 at the centre of the grid to 2 at its corners: 1 + |(x, y) - size / 2| / max."""
    x = torch.arange(size[0], device=device, dtype=torch.float32) - size[0] / 2
    y = torch.arange(size[1], device=device, dtype=torch.float32) - size[1] / 2
    distance = (x[:, None].square() + y[None].square()).sqrt()
    return 1 + distance / distance.max()


def focal(
    logits: Float[Tensor, "*V K"],
    labels: UInt8[Tensor, "*V"],
    weight: Float[Tensor, "*V"],
    count: Tensor | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Tensor, ""]:
    """Sigmoid focal loss (Lin et al. 2017, eq. 5, one-vs-all), summed over classes and averaged over known voxels."""
    known = labels != IGNORE
    index, weights = torch.where(known, labels, 0).long(), weight.expand_as(known) * known
    total = focal_sum(logits.reshape(-1, logits.shape[-1]), index.reshape(-1), weights.reshape(-1), alpha, gamma)
    return masked_mean(total, known.sum() if count is None else count)


def class_weights(counts: Int[Array, "K"]) -> tuple[float, ...]:
    """Class weights proportional to 1 / sqrt(frequency), with a mean of 1 over voxels.

    Frequencies below one voxel in 100,000 are raised to that value. A class that never occurs has weight 0.
    """
    frequency = counts / counts.sum()
    weights = np.where(counts > 0, 1 / np.sqrt(np.maximum(frequency, 1e-5)), 0.0)
    return tuple((weights / (weights * frequency).sum()).round(6).tolist())


def presence_weights(frames: Int[Array, "K"], of: int) -> tuple[float, ...]:
    """Class weights 1 / (fraction of frames with the class x number of classes), for sums over frames.

    They balance classes that occur in few frames. Fractions below 0.1 are raised to 0.1. A class that never occurs has weight 0.

    Args:
        frames: (K,) number of frames that contain each class.
        of: total number of frames.
    """
    weights = np.where(frames > 0, of / np.maximum(frames, 0.1 * of), 0.0)
    return tuple((weights / np.count_nonzero(frames)).round(6).tolist())


def balanced_cross_entropy(
    logits: Float[Tensor, "*V K"], labels: UInt8[Tensor, "*V"], weights: tuple[float, ...], count: Tensor | None = None
) -> Float[Tensor, ""]:
    """Softmax cross entropy, weighted by class (unweighted if `weights` is empty), averaged over known voxels."""
    known = labels != IGNORE
    target = torch.where(known, labels.long(), -100).reshape(-1)
    table = constant(weights or (1.0,) * logits.shape[-1], logits)
    total = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), target, weight=table, ignore_index=-100, reduction="sum")
    return masked_mean(total, known.sum() if count is None else count)


def lovasz_by_frame(
    logits: Float[Tensor, "B *V K"],
    labels: UInt8[Tensor, "B *V"],
    bins: int = 0,
    count: Tensor | None = None,
    weights: tuple[float, ...] = (),
) -> Float[Tensor, ""]:
    """Lovász-softmax of each frame separately, averaged over frames with known voxels, so that it does not depend on the batch."""
    total = torch.stack([lovasz(one, truth, bins, weights) for one, truth in zip(logits, labels, strict=True)]).sum()
    return masked_mean(total, voxel_counts(labels)["frames"] if count is None else count)


def lovasz(logits: Float[Tensor, "*V K"], labels: UInt8[Tensor, "*V"], bins: int = 0, weights: tuple[float, ...] = ()) -> Float[Tensor, ""]:
    """Lovász-softmax (Berman et al. 2018, algorithm 1) over all known voxels, averaged over the classes that are present.

    Args:
        logits: (*V,K) logits.
        labels: (*V) class labels; 255 is ignored.
        bins: if above 0, errors are ordered by a histogram with this many equal bins instead of sorting. All true elements of a bin have
            the same weight, and so do all false ones. This takes linear time and differs from the exact value by at most 1 / bins.
        weights: one weight per class (see `presence_weights`) for a weighted sum over present classes; empty for the mean.
    """
    known = labels != IGNORE
    if not cpu.pays_for(logits):
        return _lovasz_at_once(exact(logits).flatten(0, -2), labels.flatten(), known.flatten(), bins, weights)
    everywhere = bool(known.all())
    target = (labels if everywhere else labels[known]).reshape(-1).long()
    if not len(target):
        return logits.sum() * 0.0
    return lovasz_of_classes((logits if everywhere else logits[known]).reshape(-1, logits.shape[-1]), target, bins, weights)


def _lovasz_at_once(
    logits: Float[Tensor, "V K"], labels: UInt8[Tensor, "V"], known: Bool[Tensor, "V"], bins: int, weights: tuple[float, ...]
) -> Float[Tensor, ""]:
    """`lovasz` for a GPU: all classes at once, including absent ones, and unknown voxels with an error of 0.

    No shape depends on the labels.
    """
    probabilities = logits.softmax(1).T
    truth = (labels == torch.arange(len(probabilities), device=labels.device)[:, None]) & known
    error = torch.where(known, torch.where(truth, 1 - probabilities, probabilities), 0.0)
    present = truth.any(1)
    with torch.no_grad():
        gradient = _counted_weights(error, truth, known, bins) if bins else sorted_weights(error, truth)
        gradient.masked_fill_(~present[:, None], 0.0)
    share = constant(weights, error) if weights else 1 / present.sum().clamp(min=1).to(error.dtype)
    return ((error * gradient).sum(1) * share).sum()


def _counted_weights(error: Float[Tensor, "K V"], truth: Bool[Tensor, "K V"], known: Bool[Tensor, "V"], bins: int) -> Float[Tensor, "K V"]:
    """`histogram_weights` of all classes."""
    place = interval(error, bins)
    count, hits = (
        error.new_zeros(len(error), bins, dtype=torch.int64).scatter_add_(1, place, some.expand_as(place).long()).double()
        for some in (known, truth)
    )
    for_false, for_true = (weights.to(error.dtype).gather(1, place) for weights in weights_of_intervals(count, hits))
    return torch.where(truth, for_true, for_false)
