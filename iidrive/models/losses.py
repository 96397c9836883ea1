"""Losses over semantic voxels: focal (one against all, weighted by distance), balanced cross entropy, and Lovász-softmax.

A loss is a sum over valid elements divided by a count. Without a count it is the valid elements' own number, which makes a mean. A batch that
is shared out in parts gives each the count of the whole: the parts' losses then add up to the whole's.

Shapes: V voxels in any arrangement, K classes, B samples. Labels 255 are unknown and never count.
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
"""Valid elements of a whole batch, by what is counted: what the terms of a loss are divided by."""


def masked_mean(total: Float[Tensor, ""], count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The mean over `count` valid elements, of which `total` is the sum (or a part of it); 0 where there is none."""
    return total / count.clamp(min=1).to(total.dtype)


def voxel_counts(labels: UInt8[Tensor, "B *V"]) -> dict[str, Tensor]:
    """Known voxels, and frames with any."""
    known = (labels != IGNORE).flatten(1).sum(1)
    return {"voxels": known.sum(), "frames": (known > 0).sum()}


def distance_weight(size: tuple[int, int], device: torch.device) -> Float[Tensor, "X Y"]:
    """1 at the grid's middle rising to 2 at its corner: 1 + |(x, y) - size / 2| / max."""
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
    """Sigmoid focal loss summed over classes, averaged over known voxels (Lin et al. 2017, eq. 5, one class against all)."""
    known = labels != IGNORE
    index, weights = torch.where(known, labels, 0).long(), weight.expand_as(known) * known
    total = focal_sum(logits.reshape(-1, logits.shape[-1]), index.reshape(-1), weights.reshape(-1), alpha, gamma)
    return masked_mean(total, known.sum() if count is None else count)


def class_weights(counts: Int[Array, "K"]) -> tuple[float, ...]:
    """Weights 1 / sqrt(frequency), so that a mean over voxels gives 1; a class rarer than one voxel in 100,000 counts as that rare.

    A class that never occurs has weight 0.
    """
    frequency = counts / counts.sum()
    weights = np.where(counts > 0, 1 / np.sqrt(np.maximum(frequency, 1e-5)), 0.0)
    return tuple((weights / (weights * frequency).sum()).round(6).tolist())


def presence_weights(frames: Int[Array, "K"], of: int) -> tuple[float, ...]:
    """Weights of classes that `frames` of `of` frames hold, for sums over frames: a class then counts alike however few frames hold it.

    1 / (fraction of frames x number of classes); a class in less than one frame of ten counts as in one of ten, one that never occurs has weight 0.
    """
    weights = np.where(frames > 0, of / np.maximum(frames, 0.1 * of), 0.0)
    return tuple((weights / np.count_nonzero(frames)).round(6).tolist())


def balanced_cross_entropy(
    logits: Float[Tensor, "*V K"], labels: UInt8[Tensor, "*V"], weights: tuple[float, ...], count: Tensor | None = None
) -> Float[Tensor, ""]:
    """Softmax cross entropy, every voxel weighted by its class (all alike without weights), averaged over known voxels."""
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
    """Lovász-softmax of every frame by itself, averaged over frames with known voxels: no frame's value depends on who else is in the batch."""
    total = torch.stack([lovasz(one, truth, bins, weights) for one, truth in zip(logits, labels, strict=True)]).sum()
    return masked_mean(total, voxel_counts(labels)["frames"] if count is None else count)


def lovasz(logits: Float[Tensor, "*V K"], labels: UInt8[Tensor, "*V"], bins: int = 0, weights: tuple[float, ...] = ()) -> Float[Tensor, ""]:
    """Lovász-softmax (Berman et al. 2018, algorithm 1) over all known voxels together, mean over the classes that are present.

    With `weights` (one a class, see `presence_weights`) the classes that are present are weighted and summed instead.

    With `bins` > 0 errors are ordered by histogram instead of by sorting: elements whose errors fall into the same of `bins` equal
    intervals share one weight for true and one for false elements. Linear time; the value differs from the exact one by at most 1 / bins.
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
    """`lovasz` for a GPU: all classes together, the absent ones too, and unknown voxels as if they were right. No size depends on the labels."""
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
    """`histogram_weights` of every class."""
    place = interval(error, bins)
    count, hits = (
        error.new_zeros(len(error), bins, dtype=torch.int64).scatter_add_(1, place, some.expand_as(place).long()).double()
        for some in (known, truth)
    )
    for_false, for_true = (weights.to(error.dtype).gather(1, place) for weights in weights_of_intervals(count, hits))
    return torch.where(truth, for_true, for_false)
