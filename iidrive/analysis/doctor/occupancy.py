"""Search for corrections of predicted occupancy: other class numbers, rotated, mirrored, shifted or scaled grids, another time or sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iidrive.analysis.doctor.findings.finding import Finding
from iidrive.analysis.doctor.grid_changes import Grid, orientations, refitted, shift_that_fits, shifted
from iidrive.core.class_tables import OCC3D, TABLES, ClassTable, require_free
from iidrive.core.classes import FREE, IGNORE, OCC_CLASSES
from iidrive.core.errors import DataError
from iidrive.core.text import printable
from iidrive.data.occupancy_files import OccFile, listed
from iidrive.data.occupancy_grids import OPTION, read_grids
from iidrive.scoring.npz import few
from iidrive.scoring.occupancy_sides import Written

Array = np.ndarray

MOST_SAMPLES = 8
"""Number of examined samples, spread evenly over all."""
_MOST_OTHERS = 40
_RISE, _RATIO = 0.08, 1.3
"""A correction is suggested if it raises the IoU by at least `_RISE` and by the factor `_RATIO`."""
_FEWEST = 50
"""Smallest number of voxels, occupied in both grids, for a class to be examined."""
_LOW = 0.2
"""An IoU of occupied voxels that needs an explanation."""
_DOCS = "Write the grids in the expected layout (docs/score-your-planner.md, Scoring your own occupancy) and score them again."


@dataclass(frozen=True)
class OccupancyReport:
    """Findings about a folder of predicted grids.

    `samples` of the `common` samples were examined. `iou`: IoU of occupied voxels over them, 0..1.
    """

    where: str
    samples: int
    common: int
    iou: float
    findings: tuple[Finding, ...]

    def suspects(self) -> tuple[Finding, ...]:
        """Findings that should be fixed before the grids are scored."""
        return tuple(f for f in self.findings if f.suspect)


@dataclass(frozen=True)
class _Pair:
    """Labels of one sample, (t,200,200,16) of the prediction and (200,200,16) of the truth, both in Occ3D's classes."""

    token: str
    pred: Array
    true: Array


def examine(predicted: str | Path, truth: str | Path, written: Written = Written(), most: int = MOST_SAMPLES) -> OccupancyReport:  # noqa: B008
    """Try corrections that would make predictions fit the ground truth better. Samples in only one of the folders are left out and counted.

    Raises:
        DataError: if the folders have no common sample, a file is damaged, or the truth seems to have other class numbers.
    """
    true, found = listed(Path(truth), "labels"), listed(Path(predicted), "predicted")
    common = [token for token in found if token in true]
    if not common:
        raise DataError(
            f"{predicted}: {few(list(found))}, none of which is in {truth}; the names of files or folders must be sample tokens."
        )
    chosen = [common[k] for k in sorted({int(k) for k in np.linspace(0, len(common) - 1, most)})]
    findings: list[Finding] = []
    if len(common) < max(len(found), len(true)):
        findings.append(
            Finding("joining", f"{len(common)} samples are in both folders, of {len(found)} predicted and {len(true)} true ones.")
        )
    given = OCC3D if written.predicted.assumed else written.predicted
    pairs = [
        _Pair(
            token, read_grids(found[token].path, "predicted", given).labels, read_grids(true[token].path, "labels", written.truth).labels[0]
        )
        for token in chosen
    ]
    now = _pooled(pairs, lambda grid: grid)
    numbers, pairs = _free_number(pairs, now)
    findings += numbers
    if not any(_occupied(pair.pred[0]).any() for pair in pairs):
        findings.append(Finding("empty", "no examined prediction has an occupied voxel.", True, (), "Inspect one of the files."))
        return OccupancyReport(str(predicted), len(pairs), len(common), now, tuple(findings))
    fits, change = _geometry(pairs)
    findings += [*fits, *_times(pairs, change), *_others(pairs, true, written, change), *_names(pairs, change)]
    return OccupancyReport(str(predicted), len(pairs), len(common), now, tuple(findings))


def _occupied(labels: Array) -> Grid:
    return labels < FREE


def _iou(pred: Grid, true: Array) -> tuple[int, int]:
    known, real = true != IGNORE, _occupied(true)
    return int((pred & real).sum()), int(((pred & known) | real).sum())


def _pooled(pairs: Sequence[_Pair], change: Callable[[Grid], Grid], time: int = 0) -> float:
    """IoU of occupied voxels over all pairs after `change` is applied to the predictions, 0..1; NaN if nothing is occupied."""
    counts = np.array([_iou(change(_occupied(pair.pred[time])), pair.true) for pair in pairs]).sum(axis=0)
    return float(counts[0] / counts[1]) if counts[1] else float("nan")


def _better(new: float, old: float) -> bool:
    return new > old + _RISE and new > _RATIO * old


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f} %"


