"""The processes that share one job: who starts them, which device each has, and how they agree.

    iidrive train world RUN --devices 2                            starts two processes on this machine
    torchrun --nproc-per-node 2 -m iidrive train world RUN         the same (name the run folder by --out: torchrun wants --run for itself)
    srun --ntasks-per-node 8 iidrive train world RUN               one process a task of a SLURM job, on any number of nodes

Lightning Fabric finds out which of these it is, gives every process its device and connects them (NCCL between GPUs, gloo between CPUs).
Processes with GPUs have a second connection, by gloo, for all that lies in the host's memory: no GPU is waited for to agree on something, and
a process that is gone is noticed at once.
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
PATIENCE_S = 1800
"""How long a process waits for the others: the longest that one may be alone at work, as when it writes a checkpoint or validates."""
GPU_PATIENCE_S = 600
"""How long a GPU waits for the others' numbers. All have agreed to begin a step before: what lies between is a pass, or what torch.compile takes."""
GRACE_S = 300
"""How long a stopped job may take to finish its step and write a checkpoint before it is killed."""


class SharedError(IIDriveError):
    """What went wrong in one process, raised in all: the first one says it."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of one job, as the one with this `rank` sees them. Alone, everything here is done at once.

    `host` connects them by gloo, for what lies in the host's memory, where `fabric` connects GPUs; None: `fabric` does both.
    """

    rank: int = 0
    size: int = 1
    fabric: Fabric | None = None
    host: torch.distributed.ProcessGroup | None = None

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes the files and says what there is to say."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each."""
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
        """The value of rank 0, in every process."""
        if self.fabric is None:
            return value
        values = [value]
        with _connected(self):
            torch.distributed.broadcast_object_list(values, group=self.host)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """One value of every process, by rank."""
        if self.fabric is None:
            return [value]
        values: list[Any] = [None] * self.size
        with _connected(self):
            torch.distributed.all_gather_object(values, value, group=self.host)
        return values

    def barrier(self) -> None:
        """Until everyone is here."""
        if self.fabric is not None:
            with _connected(self):
                if self.host is None:
                    self.fabric.barrier()
                else:
                    torch.distributed.barrier(group=self.host)

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of what is to be done."""
        return items[self.rank :: self.size]

    @contextmanager
    def raise_on_all_ranks(self) -> Iterator[None]:
        """A block that may fail in one process only: an IIDriveError or OSError of any process ends all of them."""
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
    except torch.OutOfMemoryError:  # a RuntimeError too, but the others are there
        raise
    except RuntimeError as error:
        why = re.sub(r"^\[.*?\] |\. This is typically.*", "", str(error).splitlines()[0])
        raise IIDriveError(
            f"process {process_group.rank} of {process_group.size} lost the others: one of them ended or could not be reached ({why}). "
            "Checkpoints written so far are whole; `--resume on` goes on from the newest."
        ) from None


def leave() -> None:
    """Close the connection to the others, if there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def join(devices: int = 0) -> ProcessGroup:
    """The process group that this process belongs to; a process that was not started as one of several is alone.

    Raises:
        ConfigError: if `devices` (0: as many as there are) is not the number of processes that were started on this machine.
    """
    if devices < 0:
        raise ConfigError(f"--devices is a number of processes; found {devices}.")
    local, nodes = started()
    if devices not in (0, local):
        raise ConfigError(
            f"--devices {devices}, but {local} processes a machine were started (by torchrun or SLURM). Leave --devices out, or start {devices}."
        )
    if local * nodes == 1:
        return ProcessGroup()
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    for name in ("lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    on_gpu = torch.cuda.is_available()
    places = gpus_of(local) if on_gpu else [torch.device("cpu")] * local
    seconds = GPU_PATIENCE_S if on_gpu else PATIENCE_S
    backend = "nccl" if on_gpu else "gloo"
    strategy = DDPStrategy(parallel_devices=places, process_group_backend=backend, timeout=timedelta(seconds=seconds))
    try:
        fabric = Fabric(devices=len(set(places)) if on_gpu else local, num_nodes=nodes, strategy=strategy)
        fabric.launch()
        host = torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE_S)) if on_gpu else None
    except (RuntimeError, ValueError) as error:  # Fabric's word for a job that was started in a way that it cannot use
        raise ConfigError(f"{local * nodes} processes were started, but cannot be connected: {error}") from None
    assert host is None or isinstance(host, torch.distributed.ProcessGroup)
    return ProcessGroup(fabric.global_rank, fabric.world_size, fabric, host)


def gpus_of(processes: int) -> list[torch.device]:
    """The GPU of each process on this machine, as that process counts them. SLURM may show every process its own GPU alone: it is everybody's first.

    Raises:
        ConfigError: if there are too few.
    """
    seen = torch.cuda.device_count()
    if seen >= processes:
        return [torch.device("cuda", k) for k in range(processes)]
    if seen == 1 and "SLURM_PROCID" in os.environ and "RANK" not in os.environ:
        return [torch.device("cuda", 0)] * processes
    raise ConfigError(
        f"{processes} processes a machine were started, but they see {seen} GPUs. Start as many, or hide the GPUs (CUDA_VISIBLE_DEVICES=)."
    )


def started() -> tuple[int, int]:
    """Processes a machine, and machines, that torchrun or SLURM started for this job: (1, 1) if neither did.

    Raises:
        ConfigError: if the environment holds no such numbers.
    """
    environment = os.environ

    def number(name: str, default: str = "") -> int:
        text = environment.get(name, default)
        if not (text.isascii() and text.isdecimal() and int(text[:9]) > 0 and len(text) < 9):
            raise ConfigError(
                f"the environment says {name}={printable(text, 40)}; expected a number of 1 or more. Unset it, or start anew."
            )
        return int(text)

    if "RANK" in environment and "WORLD_SIZE" in environment:
        size, rank = number("WORLD_SIZE"), environment["RANK"]
        local = number("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"])
        if not (rank.isascii() and rank.isdecimal() and len(rank) < 9 and int(rank) < size):
            raise ConfigError(
                f"the environment says RANK={printable(rank, 40)}; expected 0 to {size - 1}. Unset it, or start with torchrun."
            )
        if size % local:
            raise ConfigError(f"the environment says WORLD_SIZE={size} and LOCAL_WORLD_SIZE={local}, which does not divide it; start anew.")
        return local, size // local
    if "SLURM_PROCID" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        tasks, nodes = number("SLURM_NTASKS", "1"), number("SLURM_NNODES", "1")
        if tasks % nodes:
            raise ConfigError(
                f"the environment says SLURM_NTASKS={tasks} and SLURM_NNODES={nodes}: the same number of tasks a node is needed."
            )
        return tasks // nodes, nodes
    return 1, 1


def to_be_started(devices: int) -> bool:
    """Whether `devices` processes are asked for and nobody has started them yet."""
    return devices > 1 and started() == (1, 1)


def start(devices: int, arguments: Sequence[str]) -> NoReturn:
    """Run `iidrive ARGUMENTS` in `devices` processes on this machine, and exit with their status. One that dies ends all."""
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
                "Checkpoints written so far are whole; `--resume on` goes on from the newest.",
                file=sys.stderr,
            )
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    sys.exit(0)
