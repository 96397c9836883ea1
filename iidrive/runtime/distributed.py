"""Process groups: how the processes of a job are started, which device each uses, and how they communicate.

    iidrive train world RUN --devices 2                            starts two processes on this machine
    torchrun --nproc-per-node 2 -m iidrive train world RUN         the same (use --out for the run folder: torchrun takes --run for itself)
    srun --ntasks-per-node 8 iidrive train world RUN               one process per SLURM task, on any number of nodes

Lightning Fabric detects which of these is used, assigns devices and connects the processes (NCCL between GPUs, gloo between CPUs).
Processes with GPUs have a second, gloo process group for CPU tensors and Python objects. It needs no GPU synchronisation, and it notices at
once when a process has died.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from torch import Tensor

from iidrive.core.errors import ConfigError, IIDriveError
from iidrive.core.text import printable
from iidrive.runtime import threads

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")
HOST_TIMEOUT_S = 1800
"""Timeout of gloo collectives, seconds. It covers the longest work of a single rank, such as writing a checkpoint or validating."""
GPU_TIMEOUT_S = 600
"""Timeout of NCCL collectives, seconds. All ranks agree to begin a step first, so it covers one pass, or compilation by torch.compile."""
GRACE_S = 300
"""Seconds that a stopped job has to finish its step and write a checkpoint before it is killed."""


class SharedError(IIDriveError):
    """Raised on a rank because another rank failed. The rank that failed prints its own error."""


@dataclass(frozen=True)
class ProcessGroup:
    """The process group of a job. With a single process, every method returns immediately.

    Attributes:
        rank: global rank of this process.
        size: number of processes.
        fabric: connects the devices; None for a single process.
        host: gloo group for CPU tensors and Python objects if `fabric` connects GPUs; None if `fabric` does both.
    """

    rank: int = 0
    size: int = 1
    fabric: Fabric | None = None
    host: torch.distributed.ProcessGroup | None = None

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """All-reduce: the sum over all ranks, with the same bits on each."""
        if self.fabric is None:
            return values
        with _connected(self):
            if self.host is not None and values.device.type == "cpu":
                told = values.clone()
                torch.distributed.all_reduce(told, group=self.host)
                return told
            total = self.fabric.all_reduce(values.to(self.fabric.device), reduce_op="sum")
            assert isinstance(total, Tensor)
            return total.to(values.device)

    def broadcast(self, value: T) -> T:
        """The value of rank 0, on every rank."""
        if self.fabric is None:
            return value
        values = [value]
        with _connected(self):
            torch.distributed.broadcast_object_list(values, group=self.host)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in order of rank."""
        if self.fabric is None:
            return [value]
        values: list[Any] = [None] * self.size
        with _connected(self):
            torch.distributed.all_gather_object(values, value, group=self.host)
        return values

    def barrier(self) -> None:
        """Wait until all ranks have reached this call."""
        if self.fabric is not None:
            with _connected(self):
                if self.host is None:
                    self.fabric.barrier()
                else:
                    torch.distributed.barrier(group=self.host)

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """The items of this rank: every `size`-th one, starting at `rank`."""
        return items[self.rank :: self.size]

    @contextmanager
    def raise_on_all_ranks(self) -> Iterator[None]:
        """Context manager: if any rank raises an IIDriveError or OSError in the block, all ranks raise."""
        own: Exception | None = None
        try:
            yield
        except (IIDriveError, OSError) as error:
            own = error
        problems = [p for p in self.gather(str(own or "")) if p]
        if own is not None:
            raise own
        if problems:
            raise SharedError(problems[0])


@contextmanager
def _connected(process_group: ProcessGroup) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:  # also a RuntimeError, but the connection is intact
        raise
    except RuntimeError as error:
        why = re.sub(r"^\[.*?\] |\. This is typically.*", "", str(error).splitlines()[0])
        raise IIDriveError(
            f"process {process_group.rank} of {process_group.size} lost the others: one of them ended or could not be reached ({why}). "
            "The checkpoints written so far are complete; continue from the newest with `--resume on`."
        ) from None


