"""Small hand-made cases for the tests of scores: straight paths and few boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from iidrive.scoring.cases import Cases


def along(direction: tuple[float, float], step_m: float = 2.5) -> np.ndarray:
    """Six positions on a line from the origin, (6,2)."""
    return (np.arange(1, 7)[:, None] * step_m * np.asarray(direction)).astype(np.float32)


def make_cases(
    paths: Sequence[np.ndarray], boxes: Sequence[tuple[int, int, tuple[float, ...]]] = (), masks: list[int] | None = None
) -> Cases:
    """Cases with the given true paths, `boxes` as (sample, step 0..6, seven numbers), `masks` the number of future keyframes."""
    n, m = len(paths), len(boxes)
    position = np.concatenate([np.zeros((n, 1, 2)), np.reshape(paths, (n, 6, 2))], axis=1)
    return Cases(
        gt_ego_fut_offsets=np.diff(position, axis=1).astype(np.float32),
        gt_ego_fut_masks=np.arange(6) < np.array(masks or [6] * n)[:, None],
        class_names=("vehicle.car", "human.pedestrian.adult"),
        box_case=np.array([b[0] for b in boxes], np.int32),
        box_t=np.array([b[1] for b in boxes], np.int8),
        box_agent=np.arange(m, dtype=np.int32),
        box_label=np.zeros(m, np.int8),
        box_valid=np.ones(m, bool),
        box=np.array([b[2] for b in boxes], np.float64).reshape(m, 7),
        token=tuple(f"sample{i}" for i in range(n)),
    )


def random_cases(seed: int, n: int, boxes_per_step: int, spread_m: float = 15.0) -> tuple[Cases, np.ndarray]:
    """Random gently turning paths among random boxes, and plans near the paths."""
    rng = np.random.default_rng(seed)
    heading = np.pi / 2 + np.cumsum(rng.normal(0, 0.1, (n, 6)), axis=1)
    offsets = rng.uniform(0, 5, (n, 1, 1)) * np.stack([np.cos(heading), np.sin(heading)], -1)
    paths = np.cumsum(offsets, axis=1)
    m = n * 7 * boxes_per_step
    box = np.column_stack(
        [
            rng.uniform(-spread_m, spread_m, (m, 2)),
            np.zeros(m),
            rng.uniform(0.3, 8, m),
            rng.uniform(0.3, 3, m),
            np.ones(m),
            rng.uniform(-4, 4, m),
        ]
    )
    cases = make_cases(list(paths), masks=[int(k) for k in rng.integers(4, 7, n)])
    cases = replace(
        cases,
        box_case=np.repeat(np.arange(n, dtype=np.int32), 7 * boxes_per_step),
        box_t=np.tile(np.repeat(np.arange(7, dtype=np.int8), boxes_per_step), n),
        box_agent=np.tile(np.arange(boxes_per_step, dtype=np.int32), 7 * n),
        box_label=rng.integers(0, 2, m).astype(np.int8),
        box_valid=rng.random(m) < 0.9,
        box=box,
    )
    return cases, (paths + rng.normal(0, 0.5, paths.shape)).astype(np.float32)


def reordered(cases: Cases, order: np.ndarray) -> Cases:
    """The same samples in another order."""
    new_row = np.argsort(order)
    return replace(
        cases,
        gt_ego_fut_offsets=cases.gt_ego_fut_offsets[order],
        gt_ego_fut_masks=cases.gt_ego_fut_masks[order],
        box_case=new_row[cases.box_case].astype(np.int32),
        token=tuple(cases.token[i] for i in order),
    )
