"""Evaluation on a GPU: batches prepared by worker processes, and voxels counted on the device. On a CPU neither is faster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from iidrive.core.batch import Batch
from iidrive.core.classes import IGNORE, OCC_CLASSES
from iidrive.core.errors import IIDriveError
from iidrive.data.clips import ClipDataset
from iidrive.runtime.run_folder import device
from iidrive.training.parallel import ParallelConfig
from iidrive.training.prefetch import feed, shared


def batches(clips: ClipDataset, starts: Sequence[int], size: int, workers: int = -1) -> Iterator[tuple[range, Batch]]:
    """Batches of up to `size` samples, beginning at each of `starts`: (rows, batch on the device). `workers` as in `ParallelConfig`.

    Raises:
        IIDriveError: if a sample cannot be read.
    """
    place = device()
    parts, workers = _Parts(clips, size), ParallelConfig(workers=workers).workers_for(place)
    made = feed(parts, starts, workers) if workers else map(parts.made, starts)
    for start, batch in zip(starts, made, strict=True):
        yield parts.rows(start), batch.to(place)


class _Parts(Dataset[Batch | IIDriveError]):
    """Batches by their first row. If a sample cannot be read, the item is the error instead of the batch."""

    def __init__(self, clips: ClipDataset, size: int) -> None:
        self.clips, self.size = clips, size

    def rows(self, start: int) -> range:
        return range(start, min(start + self.size, len(self.clips)))

    def made(self, start: int) -> Batch:
        return self.clips.batch(self.rows(start))

    def __getitem__(self, start: int) -> Batch | IIDriveError:
        try:
            return self.made(start) if get_worker_info() is None else shared(self.made(start))
        except IIDriveError as error:
            return error


def counts_here(labels: Tensor) -> bool:
    """Whether voxels of a tensor are counted on its device. For CPU tensors `scoring.metrics.confusion` is faster."""
    return labels.device.type != "cpu"


def confusion(truth: UInt8[Tensor, "*V"], labels: UInt8[Tensor, "*V"]) -> Int64[Tensor, "18 18"]:
    """Confusion matrix [true, predicted] without voxels of unknown truth, computed on the device without synchronisation."""
    classes = len(OCC_CLASSES)
    unknown = classes * classes
    pair = torch.where(truth == IGNORE, unknown, truth.long() * classes + labels.long()).flatten()
    counts = torch.zeros(unknown + 1, dtype=torch.int64, device=pair.device)
    return counts.scatter_add_(0, pair, torch.ones_like(pair))[:unknown].view(classes, classes)
