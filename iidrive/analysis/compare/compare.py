"""Compare two runs: paired by sample token, clustered by scene, corrected for multiple metrics, summarised in one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import stats

from iidrive.analysis.doctor.printed import RATES, WEIGHTS
from iidrive.core.errors import DataError
from iidrive.core.scene import FUTURE_STEPS, STEP_S
from iidrive.core.text import text_row
from iidrive.scoring import npz
from iidrive.scoring.sampled import Sampled
from iidrive.scoring.stats import ALPHA, Test, holm, paired, samples_needed

Array = np.ndarray

METRICS = ("L2", "obj_box_col")
"""Metrics that are compared; lower is better in both. The verdict uses their averages; the horizons are shown for information."""
HORIZONS = (2, 4, 6)
FEWEST_CLUSTERS = 7
"""The smallest p-value of k clusters is 2 / 2^k, and Holm's correction for two metrics doubles it. With fewer clusters nothing is significant."""


@dataclass(frozen=True)
class Line:
    """One compared quantity: means of A and B, paired test of A - B, and corrected p-value.

    `only_a`, `only_b` (rates only): numbers of samples and steps at which only this side collides, or collides in more seeds.
    """

    metric: str
    column: str
    a: float
    b: float
    test: Test
    corrected: float
    only_a: int = 0
    only_b: int = 0

    @property
    def differs(self) -> bool:
        """Whether the difference is significant by both the corrected p-value and the interval."""
        return self.corrected <= ALPHA and not self.test.low <= 0 <= self.test.high


@dataclass(frozen=True)
class Comparison:
    """The comparison of A and B.

    `n` samples in `clusters` scenes. `lines`: the averages of both metrics, then the horizons. `verdict`: one sentence. `seeds`: the average of
    every seed, by metric, for A and B. `independent`: scenes are unknown, so every sample is its own cluster.
    """

    a: str
    b: str
    n: int
    clusters: int
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    verdict: str
    seeds: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = field(default_factory=dict)
    independent: bool = False


@dataclass(frozen=True)
class _Joined:
    """Both sides on their common samples: per metric the values (seeds, n, 6) of A and B, and the cluster of each sample."""

    value: Mapping[str, tuple[Array, Array]]
    cluster: Array
    n: int
    clusters: int
    independent: bool
    notes: tuple[str, ...]


def _join(a: Sequence[Sampled], b: Sequence[Sampled]) -> _Joined:
    runs = [*a, *b]
    common = set(runs[0].token).intersection(*(r.token for r in runs[1:]))
    if not common:
        raise DataError(f"{runs[0].name} and {runs[-1].name} have no sample in common; were they run on different splits?")
    token = [t for t in runs[0].token if t in common]
    notes = list(dict.fromkeys(note for r in runs for note in r.notes))
    for run in runs:
        alone = [t for t in run.token if t not in common]
        if alone:
            notes.append(f"{run.name}: {npz.few(alone)} not in every other file; left out.")
    rows = []
    for run in runs:
        row_of = {t: i for i, t in enumerate(run.token)}
        rows.append(np.array([row_of[t] for t in token], np.int64))
    truth = runs[0].gt_col[rows[0]]
    for run, row in zip(runs, rows, strict=True):
        if not np.array_equal(run.gt_col[row], truth):
            differing = int((run.gt_col[row] != truth).any(axis=1).sum())
            raise DataError(
                f"{runs[0].name} and {run.name} were scored against different ground truth: collisions of the true path differ in {differing} "
                "samples with the same token; score both against the same cases file."
            )
    known = next((r for r in runs if r.scene is not None), None)
    if known is not None and known.scene is not None:
        scene_of = dict(zip(known.token, known.scene, strict=True))
        cluster = np.unique([scene_of[t] for t in token], return_inverse=True)[1].reshape(-1)
    else:
        cluster = np.arange(len(token))
        notes.append(
            "The scenes are unknown, so samples are treated as independent. Neighbouring samples are not, so the intervals are too narrow and the "
            "p-values too small. Give a cases file with `scene` by --cases."
        )
    stack = {m: tuple(np.stack([_values(r, m)[i] for r, i in part]) for part in _halves(runs, rows, len(a))) for m in METRICS}
    return _Joined({m: (v[0], v[1]) for m, v in stack.items()}, cluster, len(token), len(np.unique(cluster)), known is None, tuple(notes))


