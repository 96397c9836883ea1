"""Work in another process while this one goes on, so that both use the cores that threads use badly."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def beside(work: Callable[..., object], *arguments: object) -> Iterator[Callable[[], None]]:
    """Run `work(*arguments)` in another process, which gets half of the threads. Yields a function that waits for it.

    The work keeps what it finds in files. It prints nothing, and its errors are not reported: whoever needs a file that is missing must make
    it, and meets the same error. With a single thread, nothing is run. `work` and its arguments must be importable and picklable.
    """
    threads = torch.get_num_threads()
    if threads < 2:
        yield lambda: None
        return
    half = threads // 2
    other = multiprocessing.get_context("spawn").Process(target=_quietly, args=(half, work, *arguments), daemon=True)
    other.start()
    torch.set_num_threads(threads - half)

    def wait() -> None:
        other.join()
        torch.set_num_threads(threads)

    try:
        yield wait
    finally:
        other.terminate()
        wait()


def _quietly(threads: int, work: Callable[..., object], *arguments: object) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    torch.set_num_threads(threads)
    work(*arguments)
