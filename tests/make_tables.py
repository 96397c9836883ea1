"""Printed tables for the tests, made from counts and L2 values as an evaluator does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from iidrive.scoring.score import averaged, prefix_means, rate
from iidrive.scoring.tables import NUSCENES_VAL_OBJ_COL, NUSCENES_VAL_SAMPLES

PLAIN_L2 = (0.21, 0.47, 0.80, 1.21, 1.69, 2.25)
"""A healthy planner's L2 at each step, metres."""
PLAIN_EVENTS = (1, 2, 4, 11, 23, 74)


def print_table(
    l2: Sequence[float] = PLAIN_L2,
    hits: Sequence[int] = PLAIN_EVENTS,
    truth: Sequence[int] = NUSCENES_VAL_OBJ_COL,
    n: int = NUSCENES_VAL_SAMPLES,
    tail: bool = True,
) -> str:
    """The table, two summary lines and the dict (`tail`) for L2 at each step and events at each step."""
    columns = {
        "obj_col": prefix_means(rate(np.array(truth), n)),
        "obj_box_col": prefix_means(rate(np.array(hits), n)),
        "L2": prefix_means(np.array(l2, np.float32)),
    }
    average = {name: averaged(value) for name, value in columns.items()}
    rule = "+-------------+" + "--------+" * 7
    out = [rule, "|   metrics   |  0.5s  |  1.0s  |  1.5s  |  2.0s  |  2.5s  |  3.0s  |  avg   |", rule]
    for name, value in columns.items():
        cells = [f"{v:.4f}" if name == "L2" else f"{100 * v:.3f}%" for v in (*value, average[name])]
        out.append(f"| {name:^11} | " + " | ".join(cells) + " |")
    out.append(rule)
    if tail:
        out += [f"obj_box_col: {100 * average['obj_box_col']:.3f}%", f"L2: {average['L2']:.4f}", repr(average)]
    return "\n".join(out)
