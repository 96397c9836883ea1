"""Training state and its checkpoints: raw weights, optimiser, EMA, loss scale, samples seen, best validation.

Learning rate, scheduled sampling, augmentation and sample order depend only on the seed and the samples seen. So no random state is stored,
and no step uses a global random generator.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from iidrive.core.batch import Batch
from iidrive.core.config_io import from_plain, to_plain
from iidrive.core.errors import CheckpointError, ConfigError, LineageError
from iidrive.models.losses import Counts
from iidrive.runtime.run_folder import Run, code_version
from iidrive.training import checkpoint
from iidrive.training.checkpoint import Manifest
from iidrive.training.optim import EMA, TrainConfig

KEPT = 2
"""Number of newest checkpoints to keep: the newest, and one before it in case the newest is damaged. The best is kept too."""

SPEED_ALONE = ("micro_batch", "log_every", "save_every")
"""Training settings that may change when resuming because they do not affect the result."""

RECORDED = ("learning_rate",)
"""Training settings that may change when resuming although they affect the result. Changes are recorded in the manifest (`changes`)."""


class Trainable(Protocol):
    """Interface of a model for the training loop. Implementations are `nn.Module`s."""

    def loss(self, batch: Batch, counts: Counts | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch and its parts: sums over valid elements, divided by `counts` (by the batch's own counts if None)."""
        ...

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Numbers of valid elements of a batch, which its loss is divided by."""
        ...

    def compute_modules(self) -> list[nn.Module]:
        """The modules that take most of the time, to be compiled."""
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
    """What to train.

    Attributes:
        model: computes the loss; switched to training mode.
        module: the part of the model that is trained and saved.
        manifest: manifest of the checkpoints, without what the training adds (fingerprint, samples seen, metrics).
        architecture: config of the module, for the fingerprint.
        prepare: called with the first samples before the first step, the same on every process.
        validate: returns (metrics, text) of the current weights. The first metric selects the best checkpoint; larger is better.
        stage: what is trained, as `train_STAGE` in a recipe names it; empty: the manifest's kind.
        clipped_separately: modules whose gradients are clipped separately. They learn a task of their own, and their large gradients would
            otherwise scale down all others.
    """

    model: Trainable
    module: nn.Module
    manifest: Manifest
    architecture: Any
    prepare: Callable[[Batch], None] | None = None
    validate: Callable[[], tuple[dict[str, float], str]] | None = None
    clipped_separately: tuple[nn.Module, ...] = ()
    stage: str = ""

    @property
    def name(self) -> str:
        """The stage, or the manifest's kind."""
        return self.stage or self.manifest.kind


