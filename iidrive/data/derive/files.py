"""Derived occupancy on disk: Occ3D's layout, with a file beside it that says what it is, so that nobody takes it for labels.

    FOLDER/derived.json                       what wrote it, from what data
    FOLDER/<scene>/<sample token>/labels.npz  semantics, mask_lidar, mask_camera: uint8 (200,200,16)

`mask_lidar` is 1 where a voxel is known, `mask_camera` where it is also seen from the lidar's place at the keyframe; no camera is read. As in Occ3D,
voxels of mask 0 hold 17.
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
"""Raise when the same data come to give other grids."""


def is_derived(folder: Path) -> bool:
    """Whether a folder of occupancy holds derived occupancy."""
    return (folder / NAME).is_file()


def begin(folder: Path, about: dict[str, Any]) -> None:
    """Make a folder ready to hold the derived occupancy of some data; one that holds it already stays as it is.

    Raises:
        DataError: if the folder holds occupancy of other data, or files without `derived.json`, which may be labels.
    """
    wanted = to_plain({"format": FORMAT, **about})
    if is_derived(folder):
        if read_json(folder / NAME) != wanted:
            raise DataError(f"{folder / NAME}: derived from other data, or in another way. Name another folder, or delete this one.")
        return
    if folder.is_dir() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty and has no {NAME}: it may hold labels. Name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write(folder / NAME, json.dumps(wanted, indent=2) + "\n")


def place(folder: Path, scene: str, token: str) -> Path:
    """The file of a keyframe."""
    return folder / scene / token / "labels.npz"


def write(path: Path, made: Derived) -> None:
    """Write the occupancy of one keyframe; it appears whole or not at all."""
    content = io.BytesIO()
    np.savez_compressed(content, semantics=made.semantics, mask_lidar=made.known.astype(np.uint8), mask_camera=made.seen.astype(np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, content.getvalue())
