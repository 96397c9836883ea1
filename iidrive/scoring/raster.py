"""Which cells of a grid OpenCV's `fillPoly` would draw for a quadrilateral, computed without drawing an image.

The raster evaluators draw every obstacle into an image and read a few cells of it. A convex polygon covers one interval of cells in each row.
So its first and last column, computed in closed form for the requested rows only, give the same answer.

With integer corners `fillPoly` draws two things. Each edge is clipped to the image and drawn as a Bresenham line from its left end; a point
exactly between two rows goes to the row the line comes from. In rows [first, last) of the polygon, the cells between its left and right edge are
filled; the edges' positions are 16.16 fixed-point numbers.

Shape letters: p polygons, r requested rows, k polygons of all steps, s steps, c cells per step.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

Array = np.ndarray

_ONE = 65536.0
_NONE = 1e12
"""A column beyond any cell: the initial value of minima and maxima."""


def row_intervals(corner: Float[Array, "p 4 2"], row: Float[Array, "p r"], size: int) -> tuple[Float[Array, "p r"], Float[Array, "p r"]]:
    """First and last covered column in the given rows of a `size` x `size` image; first > last if nothing is covered.

    `corner` holds (column, row) in order around the polygon. Corners may lie outside the image; the polygon must be convex and may be degenerate.
    Integers are stored as float64, because float division is several times faster and is exact here.
    """
    corner = np.asarray(corner, np.float64)
    row = np.asarray(row, np.float64)
    first, last = np.full(row.shape, _NONE), np.full(row.shape, -_NONE)
    left, right = first.copy(), last.copy()
    for a in range(4):
        start, end = corner[:, a], corner[:, (a + 1) % 4]
        cut_start, cut_end, seen = _cut(start, end, size)
        low, high = _line(cut_start, cut_end, row)
        if not seen.all():
            low[~seen], high[~seen] = _NONE, -_NONE
        np.minimum(first, low, out=first)
        np.maximum(last, high, out=last)
        at, active = _edge(start, end, cut_start, cut_end, row)
        np.minimum(left, at, out=left, where=active)
        np.maximum(right, at, out=right, where=active)
    # The interior: from the left edge, rounded up, to the right edge, rounded down.
    left, right = np.ceil(left / _ONE), np.floor(right / _ONE)
    inside = left <= right
    np.minimum(first, left, out=first, where=inside)
    np.maximum(last, right, out=last, where=inside)
    outside = (row < 0) | (row >= size) | (last < 0) | (first >= size)
    first, last = np.maximum(first, 0), np.minimum(last, size - 1)
    first[outside], last[outside] = 1, 0
    return first, last


def rectangles_hit(corner: Float[Array, "k 4 2"], step: Int[Array, "k"], bound: Float[Array, "s 4"], size: int) -> Bool[Array, "s"]:
    """For each step, whether a rectangle of cells (first and last row, first and last column) overlaps a polygon of that step."""
    out = np.zeros(len(bound), bool)
    low, high = extent(corner)
    here = bound[step]
    # A clipped edge may be drawn one cell outside its bounding box.
    near = (low[:, 1] <= here[:, 1] + 1) & (high[:, 1] >= here[:, 0] - 1) & (low[:, 0] <= here[:, 3] + 1) & (high[:, 0] >= here[:, 2] - 1)
    pair = np.flatnonzero(near)
    here = here[pair]
    # A corner inside the image is always drawn. This quick test finds most overlapping polygons.
    x, y = corner[pair, :, 0], corner[pair, :, 1]
    plain = np.any((y >= here[:, :1]) & (y <= here[:, 1:2]) & (x >= here[:, 2:3]) & (x <= here[:, 3:]), axis=1).reshape(len(pair))
    plain &= (here[:, 0] >= 0) & (here[:, 1] < size) & (here[:, 2] >= 0) & (here[:, 3] < size)
    out[step[pair[plain]]] = True
    left = np.flatnonzero(~out[step[pair]])
    pair, here = pair[left], here[left]
    row = here[:, :1] + np.arange(int((bound[:, 1] - bound[:, 0]).max(initial=0)) + 1)
    first, last = row_intervals(corner[pair], row, size)
    met = (first <= last) & (first <= here[:, 3:]) & (last >= here[:, 2:3]) & (row <= here[:, 1:2])
    out[step[pair[met.any(axis=1)]]] = True
    return out


def cells_hit(
    corner: Float[Array, "k 4 2"], step: Int[Array, "k"], cell: Float[Array, "s c 2"], size: int, at_once: int = 4096
) -> Bool[Array, "s c"]:
    """For each step, which of its cells (row, column) are covered by a polygon of that step. Cells outside the image are not covered."""
    out = np.zeros(cell.shape[:2], bool)
    floor, ceiling = cell.min(axis=1), cell.max(axis=1)
    low, high = (end[:, ::-1] for end in extent(corner))
    near = ((low <= ceiling[step] + 1) & (high >= floor[step] - 1)).all(axis=1)
    pairs = np.flatnonzero(near)
    for pair in np.split(pairs, np.arange(at_once, len(pairs), at_once)):
        at = step[pair]
        top = floor[at, 0]
        row = top[:, None] + np.arange(int((ceiling[at, 0] - top).max(initial=0)) + 1)
        first, last = row_intervals(corner[pair], row, size)
        here = cell[at]
        which = (here[..., 0] - top[:, None]).astype(np.int64)
        column = here[..., 1]
        met = (np.take_along_axis(first, which, 1) <= column) & (column <= np.take_along_axis(last, which, 1))
        p, c = np.nonzero(met)
        out[at[p], c] = True
    return out


def extent(corner: Float[Array, "k 4 2"]) -> tuple[Float[Array, "k 2"], Float[Array, "k 2"]]:
    """Smallest and largest (column, row) of each polygon. This is several times faster than a reduction over an axis of length four."""
    a, b, c, d = (corner[:, i] for i in range(4))
    return np.minimum(np.minimum(a, b), np.minimum(c, d)), np.maximum(np.maximum(a, b), np.maximum(c, d))


def _line(start: Array, end: Array, row: Array) -> tuple[Array, Array]:
    """First and last column of a Bresenham line in each requested row."""
    back = (end[:, 0] < start[:, 0])[:, None]
    start, end = np.where(back, end, start), np.where(back, start, end)
    dx, dy = (end - start)[:, 0, None], (end - start)[:, 1, None]
    down = np.where(dy < 0, -1.0, 1.0)
    dy = np.abs(dy)
    m = (row - start[:, 1, None]) * down
    # Shallow: one cell per column; row m starts at the first column that is nearer to it than to row m - 1.
    tall = 2 * np.maximum(dy, 1)
    reach = 2 * dx * m
    low = np.maximum(np.ceil((reach - dx + 1) / tall), 0)
    high = np.minimum(np.ceil((reach + dx + 1) / tall) - 1, dx)
    # Steep: one cell per row.
    steep = dy > dx
    at = np.ceil((reach - dy) / tall)
    low = np.where(steep, at, np.where(dy == 0, 0, low))
    high = np.where(steep, at, np.where(dy == 0, dx, high))
    on = (m >= 0) & (m <= dy)
    x = start[:, 0, None]
    return np.where(on, x + low, _NONE), np.where(on, x + high, -_NONE)


def _edge(start: Array, end: Array, cut_start: Array, cut_end: Array, row: Array) -> tuple[Array, Array]:
    """Fixed-point column of an edge in each row, and whether the edge bounds the interior in that row: rows [upper end, lower end)."""
    level = start[:, 1] == end[:, 1]
    # If the clipped edge has no height, combine the unclipped rows with the clipped columns, as OpenCV does.
    tall = cut_start[:, 1] != cut_end[:, 1]
    y0, y1 = np.where(tall, cut_start[:, 1], start[:, 1]), np.where(tall, cut_end[:, 1], end[:, 1])
    x0, x1 = cut_start[:, 0] * _ONE, cut_end[:, 0] * _ONE
    slope = _divided(x1 - x0, np.where(level | (y1 == y0), 1, y1 - y0))
    down = start[:, 1] < end[:, 1]
    top, bottom = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    at_top = np.where(down, x0 + (top - y0) * slope, x1 + (top - y1) * slope)
    active = ~level[:, None] & (row >= top[:, None]) & (row < bottom[:, None])
    return at_top[:, None] + (row - top[:, None]) * slope[:, None], active


def _cut(start: Array, end: Array, size: int) -> tuple[Array, Array, Array]:
    """Each edge clipped to the image, in integers, and whether any of it is inside. Rows are clipped first, then columns."""
    far = size - 1
    start, end = start.copy(), end.copy()
    seen = np.ones(len(start), bool)
    out = np.flatnonzero(((start < 0) | (start > far) | (end < 0) | (end > far)).any(axis=1))
    if not len(out):
        return start, end, seen
    a, b = start[out], end[out]
    sides = [_sides(a, far), _sides(b, far)]
    live = (sides[0] & sides[1]) == 0
    for axis in (1, 0):
        live &= (sides[0] & sides[1]) == 0
        bits = (1, 2) if axis == 0 else (4, 8)
        for one, other, i in ((a, b, 0), (b, a, 1)):
            for bit, edge in zip(bits, (0, far), strict=True):
                go = live & ((sides[i] & bit) > 0)
                p, q = one[go], other[go]
                run, rise = q[:, 1 - axis] - p[:, 1 - axis], q[:, axis] - p[:, axis]
                p[:, 1 - axis] += _divided((edge - p[:, axis]) * run, np.where(rise == 0, 1, rise))
                p[:, axis] = edge
                one[go] = p
            sides[i] = np.where(live, _sides(one, far), sides[i])
    seen[out] = live & ((sides[0] | sides[1]) == 0)
    start[out], end[out] = a, b
    return start, end, seen


def _sides(point: Array, far: int) -> Array:
    x, y = point[:, 0], point[:, 1]
    return (x < 0) * 1 + (x > far) * 2 + (y < 0) * 4 + (y > far) * 8


def _divided(a: Array, b: Array) -> Array:
    """Integer division that rounds towards zero."""
    return np.trunc(a / b)
