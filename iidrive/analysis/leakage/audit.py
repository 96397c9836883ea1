"""Audit a model for leaks: does any information that it must not use change its outputs?

At some keyframes, everything after the keyframe is replaced: in the source, in the tokens made from it, and in the targets of the batch. If an output
changes, each input is replaced separately. The audit also tests whether a sample's output depends on other samples of the batch, on earlier calls, or
on sample tokens and scene names. Every measurement starts from a fresh copy of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from iidrive.analysis.leakage.counterfactual import (
    INPUTS,
    LABELS,
    Change,
    Counterfactual,
    Label,
    OtherCommands,
    Renamed,
    Unlabelled,
    Value,
    blank,
)
from iidrive.analysis.leakage.findings import Answers, Audit, Leak, changed, l2, worth
from iidrive.analysis.leakage.plausible import Plausibility, plausible
from iidrive.analysis.leakage.subject import Hook, Make, Pipeline, Sample, View, of_checkpoint, unchanged
from iidrive.core.errors import ConfigError
from iidrive.core.scene import FUTURE_STEPS
from iidrive.data.source import Source, true_path, window
from iidrive.models.baselines import KINEMATIC
from iidrive.scoring.cases_from_samples import cases_from_samples

Array = np.ndarray
BATCH = 4
NEAR = 1e-3
"""Tolerance, metres. Batches of another size or order round differently, which is not a leak."""


def choose(source: Source, split: str, count: int) -> list[Sample]:
    """About `count` samples with a full future, spread over scenes and time. The first keyframe of every chosen scene is included."""
    names = source.scene_names(split)
    some = [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(len(names), max(1, count // 2))).round().astype(int))]
    lengths = {name: len(source.scene(name)) - FUTURE_STEPS for name in some}
    share = max(2, -(-count // len(some)))
    out = [(n, int(i)) for n in some if lengths[n] > 0 for i in np.unique(np.linspace(0, lengths[n] - 1, share).round())]
    if not out:
        raise ConfigError(f"{source.name} {split}: no sample has {FUTURE_STEPS} future keyframes, so there is nothing to audit on.")
    return out


def rounds(samples: Sequence[Sample]) -> int:
    """Number of batches in which these samples are audited."""
    return len(_rounds(samples))


def audit(
    model: str | Path | Make,
    source: Source,
    split: str = "",
    samples: int = 16,
    test_ii: bool = True,
    tokens: str = "",
    report: Callable[[int], Callable[[str], None]] = lambda total: lambda name: None,
) -> Audit:
    """Audit a baseline, a checkpoint or your own pipeline at about `samples` samples of a split.

    Args:
        model: name of a baseline, path of a checkpoint, or a function that creates a pipeline.
        source: the data.
        split: the split; default: the source's usual test split.
        samples: approximate number of samples.
        test_ii: whether the planner uses the world model's predicted future.
        tokens: a token cache to audit with the checkpoint.
        report: `report(rounds)` returns a function that is called after each round.

    Raises:
        ConfigError: if `model` is neither a baseline nor a checkpoint, or as `audit_samples` does.
    """
    make = of_checkpoint(str(model), test_ii, tokens) if isinstance(model, (str, Path)) else model
    chosen = choose(source, split or source.usual_split("test"), samples)
    return audit_samples(make, source, chosen, report(rounds(chosen)))


def audit_samples(make: Make, source: Source, samples: Sequence[Sample], tick: Callable[[str], None] = lambda name: None) -> Audit:
    """Audit a pipeline at some samples.

    Raises:
        ConfigError: if two fresh copies give different outputs for the same samples, because nothing can be compared then.
    """
    found: dict[str, list[Leak]] = {}
    plans: dict[Sample, Array] = {}
    for rows in _rounds(samples):
        for leak in _round(make, source, rows, plans):
            found.setdefault(leak.input, []).append(leak)
        tick(rows[0][0])
    leaks = tuple(_joined(parts, len(samples)) for parts in found.values())
    return Audit(leaks, len(samples), *_score(source, plans))


def _score(source: Source, plans: Mapping[Sample, Array]) -> tuple[float, Plausibility | None]:
    """L2 of the unchanged plans (metres; NaN without plans), and their comparison with kinematic planners."""
    cases = cases_from_samples(window(source, source.scene(name), index, past=0) for name, index in plans)
    if not cases.full.any():
        return float("nan"), None
    plan = np.stack(list(plans.values()))
    metres = float(l2(plan, cases.true_path())[cases.full].mean())
    if not np.isfinite(plan).all():
        return metres, None
    view, baselines = View(source, source), {}
    for name, drive in KINEMATIC.items():
        baseline = Pipeline(lambda batch, drive=drive: {"plan": drive(batch.inputs)})
        answers = {row: one for rows in _rounds(list(plans)) for row, one in zip(rows, baseline(view, rows)["plan"], strict=True)}
        baselines[name] = np.stack([answers[row] for row in plans])
    return metres, plausible(cases, plan, baselines)


@dataclass(frozen=True)
class _Round:
    make: Make
    source: Source
    rows: Sequence[Sample]
    compared: Array
    real: View
    before: Answers
    path: Array
    full: Array

    def ask(self, view: View, rows: Sequence[Sample] | None = None) -> Answers:
        return self.make()(view, self.rows if rows is None else rows)

    def leak(self, name: str, after: Answers, tolerance: float = 0.0, which: Array | None = None) -> Leak | None:
        which = self.compared if which is None else self.compared & which
        if not which.any():
            return None
        before, after = ({k: v[which] for k, v in answers.items()} for answers in (self.before, after))
        count = int(changed(before, after, tolerance).sum())
        metres, voxels = worth(before, after, self.path[which], self.full[which])
        return Leak(name, count, int(which.sum()), metres, voxels) if count else None

    @property
    def now(self) -> dict[str, int]:
        """The current keyframe of every compared scene."""
        return {name: index for (name, index), counts in zip(self.rows, self.compared, strict=True) if counts}

    def view(self, change: Change, hook: Hook = unchanged, source: bool = True, tokens: bool = True) -> View:
        other = Counterfactual(self.source, self.now, change)
        shown = other if source else self.source
        return View(shown, other, hook, stored=False) if tokens else replace(self.real, source=shown, hook=hook)


def _round(make: Make, source: Source, rows: Sequence[Sample], plans: dict[Sample, Array]) -> list[Leak]:
    """The leaks of one batch. The unchanged plans are added to `plans`."""
    compared = np.ones(len(rows), bool)
    if len(rows) == 1:
        rows, compared = (
            [*rows, (rows[0][0], max(0, rows[0][1] - 3))],
            np.array([True, False]),
        )  # a second sample, so that the batch can be permuted
    view = View(source, source)
    before = make()(view, rows)
    if changed(before, make()(view, rows)).any():
        raise ConfigError(
            "two fresh copies of this model give different outputs for the same samples. Seed the model or switch its noise off, then audit."
        )
    paths = [true_path(source.scene(name), index) for name, index in rows]
    now = _Round(
        make, source, rows, compared, view, before, np.stack([p.points_m for p in paths]), np.array([p.valid.all() for p in paths])
    )
    if "plan" in before:
        plans |= {row: plan for row, plan, counts in zip(rows, before["plan"], compared, strict=True) if counts}
    leaks = [*_future(now), *_labels(now), *_others(now), *_names(now)]
    if source.command_source == "oracle":
        leak = now.leak("oracle command (declared)", now.ask(replace(view, source=OtherCommands(source))))
        if leak:
            leaks.append(
                replace(leak, declared=True, note="the commands of this data are derived from the true future; L2 is with other commands.")
            )
    return leaks


def _future(now: _Round) -> list[Leak]:
    """Effect of later keyframes: all inputs at once and, if an output changes, one input at a time."""
    values: tuple[Value, ...] = ("other", "noise")
    at_once = [now.leak("later keyframes (several inputs together)", now.ask(now.view(Change(value=v), blank))) for v in values]
    ended = now.leak("end of the scene", now.ask(now.view(Change(end=True), tokens=False)), NEAR)
    if not any(at_once):
        return [ended] if ended else []
    leaks = []
    for name in INPUTS:
        leaks.append(_least([now.leak(f"later {name}", now.ask(now.view(Change(frozenset({name}), v), tokens=False))) for v in values]))
    leaks.append(_least([now.leak("tokens that saw later keyframes", now.ask(now.view(Change(value=v), source=False))) for v in values]))
    leaks.append(now.leak("targets of the batch", now.ask(replace(now.real, hook=blank))))
    named = [leak for leak in leaks if leak]
    return named or [leak for leak in [_least(at_once)] if leak]


def _labels(now: _Round) -> list[Leak]:
    """Effect of labels that no model is given at test time: boxes up to now, and the map."""

    def leak(name: str, labels: frozenset[Label]) -> Leak | None:
        other = Unlabelled(now.source, now.now, labels)
        return now.leak(name, now.ask(View(other, other)))  # stored tokens stay: they hold no label of the present

    together = leak("boxes and map together", frozenset(LABELS))
    if not together:
        return []
    named = [leak("boxes up to now", frozenset({"boxes"})), leak("map and route", frozenset({"map"}))]
    return [one for one in named if one] or [together]


def _others(now: _Round) -> list[Leak]:
    """Effect of other samples: through the batch, its size and order, and state from earlier calls."""
    leaks: list[Leak | None] = []
    view, n = now.real, len(now.rows)
    for parity in (0, 1):
        keep = np.arange(n) % 2 == parity
        swapped = [row if kept else _other(now, row) for row, kept in zip(now.rows, keep, strict=True)]
        leaks.append(now.leak("other samples of the batch", now.ask(view, swapped), which=keep))
    flipped = {k: v[::-1] for k, v in now.ask(view, now.rows[::-1]).items()}
    leaks.append(now.leak("place in the batch", flipped, NEAR))
    if not any(leaks):
        alone = [now.ask(view, [row]) for row in now.rows]
        leaks.append(now.leak("size of the batch", {k: np.concatenate([one[k] for one in alone]) for k in now.before}, NEAR))
    model = now.make()
    for step in (2, 1):
        model(view, [(name, min(index + step, len(now.source.scene(name)) - 1)) for name, index in now.rows])
    state = now.leak("state carried between calls", model(view, now.rows))
    if state:  # here the fresh copy is the model without the leak
        leaks.append(replace(state, worth_m=-state.worth_m))
    return [_joined(parts, 0) for parts in _by_name([leak for leak in leaks if leak]).values()]


def _names(now: _Round) -> list[Leak]:
    """Effect of sample tokens and scene names: outputs that depend on them were looked up."""
    name = "sample tokens and scene names"
    try:
        leak = now.leak(name, now.ask(replace(now.real, source=Renamed(now.source))))
    except (KeyError, IndexError) as error:
        note = f"the model fails for samples with unknown names ({type(error).__name__}: {error})."
        return [Leak(name, int(now.compared.sum()), int(now.compared.sum()), note=note)]
    return [leak] if leak else []


def _other(now: _Round, row: Sample) -> Sample:
    """Another sample of the same scene."""
    name, index = row
    last = len(now.source.scene(name)) - 1
    return name, (index + 5) % (last + 1)


def _rounds(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Batches with at most one sample per scene, so that each scene has one current keyframe."""
    rounds: list[list[Sample]] = []
    for sample in samples:
        fits = (r for r in rounds if len(r) < BATCH and all(name != sample[0] for name, _ in r))
        found = next(fits, None)
        if found is None:
            rounds.append([sample])
        else:
            found.append(sample)
    return rounds


