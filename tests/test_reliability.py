"""Calibration counts: by hand, added from parts, and without cells."""

from __future__ import annotations

import numpy as np
import pytest

from iidrive.scoring.reliability import EDGES, Reliability


def test_cells_are_binned_by_predicted_probability() -> None:
    told = np.array([0.0, 0.01, 0.25, 0.29, 1.0, 0.95]).reshape(1, 1, 2, 3)
    taken = np.array([False, False, True, False, True, True]).reshape(1, 1, 2, 3)
    found = Reliability.of(told, taken)
    cells = dict(zip(EDGES[:-1].tolist(), found.cells[0].tolist(), strict=True))
    assert {edge: n for edge, n in cells.items() if n} == {0.0: 2, 0.2: 2, 0.9: 2}
    assert found.taken[0].sum() == 3
    # |0.01 - 0| + |0.54 - 1| + |1.95 - 2| over six cells
    assert found.error()[0] == pytest.approx((0.01 + 0.46 + 0.05) / 6)
    assert found.share_taken()[0] == pytest.approx(0.5)


def test_only_cells_within_count_and_parts_add_up() -> None:
    rng = np.random.default_rng(0)
    told, taken = rng.random((4, 3, 5, 6)), rng.random((4, 3, 5, 6)) < 0.4
    within = rng.random((4, 5, 6)) < 0.5
    whole = Reliability.of(told, taken, within)
    assert whole.cells.sum(1).tolist() == [within.sum()] * 3
    parts = Reliability.of(told[:1], taken[:1], within[:1]) + Reliability.of(told[1:], taken[1:], within[1:]) + Reliability.zero(3)
    assert (parts.cells == whole.cells).all()
    assert (parts.taken == whole.taken).all()
    assert np.allclose(parts.expected, whole.expected)
    outside = Reliability.of(told, taken, ~within)
    assert ((whole + outside).cells == Reliability.of(told, taken).cells).all()


def test_a_calibrated_forecaster_has_a_small_error_and_an_overconfident_one_has_not() -> None:
    rng = np.random.default_rng(1)
    told = rng.random((1, 1, 300, 300))
    taken = rng.random(told.shape) < told
    assert Reliability.of(told, taken).error()[0] < 0.01
    assert Reliability.of((told > 0.5).astype(float), taken).error()[0] > 0.2


def test_without_cells_the_error_is_nan() -> None:
    found = Reliability.of(np.zeros((1, 2, 3, 3)), np.zeros((1, 2, 3, 3), bool), np.zeros((1, 3, 3), bool))
    assert np.isnan(found.error()).all()
    assert found.to_json()["error"] == [None, None]
    assert found.to_json()["share_taken"] == [None, None]