def _free_number(pairs: list[_Pair], now: float) -> tuple[list[Finding], list[_Pair]]:
    """Whether a number other than 17 means free, judged by the truth; and the pairs, renumbered if so."""
    counts = np.sum([np.bincount(pair.pred[0].reshape(-1), minlength=256) for pair in pairs], axis=0)
    best, number = now, FREE
    for candidate in np.argsort(counts)[::-1][:4].tolist():  # most voxels are free, so its number is among the most frequent
        fit = np.array([_iou(pair.pred[0] != candidate, pair.true) for pair in pairs]).sum(axis=0)
        if fit[1] and fit[0] / fit[1] > best:
            best, number = float(fit[0] / fit[1]), candidate
    share = counts[number] / counts.sum()
    if number == FREE or share < 0.5 or not _better(best, now):
        try:
            require_free(
                pairs[0].pred[0], "", OPTION["predicted"]
            )  # axes may also be wrong, so judge by class frequencies, which do not need the truth
            return [], pairs
        except DataError:
            number, best = int(counts.argmax()), float("nan")
    table = next((table for table in TABLES.values() if table.numbers.get(number) == FREE), None)
    advice = f"add --classes {table.name}" if table else f"write the class names to a file (`{number} free`) and add --classes FILE"
    rise = "" if np.isnan(best) else f"; then the IoU of occupied voxels rises from {_percent(now)} to {_percent(best)}"
    finding = Finding("class numbers", f"number {number} means free, not 17{rise}.", True, (), f"If that is so, {advice}.")
    return [finding], [_Pair(pair.token, _renumbered(pair.pred, number, table), pair.true) for pair in pairs]


def _renumbered(labels: Array, number: int, table: ClassTable | None) -> Array:
    if table is not None and np.isin(labels, [*table.numbers, IGNORE]).all():
        return table.translate(labels, "")
    return np.where(labels == number, FREE, np.minimum(labels, FREE - 1)).astype(np.uint8)


def _geometry(pairs: list[_Pair]) -> tuple[list[Finding], Callable[[Grid], Grid]]:
    """Rotated, mirrored, shifted and scaled grids: the transformation that raises the IoU most."""
    now = _pooled(pairs, lambda grid: grid)
    tries: dict[str, tuple[str, float, Callable[[Grid], Grid]]] = {}
    for name, (kind, change) in {**orientations(), **refitted()}.items():
        tries[name] = kind, _pooled(pairs, change), change
    name, (kind, best, change) = max(tries.items(), key=lambda item: -1.0 if np.isnan(item[1][1]) else item[1][1])
    base = change if _better(best, now) else lambda grid: grid
    cells = shift_that_fits([(base(_occupied(pair.pred[0])), _occupied(pair.true)) for pair in pairs])
    if any(cells):
        moved = lambda grid: shifted(base(grid), cells)  # noqa: E731
        fit, before = _pooled(pairs, moved), best if _better(best, now) else now
        along = " and ".join(f"{n:+d} voxels along {axis}" for n, axis in zip(cells, "xyz", strict=True) if n)
        tries[f"moved by {along}"] = "shifted", fit, moved
        if _better(fit, before):
            turned = f"{name} and " if _better(best, now) else ""
            name, kind, best, change = f"{turned}moved by {along}", "shifted" if not turned else kind, fit, moved
    listing = "; ".join(f"{n} {_percent(v)}" for n, (_, v, _) in sorted(tries.items(), key=lambda item: -np.nan_to_num(item[1][1]))[:6])
    if not _better(best, now):
        return [Finding("axes", f"no turned, mirrored, moved or scaled grid fits much better ({listing}).")], lambda grid: grid
    sentence = f"with grids {name}, the IoU of occupied voxels rises from {_percent(now)} to {_percent(best)}."
    return [Finding(kind, sentence, True, (f"best of all: {listing}",), _DOCS)], change


def _times(pairs: list[_Pair], change: Callable[[Grid], Grid]) -> list[Finding]:
    """Whether a later grid of a forecast fits the current keyframe best."""
    times = len(pairs[0].pred)
    if times == 1:
        return []
    fits = [_pooled(pairs, change, time) for time in range(times)]
    best = int(np.nanargmax(fits)) if not np.isnan(fits).all() else 0
    shown = ", ".join(_percent(fit) for fit in fits)
    if best == 0 or not _better(fits[best], fits[0]):
        return [Finding("times", f"the first of {times} grids fits the current keyframe best ({shown}).")]
    order = "the times are in reverse order" if best == times - 1 else f"the grids begin {best} steps too early"
    return [Finding("times", f"grid {best + 1} of {times} fits the current keyframe best ({shown}): {order}.", True, (), _DOCS)]


