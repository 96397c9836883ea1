"""Entry point of the readers: detects the file type and the format of the content, and reports the assumptions made."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iidrive.core.errors import ConfigError, DataError
from iidrive.core.scene import FUTURE_STEPS
from iidrive.core.text import printable_line
from iidrive.core.untrusted import plain_pickle
from iidrive.core.untrusted.files import decode, read_bytes
from iidrive.core.untrusted.json_text import LIMIT, is_json, parse_json
from iidrive.core.untrusted.npz import member_names, read_npy, read_npz
from iidrive.scoring import npz
from iidrive.scoring.predictions import Predictions, read_predictions
from iidrive.scoring.readers.by_token import is_submission, is_table, read_submission, read_table
from iidrive.scoring.readers.columns import is_columns, read_columns
from iidrive.scoring.readers.listed_rows import is_listed, read_listed, token_key
from iidrive.scoring.readers.rows import Rows, named, token_name, unnamed, what
from iidrive.scoring.readers.shapes import numbers
from iidrive.scoring.readers.sparsedrive import is_sparsedrive, read_sparsedrive
from iidrive.scoring.readers.texts import is_texts, read_texts
from iidrive.scoring.readers.uniad import is_uniad, read_uniad
from iidrive.scoring.readers.vad import is_vad, read_vad

_AROUND = ("predictions", "results", "trajectories", "plans", "outputs")
"""Names that people put around all of a file."""
_OWN_KEYS = frozenset({"trajectory", "pred", "token", "frame", "reference"})
_KINDS = "Readable: npz, npy, pickle, torch.save, JSON and JSON lines (docs/score-your-planner.md says what must be in them)."
_SUFFIXES = (".npz", ".npy", ".pkl", ".pickle", ".json", ".jsonl", ".pth", ".pt")
_ARRAYS_LIMIT = 1 << 28
"""Largest allowed size of all arrays of a predictions file together, bytes."""

# These formats have distinctive keys. A file that matches two of them is refused.
_MARKED: tuple[tuple[str, Callable[[Any], bool], Callable[[Any, str], Rows]], ...] = (
    ("VAD's results (plan_results, pts_bbox)", is_vad, read_vad),
    ("UniAD's results (bbox_results, planning_traj)", is_uniad, read_uniad),
    ("a nuScenes submission (meta, results)", is_submission, read_submission),
)
_OTHERS: tuple[tuple[Callable[[Any], bool], Callable[[Any, str], Rows]], ...] = (
    (is_columns, read_columns),
    (is_texts, read_texts),
    (is_listed, read_listed),
    (is_sparsedrive, read_sparsedrive),
    (is_table, read_table),
)


@dataclass(frozen=True)
class Found:
    """Planned paths and the assumptions made to read them.

    `trusted`: a warning if rows were joined by position, else empty. `assumed`: properties that the file does not state. `form`: the detected
    format, such as "VAD's results: …".
    """

    predictions: Predictions
    trusted: str = ""
    assumed: str = ""
    form: str = ""


def read_paths(path: str | Path, tokens: str | Path = "") -> Found:
    """Read planned paths in any format that the package's docstring lists. `tokens` is a file with the sample tokens of the rows.

    Raises:
        DataError: if the file is missing, damaged, unsafe, ambiguous, in an unknown format, or fails a check of `Predictions`.
        ConfigError: if `tokens` is given and the file has its own tokens.
    """
    where = printable_line(str(path))
    read, stated, form = _read(Path(path), where)
    assumed = ""
    if not stated:
        assumed = f"{where}: read as {form}. The file does not state its frame; assumed x right, y forward, origin at LIDAR_TOP."
    if not tokens:
        return Found(read, assumed=assumed, form=form)
    if read.token is not None:
        raise ConfigError(f"{where} has its own sample tokens: leave out --tokens.")
    names = read_tokens(tokens)
    if len(names) != len(read):
        raise DataError(
            f"{where}: {len(read)} paths, but {tokens} lists {len(names)} samples; give the list of the samples that were predicted."
        )
    trusted = (
        f"{where} has no sample tokens. Its {len(read)} rows were joined to those of {tokens} by position, which cannot be checked: "
        "a list in another order gives wrong scores."
    )
    return Found(replace(read, token=names), trusted, assumed, form)


def is_paths(path: str | Path) -> bool:
    """Whether a file holds planned paths, judged by content or suffix, rather than text."""
    path = Path(path)
    if path.suffix in _SUFFIXES and not (path.suffix == ".json" and path.is_file()):
        return True
    if not path.is_file():
        return path.suffix in _SUFFIXES
    with path.open("rb") as file:
        start = file.read(1 << 16)
    if start.startswith((b"PK", b"\x93NUMPY", b"\x80")):
        return True
    if _without_mark(start)[:1] not in (b"{", b"["):
        return path.suffix in _SUFFIXES
    if path.suffix == ".json":
        return not _is_log(start)
    return is_json(read_bytes(path, LIMIT))  # logs begin with a bracket, too


def _is_log(start: bytes) -> bool:
    """Whether a file is JSON lines without tokens, like a training log."""
    lines = _without_mark(start).splitlines()
    if len(lines) < 2:
        return False
    try:
        first = json.loads(lines[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and not token_key(first)


def read_tokens(path: str | Path) -> tuple[str, ...]:
    """Sample tokens in order, from a JSON list of strings or a text file with one token per line.

    Raises:
        DataError: if the file is missing, empty, in another format, or lists a sample twice.
    """
    where = printable_line(str(path))
    text = decode(read_bytes(path, LIMIT, "give the list of tokens that was predicted"), where)
    if text.lstrip().startswith(("[", "{")):
        found = parse_json(text, where)
        if not isinstance(found, list):
            raise DataError(f"{where}: a list of tokens must be a JSON list of text; found {what(found)}.")
    else:
        found = text.splitlines()
    names = tuple(token_name(token, i, where) for i, token in enumerate(found))
    if not names:
        raise DataError(f"{where}: the file has no tokens; write one sample token per line.")
    again = npz.repeated(names)
    if again:
        raise DataError(f"{where}: a sample may be listed only once; repeated: {npz.few(again)}.")
    return names


def _read(path: Path, where: str) -> tuple[Predictions, bool, str]:
    """The paths, whether the file states their frame, and the detected format."""
    start = _start(path, where)
    if not start:
        raise DataError(f"{where}: the file is empty; write it again.")
    if start.startswith(b"PK") or path.suffix == ".npz":
        return _archive(path, where)
    if start.startswith(b"\x93NUMPY"):
        return _made(_bare(read_npy(path, _ARRAYS_LIMIT), where), where)
    if _without_mark(start)[:1] in (b"{", b"[") or path.suffix in (".json", ".jsonl"):
        return _made(_form(_json(path, where), where), where)
    if start.startswith(b"\x80") or path.suffix in (".pkl", ".pickle"):
        return _made(_form(plain_pickle.load(path), where), where)
    packed = " It is compressed: unpack it." if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) else ""
    raise DataError(f"{where}: unknown file type.{packed} {_KINDS}")


def _made(rows: Rows, where: str) -> tuple[Predictions, bool, str]:
    return Predictions(rows.path, rows.token, where=where), False, rows.form


def _archive(path: Path, where: str) -> tuple[Predictions, bool, str]:
    members = member_names(path)
    if members is None:
        return read_predictions(path), True, "iidrive's own predictions"  # raises the error that describes the damage
    if any(name.split("/")[-1] == "data.pkl" for name in members):
        value = plain_pickle.load_torch(path)
        if not _has_tensor(value):
            raise DataError(f"{where}: a torch.save file without tensors; write JSON: json.dump({{token: path.tolist()}}, file).")
        rows = _form(value, where)
        return _made(replace(rows, form=f"a torch.save file, {rows.form}"), where)
    names = [name.removesuffix(".npy") for name in members]
    if _OWN_KEYS & set(names):
        form = "iidrive's own predictions" if "frame" in names else "an array of paths"
        return read_predictions(path), "frame" in names, form
    found, _ = read_npz(path, None, _ARRAYS_LIMIT)
    texts = [array for array in found.values() if array.dtype.kind == "U" and array.ndim == 1]
    paths = [array for array in found.values() if array.dtype.kind != "U"]
    if len(paths) == 1 and len(texts) <= 1 and paths[0].squeeze().ndim == 3:
        if not texts:
            return _made(_bare(paths[0], where), where)
        if len(texts[0]) == len(paths[0]):
            return _made(named(zip(texts[0].tolist(), paths[0], strict=True), "an array of tokens and one of paths", where), where)
    return _made(named(found.items(), "an npz with one path under each sample token", where), where)


def _has_tensor(value: Any) -> bool:
    level, seen = [value], set[int]()
    while level:
        level = [item for item in level if id(item) not in seen and not seen.add(id(item))]
        if any(isinstance(item, plain_pickle.Tensor) for item in level):
            return True
        level = [
            inner
            for item in level
            for inner in (item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else ())
        ]
    return False


def _form(value: Any, where: str) -> Rows:
    """Paths from dicts, lists and arrays, by the first format that matches."""
    if isinstance(value, dict) and len(value) == 1:
        ((key, inner),) = value.items()
        value = inner if key in _AROUND and isinstance(inner, dict | list) else value
    fits = [(name, read) for name, fit, read in _MARKED if fit(value)]
    if len(fits) > 1:
        raise DataError(f"{where}: it may be {' or '.join(name for name, _ in fits)}; keep the keys of one and write the file again.")
    if fits:
        return fits[0][1](value, where)
    for fit, read in _OTHERS:
        if fit(value):
            return read(value, where)
    if isinstance(value, list | tuple) or hasattr(value, "__array__"):
        return _bare(value, where)
    raise DataError(f"{where}: expected paths by sample token, or a list of paths; found {what(value)}.")


def _bare(value: Any, where: str) -> Rows:
    if hasattr(value, "__array__"):
        try:
            value = numbers(value, "the array")
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        while value.ndim > 3 and 1 in value.shape[:-2]:
            value = value.squeeze(value.shape.index(1))
        if value.ndim != 3:
            raise DataError(f"{where}: an array of paths must have shape (n, {FUTURE_STEPS}, 2); found {value.shape}.")
    return unnamed(value, "paths without tokens", where)


def _json(path: Path, where: str) -> Any:
    text = decode(read_bytes(path, LIMIT, _KINDS.removesuffix(".")), where)

    def again(names: list[str]) -> str:
        return f"a sample may be predicted only once; repeated: {npz.few(names, 'name')}; was the output merged twice?"

    try:
        return parse_json(text, where, again)
    except DataError as error:
        lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
        if "Extra data" not in str(error) or len(lines) < 2 or not lines[0][1].lstrip("\ufeff \t").startswith("{"):
            raise
    return [parse_json(line, f"{where}, line {i}", again) for i, line in lines]


def _start(path: Path, where: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except FileNotFoundError as error:
        raise DataError(f"{where}: no such file. {_KINDS}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{where}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error


def _without_mark(start: bytes) -> bytes:
    return start.lstrip(b"\xef\xbb\xbf \t\r\n")
