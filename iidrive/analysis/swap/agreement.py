"""Do two tokenizers give the same keyframes the same codes? Per level of the codes, from two arrays of indices of the same frames.

Equal indices are what a world model that is handed the other tokenizer's tokens would need. Mutual information asks something weaker: whether
the codes of one say anything about those of the other, under whatever renaming. Two good tokenizers trained apart share information and no indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int

from iidrive.core.errors import DataError

Array = np.ndarray


@dataclass(frozen=True)
class Agreement:
    """One level: `equal` share of equal indices and `chance`, the share that the two frequencies of codes alone would give.

    `information` is the mutual information over the geometric mean of the two entropies, above what shuffled codes share: 0 nothing, 1 all.
    """

    level: str
    codes: int
    equal: float
    chance: float
    information: float


def entropy(counts: Int[Array, "n"]) -> float:
    """Entropy of a histogram, nats."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def mutual_information(a: Int[Array, "n"], b: Int[Array, "n"]) -> float:
    """Mutual information of two paired label lists over the geometric mean of their entropies, 0..1; 0 where one of them never changes."""
    joint = a.astype(np.int64) * (int(b.max()) + 1) + b
    alone = entropy(np.bincount(a)), entropy(np.bincount(b))
    if min(alone) == 0:
        return 0.0
    return (sum(alone) - entropy(np.unique(joint, return_counts=True)[1])) / float(np.sqrt(alone[0] * alone[1]))


def agreement(a: Int[Array, "T n"], b: Int[Array, "T n"], level_cells: Sequence[int], levels: Sequence[str] = ()) -> tuple[Agreement, ...]:
    """Compare the codes of T keyframes level by level; `level_cells` are the cells of every level, in the order of the codes.

    With few codes and a large codebook two unrelated lists seem to share information; what a fixed shuffle shares is taken off.

    Raises:
        DataError: if the two do not have the same keyframes and levels.
    """
    if a.shape != b.shape or a.shape[1] != sum(level_cells):
        raise DataError(
            f"codes of the same keyframes and levels are needed; found {a.shape} and {b.shape} for levels of {list(level_cells)}."
        )
    out = []
    edges = np.cumsum([0, *level_cells])
    for k, (start, end) in enumerate(pairwise(edges.tolist())):
        x, y = a[:, start:end].ravel().astype(np.int64), b[:, start:end].ravel().astype(np.int64)
        size = max(int(x.max()), int(y.max())) + 1
        chance = float((np.bincount(x, minlength=size) / len(x) * (np.bincount(y, minlength=size) / len(y))).sum())
        shuffled = mutual_information(x, np.random.default_rng(0).permutation(y))
        found = mutual_information(x, y)
        above = (found - shuffled) / (1 - shuffled) if shuffled < 1 else 0.0
        out.append(Agreement(levels[k] if levels else str(k + 1), len(x), float((x == y).mean()), chance, above))
    return tuple(out)
