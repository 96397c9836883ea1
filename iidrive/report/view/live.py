"""The 3-D view of a whole scene, served to a browser on this machine by viser (extra `view`), with sliders for the keyframe and the time ahead.

It shows the same content as the page (`View`). Everything is in the ego frame of the keyframe, metres: x ahead, y left, z up. The imagined panel is
to the right of the true one.

Shapes: N voxels, n boxes, L line segments.
"""

from __future__ import annotations

import colorsys
import html
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, RLock
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from iidrive.core import geometry
from iidrive.core.classes import FREE, IGNORE, OCC_COLOURS
from iidrive.core.errors import ConfigError
from iidrive.core.scene import STEP_S, GridSpec, Pose
from iidrive.report.view.page import Panel, View, ego_boxes

Array = np.ndarray

HOST = "127.0.0.1"
"""The server can be reached from this machine only."""

GAP_M = 6.0
"""Gap between the panels, metres."""

_CUBE = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)], np.float32)
_FACES = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]],
    np.uint32,
)
_EDGES = np.array([(a, b) for a in range(8) for b in range(a + 1, 8) if np.abs(_CUBE[a] - _CUBE[b]).sum() == 1])
_DARK, _EGO = (16, 20, 26), (31, 111, 214)


@dataclass(frozen=True)
class SceneViews:
    """The views of a scene: the `keyframes` with a view, the first one to show, and a function that makes the view of a keyframe."""

    name: str
    keyframes: tuple[int, ...]
    first: int
    view: Callable[[int], View]


class LiveView:
    """A served scene. It shows the state of the sliders. `nodes`: viser handles of the shown objects, by name."""

    def __init__(self, views: SceneViews, port: int = 8080) -> None:
        """Serve on `port` of the loopback interface, or on the next free port.

        Raises:
            ConfigError: without viser, or if no port is free.
        """
        viser = require_viser()
        self.views = views
        try:
            self.server = viser.ViserServer(host=HOST, port=port, label="iidrive", verbose=False)
        except OSError as error:
            raise ConfigError(f"--port {port}: cannot serve there ({error.strerror or error}); give another.") from error
        self._lock, self._ended = RLock(), Event()
        self._held: View | None = None
        self._shown: tuple[object, ...] = ()
        self.nodes: dict[str, Any] = {}
        gui = self.server.gui
        gui.configure_theme(show_logo=False, show_share_button=False, control_width="large")
        gui.main_panel.dock_right()
        low, high = views.keyframes[0], views.keyframes[-1]
        self.keyframe = gui.add_slider("keyframe", low, max(high, low + 1), 1, views.first)
        self.ahead_s = gui.add_slider("s ahead", 0.0, 3.0, STEP_S, 0.0)
        self.playing = gui.add_checkbox("play the scene", False)
        self.with_boxes = gui.add_checkbox("true boxes", True)
        self.with_paths = gui.add_checkbox("paths", True)
        self.told = gui.add_html("")
        for handle in (self.keyframe, self.ahead_s, self.with_boxes, self.with_paths):
            handle.on_update(lambda _: self.refresh())
        self.server.on_client_connect(self._look)
        self.refresh()

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server.get_port()}"

    @property
    def marks(self) -> tuple[str, ...]:
        """Marks of the model."""
        return () if self._held is None else tuple(self._held.marks)

    def refresh(self) -> None:
        """Update the scene to the current state of the controls."""
        with self._lock:
            keyframe = min(self.views.keyframes, key=lambda one: abs(one - self.keyframe.value))
            wanted = (keyframe, round(self.ahead_s.value / STEP_S), self.with_boxes.value, self.with_paths.value)
            if wanted == self._shown or self._ended.is_set():
                return
            if self._held is None or not self._shown or self._shown[0] != keyframe:
                self._held = self.views.view(keyframe)
                self.told.content = _told(self._held)
            with self.server.atomic():
                self.nodes = _show(self.server.scene, self._held, *wanted[1:])
            self._shown = wanted

    def step(self) -> None:
        """Show the next keyframe; after the last one, the first."""
        later = [one for one in self.views.keyframes if one > self.keyframe.value]
        self.keyframe.value = later[0] if later else self.views.keyframes[0]
        self.refresh()

    def serve(self) -> None:
        """Serve until `stop` is called, or until Ctrl-C."""
        try:
            while not self._ended.wait(STEP_S):
                if self.playing.value:
                    self.step()
        except KeyboardInterrupt:
            pass
        finally:
            self.stop()

    def stop(self) -> None:
        """Stop serving. A second call does nothing."""
        if not self._ended.is_set():
            self._ended.set()
            with self._lock:
                self.server.stop()

    def _look(self, client: Any) -> None:
        """Set the camera of a new browser behind and above the ego."""
        with self._lock:
            view = self._held
        if view is not None:
            wide = _width_m(view.spec)
            middle = 0.0 if view.imagined is None else -(wide + GAP_M) / 2
            client.camera.position = (-0.8 * wide, middle, 0.8 * wide)
            client.camera.look_at = (0.1 * wide, middle, 0.0)