class Precision:
    """Dtype of the weights, and loss scaling for float16. Autocast is applied inside the model (`ComputeConfig`)."""

    def __init__(self, precision: str, device: torch.device) -> None:
        self.dtype = torch.float64 if precision == "64" else torch.float32
        self.scaler = torch.amp.GradScaler(device.type) if precision == "16" else None

    def backward(self, loss: Tensor) -> None:
        """Backward pass, with loss scaling for float16."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()


@dataclass
class State:
    """Training state.

    Attributes:
        task: what is trained.
        config: training settings.
        manifest: manifest of the next checkpoint.
        optimiser: AdamW over the parameters that are not frozen.
        ema: moving average of the weights; None without EMA.
        precision: dtype and loss scaling.
        seen: samples seen so far.
        best: name, value and samples of the best validation so far.
    """

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
        """State before the first step, or before `resume`. Freezes the parameters in `config.freeze`.

        Raises:
            ConfigError: if `freeze` names no parameter of the model, or all of them.
        """
        precision = Precision(config.precision, device)
        task.model.to(device, precision.dtype)
        for prefix in config.freeze:
            named = [p for name, p in task.module.named_parameters() if name == prefix or name.startswith(prefix + ".")]
            if not named:
                parts = ", ".join(sorted({name.split(".")[0] for name, _ in task.module.named_parameters()}))
                raise ConfigError(f"freeze: this {task.manifest.kind} has no part '{prefix}'. Its parts are {parts}.")
            for parameter in named:
                parameter.requires_grad_(False)
        moving = [p for p in task.module.parameters() if p.requires_grad]
        if not moving:
            raise ConfigError(f"freeze: no part of this {task.manifest.kind} would be trained.")
        fused = device.type == "cuda"
        optimiser = torch.optim.AdamW(moving, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)
        return State(task, config, task.manifest, optimiser, EMA(task.module, config) if config.ema_decay else None, precision)

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The weights for inference: the EMA, if there is one."""
        return self.task.module.state_dict() if self.ema is None else self.ema.state

    def save(self, run: Run, logs: Mapping[str, float]) -> Path:
        """Write a checkpoint, then remove all but the `KEPT` newest ones and the best."""
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
        """Continue from the run's newest undamaged checkpoint. Warns about damaged newer ones.

        Raises:
            CheckpointError: if there is none, or it was trained with another config.
            LineageError: if it was trained with other parents.
        """
        path, training = _newest_whole(run)
        manifest = checkpoint.read_manifest(path)
        task = self.task
        for name in ("architecture", "training", "data", "about", "marks"):
            before, now = _decisive(name, manifest), _decisive(name, self.manifest)
            if name == "architecture" and is_dataclass(task.architecture):  # options that are newer than the checkpoint had their defaults
                before = to_plain(from_plain(type(task.architecture), manifest.architecture, f"{path}, architecture"))
            if before != now:
                raise CheckpointError(
                    f"{path}: it was trained with another config ({name} differs{_difference(before, now)}). Resume with the same config, "
                    "or start a new run."
                )
        self._note_changes(manifest)
        if not self.manifest.origins:  # --init is not needed again when resuming
            about = {**self.manifest.about, "trained_on": list(manifest.trained_on)}
            self.manifest = replace(self.manifest, parents=(*self.manifest.parents, *manifest.origins), about=about)
        if [(p.kind, p.fingerprint) for p in manifest.parents] != [(p.kind, p.fingerprint) for p in self.manifest.parents]:
            raise LineageError(
                f"{path}: it was trained with other parents.\n  so far: {manifest.lineage()}\n  given:  {self.manifest.lineage()}\n"
                "Resume with the same ones, or start a new run with `--run NEW_RUN`."
            )
        checkpoint.load_weights(task.module, {k[7:]: v for k, v in training.items() if k.startswith("module.")}, str(path))
        fused = self.optimiser.defaults["fused"]  # the fused optimiser keeps its step count on the device
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
        run.drop_logs_after(self.seen)

    def _note_changes(self, before: Manifest) -> None:
        """Record in the manifest which settings changed when resuming, and after how many samples."""
        changes = list(before.changes)
        for name in RECORDED:
            was, now = before.training.get(name), self.manifest.training.get(name)
            if was != now:
                changes.append({"samples": before.samples_seen, "field": name, "from": was, "to": now})
                warnings.warn(f"{name} changes from {was} to {now} after {before.samples_seen} samples.", stacklevel=2)
        if changes:
            self.manifest = replace(self.manifest, about={**self.manifest.about, "changes": changes})


def _newest_whole(run: Run) -> tuple[Path, dict[str, Tensor]]:
    for path in checkpoint.newest_first(run.folder):
        try:
            checkpoint.verify_checksums(path)
            return path, checkpoint.load_tensors(path, "training.safetensors")
        except CheckpointError as error:
            warnings.warn(f"{error} Continuing from the checkpoint before it.", stacklevel=2)
    raise CheckpointError(f"{run.folder}: no undamaged checkpoint to continue from. Delete the folder, or name another, to start again.")


def _decisive(name: str, manifest: Manifest) -> Any:
    """A field of a manifest, without the entries that may change when resuming."""
    value = getattr(manifest, name)
    if not isinstance(value, dict):
        return value
    sizes = tuple(size for size in _TEST_SIZES if size != f"{manifest.data.get('split')}_scenes")
    left_out = {"training": (*SPEED_ALONE, *RECORDED), "about": ("trained_on", "changes"), "data": sizes}.get(name, ())
    kept = {k: v for k, v in value.items() if k not in left_out}
    if name == "about" and isinstance(kept.get("town"), dict):
        kept["town"] = {k: v for k, v in kept["town"].items() if k not in sizes}
    return kept


_TEST_SIZES = ("test_scenes", "hard_scenes")
"""Numbers of towns that are only tested on, unless a model is trained on that split."""


def _difference(before: Any, now: Any) -> str:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return ""
    keys = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
    return ": " + ", ".join(f"{k} was {before.get(k)!r}, is {now.get(k)!r}" for k in keys[:3])
