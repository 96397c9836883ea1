"""Readers of planned paths: the same scores from every file format, in any order, with any number of processes."""

from __future__ import annotations

import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_nuscenes
import torch
import torch.multiprocessing as multiprocessing
from make_cases import random_cases, reordered
from test_accumulate import part

from iidrive.cli.main import main
from iidrive.cli.score import score
from iidrive.core.errors import ConfigError, DataError
from iidrive.scoring.accumulate import PlanningScore
from iidrive.scoring.cases import Cases, read_cases, write_cases
from iidrive.scoring.predictions import align, write_predictions
from iidrive.scoring.readers import read_paths, read_tokens
from iidrive.scoring.score import to_json, write_per_sample

N = 11
PROTOCOLS = ("sparsedrive", "uniad", "vad")


@pytest.fixture
def town() -> tuple[Cases, np.ndarray]:
    return drawn()


def drawn() -> tuple[Cases, np.ndarray]:
    cases, path = random_cases(5, n=N, boxes_per_step=4)
    return replace(cases, gt_ego_fut_masks=np.ones((N, 6), bool)), path


def dumped(value: object, protocol: int = 4) -> bytes:
    return pickle.dumps(value, protocol=protocol)


def old_numpy(raw: bytes) -> bytes:
    """As NumPy 1 writes it: `numpy.core` where NumPy 2 says `numpy._core`. Only for protocol 2, whose names have no length."""
    return raw.replace(b"numpy._core", b"numpy.core")


KINDS: dict[str, Callable[[Path, tuple[str, ...], np.ndarray], object]] = {
    "own.npz": lambda f, t, p: write_predictions(f, t, p),
    "table.npz": lambda f, t, p: np.savez(f, **dict(zip(t, p, strict=True))),
    "table.pkl": lambda f, t, p: f.write_bytes(dumped(dict(zip(t, p, strict=True)))),
    "two.pkl": lambda f, t, p: f.write_bytes(old_numpy(dumped(dict(zip(t, p, strict=True)), 2))),
    "five.pickle": lambda f, t, p: f.write_bytes(dumped(dict(zip(t, p, strict=True)), 5)),
    "zero.pkl": lambda f, t, p: f.write_bytes(dumped(dict(zip(t, p.tolist(), strict=True)), 0)),
    "float64.pkl": lambda f, t, p: f.write_bytes(dumped({k: np.asfortranarray(v.astype(">f8")) for k, v in zip(t, p, strict=True)})),
    "scalars.pkl": lambda f, t, p: f.write_bytes(dumped({np.str_(k): [list(xy) for xy in v] for k, v in zip(t, p, strict=True)})),
    "tensors.pkl": lambda f, t, p: f.write_bytes(dumped(OrderedDict(zip(t, torch.from_numpy(p), strict=True)))),
    "rows.pkl": lambda f, t, p: f.write_bytes(dumped([{"token": k, "trajectory": v} for k, v in zip(t, p, strict=True)])),
    "table.json": lambda f, t, p: f.write_text(json.dumps(dict(zip(t, p.tolist(), strict=True)))),
    "rows.json": lambda f, t, p: f.write_text(
        "\ufeff" + json.dumps([{"token": k, "trajectory": v} for k, v in zip(t, p.tolist(), strict=True)])
    ),
    "noname": lambda f, t, p: f.write_text(json.dumps(dict(zip(t, p.tolist(), strict=True)))),
}
BY_POSITION: dict[str, Callable[[Path, np.ndarray], object]] = {
    "results.pkl": lambda f, p: f.write_bytes(dumped(results(p))),
    "numpy.pkl": lambda f, p: f.write_bytes(dumped([{"img_bbox": {"final_planning": v}} for v in p], 2)),
    "array.npy": lambda f, p: np.save(f, p),
    "array.pkl": lambda f, p: f.write_bytes(dumped(p)),
    "bare.npz": lambda f, p: np.savez(f, pred=p),
    "list.json": lambda f, p: f.write_text(json.dumps(p.tolist())),
}


def results(paths: np.ndarray) -> list[dict[str, Any]]:
    """Shaped as SparseDrive's results.pkl: tensors that share storages, lists of arrays, and many unused entries."""
    every = torch.from_numpy(paths)
    return [
        {
            "img_bbox": {
                "boxes_3d": torch.zeros(3, 9),
                "labels_3d": torch.arange(3),
                "vectors": [np.zeros((20, 2), np.float32)],
                "scores": np.ones(3),
                "planning_score": torch.ones(3, 6),
                "final_planning": every[i],
            }
        }
        for i in range(len(paths))
    ]


