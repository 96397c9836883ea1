"""Untrusted files: the limits of each reader, and which files may be overwritten."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iidrive.core.errors import ConfigError, DataError
from iidrive.core.paths import expanded
from iidrive.core.text import printable
from iidrive.core.untrusted import plain_pickle
from iidrive.core.untrusted.json_text import parse_json, read_json
from iidrive.core.untrusted.npz import read_npy, read_npz
from iidrive.core.untrusted.yaml_text import parse_yaml
from iidrive.runtime import atomic, distributed
from iidrive.runtime.run_folder import Run
from iidrive.training import shipped


def test_printable_gives_one_short_line() -> None:
    assert printable("plain") == "plain"
    assert printable("a\nb\x1b[2J\ud800") == "a\\nb\\x1b[2J\\ud800"
    assert printable("x" * 10_000_000, 10) == "xxxxxxxxx…"
    assert printable([1, "a", None]) == "[1, 'a', None]"
    assert len(printable([[0] * 1000] * 1000, 40)) == 40
    assert printable(10**5000) == "an integer of 16610 bits"
    loop: list[Any] = []
    loop.append(loop)
    assert len(printable(loop)) < 80


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200 + "]" * 200, "more than 100 levels"),
        ("[" * 100_000, "nested too deeply"),
        ('[{"a":' * 60 + "0" + "}]" * 60, "more than 100 levels"),
        ("9" * 5000, "not readable as JSON"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ("{", "not readable as JSON"),
    ],
)
def test_json_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_json(text, "f")


def test_json_that_is_read(tmp_path: Path) -> None:
    many = {"text": "[" * 500, "rows": [[1, 2]] * 300}
    assert parse_json(json.dumps(many), "f") == many
    (tmp_path / "a.json").write_bytes("﻿[1]".encode())
    assert read_json(tmp_path / "a.json") == [1]
    (tmp_path / "b.json").write_bytes("[1]".encode("utf-16"))
    for path, message in (("b.json", "begins like UTF-16"), (".", "it is a folder"), ("none", "no such file")):
        with pytest.raises(DataError, match=message):
            read_json(tmp_path / path)
    with pytest.raises(DataError, match="more than the 2 bytes"):
        read_json(tmp_path / "a.json", 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "line 2: the key 'a' is given twice"),
        ("a: {b: 1, c: 2, b: 3}", "'b' is given twice"),
        ("a: &a [*a]", "contains itself"),
        ("\n".join(["a0: &a0 [1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10))]), "more than 100000 values"),
        ("[" * 200, "more than 100 levels"),
        ("a: !!python/object/apply:os.system [x]", "not readable as YAML"),
        ("a: 1\n---\nb: 2", "another document"),
        ("1: 2", "a key must be text"),
        ("a: " + "9" * 5000, "not readable as YAML"),
        ("a: [1, -" + "9" * 400 + "]", "line 1: not readable as YAML \\(a whole number of 401 characters\\)"),
        ("a: @", "line 1: not readable"),
    ],
)
def test_yaml_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_yaml(text, "f")


def test_yaml_that_is_read() -> None:
    assert parse_yaml("a: 1e-3\nb: &x [1, two]\nc: *x\nd: 2020-01-01\non: ~", "f") == {
        "a": 1e-3,
        "b": [1, "two"],
        "c": [1, "two"],
        "d": "2020-01-01",
        "on": None,
    }
    assert parse_yaml("", "f") is None


def big_npz(path: Path, shape: tuple[int, ...]) -> Path:
    """An npz whose header says `shape` and whose values are 1 MiB of compressed zeros."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(1 << 20))
        archive.writestr("unused.npy", b"not an array at all")
    return path


def test_npz_headers_are_read_before_values(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"says float64 of shape \(1000000, 1000000\).*It was not unpacked"):
        read_npz(big_npz(tmp_path / "a.npz", (10**6, 10**6)), ("a",))
    with pytest.raises(DataError, match="may take 1 MiB"):
        read_npz(big_npz(tmp_path / "a.npz", (1 << 18,)), ("a",), 1 << 20)
    with pytest.raises(DataError, match="is damaged"):
        read_npz(big_npz(tmp_path / "a.npz", (17,)), ("a",))
    found, others = read_npz(big_npz(tmp_path / "a.npz", (1 << 17,)), ("a",))
    assert (found["a"].shape, others) == ((1 << 17,), ("unused",))
    np.save(tmp_path / "b.npy", np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)))
    assert read_npy(tmp_path / "b.npy").tolist() == [[0, 1, 2], [3, 4, 5]]
    with (tmp_path / "b.npy").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match="its length does not match"):
        read_npy(tmp_path / "b.npy")


def pickled(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


LOOP = b"\x80\x02]q\x00(h\x00h\x00e."
LAUGHS = b"\x80\x02]q\x00K\x01a" + b"".join(b"]q%c(" % i + (b"h%c" % (i - 1)) * 10 + b"e" for i in range(1, 12)) + b"."
TUPLES = b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02C\xff.", "bytes expected"),
        (b"\x80\x04\x96" + (1 << 40).to_bytes(8, "little") + b".", "bytes expected"),
        (TUPLES, "a tuple as a key"),
        (b"\x80\x04" + b"\x8f" * 1_000_000 + b".", "far more memory"),
        (b"\x80\x02" + b"h\x05.", "not a readable pickle"),
        (b"\x80\x02\x82\x01.", "an extension code"),
        (b"\x80\x02(ios\nsystem\n.", "os.system"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f" + bytes(100) + b".", "an integer of"),
        (b"\x80\x02cbuiltins\nlist\n)R.", "a call of a type"),
    ],
)
def test_pickles_that_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        plain_pickle.load(pickled(tmp_path / "p.pkl", content))


