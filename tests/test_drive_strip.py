"""The strip of a drive: views are drawn until the drive ends, and touched objects are highlighted."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from driven import CAR, others, straight, street

from iidrive.core import geometry
from iidrive.core.errors import DataError
from iidrive.report.drive_strip import DriveRow, drive_strip


def a_row(seconds: float, touched: bool, ended: str = "") -> DriveRow:
    ego = straight(seconds)
    around = others(len(ego.yaw_rad), ((8.0, 0.0), 0.0, CAR, True))
    corners = geometry.box_corners_bev(around.centre_m, around.size_m[None, :, 0], around.size_m[None, :, 1], around.yaw_rad)
    hit = np.full(around.yaw_rad.shape, touched)
    return DriveRow("one", "EPDMS 50", ego.xy_m, ego.yaw_rad, ego.speed_mps, ego.corners_m, corners, hit, ended)


def pixels(path: Path, colour: tuple[int, int, int]) -> np.ndarray:
    """Columns of a picture that hold a colour."""
    picture = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int)
    return np.flatnonzero((abs(picture - np.array(colour)) <= 2).all(-1).any(0))


@pytest.mark.slow
def test_a_drive_is_drawn_until_it_ends(tmp_path: Path) -> None:
    whole, short = a_row(6.0, False), a_row(2.0, True, "collision")
    path = drive_strip("both", street(), [whole, short], whole.xy_m, tmp_path / "a.png", 0.1)
    alone = drive_strip("short", street(), [short], whole.xy_m, tmp_path / "b.png", 0.1)
    width = matplotlib.image.imread(path).shape[1]
    orange, blue = (213, 94, 0), (86, 180, 233)
    assert pixels(alone, blue).max() > 0.9 * width  # alone it sets the time scale
    assert pixels(path, orange).max() < 0.65 * width  # beside the other it ends after a third
    free = drive_strip("free", street(), [whole], whole.xy_m, tmp_path / "c.png", 0.1)
    assert len(pixels(free, orange)) == 0
    with pytest.raises(DataError, match="no drive"):
        drive_strip("none", street(), [], whole.xy_m, tmp_path / "d.png", 0.1)