def bytes_of(cases: Cases, paths: np.ndarray, folder: Path) -> tuple[bytes, bytes]:
    """JSON and per-sample file that `iidrive score` writes."""
    write_cases(folder / "c.npz", cases)
    write_predictions(folder / "p.npz", cases.token, paths)
    return scored(folder, folder / "p.npz")


def scored(folder: Path, predictions: Path, tokens: Path | str = "") -> tuple[bytes, bytes]:
    out, rows = folder / "s.json", folder / "rows.npz"
    score([str(folder / "c.npz")], ",".join(PROTOCOLS), str(predictions), str(out), str(rows), str(tokens))
    return out.read_bytes(), rows.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_in_any_order_gives_the_same_bytes(kind: str, town: tuple[Cases, np.ndarray], tmp_path: Path) -> None:
    cases, path = town
    expected = bytes_of(cases, path, tmp_path)
    for seed in (0, 1):
        order = np.random.default_rng(seed).permutation(N)
        KINDS[kind](tmp_path / kind, tuple(cases.token[i] for i in order), path[order])
        assert scored(tmp_path, tmp_path / kind) == expected


@pytest.mark.parametrize("kind", BY_POSITION)
def test_files_without_tokens_are_joined_through_a_list_with_a_warning(
    kind: str, town: tuple[Cases, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases, path = town
    expected = bytes_of(cases, path, tmp_path)
    order = np.random.default_rng(2).permutation(N)
    names = [cases.token[i] for i in order]
    BY_POSITION[kind](tmp_path / kind, path[order])
    (tmp_path / "t.txt").write_text("\r\n".join(names) + "\r\n")
    (tmp_path / "t.json").write_text(json.dumps(names))
    for tokens in ("t.txt", "t.json"):
        capsys.readouterr()
        assert scored(tmp_path, tmp_path / kind, tmp_path / tokens) == expected
        printed = capsys.readouterr()
        assert "were joined to those of" in printed.out
        assert "does not state its frame" in printed.err
    with pytest.raises(DataError, match=r"no sample tokens.*--tokens"):
        align(cases, read_paths(tmp_path / kind).predictions)


def test_iidrives_own_file_needs_no_assumptions(town: tuple[Cases, np.ndarray], tmp_path: Path) -> None:
    cases, path = town
    write_predictions(tmp_path / "p.npz", cases.token, path, {"seed": 1})
    found = read_paths(tmp_path / "p.npz")
    assert (found.assumed, found.trusted, found.predictions.meta) == ("", "", {"seed": 1})
    (tmp_path / "t.txt").write_text("\n".join(cases.token))
    with pytest.raises(ConfigError, match="leave out --tokens"):
        read_paths(tmp_path / "p.npz", tmp_path / "t.txt")


def test_missing_and_unknown_samples_are_counted_and_named(town: tuple[Cases, np.ndarray], tmp_path: Path) -> None:
    cases, path = town
    (tmp_path / "p.json").write_text(json.dumps(dict(zip((*cases.token[:-2], "x", "y"), path.tolist(), strict=True))))
    with pytest.raises(DataError, match=r"2 samples \(x, y\) not in .*no prediction for 2 samples \(sample9, sample10\)"):
        align(cases, read_paths(tmp_path / "p.json").predictions)


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 8])
def test_any_split_into_parts_gives_the_same_bytes(processes: int, town: tuple[Cases, np.ndarray], tmp_path: Path) -> None:
    """Eleven samples in any order, dealt to 1, 2, 3, 5 or 8 collectors, which are merged as copies in any order."""
    cases, path = town
    expected = gathered(cases, path, [np.arange(N)], tmp_path)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        order = rng.permutation(N)
        whole = rng.permutation(N)
        assert gathered(cases, path, [whole[rank::processes] for rank in rng.permutation(processes)], tmp_path) == expected
        assert gathered(reordered(cases, order), path[order], np.array_split(np.arange(N), processes), tmp_path) == expected


def gathered(cases: Cases, path: np.ndarray, dealt: list[np.ndarray], folder: Path) -> tuple[bytes, bytes]:
    parts = []
    for rows in dealt:
        one = PlanningScore(PROTOCOLS)
        one.update(part(cases, rows), path[rows])
        parts.append(pickle.loads(pickle.dumps(one)))
    found = PlanningScore(PROTOCOLS).merge(parts).compute().values()
    write_per_sample(folder / "rows.npz", *found)
    return json.dumps(to_json(*found)).encode(), (folder / "rows.npz").read_bytes()


