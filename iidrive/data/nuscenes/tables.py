"""Streaming reader of nuScenes tables (one JSON array of records per file). Errors name the file and the record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from iidrive.core.errors import DataError
from iidrive.core.text import printable
from iidrive.core.untrusted.json_text import all_numbers

Array = np.ndarray
Record = Mapping[str, Any]

TABLES = (
    "scene",
    "sample",
    "sample_data",
    "ego_pose",
    "calibrated_sensor",
    "sensor",
    "sample_annotation",
    "instance",
    "category",
    "log",
)
"""The tables that are read; the official folder holds three more (attribute, visibility, map)."""

_CHUNK = 1 << 22
_LONGEST_RECORD = 1 << 20
_BETWEEN = " \t\r\n,"


def table_file(folder: Path, table: str) -> Path:
    """Path of a table in a version folder.

    Raises:
        DataError: if there is no such file.
    """
    path = folder / f"{table}.json"
    if not path.is_file():
        raise DataError(f"{path} is missing; a nuScenes version folder holds {', '.join(t + '.json' for t in TABLES)}. Unpack it again.")
    return path


def records(path: Path) -> Iterator[Record]:
    """Iterate over the records of a table, in file order.

    Reads in chunks, because sample_data.json of v1.0-trainval is larger than 1 GB and few of its records are needed.

    Raises:
        DataError: naming the file, if it is not a complete JSON array of objects.
    """
    decode = json.JSONDecoder().raw_decode
    count = 0
    try:
        with path.open(encoding="utf-8") as file:
            buffer = file.read(_CHUNK).lstrip("\ufeff" + _BETWEEN)
            if not buffer.startswith("["):
                raise DataError(f"{path}: expected a JSON array of records; found {printable(repr(buffer[:20]))}. Unpack the table again.")
            at = 1
            while True:
                while at < len(buffer) and buffer[at] in _BETWEEN:
                    at += 1
                if buffer.startswith("]", at):
                    rest = buffer[at + 1 :].strip() or file.read(_CHUNK).strip()
                    if rest:
                        raise DataError(
                            f"{path}: there is text after the array of {count} records ({printable(repr(rest[:20]))}); a table is one array. "
                            "Unpack the table again."
                        )
                    return
                try:
                    record, at = decode(buffer, at)
                except (RecursionError, ValueError) as error:
                    if not isinstance(error, json.JSONDecodeError):
                        raise DataError(
                            f"{path}: record {count} cannot be read ({printable(str(error), 80)}). Unpack the table again."
                        ) from error
                    more = "" if len(buffer) - at > _LONGEST_RECORD else file.read(_CHUNK)
                    if not more:
                        raise DataError(
                            f"{path}: not valid JSON after {count} records ({error.msg}); the file is truncated or damaged. "
                            "Unpack the table again."
                        ) from error
                    buffer, at = buffer[at:] + more, 0
                    continue
                if not isinstance(record, dict):
                    raise DataError(f"{path}: record {count} is {type(record).__name__}, expected an object. Unpack the table again.")
                count += 1
                yield record
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}). Unpack the table again.") from error


def field(path: Path, record: Record, name: str) -> Any:
    """One field of a record.

    Raises:
        DataError: naming the file and the record's token, if the field is missing.
    """
    if name not in record:
        raise DataError(f"{path}: record {_token(record)} has no field '{name}'; it has {printable(', '.join(record), 200)}.")
    return record[name]


def text(path: Path, record: Record, name: str) -> str:
    """One field of a record that must be a string.

    Raises:
        DataError: naming the file and the record's token, if the field is missing, not a string, or holds control characters.
    """
    value = field(path, record, name)
    if not isinstance(value, str) or not value.isprintable():
        raise DataError(
            f"{path}: record {_token(record)} has {name} {printable(value)}; expected a string without control characters. Unpack the table again."
        )
    return value


def file_name(path: Path, record: Record, name: str) -> str:
    """As `text`, for values that name a folder or a file, as scenes and samples do in folders of labels.

    Raises:
        DataError: also if the value is empty, `.`, `..`, or contains `/` or a backslash.
    """
    value = text(path, record, name)
    if value in ("", ".", "..") or "/" in value or "\\" in value:
        raise DataError(
            f"{path}: record {_token(record)} has {name} '{printable(value)}'; expected the name of a folder or a file. Unpack the table again."
        )
    return value


def _token(record: Record) -> str:
    return printable(record.get("token", "?"))


def whole(path: Path, token: str, name: str, value: Any, most: int) -> int:
    """Check that a field's value is an integer from 0 to `most`. Raises DataError, naming the file and the record."""
    if type(value) is not int or not 0 <= value <= most:
        raise DataError(f"{path}: record {printable(token)} has {name} {printable(value)}; expected an integer from 0 to {most}.")
    return value


