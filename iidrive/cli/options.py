"""Options and helpers shared by several commands."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from iidrive.analysis import lineage_of
from iidrive.core.errors import ConfigError
from iidrive.data import Data, opened, parse
from iidrive.data.joint import Joint
from iidrive.data.source import Source
from iidrive.pipeline.recipes import Recipe
from iidrive.runtime import distributed, threads
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.run_folder import Run, repeat_bits
from iidrive.scoring.predictions import Predictions
from iidrive.scoring.readers import read_paths
from iidrive.simulation.driven import Agents
from iidrive.simulation.loop import LoopConfig
from iidrive.training.optim import TrainConfig
from iidrive.training.options import Resume, RunOptions
from iidrive.training.parallel import ParallelConfig

Switch = Literal["on", "off"]
console = Console(stderr=True)


@dataclass(frozen=True)
class DataOptions:
    """Which data and scenes to use.

    Attributes:
        data: town, nuscenes or av2; several for training: town,av2.
        root: folder of nuScenes or Argoverse 2; of several: nuscenes=PATH,av2=PATH.
        split: a split, or a file of scene names; default: the usual split.
        occupancy: which occupancy of nuScenes to use: auto, labels, derived or predicted.
        gts: folder of Occ3D labels; default: ROOT/gts.
        predicted: folder of predicted labels in the Occ3D layout.
        version: version folder of nuScenes, if there are several.
    """

    data: str = "town"
    root: str = ""
    split: str = ""
    occupancy: str = "auto"
    gts: str = ""
    predicted: str = ""
    version: str = ""

    @property
    def sources(self) -> tuple[Data, ...]:
        """The data of every source, without the split."""
        occupancy = "" if self.occupancy == "auto" else self.occupancy
        return parse(self.data, root=self.root, version=self.version, occupancy=occupancy, gts=self.gts, predicted=self.predicted)

    @property
    def source(self) -> Data:
        """The data of a single source, without the split. Raises ConfigError for several sources."""
        one, *others = self.sources
        if others:
            raise ConfigError(f"--data {self.data}: only training and `iidrive tokens` take several sources; name one.")
        return one

    def open(self, recipe: Recipe, part: Literal["train", "test"]) -> tuple[Source, str]:
        """Open the source. Returns it and the split (the given or usual one). Missing parts of the data are reported on stderr. Several sources are
        allowed only in training."""
        source = opened(self.sources, recipe.town) if part == "train" else self.source.open(recipe.town)
        for sentence in source.missing():
            note(sentence)
        return source, source.completed(self.split, part) if isinstance(source, Joint) else self.split or source.usual_split(part)


@dataclass(frozen=True)
class TownFields:
    """Names of the town fields set with `--recipe.town.…`. They override a checkpoint's town config; fields of a recipe do not."""

    given: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecipeGiven:
    """Whether a recipe was given, with `--recipe` or in `--config`. Town fields alone do not count."""

    named: bool = False


@dataclass(frozen=True)
class TrainOptions:
    """Run folder, initialisation and parallelism of a training.

    Attributes:
        run: run folder to write.
        resume: continue from RUN's newest checkpoint; auto: if any.
        init: run folder or checkpoint with initial weights (fine-tuning).
        devices: processes on this machine, one per GPU; not under torchrun or SLURM.
        threads: threads per process; default: the resumed run's, or the free cores.
        parallel: micro-batch size, gradient accumulation, workers, and options that save memory or time.
        tensorboard: write curves to RUN/tensorboard.
        allow_mismatch: allow mismatched stages; all results are marked.
    """

    run: str = ""
    resume: Resume = "off"
    init: str = ""
    devices: int = 0
    threads: int = 0
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    tensorboard: Switch = "off"
    allow_mismatch: Switch = "off"

    def enter(self, config: TrainConfig) -> RunOptions:
        """Start or join the processes, set the number of threads, and return the run options."""
        process_group = enter(self.devices, partial(self.parallel.divide, config))
        choose_threads(self.threads, self.run if self.resume != "off" else "", process_group.size, distributed.started()[0])
        repeat_bits(self.parallel.deterministic)
        return RunOptions(process_group, self.parallel, self.resume, self.init, None, self.tensorboard == "on")


