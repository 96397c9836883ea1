"""Occupancy derived from boxes and a vector map, for keyframes without occupancy labels.

It contains the road, walkways and tracked objects. Buildings, vegetation, terrain and anything else without annotations stay **free**, so
derived grids are emptier than real ones. They have `source="derived"`, which is printed with every table.

The defaults follow the one Occ3D-nuScenes label that could be compared (scene-1077, keyframe 27): its whole road is in the lowest layer,
z in [-1, -0.6] m, and its objects reach down to that layer, although its boxes stand at z = 0. IoU over the whole grid, and over the voxels
that cameras see:

| | driveable_surface | car |
|---|---|---|
| defaults | 0.63, 0.95 | 0.66, 0.89 |
| ground at z = -0.2 or 0 | 0.00, 0.00 | |
| boxes not extended to the ground | | 0.40, 0.55 |
| boxes 0.2 m lower, 0.2 m higher | | 0.69, 0.89 and 0.61, 0.88 |

This is a single label, and labels differ. In another one (of an unknown sample, so without a map) the road follows the vehicle's tilt
through layers 0 to 3, half of it in layer 2 (z about 0). Pass `ground_z_m` for a grid or town with another ground height.
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
"""Height of the ground in the ego frame that fits Occ3D's labels best, metres."""

GROUND_LAYERS: tuple[tuple[str, str], ...] = (
    ("walkway", "sidewalk"),
    ("drivable_area", "driveable_surface"),
    ("ped_crossing", "driveable_surface"),
)
"""Map layer → occupancy class, in painting order: the road over walkways, crossings over the road."""


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
        vector_map: layers in the global frame. Only `drivable_area`, `ped_crossing` and `walkway` are painted; absent layers are skipped.
        global_T_ego: pose of the ego at this keyframe.
        spec: the grid, in the ego frame.
        ground_z_m: height of the ground in the ego frame, metres. Surfaces are painted on the layer that contains `ground_z_m - 0.01`. A
            grid without that layer gets no surfaces.
        reach_ground: extend every box down to the ground layer, as in Occ3D's labels.

    A surface fills a cell, and a box fills a voxel, if its centre lies inside. A box thinner than a voxel still fills the column at its
    centre. Boxes are painted over surfaces, and smaller boxes over larger ones.

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
    # The plane z = z_m of the ego frame maps affinely to the map's xy plane. The inverse maps polygon corners to cell coordinates.
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
    """Grid cells whose centre lies inside the polygons of a geometry. Holes are respected; polygons may overlap.

    Scan conversion by winding number: every edge adds +1 or -1 to all cells to its right on the rows that it crosses. The signs make each
    polygon count +1 inside and each hole -1. The cost grows with the number of edges near the grid, not with the number of cells.

    Args:
        geometry: polygons in the xy plane; other geometries are ignored.
        cells_per_m: (2,2) matrix from an offset from `origin` in metres to cells.
        origin: (2,) position of the outer corner of cell (0, 0), metres.
        shape: cells along x and y.
    """
    wide, high = shape
    polygons = shapely.get_parts(geometry)
    while np.isin(shapely.get_type_id(polygons), (6, 7)).any():  # collections may be nested
        polygons = shapely.get_parts(polygons)
    polygons = polygons[shapely.get_type_id(polygons) == 3]
    rings, owner = shapely.get_rings(polygons, return_index=True)
    if not len(rings):
        return np.zeros(shape, dtype=bool)
    is_hole = np.diff(owner, prepend=-1) == 0  # the first ring of each polygon is its outline
    corners, ring = shapely.get_coordinates(rings, return_index=True)
    points = (corners - origin) @ cells_per_m.T - 0.5  # cell centres are at integers

    same = ring[1:] == ring[:-1]
    x0, y0 = points[:-1][same].T
    x1, y1 = points[1:][same].T
    edge_ring = ring[:-1][same]
    turn = np.bincount(edge_ring, weights=x0 * y1 - x1 * y0, minlength=len(rings))
    sign = np.where(turn > 0, 1, -1) * np.where(is_hole, -1, 1)

    # Half-open rows ceil(min y) <= row < ceil(max y), so that a corner shared by two edges is crossed once.
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
    """Paint boxes into the grid, in place. `ground` is the layer that boxes are extended down to; None to leave them as they are.

    Unlike `footprint.rectangles`, this computes in voxels and without a tolerance, so cells on an edge may differ.
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
    centre = (boxes.centre_m[order] - lower) / voxel - 0.5  # voxel centres are at integers
    home = np.rint(centre).astype(np.int64)  # the voxel that contains the centre

    # Axis-aligned bounding box of each box, in cells.
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
    # Where boxes share a voxel, NumPy keeps the last write, which is the smaller box.
    semantics[i, j, k] = OCC_OF_CATEGORY[boxes.label[order]][box]
