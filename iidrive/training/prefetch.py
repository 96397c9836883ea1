"""Data loading for training: the micro-batches of one process, made in advance by workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from iidrive.core.batch import Batch
from iidrive.core.errors import DataError, IIDriveError
from iidrive.data.clips import ClipDataset, draws

Step = list[Batch]
T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """Assignment of samples to steps, which depends on the seed and the step only. `samples` in total, `batch` per step."""

    seed: int
    batch: int
    samples: int

    def steps(self, first: int, stop: int) -> range:
        """The steps from `first` to `stop` samples seen."""
        return range(first // self.batch, -(-stop // self.batch))


class Steps(Dataset[Step | IIDriveError]):
    """Dataset of steps: item k holds the micro-batches of this process in step k, or the error if a sample of it cannot be read.

    `parts` are the indices in the global batch of each micro-batch.
    """

    def __init__(self, clips: ClipDataset, order_: Order, parts: Sequence[range]) -> None:
        self.clips, self.order, self.parts = clips, order_, parts

    def __getitem__(self, step: int) -> Step | IIDriveError:
        try:
            made = [self._part(step, part) for part in self.parts]
            return made if get_worker_info() is None else [shared(part) for part in made]
        except IIDriveError as error:
            return error

    def tokens(self, step: int) -> list[str]:
        """Sample tokens of a step's global batch."""
        rows = self.clips.order(self.order.seed, step * self.order.batch, self.order.batch)
        return [self.clips.token(int(row)) for row in rows]

    def _part(self, step: int, part: range) -> Batch:
        start = step * self.order.batch + part.start
        rows = self.clips.order(self.order.seed, start, len(part)).tolist()
        numbers = draws(self.order.seed, start, len(part), self.clips.spec.future)
        return self.clips.batch(rows, numbers, step * self.order.batch / self.order.samples, part)


def feed(steps: Dataset[T | IIDriveError], which: Sequence[int], workers: int = 0, ahead: int = 2) -> Iterator[T]:
    """Iterate over the items `which` of a dataset, in order, in page-locked memory on a machine with a GPU.

    Each of the `workers` processes makes complete items, `ahead` of them in advance.

    Raises:
        IIDriveError: if the dataset returns it as an item.
    """
    more = {"prefetch_factor": ahead} if workers else {}
    pin = torch.cuda.is_available()
    loader = DataLoader(steps, batch_size=None, sampler=which, num_workers=workers, collate_fn=_as_it_is, pin_memory=pin, **more)  # pyright: ignore[reportArgumentType]
    for made in loader:
        if isinstance(made, IIDriveError):
            raise made
        yield made


def shared(part: Batch) -> Batch:
    """Move a batch to shared memory, from which the training process reads it.

    If this were left to the queue between the processes, a full shared memory would raise in a background thread, and the training would
    hang.
    """
    try:
        for side in (part.inputs, part.targets):
            for value in vars(side).values():
                if isinstance(value, torch.Tensor):
                    value.share_memory_()
        return part
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"a batch does not fit into shared memory ({reason}). Give the container more, for example with docker's `--shm-size 2g`, or load data "
            "in the training process with --parallel.workers 0."
        ) from None


def _as_it_is(step: T) -> T:
    return step
