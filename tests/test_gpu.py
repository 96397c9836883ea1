"""On a GPU: what the CPU gives, without waiting for a result. And the GPU's benchmark runs, on whatever there is."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from iidrive.pipeline import recipes
from iidrive.runtime.run_folder import repeat_bits

CASES = ["tokenizer", "forecast", "forecast, frames", "plan", "train planner", "train world", "train tokenizer"]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """`benchmarks/gpu.py`."""
    path = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("benchmark_gpu", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_benchmark_runs(benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    monkeypatch.setattr(benchmark, "tests_on_gpu", lambda: "not run: this is one")
    options = ["--recipe", "tiny", "--modes", "float32", "plain", "--batch", "2", "--seconds", "0", "--loader", "0"]
    benchmark.main([*options, "--out", str(tmp_path / "gpu.json")])
    told = json.loads((tmp_path / "gpu.json").read_text())
    rows = told["rows"]
    assert told["complete"]
    assert [(row["case"], row["mode"]) for row in rows] == [(case, mode) for mode in ("float32", "plain") for case in CASES]
    for row in rows:
        frames = 2 * {"tokenizer": 1, "plan": 1}.get(row["case"], 6) if "train" not in row["case"] else 1
        assert row["per_second"] == pytest.approx(frames / row["seconds"])


@pytest.mark.slow
@pytest.mark.gpu
@on_gpu
def test_losses_and_gradients_are_the_cpu_s(benchmark: ModuleType) -> None:
    """In float64; on the GPU nothing waits for a result meanwhile."""
    recipe, found = recipes.tiny(), []
    batch = benchmark.inputs_of(recipe, 2, torch.device("cpu")).as_type(torch.float64)
    for place in (torch.device("cpu"), torch.device("cuda")):
        torch.manual_seed(0)
        agent, part = benchmark.agent_of(recipe, "float32", place).double(), batch.to(place)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            found.append({name: gradients(*models, part) for name, models in pairs(agent).items()})
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for name, values in found[0].items():
        for a, b in zip(values, found[1][name], strict=True):
            torch.testing.assert_close(b.cpu(), a, atol=1e-7, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.gpu
@on_gpu
def test_a_gpu_that_has_to_repeat_itself_does(benchmark: ModuleType) -> None:
    """Every loss and gradient has the same bits twice, in float32; torch raises an error for an operation that could not promise it."""
    recipe, found = recipes.tiny(), []
    batch = benchmark.inputs_of(recipe, 2, torch.device("cuda"))
    repeat_bits(True)
    try:
        for _ in range(2):
            torch.manual_seed(0)
            agent = benchmark.agent_of(recipe, "float32", torch.device("cuda"))
            found.append([value for models in pairs(agent).values() for value in gradients(*models, batch)])
    finally:
        repeat_bits(False)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.slow
def test_the_benchmark_stops_in_time(benchmark: ModuleType, tmp_path: Path) -> None:
    options = ["--recipe", "tiny", "--modes", "float32", "--batch", "1", "--seconds", "0", "--loader", "0", "--minutes", "0"]
    benchmark.main([*options, "--out", str(tmp_path / "gpu.json")])
    told = json.loads((tmp_path / "gpu.json").read_text())
    assert not told["complete"]
    assert len(told["rows"]) == 1


def pairs(agent: torch.nn.Module) -> dict[str, tuple[torch.nn.Module, torch.nn.Module]]:
    """What computes a loss, and whose weights it trains."""
    forecaster = agent.forecaster
    return {
        "planner": (agent, agent.planner),
        "world": (forecaster, forecaster.world),
        "tokenizer": (forecaster.tokenizer, forecaster.tokenizer),
    }


def gradients(model: torch.nn.Module, module: torch.nn.Module, batch: object) -> list[Tensor]:
    """A loss and all gradients."""
    module.requires_grad_(True)
    loss, _ = model.loss(batch)
    grads = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, materialize_grads=True)
    return [loss.detach(), *grads]