def _halves(runs: Sequence[Sampled], rows: Sequence[Array], k: int) -> tuple[list[tuple[Sampled, Array]], list[tuple[Sampled, Array]]]:
    both = list(zip(runs, rows, strict=True))
    return both[:k], both[k:]


def _values(run: Sampled, metric: str) -> Array:
    return run.L2 if metric == "L2" else run.hit.astype(np.float64)


def compare(a: Sequence[Sampled], b: Sequence[Sampled], names: tuple[str, str] = ("A", "B"), resamples: int = 9999) -> Comparison:
    """Compare two sides, each with one or more seeds, on their common samples.

    The verdict uses the averages (of the 1, 2 and 3 s columns) of L2 and obj_box_col, Holm-corrected for two tests. The horizons are corrected
    separately. With at least two seeds on each side, Welch's test over seeds must be significant, too.

    Raises:
        DataError: if there are no common samples, or the runs were scored against different ground truth.
    """
    joined = _join(a, b)
    averages = [_line(joined, metric, "avg", WEIGHTS / 36, resamples) for metric in METRICS]
    horizons = []
    for metric in METRICS:
        for k in HORIZONS:
            weight = (np.arange(FUTURE_STEPS) < k) / k
            horizons.append(_line(joined, metric, f"{k * STEP_S:.0f}s", weight, resamples))
    seeds = {m: tuple(tuple((v @ (WEIGHTS / 36)).mean(axis=1).tolist()) for v in joined.value[m]) for m in METRICS}
    spread = {m: (v[0], v[1]) for m, v in seeds.items()}
    lines = (*_corrected(averages), *_corrected(horizons))
    notes = list(joined.notes)
    if joined.clusters < FEWEST_CLUSTERS:
        least = min(1.0, len(METRICS) * 2 / 2**joined.clusters)
        notes.append(
            f"Only {joined.clusters} independent groups of samples: no corrected p-value can be below {least:.2g}, so no difference can be "
            f"significant. At least {FEWEST_CLUSTERS} groups are needed for a difference of any size."
        )
    if len(a) == 1 or len(b) == 1:
        notes.append(
            "One side has a single seed: the result holds for these weights, not for the recipes. To compare recipes, train several seeds."
        )
    verdict = _verdict(lines[: len(METRICS)], names, joined, spread)
    return Comparison(*names, joined.n, joined.clusters, lines, tuple(notes), verdict, spread, joined.independent)


def _line(joined: _Joined, metric: str, column: str, weight: Array, resamples: int) -> Line:
    a, b = (v.mean(axis=0) @ weight for v in joined.value[metric])
    test = paired(a, b, joined.cluster, resamples)
    only_a = only_b = 0
    if metric in RATES:
        hit_a, hit_b = (v.mean(axis=0)[:, weight > 0] for v in joined.value[metric])
        only_a, only_b = int((hit_a > hit_b).sum()), int((hit_b > hit_a).sum())
    return Line(metric, column, float(a.mean()), float(b.mean()), test, test.p, only_a, only_b)


def _corrected(lines: Sequence[Line]) -> list[Line]:
    return [replace(line, corrected=p) for line, p in zip(lines, holm([line.test.p for line in lines]), strict=True)]


