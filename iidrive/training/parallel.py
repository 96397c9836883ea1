"""How a training is spread over devices and time. Speed and memory follow from it; results do not."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, prod

import torch

from iidrive.core.errors import ConfigError
from iidrive.runtime.distributed import ProcessGroup
from iidrive.training.optim import TrainConfig

WORKERS = 2
"""Processes that make batches for a GPU, unless others are asked for."""


@dataclass(frozen=True)
class ParallelConfig:
    """How a training is spread over devices and memory: how many samples a device computes at once, and how.

    Devices x `micro_batch_size` x `grad_accum_steps` must be the global batch.

    Attributes:
        micro_batch_size: samples at once on a device; 0: at most the recipe's micro_batch.
        grad_accum_steps: parts of a step, computed in turn on a device; 0: as needed.
        workers: processes a device that make batches; default: 2 a GPU, 0 a CPU.
        activation_checkpointing: compute activations again backwards: less memory, more time.
        compile: run the models through torch.compile.
        deterministic: the same bits every time on a GPU, too: slower.
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
                raise ConfigError(f"--parallel.{name} cannot be below {least}; found {getattr(self, name)}.")

    def workers_for(self, device: torch.device) -> int:
        """Processes that make batches for a training on a device."""
        return (WORKERS if device.type == "cuda" else 0) if self.workers < 0 else self.workers

    def parts(self, config: TrainConfig, process_group: ProcessGroup) -> list[range]:
        """The places of the global batch that are this process's, in the parts that are computed at once.

        Raises:
            ConfigError: if devices, samples a device and accumulation do not make the global batch; it names the nearest that do.
        """
        at_once, steps = self.divide(config, process_group.size)
        first = process_group.rank * at_once * steps
        size = config.group or at_once
        return [range(start, start + size) for start in range(first, first + at_once * steps, size)]

    def divide(self, config: TrainConfig, devices: int) -> tuple[int, int]:
        """Samples a device computes at once, and how often it does so a step."""
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
        groups = f" (and a device's samples groups of {unit})" if unit > 1 else ""
        raise ConfigError(
            f"{devices} devices x {at_once} samples at once x {steps} parts a step make {devices * at_once * steps} samples, "
            f"but the global batch is {config.batch}{groups}. Nearest that fit: {' x '.join(map(str, near))} "
            "(--devices, --parallel.micro_batch_size, --parallel.grad_accum_steps)."
        )

    def out_of_memory(self, config: TrainConfig, stage: str, at_once: int) -> str:
        """What to say when a GPU's memory is not enough for `at_once` samples of a stage: the options that save memory, and what each costs."""
        ways = []
        if at_once > max(config.group, 1):
            fewer = max(n for n in range(1, at_once) if at_once % n == 0)
            ways.append(f"--parallel.micro_batch_size {fewer} (the same result, a little slower)")
        if not self.activation_checkpointing and not config.group:
            ways.append("--parallel.activation_checkpointing on (the same result, a tenth to a third slower)")
        if config.precision in ("32", "tf32"):
            ways.append(f"--recipe.train_{stage}.precision bf16 (other rounding)")
        ways.append("a GPU with more memory")
        return f"the GPU's memory is not enough for {at_once} samples at once. What helps: {'; '.join(ways)}."


def _nearest(batch: int, unit: int, wanted: tuple[int, int, int]) -> tuple[int, int, int]:
    """Devices, samples at once and parts that make the batch, each as near as can be to what was asked for; devices weigh most."""
    divisors = [n for n in range(1, batch + 1) if batch % n == 0]
    fits = [(d, batch // d // s, s) for d in divisors for s in divisors if batch % (d * s) == 0 and (batch // d // s) % unit == 0]
    weights = (4.0, 1.0, 1.0)

    def distance(found: tuple[int, int, int]) -> float:
        return sum(w * abs(log(f / max(1, a))) for w, f, a in zip(weights, found, wanted, strict=True))

    assert all(prod(fit) == batch for fit in fits)
    return min(fits, key=distance)
