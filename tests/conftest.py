"""Fixtures that many tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


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
