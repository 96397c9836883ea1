"""Occupancy derived from boxes and a vector map, for keyframes that have no labels.

What it can know: the road, the walkways and the tracked objects. What it cannot: buildings, vegetation, terrain and whatever else
nobody annotated. Those voxels stay **free** rather than being invented, so derived grids are emptier than real ones; they carry
`source="derived"` so that no table can hide it.

The defaults follow the one Occ3D-nuScenes label that could be compared (scene-1077, keyframe 27): its whole road lies in the lowest
layer, z in [-1, -0.6] m, and its objects reach down to that layer, although boxes there stand at z = 0. IoU over the whole grid, and
over the voxels that cameras see:

| | driveable_surface | car |
|---|---|---|
| defaults | 0.63, 0.95 | 0.66, 0.89 |
| ground at z = -0.2 or 0 | 0.00, 0.00 | |
| boxes end at their own bottom | | 0.40, 0.55 |
| boxes 0.2 m lower, 0.2 m higher | | 0.69, 0.89 and 0.61, 0.88 |

This is one label, and labels differ: in another (of an unknown sample, so without map) the road follows the vehicle's tilt through layers
0 to 3, half of it in layer 2 (z about 0). A grid or a town whose ground is elsewhere says so by `ground_z_m`.
"""

from __future__ import annotations

import numpy as np
import shapely
from jaxtyping import Bool, Float, UInt8

from iidrive.core.classes import FREE, OCC, OCC_OF_CATEGORY
from iidrive.core.errors import DataError
from iidrive.core.footprint import ranges
from iidrive.core.scene import Boxes, GridSpec, OccGrid, Pose, VectorMap

Array = np.ndarray

GROUND_Z_M = -0.6
"""Height of the ground in the ego frame that agrees best with Occ3D's labels, metres."""

GROUND_LAYERS: tuple[tuple[str, str], ...] = (
    ("walkway", "sidewalk"),
    ("drivable_area", "driveable_surface"),
    ("ped_crossing", "driveable_surface"),
)
"""Map layer → occupancy class, painted in this order: a crossing lies on the road, the road wins over a walkway."""


def voxelise(
    boxes_ego: Boxes,
    vector_map: VectorMap,
    global_T_ego: Pose | Float[Array, "4 4"],
    spec: GridSpec,
    *,
    ground_z_m: float = GROUND_Z_M,
    reach_ground: bool = True,
) -> OccGrid:
    """Occupancy of one keyframe from its boxes and the map around it, `source="derived"`.

    Args:
        boxes_ego: boxes in the ego frame.
        vector_map: layers in the global frame; only `drivable_area`, `ped_crossing` and `walkway` are painted, absent ones are skipped.
        global_T_ego: pose of the ego at this keyframe.
        spec: the grid, in the ego frame.
        ground_z_m: height of the ground in the ego frame. Surfaces are painted on the one layer that holds `ground_z_m - 0.01`; a grid
            without that layer gets no surfaces.
        reach_ground: let every box reach down to the ground layer, as Occ3D's objects do, instead of ending at its own bottom.

    A surface owns a cell, and a box a voxel, when the cell's or voxel's centre lies inside. A box thinner than the voxels still fills
    the column at its centre. Larger boxes are painted first, smaller ones over them, boxes over surfaces.

    Raises:
        DataError: if the boxes are not in the ego frame.
    """
    if boxes_ego.frame != "ego":
        raise DataError(f"voxelise needs boxes in the ego frame; found '{boxes_ego.frame}'. Use `boxes.moved(ego_T_global, 'ego')`.")
    transform = global_T_ego.matrix if isinstance(global_T_ego, Pose) else np.asarray(global_T_ego, dtype=np.float64)
    semantics = np.full(spec.shape, FREE, dtype=np.uint8)
    ground = int(np.floor((ground_z_m - 0.01 - spec.lower_m[2]) / spec.voxel_m))
    if 0 <= ground < spec.shape[2]:
        _paint_surfaces(semantics[:, :, ground], vector_map, transform, spec, ground_z_m)
    _paint_boxes(semantics, boxes_ego, spec, ground if reach_ground else None)
    return OccGrid(semantics, spec, "derived")


def _paint_surfaces(plane: UInt8[Array, "x y"], vector_map: VectorMap, transform: Float[Array, "4 4"], spec: GridSpec, z_m: float) -> None:
    """Paint the map's surfaces into one layer of the grid, in place."""
    # The plane z = z_m of the ego frame maps affinely onto the map's xy plane; its inverse takes polygon corners to cell coordinates.
    scale = spec.voxel_m
    linear = transform[:2, :2] * scale
    origin = transform[:2, :3] @ np.array([spec.lower_m[0], spec.lower_m[1], z_m]) + transform[:2, 3]
    cells_per_m = np.linalg.inv(linear)
    for layer, occ_class in GROUND_LAYERS:
        geometry = vector_map.layers.get(layer)
        if geometry is not None:
            plane[polygon_mask(geometry, cells_per_m, origin, (spec.shape[0], spec.shape[1]))] = OCC[occ_class]


