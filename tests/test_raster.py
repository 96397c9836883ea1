"""Row intervals of drawn polygons: compared with cells tested one by one, and invariances. The evaluators' own images are in
test_planning_fixtures."""

from __future__ import annotations

import numpy as np
import pytest
from drawn import fill
from hypothesis import given, settings
from hypothesis import strategies as st

from iidrive.scoring.raster import cells_hit, rectangles_hit, row_intervals

SIZE = 24
PLACES = st.integers(-6, SIZE + 6)


def draw(corner: np.ndarray) -> np.ndarray:
    return fill(corner[None].astype(float), np.zeros(1, np.int64), 1, SIZE)[0]


def box(x: int, y: int, length: float, width: float, yaw: float) -> np.ndarray:
    cos, sin = np.cos(yaw), np.sin(yaw)
    along, left = length / 2 * np.array([1, -1, -1, 1]), width / 2 * np.array([1, 1, -1, -1])
    return np.round(np.stack([x + along * cos - left * sin, y + along * sin + left * cos], axis=-1))


@settings(max_examples=60, deadline=None)
@given(x=PLACES, y=PLACES, length=st.floats(0, 14), width=st.floats(0, 8), yaw=st.floats(-4, 4), shift=st.integers(0, 3))
def test_where_the_list_of_corners_starts_does_not_matter(x: int, y: int, length: float, width: float, yaw: float, shift: int) -> None:
    corner = box(x, y, length, width, yaw)
    np.testing.assert_array_equal(draw(corner), draw(np.roll(corner, shift, axis=0)))
    np.testing.assert_array_equal(draw(corner), draw(corner[::-1]))


@settings(max_examples=60, deadline=None)
@given(x=st.integers(9, 14), y=st.integers(9, 14), length=st.floats(0, 12), width=st.floats(0, 8), yaw=st.floats(-4, 4))
def test_every_cell_is_within_half_a_cell_of_the_polygon(x: int, y: int, length: float, width: float, yaw: float) -> None:
    import shapely

    corner = box(x, y, length, width, yaw)
    shape = shapely.convex_hull(shapely.multipoints(corner))
    cell = shapely.points(*np.meshgrid(np.arange(SIZE), np.arange(SIZE)))
    drawn = draw(corner)
    assert (shapely.distance(shape, cell[drawn]) <= 0.5 + 1e-9).all()
    assert drawn[shapely.intersects(shape, cell)].all()


@settings(max_examples=40, deadline=None)
@given(x=PLACES, y=PLACES, length=st.floats(0, 14), width=st.floats(0, 8), yaw=st.floats(-4, 4), row=PLACES, column=PLACES)
def test_lookups_equal_reading_a_drawn_image(x: int, y: int, length: float, width: float, yaw: float, row: int, column: int) -> None:
    corner = box(x, y, length, width, yaw)[None]
    drawn, none = draw(corner[0]), np.zeros(1, np.int64)
    inside = 0 <= row < SIZE and 0 <= column < SIZE
    cell = np.array([[[row, column], [0, 0]]], float)
    assert cells_hit(corner, none, cell, SIZE)[0].tolist() == [inside and drawn[row, column], drawn[0, 0]]
    bound = np.clip([row, row + 3, column, column + 2], 0, SIZE - 1).astype(float)
    a, b, c, d = bound.astype(int)
    assert rectangles_hit(corner, none, bound[None], SIZE)[0] == drawn[a : b + 1, c : d + 1].any()


@pytest.mark.parametrize(
    ("corner", "cells"),
    [
        ([(3, 3), (3, 3), (3, 3), (3, 3)], [(3, 3)]),
        ([(2, 5), (6, 5), (6, 5), (2, 5)], [(5, c) for c in range(2, 7)]),
        ([(2, 2), (2, 4), (3, 4), (3, 2)], [(r, c) for r in (2, 3, 4) for c in (2, 3)]),
        ([(-4, -4), (-4, -1), (-1, -1), (-1, -4)], []),
        ([(-4, -4), (-4, 90), (90, 90), (90, -4)], [(r, c) for r in range(SIZE) for c in range(SIZE)]),
    ],
)
def test_by_hand(corner: list[tuple[int, int]], cells: list[tuple[int, int]]) -> None:
    assert [tuple(cell) for cell in np.argwhere(draw(np.array(corner)))] == cells


def test_a_slanted_edge_goes_half_a_cell_to_the_start() -> None:
    # From (0,0) to (4,2): columns 1 and 3 lie exactly between two rows, and stay on the row they come from.
    line = np.array([[(0, 0), (4, 2), (4, 2), (0, 0)]], float)
    first, last = row_intervals(line, np.arange(3.0)[None], SIZE)
    assert first[0].tolist() == [0, 2, 4]
    assert last[0].tolist() == [1, 3, 4]
