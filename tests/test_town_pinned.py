"""The default towns do not change: a digest of ten scenes, which may change only together with VERSION."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from iidrive.core.scene import GridSpec, Scene
from iidrive.data.town.source import VERSION, Town, TownConfig

COARSE = GridSpec((80, 80, 8), (-32.0, -32.0, -1.0), 0.8)
NAMES = ("town-train-00000", "town-train-00007", "town-val-00003", "town-test-00000", "town-test-00011")
PINNED = "a7268b6bd61ce63a7880a9ac358d43d0c2e6880ca54ec3bcd0935efe9da8af92"


def rounded(*values: np.ndarray) -> bytes:
    """Round values to tenths of a millimetre (or of a milliradian).

    Processors differ in the last bit of a sine: without fused multiply-add these ten scenes come out up to 2e-12 different. A value lies
    that close to where rounding to 1e-4 flips with a chance of 2e-8, one of the 160,000 values with 0.3 %; rounding to 1e-6 would make
    that 30 %. What changes the code changes far more than 0.1 mm.
    """
    return np.rint(np.concatenate([np.asarray(v, np.float64).ravel() for v in values]) * 1e4).astype("<i8").tobytes()


def digest(town: Town, scene: Scene) -> bytes:
    """SHA-256 over poses, times, boxes, commands and tokens of every keyframe, and one occupancy grid."""
    found = hashlib.sha256(scene.name.encode())
    for keyframe in scene.keyframes:
        boxes, ego = keyframe.boxes, keyframe.global_T_ego.matrix
        words = (keyframe.token, str(keyframe.timestamp_us), keyframe.command.manoeuvre, *boxes.track)
        found.update(" ".join(words).encode())
        found.update(rounded(ego, keyframe.ego_T_lidar.matrix, boxes.centre_m, boxes.size_m, np.cos(boxes.yaw_rad), np.sin(boxes.yaw_rad)))
        found.update(boxes.label.astype("<i8").tobytes())
    found.update(town.occupancy(scene, 7, COARSE).semantics.tobytes())
    return found.digest()


@pytest.mark.slow
def test_the_default_scenes_have_not_changed() -> None:
    found = hashlib.sha256()
    for seed in (0, 1):
        town = Town(replace(TownConfig(), seed=seed, disk_cache=False))
        for name in NAMES:
            found.update(digest(town, town.scene(name)))
    assert found.hexdigest() == PINNED, (
        "the same config gives other scenes than before: raise VERSION in iidrive/data/town/source.py, then pin the new digest here"
    )
    assert VERSION == 1
