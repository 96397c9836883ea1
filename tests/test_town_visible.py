"""Visibility from the LIDAR: a van hides pedestrians behind it, but not those in front of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from iidrive.core.classes import CATEGORY_INDEX, FREE, IGNORE, OCC
from iidrive.core.scene import OCC3D_GRID, Boxes, GridSpec
from iidrive.data.town.record import paint_boxes
from iidrive.data.town.source import Town, TownConfig
from iidrive.data.town.visibility import visible

COARSE = GridSpec((80, 80, 8), (-32.0, -32.0, -1.0), 0.8)
SENSOR = np.array([0.94, 0.0, 1.84])
CONFIG = TownConfig(train_scenes=1, val_scenes=1, test_scenes=1)
VAN, PERSON = OCC["truck"], OCC["pedestrian"]


def street(spec: GridSpec, *things: tuple[str, float, float, tuple[float, float, float]]) -> np.ndarray:
    """A flat road with boxes (category, x, y, size) on it."""
    grid = np.full(spec.shape, FREE, np.uint8)
    grid[..., int((-0.01 - spec.lower_m[2]) // spec.voxel_m)] = OCC["driveable_surface"]
    n = len(things)
    size = np.array([t[3] for t in things])
    centre = np.array([(x, y, s[2] / 2) for _, x, y, s in things])
    label = np.array([CATEGORY_INDEX[t[0]] for t in things])
    paint_boxes(grid, Boxes("ego", centre, size, np.zeros(n), label, tuple(map(str, range(n))), np.ones(n, np.int64)), spec)
    return grid


@pytest.mark.parametrize("spec", [COARSE, pytest.param(OCC3D_GRID, marks=pytest.mark.slow)], ids=["coarse", "fine"])
def test_a_van_hides_pedestrians_behind_it(spec: GridSpec) -> None:
    van, person = ("vehicle.truck", 11.2, 0.0, (6.0, 2.4, 2.8)), (0.65, 0.65, 1.75)
    adult = "human.pedestrian.adult"
    grid = street(spec, van, (adult, 17.0, 0.2, person), (adult, 6.2, 0.2, person), (adult, 17.0, 12.2, person))
    seen = visible(grid, spec, SENSOR)
    x = spec.centres(0)[:, None, None] + np.zeros(spec.shape)
    y = spec.centres(1)[None, :, None] + np.zeros(spec.shape)
    people = grid == PERSON
    behind, before, aside = people & (x > 15) & (y < 5), people & (x < 8), people & (y > 5)
    assert behind.any()
    assert not seen[behind].any()
    assert seen[before & (x <= x[before].min() + 1e-9)].all()
    assert seen[aside].any()
    # The van: its rear is seen, its inside is not, and neither is the road in its shadow.
    truck = grid == VAN
    assert seen[truck & (x <= x[truck].min() + 1e-9)].mean() > 0.7
    assert not seen[truck & (x >= x[truck].max() - 1e-9) & (np.abs(y) < 0.9)].any()
    road = grid == OCC["driveable_surface"]
    assert not seen[road & (x > 14.6) & (x < 22) & (np.abs(y) < 0.5)].any()
    assert seen[road & (x < -1)].all()


def test_without_anything_on_it_the_whole_road_is_seen() -> None:
    grid = street(COARSE, ("vehicle.car", 500.0, 0.0, (4.0, 2.0, 1.5)))
    assert visible(grid, COARSE, SENSOR).all()
    unknown = np.full(COARSE.shape, IGNORE, np.uint8)
    assert visible(unknown, COARSE, SENSOR).all()


def test_a_wall_along_the_way_does_not_hide_itself() -> None:
    grid = street(COARSE, ("vehicle.car", 500.0, 0.0, (4.0, 2.0, 1.5)))
    grid[:, 46, 1:5] = OCC["manmade"]  # 4.8 to 5.6 m to the left, up to 3 m high, all along the road
    seen = visible(grid, COARSE, SENSOR)
    assert seen[:, 46, 1:5].all()
    assert not seen[:, 50, 1].any()
    assert seen[:, :46].all()


def test_a_low_sensor_outside_the_grid_sees_in() -> None:
    spec = GridSpec((10, 10, 4), (5.0, -5.0, -1.0), 1.0)
    grid = np.full(spec.shape, FREE, np.uint8)
    grid[3, 5, :] = OCC["car"]
    seen = visible(grid, spec, np.array([0.0, 0.5, 0.5]))
    assert seen[:4, 5, :].all()
    assert not seen[4:, 5, :].any()
    assert seen[:, 0, :].all()


@pytest.mark.slow
def test_towns_hide_what_the_lidar_cannot_see() -> None:
    open_town, town = Town(CONFIG), Town(replace(CONFIG, visible_only=True))
    name = "town-train-00000"
    scene = open_town.scene(name)
    whole, part = open_town.occupancy(scene, 8, COARSE).semantics, town.occupancy(town.scene(name), 8, COARSE).semantics
    mask = open_town.visible(scene, 8, COARSE)
    np.testing.assert_array_equal(mask, town.visible(scene, 8, COARSE))
    np.testing.assert_array_equal(part, np.where(mask, whole, IGNORE))
    assert 0.2 < mask.mean() < 0.95
    assert mask[41, 40, 1]
    assert town.identity() != open_town.identity()
    assert "visible_only" not in open_town.identity()
