"""Agreement of two tokenizers: how often they assign equal codes to the same keyframes, and how much information their codes share, per level.

A world model can use another tokenizer's tokens only if the indices are equal. Mutual information is a weaker measure: it is high if the codes of one
predict those of the other under any renaming. Two good tokenizers trained separately share information but no indices.

Shapes: T keyframes, n codes per keyframe.
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
    """One level of codes. `equal`: fraction of equal indices. `chance`: expected fraction for independent codes with the same frequencies.

    `information`: normalised mutual information (see `mutual_information`), corrected for chance by a shuffle: 0 for independent, 1 for equivalent
    codes. `codes`: number of compared codes.
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
    """Mutual information of two paired label lists divided by the geometric mean of their entropies, 0..1; 0 if one list is constant."""
    joint = a.astype(np.int64) * (int(b.max()) + 1) + b
    alone = entropy(np.bincount(a)), entropy(np.bincount(b))
    if min(alone) == 0:
        return 0.0
    return (sum(alone) - entropy(np.unique(joint, return_counts=True)[1])) / float(np.sqrt(alone[0] * alone[1]))


def agreement(a: Int[Array, "T n"], b: Int[Array, "T n"], level_cells: Sequence[int], levels: Sequence[str] = ()) -> tuple[Agreement, ...]:
    """Compare the codes of T keyframes level by level. `level_cells`: number of cells of every level, in the order of the codes.

    With few codes and a large codebook, unrelated lists seem to share information. So the mutual information with a fixed shuffle is subtracted.

    Raises:
        DataError: if the two arrays do not have the same keyframes and levels.
    """
    if a.shape != b.shape or a.shape[1] != sum(level_cells):
        raise DataError(
            f"expected codes of the same keyframes and levels; found {a.shape} and {b.shape} for levels of {list(level_cells)} cells."
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