def by_token(path: Path, *names: str) -> dict[str, tuple[Any, ...]]:
    """Read a table as token → values of the named fields.

    Raises:
        DataError: if a token is repeated.
    """
    out: dict[str, tuple[Any, ...]] = {}
    for record in records(path):
        token = text(path, record, "token")
        if token in out:
            raise DataError(f"{path}: token {printable(token)} appears twice. Unpack the table again.")
        out[token] = tuple(field(path, record, name) for name in names)
    return out


def follow(path: Path, token: str, name: str, target: str, known: Mapping[str, Any]) -> Any:
    """Look up a reference: `known[target]`, where `target` is the field `name` of record `token` in `path`.

    Raises:
        DataError: if `target` is not in `known`.
    """
    if not isinstance(target, str) or target not in known:
        where = path.stem if name in ("prev", "next") else name.removesuffix("_token").removeprefix("first_").removeprefix("last_")
        raise DataError(
            f"{path}: record {printable(token)} points to {name} '{printable(target)}', which is not in {where}.json. "
            "The tables are from different archives; unpack them again from one archive."
        )
    return known[target]


def numbers(path: Path, tokens: Sequence[str], name: str, values: Sequence[Any], width: int, most: float = 1e7) -> Float[Array, "n width"]:
    """One vector field of many records, as a float64 array.

    Raises:
        DataError: naming the first record whose value is not `width` finite numbers of at most `most` in size.
    """
    try:
        out = np.array(values, dtype=np.float64).reshape(-1, width) if len(values) else np.zeros((0, width))
        good = len(out) == len(values) and bool(np.isfinite(out).all()) and all_numbers(values)
    except (TypeError, ValueError, OverflowError):
        out, good = np.zeros((0, width)), False
    if good:
        far = (np.abs(out) > most).any(axis=1)
        if far.any():
            i = int(np.argmax(far))
            raise DataError(
                f"{path}: record {printable(tokens[i])} has {name} {printable(values[i])}; expected numbers of at most {most:g} in size "
                f"({int(far.sum())} such records). Repair or drop the record."
            )
        return out
    for token, value in zip(tokens, values, strict=True):
        is_list = isinstance(value, list) and len(value) == width
        if not is_list or not all_numbers([value]) or not all(abs(v) <= 1e300 for v in value):
            raise DataError(
                f"{path}: record {printable(token)} has {name} {printable(value)}; expected {width} finite numbers. Repair or drop the record."
            )
    raise DataError(f"{path}: {name} is not {width} finite numbers in every record.")


def quaternions(path: Path, tokens: Sequence[str], values: Sequence[Any]) -> Float[Array, "n 4"]:
    """Rotations (w, x, y, z) of many records, normalised.

    Raises:
        DataError: naming the first record whose value is not a unit quaternion.
    """
    out = numbers(path, tokens, "rotation", values, 4)
    norm = np.linalg.norm(out, axis=1)
    bad = np.abs(norm - 1) > 1e-3
    if bad.any():
        i = int(np.argmax(bad))
        raise DataError(
            f"{path}: record {tokens[i]} has rotation {out[i].tolist()} of norm {norm[i]:.4f}; expected a unit quaternion (w, x, y, z)."
        )
    return out / norm[:, None]
