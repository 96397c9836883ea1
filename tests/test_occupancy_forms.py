"""Occupancy in formats of other code bases: one grid in many formats scores the same, and ambiguous formats are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import fails
from test_grids import SHAPE, drawn

from iidrive.cli.main import main
from iidrive.core import class_tables
from iidrive.core.class_tables import OCC3D, OPENOCC, SURROUNDOCC, UNIOCC
from iidrive.core.classes import FREE, OCC, OCC_CLASSES
from iidrive.core.errors import ConfigError, DataError
from iidrive.data.occupancy_files import listed
from iidrive.data.occupancy_grids import read_grids

TOKENS = {"scene-1": ("a" * 32, "b" * 32), "scene-2": ("c" * 32,)}
TRUTH = {token: drawn(k) for k, token in enumerate(t for tokens in TOKENS.values() for t in tokens)}
PRED = {token: np.roll(grid, 1, axis=0) for token, grid in TRUTH.items()}
OPEN = np.zeros(18, np.uint8)
OPEN[list(OPENOCC.numbers.values())] = list(OPENOCC.numbers)


def saved(path: Path, array: np.ndarray | None = None, **arrays: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if array is not None:
        np.save(path, array)
    else:
        np.savez_compressed(path, allow_pickle=True, **arrays)


def sparse(grid: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    place = np.argwhere(grid != FREE)
    return np.concatenate([place, grid[tuple(place.T)][:, None]], axis=1).astype(dtype)


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels of three samples of two scenes, with masks."""
    folder = tmp_path_factory.mktemp("truth") / "gts"
    for scene, tokens in TOKENS.items():
        for token in tokens:
            saved(folder / scene / token / "labels.npz", semantics=TRUTH[token], mask_camera=np.ones(SHAPE, np.uint8))
    return folder


def scores(*command: str | Path, out: Path) -> dict[str, Any]:
    main(["score-occupancy", *map(str, command), "--json", str(out)])
    found = json.loads(out.read_text())
    return {key: found[key] for key in ("n", "iiworld", "occ3d") if key in found}


