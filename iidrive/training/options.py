"""Options of one training run: process group, resuming, early stop. They do not change the result of the complete training."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Literal

from iidrive.core.errors import ConfigError, IIDriveError
from iidrive.runtime.distributed import ProcessGroup
from iidrive.training.parallel import ParallelConfig

Resume = Literal["on", "off", "auto"]


@dataclass(frozen=True)
class RunOptions:
    """Options of a training run.

    Attributes:
        process_group: the processes that train.
        parallel: how the work is divided.
        resume: continue from the run's newest checkpoint (`on`), continue if there is one (`auto`), or start a new training (`off`).
        init: checkpoint whose weights a new training starts from; empty for random weights.
        stop_at: stop after this many samples, with a checkpoint; None to train to the end.
        tensorboard: write curves for TensorBoard.

    Raises:
        ConfigError: for `init` with `resume=on`.
    """

    process_group: ProcessGroup = field(default_factory=ProcessGroup)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    resume: Resume = "off"
    init: str = ""
    stop_at: int | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.init and self.resume == "on":
            raise ConfigError(
                "--init starts a new training from a checkpoint's weights, and --resume on continues the training in the run folder: give only one. "
                "(--resume auto starts from --init the first time and continues afterwards.)"
            )


class StopRequested(IIDriveError):  # noqa: N818 - not a failure
    """Raised when a signal asked to stop and the training was saved. `status` is the exit status for that signal, 128 + its number."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Request:
    """Number of the signal that asked to stop; 0 for none."""

    number: int = 0

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.number).name if self.number else ""


@contextmanager
def stop_requests() -> Iterator[Request]:
    """Context manager: SIGTERM, SIGUSR1 (SLURM's warning) and SIGINT ask to stop after the current step. A second SIGINT stops at once."""
    request = Request()

    def ask(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and request.number == signal.SIGINT:
            raise KeyboardInterrupt
        request.number = number

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    except ValueError:  # handlers can only be set in the main thread
        before = {}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
