"""Drawing in bird's-eye view, shared by all figures: the picture frame, maps, grids seen from above, styles, and writing PNG files.

The *picture frame* is (right, ahead) = (-y, x) of the ego frame, metres: the driving direction is up, and the ego's left is on the left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from jaxtyping import Float, UInt8
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as Outline

from iidrive.core import geometry
from iidrive.core.classes import FREE, IGNORE, OCC_COLOURS
from iidrive.core.errors import DataError
from iidrive.core.scene import VectorMap
from iidrive.runtime import atomic

Array = np.ndarray

UNKNOWN_COLOUR = (160, 160, 160)
"""RGB of columns with unknown occupancy."""

PLAN_STYLES: tuple[tuple[str, str, str], ...] = (
    ("#0072B2", "--", "^"),
    ("#D55E00", "-.", "s"),
    ("#AA3377", ":", "D"),
    ("#007A5A", "--", "v"),
    ("#7A5C00", "-.", "P"),
)
"""Colour, line style and marker of the planned paths, in the order of `ScenePanel.plans`. No two styles differ only by colour."""


@dataclass(frozen=True)
class _Surface:
    """Style of a map layer: legend text, face or line colour, line style and line width."""

    label: str
    colour: str
    dashes: str = "-"
    width: float = 1.0


MAP_STYLES: dict[str, _Surface] = {
    "vegetation": _Surface("vegetation", "#dcecd2"),
    "building": _Surface("building", "#d8cfc4"),
    "drivable_area": _Surface("drivable area", "#e3e5e8"),
    "walkway": _Surface("walkway", "#f3e9d2"),
    "ped_crossing": _Surface("crossing", "#bcd4ea"),
    "centreline": _Surface("centreline", "#c3c7cc", ":", 0.8),
    "lane_divider": _Surface("lane divider", "#8d949e", "--", 1.1),
    "road_divider": _Surface("road divider", "#b58900", "-", 1.2),
}
"""Drawn map layers, from bottom to top."""


def to_picture(points_m: Float[Array, "*n d"]) -> Float[Array, "*n 2"]:
    """Points (x, y, …) of the ego frame transformed to the picture frame (right, ahead), metres."""
    points = np.asarray(points_m)
    return np.stack([-points[..., 1], points[..., 0]], -1)


def lidar_to_picture(points_m: Float[Array, "n 2"], ego_T_lidar: Float[Array, "4 4"]) -> Float[Array, "n 2"]:
    """Points (x, y) of the lidar frame, at the lidar's height, transformed to the picture frame, metres."""
    points = np.asarray(points_m, np.float64)
    return to_picture(geometry.apply(ego_T_lidar, np.concatenate([points, np.zeros((len(points), 1))], -1)))


def top_down(semantics: UInt8[Array, "X Y Z"]) -> UInt8[Array, "X Y 3"]:
    """RGB image from above: each column has the colour of its highest occupied voxel.

    Columns without an occupied voxel are white, or grey if any of their voxels is unknown (`classes.IGNORE`).

    Raises:
        DataError: for an unknown class number.
    """
    grid = np.asarray(semantics)
    if grid.ndim != 3 or grid.size == 0:
        raise DataError(f"a top-down picture needs semantics of shape (X, Y, Z); found {grid.shape}.")
    unknown = grid == IGNORE
    if (grid[~unknown] > FREE).any():
        raise DataError(f"occupancy holds class {int(grid[~unknown].max())}; classes are 0..{FREE} ({FREE} free) and {IGNORE} unknown.")
    solid = ~unknown & (grid != FREE)
    highest = grid.shape[2] - 1 - np.argmax(solid[:, :, ::-1], axis=2)
    label = np.where(solid.any(2), np.take_along_axis(grid, highest[..., None], 2)[..., 0], FREE)
    colour = OCC_COLOURS[label]
    colour[~solid.any(2) & unknown.any(2)] = UNKNOWN_COLOUR
    return colour


def upright(image: UInt8[Array, "X Y 3"]) -> UInt8[Array, "X Y 3"]:
    """An image of a grid in row order: the first row is farthest ahead, the first column farthest left."""
    return image[::-1, ::-1]


def _parts(shape: shapely.Geometry) -> Iterator[shapely.Geometry]:
    """The simple geometries of any geometry, including nested collections."""
    for part in shapely.get_parts(shape):
        if isinstance(part, shapely.GeometryCollection | shapely.MultiPolygon | shapely.MultiLineString):
            yield from _parts(part)
        elif not shapely.is_empty(part):
            yield part


def draw_map(axes: Axes, layers: VectorMap, global_T_ego: Float[Array, "4 4"], low: Array, high: Array) -> list[Artist]:
    """Draw the map inside the view, between corners `low` and `high` (picture frame, metres). Returns legend handles of the drawn layers."""
    ego_T_global = geometry.invert(global_T_ego)

    def to_view(xy: Array) -> Array:
        # Maps are flat. Put them at the ego's height, so that a small pitch and a distant map origin cause no offset.
        return to_picture(geometry.apply(ego_T_global, np.column_stack([xy, np.full(len(xy), global_T_ego[2, 3])])))

    handles: list[Artist] = []
    for z, (name, style) in enumerate(MAP_STYLES.items()):
        if layers.layers.get(name) is None:
            continue
        near = shapely.clip_by_rect(shapely.transform(shapely.force_2d(layers.layers[name]), to_view), *(low - 2), *(high + 2))
        outlines, lines = [], []
        for part in _parts(near):
            if isinstance(part, shapely.Polygon):
                # Under the non-zero winding rule, holes must have the opposite orientation of their outline.
                rings = shapely.geometry.polygon.orient(part)
                outlines.append(Outline.make_compound_path(*(Outline(np.asarray(r.coords)) for r in (rings.exterior, *rings.interiors))))
            elif isinstance(part, shapely.LineString):
                lines.append(np.asarray(part.coords))
        zorder = 1 + z / 10
        if outlines:
            patches = [PathPatch(outline) for outline in outlines]
            axes.add_collection(PatchCollection(patches, facecolors=style.colour, edgecolors="#00000022", linewidths=0.6, zorder=zorder))
            handles.append(Patch(facecolor=style.colour, edgecolor="#00000044", label=style.label))
        if lines:
            axes.add_collection(LineCollection(lines, colors=style.colour, linestyles=style.dashes, linewidths=style.width, zorder=zorder))
            handles.append(Line2D([], [], color=style.colour, ls=style.dashes, lw=style.width + 0.4, label=style.label))
    return handles


def write_png(canvas: FigureCanvasAgg, path: Path | str) -> Path:
    """Write a canvas as PNG atomically; create the folder. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.whole(path) as temporary:
        canvas.print_png(temporary)
    return path
