"""The command `reproduce`: runs the commands of a reference run."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from iidrive.cli.options import DataOptions, Switch, console
from iidrive.cli.parser import read_recipe
from iidrive.cli.reference_runs import Name, Setting, Step, steps
from iidrive.core.config_io import to_plain
from iidrive.core.errors import ConfigError
from iidrive.data import Data
from iidrive.pipeline.recipes import Recipe
from iidrive.training.options import StopRequested


def reproduce(
    name: Name,
    out: str = "runs/reference",
    recipe: str = "demo",
    devices: int = 0,
    stage1: str = "",
    stage2: str = "",
    show: Switch = "off",
    where: DataOptions = DataOptions(),  # noqa: B008
) -> None:
    """Run one of the five reference runs, r1 to r5: a list of iidrive commands, printed as they run. Finished commands are skipped.

    Args:
        name: r1 (train with ii on, test with it off), r2 (on, on), r3 (another number of devices), r4 (a published world model with your own
            tokenizer), r5 (fine-tuned from published weights).
        out: folder shared by all five.
        recipe: tiny, demo, small, full, published or a YAML file.
        devices: processes on this machine; r1 and r2 are trained on one, for the comparison with r3.
        stage1: published .pth file of the scene tokenizer; without files, models trained with another seed replace them.
        stage2: published .pth file of the world model.
        show: only print the commands.
        where: the data of all five, with their usual splits.
    """
    for path, other in ((stage1, stage2), (stage2, stage1)):
        if other and not Path(path).is_file():
            raise ConfigError(f"published weights need two files, --stage1 and --stage2; '{path}' is not a file.")
    plain = Data()
    options = tuple(part for k, v in to_plain(where.source).items() if v != getattr(plain, k) for part in (_option(k), v))
    setting = Setting(Path(out), devices, options, ("--recipe", recipe), stage1, stage2, _shares(read_recipe(recipe, "iidrive reproduce")))
    for stage, parts in setting.shares.items():
        if setting.devices_of(stage) < devices:
            console.print(
                f"note: the {stage} takes {setting.devices_of(stage)} of {devices} devices: a step of this recipe has {parts} parts."
            )
    for step in steps(name, setting):
        _do(step, show == "on")


def _run(arguments: tuple[str, ...]) -> int:
    """Run one command and return its status. Stop signals are passed on to it, so that it can save a checkpoint first."""
    child = subprocess.Popen([sys.executable, "-m", "iidrive", *arguments])

    def pass_on(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGINT:  # the terminal sends SIGINT to both processes
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def _shares(recipe: Recipe) -> dict[str, int]:
    """By stage, into how many parts a training step can be divided."""
    trained = {"tokenizer": recipe.train_tokenizer, "world": recipe.train_world, "planner": recipe.train_planner}
    return {stage: config.batch // (config.group or 1) for stage, config in trained.items()}


def _option(field: str) -> str:
    return "--data" if field == "name" else f"--{field}"


def _do(step: Step, show: bool) -> None:
    line = shlex.join(["iidrive", *step.arguments])
    print(f"\n$ {line}{'   # is refused' if step.refused else ''}", flush=True)
    if show:
        return
    if step.result and Path(step.result).is_file():
        print(f"(already done: {step.result})")
        return
    status = _run(step.arguments)
    if step.refused and status == 2:
        console.print("(refused, as expected)")
    elif status > 128:
        raise StopRequested(f"`{line}` was stopped. Run the same `iidrive reproduce` to continue.", status)
    elif status or step.refused:
        raise ConfigError(f"`{line}` ended with status {status}; the following commands were not run.")
