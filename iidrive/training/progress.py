"""Progress of a training: a bar with samples per second, time left, losses and memory; metrics.jsonl; TensorBoard curves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from iidrive.core.errors import ConfigError
from iidrive.runtime.run_folder import Run, peak_memory_gb
from iidrive.training.optim import TrainConfig, learning_rate
from iidrive.training.options import RunOptions

QUIET_S = 30
"""Without a terminal, one line is printed at most this often, seconds."""


class Progress:
    """Progress display and logs. Only rank 0 prints and writes."""

    def __init__(self, title: str, config: TrainConfig, run: Run, options: RunOptions, seen: int) -> None:
        self.title, self.config, self.run, self.is_rank_zero = title, config, run, options.process_group.is_rank_zero
        self.begun, self.started, self.spoke = seen, time.perf_counter(), time.perf_counter()
        columns = (TextColumn("{task.description}"), BarColumn(20), TaskProgressColumn(), TimeRemainingColumn(compact=True))
        self.bar = _Bar(*columns, TextColumn("{task.fields[status]}"), console=Console(stderr=True), disable=not self.is_rank_zero)
        self.task = self.bar.add_task(title, total=config.samples, completed=seen, status="")
        self.board: Any = _board(run) if options.tensorboard and self.is_rank_zero else None

    def __enter__(self) -> Progress:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        if self.bar.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()
        if self.board is not None:
            self.board.close()

    def step(self, seen: int, logs: Mapping[str, float]) -> None:
        """Call after each step. Prints and logs every `log_every` samples, and at the end."""
        if not self.is_rank_zero or not (seen % self.config.log_every < self.config.batch or seen >= self.config.samples):
            return
        now = time.perf_counter()
        rate = (seen - self.begun) / (now - self.started)
        left_s = (self.config.samples - seen) / rate
        values = {**logs, "learning_rate": learning_rate(self.config, seen), "samples_per_s": rate, "memory_gb": memory_gb()}
        self.run.log({"samples": seen, **values})
        if self.board is not None:
            for key, value in values.items():
                self.board.add_scalar(f"{self.title}/{key}", value, seen)
        parts = " ".join(f"{k} {v:.4g}" for k, v in logs.items())
        status = f"{rate:.1f} samples/s  {memory_gb():.1f} GB"
        self.bar.parts = parts
        self.bar.update(self.task, completed=seen, status=status)
        if not self.bar.console.is_terminal and now - self.spoke > QUIET_S:
            self.spoke = now
            left = f"{left_s / 60:.0f} min left" if left_s > 90 else f"{left_s:.0f} s left"
            self.bar.console.print(f"{self.title} {seen}/{self.config.samples}, {left}  {status}  {parts}", highlight=False, soft_wrap=True)


class _Bar(Bar):
    """A progress bar with the parts of the loss on a second line, to fit narrow terminals."""

    parts = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(f"  {self.parts}", no_wrap=True, overflow="ellipsis")


def memory_gb() -> float:
    """Peak memory, GiB: of the GPU since the training began, or of this process if there is no GPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else peak_memory_gb()


def _board(run: Run) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError('--tensorboard on needs the package tensorboard: pip install "iidrive[track]".') from None
    return SummaryWriter(str(run.folder / "tensorboard"))
