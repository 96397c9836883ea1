"""Number of CPU threads for training: one per core that is free when it starts.

A thread that shares its core with another program delays all other threads, thousands of times a step. On two cores, one of them used by
another program, two threads are a tenth as fast as one. So busy cores are not used.

The number of threads decides the order of floating-point sums and so the last bits of a result. It is stored in run.json, and a resumed run
uses the same number.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import torch

from iidrive.core.errors import ConfigError, DataError
from iidrive.core.untrusted.json_text import parse_json

LOOK_S = 0.3
"""How long core usage is measured, seconds."""
SPARE = 0.25
"""A core counts as free if other programs use it for less than this fraction of the time."""


def use(asked: int, run: str | Path | None = None, size: int = 1, here: int = 1) -> int:
    """Set PyTorch's number of threads and return it.

    Args:
        asked: number of threads; 0 to choose one. With a GPU, 0 changes nothing.
        run: folder of the run that is resumed. Its number of threads is used again if it had as many processes and this machine has the
            cores. Otherwise OMP_NUM_THREADS decides if it is set, and the number of free cores if not.
        size: number of processes that train together.
        here: how many of them are on this machine.

    Raises:
        ConfigError: if `asked` is negative.
    """
    if asked < 0:
        raise ConfigError(f"--threads must be a number of threads, or 0 to choose one automatically; found {asked}.")
    if not asked and torch.cuda.is_available():
        return torch.get_num_threads()
    wanted = asked or (recorded(Path(run), size, here) if run else 0) or suitable(here, torch.get_num_threads())
    if wanted != torch.get_num_threads():
        torch.set_num_threads(wanted)
    return wanted


def suitable(processes: int, most: int) -> int:
    """Threads per process if `processes` share this machine's free cores, at most `most`. If OMP_NUM_THREADS is set, it is kept."""
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    free = None if torch.cuda.is_available() else free_cores()
    return max(1, (most if free is None else min(most, math.floor(free + SPARE))) // processes)


def recorded(run: Path, size: int, here: int) -> int:
    """Number of threads in a run's newest run.json or run-N.json; 0 if it is not stored or does not fit this machine and these
    processes.
    """
    files = sorted(run.glob("run*.json"), key=lambda path: (len(path.name), path.name))
    try:
        found: Any = parse_json(files[-1].read_text(encoding="utf-8"), str(files[-1])) if files else {}
        threads, shared = found["environment"]["threads"], found["processes"]
    except (DataError, OSError, UnicodeDecodeError, KeyError, TypeError):
        return 0
    fits = isinstance(threads, int) and shared == size and 0 < threads * here <= max(os.cpu_count() or 1, here)
    return threads if fits else 0


def free_cores(seconds: float = LOOK_S) -> float | None:
    """Average number of idle cores over `seconds`, among those that this process may use; None if the system does not report it."""
    before = _spent()
    if before is None:
        return None
    time.sleep(seconds)
    after = _spent() or before
    free = 0.0
    for core, (idle, whole) in after.items():
        passed = whole - before[core][1] if core in before else 0
        free += (idle - before[core][0]) / passed if passed > 0 else 1.0
    return free


def _spent() -> dict[int, tuple[int, int]] | None:
    """Idle time and total time of each core that this process may use, in clock ticks since boot."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        mine = os.sched_getaffinity(0)
    except (OSError, AttributeError):  # not Linux
        return None
    found = {}
    for name, *numbers in (line.split() for line in lines if line.startswith("cpu") and line[3].isdecimal()):
        if int(name[3:]) in mine:
            ticks = [int(number) for number in numbers[:8]]
            found[int(name[3:])] = ticks[3] + ticks[4], sum(ticks)
    return found or None
