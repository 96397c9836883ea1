"""Training config, learning rate schedule and EMA: the settings that decide a training's result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from iidrive.core.errors import ConfigError


@dataclass(frozen=True)
class TrainConfig:
    """Training settings. Lengths are in samples, so they do not depend on the number of devices or on gradient accumulation.

    Attributes:
        samples: length of the training, samples; a multiple of batch.
        batch: global batch size: samples per optimiser step.
        micro_batch: maximum samples per forward pass on a device; 0 for no limit. Results do not depend on it.
        group: samples per group with its own loss and BatchNorm statistics. The step uses the mean over groups, as the published code does
            with 8 samples per GPU. 0: one loss over the global batch.
        precision: 32 or 64 for float32 or float64; bf16 or 16 for mixed precision with bfloat16 or float16; tf32 for float32 with TF32
            products and convolutions on a GPU (the same as 32 on a CPU).
        freeze: prefixes of the names of parameters that are not trained.
        learning_rate: peak learning rate.
        weight_decay: AdamW's weight decay.
        max_grad_norm: norm that gradients are clipped to.
        warmup: length of the linear learning rate warm-up, samples.
        schedule: cosine decays to 1 % of the peak; step drops to 10 % after the fraction step_at.
        step_at: fraction of the samples after which the schedule `step` drops.
        ema_decay: decay of the EMA of the weights per optimiser step; 0 for no EMA.
        ema_warmup_steps: time constant of the decay's warm-up, optimiser steps.
        ema_initial_steps: number of steps that the decay's warm-up starts from (published: 10560, for a slow average from the start).
        seed: seed of initial weights, sample order and augmentation.
        log_every: samples between two log lines.
        save_every: samples between two checkpoints; one is also written at the end.
        validate_every: samples between two validations of the EMA on held-out scenes; 0 for never.
        validate_scenes: number of scenes per validation.
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
            raise ConfigError(f"batch must be a multiple of group; found {self.batch} and {self.group}.")


def learning_rate(config: TrainConfig, seen: int) -> float:
    """Learning rate of the step that starts after `seen` samples: linear warm-up, then the schedule."""
    if seen < config.warmup:
        return config.learning_rate * (seen + config.batch) / (config.warmup + config.batch)
    share = seen / config.samples
    if config.schedule == "step":
        return config.learning_rate * (0.1 if share >= config.step_at else 1.0)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))


class EMA:
    """Exponential moving average of a module's state, with decay ema_decay * (1 - exp(-(ema_initial_steps + steps) / ema_warmup_steps))."""

    def __init__(self, module: nn.Module, config: TrainConfig) -> None:
        self.config, self.state = config, {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, steps: int) -> None:
        """Update the average with the module's state after optimiser step number `steps` (from 1)."""
        decay = self.config.ema_decay * (1 - math.exp(-(self.config.ema_initial_steps + steps) / self.config.ema_warmup_steps))
        now = module.state_dict()
        moving = [key for key, value in now.items() if value.dtype.is_floating_point]
        torch._foreach_lerp_([self.state[key] for key in moving], [now[key] for key in moving], 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for key in now.keys() - set(moving):
            self.state[key].copy_(now[key])