@pytest.fixture(scope="module")
def want(truth: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The scores of the plain layout: one number for every form."""
    folder = tmp_path_factory.mktemp("plain")
    for scene, tokens in TOKENS.items():
        for token in tokens:
            saved(folder / "p" / scene / token / "labels.npz", semantics=PRED[token])
    found = scores(folder / "p", "--truth", truth, out=folder / "s.json")
    assert 0 < found["iiworld"]["IoU"][0] < 100
    return found


Writer = Callable[[Path, str, str, np.ndarray], None]
FORMS: dict[str, tuple[Writer, list[str]]] = {
    "pred.npz": (lambda f, s, t, g: saved(f / s / t / "pred.npz", pred=g, gt=TRUTH[t], sample_token=np.array(t)), []),
    "one file of another name": (lambda f, s, t, g: saved(f / s / t / "occ.npz", semantics=g), []),
    "token.npz in scenes": (lambda f, s, t, g: saved(f / s / f"{t}.npz", semantics=g), []),
    "token.npz": (lambda f, s, t, g: saved(f / f"{t}.npz", arr_0=g), []),
    "token.npy": (lambda f, s, t, g: saved(f / f"{t}.npy", g), []),
    "token/labels.npz": (lambda f, s, t, g: saved(f / t / "labels.npz", semantics=g), []),
    "token/labels.npy": (lambda f, s, t, g: saved(f / s / t / "labels.npy", g.astype(np.int64)), []),
    "UniOcc's key": (lambda f, s, t, g: saved(f / s / f"{t}.npz", occ_label=g, occ_flow_forward=np.zeros((*SHAPE, 3))), []),
    "UniOcc's cameras are never opened": (
        lambda f, s, t, g: saved(f / s / f"{t}.npz", occ_label=g, cameras=np.array([{"name": "x"}], object)),
        [],
    ),
    "floats": (lambda f, s, t, g: saved(f / s / t / "labels.npz", semantics=g.astype(np.float64)), []),
    "a batch axis": (lambda f, s, t, g: saved(f / s / t / "labels.npz", semantics=g[None]), []),
    "two batch axes": (lambda f, s, t, g: saved(f / s / t / "labels.npz", semantics=g[None, None].astype(np.int32)), []),
    "columns first": (lambda f, s, t, g: saved(f / s / t / "labels.npz", semantics=np.asfortranarray(g)), []),
    "big-endian": (lambda f, s, t, g: saved(f / s / t / "labels.npz", semantics=g.astype(">i4")), []),
    "sparse": (lambda f, s, t, g: saved(f / s / t / "labels.npz", semantics=sparse(g)), ["--classes", "occ3d"]),
    "sparse npy": (lambda f, s, t, g: saved(f / f"{t}.npy", sparse(g, np.int64)[::-1]), ["--classes", "occ3d"]),
    "OpenOcc": (lambda f, s, t, g: saved(f / s / t / "labels.npz", semantics=OPEN[g]), ["--classes", "openocc"]),
    "OpenOcc, sparse": (
        lambda f, s, t, g: saved(f / s / t / "labels.npz", semantics=np.c_[sparse(g)[:, :3], OPEN[sparse(g, int)[:, 3]]]),
        ["--classes", "OpenOcc"],
    ),
    "masks in predictions": (lambda f, s, t, g: saved(f / s / t / "labels.npz", semantics=g, mask_camera=np.zeros(SHAPE, bool)), []),
    "hidden files": (
        lambda f, s, t, g: (saved(f / s / t / "labels.npz", semantics=g), saved(f / s / t / "._labels.npz", semantics=g[:1]))[0],
        [],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_grid_has_one_score(form: str, truth: Path, want: dict[str, Any], tmp_path: Path) -> None:
    write, options = FORMS[form]
    for scene, tokens in TOKENS.items():
        for token in tokens:
            write(tmp_path / "p", scene, token, PRED[token])
    assert scores(tmp_path / "p", "--truth", truth, *options, out=tmp_path / "s.json") == want


def test_custom_class_tables(truth: Path, want: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """255 for free, and the classes in the reverse order."""
    names = [f"{16 - k} {name}" for k, name in enumerate(OCC_CLASSES[:FREE])]
    (tmp_path / "names.txt").write_text("\n".join(["# mine", *names, "255: Empty", ""]).replace("driveable_surface", "Drivable Surface"))
    for token, grid in PRED.items():
        saved(tmp_path / "p" / f"{token}.npy", np.where(grid == FREE, 255, 16 - grid.astype(int)).astype(np.uint8))
    assert scores(tmp_path / "p", "--truth", truth, "--classes", tmp_path / "names.txt", out=tmp_path / "s.json") == want
    said = fails(capsys, "score-occupancy", str(tmp_path / "p"), "--truth", str(truth))
    assert "class 255 fills 9" in said
    assert "--classes FILE (one class per line, as in `255 free`)" in said
    for text, message in (
        ("car\nfree\ncaar", "unknown class 'caar'"),
        ("car\ntruck", "it has no class `free`"),
        ("0 car\n0 free", "number 0 is given twice"),
        ("\n".join(["car"] * 256) + "\nfree", "number 256 is above 255"),
    ):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            class_tables.named(str(tmp_path / "bad.txt"))
    with pytest.raises(ConfigError, match="Did you mean 'openocc'"):
        class_tables.named("openoc")


def test_a_file_is_no_table_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file called `occ3d` does not become Occ3D's table: numbers that it lacks are refused."""
    (tmp_path / "occ3d").write_text("car\nfree\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="holds class 5, but the classes of occ3d are 0 to 1"):
        class_tables.named("./occ3d").translate(np.array([0, 5]), "x")


def test_the_tables_are_those_of_their_data_sets() -> None:
    """Numbers that were read in the code of each: a few by hand, and nothing twice."""
    assert [OCC_CLASSES[OPENOCC.numbers[k]] for k in (0, 4, 7, 9, 10, 15, 16)] == [
        *("car", "construction_vehicle", "pedestrian", "barrier", "driveable_surface", "vegetation", "free"),
    ]
    assert [OCC_CLASSES[SURROUNDOCC.numbers[k]] for k in (0, 1, 4, 10, 16)] == ["free", "barrier", "car", "truck", "vegetation"]
    assert OCC3D.numbers == {k: k for k in range(18)}
    for table in (OPENOCC, SURROUNDOCC):
        assert sorted(table.numbers.values()) == list(range(1, 18))
        assert table.lacks == ("others",)
    with pytest.raises(DataError, match="holds class 17, but the classes of openocc are 0 to 16"):
        OPENOCC.translate(np.array([16, 17]), "x")
    assert [OCC_CLASSES[UNIOCC.numbers[k]] for k in range(11)] == [
        *(
            "others",
            "car",
            "bicycle",
            "motorcycle",
            "pedestrian",
            "traffic_cone",
            "vegetation",
            "driveable_surface",
            "terrain",
            "manmade",
            "free",
        ),
    ]
    with pytest.raises(DataError, match="holds class 11, but the classes of uniocc are 0 to 10"):
        UNIOCC.translate(np.array([10, 11]), "x")


def test_guessed_class_tables_are_refused(truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for token, grid in PRED.items():
        saved(tmp_path / "open" / f"{token}.npz", semantics=OPEN[grid])
        saved(tmp_path / "zero" / f"{token}.npz", semantics=np.where(grid == FREE, 0, grid))
        saved(tmp_path / "eleven" / f"{token}.npz", occ_label=np.where(grid == FREE, 10, np.minimum(grid, 9)))
    for folder, message in (
        ("open", "In openocc 16 is free: use --classes openocc if the labels follow that table, --classes FILE (one class per line"),
        ("zero", "In surroundocc 0 is free"),
        ("eleven", "In uniocc 10 is free: use --classes uniocc if the labels follow that table"),
    ):
        assert message in fails(capsys, "score-occupancy", str(tmp_path / folder), "--truth", str(truth))
    said = fails(capsys, "score-occupancy", str(truth), "--truth", str(tmp_path / "open"))
    assert "use --truth-classes openocc if the labels follow that table" in said
    said = fails(capsys, "score-occupancy", str(tmp_path / "zero"), "--truth", str(truth), "--classes", "surroundocc")
    assert "surroundocc's grid (200 x 200 x 16 voxels of 0.5 m, (-50, -50, -5) to (50, 50, 3) m, lidar frame)" in said
    assert "occ3d's grid (200 x 200 x 16 voxels of 0.4 m, (-40, -40, -1) to (40, 40, 5.4) m, ego frame) cannot be compared" in said
    assert "Give the truth of the same data set, or predict on the grid of this truth" in said
    found = scores(tmp_path / "open", "--truth", truth, "--classes", "occ3d", out=tmp_path / "s.json")  # a word is taken
    assert found["iiworld"]["IoU"][0] < 20


def test_both_sides_in_other_classes(truth: Path, want: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noisy = {token: grid.copy() for token, grid in TRUTH.items()}
    for token, grid in noisy.items():
        saved(tmp_path / "open-truth" / f"{token}.npz", semantics=OPEN[grid], mask_camera=np.ones(SHAPE, bool))
        saved(tmp_path / "open" / f"{token}.npz", semantics=OPEN[PRED[token]])
        grid[0, 0, 15] = 0  # noise in SurroundOcc's rows
        saved(tmp_path / "surround-truth" / f"x__LIDAR_TOP__{token}.pcd.bin.npy", sparse(grid))
        saved(tmp_path / "surround" / f"x__LIDAR_TOP__{token}.pcd.bin.npy", np.where(PRED[token] == FREE, 0, PRED[token]))
    both = ["--classes", "openocc", "--truth-classes", "openocc"]
    assert scores(tmp_path / "open", "--truth", tmp_path / "open-truth", *both, out=tmp_path / "s.json") == want
    assert "openocc's classes, which lack others" in capsys.readouterr().out
    both = ["--classes", "surroundocc", "--truth-classes", "surroundocc"]
    found = scores(tmp_path / "surround", "--truth", tmp_path / "surround-truth", *both, out=tmp_path / "s.json")
    assert found["iiworld"]["mIoU"] == want["iiworld"]["mIoU"]
    assert found["iiworld"]["IoU"] != want["iiworld"]["IoU"]  # unknown truth is occupied in II-World's IoU
    said = fails(capsys, "score-occupancy", str(tmp_path / "surround"), "--truth", str(truth))
    assert "named after lidar sweeps" in said
    said = fails(capsys, "score-occupancy", str(tmp_path / "surround-truth"), "--truth", str(tmp_path / "surround-truth"), *both)
    assert "the prediction holds class 255" in said  # unknown rows are no prediction


def test_both_sides_in_uniocc_s_classes(truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All ten of its classes on both sides, as it lays them out. By hand: 2 of 8 voxels of a class are mistaken on one side."""
    grid = np.full(SHAPE, 10, np.uint8)
    for label in range(10):
        grid[:8, 10 * label, 0] = label
    wrong = grid.copy()
    wrong[:2, 10, 0], wrong[:2, 70, 0] = 7, 1  # a quarter of car and of road exchanged: 6 of 10 are right in both
    for name, folder in ((grid, "true"), (wrong, "predicted")):
        saved(tmp_path / folder / "scene-1" / "0.npz", occ_label=name, occ_mask_camera=np.ones(SHAPE, np.uint8))
    command = ["score-occupancy", str(tmp_path / "predicted"), "--truth", str(tmp_path / "true")]
    main([*command, "--classes", "uniocc", "--truth-classes", "uniocc", "--json", str(tmp_path / "s.json")])
    said = capsys.readouterr().out
    assert "car stands for every large vehicle" in said
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["occ3d"] == pytest.approx(92.0)  # ten classes: eight of 100 %, two of 6 in 10
    for options in (["--classes", "uniocc", "--truth-classes", "occ3d"], ["--truth-classes", "uniocc"]):
        assert "uniocc joins classes (car stands for" in fails(capsys, *command, *options)
    assert "Give both in uniocc's classes" in fails(capsys, "score-occupancy", str(truth), "--truth", str(truth), "--classes", "uniocc")


REFUSED: dict[str, tuple[dict[str, np.ndarray], list[str], str]] = {
    "sparse, nothing said": ({"semantics": sparse(drawn(0))}, [], "rows of x, y, z and class"),
    "z first": ({"semantics": sparse(drawn(0))[:, [2, 1, 0, 3]]}, ["--classes", "occ3d"], "They fit as z, y, x"),
    "metres": ({"semantics": sparse(drawn(0)) * 0.4}, ["--classes", "occ3d"], "Write indices of voxels, not metres"),
    "rows of a finer grid": (
        {"semantics": np.array([[511, 0, 39, 4], [3, 2, 1, 4]])},
        ["--classes", "occ3d"],
        "found indices (3, 0, 1) to (511, 2, 39). They are of another grid",
    ),
    "rows twice": ({"semantics": np.array([[1, 1, 1, 4], [1, 1, 1, 5]])}, ["--classes", "occ3d"], "two rows with different classes"),
    "rows on their side": ({"semantics": sparse(drawn(0)).T}, ["--classes", "occ3d"], "transposed sparse rows"),
    "axes": ({"semantics": drawn(0).transpose(2, 1, 0)}, [], "axes are in another order"),
    "axes, y up": ({"semantics": drawn(0).transpose(0, 2, 1)[None]}, [], "axes are in another order"),
    "scores last": ({"semantics": np.zeros((*SHAPE, 18), np.uint8)}, [], "argmax over the last axis"),
    "scores first": ({"semantics": np.zeros((18, *SHAPE), np.float16)}, [], "argmax over the first axis"),
    "one-hot": ({"semantics": np.stack([drawn(0) == k for k in range(18)]).astype(np.uint8)}, [], "argmax over the first axis"),
    "one-hot booleans": ({"semantics": np.stack([drawn(0) == k for k in range(18)])}, [], "argmax over the first axis"),
    "flat": ({"semantics": drawn(0).reshape(-1)}, [], "a flattened grid"),
    "another grid": ({"semantics": np.zeros((512, 512, 40), np.uint8)}, [], "not Occ3D's grid"),
    "fractions": ({"semantics": drawn(0) + 0.5}, [], "with fractions"),
    "NaN": ({"semantics": np.full(SHAPE, np.nan)}, [], "with fractions, NaN"),
    "occupied or not": ({"semantics": (drawn(0) != FREE).astype(np.uint8)}, [], "holds only 0 and 1"),
    "no grid": ({"semantics": drawn(0)[None][:0]}, [], "must hold integers in shape"),
    "booleans": ({"semantics": drawn(0) != FREE}, [], "found booleans"),
    "a word": ({"semantics": np.full(SHAPE, "car")}, [], "must hold integers"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_unclear_arrays_are_refused_with_a_guess(form: str, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays, options, message = REFUSED[form]
    for token in TRUTH:
        saved(tmp_path / "p" / f"{token}.npz", **arrays)
    said = fails(capsys, "score-occupancy", str(tmp_path / "p"), "--truth", str(truth), *options)
    assert message in said
    assert str(tmp_path / "p") in said


def test_layouts_that_are_unclear_are_refused(truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = "a" * 32
    for name in ("labels.npz", "pred.npz"):
        saved(tmp_path / "two" / "scene-1" / one / name, semantics=PRED[one])
    saved(tmp_path / "twice" / "x" / f"{one}.npz", semantics=PRED[one])
    saved(tmp_path / "twice" / "y" / f"{one}.npz", semantics=PRED[one])
    saved(tmp_path / "high" / "p" / "scene-1" / one / "labels.npz", semantics=PRED[one])
    saved(tmp_path / "steps" / "scene-1" / "0.npz", occ_label=PRED[one])
    saved(tmp_path / "steps" / "scene-2" / "0.npz", occ_label=PRED[one])
    for folder, message in (
        ("two", "holds labels.npz and pred.npz, so it is unclear which is the prediction"),
        ("twice", f"sample {one} has two files, in x and in y"),
        ("high", f"Did you mean {tmp_path / 'high' / 'p'}?"),
        ("steps", "These files are numbered by time step"),
    ):
        assert message in fails(capsys, "score-occupancy", str(tmp_path / folder), "--truth", str(truth))
    assert [f.token for f in listed(tmp_path / "steps", "predicted").values()] == ["scene-1/0", "scene-2/0"]
    found = scores(tmp_path / "steps", "--truth", tmp_path / "steps", out=tmp_path / "s.json")
    assert (found["n"], found["iiworld"]["IoU"]) == (2, [100.0])
    assert "has no scene names" in fails(
        capsys, "score-occupancy", str(truth), "--truth", str(tmp_path / "twice" / "x"), "--split", "mini_val"
    )


def test_one_file_is_one_sample(truth: Path, tmp_path: Path) -> None:
    one = "a" * 32
    saved(tmp_path / f"{one}.npy", PRED[one])
    found = scores(tmp_path / f"{one}.npy", "--truth", truth / "scene-1" / one / "labels.npz", out=tmp_path / "s.json")
    assert found["n"] == 1


def test_masks_are_counted_before_anything_is_scored(truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k, (token, grid) in enumerate(TRUTH.items()):
        mask = {"occ_mask_camera": np.ones(SHAPE, np.uint8)} if k else {}
        saved(tmp_path / "t" / "scene-1" / token / "labels.npz", semantics=grid, **mask)
    found = scores(truth, "--truth", tmp_path / "t", out=tmp_path / "s.json")
    assert "occ3d" not in found
    assert found["iiworld"]["IoU"] == [100.0]
    assert "Occ3D is left out: 1 of 3 truth files have no mask_camera" in capsys.readouterr().out


@pytest.mark.slow
def test_bounded_memory(tmp_path: Path) -> None:
    """The header says more than any grid needs, and nothing is unpacked."""
    saved(tmp_path / "x.npz", semantics=np.zeros((1 << 15, 1 << 14), np.uint8))
    with pytest.raises(DataError, match="256 MiB"):
        read_grids(tmp_path / "x.npz", "predicted", OCC3D)


@pytest.mark.slow
def test_collected_forms(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What other code bases wrote of one real frame.

    The copy differs from the truth in 2 % of its voxels, and scores the same in every form.
    """
    gts = shared / "data" / "occ3d" / "gts"
    (real,) = gts.glob("*/*/labels.npz")
    subprocess.run([sys.executable, str(shared / "fixtures" / "field" / "occ" / "make.py"), str(real), str(tmp_path)], check=True)
    want = scores(tmp_path / "nested", "--truth", gts, out=tmp_path / "s.json")
    assert want["iiworld"]["IoU"] == [97.88]
    for form in ("flashocc", "challenge", "stc", "int64", "batched", "mask_pred"):
        assert scores(tmp_path / form, "--truth", gts, out=tmp_path / "s.json") == want, form
    found = scores(tmp_path / "sparse_npz", "--truth", gts, "--classes", "occ3d", out=tmp_path / "s.json")
    assert found["iiworld"]["IoU"] == [100.0]
    found = scores(tmp_path / "openocc_pred", "--truth", gts, "--classes", "openocc", out=tmp_path / "s.json")
    assert found["iiworld"]["IoU"][0] > 96  # what is `others` in the truth has no class in OpenOcc
    both = ["--classes", "openocc", "--truth-classes", "openocc"]
    for kind in ("openocc_gt", "openocc_gt_mask"):
        found = scores(tmp_path / "openocc_pred", "--truth", tmp_path / kind, *both, out=tmp_path / "s.json")
        assert found["iiworld"]["IoU"] == pytest.approx([97.88], abs=0.3)
        assert ("occ3d" in found) == kind.endswith("mask")
    for form in ("openocc_pred", "sparse_npz"):
        assert "--classes" in fails(capsys, "score-occupancy", str(tmp_path / form), "--truth", str(gts))
    demo = shared / "data" / "occ3d" / "occupancy-vis-demo" / "3D_occupancy_flow_data.npz"  # OpenOcc's own file
    with pytest.raises(DataError, match="In openocc 16 is free"):
        read_grids(demo, "labels", class_tables.ASSUMED)
    labels = read_grids(demo, "labels", OPENOCC).labels
    assert np.count_nonzero(labels == FREE) > 0.9 * labels.size
    road = np.argwhere(labels[0] == OCC["driveable_surface"])
    assert len(road) > 10_000
    assert (road[:, 2] < 5).mean() > 0.9  # it lies on the ground
