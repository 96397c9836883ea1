"""Results of the study: values by arm, seed and scene; differences between arms, paired by scene and corrected; sentences.

Shapes: s scenes, k seeds, p planners.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from iidrive.analysis.study.arms import ARMS, BESIDE, NONE
from iidrive.core.text import aligned
from iidrive.scoring.driving.summary import Row, parts_table, rates
from iidrive.scoring.stats import ALPHA, Test, holm, mean_interval, paired

Array = np.ndarray

METRICS: Mapping[str, tuple[str, float, bool]] = {
    "events": ("collision events per scene", 1.0, False),
    "L2": ("L2, m", 1.0, False),
    "EPDMS": ("EPDMS, points", 100.0, True),
    "EP": ("progress EP, points", 100.0, True),
    "at_fault": ("at-fault collisions per scene", 1.0, False),
    "departures": ("departures per scene", 1.0, False),
}
"""Metric → (title, display factor, whether higher is better)."""


QUESTIONS: Mapping[str, str] = {
    "shared against none": "Does planning by an imagined future help?",
    "shared against held": "Is it the future that helps, and not the longer history?",
    "per candidate against shared": "Does it help to imagine how others react to each plan?",
    "loss only against none": "Does it help to have seen imagined futures in training only?",
    "shuffled against none": "Does another scene's future help as well (it must not)?",
    "oracle against none": "What would the true future be worth?",
    "regressor against none": "Is a regressor as good as a choice among candidates without foresight?",
}
"""Comparison → the question that it answers."""


@dataclass(frozen=True)
class Setting:
    """Results of one test: `values` (k,s) of k seeds and s scenes, by arm and metric. `kinds`: the kind of each scene, by what it is a kind of.

    `others`: values (s,) of baselines and other planners, by name and metric. `drives`: in closed loop, all drives of each arm, over its seeds,
    and of the others.
    """

    name: str
    scenes: tuple[str, ...]
    kinds: Mapping[str, tuple[str, ...]]
    values: Mapping[str, Mapping[str, Float[Array, "k s"]]]
    others: Mapping[str, Mapping[str, Float[Array, "s"]]]
    drives: Sequence[Row] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics."""
        return tuple(next(iter(self.values.values())))

    def mean(self, arm: str, metric: str) -> Float[Array, "s"]:
        """An arm's values per scene, averaged over seeds."""
        return self.values[arm][metric].mean(0)

    @property
    def comparisons(self) -> dict[str, tuple[str, str]]:
        """Every arm with the arm without ii, and the pairs of BESIDE. Keys are used in tables and JSON."""
        pairs = [*((arm, NONE) for arm in self.values if arm != NONE), *(pair for pair in BESIDE if self.values.keys() >= set(pair))]
        return {" against ".join(pair): pair for pair in pairs}

    def differences(self, metric: str) -> dict[str, tuple[Test, float]]:
        """Of every comparison, the difference paired by scene, and the p-value corrected for the number of comparisons (Holm)."""
        return self._differences[metric]

    @cached_property
    def _differences(self) -> dict[str, dict[str, tuple[Test, float]]]:
        """`differences` of all metrics. Their permutations and bootstraps are drawn once for all tables and sentences."""
        return {metric: self._compared(metric) for metric in self.metrics}

    def _compared(self, metric: str) -> dict[str, tuple[Test, float]]:
        cluster = np.arange(len(self.scenes))
        tests = [paired(self.mean(arm, metric), self.mean(other, metric), cluster) for arm, other in self.comparisons.values()]
        return dict(zip(self.comparisons, zip(tests, holm([test.p for test in tests]), strict=True), strict=True))

    def table(self) -> str:
        """One line per arm: means with intervals over scenes."""
        return aligned(self.lines())

    def lines(self) -> list[list[str]]:
        """The cells of `table`; the header comes first."""
        cluster = np.arange(len(self.scenes))
        lines = [["arm", *(METRICS[m][0] for m in self.metrics)]]
        for name, values in [*((arm, {m: self.mean(arm, m) for m in self.metrics}) for arm in self.values), *self.others.items()]:
            cells = []
            for metric in self.metrics:
                scale = METRICS[metric][1]
                low, high = mean_interval(values[metric], cluster)
                cells.append(f"{scale * values[metric].mean():.3g} [{scale * low:.3g}, {scale * high:.3g}]")
            lines.append([name, *cells])
        return lines

    def by_kind(self, of: str, metric: str) -> list[list[str]]:
        """The cells of a table of means: a header, and one line per arm with one column per kind of scene."""
        scale, own = METRICS[metric][1], self.kinds[of]
        kinds, place = sorted(set(own)), np.array(own)
        lines = [[METRICS[metric][0], *(f"{kind} ({own.count(kind)})" for kind in kinds)]]
        for arm in self.values:
            lines.append([arm, *(f"{scale * self.mean(arm, metric)[place == kind].mean():.3g}" for kind in kinds)])
        return lines

    def kind_tables(self) -> dict[str, list[list[str]]]:
        """`by_kind` for everything that distinguishes the scenes, by title."""
        metrics = [metric for metric in ("EPDMS", "at_fault", "events") if metric in self.metrics]
        return {
            f"{self.name}, by {of}: {METRICS[m][0]}": self.by_kind(of, m)
            for of, own in self.kinds.items()
            if len(set(own)) > 1
            for m in metrics
        }

    def tables(self) -> dict[str, list[list[str]]]:
        """All tables besides `lines`, by title."""
        return {**self.drive_tables(), **self.kind_tables()}

    def drive_tables(self) -> dict[str, list[list[str]]]:
        """Parts of the score, and events per kilometre, by title. Empty in open loop."""
        if not self.drives:
            return {}
        return {f"{self.name}: parts of EPDMS": parts_table(self.drives), f"{self.name}: events per kilometre": rates(self.drives)}

    def sentences(self) -> list[str]:
        """One sentence per metric and comparison: the difference, its interval and its significance."""
        return [
            f"{self.name}, {name}: {_said(metric, *found)}." for metric in self.metrics for name, found in self.differences(metric).items()
        ]

    def answers(self) -> dict[str, str]:
        """Of every question that these arms answer, one sentence about collisions: at-fault ones in closed loop, events in open loop."""
        found = self.differences(self.main)
        return {question: f"{self.name}: {_said(self.main, *found[name])}." for name, question in QUESTIONS.items() if name in found}

    @property
    def main(self) -> str:
        """The metric that answers the questions: at-fault collisions in closed loop, collision events in open loop."""
        return next((metric for metric in ("at_fault", "events") if metric in self.metrics), self.metrics[0])

    def difference_lines(self, metric: str) -> list[list[str]]:
        """The cells of a table of all differences in a metric; the header comes first."""
        lines = [[name, *_cells(metric, *found)] for name, found in self.differences(metric).items()]
        return [["comparison", *_CELLS], *lines]

    def to_json(self) -> dict[str, Any]:
        """Plain values. `by_scene` has those that all others are computed from: of every arm, metric and seed, one value per scene."""
        arms: dict[str, Any] = {
            arm: {m: {"mean": float(self.mean(arm, m).mean()), "by_seed": self.values[arm][m].mean(1).tolist()} for m in self.metrics}
            for arm in self.values
        }
        differences = {
            m: {name: {**asdict(test), "p_corrected": p} for name, (test, p) in self.differences(m).items()} for m in self.metrics
        }
        others = {name: {m: float(values[m].mean()) for m in self.metrics} for name, values in self.others.items()}
        drives = {row.name: row.to_json() for row in self.drives}
        by_scene = {
            "scene": list(self.scenes),
            **self.kinds,
            "arms": {arm: {m: self.values[arm][m].tolist() for m in self.metrics} for arm in self.values},
            "others": {name: {m: values[m].tolist() for m in self.metrics} for name, values in self.others.items()},
        }
        found = {"scenes": len(self.scenes), "arms": arms, "differences": differences, "others": others}
        return {**found, "drives": drives, "by_scene": by_scene}