def require_viser() -> ModuleType:
    """The viser package. Raises ConfigError if it is not installed."""
    try:
        return importlib.import_module("viser")
    except ImportError as error:
        raise ConfigError("--live needs viser: pip install 'iidrive[view]'. Or leave --live out and write a page.") from error


def visible_voxels(labels: UInt8[Array, "X Y Z"], spec: GridSpec) -> tuple[Float[Array, "N 3"], UInt8[Array, "N 3"]]:
    """Centres (metres) and colours of the occupied voxels with at least one open face. Unknown voxels count as open."""
    solid = np.pad((labels != FREE) & (labels != IGNORE), 1)
    inner = solid[1:-1, 1:-1, 1:-1]
    around = [np.roll(solid, by, axis)[1:-1, 1:-1, 1:-1] for axis in range(3) for by in (-1, 1)]
    at = np.argwhere(inner & ~np.logical_and.reduce(around))
    centres = np.array(spec.lower_m) + (at + 0.5) * spec.voxel_m
    return centres.astype(np.float32), OCC_COLOURS[labels[tuple(at.T)]].astype(np.uint8)


def box_edges(boxes: Float[Array, "n 7"]) -> Float[Array, "n*12 2 3"]:
    """The twelve edges of each box (centre, length, width, height, yaw)."""
    local = _CUBE * boxes[:, None, 3:6]
    xy = geometry.placed(boxes[:, None, :2], boxes[:, None, 6], local[..., :2])
    corners = np.concatenate([xy, boxes[:, None, 2:3] + local[..., 2:]], -1)
    return corners[:, _EDGES].reshape(-1, 2, 3)


def _show(scene: Any, view: View, step: int, with_boxes: bool, with_paths: bool) -> dict[str, Any]:
    """Show one time step of a view in the scene. Returns viser's handles by name."""
    made = {}
    for name, panel, aside in (("true", view.true, 0.0), ("imagined", view.imagined, -(_width_m(view.spec) + GAP_M))):
        if panel is not None:
            scene.add_frame(name, show_axes=False, position=(0.0, aside, 0.0))
            scene.add_label(f"{name}/name", name, position=(view.spec.upper_m[0], 0.0, view.spec.upper_m[2]))
            made |= _show_panel(scene, name, panel, view, step, with_boxes, with_paths)
    return made


