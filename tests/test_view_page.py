"""The 3-D page: its data are the truth and the prediction, and a real browser shows it without network access."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from browser import opened
from PIL import Image

import iidrive.report.view
from iidrive.cli.main import main
from iidrive.core.classes import FREE, IGNORE
from iidrive.core.errors import ConfigError, DataError
from iidrive.core.lineage import TRAINED_HERE
from iidrive.core.scene import GridSpec, OccGrid, Scene
from iidrive.data.clips import read_tracks, scored_clips
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.forecast import Forecaster
from iidrive.models.tokenizer import Tokenizer
from iidrive.models.world import WorldModel
from iidrive.pipeline import recipes
from iidrive.pipeline.tokens import codes_in_memory
from iidrive.pipeline.view import view_of
from iidrive.report.page import Page, Table, write_index
from iidrive.report.video import write_video
from iidrive.report.view.page import Candidate, Panel, View, render_view, write_view

WEB = Path(iidrive.report.view.__file__).parent / "web"
SPEC = GridSpec((6, 5, 3), (-3.0, -2.5, -1.0), 1.0)
TOWN = ["--recipe.town.test_scenes=2", "--recipe.town.keyframes=14"]


def small_view() -> View:
    labels = np.full((7, *SPEC.shape), FREE, np.uint8)
    labels[:, :, :, 0] = 11  # road
    labels[:, 5, 4, 1] = IGNORE
    for step in range(7):
        labels[step, min(step, 5), 2, 1] = 4  # a car that drives ahead
    frames = np.tile(np.eye(4), (7, 1, 1))
    frames[:, 0, 3] = np.arange(7)
    ego = np.stack([np.arange(7.0), np.zeros(7), np.zeros(7)], 1)
    boxes = [np.array([[float(step), 0, 0.5, 4, 2, 1.5, 0.1]]) for step in range(7)]
    path = np.stack([np.arange(7.0), np.zeros(7)], 1)
    candidates = (Candidate("-1", path / 2, 0.9, ("1.00",)), Candidate("</script><b>x", path, 0.0, ("0.00",)))
    return View(
        "A <b>street</b>", "lead", SPEC, [0.5 * k for k in range(7)], Panel(labels, frames, ego), boxes, Panel(labels[::-1], frames, ego), path,
        candidates, ("m/s²", "expected"), 1, facts=[("token", "abc")],
    )  # fmt: skip


def read(page: str) -> dict[str, Any]:
    """What the page's script is given."""
    match = re.search(r'<script type="application/json" id="view">(.*?)</script>', page, re.DOTALL)
    assert match
    return json.loads(match[1])


def grids(data: dict[str, Any]) -> np.ndarray:
    labels = np.frombuffer(gzip.decompress(base64.b64decode(data["grids"])), np.uint8)
    return labels.reshape(len(data["panels"]), len(data["seconds"]), *data["shape"])


def test_the_bundle_is_made_of_this_source() -> None:
    first = (WEB / "view.bundle.js").read_text(encoding="utf-8").splitlines()[0]
    for name in ("view.js", "voxels.js", "things.js"):
        made = f"{name} sha256 {hashlib.sha256((WEB / name).read_bytes()).hexdigest()}"
        assert made in first, "run `npm install && npm run build` in report/view/web"
    assert "MIT" in (WEB / "three.LICENSE").read_text(encoding="utf-8")


def test_the_page_holds_the_grids_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    view = small_view()
    page = write_view(view, tmp_path / "new" / "scene.html").read_text(encoding="utf-8")
    data = read(page)
    assert view.imagined is not None
    assert (grids(data) == np.stack([view.true.labels, view.imagined.labels])).all()
    assert data["candidates"][1]["name"] == "</script><b>x", "no text ends the element that holds it"
    assert "<b>" not in page.split("<body>")[1].split("<script")[0]
    assert data["panels"]["true"]["ego"][2][0] == pytest.approx(2 + 1.44, abs=0.1), "the ego's centre lies ahead of its rear axle"
    outside = re.findall(r'(?:src|href|action)\s*=\s*"?\s*(?:https?:)?//', page.split('id="view">')[0])
    assert not outside
    assert "default-src 'none'" in page
    assert page == render_view(view), "the same bytes each time"