@dataclass(frozen=True)
class DriveOptions:
    """How the scenes of a closed loop are driven.

    Attributes:
        agents: reactive: others react to the ego; replay: they repeat the recorded scene.
        displace: start beside the path, rotated, and at another speed.
        delay_s: planning delay, at most 0.5 s; meanwhile the car follows the previous plan.
        drop: fraction of occupancy columns that look free to the planner.
        depth_error: relative error of the distances of boxes in the planner's input.
        go_on: continue after an at-fault contact or off the road.
    """

    agents: Agents = "reactive"
    displace: Switch = "off"
    delay_s: float = 0.0
    drop: float = 0.0
    depth_error: float = 0.0
    go_on: Switch = "off"

    @property
    def loop(self) -> LoopConfig:
        """The config of the closed loop. Raises ConfigError for a delay or fraction out of range."""
        displace, go_on = self.displace == "on", self.go_on == "on"
        return LoopConfig(self.agents, displace, go_on, delay_s=self.delay_s, dropped=self.drop, depth_error=self.depth_error)


@dataclass(frozen=True)
class StageOptions:
    """Which stages a planner is evaluated on.

    Attributes:
        world: run folder or checkpoint of stage 2; default: the planner's own.
        tokenizer: run folder or checkpoint of stage 1; default: the world model's own.
        allow_mismatch: allow mismatched stages; all results are marked.
    """

    world: str = ""
    tokenizer: str = ""
    allow_mismatch: Switch = "off"


def require_scene(scene: str, names: Sequence[str], split: str) -> None:
    """Raise ConfigError if the split does not have the given `--scene`. An empty name is accepted."""
    if scene and scene not in names:
        raise ConfigError(f"--scene {scene}: no such scene in {split}; its scenes are {names[0]} to {names[-1]}.")


def note(sentence: str) -> None:
    """Print a note about the results on stderr."""
    console.print(f"note: {sentence}", markup=False, highlight=False, soft_wrap=True)


def choose_threads(asked: int = 0, run: str = "", size: int = 1, here: int = 1) -> None:
    """Set the number of threads to `asked`, or to a suitable number (`threads.use`). Prints a note if that is fewer than torch's default."""
    usual = torch.get_num_threads()
    used = threads.use(asked, run or None, size, here)
    if used < usual and not asked:
        note(
            f"using {used} of {usual} threads, because of busy cores or as in the resumed run; set another number with `--threads N` or "
            "OMP_NUM_THREADS."
        )


def read_plans(path: str | Path, tokens: str = "") -> tuple[Predictions, tuple[str, ...]]:
    """Read planned paths in any supported format, and their marks. Assumptions made are printed.

    `tokens` is a file with the sample tokens of the rows, for a file without tokens.
    """
    found = read_paths(path, tokens)
    if found.assumed:
        note(found.assumed)
    if found.trusted:
        print(f"warning: {found.trusted}")
    return found.predictions, lineage_of.lineage_of_predictions(found.predictions).marks


def enter(devices: int, fits: Callable[[int], object] = lambda devices: None) -> ProcessGroup:
    """The process group of this command. With `devices` > 1 and no processes yet, start them; this process then only waits for them.

    Only rank 0 prints. `fits` raises ConfigError for an unsuitable number of processes, before any work and once for all ranks.
    """
    if distributed.to_be_started(devices):
        fits(devices)
        distributed.start(devices, sys.argv[1:])
    process_group = distributed.join(devices)
    with process_group.raise_on_all_ranks():
        if process_group.is_rank_zero:
            fits(process_group.size)
    if not process_group.is_rank_zero:
        console.quiet = True
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open until the process ends
        warnings.simplefilter("ignore")
    return process_group


def write_json(path: str, value: object) -> None:
    """Write plain values as JSON; create the folder."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    Run(target.parent).write_json(target.name, value)