def leave() -> None:
    """Destroy the process group, if there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def join(devices: int = 0) -> ProcessGroup:
    """Join the process group that torchrun, SLURM or `start` made. Without one, the group has this process only.

    Raises:
        ConfigError: if `devices` (0 for any number) differs from the number of processes started on this machine.
    """
    if devices < 0:
        raise ConfigError(f"--devices is a number of processes; found {devices}.")
    local, nodes = started()
    if devices not in (0, local):
        raise ConfigError(
            f"--devices {devices}, but torchrun or SLURM started {local} processes per machine. Leave --devices out, or start {devices}."
        )
    if local * nodes == 1:
        return ProcessGroup()
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    for name in ("lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    on_gpu = torch.cuda.is_available()
    places = gpus_of(local) if on_gpu else [torch.device("cpu")] * local
    seconds = GPU_TIMEOUT_S if on_gpu else HOST_TIMEOUT_S
    backend = "nccl" if on_gpu else "gloo"
    strategy = DDPStrategy(parallel_devices=places, process_group_backend=backend, timeout=timedelta(seconds=seconds))
    try:
        fabric = Fabric(devices=len(set(places)) if on_gpu else local, num_nodes=nodes, strategy=strategy)
        fabric.launch()
        host = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=HOST_TIMEOUT_S)) if on_gpu else None
    except (RuntimeError, ValueError) as error:  # Fabric cannot use the way in which the job was started
        raise ConfigError(f"{local * nodes} processes were started, but cannot be connected: {error}") from None
    assert host is None or isinstance(host, torch.distributed.ProcessGroup)
    return ProcessGroup(fabric.global_rank, fabric.world_size, fabric, host)


def gpus_of(processes: int) -> list[torch.device]:
    """The GPU of each process on this machine. If SLURM shows each process only its own GPU, every process uses `cuda:0`.

    Raises:
        ConfigError: if there are too few GPUs.
    """
    seen = torch.cuda.device_count()
    if seen >= processes:
        return [torch.device("cuda", k) for k in range(processes)]
    if seen == 1 and "SLURM_PROCID" in os.environ and "RANK" not in os.environ:
        return [torch.device("cuda", 0)] * processes
    raise ConfigError(
        f"{processes} processes per machine were started, but {seen} GPUs are visible. Start one process per GPU, or hide the GPUs "
        "(CUDA_VISIBLE_DEVICES=)."
    )


def started() -> tuple[int, int]:
    """Processes per machine and number of machines, as started by torchrun or SLURM; (1, 1) if neither did.

    Raises:
        ConfigError: if their environment variables are invalid.
    """
    environment = os.environ

    def number(name: str, default: str = "") -> int:
        text = environment.get(name, default)
        if not (text.isascii() and text.isdecimal() and int(text[:9]) > 0 and len(text) < 9):
            raise ConfigError(
                f"the environment has {name}={printable(text, 40)}; expected an integer of 1 or more. Unset it, or start the job again."
            )
        return int(text)

    if "RANK" in environment and "WORLD_SIZE" in environment:
        size, rank = number("WORLD_SIZE"), environment["RANK"]
        local = number("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"])
        if not (rank.isascii() and rank.isdecimal() and len(rank) < 9 and int(rank) < size):
            raise ConfigError(
                f"the environment has RANK={printable(rank, 40)}; expected 0 to {size - 1}. Unset it, or start with torchrun."
            )
        if size % local:
            raise ConfigError(
                f"the environment has WORLD_SIZE={size} and LOCAL_WORLD_SIZE={local}, which does not divide it. Start the job again."
            )
        return local, size // local
    if "SLURM_PROCID" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        tasks, nodes = number("SLURM_NTASKS", "1"), number("SLURM_NNODES", "1")
        if tasks % nodes:
            raise ConfigError(
                f"the environment has SLURM_NTASKS={tasks} and SLURM_NNODES={nodes}, but every node must run the same number of tasks. "
                "Set --ntasks-per-node."
            )
        return tasks // nodes, nodes
    return 1, 1


def to_be_started(devices: int) -> bool:
    """Whether `devices` processes are asked for and not started yet."""
    return devices > 1 and started() == (1, 1)


def start(devices: int, arguments: Sequence[str]) -> NoReturn:
    """Run `iidrive ARGUMENTS` in `devices` processes on this machine and exit with their status. If one dies, all are stopped."""
    if torch.cuda.is_available() and devices > torch.cuda.device_count():
        raise ConfigError(f"--devices {devices}, but this machine has {torch.cuda.device_count()} GPUs.")
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads.suitable(devices, os.cpu_count() or 1)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
        shutdown_timeout=GRACE_S,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "iidrive", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            print(
                f"iidrive: process {rank} of {devices} was killed by {name}{hint}; the others were stopped. "
                "The checkpoints written so far are complete; continue from the newest with `--resume on`.",
                file=sys.stderr,
            )
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    sys.exit(0)