def test_what_does_not_fit_is_refused() -> None:
    view = small_view()
    with pytest.raises(DataError, match="true occupancy must be"):
        replace(view, true=replace(view.true, labels=view.true.labels[:3]))
    with pytest.raises(DataError, match="boxes of 7 moments"):
        replace(view, boxes=view.boxes[:2])


_LOOK = """
  const wait = ms => new Promise(done => setTimeout(done, ms)), found = {};
  for (let k = 0; k < 200 && !document.documentElement.dataset.ready; k++) await wait(100);
  const view = window.iidriveView, canvas = document.getElementById("canvas"), slider = document.getElementById("slider");
  const colours = part => {
    const small = Object.assign(document.createElement("canvas"), { width: 64, height: 64 }), pen = small.getContext("2d");
    pen.drawImage(canvas, part * canvas.width / 2, 0, canvas.width / 2, canvas.height, 0, 0, 64, 64);
    const all = pen.getImageData(0, 0, 64, 64).data, kinds = new Set();
    for (let k = 0; k < all.length; k += 4) kinds.add(all[k] << 16 | all[k + 1] << 8 | all[k + 2]);
    return kinds.size;
  };
  const key = name => dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
  const frame = () => new Promise(requestAnimationFrame);
  const picture = async () => { await frame(); await frame(); return canvas.toDataURL(); };
  found.ready = document.documentElement.dataset.ready;
  found.scrolls = document.documentElement.scrollHeight > innerHeight;
  await wait(500);
  found.colours = [colours(0), colours(1)];
  const first = await picture();
  found.counts = [view.counts("true"), view.counts("imagined")];
  slider.value = 4;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  const later = await picture();
  found.moved = first !== later;
  found.time = document.getElementById("time").textContent;
  key("ArrowRight");
  found.step = view.state.step;
  key("b");
  found.boxes = [view.shown.boxes, document.querySelector("[data-layer=boxes]").getAttribute("aria-pressed")];
  found.hidden = later !== await picture();
  key("2");
  await wait(200);
  found.labels = ["true", "imagined"].map(name => document.getElementById(`label-${name}`).hidden);
  const still = await picture();
  canvas.dispatchEvent(new PointerEvent("pointerdown", { pointerId: 1, clientX: 300, clientY: 300, button: 0, bubbles: true, isPrimary: true
  })); document.dispatchEvent(new PointerEvent("pointermove", { pointerId: 1, clientX: 380, clientY: 330, bubbles: true, isPrimary: true
  })); canvas.dispatchEvent(new PointerEvent("pointermove", { pointerId: 1, clientX: 380, clientY: 330, bubbles: true, isPrimary: true }));
  found.turned = still !== await picture();
  key(" ");
  await wait(1200);
  found.played = [view.state.playing, view.state.step !== 5];
  found.rows = [...document.querySelectorAll("#rows tr")].map(row => [row.className, row.textContent]);
  found.classes = [...document.querySelectorAll("#classes li")].map(item => item.textContent);
  return found;
"""


@pytest.mark.slow
def test_the_browser_shows_both_and_asks_nobody(tmp_path: Path) -> None:
    page = write_view(small_view(), tmp_path / "scene.html")
    with opened(page, tmp_path) as tab:
        found = tab.run(_LOOK)
    assert tab.said == []
    assert tab.requests == [page.resolve().as_uri()]
    assert found["ready"] == "yes"
    assert not found["scrolls"], "only the column beside the scene scrolls"
    assert min(found["colours"]) > 8, "both panels show more than their background"
    assert found["counts"] == [{"ground": 30, "static": 0, "users": 1}] * 2
    assert found["moved"]
    assert found["time"] == "2.0 s"
    assert found["step"] == 5
    assert found["boxes"] == [False, "false"]
    assert found["hidden"]
    assert found["labels"] == [False, True]
    assert found["turned"]
    assert found["played"] == [True, True]
    assert found["rows"] == [["", "-11.00"], ["chosen", "</script><b>x0.00"]]
    assert found["classes"] == ["car", "driveable surface"]


