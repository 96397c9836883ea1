"""Everything that a training goes on from, and how it is kept: raw weights, optimiser, moving average, loss scale, samples seen, best validation.

Schedules, scheduled sampling, augmentation and the order of samples follow from the seed and the samples seen: nothing of them is stored, and no
step draws from a global random state.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from iidrive.core.batch import Batch
from iidrive.core.errors import CheckpointError, ConfigError, LineageError
from iidrive.models.losses import Counts
from iidrive.runtime.run_folder import Run, code_version
from iidrive.training import checkpoint
from iidrive.training.checkpoint import Manifest
from iidrive.training.optim import EMA, TrainConfig

KEPT = 2
"""Checkpoints that stay: the newest, and the one before in case the newest is damaged. The best one stays too."""

SPEED_ALONE = ("micro_batch", "log_every", "save_every")
"""What a training may be resumed with another value of: it does not change the result."""

RECORDED = ("learning_rate",)
"""What it may be resumed with another value of although it does: the change is kept in the manifest (`changes`)."""


class Trainable(Protocol):
    """What the loop knows of a model. Every trainable has this face; all are `nn.Module`s."""

    def loss(self, batch: Batch, counts: Counts | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, summed over valid elements and divided by `counts`, and its parts."""
        ...

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """The valid elements of a batch that its loss is divided by."""
        ...

    def compute_modules(self) -> list[nn.Module]:
        """The parts that take most of the time."""
        ...

    def train(self, mode: bool = True) -> Any:
        """As `nn.Module.train`."""
        ...

    def eval(self) -> Any:
        """As `nn.Module.eval`."""
        ...

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As `nn.Module.to`."""
        ...


@dataclass(frozen=True)
class TrainTask:
    """What is trained: `model` computes the loss and is put into training mode, `module` is the part whose weights move and are saved.

    `manifest` is the checkpoint's, complete but for what training adds (fingerprint, samples seen, metrics). `prepare` sees the first samples
    before the first step, the same on every process. `validate` scores the model as it is: (numbers, text), the first number is the one that
    says which checkpoint is best, larger is better. Gradients of the modules in `apart` are clipped each by itself: they learn something of their
    own, and a steep batch of theirs would slow the rest.
    """

    model: Trainable
    module: nn.Module
    manifest: Manifest
    architecture: Any
    prepare: Callable[[Batch], None] | None = None
    validate: Callable[[], tuple[dict[str, float], str]] | None = None
    apart: tuple[nn.Module, ...] = ()


class Precision:
    """The numbers that a training computes in: the weights' type, and the loss scale of float16. Autocast is the model's own (ComputeConfig)."""

    def __init__(self, precision: str, device: torch.device) -> None:
        self.dtype = torch.float64 if precision == "64" else torch.float32
        self.scaler = torch.amp.GradScaler(device.type) if precision == "16" else None

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss, scaled where the precision asks for it."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()


@dataclass
class State:
    """See the module's docstring."""

    task: TrainTask
    config: TrainConfig
    manifest: Manifest
    optimiser: torch.optim.AdamW
    ema: EMA | None
    precision: Precision
    seen: int = 0
    best: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def start(task: TrainTask, config: TrainConfig, device: torch.device) -> State:
        """Before the first step, or before `resume`. Freezes what the config says.

        Raises:
            ConfigError: if `freeze` names nothing in the model, or everything.
        """
        precision = Precision(config.precision, device)
        task.model.to(device, precision.dtype)
        for prefix in config.freeze:
            named = [p for name, p in task.module.named_parameters() if name == prefix or name.startswith(prefix + ".")]
            if not named:
                parts = ", ".join(sorted({name.split(".")[0] for name, _ in task.module.named_parameters()}))
                raise ConfigError(f"freeze: this {task.manifest.kind} has no part '{prefix}'. Its parts: {parts}.")
            for parameter in named:
                parameter.requires_grad_(False)
        moving = [p for p in task.module.parameters() if p.requires_grad]
        if not moving:
            raise ConfigError(f"freeze: nothing of this {task.manifest.kind} would be left to train.")
        fused = device.type == "cuda"
        optimiser = torch.optim.AdamW(moving, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)
        return State(task, config, task.manifest, optimiser, EMA(task.module, config) if config.ema_decay else None, precision)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The weights for use: the moving average, where there is one."""
        return self.task.module.state_dict() if self.ema is None else self.ema.state

    def save(self, run: Run, logs: Mapping[str, float]) -> Path:
        """Write a checkpoint, then remove all but the newest ones and the best."""
        raw = self.task.module.state_dict()
        training = {f"module.{k}": v for k, v in raw.items()}
        names = {id(p): n for n, p in self.task.module.named_parameters()}
        for parameter, state in self.optimiser.state.items():
            for key, value in state.items():
                training[f"optimiser.{names[id(parameter)]}.{key}"] = torch.as_tensor(value)
        if self.precision.scaler is not None:
            kept = self.precision.scaler.state_dict()
            training["scaler"] = torch.tensor([kept["scale"], kept["_growth_tracker"]], dtype=torch.float64)
        task = self.task
        metrics = {**self.manifest.metrics, **logs, **({"best": self.best} if self.best else {})}
        mark = checkpoint.fingerprint(task.architecture, self.weights, self.manifest.parents)
        manifest = replace(self.manifest, fingerprint=mark, samples_seen=self.seen, metrics=metrics, code=code_version())
        folder = run.folder / "checkpoints"
        path = checkpoint.save(folder / checkpoint.name(self.seen), manifest, self.weights, training)
        stay = {*(p.name for p in checkpoint.newest_first(run.folder)[:KEPT]), checkpoint.name(self.best.get("samples", 0))}
        for old in checkpoint.newest_first(run.folder):
            if old.name not in stay:
                checkpoint.remove(old)
        return path

    def resume(self, run: Run) -> None:
        """Go on from the run's newest whole checkpoint; damaged ones that are newer are named.

        Raises:
            CheckpointError: if there is none, or it was trained with another config.
            LineageError: if it was trained on other parents.
        """
        path, training = _newest_whole(run)
        manifest = checkpoint.read_manifest(path)
        task = self.task
        for name in ("architecture", "training", "data", "about", "marks"):
            before, now = _decisive(name, manifest), _decisive(name, self.manifest)
            if before != now:
                raise CheckpointError(
                    f"{path}: it was trained with another config ({name} differs{_difference(before, now)}). Resume with the same one, "
                    "or start a new run."
                )
        self._note_changes(manifest)
        if not self.manifest.origins:  # --init need not be given again
            about = {**self.manifest.about, "trained_on": list(manifest.trained_on)}
            self.manifest = replace(self.manifest, parents=(*self.manifest.parents, *manifest.origins), about=about)
        if [(p.kind, p.fingerprint) for p in manifest.parents] != [(p.kind, p.fingerprint) for p in self.manifest.parents]:
            raise LineageError(
                f"{path}: it was trained on other parents.\n  so far: {manifest.lineage()}\n  given:  {self.manifest.lineage()}\n"
                "Resume with the same ones, or start a new run with `--run NEW_RUN`."
            )
        checkpoint.load_weights(task.module, {k[7:]: v for k, v in training.items() if k.startswith("module.")}, str(path))
        fused = self.optimiser.defaults["fused"]  # it counts its steps on the device, too
        for name, parameter in task.module.named_parameters():
            prefix = f"optimiser.{name}."
            state = {k[len(prefix) :]: v for k, v in training.items() if k.startswith(prefix)}
            if state:
                self.optimiser.state[parameter] = {k: v if k == "step" and not fused else v.to(parameter.device) for k, v in state.items()}
        if self.ema is not None:
            self.ema.state = {k: v.to(self.ema.state[k].device) for k, v in checkpoint.load_tensors(path).items()}
        if self.precision.scaler is not None and "scaler" in training:
            scale, tracker = training["scaler"].tolist()
            self.precision.scaler.load_state_dict({**self.precision.scaler.state_dict(), "scale": scale, "_growth_tracker": int(tracker)})
        self.seen, self.best = manifest.samples_seen, manifest.metrics.get("best", {})
        run.forget_after(self.seen)

    def _note_changes(self, before: Manifest) -> None:
        """Keep in the manifest what this sitting does otherwise than the ones before, and since when."""
        changes = list(before.about.get("changes", ()))
        for name in RECORDED:
            was, now = before.training.get(name), self.manifest.training.get(name)
            if was != now:
                changes.append({"samples": before.samples_seen, "field": name, "from": was, "to": now})
                warnings.warn(f"from {before.samples_seen} samples on, {name} is {now} (it was {was}).", stacklevel=2)
        if changes:
            self.manifest = replace(self.manifest, about={**self.manifest.about, "changes": changes})


def _newest_whole(run: Run) -> tuple[Path, dict[str, Tensor]]:
    for path in checkpoint.newest_first(run.folder):
        try:
            checkpoint.require_whole(path)
            return path, checkpoint.load_tensors(path, "training.safetensors")
        except CheckpointError as error:
            warnings.warn(f"{error} Going on from the checkpoint before it.", stacklevel=2)
    raise CheckpointError(f"{run.folder}: no whole checkpoint to go on from. Start the run anew (delete the folder, or name another).")


def _decisive(name: str, manifest: Manifest) -> Any:
    """A part of a manifest without what does not change the result."""
    value = getattr(manifest, name)
    inherited = {"training": (*SPEED_ALONE, *RECORDED), "about": ("trained_on", "changes")}.get(name, ())
    return {k: v for k, v in value.items() if k not in inherited} if isinstance(value, dict) else value


def _difference(before: Any, now: Any) -> str:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return ""
    keys = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
    return ": " + ", ".join(f"{k} was {before.get(k)!r}, is {now.get(k)!r}" for k in keys[:3])
