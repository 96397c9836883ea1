"""Several processes that run one function together, connected as torchrun would connect them, on this machine."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess

import torch

from iidrive.runtime import distributed

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["iidrive.pipeline.train", "iidrive.pipeline.demo", "lightning_fabric", "torch.distributed"])


def start(function: Callable[..., object], *arguments: object) -> ForkServerProcess:
    """One process, which starts fast: a server that has imported everything is copied. It uses one thread."""
    process = CONTEXT.Process(target=_alone, args=(function, *arguments))
    process.start()
    return process


def run_together(size: int, function: Callable[..., object], *arguments: object) -> None:
    """`function(process_group, *arguments)` in `size` processes; raises if one of them fails."""
    run_members(size, _member, function, *arguments)


def run_members(size: int, member: Callable[..., object], *arguments: object) -> None:
    """`member(rank, size, port, *arguments)` in `size` processes, which may connect by `connect`; raises if one of them fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [CONTEXT.Process(target=member, args=(rank, size, port, *arguments)) for rank in range(size)]
    for process in started:
        process.start()
    for process in started:
        process.join(600)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    assert codes == [0] * size, f"exit codes {codes}"


def _alone(function: Callable[..., object], *arguments: object) -> None:
    torch.set_num_threads(1)
    function(*arguments)


def connect(rank: int, size: int, port: int) -> distributed.ProcessGroup:
    """Join the other processes as torchrun would have it. It uses one thread."""
    torch.set_num_threads(1)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "GROUP_RANK": 0, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in numbers.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}
    process_group = distributed.join()
    assert (process_group.rank, process_group.size) == (rank, size)
    return process_group


def _member(rank: int, size: int, port: int, function: Callable[..., object], *arguments: object) -> None:
    function(connect(rank, size, port), *arguments)
    distributed.leave()
