"""Scene figures: colours seen from above, orientation, and files that are really pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Patch

from iidrive.core.classes import CATEGORY_INDEX, FREE, IGNORE, OCC, OCC_COLOURS
from iidrive.core.errors import DataError
from iidrive.core.scene import Boxes, Command, GridSpec, Keyframe, OccGrid, Pose, Scene, VectorMap
from iidrive.data.source import window
from iidrive.report import drawing, figures

SPEC = GridSpec((40, 30, 4), (-20.0, -15.0, -1.0), 1.0)
YAW = 0.7
LIDAR = Pose.from_matrix(np.array([[0, 1, 0, 0.94], [-1, 0, 0, 0], [0, 0, 1, 1.84], [0, 0, 0, 1.0]]))
"""The lidar's x looks to the ego's right, its y ahead."""


class _NoOccupancy:
    """A source that must not be asked for occupancy."""

    def occupancy(self, scene: Scene, index: int, spec: GridSpec) -> OccGrid:
        raise AssertionError("nobody asked for occupancy")


def _at(along: float, left: float) -> np.ndarray:
    """A global point of the street, which starts at (1000, 600) and runs in the direction YAW."""
    return np.array([1000 + along * np.cos(YAW) - left * np.sin(YAW), 600 + along * np.sin(YAW) + left * np.cos(YAW), 3.0])


def _scene(keyframes: int = 12) -> Scene:
    """A straight drive at 6 m/s; a car 20 m further and 5 m left at keyframe 4 comes nearer at 4 m/s, a walker stands on the right."""
    road = shapely.Polygon([_at(*corner)[:2] for corner in ((-60, -6), (120, -6), (120, 9), (-60, 9))])
    island = shapely.Polygon([_at(*corner)[:2] for corner in ((28, 3), (32, 3), (32, 6), (28, 6))])
    divider = shapely.LineString([_at(-60, 1.5)[:2], _at(120, 1.5)[:2]])
    layers = {
        "drivable_area": road - island,
        "lane_divider": divider,
        "building": shapely.GeometryCollection([shapely.MultiPolygon([island])]),
    }
    made = []
    for k in range(keyframes):
        centre = np.stack([_at(32 - 2 * (k - 4), 5), _at(20, -8)])
        boxes = Boxes(
            "global", centre, np.array([[4.5, 1.9, 1.6], [0.7, 0.7, 1.8]]), np.array([YAW + np.pi, YAW]),
            np.array([CATEGORY_INDEX["vehicle.car"], CATEGORY_INDEX["human.pedestrian.adult"]]), ("car", "walker"), np.array([5, 5]),
        )  # fmt: skip
        x, y, _ = _at(3.0 * k, 0)
        pose = replace(Pose.from_xy_yaw(x, y, YAW), translation_m=np.array([x, y, 3.0]))
        made.append(Keyframe(f"token{k}", 500_000 * k, pose, LIDAR, boxes, Command("straight", "route")))
    return Scene("street", tuple(made), VectorMap(layers))


def _panel(index: int = 4) -> figures.ScenePanel:
    scene = _scene()
    observation, target = window(_NoOccupancy(), scene, index)  # pyright: ignore[reportArgumentType]
    steps = np.arange(1, 7)[:, None]
    plans = {"planner, ii on": steps * [0.0, 3.0], "constant-velocity": steps * [0.5, 2.0]}
    return figures.ScenePanel("A street", observation, target, scene.map, plans, spec=SPEC)


def _grid() -> np.ndarray:
    grid = np.full(SPEC.shape, FREE, np.uint8)
    grid[:, :, 0] = OCC["driveable_surface"]
    return grid


def _drawn(panel: figures.ScenePanel) -> tuple[np.ndarray, Figure]:
    """The large view alone, as RGBA pixels, with its figure."""
    figure = Figure(figsize=(5.5, 7.6), dpi=100)
    canvas = figures.FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    figures.draw_view(axes, panel)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()), figure


def _pixel(picture: np.ndarray, figure: Figure, right_m: float, ahead_m: float) -> np.ndarray:
    """The colour at a place of the picture frame."""
    x, y = figure.axes[0].transData.transform((right_m, ahead_m))
    return picture[picture.shape[0] - 1 - int(y), int(x), :3] / 255


def test_top_down_takes_the_highest_known_voxel() -> None:
    grid = np.full((2, 3, 4), FREE, np.uint8)
    grid[0, 0, :2] = OCC["driveable_surface"], OCC["car"]
    grid[0, 1, 0] = OCC["sidewalk"]
    grid[0, 1, 3] = IGNORE
    grid[1, 0, 2] = IGNORE
    grid[1, 1, 0], grid[1, 1, 3] = OCC["terrain"], OCC["vegetation"]
    grid[1, 2, 0] = OCC["others"]
    colours = drawing.top_down(grid)
    assert colours.shape == (2, 3, 3)
    assert colours.dtype == np.uint8
    for (x, y), name in {(0, 0): "car", (0, 1): "sidewalk", (0, 2): "free", (1, 1): "vegetation", (1, 2): "others"}.items():
        assert tuple(colours[x, y]) == tuple(OCC_COLOURS[OCC[name]]), name
    assert tuple(colours[0, 2]) == (255, 255, 255)
    assert tuple(colours[1, 0]) == drawing.UNKNOWN_COLOUR


def test_top_down_leaves_the_colour_table_alone() -> None:
    before = OCC_COLOURS.copy()
    drawing.top_down(np.full((2, 2, 2), IGNORE, np.uint8))
    assert (before == OCC_COLOURS).all()


@pytest.mark.parametrize("grid", [np.full((2, 2, 2), 18, np.uint8), np.zeros((2, 2), np.uint8), np.zeros((2, 2, 0), np.uint8)])
def test_top_down_refuses_other_arrays(grid: np.ndarray) -> None:
    with pytest.raises(DataError):
        drawing.top_down(grid)


def test_upright_puts_ahead_left_into_the_upper_left() -> None:
    grid = np.full(SPEC.shape, FREE, np.uint8)
    ahead, left = 35, 25  # of 40 cells in x (forward) and 30 in y (left)
    grid[ahead, left, 1] = OCC["car"]
    rows, columns = np.nonzero((drawing.upright(drawing.top_down(grid)) != 255).any(-1))
    assert rows.tolist() == [4]
    assert columns.tolist() == [4]


def test_a_box_ahead_left_ends_in_the_upper_left() -> None:
    panel = _panel()
    now = panel.observation.now
    car = now.boxes.moved(np.linalg.inv(now.global_T_ego.matrix), "ego").centre_m[0]
    np.testing.assert_allclose(car[:2], (20, 5), atol=1e-9)
    np.testing.assert_allclose(drawing.to_picture(car), (-5, 20), atol=1e-9)
    assert panel.target.boxes[0] is not None
    np.testing.assert_allclose(drawing.lidar_to_picture(panel.target.boxes[0].centre_m[:1, :2], LIDAR.matrix), [(-5, 20)], atol=1e-9)


def test_the_true_path_runs_up_from_the_lidar() -> None:
    path = drawing.lidar_to_picture(_panel().target.trajectory.points_m, LIDAR.matrix)
    np.testing.assert_allclose(path, np.stack([np.zeros(6), 0.94 + 3.0 * np.arange(1, 7)], -1), atol=1e-5)


def test_the_view_shows_boxes_map_and_holes_where_they_are() -> None:
    picture, figure = _drawn(_panel())
    car = OCC_COLOURS[OCC["car"]] / 255
    road = np.array(to_rgba(drawing.MAP_STYLES["drivable_area"].colour)[:3])
    assert np.abs(_pixel(picture, figure, -4.4, 21.5) - car).max() < 0.15, "the car is ahead on the left"
    assert np.abs(_pixel(picture, figure, 4.4, 21.5) - road).max() < 0.02, "nothing stands ahead on the right"
    assert np.abs(_pixel(picture, figure, -8.0, 5.0) - road).max() < 0.02, "the road reaches 9 m to the left"
    assert np.abs(_pixel(picture, figure, 8.0, 5.0) - road).max() > 0.03, "and 6 m to the right"
    without = replace(_panel(), map=VectorMap({"drivable_area": _scene().map.layers["drivable_area"]}))
    picture, figure = _drawn(without)
    assert np.abs(_pixel(picture, figure, -3.5, 19.5 - 2.5) - road).max() > 0.03, "the island is a hole in the road"


def test_the_tick_points_where_the_car_goes() -> None:
    picture, figure = _drawn(_panel())
    assert _pixel(picture, figure, -5.0, 18.8).max() < 0.4, "the car comes towards the ego: its tick points down"
    assert _pixel(picture, figure, -5.0, 21.2).max() > 0.7


def test_the_view_grows_with_the_paths() -> None:
    panel = _panel()
    _, usual = _drawn(panel)
    steps = np.arange(1, 7)[:, None]
    _, fast = _drawn(replace(panel, plans={"fast": steps * [0.0, 10.0]}))
    _, turning = _drawn(replace(panel, plans={"turning": steps * [4.0, 1.0]}))
    assert usual.axes[0].get_ylim()[1] < 61 < fast.axes[0].get_ylim()[1]
    assert usual.axes[0].get_xlim()[1] < 24 < turning.axes[0].get_xlim()[1]


def test_the_legend_shows_l2_at_three_seconds() -> None:
    panel = _panel()
    paths, rest, classes = figures.draw_view(Figure().add_subplot(), panel)
    assert [p.get_label() for p in paths] == ["true path", "planner, ii on: 0.00 m", f"constant-velocity: {np.hypot(3, 6):.2f} m"]
    assert len({(p.get_linestyle(), p.get_marker()) for p in paths}) == 3  # pyright: ignore[reportAttributeAccessIssue]
    assert {"ego", "drivable area", "lane divider", "building", "the same boxes at 3 s"} == {p.get_label() for p in rest}
    assert classes == {OCC["car"], OCC["pedestrian"]}
    assert all(isinstance(p, Patch) for p in rest[:1])


def test_without_a_full_future_there_is_no_l2() -> None:
    panel = _panel(index=8)
    assert not panel.target.trajectory.complete()
    assert figures.final_error_m(np.zeros((6, 2)), panel.target.trajectory) is None
    paths, rest, _ = figures.draw_view(Figure().add_subplot(), panel)
    assert [p.get_label() for p in paths] == ["true path", "planner, ii on", "constant-velocity"]
    assert len(paths[0].get_xdata()) == 4, "now and the three keyframes that are left"  # pyright: ignore[reportAttributeAccessIssue]
    assert "the same boxes at 3 s" not in {p.get_label() for p in rest}


def _right_part(path: Path) -> np.ndarray:
    return imread(path)[100:540, 700:, :3]


@pytest.mark.slow
def test_a_figure_with_everything(tmp_path: Path) -> None:
    imagined = _grid()
    imagined[20:, 15:, 2] = OCC["vegetation"]
    panel = replace(_panel(), true_occupancy=(_grid(),) * 4, imagined=(imagined,) * 4)
    path = figures.scene_figure(panel, tmp_path / "figures" / "scene.png")
    assert path == tmp_path / "figures" / "scene.png"
    assert imread(path).shape[:2] == (900, 1600)
    assert [p.name for p in path.parent.iterdir()] == ["scene.png"], "no temporary file stays"
    small = np.round(_right_part(path) * 255).astype(int)
    green = (small == OCC_COLOURS[OCC["vegetation"]]).all(-1)
    surface = (small == OCC_COLOURS[OCC["driveable_surface"]]).all(-1)
    assert green.sum() > 5_000
    assert surface.sum() > 5 * green.sum()
    assert np.nonzero(green)[0].mean() > np.nonzero(surface)[0].mean(), "what was imagined stands below the truth"


@pytest.mark.slow
def test_figures_of_what_is_there(tmp_path: Path) -> None:
    panel = _panel(index=8)
    bare = replace(panel, title="costs $5 and $6", map=VectorMap(), plans={})
    narrow = imread(figures.scene_figure(bare, tmp_path / "bare.png"))
    assert narrow.shape[0] == 900
    assert narrow.shape[1] < 1200, "without occupancies the right part is left out"
    assert narrow[..., :3].std() > 0.02
    for name, part in {"truth": {"true_occupancy": (_grid(),) * 2}, "imagined": {"imagined": (_grid(),) * 4}}.items():
        path = figures.scene_figure(replace(panel, **part), tmp_path / f"{name}.png")
        assert imread(path).shape[:2] == (900, 1600)
    # Two of four moments exist: the other two pictures stay empty.
    surface = OCC_COLOURS[OCC["driveable_surface"]]
    counts = [((np.round(_right_part(tmp_path / f"{n}.png") * 255)) == surface).all(-1).sum() for n in ("truth", "imagined")]
    assert counts[1] == pytest.approx(2 * counts[0], rel=0.05)


@pytest.mark.slow
def test_a_scene_without_boxes_or_past(tmp_path: Path) -> None:
    scene = _scene(1)
    lone = replace(scene.keyframes[0], boxes=Boxes.empty("global"))
    observation, target = window(_NoOccupancy(), replace(scene, keyframes=(lone,)), 0)  # pyright: ignore[reportArgumentType]
    path = figures.scene_figure(figures.ScenePanel("Alone", observation, target), tmp_path / "alone.png")
    assert path.stat().st_size > 5_000


@pytest.mark.slow
def test_the_same_panel_gives_the_same_file(tmp_path: Path) -> None:
    panel = _panel()
    first, second = (figures.scene_figure(panel, tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"plans": {"short": np.zeros((5, 2))}}, "plan 'short'"),
        ({"plans": {"broken": np.full((6, 2), np.nan)}}, "NaN"),
        ({"true_occupancy": (np.zeros((2, 2, 2), np.uint8),)}, "true occupancy"),
        ({"imagined": (np.zeros(SPEC.shape, np.int64),)}, "imagined occupancy"),
        ({"imagined": (np.zeros(SPEC.shape, np.uint8),) * 5}, "5 grids"),
        ({"target": replace(_panel().target, token="another")}, "another"),
    ],
)
def test_a_panel_refuses_what_does_not_fit(change: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        replace(_panel(), **change)
