"""Number of CPU threads for training: as asked for, as in the resumed run, or one per free core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from iidrive.core.errors import ConfigError
from iidrive.runtime import threads
from iidrive.runtime.run_folder import Run

TRAIN = ["iidrive", "train", "tokenizer", "--recipe", "tiny", "--recipe.town.train_scenes", "1", "--recipe.town.keyframes", "12"]
TRAIN += ["--recipe.train_tokenizer.samples", "4", "--recipe.train_tokenizer.batch", "2"]


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def ticks(cores: dict[int, tuple[int, int]]) -> str:
    """/proc/stat with idle and busy ticks of some cores."""
    lines = [f"cpu{core} {busy} 0 0 {idle} 0 0 0 0 7 7" for core, (idle, busy) in cores.items()]
    return "\n".join(["cpu  1 2 3 4 5 6 7 8 0 0", *lines, "intr 12"])


@pytest.mark.parametrize(
    ("idle", "free", "chosen"),
    [
        ((30, 30, 30, 30), 4.0, 4),
        ((30, 30, 27, 27), 3.8, 4),
        ((30, 30, 30, 0), 3.0, 3),
        ((30, 15, 0, 0), 1.5, 1),
        ((0, 0, 0, 0), 0.0, 1),
    ],
)
def test_busy_cores_are_not_used(idle: tuple[int, ...], free: float, chosen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may use cores 0 to 3, not core 4."""
    looks = iter([ticks(dict.fromkeys(range(5), (100, 200))), ticks({c: (100 + n, 230 - n) for c, n in enumerate((*idle, 0))})])
    monkeypatch.setattr(Path, "read_text", lambda self: next(looks))
    monkeypatch.setattr(os, "sched_getaffinity", lambda of: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: None)
    found = threads.free_cores()
    assert found == pytest.approx(free)
    monkeypatch.setattr(threads, "free_cores", lambda: found)
    assert threads.suitable(1, 4) == chosen
    assert threads.suitable(2, 4) == max(1, chosen // 2)
    assert threads.suitable(1, 1) == 1


def test_the_option_and_the_resumed_run_come_before_the_free_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "free_cores", lambda: 1.0)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    torch.set_num_threads(4)
    assert (threads.use(3), torch.get_num_threads()) == (3, 3)
    Run.start(tmp_path / "run", {})
    torch.set_num_threads(2)
    Run.start(tmp_path / "run", {}, resume=True)
    torch.set_num_threads(4)
    assert threads.use(0, tmp_path / "run") == 2, "as in the newest run-N.json"
    torch.set_num_threads(4)
    assert threads.use(0, tmp_path / "run", size=2, here=2) == 1, "another number of processes: by the free cores"
    torch.set_num_threads(4)
    assert threads.use(0) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    torch.set_num_threads(4)
    assert threads.use(0) == 4
    for damaged in ("", "[]", '{"environment": {"threads": "many"}, "processes": 1}', '{"environment": {"threads": 64}, "processes": 1}'):
        (tmp_path / "run" / "run-2.json").write_text(damaged)
        assert threads.recorded(tmp_path / "run", 1, 1) == 0
    with pytest.raises(ConfigError, match="--threads must be a number of threads"):
        threads.use(-1)


@pytest.mark.slow
def test_a_resumed_training_uses_as_many_threads_as_before(tmp_path: Path) -> None:
    """The number asked for is used however busy the machine is, and again after a resume."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | {"OMP_WAIT_POLICY": "PASSIVE"}
    cores = min(2, os.cpu_count() or 1)

    def train(run: str, *more: str) -> None:
        subprocess.run(
            [sys.executable, "-m", *TRAIN, "--out", str(tmp_path / run), *more], check=True, env=environment, capture_output=True
        )

    train("run", "--threads", str(cores))
    train("run", "--resume", "on")
    told = [json.loads((tmp_path / "run" / name).read_text())["environment"] for name in ("run.json", "run-2.json")]
    assert [(about["threads"], about["wait_policy"]) for about in told] == [(cores, "PASSIVE")] * 2