_PIXELS = """
  for (let k = 0; k < 200 && !document.documentElement.dataset.ready; k++) await new Promise(done => setTimeout(done, 100));
  const view = window.iidriveView, canvas = document.getElementById("canvas"), frame = () => new Promise(requestAnimationFrame);
  const pixels = async () => {
    await frame(); await frame(); await frame();
    const copy = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height }), pen =
    copy.getContext("2d"); pen.drawImage(canvas, 0, 0);
    return pen.getImageData(0, 0, canvas.width, canvas.height).data;
  };
  const share = (data, test) => {
    let hits = 0;
    for (let k = 0; k < data.length; k += 4) hits += test(data[k], data[k + 1], data[k + 2]);
    return hits / (data.length / 4);
  };
"""


@pytest.mark.slow
def test_boxes_are_seen_in_the_dark_too_and_runs_of_voxels_have_no_gaps(tmp_path: Path) -> None:
    page = write_view(small_view(), tmp_path / "scene.html")
    script = f"""{_PIXELS}
  const bright = (r, g, b) => r > 225 && g > 225 && b > 225, dark = (r, g, b) => r < 40 && g < 45 && b < 50;
  const found = {{ dark: matchMedia("(prefers-color-scheme: dark)").matches }};
  view.toggle("candidates");
  const mark = found.dark ? bright : dark, boxes = share(await pixels(), mark);
  view.toggle("boxes");
  const without = await pixels();
  found.boxes = boxes - share(without, mark);
  found.faces = view.faces("true");
  view.toggle("ground"); view.toggle("users");
  found.empty = view.faces("true");
  return found;
"""
    for theme in ("light", "dark"):
        with opened(page, tmp_path) as tab:
            tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
            found = tab.run(script)
        assert tab.said == []
        assert found["dark"] == (theme == "dark")
        assert found["boxes"] > 1e-3, "edges of boxes stand out from what is behind them"
        assert found["empty"] == 0
        # The road is 6 by 5 with a car on it: runs along y on top, one more where the car parts a run and its corners are dark; four edges; the car.
        assert 15 < found["faces"] < 60, "equal faces in a row are one"


@pytest.mark.slow
def test_a_finger_turns_both_panels_of_a_phone(tmp_path: Path) -> None:
    page = write_view(small_view(), tmp_path / "scene.html")
    with opened(page, tmp_path) as tab:
        tab.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
        tab.call("Emulation.setTouchEmulationEnabled", enabled=True)
        before = tab.run(f"{_PIXELS} return [...(await pixels())].filter((_, k) => k % 997 === 0);")
        for k in range(6):
            kind = "touchMove" if k else "touchStart"
            tab.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": 150 + 20 * k, "y": 300 + 4 * k}])
        tab.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        after = tab.run(f"{_PIXELS} return [...(await pixels())].filter((_, k) => k % 997 === 0);")
        labels = tab.run('return ["true", "imagined"].map(name => document.getElementById(`label-${name}`).getBoundingClientRect().y);')
        width = tab.run("return document.documentElement.scrollWidth;")
        tall = tab.run("return Math.min(...[...document.querySelectorAll('button')].map(button => button.offsetHeight));")
    assert tab.said == []
    assert labels[1] > labels[0] + 200, "one panel stands below the other"
    half = len(before) // 2
    for part in (slice(0, half), slice(half, None)):
        assert before[part] != after[part], "one camera turns both"
    assert width == 390
    assert tall >= 44, "what a finger can hit"


