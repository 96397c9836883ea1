"""Text tables, compared character by character."""

from __future__ import annotations

import pytest

from iidrive.core.text import aligned, ruled, text_row


def test_rows_keep_their_columns() -> None:
    assert text_row(["name", "1", "22"], (6, 3, 4)) == "name    1  22"
    assert text_row(["a long name", "1"], (6, 3)) == "a long name  1"
    with pytest.raises(ValueError, match="zip"):
        text_row(["name", "1"], (6,))


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert aligned([["planner", "L2"], ["a", "0.25"], ["b", "10.00"]]) == "planner     L2\na         0.25\nb        10.00"


def test_ruled_tables() -> None:
    assert ruled([["", "x"], ["ab", "1"]]) == "+----+---+\n|    | x |\n+----+---+\n| ab | 1 |\n+----+---+"
    assert ruled([["h"], ["abc"]], str.rjust) == "+-----+\n|   h |\n+-----+\n| abc |\n+-----+"