def _show_panel(scene: Any, name: str, panel: Panel, view: View, step: int, with_boxes: bool, with_paths: bool) -> dict[str, Any]:
    centres, colours = visible_voxels(panel.labels[step], view.spec)
    pose, upright = Pose.from_matrix(panel.frames[step]), np.tile([1.0, 0.0, 0.0, 0.0], (len(centres), 1))
    made = {
        f"{name}/voxels": scene.add_batched_meshes_simple(
            f"{name}/voxels", _CUBE * view.spec.voxel_m, _FACES, upright, centres, batched_colors=colours, lod="off", flat_shading=True,
            wxyz=pose.rotation, position=pose.translation_m,
        )
    }  # fmt: skip
    ego, boxes = ego_boxes(panel.ego[step : step + 1])[0], np.asarray(view.boxes[step], np.float64)
    made[f"{name}/ego"] = scene.add_box(
        f"{name}/ego", _EGO, ego[3:6], wxyz=geometry.yaw_quaternion(float(ego[6])), position=ego[:3]
    )  # fmt: skip
    shown = with_boxes and len(boxes) > 0
    lines = [("boxes", box_edges(boxes) if shown else np.zeros((1, 2, 3)), _DARK, 0.12, shown)]
    lines += [(f"way {k}", *way, with_paths) for k, way in enumerate(_ways(view, step))]
    for part, pieces, colour, wide, visible in lines:
        made[f"{name}/{part}"] = scene.add_line_segments(f"{name}/{part}", pieces, colour, thickness=wide, visible=visible)
    return made


def _ways(view: View, step: int) -> list[tuple[Float[Array, "L 2 3"], tuple[int, int, int], float]]:
    """Candidates and the true path as line segments, colours and widths. Green: predicted free, red: predicted collision. The true path is dashed.
    Candidates are drawn side by side, as on the page, with a post at the position of the time step."""
    out, ground_m = [], _ground_m(view.spec)
    for k, one in enumerate(view.candidates):
        points = one.points_m + np.array([0.0, 0.0 if view.chosen < 0 else 0.5 * (view.chosen - k)])
        red, green, blue = colorsys.hls_to_rgb(130 / 360 * (1 - min(1.0, max(0.0, one.risk))), 0.45, 0.8)
        colour = (round(255 * red), round(255 * green), round(255 * blue))
        out.append((_pieces(points, ground_m + 0.2), colour, 0.6 if k == view.chosen else 0.2))
        post = np.concatenate([np.tile(points[step], (2, 1)), [[ground_m], [ground_m + 1.0]]], 1)
        out.append((post[None], colour, 0.6 if k == view.chosen else 0.3))
    if view.path_m is not None:
        out.append((_pieces(view.path_m, ground_m + 0.3)[::2], _DARK, 0.3))
    return out


def _pieces(points_m: Float[Array, "p 2"], z_m: float, parts: int = 8) -> Float[Array, "L 2 3"]:
    """A path as short line segments at height `z_m`."""
    at = np.linspace(0, len(points_m) - 1, (len(points_m) - 1) * parts + 1)
    line = np.stack([np.interp(at, np.arange(len(points_m)), points_m[:, k]) for k in (0, 1)], 1)
    line = np.concatenate([line, np.full((len(line), 1), z_m)], 1)
    return np.stack([line[:-1], line[1:]], 1)


def _told(view: View) -> str:
    """HTML beside the scene: marks, facts, candidates, note. All texts are escaped, because names come from files."""
    marks = "".join(f"<p><b>{html.escape(mark)}</b></p>" for mark in view.marks)
    facts = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in view.facts)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in view.headings)
    rows = ""
    for k, one in enumerate(view.candidates):
        cells = [one.name + (" (chosen)" if k == view.chosen else ""), *one.told]
        rows += "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
    table = f"<table><tr>{head}</tr>{rows}</table>" if view.candidates else ""
    text = f"{marks}<p>{html.escape(view.title)}</p><table>{facts}</table>{table}<p>{html.escape(view.note)}</p>"
    return f'<div style="font-size: 0.8em; padding: 0 0.75em">{text}</div>'


def _ground_m(spec: GridSpec) -> float:
    """Top of the voxels at height 0, on which paths are drawn, metres."""
    low = float(spec.lower_m[2])
    return low + (np.floor(-low / spec.voxel_m) + 1) * spec.voxel_m


def _width_m(spec: GridSpec) -> float:
    return float(spec.upper_m[1] - spec.lower_m[1])