@pytest.mark.slow
def test_tables_sort_in_the_browser_and_intervals_keep_their_rows(tmp_path: Path) -> None:
    table = Table(("planner", "EPDMS"), [("b", "9.5 [8, 10]"), ("a", "-"), ("c", "10.2 [9, 12]"), ("d", "-3.0 [-4, 1]")])
    page = write_index(tmp_path, Page("t", "", tables=[("drives", table)]))
    with opened(page, tmp_path) as tab:
        found = tab.run("""
  const found = {};
  const rows = () => [...document.querySelectorAll("tbody tr")].map(row => row.cells[0].textContent).join("");
  const heads = [...document.querySelectorAll("th button")];
  found.orders = [rows()];
  for (const k of [1, 1, 1, 0, 0]) { heads[k].click(); found.orders.push(rows()); }
  found.sort = [...document.querySelectorAll("th")].map(head => head.getAttribute("aria-sort"));
  return found;
""")
    assert tab.said == []
    assert found["orders"] == ["bacd", "cbda", "dbca", "bacd", "abcd", "dcba"]
    assert found["sort"] == ["descending", "none"]


@pytest.mark.slow
def test_the_command_shows_a_planner_a_world_model_and_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["view", "town-small", "--scene", "town-test-00001", "--out", str(tmp_path / "p.html"), *TOWN])
    data = read((tmp_path / "p.html").read_text(encoding="utf-8"))
    assert list(data["panels"]) == ["true", "imagined"]
    assert len(data["candidates"]) == 10
    assert [float(one["name"]) for one in data["candidates"] if one["name"] != "as proposed"] == [-6, -4, -3, -2, -1, -0.5, 0.5, 1, 2]
    costs = [float(one["told"][3]) for one in data["candidates"]]
    assert costs[data["chosen"]] == min(costs)
    labels = grids(data)
    assert (labels[0, 0] == labels[1, 0]).mean() > 0.98, "at present the imagined scene is the tokens' own"
    source = Town(TownConfig(test_scenes=2, keyframes=14))
    scene = source.scene("town-test-00001")
    keyframe = int(dict(re.findall(r"<dt>(\w+)</dt><dd>(.*?)</dd>", (tmp_path / "p.html").read_text(encoding="utf-8")))["keyframe"])
    truth = source.occupancy(scene, keyframe + 3, GridSpec(tuple(data["shape"]), tuple(data["lower"]), data["voxel"])).semantics
    assert (labels[0, 3] == truth).all()
    ego = scene.keyframes[keyframe].global_T_ego.matrix
    box = scene.keyframes[keyframe + 3].boxes
    seen = np.array(data["boxes"][3])
    then = np.linalg.inv(scene.keyframes[keyframe + 3].global_T_ego.matrix)
    near = np.abs((box.centre_m @ then[:3, :3].T + then[:3, 3])[:, :2]).max(1) <= 32
    assert 0 < near.sum() < len(box), "boxes outside of the grid would stand on nothing"
    assert np.allclose(seen[:, :3] @ ego[:3, :3].T + ego[:3, 3], box.centre_m[near], atol=2e-3)
    assert "no network" in capsys.readouterr().out

    main(["view", "town-small/world", "--keyframe", "2", "--out", str(tmp_path / "w.html"), *TOWN])
    assert read((tmp_path / "w.html").read_text(encoding="utf-8"))["candidates"] == []

    main(["evaluate", "ctrv", "--run", str(tmp_path / "ctrv"), "--recipe.town.test_scenes=2", "--recipe.town.keyframes=14"])
    main(["view", str(tmp_path / "ctrv" / "predictions-ctrv.npz"), "--keyframe", "2", "--out", str(tmp_path / "c.html"), *TOWN])
    shown = read((tmp_path / "c.html").read_text(encoding="utf-8"))
    assert list(shown["panels"]) == ["true"]
    (one,) = shown["candidates"]
    assert one["points"][0] == pytest.approx(scene.keyframes[0].ego_T_lidar.matrix[:2, 3].tolist(), abs=2e-3)


@pytest.mark.slow
def test_what_taints_a_model_stands_on_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--recipe.town.keyframes=14", "--out", str(tmp_path / "m.html")]
    main(["view", "town-small", "--split", "train", "--scene", "town-train-00001", *short])
    page, printed = (tmp_path / "m.html").read_text(encoding="utf-8"), capsys.readouterr().out
    (mark,) = re.findall(r'<p class="mark">(.*?)</p>', page)
    assert TRAINED_HERE in mark
    assert TRAINED_HERE in printed
    main(["view", "town-small", "--recipe.town.test_scenes=1", *short])
    assert '<p class="mark">' not in (tmp_path / "m.html").read_text(encoding="utf-8")
    assert '<p class="mark">&lt;i&gt;</p>' in render_view(replace(small_view(), marks=("<i>",)))


