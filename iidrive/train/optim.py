"""Learning rate over samples seen, parameter groups, and the moving average of weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from iidrive.errors import ConfigError


@dataclass(frozen=True)
class TrainConfig:
    """How long and how to train. Everything counts samples, so that the number of devices or the accumulation cannot move it.

    `batch` is the global batch; `micro_batch` what is in memory at once (it must divide the batch; 0: all of it). The step follows the mean
    of the micro batches' losses, which is the batch's own loss only where that is a mean over samples: Lovász is taken per micro batch.
    `schedule`: `cosine` to a hundredth, or `step`, a tenth after `step_at` of the samples. `average` is the decay of the moving average per
    optimiser step (0: none), reached over `average_warmup` steps.
    """

    samples: int = 128_000
    batch: int = 64
    micro_batch: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    clip: float = 5.0
    warmup: int = 3200
    schedule: Literal["cosine", "step"] = "cosine"
    step_at: float = 0.8333
    average: float = 0.999
    average_warmup: float = 2000.0
    seed: int = 0
    log_every: int = 640
    save_every: int = 32_000

    def __post_init__(self) -> None:
        if self.samples % self.batch:
            near = round(self.samples / self.batch) * self.batch or self.batch
            raise ConfigError(f"samples must be a multiple of the batch; found {self.samples} and {self.batch}. The nearest is {near}.")
        if self.micro_batch and self.batch % self.micro_batch:
            fits = [m for m in range(1, self.batch + 1) if self.batch % m == 0]
            near = min(fits, key=lambda m: abs(m - self.micro_batch))
            raise ConfigError(
                f"the micro batch must divide the batch; found {self.micro_batch} and {self.batch}. The nearest that does is {near}."
            )

    @property
    def parts(self) -> int:
        """Micro batches a step."""
        return self.batch // (self.micro_batch or self.batch)


def learning_rate(config: TrainConfig, seen: int) -> float:
    """The rate of the step that starts after `seen` samples: linear warm-up, then the schedule."""
    if seen < config.warmup:
        return config.learning_rate * (seen + config.batch) / (config.warmup + config.batch)
    share = seen / config.samples
    if config.schedule == "step":
        return config.learning_rate * (0.1 if share >= config.step_at else 1.0)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))


class Average:
    """Exponential moving average of a module's state: decay d = average * (1 - exp(-steps / warmup))."""

    def __init__(self, module: nn.Module, config: TrainConfig) -> None:
        self.config, self.state = config, {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, steps: int) -> None:
        """Move towards the module's present state, after optimiser step number `steps` (from 1)."""
        decay = self.config.average * (1 - math.exp(-steps / self.config.average_warmup))
        for key, value in module.state_dict().items():
            kept: Tensor = self.state[key]
            if value.dtype.is_floating_point:
                kept.lerp_(value, 1 - decay)
            else:
                kept.copy_(value)
