"""The GPU's benchmark runs, on whatever there is, and loses nothing but the rows that fail.

Also what the other tests marked `gpu` share. `IIDRIVE_GPU_TESTS_ON=cpu pytest -m gpu tests/test_gpu*.py` runs their code without a GPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from iidrive.pipeline import recipes

CASES = ["tokenizer", "forecast", "forecast, frames", "plan", "train planner", "train world", "train tokenizer"]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # tests of repeated bits need it before any test's first matrix product
GPU = os.environ.get("IIDRIVE_GPU_TESTS_ON", "cuda")
"""The device that tests marked `gpu` compare with a CPU."""
GPU_MARKS = (
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(GPU == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
)
PLACES = ("cpu", pytest.param(GPU, marks=GPU_MARKS, id="gpu"))
"""A test that is cheap on a CPU runs on both."""


def use(place: str, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Make a device the one that iidrive uses."""
    if place == "cpu":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return torch.device(place)


def load_benchmark() -> ModuleType:
    """`benchmarks/gpu.py`."""
    path = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("benchmark_gpu", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_benchmark()


@pytest.mark.slow
def test_the_benchmark_runs(benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It measures in another process, and without shortcuts in this one."""
    monkeypatch.setattr(benchmark, "tests_on_gpu", lambda *given: "not run: this is one")
    options = ["--recipe", "tiny", "--modes", "float32", "--batch", "2", "--seconds", "0", "--loader", "0"]
    benchmark.main([*options, "--out", str(tmp_path / "gpu.json")])
    told = json.loads((tmp_path / "gpu.json").read_text())
    rows = told["rows"]
    assert told["complete"]
    assert [(row["case"], row["mode"]) for row in rows] == [(case, "float32") for case in CASES]
    for row in rows:
        frames = 2 * {"tokenizer": 1, "plan": 1}.get(row["case"], 6) if "train" not in row["case"] else 1
        assert row["per_second"] == pytest.approx(frames / row["seconds"])
        assert not row["error"]
    table = (tmp_path / "gpu.md").read_text()
    assert "| forecast | float32 | 2 | " in table
    assert "37 frames/s [1]" in table
    assert "leaves out tokenizer and decoder and does not synchronise" in table
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    plain = benchmark.measure(recipes.tiny(), [benchmark.Task("plan", "plain", 1), benchmark.Task("train planner", "plain", 1)], 0.0, 0)
    assert [row.error for row in plain] == ["", ""]


def test_important_rows_come_first(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours share models; compiled trainings of the second batch size are the first to be dropped."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    todo = benchmark.tasks(recipes.full(), list(benchmark.MODES), [1, 8], True)
    assert [(task.case, task.mode, task.batch) for task in todo[:4]] == [(case, "float32", 1) for case in CASES[:4]]
    assert {(task.kind, task.mode, task.batch) for task in todo[-3:]} == {("train", "compiled", 8)}
    assert len(set(todo)) == len(todo) == 6 * 2 * 4 + 5 * 2 * 3 + 6
    groups = [group for group, _ in groupby(todo, benchmark._group)]
    assert len(set(groups)) == len(groups)


@pytest.mark.slow
def test_a_row_that_fails_says_so_and_the_others_are_measured(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(case: str, agent: object, batch: object) -> Callable[[], object]:
        if case == "forecast":
            raise torch.OutOfMemoryError("CUDA out of memory. | Tried to\nallocate")
        return lambda: None

    agent = SimpleNamespace()
    monkeypatch.setattr(benchmark, "agent_of", lambda recipe, mode, place: agent if mode != "bf16" else agent.missing)
    monkeypatch.setattr(benchmark, "call_of", planted)
    todo = [benchmark.Task(case, mode, 1) for mode in ("float32", "bf16") for case in CASES[:3]]
    rows = list(benchmark.measure(recipes.tiny(), todo, 0.0, 0))
    assert [(row.case, row.mode, row.batch) for row in rows] == [(task.case, task.mode, task.batch) for task in todo]
    assert [row.error[:30] for row in rows] == ["", "failed: OutOfMemoryError: CUDA", "", *["failed: AttributeError: 'types"] * 3]
    assert str(rows[1]) == "| forecast | float32 | 1 | failed: OutOfMemoryError: CUDA out of memory. / Tried to | | | 37 frames/s [1] |"


WORKER = """
import json, sys, time
for case, mode, batch in json.loads(sys.argv[1]):
    print("a library says something")
    if case == "dies":
        sys.exit(9)
    if case == "hangs":
        time.sleep(600)
    error = "failed: unlucky" if case == "fails" else ""
    print(json.dumps(dict(case=case, mode=mode, batch=batch, error=error)), flush=True)
    if case == "fails":
        time.sleep(600)  # no GPU to go on with
"""


@pytest.mark.slow
def test_a_process_that_dies_or_hangs_costs_one_row(benchmark: ModuleType) -> None:
    todo = [benchmark.Task(case, "float32", 1) for case in ("one", "dies", "two", "hangs", "fails", "three", "four")]
    command = [sys.executable, "-c", WORKER]
    rows = list(benchmark.supervised(todo, command, 2.0, time.monotonic() + 60))
    assert [row.case for row in rows] == [task.case for task in todo]
    wrong = {row.case: row.error for row in rows if row.error}
    assert wrong == {"dies": "failed: the process ended with status 9", "hangs": "failed: took longer than 2 s", "fails": "failed: unlucky"}
    begun = time.monotonic()
    rows = list(benchmark.supervised([todo[0], todo[3], todo[2]], command, 60.0, begun + 0.5))
    assert [row.case for row in rows] == ["one"]
    assert time.monotonic() - begun < 5


def test_all_tests_that_need_a_gpu_are_run() -> None:
    """They are in files of one name, so that no other file is imported on a lent card."""
    marked = [path.name for path in Path(__file__).parent.glob("*.py") if "mark.gpu" in path.read_text() or "GPU_MARKS" in path.read_text()]
    assert {"test_gpu_parity.py", "test_gpu_runs.py"} <= set(marked)
    assert all(name.startswith("test_gpu") for name in marked)


@pytest.mark.slow
def test_the_tests_have_a_time_limit(benchmark: ModuleType, tmp_path: Path) -> None:
    """What they printed until then is kept, and their own processes end with them."""
    told = tmp_path / "told.txt"
    script = "import subprocess, sys; print('1 passed'); sys.stdout.flush(); subprocess.run(['sleep', '600'])"
    assert benchmark.limited([sys.executable, "-c", script], 1.0, told) == "stopped after 1 s: 1 passed (see told.txt)"
    assert benchmark.limited([sys.executable, "-c", "print('== 2 passed ==')"], 60.0, told) == "status 0: 2 passed (see told.txt)"


def test_the_benchmark_stops_in_time(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It names what it did not measure."""
    options = ["--recipe", "tiny", "--modes", "float32", "--batch", "1", "--seconds", "0", "--loader", "0", "--minutes", "0"]
    benchmark.main([*options, "--out", str(tmp_path / "gpu.json")])
    told = json.loads((tmp_path / "gpu.json").read_text())
    assert not told["complete"]
    assert told["dropped"] == [f"{case} (float32, batch 1)" for case in CASES]
    assert "Not measured: tokenizer (float32, batch 1); " in (tmp_path / "gpu.md").read_text()
    assert "Not measured within 0 minutes: tokenizer (float32, batch 1); " in capsys.readouterr().out
