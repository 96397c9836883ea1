"""A whole scene served by viser: to this machine alone, what the sliders say, until it is stopped."""

from __future__ import annotations

import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import opened
from test_view_page import SPEC, TOWN, small_view

from iidrive.cli.main import main
from iidrive.core.classes import FREE, IGNORE, OCC_COLOURS
from iidrive.core.errors import DataError
from iidrive.data.clips import read_tracks
from iidrive.data.town.source import Town, TownConfig
from iidrive.pipeline.view import view_of_subject, views_of_subject
from iidrive.report.view.live import HOST, LiveView, SceneViews, box_edges, visible_voxels
from iidrive.report.view.page import View
from iidrive.scoring.predictions import Predictions
from iidrive.training import checkpoint


def free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return one.getsockname()[1]


@pytest.fixture
def asked() -> list[int]:
    return []


@pytest.fixture
def live(asked: list[int]) -> Iterator[LiveView]:
    pytest.importorskip("viser", reason="viser is not installed (pip install 'iidrive[view]')")

    def view(keyframe: int) -> View:
        asked.append(keyframe)
        return replace(small_view(), title=f"keyframe {keyframe} <b>", marks=("MARKED",))

    served = LiveView(SceneViews("scene", (3, 4, 6), 4, view), free_port())
    yield served
    served.stop()


def test_a_voxel_is_seen_if_a_face_of_it_is_free() -> None:
    labels = np.full((3, 3, 3), 4, np.uint8)
    centres, colours = visible_voxels(labels, SPEC)
    assert len(centres) == 26, "all but the middle one"
    assert (colours == OCC_COLOURS[4]).all()
    labels[1, 1, 2] = IGNORE
    assert len(visible_voxels(labels, SPEC)[0]) == 26, "one is unknown, the middle one is open now"
    labels[:] = FREE
    labels[2, 0, 1] = 11
    assert visible_voxels(labels, SPEC)[0].tolist() == [[-0.5, -2.0, 0.5]]
    labels[:] = FREE
    assert visible_voxels(labels, SPEC)[0].shape == (0, 3)


def test_the_edges_of_a_box() -> None:
    edges = box_edges(np.array([[1.0, 2.0, 3.0, 4.0, 2.0, 6.0, np.pi / 2]]))
    assert edges.shape == (12, 2, 3)
    lengths = np.linalg.norm(edges[:, 0] - edges[:, 1], axis=1).round(6)
    assert sorted(lengths.tolist()) == [2.0] * 4 + [4.0] * 4 + [6.0] * 4
    np.testing.assert_allclose(edges.reshape(-1, 3).min(0), [0, 0, 0], atol=1e-9)
    np.testing.assert_allclose(edges.reshape(-1, 3).max(0), [2, 4, 6], atol=1e-9)


def test_it_serves_this_machine_alone_and_stops(live: LiveView) -> None:
    assert live.url == f"http://127.0.0.1:{live.server.get_port()}"
    with urllib.request.urlopen(live.url, timeout=10) as page:
        assert b"<html" in page.read()
    if not Path("/proc/net/tcp").exists():
        pytest.skip("this system does not say who listens where")
    mine = f":{live.server.get_port():04X}"
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"]
    assert [place for place in listening if place.endswith(mine)] == [f"0100007F{mine}"]
    other = [line.split()[1] for line in Path("/proc/net/tcp6").read_text().splitlines()[1:] if line.split()[3] == "0A"]
    assert not [place for place in other if place.endswith(mine)]
    live.stop()
    live.stop()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(live.url, timeout=2)


def test_the_sliders_move_the_scene(live: LiveView, asked: list[int]) -> None:
    assert asked == [4]
    assert len(live.nodes["true/voxels"].batched_positions) == 31
    assert "keyframe 4 &lt;b&gt;" in live.told.content
    assert "MARKED" in live.told.content
    assert "&lt;/script&gt;" in live.told.content
    before = car(live)
    live.ahead_s.value = 1.5
    live.refresh()
    assert asked == [4], "the time ahead needs no new view"
    assert car(live) - before == pytest.approx(3.0), "the car of the small view drives a voxel a step"
    assert live.nodes["true/voxels"].position[0] == pytest.approx(3.0), "in the frame of its moment"
    live.with_boxes.value = False
    live.refresh()
    assert not live.nodes["true/boxes"].visible
    live.step()
    assert asked == [4, 6], "the next keyframe that has a view"
    assert "keyframe 6" in live.told.content
    live.step()
    assert asked == [4, 6, 3], "and after the last one the first"


def car(live: LiveView) -> float:
    """Where the car is along x, in its grid."""
    voxels = live.nodes["true/voxels"]
    cars = (voxels.batched_colors == OCC_COLOURS[4]).all(1)
    assert cars.sum() == 1
    return float(voxels.batched_positions[cars][0, 0])


def test_a_browser_shows_it(live: LiveView, tmp_path: Path) -> None:
    with opened(live.url, tmp_path) as tab:
        text = tab.run("""
          for (let k = 0; k < 150 && !document.body.innerText.includes("s ahead"); k++) await new Promise(done => setTimeout(done, 200));
          return document.body.innerText;
        """)
    assert "keyframe 4 <b>" in text
    outside = [url for url in tab.requests if not url.startswith((live.url, "data:", f"blob:{live.url}"))]
    assert outside == []


@pytest.mark.slow
def test_views_of_a_scene_are_those_of_its_samples(tmp_path: Path) -> None:
    source = Town(TownConfig(test_scenes=1, keyframes=14))
    found = checkpoint.read("town-small")
    views = views_of_subject(found, source, "town-test-00000")
    assert views.keyframes == tuple(range(8))
    alone, inside = view_of_subject(found, source, "town-test-00000", 7), views.view(7)
    assert alone.true.labels.shape == inside.true.labels.shape
    assert (alone.true.labels == inside.true.labels).all()
    assert alone.imagined is not None
    assert inside.imagined is not None
    assert (alone.imagined.labels != inside.imagined.labels).mean() < 1e-3
    assert [one.told for one in alone.candidates] == [one.told for one in inside.candidates]
    assert alone.facts == inside.facts


def test_predictions_have_views_where_they_have_paths() -> None:
    source = Town(TownConfig(test_scenes=1, keyframes=14))
    (track,) = read_tracks(source, "test")
    some = Predictions(np.zeros((2, 6, 2), np.float32), (track.tokens[2], track.tokens[5]), {}, "mine.npz")
    views = views_of_subject(some, source, track.name)
    assert views.keyframes == (2, 5)
    assert views.first in views.keyframes
    assert views.view(5).candidates[0].name == "mine.npz"
    with pytest.raises(DataError, match=r"mine.npz: no path belongs to a sample of town-test-00000"):
        views_of_subject(replace(some, token=("a", "b")), source, track.name)


@pytest.mark.slow
def test_what_cannot_be_served_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for options, said in (
        (["--live", "--out", "other.html"], "--live writes no file"),
        (["--live", "--keyframe", "3"], "leave --out and --keyframe out"),
    ):
        with pytest.raises(SystemExit):
            main(["view", "town-small", *options, *TOWN])
        assert said in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(SystemExit):
        main(["view", "town-small", "--live", *TOWN])
    assert "pip install 'iidrive[view]'" in capsys.readouterr().err