def _others(pairs: list[_Pair], true: dict[str, OccFile], written: Written, change: Callable[[Grid], Grid]) -> list[Finding]:
    """Whether predictions fit other samples of their scene better than their own."""
    swapped, looked = [], 0
    for pair in pairs[: MOST_SAMPLES // 2]:
        pred = change(_occupied(pair.pred[0]))
        rest = [token for token, file in true.items() if file.scene == true[pair.token].scene and token != pair.token][:_MOST_OTHERS]
        own = _ratio(_iou(pred, pair.true))
        fits = {token: _ratio(_iou(pred, read_grids(true[token].path, "labels", written.truth).labels[0])) for token in rest}
        looked += bool(fits)
        if fits and _better(max(fits.values()), own):
            best = max(fits, key=lambda token: fits[token])
            swapped.append(f"{printable(pair.token)} fits {printable(best)} ({_percent(fits[best])}, its own {_percent(own)})")
    if not looked:
        return []
    if 2 * len(swapped) <= looked:
        return [Finding("pairs", f"predictions fit their own samples best ({looked - len(swapped)} of {looked} examined).")]
    sentence = f"{len(swapped)} of {looked} predictions fit the truth of another sample better than that of their own."
    return [Finding("mis-paired", sentence, True, tuple(swapped), "Check the token of each file: the order, or an offset by one.")]


def _ratio(counts: tuple[int, int]) -> float:
    return counts[0] / counts[1] if counts[1] else 0.0


def _names(pairs: list[_Pair], change: Callable[[Grid], Grid]) -> list[Finding]:
    """Whether classes are permuted."""
    counts = np.zeros((18, 18), np.int64)
    for pair in pairs:
        pred = np.full(pair.true.shape, FREE, np.uint8)
        for label in np.unique(pair.pred[0][_occupied(pair.pred[0])]).tolist():
            pred[change(pair.pred[0] == label)] = label
        both = _occupied(pred) & _occupied(pair.true)
        counts += np.bincount(18 * pair.true[both].astype(np.int64) + pred[both], minlength=18 * 18).reshape(18, 18)
    found = exchanged(counts)
    if found is not None or not counts.sum():
        return [found] if found else []
    return [Finding("classes", f"{_same_class(counts)}, and no permutation of numbers would raise it.")]


def exchanged(hist: Array) -> Finding | None:
    """A finding if the classes are numbered in another order: several numbers each match another class in voxels occupied in both grids.

    `hist` (18, 18) counts voxels by [truth, prediction]. A class that is confused with another predicted class does not count.
    """
    counts = hist[:FREE, :FREE].T
    seen = np.flatnonzero(counts.sum(axis=1) >= _FEWEST)
    mostly = {int(k): int(counts[k].argmax()) for k in seen if counts[k].max() > 0.7 * counts[k].sum()}
    moved = [f"number {k} is where the truth has {OCC_CLASSES[v]}" for k, v in mostly.items() if k != v]
    if len(moved) < 2 or len(set(mostly.values())) < len(mostly) or 2 * len(mostly) <= len(seen):
        return None
    sentence = f"{_same_class(hist)}: {len(moved)} of {len(seen)} numbers each mean another class."
    return Finding("class numbers", sentence, True, tuple(moved), "Give the order of the classes with --classes FILE, one class per line.")


def _same_class(hist: Array) -> str:
    both = hist[:FREE, :FREE]
    return f"{_percent(np.trace(both) / both.sum())} of the voxels occupied in both grids have the same class"


def format_report(report: OccupancyReport) -> str:
    """The IoU and the findings as text, one per line."""
    out = [
        f"{printable(report.where, 300)}: {report.samples} of {report.common} samples examined; IoU of occupied voxels {_percent(report.iou)}"
    ]
    for finding in report.findings:
        out.append(f"  {'SUSPECT' if finding.suspect else 'note   '} {finding.kind}: {finding.sentence}")
        out += [f"          - {line}" for line in finding.evidence]
        out += [f"          decide: {finding.decide}"] if finding.decide else []
    kinds = list(dict.fromkeys(finding.kind for finding in report.suspects()))
    low = f"no tested correction explains an IoU of {_percent(report.iou)}." if not report.iou > _LOW else "no tested correction is needed."
    verdict = f"{', '.join(kinds)} suspected." if kinds else low
    return "\n".join([*out, f"  verdict: {verdict}"])


def to_json(report: OccupancyReport) -> dict[str, object]:
    """Plain values."""
    return {
        "where": report.where,
        "samples": report.samples,
        "common": report.common,
        "iou": None if np.isnan(report.iou) else report.iou,
        "suspects": [finding.kind for finding in report.suspects()],
        "findings": [vars(finding) | {"evidence": list(finding.evidence)} for finding in report.findings],
    }
