"""SparseDrive's results.pkl: rows of `{"img_bbox": {"final_planning": path}}` in the order of the data set, without tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from iidrive.core.errors import DataError
from iidrive.scoring.readers.rows import Rows, keys_of, unnamed, what


def is_sparsedrive(value: Any) -> bool:
    """Whether a value is a list of dicts. This is the last format tried for such lists."""
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], dict)


def read_sparsedrive(value: Sequence[Any], where: str) -> Rows:
    """The paths of SparseDrive's results. Raises DataError for rows without a planned path, and as `rows.unnamed`."""
    paths = [_final_planning(row, i, where) for i, row in enumerate(value)]
    return unnamed(paths, "SparseDrive's results", where)


def _final_planning(row: Any, i: int, where: str) -> Any:
    inner = row.get("img_bbox", row) if isinstance(row, dict) else row
    if not isinstance(inner, dict) or "final_planning" not in inner:
        holder = inner if isinstance(inner, dict) else row
        found = keys_of(holder) if isinstance(holder, dict) else what(holder)
        raise DataError(
            f"{where}: row {i} has neither a token nor img_bbox.final_planning; found {found}; was it written without planning?"
        )
    return inner["final_planning"]