@pytest.mark.parametrize("content", [LOOP, LAUGHS])
def test_lists_that_expand_without_end_are_refused(content: bytes, tmp_path: Path) -> None:
    found = plain_pickle.load(pickled(tmp_path / "p.pkl", content))
    with pytest.raises(DataError, match="lists"):
        plain_pickle.to_array(found)


def test_a_file_that_was_appended_to_is_refused(tmp_path: Path) -> None:
    """The second pickle may hold the newer paths."""
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"a": 1}) + pickle.dumps({"a": 2}))
    with pytest.raises(
        DataError, match=r"p\.pkl: there is more after the first pickle.*was the file appended to\? Write everything in one pickle"
    ):
        plain_pickle.load(tmp_path / "p.pkl")


def test_a_large_memo_index_allocates_nothing(tmp_path: Path) -> None:
    assert plain_pickle.load(pickled(tmp_path / "p.pkl", b"\x80\x02Nr\xff\xff\xff\x7f.")) is None


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol(protocol: int, tmp_path: Path) -> None:
    value = {"a": (1, -5, 2**70, 1.5, True, None), "é\n'\"": [b"\xff\x00" * 5000, "x" * 300], "s": {1, 2}, "n": np.float32(3).item()}
    assert plain_pickle.load(pickled(tmp_path / "p.pkl", pickle.dumps(value, protocol))) == value
    arrays = {"f": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "t": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(3).bfloat16()}
    found = plain_pickle.load(pickled(tmp_path / "p.pkl", pickle.dumps(arrays, protocol)))
    assert {k: np.asarray(v).tolist() for k, v in found.items()} == {
        k: np.asarray(torch.as_tensor(v).float()).tolist() for k, v in arrays.items()
    }


def test_files_of_torch_save_are_read_without_torch(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(6.0).reshape(3, 2).T, "h": torch.ones(2).bfloat16(), "n": 3}, tmp_path / "t.pth")
    found = plain_pickle.load_torch(tmp_path / "t.pth")
    assert np.asarray(found["a"]).tolist() == [[0, 2, 4], [1, 3, 5]]
    assert np.asarray(found["h"]).tolist() == [1, 1]
    torch.save({"a": torch.zeros(1).expand(1 << 30)}, tmp_path / "s.pth")
    with pytest.raises(DataError, match="a tensor is damaged"):
        plain_pickle.to_array([plain_pickle.load_torch(tmp_path / "s.pth")["a"]])


def test_only_regular_files_are_overwritten(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for path, message in (
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path, "a folder"),
        ("/dev/null", "a device"),
        (tmp_path / "dangling", "link"),
    ):
        with pytest.raises(DataError, match=message):
            atomic.write(path, b"x")
    assert Path("/dev/null").is_char_device()
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    atomic.write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_writing_gives_up_after_repeated_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanished(*_: object) -> None:
        raise FileNotFoundError(2, "gone")

    monkeypatch.setattr(atomic.os, "replace", vanished)
    with pytest.raises(FileNotFoundError):
        atomic.write(tmp_path / "a", b"x")


def test_json_holds_null_for_nan_and_infinity(tmp_path: Path) -> None:
    Run(tmp_path).write_json("a.json", {"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [None, 1.5]}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2"}, "does not divide"),
        ({"SLURM_PROCID": "0", "SLURM_NNODES": "0"}, "SLURM_NNODES=0"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "many"}, "SLURM_NTASKS=many"),
    ],
)
def test_invalid_launcher_environments_are_refused(environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        distributed.started()


def test_unknown_home_folders_are_refused() -> None:
    with pytest.raises(ConfigError, match="no such home folder"):
        expanded("~nobody-of-this-name/x")
    with pytest.raises(ConfigError, match="zero byte"):
        expanded("a\0b")


@pytest.mark.slow
def test_a_terminal_that_only_knows_ascii(tmp_path: Path) -> None:
    """The arrow of a chain is escaped there, not an error."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    command = [sys.executable, "-m", "iidrive", "lineage", str(shipped.FOLDER / "town-small" / "planner")]
    done = subprocess.run(command, capture_output=True, env=environment, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"\\u2190" in done.stdout
    assert done.stdout.isascii()


def test_a_damaged_name_of_an_array_is_noticed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", semantics=np.zeros(3, np.uint8), mask_camera=np.ones(3, np.uint8))
    raw = (tmp_path / "a.npz").read_bytes()
    at = raw.rindex(b"mask_camera")
    (tmp_path / "a.npz").write_bytes(raw[: at + 5] + b"C" + raw[at + 6 :])
    with pytest.raises(DataError, match="not a readable npz archive"):
        read_npz(tmp_path / "a.npz", ("semantics", "mask_camera"))
