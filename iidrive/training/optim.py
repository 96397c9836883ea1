"""What decides a training's result: how long, how fast, in which numbers; learning rate over samples seen, moving average of weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from iidrive.core.errors import ConfigError


@dataclass(frozen=True)
class TrainConfig:
    """How long and how to train. Everything counts samples, so that the number of devices or the accumulation cannot move it.

    Attributes:
        samples: samples of the whole training, a multiple of the batch.
        batch: global batch: samples of an optimiser step.
        micro_batch: most samples that a device computes at once; 0: its whole share. Results do not depend on it.
        group: samples that are a batch of their own, with their own loss and BatchNorm statistics; the step takes the groups' mean, as the published
            code does with the 8 samples of a GPU. 0: the loss is the global batch's.
        precision: 32 or 64: float32 or float64. bf16 or 16: mixed with bfloat16 or float16. tf32: float32, but a GPU rounds what products and
            convolutions multiply (on a CPU it is 32).
        freeze: parts of the model (prefixes of parameter names) that keep their weights.
        learning_rate: highest learning rate.
        weight_decay: AdamW's weight decay.
        max_grad_norm: norm that gradients are clipped to.
        warmup: samples over which the learning rate rises.
        schedule: cosine: down to a hundredth. step: a tenth after step_at of the samples.
        step_at: when the schedule `step` steps, as a share of the samples.
        ema_decay: decay of the moving average of the weights per optimiser step; 0: none.
        ema_warmup_steps: steps over which that decay is reached.
        ema_initial_steps: steps that count as done before the first one (published: 10560, so that the average moves slowly from the start).
        seed: seed of weights, order and augmentation.
        log_every: samples between two lines of the log.
        save_every: samples between two checkpoints; one more is written at the end.
        validate_every: samples between two validations of the moving average on scenes that are not trained on; 0: never.
        validate_scenes: scenes of a validation.
    """

    samples: int = 128_000
    batch: int = 64
    micro_batch: int = 0
    group: int = 0
    precision: Literal["32", "64", "bf16", "16", "tf32"] = "32"
    freeze: tuple[str, ...] = ()
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    max_grad_norm: float = 5.0
    warmup: int = 3200
    schedule: Literal["cosine", "step"] = "cosine"
    step_at: float = 0.8333
    ema_decay: float = 0.999
    ema_warmup_steps: float = 2000.0
    ema_initial_steps: int = 0
    seed: int = 0
    log_every: int = 640
    save_every: int = 32_000
    validate_every: int = 0
    validate_scenes: int = 4

    def __post_init__(self) -> None:
        least = {
            "samples": 1,
            "batch": 1,
            "log_every": 1,
            "validate_scenes": 1,
            "micro_batch": 0,
            "group": 0,
            "save_every": 0,
            "validate_every": 0,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}; found {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be above 0; found {self.learning_rate}.")
        if self.samples % self.batch:
            near = round(self.samples / self.batch) * self.batch or self.batch
            raise ConfigError(f"samples must be a multiple of the batch; found {self.samples} and {self.batch}. The nearest is {near}.")
        if self.group and self.batch % self.group:
            raise ConfigError(f"groups of {self.group} samples do not make a batch of {self.batch}.")


def learning_rate(config: TrainConfig, seen: int) -> float:
    """The rate of the step that starts after `seen` samples: linear warm-up, then the schedule."""
    if seen < config.warmup:
        return config.learning_rate * (seen + config.batch) / (config.warmup + config.batch)
    share = seen / config.samples
    if config.schedule == "step":
        return config.learning_rate * (0.1 if share >= config.step_at else 1.0)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))


class EMA:
    """Exponential moving average of a module's state: decay d = ema_decay * (1 - exp(-(ahead + steps) / warmup))."""

    def __init__(self, module: nn.Module, config: TrainConfig) -> None:
        self.config, self.state = config, {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, steps: int) -> None:
        """Move towards the module's present state, after optimiser step number `steps` (from 1)."""
        decay = self.config.ema_decay * (1 - math.exp(-(self.config.ema_initial_steps + steps) / self.config.ema_warmup_steps))
        now = module.state_dict()
        moving = [key for key, value in now.items() if value.dtype.is_floating_point]
        torch._foreach_lerp_([self.state[key] for key in moving], [now[key] for key in moving], 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for key in now.keys() - set(moving):
            self.state[key].copy_(now[key])
