"""Changes to files of any kind, for `fuzzing`: bytes at random; values that mean the same; values that nothing can mean."""

from __future__ import annotations

import collections
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import yaml
from fuzzing import Change, Expected, Rng

Tree = Any
"""Lists, mappings and plain values, as JSON has them."""


def flipped(raw: bytes, rng: Rng) -> bytes:
    """The bytes with one to four changes: flipped, replaced, cut, doubled, a piece moved elsewhere, or the end lost."""
    out = bytearray(raw)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, len(out)))
        kind = int(rng.integers(0, 7))
        piece = slice(at, at + int(rng.integers(1, 12)))
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            out[at] = int(rng.choice([0, 0xFF, 0x28, 0x5B, 0x7B, 0x2E, 0x72, 0x8F, 0x96]))
        elif kind == 2:
            del out[piece]
        elif kind == 3:
            out[at:at] = out[piece]
        elif kind == 4:
            to = int(rng.integers(0, len(out)))
            out[to:to] = out[piece]
        elif kind == 5:
            out[piece] = rng.bytes(8)
        elif rng.random() < 0.2:
            del out[at:]
        out = out or bytearray(b"\0")
    return bytes(out)


def any_bytes(raw: bytes, rng: Rng) -> tuple[bytes, Expected]:
    """Bytes of a file that carries no check sum."""
    return flipped(raw, rng), "any"


def sealed_bytes(raw: bytes, rng: Rng) -> tuple[bytes, Expected]:
    """Bytes of a file that carries check sums."""
    return flipped(raw, rng), "same or refused"


# -------------------------------------------------------------------------------------------------------------------- trees


def places(tree: Tree) -> list[tuple[Any, Any]]:
    """Every container of a tree with every key or index in it."""
    found: list[tuple[Any, Any]] = []
    stack = [tree]
    while stack:
        here = stack.pop()
        keys = list(here) if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ()
        for key in keys:
            found.append((here, key))
            stack.append(here[key])
    return found


def absurd(value: Any, rng: Rng) -> Any:
    """What no value in this place can be: another type, NaN, infinity, or far too much."""
    others: list[Any] = [None, "x\x1b[2J\n", {}, [], {"a": [1]}, 10**400, "9" * 5000, "\ud800"]
    if isinstance(value, bool):
        others += [7, -1, 0.5]
    elif isinstance(value, int | float):
        others += [float("nan"), float("inf"), 1e300, -1e300, True, False, 1 << 63, [value, value], str(value)]
    elif isinstance(value, str):
        others += [5, "", True, value + "\0", [value]]
    elif isinstance(value, list):
        vector = bool(value) and all(isinstance(one, int | float) for one in value)
        others += [value[:-1], value * 2, 3] if vector else [3]
    elif isinstance(value, dict):
        others += [list(value)]
    return others[int(rng.integers(len(others)))]


def absurd_leaf(tree: Tree, rng: Rng) -> Tree:
    """A tree with one value made absurd, left out, or given under another key."""
    found = places(tree)
    if not found:  # nothing in it
        return absurd(tree, rng)
    holder, key = found[int(rng.integers(len(found)))]
    action = rng.random()
    if action < 0.8:
        holder[key] = absurd(holder[key], rng)
    elif action < 0.9 and (isinstance(holder, dict) or isinstance(holder[key], int | float)):
        del holder[key]
    elif isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif isinstance(holder[key], int | float) or (isinstance(holder[key], dict) and "token" in holder[key]):
        holder.append(holder[key])
    return tree


def dumped(tree: Tree, rng: Rng) -> bytes:
    """JSON in one of the ways that people's tools write it."""
    indent = (None, 0, 1, 4)[int(rng.integers(4))]
    text = json.dumps(tree, indent=indent, ensure_ascii=bool(rng.integers(2)), separators=((",", ":") if rng.random() < 0.5 else None))
    return text.encode("utf-8", "surrogatepass")


def json_absurd(raw: bytes, rng: Rng) -> tuple[bytes, Expected]:
    """One value of a JSON file that nothing can mean; where it is not used, it changes nothing."""
    return dumped(absurd_leaf(json.loads(raw), rng), rng), "same or refused"


def json_same(raw: bytes, rng: Rng) -> tuple[bytes, Expected]:
    """The same JSON: other blanks, other order of keys, byte order mark, other line ends."""
    out = dumped(shuffled(json.loads(raw), rng), rng)
    if rng.random() < 0.3:
        out = b"\xef\xbb\xbf" + out
    if rng.random() < 0.3:
        out = out.replace(b"\n", b"\r\n") + b"\r\n"
    return out, "same"


def json_twice(raw: bytes, rng: Rng) -> tuple[bytes, Expected]:
    """A second value after the first, or a key that is given twice: nobody can say which counts."""
    if raw.lstrip().startswith(b"{") and rng.random() < 0.5:
        key, value = next(iter(json.loads(raw).items()))
        inner = raw.strip()[1:]
        return b"{" + json.dumps(key).encode() + b": " + json.dumps(value).encode() + b", " + inner, "refused"
    return raw + raw, "refused"


