"""Atomic file writes."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from iidrive.runtime import atomic


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic.write(path, "old")

    def fail_half_way() -> None:
        with atomic.whole(path) as temporary:
            temporary.write_text("ne")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "old"
    assert atomic.write(path, "Süd".encode()) == path
    assert path.read_bytes() == "Süd".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_temporary_file_that_another_process_removed_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, calls = atomic.os.replace, []

    def remove_once(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 1:
            source.unlink()
        replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", remove_once)
    atomic.write(tmp_path / "a", b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
    assert len(calls) == 2


def test_writing_into_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic.write(tmp_path / "no" / "a", b"")


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    """`write` on a full disk raises an error without a file name."""

    def fill() -> None:
        with atomic.whole(tmp_path / "tokens.bin") as temporary:
            temporary.write_bytes(b"x")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as error:
        fill()
    assert error.value.filename == str(tmp_path / "tokens.bin")
    assert not list(tmp_path.iterdir())
