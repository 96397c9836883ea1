"""How the global batch is divided over devices and micro-batches. This affects speed and memory, not results."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, prod

import torch

from iidrive.core.errors import ConfigError
from iidrive.runtime.distributed import ProcessGroup
from iidrive.training.optim import TrainConfig

WORKERS = 2
"""Default number of data loading workers per GPU."""


@dataclass(frozen=True)
class ParallelConfig:
    """Parallelism and memory options. Devices x `micro_batch_size` x `grad_accum_steps` must be the global batch size.

    Attributes:
        micro_batch_size: samples per forward pass; 0: at most the recipe's micro_batch.
        grad_accum_steps: forward and backward passes per optimiser step; 0: as needed.
        workers: data loading workers per device; default: 2 for a GPU, 0 for a CPU.
        activation_checkpointing: recompute activations in the backward pass: less memory, more time.
        compile: compile the models with torch.compile.
        deterministic: use only deterministic GPU operations, which are slower.
    """

    micro_batch_size: int = 0
    grad_accum_steps: int = 0
    workers: int = -1
    activation_checkpointing: bool = False
    compile: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name, least in (("micro_batch_size", 0), ("grad_accum_steps", 0), ("workers", -1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--parallel.{name} must be at least {least}; found {getattr(self, name)}.")

    def workers_for(self, device: torch.device) -> int:
        """Number of data loading workers for this device."""
        return (WORKERS if device.type == "cuda" else 0) if self.workers < 0 else self.workers

    def parts(self, config: TrainConfig, process_group: ProcessGroup) -> list[range]:
        """Indices in the global batch that this process computes, one range per forward pass.

        Raises:
            ConfigError: if the product of devices, micro-batch size and accumulation steps is not the global batch size. The message names
                the nearest values that fit.
        """
        at_once, steps = self.divide(config, process_group.size)
        first = process_group.rank * at_once * steps
        size = config.group or at_once
        return [range(start, start + size) for start in range(first, first + at_once * steps, size)]

    def divide(self, config: TrainConfig, devices: int) -> tuple[int, int]:
        """Micro-batch size and gradient accumulation steps. Raises ConfigError if they do not fit the global batch."""
        unit, share = config.group or 1, config.batch // devices
        at_once, steps = self.micro_batch_size, self.grad_accum_steps
        if at_once == 0 and steps == 0 and config.batch % (devices * unit) == 0:
            most = max(config.micro_batch or share, unit)
            at_once = max(n for n in range(unit, share + 1, unit) if share % n == 0 and n <= most)
        at_once = at_once or share // (steps or 1)
        steps = steps or max(1, share // max(1, at_once))
        if devices * at_once * steps == config.batch and at_once % unit == 0:
            return at_once, steps
        near = _nearest(config.batch, unit, (devices, max(1, at_once), steps))
        groups = f", in groups of {unit}" if unit > 1 else ""
        raise ConfigError(
            f"{devices} devices x micro-batches of {at_once} x {steps} accumulation steps make {devices * at_once * steps} samples, "
            f"but the global batch is {config.batch}{groups}. The nearest that fit: {' x '.join(map(str, near))} "
            "(--devices, --parallel.micro_batch_size, --parallel.grad_accum_steps)."
        )

    def out_of_memory(self, config: TrainConfig, stage: str, at_once: int) -> str:
        """Message for a GPU that is out of memory with `at_once` samples per pass: options that save memory, and their cost."""
        ways = []
        if at_once > max(config.group, 1):
            fewer = max(n for n in range(1, at_once) if at_once % n == 0)
            ways.append(f"--parallel.micro_batch_size {fewer} (the same result, a little slower)")
        if not self.activation_checkpointing and not config.group:
            ways.append("--parallel.activation_checkpointing on (the same result, a tenth to a third slower)")
        if config.precision in ("32", "tf32"):
            ways.append(f"--recipe.train_{stage}.precision bf16 (other rounding)")
        ways.append("a GPU with more memory")
        return f"the GPU has too little memory for {at_once} samples at once. Use one of: {'; '.join(ways)}."


def _nearest(batch: int, unit: int, wanted: tuple[int, int, int]) -> tuple[int, int, int]:
    """Devices, micro-batch size and accumulation steps whose product is the batch, nearest to `wanted`; devices weigh most."""
    divisors = [n for n in range(1, batch + 1) if batch % n == 0]
    fits = [(d, batch // d // s, s) for d in divisors for s in divisors if batch % (d * s) == 0 and (batch // d // s) % unit == 0]
    weights = (4.0, 1.0, 1.0)

    def distance(found: tuple[int, int, int]) -> float:
        return sum(w * abs(log(f / max(1, a))) for w, f, a in zip(weights, found, wanted, strict=True))

    assert all(prod(fit) == batch for fit in fits)
    return min(fits, key=distance)
