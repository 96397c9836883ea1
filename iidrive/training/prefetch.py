"""What one process is fed in training: its share of every step, in parts, made ahead of time by workers."""

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
    """Which samples make which step. It follows from the seed and the step alone: `samples` in all, `batch` a step."""

    seed: int
    batch: int
    samples: int

    def steps(self, first: int, stop: int) -> range:
        """The steps between two numbers of samples seen."""
        return range(first // self.batch, -(-stop // self.batch))


class Steps(Dataset[Step | IIDriveError]):
    """The parts (places of the global batch) of every step that are this process's; a sample that cannot be read is an error in its step's place."""

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
    """The steps (or whatever a data set makes) in order. With workers, each makes whole ones, `ahead` of them before they are needed; on a GPU
    machine in page-locked memory.

    Raises:
        IIDriveError: in the place of a step with a sample that cannot be read.
    """
    more = {"prefetch_factor": ahead} if workers else {}
    pin = torch.cuda.is_available()
    loader = DataLoader(steps, batch_size=None, sampler=which, num_workers=workers, collate_fn=_as_it_is, pin_memory=pin, **more)  # pyright: ignore[reportArgumentType]
    for made in loader:
        if isinstance(made, IIDriveError):
            raise made
        yield made


def shared(part: Batch) -> Batch:
    """The batch in shared memory, from where the training process reads it.

    Left to the queue between the processes, a full shared memory would be an error in a thread that nobody hears of, and the training would
    wait for ever.
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
            f"a batch does not fit into shared memory ({reason}). Give the container more, as with docker's `--shm-size 2g`, or make batches in the "
            "training process: --parallel.workers 0."
        ) from None


def _as_it_is(step: T) -> T:
    return step
