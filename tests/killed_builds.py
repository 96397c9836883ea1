"""Builds of a token cache that are killed, resumed, and run beside each other; run by test_tokens.py in a process of its own.

Every build must end in the bytes of one that nobody disturbed, and whoever reads meanwhile must meet whole scenes or a DataError.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from small_scene import straight_scene

from iidrive.core.errors import DataError
from iidrive.data.tokens import TokenCache, build

CODES = 13269
NAMES = [f"scene-{i}" for i in range(5)]


class Straights:
    """A source with only the members that `build` uses."""

    occupancy_source = "labels"

    def identity(self):
        return {"name": "straights"}

    def scene(self, name):
        return straight_scene(6, name=name)


def codes_of(scene):
    return np.random.default_rng(int(scene.name[-1])).integers(0, 512, (len(scene), CODES))


def write(folder: Path, names=NAMES) -> None:
    build(Straights(), names, codes_of, folder, "aa", 512, CODES)


def start(folder: Path, prepare=lambda: None, names=NAMES) -> int:
    """Process id of a child that builds."""
    pid = os.fork()
    if pid:
        return pid
    try:
        prepare()
        write(folder, names)
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(number: int, moment: str):
    """What makes a child die at its write `number`: half way through, before the renaming or after it."""
    left = [number]
    write_bytes, replace = Path.write_bytes, os.replace

    def writes(path: Path, content: bytes) -> int:
        if left[0] == 0 and moment == "half":
            write_bytes(path, content[: len(content) // 2])
            die()
        return write_bytes(path, content)

    def replaces(source: Path, target: Path) -> None:
        if left[0] == 0 and moment == "before":
            die()
        replace(source, target)
        if left[0] == 0:
            die()
        left[0] -= 1

    def prepare() -> None:
        Path.write_bytes, os.replace = writes, replaces

    return prepare


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def readable(folder: Path) -> int:
    """Number of readable scenes. Anything other than complete scenes and DataErrors is a failure."""
    whole = 0
    for name in NAMES:
        try:
            codes = TokenCache(folder)(name, np.arange(1, 4))
        except DataError as error:
            if "no token" not in str(error):
                raise
            continue
        np.testing.assert_array_equal(codes, codes_of(Straights().scene(name))[1:4])
        whole += 1
    return whole


def main(root: Path) -> None:
    began = time.perf_counter()
    write(root / "calm")
    took = time.perf_counter() - began
    calm = everything(root / "calm")
    assert len(calm) == len(NAMES) + 1

    leftovers = 0
    for number in range(len(calm)):
        for moment in ("half", "before", "after"):
            folder = root / f"{moment}-{number}"
            assert os.WTERMSIG(os.waitpid(start(folder, dying(number, moment)), 0)[1]) == signal.SIGKILL
            leftovers += len(list(folder.rglob("*.tmp")))
            assert readable(folder) == max(0, number - 1 + (moment == "after" and number > 0))
            write(folder)
            assert everything(folder) == calm, (moment, number)
    assert leftovers == 2 * len(calm)

    rng = np.random.default_rng(0)
    killed = 0
    for number in range(6):
        folder = root / f"random-{number}"
        for _ in range(4):
            pid = start(folder)
            time.sleep(rng.uniform(0, took / 2))
            os.kill(pid, signal.SIGKILL)
            killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            readable(folder)
        write(folder)
        assert everything(folder) == calm, number
    assert killed

    folder = root / "together"
    running = {
        start(folder),
        start(folder),
        start(folder, names=NAMES[::-1]),
        start(folder, names=NAMES[0::2]),
        start(folder, names=NAMES[1::2]),
    }
    while running:
        readable(folder)
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            assert status == 0
            running.remove(pid)
    assert everything(folder) == calm
    print(f"{3 * len(calm)} builds that died at a chosen moment, {killed} at a random one, 5 at once")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
