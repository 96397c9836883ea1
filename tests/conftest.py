"""Fixtures that many tests share."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

_CACHE = pytest.StashKey[tuple[str, str | None]]()


def pytest_configure(config: pytest.Config) -> None:
    """Nothing that tests make goes into the user's own cache, and nothing in there is read: modules make towns when they are imported.

    The number of threads, which decides bits, does not depend on what else the machine does.
    """
    own = tempfile.mkdtemp(prefix="iidrive-tests-")
    config.stash[_CACHE] = own, os.environ.get("IIDRIVE_CACHE")
    os.environ["IIDRIVE_CACHE"] = own
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def pytest_unconfigure(config: pytest.Config) -> None:
    """The user's own setting again."""
    own, before = config.stash[_CACHE]
    shutil.rmtree(own, ignore_errors=True)
    os.environ.pop("IIDRIVE_CACHE", None)
    if before is not None:
        os.environ["IIDRIVE_CACHE"] = before


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real data and the outputs of public implementations; tests that need it skip where it is absent."""
    candidates = [os.environ.get("IIDRIVE_SHARED"), Path(__file__).resolve().parents[2] / "shared"]
    for candidate in candidates:
        if candidate and (Path(candidate) / "fixtures").is_dir():
            return Path(candidate)
    pytest.skip("no shared data: set IIDRIVE_SHARED to the folder that holds design/, fixtures/ and data/")


@pytest.fixture(scope="session")
def nuscenes_root(shared: Path) -> Path:
    """Root of nuScenes mini in the official layout."""
    return shared / "data" / "nuscenes"