def _by_name(leaks: Sequence[Leak]) -> dict[str, list[Leak]]:
    out: dict[str, list[Leak]] = {}
    for leak in leaks:
        out.setdefault(leak.input, []).append(leak)
    return out


def _least(leaks: Sequence[Leak | None]) -> Leak | None:
    """The leak that changed most outputs, with the smallest measured `worth_m`."""
    some = [leak for leak in leaks if leak]
    if not some:
        return None
    metres = [leak.worth_m for leak in some if np.isfinite(leak.worth_m)]
    most = max(some, key=lambda leak: leak.samples)
    return replace(most, worth_m=min(metres, key=abs)) if metres else most


def _joined(parts: Sequence[Leak], of: int) -> Leak:
    """One leak from several batches. `worth_m` and `voxels` are weighted by samples; batches without a change count as 0 (`of` samples in all)."""
    total = max(of, sum(leak.of for leak in parts))

    def mean(values: Sequence[float]) -> float:
        known = [(v, leak.of) for v, leak in zip(values, parts, strict=True) if np.isfinite(v)]
        return sum(v * n for v, n in known) / total if known else float("nan")

    return replace(
        parts[0],
        samples=sum(leak.samples for leak in parts),
        of=total,
        worth_m=mean([leak.worth_m for leak in parts]),
        voxels=mean([leak.voxels for leak in parts]),
    )