def polygon_mask(
    geometry: shapely.Geometry, cells_per_m: Float[Array, "2 2"], origin: Float[Array, "2"], shape: tuple[int, int]
) -> Bool[Array, "x y"]:
    """Cells of a grid whose centre lies inside the polygons of a geometry; holes are respected, overlaps allowed.

    Scan conversion by winding number: every edge adds +1 or -1 to all cells to its right on the rows that it crosses, with the sign
    chosen so that each polygon counts +1 inside and each hole -1. Cost grows with the edges near the grid, not with the cells.

    Args:
        geometry: polygons in the plane; other parts are ignored.
        cells_per_m: 2x2 that turns a metric offset from `origin` into cell units.
        origin: metric position of the outer corner of cell (0, 0).
        shape: cells along x and y.
    """
    wide, high = shape
    polygons = shapely.get_parts(geometry)
    while np.isin(shapely.get_type_id(polygons), (6, 7)).any():  # parts of a collection may again be collections
        polygons = shapely.get_parts(polygons)
    polygons = polygons[shapely.get_type_id(polygons) == 3]
    rings, owner = shapely.get_rings(polygons, return_index=True)
    if not len(rings):
        return np.zeros(shape, dtype=bool)
    is_hole = np.diff(owner, prepend=-1) == 0  # the first ring of each polygon is its outline
    corners, ring = shapely.get_coordinates(rings, return_index=True)
    points = (corners - origin) @ cells_per_m.T - 0.5  # now cell centres are the integers

    same = ring[1:] == ring[:-1]
    x0, y0 = points[:-1][same].T
    x1, y1 = points[1:][same].T
    edge_ring = ring[:-1][same]
    turn = np.bincount(edge_ring, weights=x0 * y1 - x1 * y0, minlength=len(rings))
    sign = np.where(turn > 0, 1, -1) * np.where(is_hole, -1, 1)

    # Half-open rows ceil(min y) <= row < ceil(max y): a corner that two edges share is crossed once.
    first = np.clip(np.ceil(np.minimum(y0, y1)), 0, high).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(y0, y1)), 0, high).astype(np.int64)
    rows = last - first
    crossing = rows > 0
    rows, edge = rows[crossing], np.flatnonzero(crossing)
    row, edge = ranges(first[edge], rows), np.repeat(edge, rows)
    x = x0[edge] + (row - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    column = np.clip(np.ceil(x), 0, wide).astype(np.int64)
    step = np.where(y1[edge] < y0[edge], 1, -1) * sign[edge_ring[edge]]
    change = np.bincount(column * high + row, weights=step, minlength=(wide + 1) * high).reshape(wide + 1, high)
    return np.cumsum(change[:-1], axis=0) > 0.5


def _paint_boxes(semantics: UInt8[Array, "x y z"], boxes: Boxes, spec: GridSpec, ground: int | None) -> None:
    """Paint boxes into the grid, in place; `ground` is the layer that they must reach down to, if any.

    It counts in voxels and has no tolerance at edges; `footprint.rectangles` counts in metres with 1e-9 m. Cells on an edge may differ.
    """
    lower, voxel = np.array(spec.lower_m), spec.voxel_m
    limit = np.array(spec.shape)
    reach = np.hypot(boxes.size_m[:, 0], boxes.size_m[:, 1])[:, None] / 2
    near = ((boxes.centre_m[:, :2] + reach > lower[:2]) & (boxes.centre_m[:, :2] - reach < np.array(spec.upper_m)[:2])).all(axis=1)
    order = np.flatnonzero(near)
    order = order[np.argsort(-boxes.size_m[order].prod(axis=1), kind="stable")]
    if not len(order):
        return
    size, yaw = boxes.size_m[order] / voxel, boxes.yaw_rad[order]
    centre = (boxes.centre_m[order] - lower) / voxel - 0.5  # voxel centres are the integers
    home = np.rint(centre).astype(np.int64)  # the voxel that holds the centre

    # Window of cells that can lie inside, per box.
    c, s = np.cos(yaw), np.sin(yaw)
    half_x = (np.abs(c) * size[:, 0] + np.abs(s) * size[:, 1]) / 2
    half_y = (np.abs(s) * size[:, 0] + np.abs(c) * size[:, 1]) / 2
    half = np.stack([half_x, half_y], -1)
    low = np.clip(np.minimum(np.ceil(centre[:, :2] - half), home[:, :2]), 0, limit[:2]).astype(np.int64)
    high = np.clip(np.maximum(np.floor(centre[:, :2] + half), home[:, :2]) + 1, 0, limit[:2]).astype(np.int64)
    extent = np.maximum(high - low, 0)
    area = extent.prod(axis=1)
    box = np.repeat(np.arange(len(order)), area)
    cell = ranges(np.zeros(len(area), np.int64), area)
    i, j = low[box, 0] + cell // np.maximum(extent[box, 1], 1), low[box, 1] + cell % np.maximum(extent[box, 1], 1)
    dx, dy = i - centre[box, 0], j - centre[box, 1]
    along, across = c[box] * dx + s[box] * dy, c[box] * dy - s[box] * dx
    inside = (np.abs(along) <= size[box, 0] / 2) & (np.abs(across) <= size[box, 1] / 2)
    inside |= (i == home[box, 0]) & (j == home[box, 1])
    box, i, j = box[inside], i[inside], j[inside]

    bottom = np.minimum(np.ceil(centre[:, 2] - size[:, 2] / 2), home[:, 2]).astype(np.int64)
    top = np.maximum(np.floor(centre[:, 2] + size[:, 2] / 2), home[:, 2]).astype(np.int64)
    if ground is not None:
        bottom = np.minimum(bottom, ground)
    bottom, top = np.clip(bottom, 0, limit[2]), np.clip(top + 1, 0, limit[2])
    layers = np.maximum(top - bottom, 0)[box]
    k = ranges(bottom[box], layers)
    box, i, j = np.repeat(box, layers), np.repeat(i, layers), np.repeat(j, layers)
    # One assignment: where boxes share a voxel numpy keeps the last, which is the smaller box.
    semantics[i, j, k] = OCC_OF_CATEGORY[boxes.label[order]][box]
