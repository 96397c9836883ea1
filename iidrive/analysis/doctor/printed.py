"""Printed tables parsed from logs, notes, papers and READMEs: the public interface of the readers.

`readers/` parses the printed forms, `interpret` assigns cells to quantities and times, `typed` converts units, `protocol` recognises the evaluator,
and `decode` recovers the counts.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from iidrive.analysis.doctor.assemble import Reading, read
from iidrive.analysis.doctor.decode import Decoded, decode
from iidrive.analysis.doctor.readers.lines import read_text
from iidrive.analysis.doctor.readers.names import quantity
from iidrive.analysis.doctor.table import RATES, ROWS, WEIGHTS, Row, Table
from iidrive.core.errors import DataError
from iidrive.core.text import printable

__all__ = ["RATES", "ROWS", "WEIGHTS", "Decoded", "Row", "Table", "decode", "is_log", "parse_tables", "read_tables", "read_text"]


def parse_tables(text: str, where: str = "text") -> list[Table]:
    """Every printed table of a text, numbered from 1 in order of appearance."""
    return list(read(text, where).tables)


def read_tables(path: str | Path) -> list[Table]:
    """Every table of a text file; `FILE#2` selects the second one.

    Raises:
        DataError: if the file cannot be read or has no table. The message names text that looked like a table.
    """
    name, _, which = str(path).rpartition("#")
    if not (name and which.isascii() and which.isdigit() and len(which) < 10) or Path(path).exists():
        name, which = str(path), ""
    reading = read(read_text(name), name)
    if not reading.tables:
        raise DataError(f"{name}: {_nothing(reading)}")
    if which and not 1 <= int(which) <= len(reading.tables):
        raise DataError(f"{name}: there is no table {which}; the file has {len(reading.tables)}.")
    tables = list(reading.tables)
    if reading.unread:
        tables[0] = replace(tables[0], unread=(*tables[0].unread, *(f"elsewhere, {line}" for line in reading.unread)))
    return [tables[int(which) - 1]] if which else tables


def is_log(path: str | Path) -> bool:
    """Whether a JSON file holds no paths but a training log in lines, as mmcv's `*.log.json` and mmengine's `scalars.json` do, or metrics."""
    if Path(path).suffix != ".json" or not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(65536).decode("utf-8", errors="replace")
    for line in (start, *start.split("\n")[:8]):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and (record.keys() & {"mode", "epoch", "iter", "step", "lr"} or _is_metrics(record)):
            return True
    return False


def _is_metrics(record: dict[str, Any]) -> bool:
    """Whether a JSON object holds errors and rates, such as `{"L2_1s": 0.3}`, and beside them nothing long enough for paths."""
    return any(map(quantity, record)) and all(quantity(name) or not isinstance(value, dict | list) for name, value in record.items())


def _nothing(reading: Reading) -> str:
    if reading.unread:
        return f"no readable table found; {printable('; '.join(reading.unread[:3]), 300)}. Include the header with the times."
    return (
        "no table found. Expected rows 'obj_col', 'obj_box_col' and 'L2' with six numbers and an average, as `iidrive score` and SparseDrive's "
        "evaluator print them, or another form of docs/doctor.md."
    )
