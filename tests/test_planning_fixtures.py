"""Every planning protocol compared with the outputs of its public evaluator on 400 cases: decisions, distances, images, scores, text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import fill
from public import aggregates, outputs, protocols

from iidrive.scoring.cases import Cases, read_cases
from iidrive.scoring.planning import bevplanner, stp3, uniad
from iidrive.scoring.planning.setting import VEHICLES, of_classes, prepare
from iidrive.scoring.protocols import PROTOCOLS
from iidrive.scoring.score import Scores, per_sample, score_all
from iidrive.scoring.tables import format_table, format_together

PREFIXES = {name: row.prefix or name for name, row in PROTOCOLS.items()}


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return protocols(shared)


@pytest.fixture(scope="module")
def cases(folder: Path) -> Cases:
    return read_cases(folder / "inputs.npz")


@pytest.fixture(scope="module")
def expected(shared: Path) -> dict[str, np.ndarray]:
    return outputs(shared, "planning")


@pytest.fixture(scope="module")
def scores(cases: Cases) -> dict[str, Scores]:
    assert cases.pred is not None
    return {one.protocol: one for one in score_all(cases, cases.pred, list(PROTOCOLS))}


@pytest.fixture(scope="module")
def aggregate(shared: Path) -> dict[str, Any]:
    return aggregates(shared, "planning")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_every_array_of_the_evaluator(name: str, scores: dict[str, Scores], expected: dict[str, np.ndarray]) -> None:
    found = per_sample(scores[name])
    np.testing.assert_array_equal(found["evaluated_full_future"], expected["evaluated_full_future"])
    skip = ("seg_packed", "gt_pred_ego_xy", "norange")
    keys = [k for k in expected if k.startswith(PREFIXES[name] + "_") and (name == "occworld" or not any(s in k for s in skip))]
    assert len(keys) >= 2
    for key in keys:
        assert found[key].dtype == expected[key].dtype, key
        if "L2" in key or "yaw" in key:
            np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=1e-5, err_msg=key)
        else:
            np.testing.assert_array_equal(found[key], expected[key], err_msg=key)


@pytest.mark.parametrize("name", [n for n in PROTOCOLS if n not in ("sparsedrive", "uniad")])
def test_every_average_of_the_evaluators_with_horizons(name: str, scores: dict[str, Scores], aggregate: dict[str, Any]) -> None:
    theirs = aggregate[name]
    assert scores[name].n_scored == theirs["N"]
    for row, columns in scores[name].columns.items():
        own = [theirs.get(f"plan_{row}_{h}s", theirs.get(f"{row}_{h}s")) for h in (1, 2, 3)]
        if row == "L2":
            np.testing.assert_allclose(columns, own, rtol=2e-7, err_msg=row)
        else:
            np.testing.assert_array_equal(columns, own, err_msg=row)


def test_uniads_values_and_print(scores: dict[str, Scores], aggregate: dict[str, Any]) -> None:
    theirs, mine = aggregate["uniad"], scores["uniad"]
    assert (mine.n_scored, mine.n_skipped) == (theirs["N"], 0)
    for row, columns in mine.columns.items():
        np.testing.assert_allclose(columns, theirs["per_step"][row], rtol=2e-7 if row == "L2" else 0, err_msg=row)
        printed = next(line for line in format_table(mine).splitlines() if line.split()[1:2] == [row])
        assert printed.replace("|", " ").split()[1:] == theirs["printed_uniad"][row]


@pytest.mark.slow
def test_uniads_images(cases: Cases, expected: dict[str, np.ndarray]) -> None:
    row = np.flatnonzero((cases.box_t > 0) & of_classes(cases, VEHICLES)[cases.box_label])
    step = cases.box_case[row].astype(np.int64) * 6 + cases.box_t[row] - 1
    found = fill(uniad.corners(cases.box[row]), step, len(cases) * 6, uniad.CELLS)
    images = np.unpackbits(expected["uniad_seg_packed"], axis=-1).reshape(found.shape)
    assert images.any()
    np.testing.assert_array_equal(found, images)


@pytest.mark.slow
def test_stp3s_warped_images(cases: Cases, expected: dict[str, np.ndarray]) -> None:
    row = stp3.obstacles(cases)
    step = cases.box_case[row].astype(np.int64) * 6 + cases.box_t[row] - 1
    drawn = fill(stp3.own_corners(cases, row), step, len(cases) * 6, uniad.CELLS)
    cell = np.stack(np.meshgrid(np.arange(200.0), np.arange(200.0), indexing="ij"), -1).reshape(-1, 2)
    assert cases.ego_pose is not None
    for i in np.flatnonzero(cases.full)[::9]:
        source = stp3.warped(np.broadcast_to(cell, (1, 6, len(cell), 2)), cases.ego_pose[i : i + 1])[0].astype(np.int64)
        inside = ((source >= 0) & (source < 200)).all(axis=-1)
        source = np.clip(source, 0, 199)
        found = np.stack([drawn[6 * i + t][source[t, :, 0], source[t, :, 1]] for t in range(6)]) & inside
        np.testing.assert_array_equal(found, np.unpackbits(expected["stp3_seg_packed"][i], axis=-1).reshape(found.shape))


@pytest.mark.slow
def test_bevplanners_paths(cases: Cases, expected: dict[str, np.ndarray]) -> None:
    assert cases.pred is not None
    for k, found in enumerate(bevplanner.paths(prepare(cases, cases.pred))):
        np.testing.assert_array_equal(found[cases.full], expected["bevplanner_gt_pred_ego_xy"][cases.full, k])


def test_side_by_side(scores: dict[str, Scores]) -> None:
    text = format_together(list(scores.values())).splitlines()
    assert text[3].split("|")[1:4] == [" sparsedrive ", " 360 ", "   0.6181  "]
    for name in PROTOCOLS:
        assert name in text
    assert sum(line.startswith("  obstacles ") for line in text) == len(PROTOCOLS)
