"""Bird's-eye figures of one keyframe: map, boxes, true and planned paths, and true and predicted occupancy.

The axes are metres to the right of and ahead of the rear axle: the picture frame of `drawing`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Patch, Rectangle

from iidrive.core import geometry
from iidrive.core.classes import FREE, IGNORE, OCC_CLASSES, OCC_COLOURS, OCC_OF_CATEGORY
from iidrive.core.errors import DataError
from iidrive.core.footprint import EGO_SIZE_M
from iidrive.core.scene import FUTURE_STEPS, OCC3D_GRID, STEP_S, Boxes, GridSpec, Observation, Target, Trajectory, VectorMap
from iidrive.report.drawing import PLAN_STYLES, UNKNOWN_COLOUR, draw_map, lidar_to_picture, to_picture, top_down, upright, write_png

Array = np.ndarray

EGO_AHEAD_M = 0.5
"""Distance from LIDAR_TOP forward to the centre of the ego."""

DPI = 100
FULL_IN, NARROW_IN, HEIGHT_IN = 16.0, 9.6, 9.0
VIEW_AT_IN, VIEW_IN = (0.6, 0.5), (5.5, 7.6)
MARGIN_IN = 0.2
LABEL_IN, LEGEND_IN = 0.3, 2.5
"""In inches: size of the figure (1600x900 px with occupancy, narrower without), the large view, and space for row names and legends."""


TRUE_STYLE = ("black", "-", "o")


@dataclass(frozen=True)
class ScenePanel:
    """The content of one scene figure.

    `plans`: LIDAR_TOP paths (6,2) by name, current lidar frame, metres. `true_occupancy`, `imagined`: uint8 (X,Y,Z) semantics on the grid
    `spec`, one per horizon of `horizons_s` (0 is now) as far as they exist, each in the ego frame at its horizon. An empty tuple leaves out
    the row.

    Raises:
        DataError: if a plan has another shape or NaN, if occupancy does not fit the grid, or if there are more grids than horizons.
    """

    title: str
    observation: Observation
    target: Target
    map: VectorMap = field(default_factory=VectorMap)
    plans: Mapping[str, Float[Array, "6 2"]] = field(default_factory=dict)
    true_occupancy: tuple[UInt8[Array, "X Y Z"], ...] = ()
    imagined: tuple[UInt8[Array, "X Y Z"], ...] = ()
    spec: GridSpec = OCC3D_GRID
    horizons_s: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0)

    def __post_init__(self) -> None:
        if self.observation.token != self.target.token:
            raise DataError(f"a panel shows one sample; found observation {self.observation.token} and target {self.target.token}.")
        for name, plan in self.plans.items():
            if np.shape(plan) != (FUTURE_STEPS, 2) or not np.isfinite(plan).all():
                raise DataError(
                    f"plan '{name}' of sample {self.target.token}: expected {FUTURE_STEPS} finite points (x, y); found shape {np.shape(plan)}"
                    f"{'' if np.isfinite(plan).all() else ' with NaN or infinity'}."
                )
        for name, grids in (("true occupancy", self.true_occupancy), ("imagined occupancy", self.imagined)):
            if len(grids) > len(self.horizons_s):
                raise DataError(
                    f"{len(grids)} grids of {name} for {len(self.horizons_s)} horizons {self.horizons_s}; give one horizon per grid."
                )
            for grid in grids:
                if grid.shape != self.spec.shape or grid.dtype != np.uint8:
                    raise DataError(f"{name} must be uint8 of shape {self.spec.shape}; found {grid.dtype} of shape {grid.shape}.")


def final_error_m(plan: Float[Array, "6 2"], truth: Trajectory) -> float | None:
    """Distance between the last points of a plan and of the true path, metres; None if the scene ends earlier."""
    if not truth.valid[-1]:
        return None
    return float(np.linalg.norm(np.asarray(plan)[-1] - truth.points_m[-1]))


def scene_figure(panel: ScenePanel, path: Path | str) -> Path:
    """Write one PNG of a keyframe: a large bird's-eye view and, if given, true and predicted occupancy.

    The file is written atomically and its folder is created. Returns the path.

    Raises:
        DataError: if occupancy has an unknown class number.
    """
    return write_png(_scene_canvas(panel), path)


def scene_picture(panel: ScenePanel) -> UInt8[Array, "H W 3"]:
    """The figure of `scene_figure` as RGB pixels. Raises DataError as `scene_figure` does."""
    canvas = _scene_canvas(panel)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _scene_canvas(panel: ScenePanel) -> FigureCanvasAgg:
    rows = [(name, grids) for name, grids in (("truth", panel.true_occupancy), ("imagined", panel.imagined)) if grids]
    width_in = FULL_IN if rows else NARROW_IN
    figure = Figure(figsize=(width_in, HEIGHT_IN), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    _headline(figure, panel, width_in)

    view = figure.add_axes(_place(figure, *VIEW_AT_IN, *VIEW_IN))
    paths, rest, seen = draw_view(view, panel)
    left_in, top_in = VIEW_AT_IN[0] + VIEW_IN[0] + 0.3, VIEW_AT_IN[1] + VIEW_IN[1]
    if rows:
        top_in = _occupancies(figure, panel, rows, left_in, top_in)
        left_in += LABEL_IN
    legends = {_paths_title(panel): paths, "classes": _classes(panel, seen), "map and boxes": rest}
    _legends(figure, legends, left_in, top_in, beside=bool(rows))
    return canvas


def draw_view(axes: Axes, panel: ScenePanel) -> tuple[list[Artist], list[Artist], set[int]]:
    """Draw map, boxes, ego and paths into `axes`, in the picture frame.

    Returns legend handles of the paths and of the rest, and the occupancy classes of the boxes in view.
    """
    now = panel.observation.now
    ego_T_lidar = now.ego_T_lidar.matrix
    truth = panel.target.trajectory.points_m[panel.target.trajectory.valid]
    lines = {name: lidar_to_picture(np.vstack([np.zeros((1, 2)), plan]), ego_T_lidar) for name, plan in panel.plans.items()}
    true_line = lidar_to_picture(np.vstack([np.zeros((1, 2)), truth]), ego_T_lidar)
    low, high = _limits(np.vstack([true_line, *lines.values()]))
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", facecolor="#fafaf8")
    axes.tick_params(labelsize=8, colors="#555555", length=3)
    axes.set_ylabel("metres ahead of the rear axle", fontsize=9, color="#555555", labelpad=2)
    axes.set_xlabel("metres to the right", fontsize=9, color="#555555", labelpad=2)
    for spine in axes.spines.values():
        spine.set_color("#aaaaaa")

    rest = draw_map(axes, panel.map, now.global_T_ego.matrix, low, high)
    boxes = now.boxes.moved(geometry.invert(now.global_T_ego.matrix), "ego")
    place = to_picture(boxes.centre_m)
    boxes = boxes.select(np.all((place > low - 1) & (place < high + 1), axis=-1))
    later = panel.target.boxes[-1] if len(panel.target.boxes) > FUTURE_STEPS else None
    if later is not None and len(boxes):
        moved = later.moved(ego_T_lidar, "ego")
        moved = moved.select(np.isin(moved.track, boxes.track))
        _draw_boxes(axes, moved, filled=False)
        label = f"the same boxes at {FUTURE_STEPS * STEP_S:g} s"
        rest.append(Patch(facecolor="none", edgecolor="#666666", linestyle=(0, (2, 1.5)), label=label))
    _draw_boxes(axes, boxes, filled=True)
    centre = ego_T_lidar[None, :2, 3] + np.array([EGO_AHEAD_M, 0.0])
    length, width = np.array(EGO_SIZE_M)[:, None]
    ego = to_picture(geometry.box_corners_bev(centre, length, width, np.zeros(1)))
    axes.add_collection(PolyCollection(list(ego), facecolors="#56B4E9", edgecolors="black", linewidths=1.2, zorder=5))
    rest.insert(0, Patch(facecolor="#56B4E9", edgecolor="black", label="ego"))

    handles = [_path(axes, true_line, "true path", TRUE_STYLE, 3.0, 7)]
    for k, (name, line) in enumerate(lines.items()):
        error = final_error_m(panel.plans[name], panel.target.trajectory)
        label = textwrap.fill(name if error is None else f"{name}: {error:.2f} m", 28)
        handles.append(_path(axes, line, label, PLAN_STYLES[k % len(PLAN_STYLES)], 1.8, 8 + k))
    return handles, rest, set(OCC_OF_CATEGORY[boxes.label].tolist())


def _limits(points: Float[Array, "n 2"]) -> tuple[Array, Array]:
    """Corners of the view, picture frame, metres: at least 32 m ahead, more for longer paths, and wide enough for sharp turns."""
    ahead = max(32.0, float(points[:, 1].max()) + 8)
    behind = min(-10.0, float(points[:, 1].min()) - 5)
    ahead, behind = min(ahead, 90.0), max(behind, -40.0)
    half = VIEW_IN[0] / VIEW_IN[1] / 2
    reach = min(float(np.abs(points[:, 0]).max()) + 5, 60.0)
    if reach > half * (ahead - behind):
        grow = reach / half - (ahead - behind)
        ahead, behind = ahead + 0.7 * grow, behind - 0.3 * grow
    half *= ahead - behind
    return np.array([-half, behind]), np.array([half, ahead])


def _draw_boxes(axes: Axes, boxes: Boxes, filled: bool) -> None:
    """Draw boxes given in the ego frame: filled, with a line from the centre to the front, or as faint dashed outlines."""
    if not len(boxes):
        return
    corners = to_picture(geometry.box_corners_bev(boxes.centre_m[:, :2], boxes.size_m[:, 0], boxes.size_m[:, 1], boxes.yaw_rad))
    colours = OCC_COLOURS[OCC_OF_CATEGORY[boxes.label]] / 255
    if not filled:
        style = {"facecolors": "none", "edgecolors": colours * 0.75, "linestyles": [(0, (2, 1.5))], "alpha": 0.7}
        axes.add_collection(PolyCollection(list(corners), linewidths=1.0, zorder=3, **style))
        return
    axes.add_collection(PolyCollection(list(corners), facecolors=colours, edgecolors="#222222", linewidths=0.8, alpha=0.9, zorder=4))
    front = corners[:, [0, 3]].mean(1)
    ticks = np.stack([corners.mean(1), front], 1)
    axes.add_collection(LineCollection(list(ticks), colors="#222222", linewidths=1.2, zorder=4.1))


def _path(axes: Axes, line: Float[Array, "n 2"], label: str, style: tuple[str, str, str], width: float, zorder: float) -> Artist:
    """Draw a path with a marker at each step but the first, on a white line that separates it from the map."""
    colour, dashes, marker = style
    axes.plot(line[:, 0], line[:, 1], color="white", lw=width + 1.6, alpha=0.8, zorder=6, solid_capstyle="round")
    (drawn,) = axes.plot(line[:, 0], line[:, 1], color=colour, ls=dashes, lw=width, marker=marker, zorder=zorder, label=label)
    drawn.set(markersize=width + 3.8, markeredgecolor="white", markeredgewidth=0.8, markevery=slice(1, None))
    return drawn


def _place(figure: Figure, left_in: float, bottom_in: float, width_in: float, height_in: float) -> tuple[float, float, float, float]:
    """A rectangle in inches as fractions of the figure."""
    across, up = figure.get_size_inches()
    return (left_in / across, bottom_in / up, width_in / across, height_in / up)


def _write(figure: Figure, left_in: float, bottom_in: float, text: str, **style: object) -> None:
    across, up = figure.get_size_inches()
    # Names may contain dollar signs, which are not formulae.
    figure.text(left_in / across, bottom_in / up, text, parse_math=False, **style)  # pyright: ignore[reportArgumentType]


def _seconds(value: float) -> str:
    return "now" if value == 0 else f"{value:g} s"


def _headline(figure: Figure, panel: ScenePanel, width_in: float) -> None:
    now = panel.observation.now
    facts = [f"scene {panel.observation.scene}", f"sample {now.token}", f"command: {now.command.manoeuvre} ({now.command.source})"]
    if len(panel.observation.keyframes) > 1:
        before = panel.observation.keyframes[-2]
        way = now.global_T_ego.translation_m - before.global_T_ego.translation_m
        facts.append(f"{np.linalg.norm(way) / (now.timestamp_us - before.timestamp_us) * 1e6:.1f} m/s")
    if not panel.target.trajectory.complete():
        facts.append(f"the scene ends {int(panel.target.trajectory.valid.sum()) * STEP_S:g} s later")
    shortened = textwrap.shorten(panel.title, int(width_in * 8.2), placeholder=" …")
    _write(figure, MARGIN_IN, 8.6, shortened, fontsize=16, fontweight="bold", va="bottom")
    _write(figure, MARGIN_IN, 8.3, "  ·  ".join(facts), fontsize=10, color="#555555", va="bottom")


def _occupancies(figure: Figure, panel: ScenePanel, rows: list[tuple[str, tuple[Array, ...]]], left_in: float, top_in: float) -> float:
    """Draw small top-down images, one row for truth and one for predictions. Returns the height in inches at which they end."""
    spec, gap_in = panel.spec, 0.1
    columns = len(panel.horizons_s)
    room_in = FULL_IN - MARGIN_IN - left_in - LABEL_IN - gap_in * (columns - 1)
    tallest_in = (top_in - 0.3 - LEGEND_IN) / len(rows) - gap_in
    side_in = min(room_in / columns, tallest_in * spec.shape[1] / spec.shape[0])
    high_in = side_in * spec.shape[0] / spec.shape[1]
    spec_m = np.subtract(spec.upper_m, spec.lower_m)
    right_in, ahead_in = side_in * spec.upper_m[1] / spec_m[1], high_in * (1.5 - spec.lower_m[0]) / spec_m[0]
    across_in, up_in = figure.get_size_inches()
    sheet = figure.add_axes((0, 0, 1, 1), xlim=(0, across_in), ylim=(0, up_in))  # one for all pictures, in inches: axes are slow to make
    sheet.set_axis_off()
    egos = []
    bottom_in = top_in - 0.22
    for name, grids in rows:
        bottom_in -= high_in
        _write(figure, left_in + 0.14, bottom_in + high_in / 2, name, rotation=90, fontsize=12, fontweight="bold", ha="center", va="center")
        for k, horizon in enumerate(panel.horizons_s):
            x_in = left_in + LABEL_IN + k * (side_in + gap_in)
            there = k < len(grids)
            frame = Rectangle(
                (x_in, bottom_in), side_in, high_in, facecolor="none" if there else "#f2f2f2", edgecolor="#999999", lw=0.8, zorder=2
            )
            sheet.add_patch(frame)
            if name == rows[0][0]:
                _write(figure, x_in + side_in / 2, bottom_in + high_in + 0.06, _seconds(horizon), fontsize=11, ha="center")
            if not there:
                words = "none:\nthe scene ends" if name == "truth" else "none"
                _write(figure, x_in + side_in / 2, bottom_in + high_in / 2, words, ha="center", va="center", color="#666666")
                continue
            extent = (x_in, x_in + side_in, bottom_in, bottom_in + high_in)
            sheet.imshow(upright(top_down(grids[k])), extent=extent, interpolation="nearest", aspect="auto", zorder=1)
            egos.append((x_in + right_in, bottom_in + ahead_in))
        bottom_in -= gap_in
    if egos:
        sheet.plot(*np.array(egos).T, ls="none", marker="^", color="white", mec="black", ms=7, mew=1.1, zorder=3)
    _write(
        figure, left_in + LABEL_IN, bottom_in - 0.1, "occupancy seen from above, each picture around the ego (triangle) at its own moment, "
        f"{spec.shape[0] * spec.voxel_m:g} m ahead-to-behind", fontsize=9, color="#555555", va="center",
    )  # fmt: skip
    return bottom_in - 0.25


def _classes(panel: ScenePanel, seen: set[int]) -> list[Artist]:
    """Legend handles of the classes of the boxes in view (`seen`) and of the occupancy."""
    held = set(seen)
    for grid in (*panel.true_occupancy, *panel.imagined):
        held |= set(np.flatnonzero(np.bincount(grid.ravel(), minlength=256)).tolist())
    labels = {k: OCC_CLASSES[k].replace("_", " ") for k in sorted(held - {FREE, IGNORE})}
    colours = {k: tuple(OCC_COLOURS[k] / 255) for k in labels}
    if IGNORE in held:
        labels[IGNORE], colours[IGNORE] = "unknown", tuple(np.array(UNKNOWN_COLOUR) / 255)
    return [Patch(facecolor=colours[k], edgecolor="#00000066", label=labels[k]) for k in labels]


def _paths_title(panel: ScenePanel) -> str:
    last = f"{FUTURE_STEPS * STEP_S:g} s"
    if not panel.plans:
        return "path"
    if panel.target.trajectory.valid[-1]:
        return f"paths, with their distance\nfrom the true one at {last} (L2)"
    return f"paths (no L2: the scene\nends before {last})"


def _legends(figure: Figure, legends: Mapping[str, list[Artist]], left_in: float, top_in: float, beside: bool) -> None:
    """Draw the legends: side by side below the occupancy, or one below the other."""
    for title, handles in legends.items():
        if not handles:
            continue
        x, y, _, _ = _place(figure, left_in, top_in, 0, 0)
        columns = 2 if beside and len(handles) > 10 else 1
        drawn: Legend = figure.legend(
            handles=handles, title=title, loc="upper left", bbox_to_anchor=(x, y), ncols=columns, alignment="left", frameon=False,
            fontsize=10, title_fontproperties={"weight": "bold", "size": 10},
            handlelength=2.6, columnspacing=1.0, labelspacing=0.35, borderaxespad=0.0, borderpad=0.2,
        )  # fmt: skip
        for text in drawn.get_texts():
            text.set_parse_math(False)
        extent = drawn.get_window_extent()
        left_in, top_in = (left_in + extent.width / DPI + 0.25, top_in) if beside else (left_in, top_in - extent.height / DPI - 0.2)
