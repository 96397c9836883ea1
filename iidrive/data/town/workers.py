"""Parallel generation of scenes in worker processes.

Workers are fresh interpreters that import only the generator. So a calling script needs no `if __name__ == "__main__"`, and a process with
threads or a GPU context is not forked.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict

from iidrive.core.config_io import from_plain
from iidrive.core.errors import DataError
from iidrive.data.town.config import TownConfig
from iidrive.data.town.stored import encode
from iidrive.data.town.world import make_world
from iidrive.runtime.distributed import started

WORTH = 8
"""Minimum number of scenes per worker, because starting one takes as long as making several scenes."""
MOST = 32

START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from iidrive.data.town.workers import serve; serve()"


def usual_processes(scenes: int) -> int:
    """Default number of processes: one per core, with at least `WORTH` scenes each; 1 in a job of several processes."""
    if started() != (1, 1) or multiprocessing.parent_process() is not None:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, scenes // WORTH, MOST))


def from_somewhere(names: Sequence[str]) -> list[str]:
    """The names rotated by an offset that differs between processes, so that processes that share a cache share the work."""
    first = int(len(names) * (os.getpid() * 0.6180339887 % 1.0))
    return [*names[first:], *names[:first]]


def make(
    config: TownConfig, names: Sequence[str], processes: int, made_elsewhere: Callable[[str], bool]
) -> Iterator[tuple[str, bytes | None]]:
    """Yield (name, serialised scene) for each name, in order; None instead of a scene that another process has made meanwhile.

    Raises:
        DataError: for a scene that cannot be generated.
    """
    if processes <= 1 or len(names) <= 1:
        for name in names:
            yield name, None if made_elsewhere(name) else encode(make_world(config, name))
        return
    pool = [_Worker(config) for _ in range(min(processes, len(names)))]
    idle: queue.Queue[_Worker] = queue.Queue()
    for worker in pool:
        idle.put(worker)

    def ask(name: str) -> bytes | None:
        worker = idle.get()
        try:
            return worker.make(name)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(len(pool))
    try:
        for name, content in zip(names, threads.map(ask, names), strict=True):
            # If a worker failed or was killed, the scene is made here, or the error is raised here.
            yield name, content if content is not None else encode(make_world(config, name))
    finally:
        for worker in pool:
            worker.kill()
        threads.shutdown(cancel_futures=True)


class _Worker:
    """A worker process that makes scenes by name."""

    def __init__(self, config: TownConfig) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C goes to the parent only, which ends this process
        )
        self._say(json.dumps(asdict(config)))

    def make(self, name: str) -> bytes | None:
        self._say(name)
        assert self.process.stdout
        length = self.process.stdout.read(8)
        if len(length) < 8:
            return None
        (count,) = struct.unpack("<Q", length)
        content = self.process.stdout.read(count)
        return content if 0 < count == len(content) else None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()

    def _say(self, line: str) -> None:
        assert self.process.stdin
        with suppress(OSError, ValueError):  # the worker has ended; `make` then returns None
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()


def serve() -> None:
    """Main loop of a worker.

    Reads a config and then names, one per line. Writes length (8 bytes, 0 for an error) and bytes of each scene.
    """
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # printed text must not mix with the scenes
    lines = iter(sys.stdin.buffer.readline, b"")
    config = from_plain(TownConfig, json.loads(next(lines)), "TownConfig")
    for line in lines:
        try:
            content = encode(make_world(config, line.decode().strip()))
        except DataError:
            content = b""
        try:
            out.write(struct.pack("<Q", len(content)) + content)
            out.flush()
        except BrokenPipeError:  # the parent process is gone
            os._exit(0)
