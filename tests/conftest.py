"""Shared fixtures."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

_CACHE = pytest.StashKey[tuple[str, str | None]]()


def pytest_configure(config: pytest.Config) -> None:
    """Use a temporary cache folder instead of the user's, already while test modules are imported, because some build towns then.

    Also fix the number of threads, which decides the last bits of results.
    """
    own = tempfile.mkdtemp(prefix="iidrive-tests-")
    config.stash[_CACHE] = own, os.environ.get("IIDRIVE_CACHE")
    os.environ["IIDRIVE_CACHE"] = own
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Restore the user's cache setting."""
    own, before = config.stash[_CACHE]
    shutil.rmtree(own, ignore_errors=True)
    os.environ.pop("IIDRIVE_CACHE", None)
    if before is not None:
        os.environ["IIDRIVE_CACHE"] = before


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real data and outputs of public implementations. Tests that need it are skipped if it is absent."""
    candidates = [os.environ.get("IIDRIVE_SHARED"), Path(__file__).resolve().parents[2] / "shared"]
    for candidate in candidates:
        if candidate and (Path(candidate) / "fixtures").is_dir():
            return Path(candidate)
    pytest.skip("no shared data: set IIDRIVE_SHARED to the folder that holds design/, fixtures/ and data/")


@pytest.fixture(scope="session")
def nuscenes_root(shared: Path) -> Path:
    """Root of nuScenes mini in the official layout."""
    return shared / "data" / "nuscenes"
