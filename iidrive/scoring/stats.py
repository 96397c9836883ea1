"""Statistical tests of whether two runs differ: paired tests clustered by scene, and a test from event counts alone.

Samples of one scene are correlated, so scenes are the independent units (clusters). Shape letters: s scenes, n samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

Array = np.ndarray

ALPHA = 0.05
"""Significance level: a difference is significant if its corrected p-value is at most this."""
POWER_Z = float(stats.norm.isf(ALPHA / 2) + stats.norm.isf(0.2))
"""Size of a difference, in standard errors, that is detected with 80 % power."""
COUNTS_PER_INCIDENT = 8
"""Number of collision counts treated as one independent incident when only tables are known.

One conflict is counted by several samples of its scene and at several steps of each. In 40 synthetic towns (1360 samples) the variance of the
weighted count over scenes was 6.6 to 8.8 times that of independent counts for three baselines, and 1.9 to 7.0 times for paired differences.
"""
_EXACT_UP_TO = 50_000
_SEED = 20230


@dataclass(frozen=True)
class Test:
    """A mean paired difference: `low`..`high` a 95 % interval, `p` two-sided, `error` its standard error over clusters."""

    difference: float
    low: float
    high: float
    p: float
    error: float


def paired(a: Float[Array, "n"], b: Float[Array, "n"], cluster: Int[Array, "n"], resamples: int = 9999) -> Test:
    """Mean of a - b with a cluster bootstrap interval and a cluster permutation p-value.

    The permutation test swaps a and b within whole clusters; few clusters are enumerated exactly. So with k clusters the smallest possible p
    is 2 / 2^k. The bootstrap resamples clusters. The seed is fixed: equal inputs give equal outputs.
    """
    size = np.bincount(cluster).astype(np.float64)
    sum_a, sum_b = np.bincount(cluster, a), np.bincount(cluster, b)
    n, k = len(a), len(size)
    gap = sum_a - sum_b
    mean = float(gap.sum() / n)
    if not gap.any() or k < 2:
        return Test(mean, mean, mean, 1.0, 0.0 if k > 1 else float("nan"))
    resamples = resamples if k <= 1000 else min(resamples, 1999)
    batch = max(1, 2_000_000 // k)
    permuted = stats.permutation_test(
        (sum_a, sum_b),
        lambda x, y, axis: (x - y).sum(axis=axis) / n,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=batch,
        **_seeded(),
    )
    drawn = stats.bootstrap(
        (gap, size),
        lambda x, m, axis: x.sum(axis=axis) / m.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        method="percentile",
        batch=batch,
        **_seeded(),
    )
    error = float(np.sqrt(((gap - mean * size) ** 2).sum() * k / (k - 1)) / n)
    interval = drawn.confidence_interval
    return Test(mean, float(interval.low), float(interval.high), float(permuted.pvalue), error)


def mean_interval(values: Float[Array, "n"], cluster: Int[Array, "n"], resamples: int = 9999) -> tuple[float, float]:
    """A 95 % interval of the mean by bootstrap over clusters. If all values are equal, or there is one cluster, both ends are the mean.

    The seed is fixed: equal inputs give equal outputs.
    """
    mean, size = float(values.mean()), np.bincount(cluster).astype(np.float64)
    if len(size) < 2 or not (values != values[0]).any():
        return mean, mean
    drawn = stats.bootstrap(
        (np.bincount(cluster, values), size),
        lambda x, m, axis: x.sum(axis=axis) / m.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        method="percentile",
        **_seeded(),
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def ratio_interval(
    count: Float[Array, "n"], amount: Float[Array, "n"], cluster: Int[Array, "n"], resamples: int = 9999
) -> tuple[float, float]:
    """A 95 % interval of sum(count) / sum(amount) by bootstrap over clusters. If all counts are 0, or there is one cluster, both ends are the ratio.

    `amount` is at least 0, and its sum is positive. Resamples whose amounts sum to 0 have no ratio and are ignored. The seed is fixed: equal
    inputs give equal outputs.
    """
    ratio = float(count.sum() / amount.sum())
    counts, amounts = np.bincount(cluster, count), np.bincount(cluster, amount)
    k = len(amounts)
    if k < 2 or not count.any():
        return ratio, ratio
    drawn = np.random.default_rng(_SEED).integers(0, k, (resamples, k))
    above, below = counts[drawn].sum(1), amounts[drawn].sum(1)
    low, high = np.percentile(above[below > 0] / below[below > 0], [2.5, 97.5])
    return float(low), float(high)


def _seeded() -> dict[str, Any]:
    """The random generator, under the argument name that every supported SciPy version accepts."""
    return {"random_state": np.random.default_rng(_SEED)}


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for multiple comparisons by Holm's method, in the given order."""
    order = np.argsort(p, kind="stable")
    out, running = [1.0] * len(p), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        out[i] = running
    return out


def samples_needed(n: int, difference: float, error: float) -> int | None:
    """Number of similar samples needed to detect this difference with 80 % power; None if the difference is 0 or the error unknown."""
    if difference == 0 or not np.isfinite(error) or error == 0:
        return None
    return int(np.ceil(n * (POWER_Z * error / abs(difference)) ** 2))


def counts_differ(a: Sequence[int], b: Sequence[int], weights: Sequence[int], group: int = COUNTS_PER_INCIDENT) -> tuple[float, float]:
    """Two-sided p-value of the difference of two runs' weighted counts, and the standard error of that difference.

    Under the null hypothesis each group of `group` counts of a step (one incident) belongs to either run with probability 1/2. The
    distribution of the weighted difference is computed exactly. The pairing is unknown, which makes the test conservative.
    """
    size: list[int] = []
    for in_a, in_b, weight in zip(a, b, weights, strict=True):
        whole, rest = divmod(in_a + in_b, group)
        size += [group * weight] * whole + ([rest * weight] if rest else [])
    gap = abs(int(np.dot(weights, np.subtract(a, b))))
    total, error = sum(size), float(np.sqrt(np.sum(np.square(np.array(size, np.float64)))))
    if gap == 0 or total == 0:
        return 1.0, error
    if total > _EXACT_UP_TO:
        return float(2 * stats.norm.sf(gap / error)), error
    chance = np.zeros(total + 1)
    chance[0] = 1.0
    for step in size:
        chance[step:] = 0.5 * (chance[step:] + chance[:-step])
        chance[:step] *= 0.5
    return float(min(1.0, chance[np.abs(2 * np.arange(total + 1) - total) >= gap].sum())), error
