"""Work in a second process beside this one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from iidrive.runtime.beside import beside

pytestmark = pytest.mark.slow


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def note(path: Path) -> None:
    print("noise")
    path.write_text(f"{os.getpid()} {torch.get_num_threads()}")


def fail(path: Path) -> None:
    path.touch()
    raise RuntimeError("not done")


@pytest.mark.usefixtures("two_threads")
def test_the_threads_are_shared_and_given_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with beside(note, tmp_path / "note") as wait:
        assert torch.get_num_threads() == 1
        wait()
        assert torch.get_num_threads() == 2
    process, threads = (tmp_path / "note").read_text().split()
    assert int(process) != os.getpid()
    assert threads == "1"
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("two_threads")
def test_errors_there_stay_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with beside(fail, tmp_path / "tried") as wait:
        wait()
    assert (tmp_path / "tried").exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("two_threads")
def test_an_error_here_ends_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="here"), beside(note, tmp_path / "absent" / "note"):
        raise RuntimeError("here")
    assert torch.get_num_threads() == 2


def test_a_single_thread_is_not_shared(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with beside(note, tmp_path / "note") as wait:
        wait()
    torch.set_num_threads(before)
    assert not (tmp_path / "note").exists()
