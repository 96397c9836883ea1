"""Trainings on a GPU: a resumed one ends like an uninterrupted one, and two processes like one.

NCCL does not allow two processes on one GPU, so there they exchange gradients by gloo. With NCCL they need a GPU each.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_devices import curve, difference
from test_gpu import GPU, GPU_MARKS
from together import connect, run_members, run_together

from iidrive.data.town.source import Town
from iidrive.pipeline import recipes
from iidrive.pipeline.tokens import write_tokens
from iidrive.pipeline.train import train_ego_mlp, train_planner, train_tokenizer, train_world
from iidrive.runtime import distributed
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.run_folder import Run, repeat_bits
from iidrive.training import checkpoint
from iidrive.training.options import RunOptions
from iidrive.training.parallel import ParallelConfig

STAGES = ("tokenizer", "world", "planner", "ego-mlp")
TINY = replace(recipes.tiny(), town=replace(recipes.tiny().town, train_scenes=1, keyframes=14))
TRAININGS = ("tokenizer", "motion", "flow", "world", "route", "planner", "ego_mlp")
TINY = replace(
    TINY,
    **{
        f"train_{name}": replace(getattr(TINY, f"train_{name}"), samples=8, batch=2, log_every=2, save_every=4, validate_every=0)
        for name in TRAININGS
    },
)


def train(stage: str, run: Run, given: Path, options: RunOptions) -> Path:
    """Train a stage, on the tokenizer, tokens and world model in `given`. Returns the checkpoint."""
    town = Town(TINY.town)
    if stage == "tokenizer":
        return train_tokenizer(TINY, town, "train", run, options)
    if stage == "ego-mlp":
        return train_ego_mlp(TINY, town, "train", run, options)
    cache = write_tokens(given / "tokenizer", town, town.scene_names("train"), given / "tokens")
    if stage == "world":
        return train_world(TINY, given / "tokenizer", cache, town, "train", run, options)
    return train_planner(TINY, given / "world", cache, town, "train", run, True, options)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, its tokens and a world model, on any device."""
    folder = tmp_path_factory.mktemp("given")
    for stage in ("tokenizer", "world"):
        train(stage, Run.start(folder / stage, {}), folder, RunOptions())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("on", [pytest.param(GPU, marks=GPU_MARKS)])
@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_training(stage: str, on: str, given: Path, tmp_path: Path) -> None:
    """It has the bits of an uninterrupted one with `--parallel.deterministic on`, and its losses up to rounding without."""
    for deterministic in (True, False):
        folder, parallel = tmp_path / str(deterministic), ParallelConfig(deterministic=deterministic, workers=0)
        try:
            whole = train(stage, Run.start(folder / "whole", {}), given, RunOptions(parallel=parallel))
            train(stage, Run.start(folder / "parts", {}), given, RunOptions(parallel=parallel, stop_at=4))
            parts = train(stage, Run(folder / "parts"), given, RunOptions(parallel=parallel, resume="on"))
        finally:
            repeat_bits(False)
        np.testing.assert_allclose(curve(folder / "parts"), curve(folder / "whole"), rtol=0 if deterministic else 1e-3)
        one, other = ({**checkpoint.load_tensors(path), **checkpoint.load_tensors(path, "training.safetensors")} for path in (whole, parts))
        assert one.keys() == other.keys()
        assert not deterministic or all(torch.equal(one[name], other[name]) for name in one)


def train_shared(process_group: ProcessGroup, folder: Path, given: Path) -> None:
    """The share of this process in two trainings."""
    for stage in ("tokenizer", "world"):
        run = Run.start(folder / stage, {}, process_group=process_group)
        train(stage, run, given, RunOptions(process_group, ParallelConfig(workers=0)))


def assert_same(folder: Path, alone: Path) -> None:
    """Losses and weights are those of one process, up to rounding (as in tests/test_devices.py)."""
    for stage in ("tokenizer", "world"):
        np.testing.assert_allclose(curve(folder / stage), curve(alone / stage), rtol=1e-3)
        one, other = (checkpoint.load_tensors(path / stage, "training.safetensors") for path in (folder, alone))
        assert difference(one, other) < 1e-3, stage


def on_one_card(rank: int, size: int, port: int, folder: Path, given: Path) -> None:
    """A process that connects as one without a GPU does, by gloo, and then computes on the GPU."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: False)
        patched.setattr(torch.cuda, "device_count", lambda: 0)
        process_group = connect(rank, size, port)
    assert torch.cuda.is_available() == (GPU == "cuda")
    train_shared(process_group, folder, given)
    distributed.leave()


@pytest.mark.slow
@pytest.mark.parametrize("on", [pytest.param(GPU, marks=GPU_MARKS)])
def test_two_processes_on_one_card(on: str, given: Path, tmp_path: Path) -> None:
    run_members(2, on_one_card, tmp_path / "two", given)
    train_shared(ProcessGroup(), tmp_path / "one", given)
    assert_same(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL connects one process per GPU, and there are fewer than two GPUs")
def test_two_processes_on_two_cards(given: Path, tmp_path: Path) -> None:
    run_together(2, train_shared, tmp_path / "two", given)
    train_shared(ProcessGroup(), tmp_path / "one", given)
    assert_same(tmp_path / "two", tmp_path / "one")
