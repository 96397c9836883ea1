"""The one training loop. It knows a loss, the module whose weights it moves, and windows to draw from; it counts in samples seen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from iidrive.data.loader import Windows, draws, order
from iidrive.errors import CheckpointError, IIDriveError, LineageError
from iidrive.runs import Run, code_version, device, peak_memory_gb
from iidrive.scene import Batch
from iidrive.train import checkpoint
from iidrive.train.checkpoint import Manifest
from iidrive.train.optim import Average, TrainConfig, learning_rate

Loss = Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Job:
    """What is trained: `owner` computes the loss and is put into training mode, `module` is the part whose weights move and are saved.

    `manifest` is the checkpoint's, complete but for what training adds (fingerprint, samples seen, metrics).
    """

    owner: nn.Module
    module: nn.Module
    loss: Loss
    manifest: Manifest
    architecture: Any


def fit(job: Job, windows: Windows, config: TrainConfig, run: Run, resume: bool = False, stop_at: int | None = None) -> Path:
    """Train until `config.samples` samples were seen; returns the last checkpoint.

    With `resume`, go on from the run's newest checkpoint. `stop_at` ends early after that many samples, with a checkpoint.

    Raises:
        IIDriveError: if the loss is not finite, naming the step and the samples in the batch; earlier checkpoints stay.
    """
    place = device()
    job.owner.to(place)
    parameters = dict(job.module.named_parameters())
    optimiser = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    average = Average(job.module, config) if config.average else None
    seen = _resume(job, optimiser, average, run) if resume else 0
    end = config.samples if stop_at is None else min(stop_at, config.samples)
    last: dict[str, float] = {}
    path: Path | None = None
    job.owner.train()
    with _progress() as bar:
        task = bar.add_task(job.manifest.kind, total=config.samples, completed=seen, status="")
        started, begun = time.perf_counter(), seen
        while seen < end:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(config, seen)
            last = _step(job, windows, config, optimiser, seen, place)
            seen += config.batch
            if average is not None:
                average.update(job.module, seen // config.batch)
            if seen % config.log_every < config.batch or seen >= end:
                rate = (seen - begun) / (time.perf_counter() - started)
                run.log({"samples": seen, **last, "learning_rate": learning_rate(config, seen), "samples_per_s": rate})
                parts = " ".join(f"{k} {v:.4g}" for k, v in last.items())
                bar.update(task, completed=seen, status=f"{rate:.1f} samples/s  {parts}  {peak_memory_gb():.1f} GB")
            if seen % config.save_every < config.batch or seen >= end:
                path = _save(job, optimiser, average, run, seen, last, config)
    job.owner.eval()
    if average is not None:
        job.module.load_state_dict(average.state)
    if path is None:
        return checkpoint.find(run.folder)
    return path


def _step(
    job: Job, windows: Windows, config: TrainConfig, optimiser: torch.optim.Optimizer, seen: int, place: torch.device
) -> dict[str, float]:
    rows = order(len(windows), config.seed, seen, config.batch)
    numbers = draws(config.seed, seen, config.batch, windows.cut.future)
    size = config.batch // config.parts
    totals: dict[str, float] = {}
    optimiser.zero_grad(set_to_none=True)
    for start in range(0, config.batch, size):
        part = slice(start, start + size)
        batch = windows.batch(rows[part].tolist(), numbers[part], seen / config.samples).to(place)
        loss, logs = job.loss(batch)
        (loss / config.parts).backward()
        for key, value in {"loss": loss, **logs}.items():
            totals[key] = totals.get(key, 0.0) + float(value.detach()) / config.parts
    if not math.isfinite(totals["loss"]):
        tokens = ", ".join(windows.token(int(r)) for r in rows[:4])
        raise IIDriveError(
            f"the loss became {totals['loss']} after {seen} samples (batch of {tokens} …; parts {totals}). Lower the learning rate or "
            "resume from the last checkpoint, which is whole."
        )
    norm = float(nn.utils.clip_grad_norm_(job.module.parameters(), config.clip))
    if not math.isfinite(norm):
        raise IIDriveError(f"the gradient became {norm} after {seen} samples. Lower the learning rate or resume from the last checkpoint.")
    optimiser.step()
    return totals


def _save(
    job: Job, optimiser: torch.optim.Optimizer, average: Average | None, run: Run, seen: int, logs: Mapping[str, float], config: TrainConfig
) -> Path:
    raw = job.module.state_dict()
    weights = average.state if average is not None else raw
    training = {f"module.{k}": v for k, v in raw.items()}
    names = {id(p): n for n, p in job.module.named_parameters()}
    for parameter, state in optimiser.state.items():
        for key, value in state.items():
            training[f"optimiser.{names[id(parameter)]}.{key}"] = torch.as_tensor(value)
    mark = checkpoint.fingerprint(job.architecture, weights, job.manifest.parents)
    changes = {"fingerprint": mark, "samples_seen": seen, "metrics": {**job.manifest.metrics, **logs}, "code": code_version()}
    manifest = Manifest(**{**vars(job.manifest), **changes})
    folder = run.folder / "checkpoints"
    path = checkpoint.save(folder / f"samples-{seen:09d}", manifest, weights, training)
    for old in sorted(folder.glob("samples-*"))[:-2]:
        checkpoint.remove(old)
    return path


def _resume(job: Job, optimiser: torch.optim.Optimizer, average: Average | None, run: Run) -> int:
    path = checkpoint.find(run.folder)
    manifest = checkpoint.read_manifest(path)
    for name in ("architecture", "training", "data", "about", "marks"):
        if getattr(manifest, name) != getattr(job.manifest, name):
            raise CheckpointError(
                f"{path}: it was trained with another config ({name} differs). Resume with the same one, or start a new run."
            )
    if [(p.kind, p.fingerprint) for p in manifest.parents] != [(p.kind, p.fingerprint) for p in job.manifest.parents]:
        raise LineageError(
            f"{path}: it was trained on other parents.\n  so far: {manifest.lineage()}\n  given:  {job.manifest.lineage()}\n"
            "Resume with the same ones, or start a new run with `--run NEW_RUN`."
        )
    training = checkpoint.load_tensors(path, "training.safetensors")
    checkpoint.load_weights(job.module, {k[7:]: v for k, v in training.items() if k.startswith("module.")}, str(path))
    for name, parameter in job.module.named_parameters():
        prefix = f"optimiser.{name}."
        state = {k[len(prefix) :]: v for k, v in training.items() if k.startswith(prefix)}
        if state:
            optimiser.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}
    if average is not None:
        average.state = {k: v.to(average.state[k].device) for k, v in checkpoint.load_tensors(path).items()}
    return manifest.samples_seen


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(20),
        TaskProgressColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[status]}"),
    )
    return Progress(*columns, console=Console(stderr=True))
