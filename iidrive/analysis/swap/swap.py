"""The swap grid: every combination of tokenizer × world model × planner of some runs, scored stage by stage.

Everywhere else a mismatched pair is refused. Here it is evaluated beside the matched pairs, to find the cause of a bad result: the
tokenizer's quality, a mismatch, or stage 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from iidrive.analysis import lineage_of
from iidrive.analysis.swap import diagnosis
from iidrive.analysis.swap.agreement import Agreement, agreement
from iidrive.core.errors import CheckpointError, ConfigError
from iidrive.core.lineage import MARKED
from iidrive.core.scene import STEP_S
from iidrive.core.text import text_row
from iidrive.data.clips import ClipDataset, EgoTrack, scored_clips
from iidrive.data.source import Source
from iidrive.data.tokens import TokenCache
from iidrive.models.tokenizer import Tokenizer
from iidrive.pipeline import infer
from iidrive.pipeline.evaluate import reconstruction_miou
from iidrive.pipeline.load import load_agent, load_forecaster, load_tokenizer
from iidrive.pipeline.testset import TestSet, about_line
from iidrive.pipeline.tokens import tokens_folder, write_tokens
from iidrive.runtime.run_folder import Run
from iidrive.scoring import score
from iidrive.scoring.cases import Cases
from iidrive.scoring.predictions import Predictions, align
from iidrive.training import checkpoint
from iidrive.training.checkpoint import Manifest

STEPS = (0, 1, 2, 4, 6)
"""Steps of 0.5 s at which forecasts are scored: 0 s, the first predicted step, and 1, 2, 3 s."""

Report = Callable[[str], None]


@dataclass(frozen=True)
class Part:
    """A model of the grid."""

    path: Path
    manifest: Manifest


@dataclass(frozen=True)
class Grid:
    """The distinct models of some runs, in the order they were found."""

    tokenizers: tuple[Part, ...]
    worlds: tuple[Part, ...]
    planners: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Number of steps that `swap` reports."""
        t, w, p = len(self.tokenizers), len(self.worlds), len(self.planners)
        return t * (1 + w * (1 + p))

    def own_tokenizer(self, world: int) -> int | None:
        """Index of the tokenizer that a world model was trained with; None if it is not in the grid."""
        return _place(self.tokenizers, self.worlds[world].manifest.parent("tokenizer").fingerprint)

    def own_world(self, planner: int) -> int | None:
        """Index of the world model that a planner was trained with; None if it is not in the grid."""
        return _place(self.worlds, self.planners[planner].manifest.parent("world").fingerprint)


@dataclass(frozen=True)
class Pair:
    """A tokenizer and a world model (indices in the grid): forecast mIoU at STEPS, 0..1. `problem`: why they cannot be combined."""

    tokenizer: int
    world: int
    miou: tuple[float, ...] = ()
    marks: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Triple:
    """A tokenizer, world model and planner (indices in the grid): average L2 in metres, average obj_box_col 0..1, collision events over six steps.

    `problem`: why they cannot be combined.
    """

    tokenizer: int
    world: int
    planner: int
    l2_m: float = float("nan")
    obj_box_col: float = float("nan")
    events: int = 0
    marks: tuple[str, ...] = ()
    problem: str = ""


@dataclass
class Swap:
    """All results of a swap.

    `reconstruction`: mIoU of every tokenizer, 0..1. `agreements`: code agreement per level, by the indices of two tokenizers.
    """

    grid: Grid
    samples: int = 0
    reconstruction: list[float] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    triples: list[Triple] = field(default_factory=list)
    agreements: dict[tuple[int, int], tuple[Agreement, ...]] = field(default_factory=dict)


def grid_of(paths: Sequence[str | Path]) -> Grid:
    """The models at some paths (checkpoints, run folders, folders of runs), and their parents, if these are still at their recorded paths.

    Raises:
        ConfigError: if there is no world model with its tokenizer.
    """
    met: dict[str, dict[str, Part]] = {"tokenizer": {}, "world": {}, "planner": {}}

    def meet(path: Path, wanted: str = "") -> None:
        try:
            manifest = checkpoint.read_manifest(path)
        except CheckpointError:
            if not wanted:
                raise
            return
        if manifest.kind not in met or (wanted and manifest.fingerprint != wanted):
            return
        for kind in ("tokenizer", "world"):
            if any(p.kind == kind for p in manifest.parents):
                meet(checkpoint.moved(manifest.parent(kind).path, path), manifest.parent(kind).fingerprint)
        met[manifest.kind].setdefault(manifest.fingerprint, Part(path, manifest))

    for path in paths:
        for found in lineage_of.trace(path):
            if found.kind in met:
                meet(Path(found.path))
    if not met["tokenizer"] or not met["world"]:
        raise ConfigError("nothing to swap: give runs with at least one world model and its tokenizer.")
    return Grid(*(tuple(met[kind].values()) for kind in ("tokenizer", "world", "planner")))


