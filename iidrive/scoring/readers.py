"""Planned paths from the files that people have: what a file is, is told by its content.

- npz of iidrive (`token`, `trajectory`, `frame`, `reference`), or with one (6,2) array under each sample token;
- pickle or JSON: `{token: path}`, or a list of `{"token": …, "trajectory": path}`;
- SparseDrive's results.pkl: a list of `{"img_bbox": {"final_planning": path}}` in the order of its data set, without tokens;
- pickle, JSON or npy with n paths and no tokens.

A path is (6,2): positions of LIDAR_TOP in the lidar frame of the sample's keyframe (x right, y forward), metres, 0.5 to 3.0 s ahead.
Files without tokens are joined through a list of tokens, or by row to cases that have none either.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from iidrive.core.errors import ConfigError, DataError
from iidrive.core.scene import FUTURE_STEPS
from iidrive.scoring import npz, plain_pickle
from iidrive.scoring.cases import Predictions, read_predictions

Array = np.ndarray

_OWN_KEYS = frozenset({"trajectory", "pred", "token", "frame", "reference"})
_KINDS = "Readable: npz, npy, pickle and JSON (docs/score-your-planner.md says what must be in them)."
_SHAPE = f"({FUTURE_STEPS}, 2)"


@dataclass(frozen=True)
class Found:
    """What was read. `trusted`: what was joined by position, empty if nothing was. `assumed`: what the file does not say of itself."""

    predictions: Predictions
    trusted: str = ""
    assumed: str = ""


def read_paths(path: str | Path, tokens: str | Path = "") -> Found:
    """Read planned paths of any kind that the module's docstring lists; `tokens` names the rows of a file that carries no tokens.

    Raises:
        DataError: one sentence naming the file, if it is missing, damaged, of another kind, unsafe, or fails a check of `Predictions`.
        ConfigError: if `tokens` is given for a file that carries its own.
    """
    read, stated = _read(Path(path))
    assumed = "" if stated else f"{path} does not say its frame: x right, y forward, LIDAR_TOP's origin is taken for granted."
    if not tokens:
        return Found(read, assumed=assumed)
    if read.token is not None:
        raise ConfigError(f"{path} carries its own sample tokens: leave out --tokens.")
    names = read_tokens(tokens)
    if len(names) != len(read):
        raise DataError(f"{path}: {len(read)} paths, but {tokens} names {len(names)} samples; give the list of the set that was predicted.")
    trusted = (
        f"{path} carries no sample tokens. Its {len(read)} rows were joined to those of {tokens} by position, which nothing can check: "
        "a list in another order gives wrong scores."
    )
    return Found(replace(read, token=names), trusted, assumed)


def is_paths(path: str | Path) -> bool:
    """Whether a file is of a kind that holds planned paths (or is named like one), rather than a text."""
    path = Path(path)
    if path.suffix in (".npz", ".npy", ".pkl", ".pickle", ".json"):
        return True
    if not path.is_file():
        return False
    start = _bytes(path, 64)
    if start.startswith((b"PK", b"\x93NUMPY", b"\x80")):
        return True
    if _without_mark(start)[:1] not in (b"{", b"["):
        return False
    try:  # logs begin with a bracket too
        json.loads(_bytes(path))
    except (ValueError, RecursionError):
        return False
    return True


def read_tokens(path: str | Path) -> tuple[str, ...]:
    """Sample tokens in order: a JSON list of text, or a text file with one token a line.

    Raises:
        DataError: naming the file, if it is missing, holds anything else, is empty, or names a sample twice.
    """
    where = str(path)
    text = _text(_bytes(Path(path)), where)
    if text.lstrip().startswith(("[", "{")):
        found = _json(text, where)
        if not isinstance(found, list):
            raise DataError(f"{where}: a list of tokens must be a JSON list of text; found {_what(found)}.")
    else:
        found = text.splitlines()
    names = tuple(_name(token, i, where) for i, token in enumerate(found))
    if not names:
        raise DataError(f"{where}: no tokens in it; write one sample token a line.")
    again = npz.repeated(names)
    if again:
        raise DataError(f"{where}: a sample may be listed only once; repeated: {npz.few(again)}.")
    return names


def _read(path: Path) -> tuple[Predictions, bool]:
    """The paths, and whether the file states their frame."""
    where, start = str(path), _bytes(path, 64)
    if not start:
        raise DataError(f"{where}: the file is empty; write it again.")
    if start.startswith(b"PK") or path.suffix == ".npz":
        return _archive(path)
    if start.startswith(b"\x93NUMPY"):
        return _unnamed(_npy(path), where), False
    if _without_mark(start)[:1] in (b"{", b"[") or path.suffix == ".json":
        return _plain(_json(_text(_bytes(path), where), where), where), False
    if start.startswith(b"\x80") or path.suffix in (".pkl", ".pickle"):
        return _plain(plain_pickle.load(path), where), False
    raise DataError(f"{where}: not a kind of file that is read here. {_KINDS}")


def _archive(path: Path) -> tuple[Predictions, bool]:
    where = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return read_predictions(path), True  # Says what is wrong with it.
    if any(name.endswith("data.pkl") for name in members):
        raise DataError(f"{where}: a file of torch.save, which is not read here; write JSON: json.dump({{token: path.tolist()}}, file).")
    names = [name.removesuffix(".npy") for name in members]
    again = npz.repeated(names)
    if again:
        raise DataError(f"{where}: an array may stand only once; repeated: {npz.few(again, 'name')}; write the file again.")
    if _OWN_KEYS & set(names):
        return read_predictions(path), "frame" in names
    return _table(npz.read_npz(path, names)[0].items(), where), False


def _npy(path: Path) -> Array:
    try:
        return np.load(path, allow_pickle=False)
    except Exception as error:  # A damaged header can fail in any way.
        said = "it holds pickled objects, which can run code" if "allow_pickle" in str(error) else " ".join(str(error).split())
        raise DataError(f"{path}: not a readable npy file ({said}); save a plain array of shape (n, 6, 2).") from error


def _plain(value: Any, where: str) -> Predictions:
    """Paths out of dicts, lists and arrays."""
    if isinstance(value, dict):
        return _table(value.items(), where)
    if isinstance(value, (list, tuple)) and value and all(isinstance(row, dict) for row in value):
        if "token" in value[0]:
            return _table(((_entry(row, "token", i, where), _entry(row, "trajectory", i, where)) for i, row in enumerate(value)), where)
        return _unnamed([_final_planning(row, i, where) for i, row in enumerate(value)], where)
    if isinstance(value, (list, tuple)) or hasattr(value, "__array__"):
        return _unnamed(value, where)
    raise DataError(f"{where}: expected paths by sample token, or a list of paths; found {_what(value)}.")


def _final_planning(row: Mapping[str, Any], i: int, where: str) -> Any:
    inner = row.get("img_bbox", row)
    if not isinstance(inner, dict) or "final_planning" not in inner:
        keys = npz.few([str(key) for key in (inner if isinstance(inner, dict) else row)], "key")
        raise DataError(f"{where}: row {i} has neither a token nor img_bbox.final_planning; found {keys}; was it written without planning?")
    return inner["final_planning"]


def _entry(row: Mapping[str, Any], key: str, i: int, where: str) -> Any:
    if key not in row:
        raise DataError(f"{where}: row {i} has no '{key}'; every row needs token and trajectory.")
    return row[key]


def _table(pairs: Iterable[tuple[Any, Any]], where: str) -> Predictions:
    names, paths = [], []
    for i, (token, value) in enumerate(pairs):
        names.append(_name(token, i, where))
        paths.append(_path(value, f"sample {names[-1]}", where))
    return _joined(paths, tuple(names), where)


def _unnamed(rows: Any, where: str) -> Predictions:
    if hasattr(rows, "__array__"):
        rows = _values(rows, "the array", where)
        if rows.ndim != 3:
            raise DataError(f"{where}: an array of paths must have shape (n, {FUTURE_STEPS}, 2); found {rows.shape}.")
    return _joined([_path(value, f"row {i}", where) for i, value in enumerate(rows)], None, where)


def _joined(paths: Sequence[Array], names: tuple[str, ...] | None, where: str) -> Predictions:
    if not paths:
        raise DataError(f"{where}: no paths in it; predict every sample with a full future.")
    return Predictions(np.stack(paths), names, where=where)


def _path(value: Any, whose: str, where: str) -> Float32[Array, "6 2"]:
    found = _values(value, f"the path of {whose}", where)
    if found.shape != (FUTURE_STEPS, 2):
        raise DataError(f"{where}: the path of {whose} must have shape {_SHAPE}, x and y at 0.5 to 3.0 s; found {found.shape}.")
    return npz.numbers(found, np.float32, found.shape, f"the path of {whose}", where)


def _values(value: Any, what: str, where: str) -> Array:
    try:
        found = np.asarray(value)
    except DataError as error:
        raise DataError(f"{where}: {what} cannot be read: {error}; write the file again.") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{where}: {what} is not an array of numbers of shape {_SHAPE}: its rows differ in length.") from error
    if found.dtype.kind not in "fiub":
        raise DataError(f"{where}: {what} must hold numbers in shape {_SHAPE}; found {_what(value)}.")
    return found


def _name(token: Any, i: int, where: str) -> str:
    if not isinstance(token, str):
        raise DataError(f"{where}: a sample token must be text; found {_what(token)} in row {i}.")
    if not token or not token.isprintable() or token != token.strip():
        raise DataError(f"{where}: a sample token must be text without blanks around it or control characters; found {token!r} in row {i}.")
    return token


def _bytes(path: Path, count: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. {_KINDS}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _without_mark(start: bytes) -> bytes:
    return start.lstrip(b"\xef\xbb\xbf \t\r\n")


def _text(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not text in UTF-8 ({error.reason} at byte {error.start}); write it again.") from error


def _json(text: str, where: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        again = npz.repeated([key for key, _ in pairs])
        if again:
            raise DataError(
                f"{where}: a sample may be predicted only once; repeated: {npz.few(again, 'name')}; was the output merged twice?"
            )
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not readable as JSON ({error}); write it again.") from error


def _what(value: object) -> str:
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return "nothing (null)" if value is None else f"{type(value).__name__.lstrip('_').lower()}"
