"""Fixtures that many tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that tests make goes into the user's own cache, and nothing in there is read."""
    before = os.environ.get("IIDRIVE_CACHE")
    os.environ["IIDRIVE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("IIDRIVE_CACHE")
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
