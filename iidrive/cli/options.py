"""Options and helpers shared by several commands: opening data, starting and finishing a run, writing tokens."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from iidrive.analysis import lineage_of
from iidrive.core.config_io import to_plain
from iidrive.core.errors import CheckpointError, ConfigError
from iidrive.core.lineage import mark_lines
from iidrive.core.untrusted.json_text import parse_json
from iidrive.data import Data, opened, parse
from iidrive.data.joint import Joint
from iidrive.data.source import Source
from iidrive.data.tokens import TokenCache
from iidrive.pipeline import recipes
from iidrive.pipeline.load import LoadedTokenizer, Place, load_tokenizer
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.tokens import tokens_folder, write_tokens
from iidrive.runtime import distributed, threads
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.progress import counting
from iidrive.runtime.run_folder import Run, repeat_bits
from iidrive.scoring.predictions import Predictions
from iidrive.scoring.readers import read_paths
from iidrive.training import checkpoint
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


def start(run: str, about: dict[str, Any], options: RunOptions) -> Run:
    """Start or resume a training run, and write its recipe into the run folder.

    Raises:
        CheckpointError: for `--resume on` and a run without checkpoints. Nothing is written.
    """
    with options.process_group.raise_on_all_ranks():
        if options.resume == "on" and not checkpoint.newest_first(Path(run)):
            raise CheckpointError(
                f"{run}: no checkpoint to continue from. Use `--resume auto`, or leave --resume out, to start a new training."
            )
    started = Run.start(
        run, about | {"init": options.init, "parallel": to_plain(options.parallel)}, options.resume != "off", options.process_group
    )
    if not checkpoint.newest_first(started.folder) or not (started.folder / "recipe.json").exists():
        started.write_json("recipe.json", about["recipe"])
    return started


def tokens_of(
    folder: str,
    tokenizer: Place | LoadedTokenizer,
    source: Source,
    split: str,
    run: Path,
    allow: bool = False,
    shard: slice = slice(None),
    process_group: ProcessGroup | None = None,
) -> TokenCache:
    """The token cache of a split; missing scenes are written. With `allow`, an existing cache of another tokenizer is used unchanged."""
    used = load_tokenizer(tokenizer)
    if allow and folder and (Path(folder) / "manifest.json").is_file():
        there = TokenCache(folder)
        if there.manifest.tokenizer != used.checkpoint.manifest.fingerprint:
            return there  # of another tokenizer: read, never extended
    names = source.scene_names(split)[shard]
    folder = folder or str(tokens_folder(run, used, source))
    with counting("tokens", len(names), process_group) as tick:
        return write_tokens(used, source, names, folder, tick, note, process_group)


def finish(path: Path, where: DataOptions, recipe: Recipe, run: str) -> None:
    """Print what was trained, and the next command."""
    manifest = checkpoint.read_manifest(path)
    print(f"{mark_lines(manifest.marks)}{manifest.kind} {manifest.fingerprint} after {manifest.samples_seen} samples: {path}")
    for sentence in _course(path, manifest):
        print(sentence)
    if "tokens_mIoU" in manifest.metrics:
        found, recorded = 100 * manifest.metrics["tokens_mIoU"], 100 * manifest.metrics["stage1_mIoU"]
        print(f"0 s check: its tokens decode at {found:.1f} % mIoU; stage 1 recorded {recorded:.1f} %")
    follow = {
        "tokenizer": ["train", "world", run],
        "world": ["train", "planner", run],
        "planner": ["evaluate", run, "--test-ii", "on" if manifest.about.get("train_ii") else "off"],
    }
    made_with = [f"--recipe={Path(run) / 'recipe.json'}"] if recipe != recipes.small() else []
    options = [f"--{k}={v}" for k, v in to_plain(replace(where, split="")).items() if v != getattr(DataOptions(), k)] + made_with
    each = [_as_typed(data) + made_with for data in where.sources]
    if manifest.kind != "planner":
        for own in each:
            print(f"evaluate: {shlex.join(['iidrive', 'evaluate', run, *own])}")
    for own in each if manifest.kind == "planner" else [options]:
        print(f"next: {shlex.join(['iidrive', *follow[manifest.kind], *own])}")


def _as_typed(data: Data) -> list[str]:
    """The options that name a source."""
    options = [f"--{k}={v}" for k, v in to_plain(replace(data, name="town")).items() if v != getattr(Data(), k)]
    return options if data.name == "town" else [f"--data={data.name}", *options]


def _course(path: Path, manifest: checkpoint.Manifest) -> list[str]:
    """Sentences about a training: last losses, speed and memory, and best validation."""
    run, out = path.parent.parent, []
    log = run / "metrics.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    line = next((line for line in reversed(lines) if '"loss"' in line and line.endswith("}")), "")
    if line:
        last = parse_json(line, str(log))
        parts = " ".join(f"{k} {v:.4g}" for k, v in last.items() if k not in ("samples", "learning_rate", "samples_per_s", "memory_gb"))
        out.append(f"last losses: {parts}; {last['samples_per_s']:.1f} samples/s, {last['memory_gb']:.1f} GB; all in {log}")
    if best := manifest.metrics.get("best"):
        where = path.with_name(checkpoint.name(best["samples"]))
        out.append(f"best validation: {best['name']} {best['value']:.4g} after {best['samples']} samples: {where}")
    return out


def write_json(path: str, value: object) -> None:
    """Write plain values as JSON; create the folder."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    Run(target.parent).write_json(target.name, value)


def places_of_shard(text: str) -> slice:
    """The scene indices of a shard as a slice: `1/4` is 1, 5, 9, …"""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ConfigError(f"--shard {text}: expected K/N with 0 <= K < N, as in `--shard 0/4` to `--shard 3/4` for four processes.")
    return slice(int(number), None, int(count))
