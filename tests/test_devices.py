"""Losses, weights, tokens and scores do not depend on the number of processes: 1, 2, 4 and 8."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from together import run_together

from iidrive.core.errors import ConfigError
from iidrive.data.tokens import TokenCache
from iidrive.data.town.source import Town
from iidrive.pipeline import recipes
from iidrive.pipeline.evaluate import Use, evaluate
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.testset import TestSet
from iidrive.pipeline.tokens import write_tokens
from iidrive.pipeline.train import train_planner, train_tokenizer, train_world
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.run_folder import Run
from iidrive.training import checkpoint
from iidrive.training.optim import TrainConfig
from iidrive.training.options import RunOptions
from iidrive.training.parallel import ParallelConfig

TINY = replace(recipes.tiny(), town=replace(recipes.tiny().town, train_scenes=2, test_scenes=2, keyframes=14))
SIZES = (1, 2, 4, 8)
STAGES = ("tokenizer", "world", "planner")


def recipe_in(precision: str) -> Recipe:
    """Three steps of eight samples per stage, all logged."""
    stages_ = {f"train_{name}": getattr(TINY, f"train_{name}") for name in (*STAGES, "motion", "flow", "route", "ego_mlp")}
    brief = {k: replace(v, samples=24, batch=8, log_every=8, save_every=24, precision=precision) for k, v in stages_.items()}
    return replace(TINY, **brief)


def train_all(process_group: ProcessGroup, folder: Path, precision: str, given: Path) -> None:
    """Every trainable stage, stage 2 and the planner on the tokenizer and world model in `given`; accumulation where it fits."""
    recipe, town = recipe_in(precision), Town(TINY.town)
    parallel = ParallelConfig(micro_batch_size=1 if process_group.size == 4 else 0, workers=1 if process_group.size == 2 else 0)
    options = RunOptions(process_group, parallel)

    def begin(name: str) -> Run:
        return Run.start(folder / name, {}, process_group=process_group)

    train_tokenizer(recipe, town, "train", begin("tokenizer"), options)
    cache = write_tokens(given / "tokenizer", town, town.scene_names("train"), folder / "tokens", process_group=process_group)
    train_world(recipe, given / "tokenizer", cache, town, "train", begin("world"), options)
    train_planner(recipe, given / "world", cache, town, "train", begin("planner"), True, options)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, a world model and a planner, trained by one process."""
    folder, town = tmp_path_factory.mktemp("given"), Town(TINY.town)
    tokenizer = train_tokenizer(TINY, town, "train", Run.start(folder / "tokenizer", {}))
    cache = write_tokens(tokenizer, town, town.scene_names("train"), folder / "tokens")
    world = train_world(TINY, tokenizer, cache, town, "train", Run.start(folder / "world", {}))
    train_planner(TINY, world, cache, town, "train", Run.start(folder / "planner", {}), True)
    return folder


def curve(run: Path) -> np.ndarray:
    """Losses of every step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return np.array([[v for k, v in row.items() if k not in ("samples_per_s", "memory_gb")] for row in rows])


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Distance between the weights of two models, relative to the norm of the second.

    Of all weights together: Adam turns rounding into a full step where a weight's gradient is zero in exact arithmetic, so that single
    weights may differ more.
    """
    assert a.keys() == b.keys()
    x, y = (torch.cat([v.double().flatten() for k, v in sorted(w.items()) if k.startswith("module.")]) for w in (a, b))
    return float((x - y).norm() / y.norm())


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "loss_rtol", "weights_rtol"), [("64", 1e-9, 1e-9), ("32", 1e-4, 5e-4)])
def test_every_stage_gives_the_same_on_any_number_of_processes(
    given: Path, tmp_path: Path, precision: str, loss_rtol: float, weights_rtol: float
) -> None:
    for size in SIZES:
        run_together(size, train_all, tmp_path / str(size), precision, given)
    for name in (*STAGES, "world/motion", "world/flow", "planner/route"):
        alone = checkpoint.load_tensors(tmp_path / "1" / name, "training.safetensors")
        assert alone[next(k for k in alone if k.startswith("module."))].dtype == (torch.float64 if precision == "64" else torch.float32)
        for size in SIZES[1:]:
            np.testing.assert_allclose(curve(tmp_path / str(size) / name), curve(tmp_path / "1" / name), rtol=loss_rtol)
            found = checkpoint.load_tensors(tmp_path / str(size) / name, "training.safetensors")
            print(f"{precision} {name} x{size}: {difference(found, alone):.1e}")
            assert difference(found, alone) < weights_rtol, (name, size)
    for file in sorted((tmp_path / "1" / "tokens").rglob("*.*")):
        for size in SIZES[1:]:
            other = tmp_path / str(size) / file.relative_to(tmp_path / "1")
            assert other.read_bytes() == file.read_bytes(), "tokens have the same bytes"


def assess_planner(process_group: ProcessGroup, folder: Path, given: Path) -> None:
    """Evaluate the planner with ii."""
    run = Run.start(folder, {}, process_group=process_group)
    evaluate(str(given / "planner"), TestSet(Town(TINY.town), "test", run), TINY, "train", Use(test_ii=True))


@pytest.mark.slow
def test_evaluation_gives_the_same_bytes(given: Path, tmp_path: Path) -> None:
    for size in (1, 2, 3):
        run_together(size, assess_planner, tmp_path / str(size), given)
    names = ("scores.json", "predictions-planner.npz", "forecast.txt", "table-planner.txt")
    for name in names:
        first = (tmp_path / "1" / name).read_bytes()
        assert all((tmp_path / str(size) / name).read_bytes() == first for size in (2, 3)), name


def test_devices_that_do_not_fit_the_batch_are_refused_with_the_nearest() -> None:
    config = TrainConfig(samples=64, batch=64)
    with pytest.raises(ConfigError, match=r"3 devices x micro-batches of 21 x 1 accumulation steps make 63 samples.* is 64.* 4 x 16 x 1"):
        ParallelConfig().divide(config, 3)
    with pytest.raises(ConfigError, match=r"4 devices x micro-batches of 3 x 5 accumulation steps make 60 samples.* 4 x 4 x 4"):
        ParallelConfig(micro_batch_size=3).divide(config, 4)
    with pytest.raises(ConfigError, match=r"make 128 samples.*nearest that fit: 8 x 8 x 1|nearest that fit: 8 x 4 x 2"):
        ParallelConfig(micro_batch_size=4, grad_accum_steps=4).divide(config, 8)
    assert ParallelConfig().divide(config, 8) == (8, 1)
    assert ParallelConfig().divide(replace(config, micro_batch=3), 8) == (2, 4)
    assert ParallelConfig(grad_accum_steps=4).divide(config, 2) == (8, 4)


def test_parts_cover_the_batch_once() -> None:
    for config in (TrainConfig(samples=48, batch=24), TrainConfig(samples=48, batch=24, group=2)):
        for size in (1, 2, 3, 4, 6, 12):
            parallel = ParallelConfig(grad_accum_steps=2 if config.group == 0 and size < 12 else 0)
            places = [place for rank in range(size) for part in parallel.parts(config, ProcessGroup(rank, size)) for place in part]
            assert places == list(range(24))
    with pytest.raises(ConfigError, match="groups of 8"):
        ParallelConfig().divide(TrainConfig(samples=64, batch=64, group=8), 16)


@pytest.mark.slow
def test_tokens_written_by_several_processes_are_complete(given: Path) -> None:
    cache = TokenCache(given / "tokens")
    assert all(len(cache.read(name).tokens) == 14 for name in Town(TINY.town).scene_names("train"))