def _verdict(metric: str, test: Test, p: float) -> str:
    return "" if p > ALPHA else "better" if (test.difference > 0) == METRICS[metric][2] else "worse"


def _measured(metric: str, test: Test) -> str:
    scale = METRICS[metric][1]
    return f"{scale * test.difference:+.3g} [{scale * test.low:+.3g}, {scale * test.high:+.3g}]"


def _said(metric: str, test: Test, p: float) -> str:
    verdict = _verdict(metric, test, p) or "no difference that these scenes can show"
    return f"{METRICS[metric][0]} {_measured(metric, test)}, corrected p {p:.3g}: {verdict}"


_CELLS = ("verdict", "difference", "corrected p")


def _cells(metric: str, test: Test, p: float) -> list[str]:
    """The cells under `_CELLS`."""
    return [_verdict(metric, test, p) or "none shown", _measured(metric, test), f"{p:.3g}"]


def answer_lines(settings: Sequence[Setting]) -> list[list[str]]:
    """The cells of a table with the answer to every question in every setting; the header comes first."""
    lines = [["question", "test", *_CELLS]]
    for name, question in QUESTIONS.items():
        for setting in settings:
            found = setting.differences(setting.main)
            if name in found:
                lines.append([question, setting.name, *_cells(setting.main, *found[name])])
    return lines


