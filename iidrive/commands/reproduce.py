"""The command that does a reference run, command by command."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from iidrive.commands.common import Occupancy, Switch, console
from iidrive.configs import to_plain
from iidrive.data import Data, DataName
from iidrive.errors import ConfigError
from iidrive.recipes import named
from iidrive.reference import Name, Setting, Step, steps


def reproduce(
    name: Name,
    out: str = "runs/reference",
    data: DataName = "town",
    root: str = "",
    recipe: str = "demo",
    devices: int = 0,
    stage1: str = "",
    stage2: str = "",
    occupancy: Occupancy = "auto",
    gts: str = "",
    predicted: str = "",
    version: str = "",
    show: Switch = "off",
) -> None:
    """Do one of the five reference runs, r1 to r5: each is a list of plain iidrive commands, shown as they run; finished ones are not done again.

    Args:
        name: r1 (ii on while training, off while testing), r2 (on, on), r3 (another number of devices), r4 (a published world model on one's own
            tokenizer), r5 (fine-tuned from published weights).
        out: folder that all five share.
        data: embedded towns or nuScenes.
        root: folder of nuScenes.
        recipe: tiny, demo, small, full, published or a YAML file.
        devices: processes on this machine; r1 and r2 are trained on one all the same where r3 is to be compared with them.
        stage1: published .pth file of the scene tokenizer; without files, models trained from another seed stand in.
        stage2: published .pth file of the world model.
        occupancy: which occupancy of nuScenes to use.
        gts: folder of Occ3D labels (default: ROOT/gts).
        predicted: folder of predicted labels in the Occ3D layout.
        version: version folder of nuScenes, where there are several.
        show: print the commands and do nothing.
    """
    if not recipe.endswith((".yaml", ".yml", ".json")):
        named(recipe)
    choice = Data(data, root, version, occupancy, gts, predicted)
    plain = Data()
    options = tuple(part for k, v in to_plain(choice).items() if v != getattr(plain, k) for part in (_option(k), v))
    for step in steps(name, Setting(Path(out), devices, options, ("--recipe", recipe), stage1, stage2)):
        _do(step, show == "on")


def _option(field: str) -> str:
    return "--data" if field == "name" else f"--{field}"


def _do(step: Step, show: bool) -> None:
    line = shlex.join(["iidrive", *step.arguments])
    print(f"\n$ {line}{'   # is refused' if step.refused else ''}", flush=True)
    if show:
        return
    if step.result and Path(step.result).is_file():
        print(f"(done already: {step.result})")
        return
    status = subprocess.run([sys.executable, "-m", "iidrive", *step.arguments], check=False).returncode
    if step.refused and status == 2:
        console.print("(refused, as it should be)")
    elif status or step.refused:
        raise ConfigError(f"`{line}` ended with status {status}; the commands after it were not run.")
