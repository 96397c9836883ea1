"""The five reference runs of a researcher's notes, each as a list of iidrive commands.

| run | what was done | question |
|---|---|---|
| r1 | own weights, ii on in training, off in testing | the table |
| r2 | the same weights, ii on in testing, too | whether it "even seems a little worse" |
| r3 | trained and tested on another number of devices | whether results depend on it |
| r4 | a published world model with one's own tokenizer | a mismatch, or "because the first stage was trained with two cards" |
| r5 | fine-tuned from published weights | whether such good numbers are a leak |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Name = Literal["r1", "r2", "r3", "r4", "r5"]


@dataclass(frozen=True)
class Step:
    """Arguments of one `iidrive` command.

    `result`: a file that exists once the command is done; "": run the command every time. `refused`: the command must fail with a lineage error.
    """

    arguments: tuple[str, ...]
    refused: bool = False
    result: str = ""


@dataclass(frozen=True)
class Setting:
    """Options of the reference runs: the folder shared by all five, devices, data and recipe options, and published files.

    Without `stage1` and `stage2`, a tokenizer and a world model trained here with another seed replace the published ones. `shares`: by
    stage, into how many parts a training step can be divided.
    """

    out: Path
    devices: int = 0
    data: tuple[str, ...] = ()
    recipe: tuple[str, ...] = ()
    stage1: str = ""
    stage2: str = ""
    shares: Mapping[str, int] = field(default_factory=dict)

    def devices_of(self, stage: str) -> int:
        """The largest number of devices that can divide a stage's training step evenly."""
        parts = self.shares.get(stage, self.devices)
        return max((n for n in range(1, self.devices + 1) if parts % n == 0), default=0)


def steps(name: Name, setting: Setting) -> list[Step]:
    """The commands of one run, in order."""
    out = setting.out
    if name == "r1":
        return [*_own(setting, "own"), _evaluate(setting, "own", "r1", "off")]
    if name == "r2":
        return [*steps("r1", setting), _evaluate(setting, "own", "r2", "on"), _compare(out, "r1", "r2")]
    if name == "r3":
        again = [*_own(setting, "r3-trained", many=True), _evaluate(setting, "r3-trained", "r3", "on", setting.devices)]
        return [*steps("r2", setting), *again, _compare(out, "r2", "r3")]
    if name == "r4":
        mixed = ("--world", str(out / "published/world"), "--tokenizer", str(out / "own/tokenizer"))
        return [
            *steps("r2", setting),
            *_published(setting),
            Step(("lineage", str(out / "own/tokenizer"), str(out / "published/world"))),
            _evaluate(setting, "own", "r4-refused", "on", 0, mixed, refused=True),
            _evaluate(setting, "own", "r4", "on", 0, (*mixed, "--allow-mismatch", "on")),
            Step(("swap", str(out / "own"), str(out / "published"), "--run", str(out / "swap"), *setting.data)),
            Step(("doctor", str(out / "r4"))),
        ]
    tuned = out / "r5-trained"
    init = ("--init", str(out / "published/world"), "--resume", "auto")
    return [
        *_published(setting),
        Step(("train", "world", str(out / "published/tokenizer"), "--run", str(tuned / "world"), *init, *_how(setting, "world"))),
        Step(("train", "planner", str(tuned / "world"), "--run", str(tuned / "planner"), "--resume", "auto", *_how(setting, "planner"))),
        _evaluate(setting, "r5-trained", "r5", "on", setting.devices),
        Step(("audit", str(tuned / "planner"), *setting.data)),
    ]


def _how(setting: Setting, stage: str, many: bool = True) -> tuple[str, ...]:
    devices = setting.devices_of(stage) if many else 0
    return (*setting.data, *setting.recipe, *(("--devices", str(devices)) if devices else ()))


def _own(setting: Setting, folder: str, many: bool = False) -> list[Step]:
    """Commands that train all three stages with ii on, on one device or on `many`."""
    run = setting.out / folder
    stages = {
        "tokenizer": ("train", "tokenizer", "--run", str(run / "tokenizer")),
        "world": ("train", "world", str(run / "tokenizer"), "--run", str(run / "world")),
        "planner": ("train", "planner", str(run / "world"), "--train-ii", "on", "--run", str(run / "planner")),
    }
    return [Step((*step, "--resume", "auto", *_how(setting, stage, many))) for stage, step in stages.items()]


def _published(setting: Setting) -> list[Step]:
    """Commands for the published weights: import them, or train replacements with another seed."""
    run = setting.out / "published"
    if setting.stage1 or setting.stage2:
        return [Step(("import", "ii-world", "--stage1", setting.stage1, "--stage2", setting.stage2, "--out", str(run)))]
    seeds = ("--recipe.train_tokenizer.seed", "1", "--recipe.train_world.seed", "1")
    return [
        Step(("train", "tokenizer", "--run", str(run / "tokenizer"), "--resume", "auto", *_how(setting, "tokenizer"), *seeds)),
        Step(("train", "world", str(run / "tokenizer"), "--run", str(run / "world"), "--resume", "auto", *_how(setting, "world"), *seeds)),
    ]


def _evaluate(
    setting: Setting, trained: str, name: str, test_ii: str, devices: int = 0, more: tuple[str, ...] = (), refused: bool = False
) -> Step:
    planner, run = setting.out / trained / "planner", setting.out / name
    how = (*setting.data, *(("--devices", str(devices)) if devices else ()))
    result = "" if refused else str(run / "scores.json")
    return Step(("evaluate", str(planner), "--test-ii", test_ii, "--run", str(run), *more, *how), refused, result)


def _compare(out: Path, first: str, second: str) -> Step:
    return Step(("compare", str(out / first), str(out / second)))