def shuffled(tree: Tree, rng: Rng) -> Tree:
    """Mappings in another order of keys."""
    if isinstance(tree, dict):
        keys = list(tree)
        rng.shuffle(keys)
        return {key: shuffled(tree[key], rng) for key in keys}
    return [shuffled(value, rng) for value in tree] if isinstance(tree, list) else tree


def yaml_absurd(raw: bytes, rng: Rng) -> tuple[bytes, Expected]:
    """The same for YAML, where a key that is left out has a default."""
    tree = absurd_leaf(yaml.safe_load(raw), rng)
    return yaml.safe_dump(tree, allow_unicode=False).encode("utf-8", "surrogatepass"), "any"


def yaml_same(raw: bytes, rng: Rng) -> tuple[bytes, Expected]:
    """The same YAML in flow style, as JSON, in another order, with comments."""
    tree = shuffled(yaml.safe_load(raw), rng)
    text = (
        json.dumps(tree, indent=1)
        if rng.random() < 0.3
        else yaml.safe_dump(tree, default_flow_style=bool(rng.integers(2)), sort_keys=False)
    )
    return f"# mine\n{text}\n# end\n".encode(), "same"


def yaml_code(marker: str) -> Change:
    """YAML that would touch `marker` if it were trusted."""

    def yaml_code(raw: bytes, rng: Rng) -> tuple[bytes, Expected]:
        tags = ("!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/object/apply:subprocess.check_output")
        return raw + f"\nx: {tags[int(rng.integers(3))]} ['touch {marker}']\n".encode(), "refused"

    return yaml_code


# ------------------------------------------------------------------------------------------------------------------- arrays


def opened(raw: bytes) -> dict[str, np.ndarray]:
    """The arrays of an npz."""
    with np.load(io.BytesIO(raw), allow_pickle=True) as found:
        return {name: found[name] for name in found.files}


def packed(arrays: dict[str, Any], compress: bool) -> bytes:
    """An npz."""
    out = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(out, allow_pickle=True, **arrays)
    return out.getvalue()


class Touch:
    """An object whose pickle would touch a file."""

    def __init__(self, marker: str) -> None:
        """Of a path."""
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {self.marker}",)


def npz_same(marker: str) -> Change:
    """The same arrays: packed or not, in another order, beside an array that nobody asked for and that would run if it were opened."""

    def npz_same(raw: bytes, rng: Rng) -> tuple[bytes, Expected]:
        arrays = opened(raw)
        names = list(arrays)
        rng.shuffle(names)
        extra = {"mine": np.array([Touch(marker)], object)} if rng.random() < 0.3 else {}
        turned = {name: np.asfortranarray(arrays[name]) if arrays[name].ndim > 1 and rng.random() < 0.3 else arrays[name] for name in names}
        return packed({**turned, **extra}, bool(rng.integers(2))), "same"

    return npz_same


def npz_code(marker: str) -> Change:
    """One array replaced by an object that would run if it were opened."""

    def npz_code(raw: bytes, rng: Rng) -> tuple[bytes, Expected]:
        arrays = opened(raw)
        name = list(arrays)[int(rng.integers(len(arrays)))]
        return packed({**arrays, name: np.array([Touch(marker)], object)}, True), "same or refused"

    return npz_code


def absurd_array(array: np.ndarray, rng: Rng) -> Any:
    """An array of another shape or type, or with one value that nothing can mean."""
    flat = array.reshape(-1)
    action = int(rng.integers(8))
    if action == 0 and array.ndim and len(array):
        return array[:-1]
    if action == 1 and array.ndim and len(array):
        return np.concatenate([array, array[:1]])
    if action == 2:
        return array[..., None]
    if action == 3:
        return array.astype(f"<U{1 + int(rng.integers(9))}") if array.dtype.kind != "U" else np.zeros(array.shape)
    if action == 4 and array.dtype.kind != "b":
        return np.zeros(array.shape, bool)
    if array.dtype.kind == "f" and flat.size:
        out = array.copy()
        out.reshape(-1)[int(rng.integers(flat.size))] = (np.nan, np.inf, -np.inf, np.finfo(array.dtype).max)[int(rng.integers(4))]
        return out
    if array.dtype.kind in "iu" and flat.size:
        wide = array.astype(np.int64)
        wide.reshape(-1)[int(rng.integers(flat.size))] = (-7, 1 << 40, -(1 << 62))[int(rng.integers(3))]
        return wide
    if array.dtype.kind == "U":
        return array.astype("S300")
    return np.zeros((0, *array.shape[1:]), array.dtype)


def npz_absurd(raw: bytes, rng: Rng) -> tuple[bytes, Expected]:
    """One array made absurd, or left out."""
    arrays: dict[str, Any] = opened(raw)
    name = list(arrays)[int(rng.integers(len(arrays)))]
    if rng.random() < 0.15:
        del arrays[name]
    else:
        arrays[name] = absurd_array(arrays[name], rng)
    return packed(arrays, bool(rng.integers(2))), "same or refused"


