"""GPU training features that can be tested on a CPU: identical initial weights, the TF32 setting, the deterministic mode."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from together import run_together
from torch import Tensor

from iidrive.analysis.leakage.subject import Pipeline, View, tokenizing
from iidrive.core.batch import Batch
from iidrive.core.errors import ConfigError, IIDriveError
from iidrive.data.clips import ClipDataset, ClipSpec, read_tracks
from iidrive.data.town.source import Town, TownConfig
from iidrive.models.baselines import EgoMLP, EgoMLPConfig
from iidrive.models.tokenizer import Tokenizer
from iidrive.pipeline import recipes
from iidrive.runtime import distributed
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.run_folder import Run, allow_tf32, device, environment
from iidrive.training import checkpoint, loop
from iidrive.training.checkpoint import Manifest
from iidrive.training.loop import fit
from iidrive.training.optim import EMA, TrainConfig
from iidrive.training.options import RunOptions
from iidrive.training.parallel import ParallelConfig
from iidrive.training.state import TrainTask

CONFIG = TrainConfig(samples=16, batch=4, log_every=16, save_every=16, ema_decay=0.0)


def train(
    folder: Path,
    model: EgoMLP,
    config: TrainConfig = CONFIG,
    process_group: ProcessGroup | None = None,
    options: RunOptions | None = None,
    validate: Callable[[], tuple[dict[str, float], str]] | None = None,
) -> Path:
    """Four steps of the smallest model. Every process starts with different weights."""
    process_group = process_group or ProcessGroup()
    clips = ClipDataset(read_tracks(Town(TownConfig(train_scenes=1, keyframes=14)), "train"), ClipSpec())

    def prepare(batch: Batch) -> None:
        with torch.no_grad():
            model.net[0].weight.add_(process_group.rank)  # pyright: ignore[reportOperatorIssue, reportCallIssue]

    task = TrainTask(model, model, Manifest("ego-mlp", "", {}, 0, "", {}), {}, prepare, validate)
    options = options or RunOptions(process_group)
    return fit(task, clips, config, Run.start(folder, {}, options.resume == "on", process_group), options)


def made() -> EgoMLP:
    torch.manual_seed(0)
    return EgoMLP(EgoMLPConfig(hidden=8))


def train_one(process_group: ProcessGroup, folder: Path) -> None:
    model = made()
    train(folder / "run", model, process_group=process_group)
    torch.save(model.state_dict(), folder / f"{process_group.rank}.pt")


@pytest.mark.slow
def test_all_processes_start_from_the_weights_of_the_first(tmp_path: Path) -> None:
    run_together(2, train_one, tmp_path)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    train(tmp_path / "alone", alone := made())
    for name, weight in alone.state_dict().items():
        assert torch.equal(one[name], other[name])
        torch.testing.assert_close(one[name], weight, atol=1e-4, rtol=1e-4)


def test_tf32_is_one_setting_and_changes_nothing_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, rounded = (train(tmp_path / p, made(), replace(CONFIG, precision=p)) for p in ("32", "tf32"))
    weights = [checkpoint.load_tensors(path) for path in (plain, rounded)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    device()
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_available", lambda: True)
        allow_tf32(True)
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    allow_tf32(False)


def test_run_json_has_the_state_of_tf32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the computation, not torch's default, which rounds convolutions."""

    def told(name: str) -> dict[str, bool]:
        return json.loads((tmp_path / name).read_text())["environment"]["tf32"]

    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
    assert environment()["tf32"] == {"products": False, "convolutions": True}
    run = Run.start(tmp_path, {})
    assert told("run.json") == {"products": False, "convolutions": False}
    Run.start(tmp_path, {}, resume=True)
    noted = []
    for on in (True, False):
        with monkeypatch.context() as patched:
            patched.setattr(torch.cuda, "is_available", lambda: True)
            allow_tf32(on)
        run.note_tf32()
        noted.append(told("run-2.json"))
    assert noted == [{"products": on, "convolutions": on} for on in (True, False)]
    assert told("run.json") == {"products": False, "convolutions": False}
    (tmp_path / "run-2.json").write_text("{")
    run.note_tf32()
    Run(tmp_path / "none").note_tf32()


