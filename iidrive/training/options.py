"""One sitting of a training: who takes part, where it starts, where it ends. Nothing here changes what the whole training gives."""

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
    """`resume`: go on from the run's newest checkpoint (`on`), only if there is one (`auto`), or start anew (`off`). `init` is a checkpoint whose
    weights a new training starts from. `stop_at` ends early, after that many samples, with a checkpoint. `tensorboard` keeps curves for it.

    Raises:
        ConfigError: for `init` with `resume=on`: the first starts a training, the second continues one.
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
                "--init starts a new training from a checkpoint's weights, --resume on goes on with the one in the run folder: give one of them. "
                "(--resume auto starts from --init the first time and goes on afterwards.)"
            )


class StopRequested(IIDriveError):  # noqa: N818 - nothing went wrong
    """A signal asked to stop; the training was saved. `status` is what the shell shows for that signal."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Request:
    """Which signal asked to stop; 0: none yet."""

    number: int = 0

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.number).name if self.number else ""


@contextmanager
def stop_requests() -> Iterator[Request]:
    """Within the block SIGTERM, SIGUSR1 (SLURM's warning) and SIGINT ask to stop after the step; a second SIGINT stops at once."""
    request = Request()

    def ask(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and request.number == signal.SIGINT:
            raise KeyboardInterrupt
        request.number = number

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    except ValueError:  # not the main thread: signals are somebody else's business
        before = {}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
