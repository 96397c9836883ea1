"""Predicted occupancy in another convention: the doctor names the correction."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from make_cases import along, make_cases
from test_cli import fails

from iidrive.analysis.doctor.occupancy import examine, exchanged, format_report
from iidrive.cli.main import main
from iidrive.core.class_tables import OPENOCC, SURROUNDOCC
from iidrive.core.classes import FREE, OCC, OCC_CLASSES
from iidrive.core.errors import DataError
from iidrive.scoring.cases import write_cases

SHAPE = (200, 200, 16)
TOKENS = tuple(f"{k:032x}" for k in range(3))
Array = np.ndarray


def scene(seed: int) -> Array:
    """Ground on one side, walls and boxes of many classes, nothing symmetric."""
    rng = np.random.default_rng(seed)
    grid = np.full(SHAPE, FREE, np.uint8)
    grid[60:200, 30:120, 2] = 11
    for label in (1, 3, 4, 7, 10, 13, 14, 15, 16):
        x, y, z = (*rng.integers(10, 150, 2).tolist(), int(rng.integers(3, 6)))
        grid[x : x + 30, y : y + 14, z : z + 5] = label
    grid[150:160, 20:180, 3:12] = 15
    return grid


TRUTH = {token: scene(k) for k, token in enumerate(TOKENS)}


def moved(grid: Array, x: int, y: int, z: int) -> Array:
    out = np.full_like(grid, FREE)
    out[max(x, 0) : 200 + min(x, 0), max(y, 0) : 200 + min(y, 0), max(z, 0) : 16 + min(z, 0)] = grid[
        max(-x, 0) : 200 + min(-x, 0), max(-y, 0) : 200 + min(-y, 0), max(-z, 0) : 16 + min(-z, 0)
    ]
    return out


def renumbered(grid: Array, numbers: dict[int, int]) -> Array:
    back = {label: number for number, label in numbers.items()}
    return np.vectorize(lambda label: back.get(label, 0), otypes=[np.uint8])(grid)


def coarser(grid: Array) -> Array:
    """The same space in voxels of 0.8 m around the ego, in a grid of as many voxels: the middle half of each axis is filled."""
    out = np.full_like(grid, FREE)
    out[50:150, 50:150, :8] = grid[::2, ::2, ::2]
    return out


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("truth") / "gts"
    for token, grid in TRUTH.items():
        write(folder, token, grid)
    return folder


def write(folder: Path, token: str, grid: Array) -> None:
    path = folder / "scene-1" / token / "labels.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, semantics=grid)


FAULTS: dict[str, tuple[Callable[[Array], Array], str, str, float]] = {
    "y mirrored": (lambda g: g[:, ::-1], "mirrored", "with grids mirrored from left to right (y)", 100),
    "x mirrored": (lambda g: g[::-1], "mirrored", "with grids mirrored from front to back (x)", 100),
    "upside down": (lambda g: g[..., ::-1], "mirrored", "with grids turned upside down (z)", 100),
    "half a turn": (lambda g: g[::-1, ::-1], "turned", "with grids turned by half a turn", 100),
    "a quarter": (lambda g: np.rot90(g), "turned", "with grids turned to the right by a quarter", 100),
    "a quarter back": (lambda g: np.rot90(g, -1), "turned", "with grids turned to the left by a quarter", 100),
    "x and y": (lambda g: g.transpose(1, 0, 2), "axes", "with grids with x and y exchanged", 100),
    "reshaped": (lambda g: np.ascontiguousarray(g.transpose(2, 1, 0)).reshape(SHAPE), "axes", "with grids reshaped from z, y, x", 100),
    "reshaped, x last": (
        lambda g: np.ascontiguousarray(g.transpose(2, 0, 1)).reshape(SHAPE),
        "axes",
        "with grids reshaped from z, x, y",
        100,
    ),
    "shifted": (lambda g: moved(g, 3, 0, -1), "shifted", "with grids moved by -3 voxels along x and +1 voxels along z", 97),
    "mirrored and shifted": (
        lambda g: moved(g[:, ::-1], 0, 6, 0),
        "mirrored",
        "with grids mirrored from left to right (y) and moved by +6 voxels along y",
        97,
    ),
    "coarse voxels": (coarser, "scaled", "with grids of 0.8 m voxels around the ego", 70),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_correction_is_named(fault: str, truth: Path, tmp_path: Path) -> None:
    change, kind, sentence, least = FAULTS[fault]
    for token, grid in TRUTH.items():
        write(tmp_path / "p", token, change(grid))
    report = examine(tmp_path / "p", truth)
    (found,) = report.suspects()
    assert found.kind == kind
    assert found.sentence.startswith(f"{sentence}, the IoU of occupied voxels rises from ")
    assert float(found.sentence.split(" to ")[-1].split(" %")[0]) >= least
    assert f"verdict: {kind} suspected." in format_report(report)


@pytest.mark.slow
def test_correct_grids_are_not_suspected(truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for token, grid in TRUTH.items():
        write(tmp_path / "p", token, np.where(rng.random(SHAPE) < 0.3, FREE, grid).astype(np.uint8))
    main(["doctor", str(tmp_path / "p"), "--truth", str(truth), "--json", str(tmp_path / "f.json")])
    assert "verdict: no tested correction is needed." in capsys.readouterr().out
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["suspects"] == []
    assert found["iou"] == pytest.approx(0.7, abs=0.01)
    assert [f["kind"] for f in found["findings"]] == ["axes", "pairs", "classes"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "sentence", "decide"),
    [
        (lambda g: renumbered(g, dict(OPENOCC.numbers)), "number 16 means free, not 17; then the IoU", "add --classes openocc"),
        (lambda g: renumbered(g, dict(SURROUNDOCC.numbers)), "number 0 means free, not 17; then the IoU", "add --classes surroundocc"),
        (lambda g: np.where(g == FREE, 255, g).astype(np.uint8), "number 255 means free, not 17.", "(`255 free`)"),
        (lambda g: renumbered(g, dict(OPENOCC.numbers))[:, ::-1], "number 16 means free, not 17", "add --classes openocc"),
    ],
)
def test_the_number_of_free_is_found_from_the_truth(change, sentence: str, decide: str, truth: Path, tmp_path: Path) -> None:
    for token, grid in TRUTH.items():
        write(tmp_path / "p", token, change(grid))
    found = examine(tmp_path / "p", truth).suspects()
    assert found[0].kind == "class numbers"
    assert found[0].sentence.startswith(sentence)
    assert decide in found[0].decide
    assert [f.kind for f in found[1:]] in ([], ["mirrored"])


@pytest.mark.slow
def test_classes_in_another_order(truth: Path, tmp_path: Path) -> None:
    order = np.r_[(np.arange(17) + 5) % 17, FREE].astype(np.uint8)
    for token, grid in TRUTH.items():
        write(tmp_path / "p", token, order[grid])
    (found,) = examine(tmp_path / "p", truth).suspects()
    assert found.kind == "class numbers"
    assert "0.0 % of the voxels occupied in both grids have the same class: 10 of 10 numbers each mean another class" in found.sentence
    assert "number 9 is where the truth has car" in found.evidence


@pytest.mark.slow
def test_a_table_that_only_shares_the_number_of_free(truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Occ3D's order from barrier on has its ground and its free where OpenOcc has them, and its road users elsewhere."""
    for token, grid in TRUTH.items():
        write(tmp_path / "p", token, np.where(grid > 0, grid - 1, 16).astype(np.uint8))
    main(["score-occupancy", str(tmp_path / "p"), "--truth", str(truth), "--classes", "openocc"])
    said = capsys.readouterr().out
    assert " IoU       100.00" in said
    assert "note: class numbers: " in said
    assert re.search(r"[3-9] of \d+ numbers each mean another class", said), said
    (tmp_path / "names.txt").write_text("\n".join((*OCC_CLASSES[1:FREE], "free")))
    main(["score-occupancy", str(tmp_path / "p"), "--truth", str(truth), "--classes", str(tmp_path / "names.txt")])
    said = capsys.readouterr().out
    assert "II-World  mIoU      100.00" in said
    assert "note" not in said


