"""Derived occupancy on disk: Occ3D's layout, plus a file that marks it as derived, so that it is not mistaken for labels.

    FOLDER/derived.json                       how and from which data it was made
    FOLDER/<scene>/<sample token>/labels.npz  semantics, mask_lidar, mask_camera: uint8 (200,200,16)

`mask_lidar` is 1 for known voxels. `mask_camera` is 1 for known voxels that are visible from the lidar's position at the keyframe; no camera is read.
As in Occ3D, voxels with mask 0 hold 17.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from iidrive.core.config_io import to_plain
from iidrive.core.errors import DataError
from iidrive.core.untrusted.json_text import read_json
from iidrive.data.derive.grids import Derived
from iidrive.runtime import atomic

NAME = "derived.json"
FORMAT = 1
"""Increase it when the grids of the same data change."""


def is_derived(folder: Path) -> bool:
    """Whether a folder of occupancy holds derived occupancy."""
    return (folder / NAME).is_file()


def begin(folder: Path, about: dict[str, Any]) -> None:
    """Prepare a folder for the derived occupancy of some data. A folder that already holds it is left unchanged.

    Raises:
        DataError: if the folder holds occupancy of other data, or files without `derived.json`, which may be labels.
    """
    wanted = to_plain({"format": FORMAT, **about})
    if is_derived(folder):
        if read_json(folder / NAME) != wanted:
            raise DataError(f"{folder / NAME}: derived from other data, or in another way. Choose another folder, or delete this one.")
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty and has no {NAME}: it may hold labels. Choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write(folder / NAME, json.dumps(wanted, indent=2) + "\n")


def place(folder: Path, scene: str, token: str) -> Path:
    """The file of a keyframe."""
    return folder / scene / token / "labels.npz"


def write(path: Path, made: Derived) -> None:
    """Write the occupancy of one keyframe atomically."""
    content = io.BytesIO()
    np.savez_compressed(content, semantics=made.semantics, mask_lidar=made.known.astype(np.uint8), mask_camera=made.seen.astype(np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, content.getvalue())