def seeds_agree(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether the seeds of the two sides differ significantly (Welch's test); True if a side has fewer than two seeds."""
    if len(a) < 2 or len(b) < 2:
        return True
    if np.ptp(a) == 0 and np.ptp(b) == 0:
        return a[0] != b[0]
    return bool(np.asarray(stats.ttest_ind(a, b, equal_var=False)[1]) <= ALPHA)


def _verdict(
    lines: Sequence[Line], names: tuple[str, str], joined: _Joined, seeds: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]
) -> str:
    if all(np.array_equal(*joined.value[m]) for m in METRICS):
        return f"{names[0]} and {names[1]} are the same: equal L2 and equal collisions at every step of all {joined.n} samples."
    words, needed, same = {"better": [], "worse": []}, [], []
    for line in lines:
        if line.differs and seeds_agree(*seeds[line.metric]):
            words["better" if line.test.difference < 0 else "worse"].append(f"{line.metric} ({amount(line.metric, line.test)})")
            continue
        many = line.differs
        more = None if many else samples_needed(joined.n, line.test.difference, line.test.error)
        same.append(line.metric + (" (the seeds scatter too much)" if many else ""))
        if more:
            fewest = -(-joined.n * FEWEST_CLUSTERS // joined.clusters)
            needed.append(f"about {two_figures(max(more, joined.n + 1, fewest)):,} samples for {line.metric}")
    return verdict_sentence(words, same, needed, names) + (" (Samples taken as independent.)" if joined.independent else "")


def verdict_sentence(words: Mapping[str, Sequence[str]], same: Sequence[str], needed: Sequence[str], names: tuple[str, str]) -> str:
    """`A is better than B in …; no difference in … that these data can show (…)`."""
    parts = [f"{kind} than {names[1]} in {' and '.join(words[kind])}" for kind in ("better", "worse") if words.get(kind)]
    sentence = f"{names[0]} is {' but '.join(parts)}" if parts else ""
    if same:
        enough = f"; to show one of the size seen would take {' and '.join(needed)}" if needed else ""
        if parts:
            sentence += f"; in {' and '.join(same)} there is no difference that these data can show{enough}"
        else:
            sentence = f"{names[0]} and {names[1]}: no difference that these data can show in {' or '.join(same)}{enough}"
    return sentence + "."


def amount(metric: str, test: Test) -> str:
    """The difference and its interval as text, in metres or percentage points."""
    if metric in RATES:
        return f"{100 * test.difference:+.3f} points, 95 % {100 * test.low:+.3f} to {100 * test.high:+.3f}"
    return f"{test.difference:+.4f} m, 95 % {test.low:+.4f} to {test.high:+.4f}"


def two_figures(value: int) -> int:
    """`value` rounded up to two significant digits."""
    scale = 10 ** max(0, len(str(value)) - 2)
    return -(-value // scale) * scale


def format_comparison(result: Comparison) -> str:
    """The comparison as text: table, events, seeds, notes and verdict."""
    unit = "taken as independent" if result.independent else f"of {result.clusters} scenes"
    out = [f"{result.a} against {result.b}: {result.n} samples in common, {unit}; differences are {result.a} - {result.b}"]
    widths = (18, 12, 12, 12, 24, 9, 11)
    out.append(text_row(["", result.a, result.b, "difference", "95 % interval", "p", "corrected"], widths))
    for line in result.lines:
        rate = line.metric in RATES
        show = (lambda v, sign="": f"{100 * v:{sign}.3f}%") if rate else (lambda v, sign="": f"{v:{sign}.4f}")
        interval = f"{show(line.test.low, '+')} … {show(line.test.high, '+')}"
        values = [show(line.a), show(line.b), show(line.test.difference, "+"), interval, f"{line.test.p:.4f}", f"{line.corrected:.4f}"]
        out.append(text_row([f"{line.metric} {line.column}", *values], widths))
    hits = next((line for line in result.lines if line.metric in RATES and line.column == "3s"), None)
    if hits:
        out.append(f"obj_box_col events (sample and step): only {result.a} {hits.only_a}, only {result.b} {hits.only_b}")
    for metric, sides in result.seeds.items():
        for name, values in zip((result.a, result.b), sides, strict=True):
            if len(values) > 1:
                scale, suffix = (100, " %") if metric in RATES else (1, " m")
                spread = float(np.std(values, ddof=1))
                out.append(f"{metric} avg over {len(values)} seeds of {name}: {scale * np.mean(values):.4f} ± {scale * spread:.4f}{suffix}")
    out += [f"note: {note}" for note in result.notes]
    out.append(
        "p: cluster permutation test; interval: cluster bootstrap; corrected: Holm, over the two averages and over the six horizons."
    )
    return "\n".join([*out, f"verdict: {result.verdict}"])