def npz_headers(raw: bytes, rng: Rng) -> tuple[bytes, Expected]:
    """An array that announces far more than it holds, or one name twice."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as whole, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        names = whole.namelist()
        chosen = names[int(rng.integers(len(names)))]
        for name in names:
            content = whole.read(name)
            if name == chosen and rng.random() < 0.5:
                shape = ("(99999999999,)", "(4294967296, 8)", "(-1, 2)", "(1, 0, 99)", "()")[int(rng.integers(5))]
                head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
                content = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + head.encode() + content[-64:]
            elif name == chosen:
                archive.writestr(name, content)
            archive.writestr(name, content)
    return out.getvalue(), "same or refused"


# ------------------------------------------------------------------------------------------------------------------ pickles


def pickle_same(raw: bytes, rng: Rng) -> tuple[bytes, Expected]:
    """The same values: another protocol, another kind of mapping, another order of keys where the order means nothing."""
    value = pickle.loads(raw)
    if isinstance(value, dict):
        keys = list(value)
        rng.shuffle(keys)
        kinds: tuple[Callable[[Any], Any], ...] = (dict, collections.OrderedDict, lambda pairs: collections.defaultdict(list, pairs))
        value = kinds[int(rng.integers(3))]([(key, value[key]) for key in keys])
    return pickle.dumps(value, int(rng.integers(0, 6))), "same"


def pickle_absurd(raw: bytes, rng: Rng) -> tuple[bytes, Expected]:
    """One value that nothing can mean."""
    return pickle.dumps(absurd_leaf(listed(pickle.loads(raw)), rng), 4), "same or refused"


def pickle_code(marker: str) -> Change:
    """One value replaced by one that would run."""

    def pickle_code(raw: bytes, rng: Rng) -> tuple[bytes, Expected]:
        value = listed(pickle.loads(raw))
        found = places(value)
        holder, key = found[int(rng.integers(len(found)))]
        holder[key] = Touch(marker)
        return pickle.dumps(value, int(rng.integers(0, 6))), "refused"

    return pickle_code


def listed(value: Any) -> Any:
    """Arrays and tensors as lists, so that a single number can be changed."""
    if isinstance(value, dict):
        return {key: listed(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [listed(inner) for inner in value]
    return value.tolist() if hasattr(value, "tolist") else value


# --------------------------------------------------------------------------------------------------------------------- text


def text_same(raw: bytes, rng: Rng) -> tuple[bytes, Expected]:
    """The same print: other line ends, colours, blanks at the ends, remains of a progress bar, words around it."""
    text = raw.decode()
    action = int(rng.integers(5))
    if action == 0:
        text = text.replace("\n", "\r\n")
    elif action == 1:
        text = "\n".join(f"\x1b[32m{line}\x1b[0m" if line.strip() else line for line in text.split("\n"))
    elif action == 2:
        text = "\n".join(line + " " * int(rng.integers(4)) for line in text.split("\n"))
    elif action == 3:
        text = "100%|██████████| 81/81 [00:12<00:00,  6.5it/s]\n\n" + text
    else:
        text = "Notes of today.\n\n" + text + "\n\nThat was all.\n"
    return text.encode(), "same"


def csv_same(raw: bytes, rng: Rng) -> tuple[bytes, Expected]:
    """The same CSV table: rows in another order, quoted cells, an index column, a byte order mark, other line ends."""
    head, *rows = [line.split(",") for line in raw.decode().splitlines()]
    rng.shuffle(rows)
    lines = [head, *rows]
    if rng.random() < 0.3:
        lines = [["", *head], *([str(k), *row] for k, row in enumerate(rows))]
    if rng.random() < 0.3:
        lines = [[f'"{cell}"' for cell in line] for line in lines]
    text = ("\r\n" if rng.random() < 0.3 else "\n").join(map(",".join, lines))
    return (b"\xef\xbb\xbf" if rng.random() < 0.3 else b"") + text.encode(), "same"


def csv_absurd(raw: bytes, rng: Rng) -> tuple[bytes, Expected]:
    """One number or name of a CSV table that nothing can mean, a cell more or fewer, a row or a column twice."""
    head, *rows = [line.split(",") for line in raw.decode().splitlines()]
    row, action = rows[int(rng.integers(len(rows)))], rng.random()
    if action < 0.6:
        name = str(rng.choice([name for name in head if name != "log_name"]))
        odd = ["", "x\x1b[2J"] if name == "token" else ["", "nan", "inf", "1e300", "-0.5", "x\x1b[2J", "None"]
        row[head.index(name)] = str(rng.choice(odd))
    elif action < 0.7:
        row.append("0.5")
    elif action < 0.8:
        row.pop()
    elif action < 0.9:
        rows.append(row)
    else:
        head.append(head[int(rng.integers(len(head)))])
        rows = [[*one, "0.25"] for one in rows]
    return "\n".join(map(",".join, [head, *rows])).encode(), "refused"
