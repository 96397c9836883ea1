"""Starting and finishing a training run, and the tokens that it reads."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from iidrive.cli.options import DataOptions, note
from iidrive.core.config_io import to_plain
from iidrive.core.errors import CheckpointError, ConfigError
from iidrive.core.lineage import mark_lines
from iidrive.core.untrusted.json_text import parse_json
from iidrive.data import Data
from iidrive.data.source import Source
from iidrive.data.tokens import TokenCache
from iidrive.pipeline import recipes
from iidrive.pipeline.load import LoadedTokenizer, Place, has_reactions, load_tokenizer
from iidrive.pipeline.recipes import Recipe
from iidrive.pipeline.tokens import tokens_folder, write_tokens
from iidrive.runtime.distributed import ProcessGroup
from iidrive.runtime.progress import counting
from iidrive.runtime.run_folder import Run
from iidrive.training import checkpoint
from iidrive.training.options import RunOptions


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
    if has_reactions(manifest):
        options.append("--recipe.planner.per_candidate=true")  # last: a recipe file replaces what is said before it
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


def places_of_shard(text: str) -> slice:
    """The scene indices of a shard as a slice: `1/4` is 1, 5, 9, …"""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ConfigError(f"--shard {text}: expected K/N with 0 <= K < N, as in `--shard 0/4` to `--shard 3/4` for four processes.")
    return slice(int(number), None, int(count))
