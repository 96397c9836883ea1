"""How many threads a training on a CPU computes with: as many as there are free cores when it starts.

A thread that shares its core with another program makes all others wait for it, thousands of times a step: two threads on two cores, one of them busy
elsewhere, are a tenth as fast as one thread. So cores that others keep busy are left to them.

The number of threads decides in which order numbers are added up, that is, the last bits of a result. run.json says it, and whoever goes on with
a run takes the number of before.
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
"""How long is looked which cores are busy."""
SPARE = 0.25
"""A core that others use for less than this share of the time counts as free."""


def use(asked: int, run: str | Path | None = None, size: int = 1, here: int = 1) -> int:
    """Compute with `asked` threads (0: a number that suits) from here on; returns how many they are. On a GPU only what is asked for is done.

    `size` processes train together, `here` of them on this machine. `run` is the folder of a run that is gone on with: its number is taken again,
    if as many processes share it and this machine has the cores. Else OMP_NUM_THREADS decides, where it is set, and then the free cores.

    Raises:
        ConfigError: for a number below 0.
    """
    if asked < 0:
        raise ConfigError(f"--threads is a number of threads, or 0 for one that suits; found {asked}.")
    if not asked and torch.cuda.is_available():
        return torch.get_num_threads()
    wanted = asked or (recorded(Path(run), size, here) if run else 0) or suitable(here, torch.get_num_threads())
    if wanted != torch.get_num_threads():
        torch.set_num_threads(wanted)
    return wanted


def suitable(processes: int, most: int) -> int:
    """Threads for each of some processes that share this machine's free cores, `most` of them. What OMP_NUM_THREADS says is left as it is."""
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    free = None if torch.cuda.is_available() else free_cores()
    return max(1, (most if free is None else min(most, math.floor(free + SPARE))) // processes)


def recorded(run: Path, size: int, here: int) -> int:
    """The threads that a run was computed with last, by its run.json or run-N.json; 0 if it does not fit here, or does not say."""
    files = sorted(run.glob("run*.json"), key=lambda path: (len(path.name), path.name))
    try:
        found: Any = parse_json(files[-1].read_text(encoding="utf-8"), str(files[-1])) if files else {}
        threads, shared = found["environment"]["threads"], found["processes"]
    except (DataError, OSError, UnicodeDecodeError, KeyError, TypeError):
        return 0
    fits = isinstance(threads, int) and shared == size and 0 < threads * here <= max(os.cpu_count() or 1, here)
    return threads if fits else 0


def free_cores(seconds: float = LOOK_S) -> float | None:
    """Cores that nobody used while this process slept for some seconds, of those that it may use; None where the system does not tell."""
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
    """Idle and all time of every core that this process may use, in ticks since the start of the system."""
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