@dataclass(frozen=True)
class RankCorrelation:
    """Rank correlation of an open-loop metric with the closed-loop score over planners, with a 95 % interval by bootstrap over scenes."""

    metric: str
    planners: int
    rho: float
    low: float
    high: float

    def sentence(self) -> str:
        """The correlation as one line of text."""
        return (
            f"rank correlation of {METRICS[self.metric][0]} in open loop with EPDMS in closed loop over {self.planners} planners: "
            f"{self.rho:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"
        )


def rank_correlations(open_loop: Setting, closed_loop: Setting, resamples: int = 1999) -> list[RankCorrelation]:
    """Rank correlation of each open-loop metric with closed-loop EPDMS, over all planners (arms, seeds and others) in both settings.

    The bootstrap draws scenes. If both settings have the same scenes, it draws the same ones for both.
    """
    found, same = [], open_loop.scenes == closed_loop.scenes
    score = _planners(closed_loop, "EPDMS")
    for metric in open_loop.metrics:
        values = _planners(open_loop, metric)
        names = [name for name in values if name in score]
        if len(names) < 3:
            continue
        a, b = np.stack([values[n] for n in names]), np.stack([score[n] for n in names])
        rng, drawn = np.random.default_rng(16), []
        for _ in range(resamples):
            at = rng.integers(0, a.shape[1], a.shape[1])
            to = at if same else rng.integers(0, b.shape[1], b.shape[1])
            drawn.append(_rank(a[:, at].mean(1), b[:, to].mean(1)))
        known = np.array(drawn)[np.isfinite(drawn)]
        low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (np.nan, np.nan)
        found.append(RankCorrelation(metric, len(names), _rank(a.mean(1), b.mean(1)), float(low), float(high)))
    return found


def _rank(a: Float[Array, "p"], b: Float[Array, "p"]) -> float:
    if not (a != a[0]).any() or not (b != b[0]).any():
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _planners(setting: Setting, metric: str) -> dict[str, Float[Array, "s"]]:
    seeds = {f"{arm} {k}": row for arm, values in setting.values.items() for k, row in enumerate(values[metric])}
    return {**seeds, **{name: values[metric] for name, values in setting.others.items()}}


def described(done: Iterable[str]) -> str:
    """One line per arm: its key and what it is."""
    found = [arm for arm in ARMS if arm.key in set(done)]
    width = max(len(arm.key) for arm in found)
    return "\n".join(f"{arm.key:{width}}  {arm.what}" for arm in found)


def report(settings: Sequence[Setting], fixed: Sequence[str]) -> str:
    """The whole report as text: all tables and sentences."""
    done = settings[0].values
    answers = [setting.answers() for setting in settings]
    asked = [f"{question} {each[question]}" for question in QUESTIONS.values() for each in answers if question in each]
    parts = ["\n".join(fixed), described(done), "\n".join(asked)]
    for setting in settings:
        parts.append("\n".join([f"{setting.name}, {len(setting.scenes)} scenes", setting.table(), *setting.sentences()]))
        parts += [f"{title}\n{aligned(lines)}" for title, lines in setting.tables().items()]
    return "\n\n".join(parts)