def test_a_training_notes_its_own_state_of_tf32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its steps see it. Afterwards it is off again."""
    seen, loss = [], EgoMLP.loss

    def watched(self: EgoMLP, *given: Any) -> object:
        seen.append(environment()["tf32"])
        return loss(self, *given)

    def allow(on: bool) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on

    monkeypatch.setattr(EgoMLP, "loss", watched)
    monkeypatch.setattr(loop, "allow_tf32", allow)  # as on a GPU
    for precision in ("32", "tf32"):
        train(tmp_path / precision, made(), replace(CONFIG, precision=precision))
        told = json.loads((tmp_path / precision / "run.json").read_text())["environment"]["tf32"]
        assert told == seen[-1] == {"products": precision == "tf32", "convolutions": precision == "tf32"}
        assert not any(environment()["tf32"].values())


def test_an_audit_computes_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tolerance of 1 mm would not hold with it. Tokens and outputs are computed after it is disabled."""
    seen = []
    tokenizer, tokenize = Tokenizer(recipes.tiny().tokenizer), Tokenizer.tokenize_scene

    def watched(self: Tokenizer, *given: Tensor) -> Tensor:
        seen.append(environment()["tf32"])
        return tokenize(self, *given)

    def answer(batch: Batch) -> dict[str, Tensor]:
        seen.append(environment()["tf32"])
        return {"plan": batch.targets.path}

    monkeypatch.setattr(Tokenizer, "tokenize_scene", watched)
    town = Town(TownConfig(train_scenes=1, keyframes=14))
    sample = (town.scene_names("train")[0], 5)
    for encode in (tokenizing(tokenizer), None):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        Pipeline(answer, encode)(View(town, town), [sample])
    assert seen == [{"products": False, "convolutions": False}] * 3


def test_an_operation_without_a_deterministic_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(self: EgoMLP, batch: Batch, counts: object = None) -> tuple[Tensor, dict[str, Tensor]]:
        raise RuntimeError("sum_cuda does not have a deterministic implementation. You can turn this off by …")

    monkeypatch.setattr(EgoMLP, "loss", loss)
    options = RunOptions(parallel=ParallelConfig(deterministic=True))
    with pytest.raises(
        IIDriveError, match=r"no deterministic version of an operation \(sum_cuda does not have a deterministic implementation\): use"
    ):
        train(tmp_path / "asked", made(), options=options)
    with pytest.raises(RuntimeError, match="You can turn this off"):
        train(tmp_path / "not", made())


def test_batches_for_a_gpu_are_made_ahead() -> None:
    """By two workers, unless another number is given."""
    for asked, on_gpu, on_cpu in ((-1, 2, 0), (0, 0, 0), (3, 3, 3)):
        config = ParallelConfig(workers=asked)
        assert [config.workers_for(torch.device(name)) for name in ("cuda", "cpu")] == [on_gpu, on_cpu]
    with pytest.raises(ConfigError, match="workers must be at least -1"):
        ParallelConfig(workers=-2)


def test_the_ema_of_all_tensors_equals_that_of_each() -> None:
    """With decay 0.5, each step moves halfway to the current weights."""
    model = made().double()
    average = EMA(model, TrainConfig(ema_decay=0.5, ema_initial_steps=10**6))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    average.update(model, 1)
    for name, value in before.items():
        np.testing.assert_allclose(average.state[name], value + 0.5, rtol=1e-12)


def agree_by_host(process_group: ProcessGroup, folder: Path) -> None:
    """CPU tensors use the gloo group. When one process dies, the other notices at once."""
    whole = replace(process_group, host=torch.distributed.new_group(backend="gloo"))
    for group in (process_group, whole):
        own = torch.tensor([1.0, group.rank])
        assert group.sum(own).tolist() == [2.0, 1.0]
        assert own.tolist() == [1.0, group.rank] or group is process_group
        assert group.gather(group.rank) == [0, 1]
        assert group.broadcast(group.rank + 5) == 5
        group.barrier()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(whole.fabric), "all_reduce", None)
        assert whole.sum(torch.ones(1)).tolist() == [2.0]
    if whole.rank == 1:
        os._exit(0)
    with pytest.raises(IIDriveError, match="process 0 of 2 lost the others"):
        whole.gather("")
    (folder / "heard").touch()


@pytest.mark.slow
def test_processes_agree_through_the_gloo_group(tmp_path: Path) -> None:
    run_together(2, agree_by_host, tmp_path)
    assert (tmp_path / "heard").exists()


def test_every_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [place.index for place in distributed.gpus_of(4)] == [0, 1, 2, 3]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="4 processes per machine were started, but 1 GPUs are visible"):
        distributed.gpus_of(4)
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert [place.index for place in distributed.gpus_of(4)] == [0] * 4
