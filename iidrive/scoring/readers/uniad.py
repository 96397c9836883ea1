"""UniAD's results: `bbox_results`, a list of rows with `token` and `planning_traj` (1,6,2), or only these rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iidrive.core.errors import DataError
from iidrive.scoring.readers.listed_rows import token_key
from iidrive.scoring.readers.rows import Rows, keys_of, named, what


def is_uniad(value: Any) -> bool:
    """Whether a value is UniAD's results, with `bbox_results` or as rows."""
    if isinstance(value, dict):
        return "bbox_results" in value
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], dict) and "planning_traj" in value[0]


def read_uniad(value: Any, where: str) -> Rows:
    """The paths of UniAD's results. Raises DataError for rows without a planned path, and as `rows.named`."""
    rows: Sequence[Any] = value["bbox_results"] if isinstance(value, dict) else value
    if not isinstance(rows, list | tuple):
        raise DataError(f"{where}: UniAD's results, but `bbox_results` must be a list of rows; found {what(rows)}.")
    pairs = []
    for i, row in enumerate(rows):
        key = token_key(row) if isinstance(row, dict) else ""
        if not key:
            raise DataError(f"{where}: UniAD's results, but row {i} has no token; write them again.")
        pairs.append((row[key], row))
    return named(pairs, "UniAD's results", where, _path)


def _path(row: dict[str, Any]) -> Any:
    inner = row.get("planning")
    inner = inner.get("result_planning") if isinstance(inner, dict) else None
    if "planning_traj" not in row and isinstance(inner, dict) and "sdc_traj" in inner:  # as its model returns it
        return inner["sdc_traj"]
    if "planning_traj" not in row:
        raise DataError(f"a row has no planning_traj; found {keys_of(row)}; was UniAD run without planning?")
    return row["planning_traj"]