def _process(rank: int, folder: str, processes: int) -> None:
    import torch.distributed as distributed

    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    cases, path = drawn()
    rows = np.arange(N)[::-1][rank::processes]
    mine = PlanningScore(PROTOCOLS)
    mine.update(part(cases, rows), path[rows])
    found = mine.gather().compute().values()
    write_per_sample(Path(folder) / f"rows{rank}.npz", *found)
    (Path(folder) / f"s{rank}.json").write_text(json.dumps(to_json(*found)))
    distributed.destroy_process_group()


@pytest.mark.slow
def test_real_processes_give_the_same_bytes(town: tuple[Cases, np.ndarray], tmp_path: Path) -> None:
    expected = gathered(*town, [np.arange(N)], tmp_path)
    multiprocessing.start_processes(_process, args=(str(tmp_path), 3), nprocs=3, start_method="spawn")
    for rank in range(3):
        assert ((tmp_path / f"s{rank}.json").read_bytes(), (tmp_path / f"rows{rank}.npz").read_bytes()) == expected


@pytest.mark.slow
def test_the_truth_of_nuscenes_and_towns_is_written_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, out = tiny_nuscenes.make(tmp_path / "nuscenes"), tmp_path / "new" / "c.npz"
    main(["cases", "--data", "nuscenes", "--root", str(root), "--split", "mini_val", "--out", str(out)])
    assert "16 samples of nuscenes mini_val, 4 with a full future" in capsys.readouterr().out
    cases = read_cases(out)
    assert len(cases) == 16
    assert cases.own_tokens
    first = out.read_bytes()
    main(["cases", "--data", "nuscenes", "--root", str(root), "--split", "mini_val", "--out", str(out)])
    assert out.read_bytes() == first
    main(["score", str(out)])
    assert "scored 4 samples" in capsys.readouterr().out
    town = ["--recipe", "tiny", "--recipe.town.test_scenes", "1", "--recipe.town.keyframes", "8"]
    main(["cases", "--out", str(tmp_path / "town.npz"), *town])
    assert len(read_cases(tmp_path / "town.npz")) == 8


def test_no_code_of_a_pickle_runs(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "touched",))

    (tmp_path / "p.pkl").write_bytes(dumped({"a": Evil()}))
    with pytest.raises(DataError, match="the pickle asks for 'pathlib"):
        read_paths(tmp_path / "p.pkl")
    assert not (tmp_path / "touched").exists()


# ------------------------------------------------------------------------------------------------------------- malformed files

GOOD = np.ones((N, 6, 2), np.float32)
NAMES = [f"sample{i}" for i in range(N)]
TABLE = dict(zip(NAMES, GOOD.tolist(), strict=True))


def archive(**arrays: Any) -> bytes:
    raw = io.BytesIO()
    np.savez(raw, **arrays)
    return raw.getvalue()


def torch_file() -> bytes:
    raw = io.BytesIO()
    torch.save(TABLE, raw)
    return raw.getvalue()


def npy(value: Any) -> bytes:
    raw = io.BytesIO()
    np.save(raw, value, allow_pickle=True)
    return raw.getvalue()


def without_reading(module: str, name: str, *arguments: bytes) -> bytes:
    """A hand-written pickle that calls `module.name`."""
    return b"\x80\x02c" + module.encode() + b"\n" + name.encode() + b"\n(" + b"".join(arguments) + b"tR."