def swap(grid: Grid, source: Source, split: str, run: Run, scenes: int, test_ii: bool, report: Report = lambda what: None) -> Swap:
    """Score every combination on `scenes` evenly spread scenes of a split (0: all). Tokens are written below the run folder."""
    names = source.scene_names(split)
    if 0 < scenes < len(names):
        names = tuple(names[i * len(names) // scenes] for i in range(scenes))
    on = TestSet(source, split, run, names)
    out = Swap(grid, samples=len(scored_clips(on.tracks)))
    read: list[tuple[Tokenizer, TokenCache]] = []
    for t, part in enumerate(grid.tokenizers):
        report(f"tokenizer {t + 1}")
        loaded = load_tokenizer(part.path)
        tokenizer, cache = loaded.model, write_tokens(loaded, source, names, tokens_folder(run.folder, loaded, source))
        read.append((tokenizer, cache))
        out.reconstruction.append(reconstruction_miou(tokenizer, cache, on))
        clips = scored_clips(on.tracks, cache, source, tokenizer.config.grid)
        for w in range(len(grid.worlds)):
            report(f"tokenizer {t + 1}, world {w + 1}")
            pair = _pair(grid, t, w, clips)
            out.pairs.append(pair)
            for p in range(len(grid.planners)) if not pair.problem else ():
                report(f"tokenizer {t + 1}, world {w + 1}, planner {p + 1}")
                out.triples.append(_triple(grid, t, w, p, clips.without_occupancy(), on.cases, test_ii))
    for i, j in combinations(range(len(read)), 2):
        if read[i][0].quantiser.level_cells == read[j][0].quantiser.level_cells:
            out.agreements[i, j] = _agree(read[i], read[j], on.tracks)
    return out


def _pair(grid: Grid, t: int, w: int, clips: ClipDataset) -> Pair:
    try:
        loaded = load_forecaster(grid.worlds[w].path, grid.tokenizers[t].path, allow=True)
    except (CheckpointError, ConfigError) as error:
        return Pair(t, w, problem=str(error))
    scores = infer.forecasts(loaded.model, clips, loaded.model.tokenizer.config.grid, steps=STEPS)
    return Pair(t, w, tuple(scores.miou("world model")), loaded.manifest.marks)


def _triple(grid: Grid, t: int, w: int, p: int, clips: ClipDataset, cases: Cases, test_ii: bool) -> Triple:
    try:
        loaded = load_agent(grid.planners[p].path, grid.worlds[w].path, grid.tokenizers[t].path, allow=True)
    except (CheckpointError, ConfigError) as error:
        return Triple(t, w, p, problem=str(error))
    tokens, paths = infer.plans(partial(loaded.model.plan, ii=test_ii), clips)
    found = score.score(cases, align(cases, Predictions(paths, tokens, {}, "swap")))
    return Triple(t, w, p, found.average["L2"], found.average["obj_box_col"], _events(found), loaded.manifest.marks)


def _events(found: score.Scores) -> int:
    """Collision events over the six steps; -1 if collisions cannot be scored."""
    return int(found.events["obj_box_col"].sum()) if "obj_box_col" in found.events else -1


def _rate(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.3f}%"


def _agree(first: tuple[Tokenizer, TokenCache], second: tuple[Tokenizer, TokenCache], tracks: list[EgoTrack]) -> tuple[Agreement, ...]:
    a, b = (np.concatenate([cache(track.name, np.arange(len(track.tokens))) for track in tracks]) for _, cache in (first, second))
    quantiser = first[0].quantiser
    levels = [f"intra {x}x{y}" for x, y in quantiser.scales] + [f"inter {k + 1} back" for k in range(quantiser.config.history)]
    return agreement(a, b, quantiser.level_cells, levels)


def findings(result: Swap) -> list[str]:
    """The diagnoses, one sentence per combination."""
    grid, out = result.grid, []
    at = {(p.tokenizer, p.world): p for p in result.pairs if not p.problem}
    own = {w: at[t, w] for w in range(len(grid.worlds)) if (t := grid.own_tokenizer(w)) is not None and (t, w) in at}
    best = max(own.values(), key=lambda p: p.miou[-1], default=None)
    for (t, w), pair in at.items():
        name = f"tokenizer {t + 1} + world {w + 1}"
        if t != grid.own_tokenizer(w):
            out.append(f"{name}: {diagnosis.mismatched_pair(pair.miou, own[w].miou if w in own else None)}")
        elif best is not None and len(own) > 1:
            out.append(f"{name}: {diagnosis.matched_pair(pair.miou, best.miou)}")
    chains = {(x.tokenizer, x.world, x.planner): x for x in result.triples if not x.problem}
    for (t, w, p), chain in chains.items():
        home = _own_chain(grid, p)
        if home == (t, w):
            continue
        mine = chains.get((*home, p)) if home else None
        good = bool(home) and result.reconstruction[t] >= diagnosis.NEAR * result.reconstruction[home[0]]
        name = f"tokenizer {t + 1} + world {w + 1} + planner {p + 1}"
        out.append(f"{name}: {diagnosis.swapped_chain((chain.l2_m, chain.events), (mine.l2_m, mine.events) if mine else None, good)}")
    for (i, j), levels in result.agreements.items():
        cells = np.array([x.codes for x in levels]) / sum(x.codes for x in levels)
        equal, chance, shared = (float(cells @ [getattr(x, k) for x in levels]) for k in ("equal", "chance", "information"))
        sentence = diagnosis.tokenizers(result.reconstruction[i], result.reconstruction[j], equal, chance, shared)
        out.append(f"tokenizers {i + 1} and {j + 1} {sentence}")
    return out


def _own_chain(grid: Grid, planner: int) -> tuple[int, int] | None:
    """Indices of the tokenizer and world model that a planner was trained with; None if they are not in the grid."""
    w = grid.own_world(planner)
    t = grid.own_tokenizer(w) if w is not None else None
    return (t, w) if t is not None and w is not None else None


_PLANNING = (38, 10, 17, 8)
_CODES = (38, 8, 8, 20)


def text(result: Swap, source: Source, split: str, test_ii: bool) -> str:
    """The tables, followed by the diagnoses. Rows of mismatched models are marked."""
    grid = result.grid
    lines = [f"{about_line(source, split)} · {result.samples} samples", ""]
    for name, parts in (("tokenizer", grid.tokenizers), ("world", grid.worlds), ("planner", grid.planners)):
        lines += [f"{name} {i + 1}: {part.path}: {part.manifest.lineage()}" for i, part in enumerate(parts)]
    lines += ["", "reconstruction mIoU, %"]
    lines += [f"tokenizer {i + 1}{100 * value:>10.2f}" for i, value in enumerate(result.reconstruction)]
    widths = (38, *(10 for _ in STEPS))
    lines += ["", text_row(["forecast mIoU, %", *(f"{s * STEP_S:.1f} s" for s in STEPS)], widths)]
    for pair in result.pairs:
        name = f"tokenizer {pair.tokenizer + 1} + world {pair.world + 1}"
        shown = text_row([name, *(f"{100 * v:.2f}" for v in pair.miou)], widths[: 1 + len(pair.miou)])
        if not pair.miou:
            shown += f"  cannot be combined: {pair.problem.splitlines()[0]}"
        lines.append(f"{shown}  {_state(pair.marks, pair.problem)}".rstrip())
    if result.triples:
        head = "planning, ii on" if test_ii else "planning, ii off"
        lines += ["", text_row([head, "L2 avg, m", "obj_box_col avg", "events"], _PLANNING)]
    for x in result.triples:
        name = f"tokenizer {x.tokenizer + 1} + world {x.world + 1} + planner {x.planner + 1}"
        cells = [name, f"{x.l2_m:.4f}", _rate(x.obj_box_col), "-" if x.events < 0 else str(x.events)]
        shown = text_row(cells, _PLANNING) if not x.problem else f"{name:<38}  {x.problem.splitlines()[0]}"
        lines.append(f"{shown}  {_state(x.marks, x.problem)}".rstrip())
    for (i, j), levels in result.agreements.items():
        lines += ["", text_row([f"codes of tokenizers {i + 1} and {j + 1}, %", "equal", "chance", "information shared"], _CODES)]
        each = ([x.level, f"{100 * x.equal:.2f}", f"{100 * x.chance:.2f}", f"{100 * x.information:.1f}"] for x in levels)
        lines += [text_row(cells, _CODES) for cells in each]
    return "\n".join([*lines, "", "Diagnosis:", *(f"- {s}" for s in findings(result))])


def to_json(result: Swap) -> dict[str, Any]:
    """Plain values. Indices count from 0. Rows of mismatched models have marks."""
    grid = result.grid
    parts = (("tokenizers", grid.tokenizers), ("worlds", grid.worlds), ("planners", grid.planners))
    return {
        **{name: [p.manifest.lineage(p.path).to_plain() for p in some] for name, some in parts},
        "n": result.samples,
        "reconstruction": result.reconstruction,
        "seconds": [s * STEP_S for s in STEPS],
        "forecast": [_plain(pair) for pair in result.pairs],
        "planning": [_plain(x) for x in result.triples],
        "agreement": [{"tokenizers": list(k), "levels": [vars(x) for x in v]} for k, v in result.agreements.items()],
        "findings": findings(result),
    }


def _plain(row: Pair | Triple) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(row).items()}


def _state(marks: Sequence[str], problem: str) -> str:
    return "" if problem else MARKED if marks else "matched"


def _place(parts: Sequence[Part], fingerprint: str) -> int | None:
    return next((i for i, part in enumerate(parts) if part.manifest.fingerprint == fingerprint), None)