@pytest.mark.slow
def test_a_sample_is_encoded_as_in_its_whole_scene() -> None:
    torch.manual_seed(0)
    source = Town(TownConfig(test_scenes=1, keyframes=22))
    recipe, tokenizer = recipes.tiny(), Tokenizer(recipes.tiny().tokenizer).eval()
    world = WorldModel(recipe.world, tokenizer.cells, tokenizer.config.grid)
    model = Forecaster(tokenizer, world).eval()
    tracks = read_tracks(source, "test")
    clips = scored_clips(tracks, codes_in_memory(tokenizer, source, tracks), source, tokenizer.config.grid)
    for keyframe in (0, 13):
        expected, imagined = model.forecast(clips.batch([clips.samples.index((0, keyframe))]).inputs, range(7))
        read: list[int] = []

        class Counted(Town):
            def occupancy(self, scene: Scene, index: int, spec: GridSpec) -> OccGrid:
                read.append(index)  # noqa: B023 - used up at once
                return super().occupancy(scene, index, spec)

        made = view_of(model, Counted(source.config), tracks[0].name, keyframe)
        assert made.imagined is not None
        assert (made.imagined.labels == expected[0].numpy()).all()
        np.testing.assert_allclose(made.imagined.frames[1:], imagined.now_T_frame[0, :6].numpy(), atol=1e-6)
        back = recipe.tokenizer.quantiser.history + 5
        assert min(read) == max(0, keyframe - back), "no frame is read that nothing needs"
        assert max(read) == keyframe + 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["town-small", "--scene", "town-test-9"], "no such scene"),
        (["town-small", "--keyframe", "12"], "has no full future; those that have one are 0 to 7"),
        (["town-small/tokenizer"], "imagines nothing"),
        (["town-smal"], "Did you mean 'town-small'?"),
        (["town-small", "--out", "scene.txt"], "expected a page or a video"),
        (["town-small", "--keyframe", "2", "--out", "scene.gif"], "a video shows all of a scene"),
    ],
)
def test_what_cannot_be_shown_is_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = [] if "--out" in options else ["--out", str(tmp_path / "x.html")]
    with pytest.raises(SystemExit):
        main(["view", *options, *out, *TOWN])
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x.html").exists()


@pytest.mark.slow
def test_a_scene_becomes_a_video_of_either_kind(tmp_path: Path) -> None:
    main(["evaluate", "ctrv", "--run", str(tmp_path / "ctrv"), "--recipe.town.test_scenes=2", "--recipe.town.keyframes=9"])
    options = [str(tmp_path / "ctrv" / "predictions-ctrv.npz"), "--recipe.town.test_scenes=2", "--recipe.town.keyframes=9"]
    for name in ("new/s.gif", "s.mp4"):
        main(["view", *options, "--out", str(tmp_path / name)])
    with Image.open(tmp_path / "new" / "s.gif") as gif:
        assert gif.n_frames == 3, "samples with a full future"
        first = np.asarray(gif.convert("RGB")).astype(float)
        gif.seek(2)
        assert abs(np.asarray(gif.convert("RGB")) - first).mean() > 1
        assert gif.info["duration"] == 500
    with av.open(str(tmp_path / "s.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == 3
    assert frames[0].shape[:2] == first.shape[:2]
    assert abs(frames[0] - first).mean() < 8, "the same picture, but for what compression takes"


def test_a_video_needs_frames_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no frame"):
        write_video([], tmp_path / "x.gif", 2)

    def broken() -> Iterator[np.ndarray]:
        yield np.zeros((16, 16, 3), np.uint8)
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        write_video(broken(), tmp_path / "x.mp4", 2)
    assert list(tmp_path.iterdir()) == []