WHOLE = {"token": np.array(NAMES), "trajectory": GOOD, "frame": "lidar", "reference": "lidar_top"}
PREDICTIONS: list[tuple[str, bytes, str]] = [
    ("empty.pkl", b"", "the file is empty"),
    ("empty.npz", b"", "the file is empty"),
    ("text.csv", b"token,x,y\n", "unknown file type"),
    ("zip.gz", b"\x1f\x8b\x08\x00", "unknown file type"),
    ("cut.npz", archive(**WHOLE)[:300], "may be truncated"),
    ("torch.pt", torch_file(), "a torch.save file"),
    ("nothing.npz", archive(), "the file has no paths"),
    ("noframe.npz", archive(token=WHOLE["token"], trajectory=GOOD), "frame, reference missing"),
    ("ego.npz", archive(**{**WHOLE, "frame": "ego"}), "frame is 'ego'"),
    ("axle.npz", archive(**{**WHOLE, "reference": "rear_axle"}), "reference is 'rear_axle'"),
    ("meta.npz", archive(**WHOLE, meta="{"), "meta is not JSON"),
    ("short.npz", archive(**{**WHOLE, "token": WHOLE["token"][:3]}), "must have shape"),
    ("object.npz", archive(**{**WHOLE, "token": np.array([*NAMES[1:], None], object)}), "pickled Python objects"),
    ("shape.npz", archive(a=np.zeros((5, 2))), "sample a must have shape (6, 2)"),
    ("objects.npz", archive(a=np.array([None])), "pickled Python objects"),
    ("flat.npy", npy(np.zeros((6, 2))), "must have shape (n, 6, 2)"),
    ("objects.npy", npy(np.array([None])), "pickled objects"),
    ("cut.npy", npy(GOOD)[:200], "not a readable npy file"),
    ("header.npy", npy(GOOD).replace(b"}", b"("), "not a readable npy file"),
    ("cut.json", b'{"a": [[1, 2]', "not readable as JSON"),
    ("deep.json", b"[" * 100_000, "not readable as JSON"),
    ("latin.json", '{"é": 1}'.encode("latin1"), "not text in UTF-8"),
    ("number.json", b"7", "expected paths by sample token"),
    ("none.json", b"{}", "the file has no paths"),
    ("list.json", b"[]", "the file has no paths"),
    ("twice.json", b'{"a": [], "a": []}', "repeated: 1 name (a)"),
    ("text.json", b'{"a": "left"}', "must be numbers of shape (6, 2); found the text 'left'"),
    ("null.json", b'{"a": null}', "found nothing (null)"),
    ("ragged.json", b'{"a": [[1, 2], [3]]}', "differ in length"),
    ("five.json", json.dumps({"a": [[0, 1]] * 5}).encode(), "found (5, 2)"),
    ("three.json", json.dumps({"a": [[0, 1, 2]] * 6}).encode(), "found (6, 3)"),
    ("nan.json", json.dumps({**TABLE, "sample3": [[float("nan")] * 2] * 6}).encode(), "path of 1 sample (sample3) holds NaN"),
    ("huge.json", json.dumps({**TABLE, "sample3": [[10**60, 0]] * 6}).encode(), "must be numbers"),
    ("large.json", json.dumps({**TABLE, "sample3": [[1e60, 0]] * 6}).encode(), "holds NaN or infinity"),
    ("blank.json", b'{" a": []}', "without surrounding spaces"),
    ("newline.json", b'{"a\\nb": []}', "control characters"),
    ("norow.json", b'[{"token": "a"}]', "row 0 has no 'trajectory'"),
    ("rows.json", json.dumps([{"token": "a", "trajectory": GOOD[0].tolist()}] * 2).encode(), "repeated: 1 sample (a)"),
    ("missing.json", json.dumps(dict(list(TABLE.items())[1:])).encode(), "no prediction for 1 sample (sample0)"),
    ("unknown.json", json.dumps({**TABLE, "zzz": TABLE["sample0"]}).encode(), "1 sample (zzz) not in"),
    ("bare.json", json.dumps(GOOD.tolist()).encode(), "no sample tokens"),
    ("cut.pkl", dumped(TABLE)[:-40], "not a readable pickle"),
    ("junk.pkl", b"\x80\x04junk", "not a readable pickle"),
    ("words.pkl", b"not a pickle", "not a readable pickle"),
    ("system.pkl", without_reading("os", "system", b"X\x04\x00\x00\x00true"), "asks for 'os.system'"),
    ("eval.pkl", without_reading("builtins", "eval", b"X\x01\x00\x00\x001"), "asks for 'builtins.eval'"),
    ("lines.pkl", b"\x80\x04\x8c\x03o\ns\x8c\x06system\x93.", "asks for 'o\\ns.system'"),
    ("outside.pkl", b"\x80\x02X\x01\x00\x00\x00aQ.", "outside the file"),
    ("codec.pkl", without_reading("_codecs", "encode", b"X\x01\x00\x00\x00a", b"X\x03\x00\x00\x00zip"), "the text encoding 'zip'"),
    ("class.pkl", dumped({"a": Path("x")}), "asks for 'pathlib"),
    ("parameter.pkl", dumped({"a": torch.nn.Parameter(torch.ones(6, 2))}), "asks for 'torch._utils._rebuild_parameter'"),
    ("objects.pkl", dumped({"a": np.array([None])}), "NumPy values of type 'O8'"),
    ("keys.pkl", dumped({7: GOOD[0]}), "a sample token must be text; found int in row 0"),
    ("set.pkl", dumped({"a": {1}}), "must be numbers"),
    ("single.pkl", dumped(3.5), "expected paths by sample token"),
    ("dtype.pkl", dumped(np.dtype("f4")), "expected paths by sample token"),
    ("detection.pkl", dumped([{"img_bbox": {"boxes_3d": GOOD[0]}}]), "neither a token nor img_bbox.final_planning"),
    ("key.pkl", dumped([{"img_bbox": {"boxes\n3d": 1}}]), "found 1 key ('boxes\\n3d')"),
    ("inner.pkl", dumped([{"img_bbox": None}]), "neither a token nor img_bbox.final_planning"),
    ("steps.pkl", dumped(results(np.ones((N, 5, 2), np.float32))), "the path of row 0 must have shape (6, 2)"),
    ("results.pkl", dumped(results(GOOD)), "list with --tokens"),
    ("tensor.pkl", dumped({"a": torch.ones(6, 2)}, 2).replace(b"FloatStorage", b"FlootStorage"), "a tensor is damaged"),
    ("state.pkl", dumped({"a": GOOD[0]}).replace(b"K\x06K\x02\x86", b"K\x06K\x03\x86"), "not a readable pickle"),
]