def test_confused_classes_are_not_permuted_classes() -> None:
    """Trailers and construction vehicles predicted as trucks are errors of the model, because trucks are predicted, too."""
    hist = np.diag(np.full(18, 1000))
    for label in (OCC["trailer"], OCC["construction_vehicle"]):
        hist[OCC["truck"], label], hist[label, label] = 900, 100
    assert exchanged(hist) is None
    hist = np.diag(np.full(18, 1000))
    hist[[3, 4]] = hist[[4, 3]]
    found = exchanged(hist)
    assert found is not None
    assert found.evidence == ("number 3 is where the truth has car", "number 4 is where the truth has bus")
    assert exchanged(np.zeros((18, 18), int)) is None


@pytest.mark.slow
def test_other_times_and_other_samples(truth: Path, tmp_path: Path) -> None:
    for k, (token, grid) in enumerate(TRUTH.items()):
        ahead = np.stack([scene(100 + 10 * k + t) for t in range(6)] + [grid])
        write(tmp_path / "reverse", token, ahead)
        write(tmp_path / "late", token, np.concatenate([ahead[:1], ahead[6:], ahead[1:6]]))
        write(tmp_path / "next", token, TRUTH[TOKENS[(k + 1) % 3]])
    for folder, kind, sentence in (
        ("reverse", "times", "the times are in reverse order"),
        ("late", "times", "the grids begin 1 steps too early"),
        ("next", "mis-paired", "3 of 3 predictions fit the truth of another sample better"),
    ):
        found = examine(tmp_path / folder, truth).suspects()
        assert [f.kind for f in found] == [kind]
        assert sentence in found[0].sentence
    assert f"{TOKENS[0]} fits {TOKENS[1]} (100.0 %" in found[0].evidence[0]


@pytest.mark.slow
def test_empty_or_random_predictions_are_not_accepted(truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for token in TOKENS:
        write(tmp_path / "empty", token, np.full(SHAPE, FREE, np.uint8))
        write(tmp_path / "noise", token, np.random.default_rng(1).choice([4, FREE], SHAPE).astype(np.uint8))
    write(tmp_path / "strange", "f" * 32, TRUTH[TOKENS[0]])
    assert [f.kind for f in examine(tmp_path / "empty", truth).suspects()] == ["empty"]
    assert "no tested correction explains an IoU of" in format_report(examine(tmp_path / "noise", truth))
    with pytest.raises(DataError, match=r"1 sample \(f+\), none of which is in"):
        examine(tmp_path / "strange", truth)
    write(tmp_path / "some", TOKENS[0], TRUTH[TOKENS[0]])
    assert "1 samples are in both folders, of 1 predicted and 3 true ones" in format_report(examine(tmp_path / "some", truth))
    assert "add --truth GTS" in fails(capsys, "doctor", str(tmp_path / "some"))
    assert "add --truth GTS" in fails(capsys, "doctor", str(tmp_path / "some"), "--classes", "openocc")
    assert "without --cases, --tokens or --samples" in fails(
        capsys, "doctor", str(tmp_path / "some"), "--truth", str(truth), "--cases", "c.npz"
    )


@pytest.mark.slow
def test_a_low_score_points_to_the_doctor(truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for token, grid in TRUTH.items():
        write(tmp_path / "mirrored", token, grid[:, ::-1])
        write(tmp_path / "right", token, grid)
    main(["score-occupancy", str(tmp_path / "mirrored"), "--truth", str(truth)])
    said = capsys.readouterr().out
    assert "note: mirrored: with grids mirrored from left to right (y)" in said
    assert f"Run `iidrive doctor {tmp_path / 'mirrored'} --truth {truth}` for details" in said
    main(["score-occupancy", str(tmp_path / "right"), "--truth", str(truth)])
    assert "doctor" not in capsys.readouterr().out


def test_paths_with_a_known_correction_point_to_the_doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Offsets are correct at 0.5 s, so their L2 there is no evidence."""
    cases = make_cases([along((0.7, 2.0 + 0.1 * k)) for k in range(8)])
    write_cases(tmp_path / "c.npz", cases)
    path = cases.true_path() + 0.05
    offsets = np.diff(path, axis=1, prepend=0)
    for name, paths, kind in (
        ("offsets", offsets, "units: with paths summed up, as if they were offsets"),
        ("ego", np.stack([path[..., 1], -path[..., 0]], -1), "wrong frame: with paths taken from the ego frame"),
        ("right", path, ""),
    ):
        np.savez(
            tmp_path / f"{name}.npz", token=np.array(cases.token), trajectory=paths.astype(np.float32), frame="lidar", reference="lidar_top"
        )
        main(["score", str(tmp_path / "c.npz"), "--predictions", str(tmp_path / f"{name}.npz")])
        said = capsys.readouterr().out
        assert (f"note: {kind}" in said) == bool(kind)
        assert ("iidrive doctor" in said) == bool(kind)


@pytest.mark.slow
def test_inputs_of_the_field(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real frame with x and y exchanged, one mirrored, and SurroundOcc's rows, which are named after lidar sweeps."""
    gts = shared / "data" / "occ3d" / "gts"
    (real,) = gts.glob("*/*/labels.npz")
    subprocess.run([sys.executable, str(shared / "fixtures" / "field" / "occ" / "make.py"), str(real), str(tmp_path)], check=True)
    for form, kind, sentence in (
        ("xy_swapped", "axes", "with grids with x and y exchanged, the IoU of occupied voxels rises from 6.1 % to 97.9 %"),
        ("y_flipped", "mirrored", "with grids mirrored from left to right (y), the IoU of occupied voxels rises from 10.7 % to 97.9 %"),
    ):
        (found,) = examine(tmp_path / form, gts).suspects()
        assert found.kind == kind
        assert sentence in found.sentence
    assert "none of which is in" in fails(capsys, "doctor", str(tmp_path / "surround"), "--truth", str(gts))
    said = fails(capsys, "score-occupancy", str(tmp_path / "surround"), "--truth", str(gts), "--classes", "surroundocc")
    assert "surroundocc's grid (200 x 200 x 16 voxels of 0.5 m" in said
    assert "named after lidar sweeps" in fails(capsys, "score-occupancy", str(tmp_path / "surround"), "--truth", str(gts))