TOKENS: list[tuple[str, bytes, str]] = [
    ("none.txt", b"", "the file has no tokens"),
    ("gap.txt", "\n\n".join(NAMES).encode(), "found '' in row 1"),
    ("blank.txt", "\n ".join(NAMES).encode(), "without surrounding spaces"),
    ("latin.txt", "é".encode("latin1"), "not text in UTF-8"),
    ("short.txt", "\n".join(NAMES[:-1]).encode(), "lists 10 samples"),
    ("twice.txt", "\n".join([*NAMES[:-1], "sample0"]).encode(), "repeated: 1 sample (sample0)"),
    ("other.txt", "\n".join([*NAMES[:-1], "zzz"]).encode(), "1 sample (zzz) not in"),
    ("cut.json", b'["sample0"', "not readable as JSON"),
    ("table.json", b'{"sample0": 1}', "must be a JSON list of text; found dict"),
    ("numbers.json", json.dumps(list(range(N))).encode(), "must be text; found int in row 0"),
    ("none.json", b"[]", "the file has no tokens"),
]


def one_sentence(capsys: pytest.CaptureFixture[str], path: Path, message: str, *arguments: str) -> None:
    """The command fails with status 2 and one line that names the file."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    printed = capsys.readouterr().err.splitlines()
    said = [line for line in printed if not line.startswith("note: ")]
    assert len(said) == 1, printed
    assert said[0].startswith("iidrive: ")
    assert str(path) in said[0]
    assert message in said[0]
    assert len(said[0]) < 600


@pytest.mark.parametrize(("name", "content", "message"), PREDICTIONS, ids=[name for name, _, _ in PREDICTIONS])
def test_malformed_predictions(name: str, content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cases(tmp_path / "c.npz", drawn()[0])
    path = tmp_path / name
    path.write_bytes(content)
    one_sentence(capsys, path, message, "score", str(tmp_path / "c.npz"), "--predictions", str(path))


@pytest.mark.parametrize(("name", "content", "message"), TOKENS, ids=[name for name, _, _ in TOKENS])
def test_malformed_token_lists(name: str, content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cases(tmp_path / "c.npz", drawn()[0])
    (tmp_path / "results.pkl").write_bytes(dumped(results(GOOD)))
    path = tmp_path / name
    path.write_bytes(content)
    # A token that is fine as text and not in the set is the predictions' own fault by then.
    named = tmp_path / "results.pkl" if name == "other.txt" else path
    one_sentence(
        capsys, named, message, "score", str(tmp_path / "c.npz"), "--predictions", str(tmp_path / "results.pkl"), "--tokens", str(path)
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable npz"),
        (b"PK\x03\x04junk", "truncated"),
        (dumped(TABLE), "not a readable npz"),
        (npy(GOOD), "single npy array"),
        (archive(**WHOLE), "not a cases file"),
    ],
)
def test_malformed_cases(content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.npz"
    path.write_bytes(content)
    one_sentence(capsys, path, message, "score", str(path))


def test_missing_files_and_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cases(tmp_path / "c.npz", drawn()[0])
    command = ["score", str(tmp_path / "c.npz")]
    one_sentence(capsys, tmp_path / "no.pkl", "no such file", *command, "--predictions", str(tmp_path / "no.pkl"))
    one_sentence(capsys, tmp_path, "cannot be read", *command, "--predictions", str(tmp_path))
    with pytest.raises(SystemExit):
        main([*command, "--tokens", "t.txt"])
    assert "add --predictions" in capsys.readouterr().err
    with pytest.raises(DataError, match="no such file"):
        read_tokens(tmp_path / "no.txt")


def every_command(folder: Path, predictions: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[str, str, str, str]:
    """What doctor and audit write and what compare says of predictions beside p.npz; last, all that was printed."""
    cases = ["--cases", str(folder / "c.npz"), *options]
    out = folder / "out.json"
    capsys.readouterr()
    main(["doctor", str(predictions), *cases, "--json", str(out)])
    tables = json.loads(out.read_text().replace(str(predictions), "PREDICTIONS"))
    main(["audit", str(predictions), *cases, "--json", str(out)])
    printed = capsys.readouterr()
    main(["compare", str(predictions), str(folder / "p.npz"), *cases])
    compared = capsys.readouterr()
    verdict = compared.out.split("differences are A - B")[1]
    return json.dumps(tables), out.read_text(), verdict, printed.out + printed.err + compared.out + compared.err


@pytest.mark.slow
def test_doctor_audit_and_compare_read_what_score_reads(
    town: tuple[Cases, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases, path = town
    write_cases(tmp_path / "c.npz", cases)
    write_predictions(tmp_path / "p.npz", cases.token, path)
    *expected, said = every_command(tmp_path, tmp_path / "p.npz", capsys)
    assert "does not state its frame" not in said
    order = np.random.default_rng(3).permutation(N)
    names = tuple(cases.token[i] for i in order)
    for kind, write in KINDS.items():
        write(tmp_path / kind, names, path[order])
        *found, said = every_command(tmp_path, tmp_path / kind, capsys)
        assert found == expected, kind
        assert said.count("does not state its frame") == (0 if kind == "own.npz" else 3)
    (tmp_path / "t.txt").write_text("\n".join(names))
    for kind, write_rows in BY_POSITION.items():
        write_rows(tmp_path / kind, path[order])
        *found, said = every_command(tmp_path, tmp_path / kind, capsys, "--tokens", str(tmp_path / "t.txt"))
        assert found == expected, kind
        assert said.count("warning: ") == said.count("were joined to those of") == 3


@pytest.mark.slow
def test_wrong_use_of_predictions_ends_in_one_sentence(
    town: tuple[Cases, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases, path = town
    monkeypatch.chdir(tmp_path)
    write_cases("c.npz", cases)
    write_predictions("p.npz", cases.token, path)
    Path("rows.json").write_text(json.dumps(path.tolist()))
    Path("t.txt").write_text("\n".join(cases.token))
    Path("log.txt").write_text("[2024-01-01] nothing here\n")
    for arguments, message in (
        ("doctor rows.json", "add --cases"),
        ("doctor rows.json p.npz --cases c.npz", "one predictions file at a time"),
        ("doctor rows.json --cases c.npz", "give a list with --tokens"),
        ("doctor log.txt --cases c.npz", "tables are examined without them"),
        ("doctor log.txt", "no table found"),
        ("doctor p.npz --cases c.npz --tokens t.txt", "leave out --tokens"),
        ("audit rows.json", "add --cases"),
        ("audit rows.json --cases c.npz", "or a list with --tokens"),
        ("audit ctrv --cases c.npz", "--cases is the truth for a predictions file"),
        ("audit none.pkl", "add --cases"),
        ("audit none.pkl --cases c.npz", "none.pkl: no such file"),
        ("compare rows.json p.npz --cases c.npz", "give a list with --tokens"),
        ("compare p.npz p.npz --cases c.npz --tokens t.txt", "have their own: leave it out"),
        ("compare log.txt log.txt --tokens t.txt", "tables have none: leave it out"),
        ("compare rows.json p.npz --tokens t.txt", "add --cases"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments.split())
        assert stop.value.code == 2, arguments
        assert message in " ".join(capsys.readouterr().err.split()), arguments
