"""Reading of published weight files: the weights or their moving average, under the plain names of the architecture.

A file is a torch.save pickle, old or new, or safetensors. Only tensors and plain values are unpickled: those of torch's allow-list, and the names in
`_INERT`, which are replaced by empty objects of this module. So no code of NumPy, mmcv or mmengine is called. Anything else is refused.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from iidrive.core.errors import CheckpointError
from iidrive.core.text import printable, printable_line
from iidrive.core.untrusted.npz import member_names
from iidrive.models.iiworld.given_names import COUNTERS, plain_names
from iidrive.training.checkpoint import LFS_POINTER, LFS_TOLD

State = dict[str, Tensor]
Choice = Literal["", "on", "off"]

WEIGHTS_UNDER = ("state_dict", "model_state_dict", "model", "module", "net", "network", "params", "weights")
AVERAGE_UNDER = ("ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema", "params_ema", "model_ema_state_dict")
_PLAIN = (int, float, str, bytes, bool, type(None))


@dataclass(frozen=True)
class Published:
    """The chosen tensors, notes about the choice (sentences that name the file), and whether they are the moving average."""

    state: State
    notes: tuple[str, ...] = ()
    averaged: bool = False


class _Inert:
    """Placeholder for an unneeded object. It accepts any arguments and state and ignores them."""

    def __init__(self, *_: object, **__: object) -> None:
        """Ignore all arguments."""

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return self is other


class _Table:
    """Placeholder for a library's dict class: creates an OrderedDict, which torch's unpickler can fill."""

    def __new__(cls, *_: object, **__: object) -> OrderedDict[Any, Any]:  # pyright: ignore[reportInconsistentConstructor]
        return OrderedDict()


class _Row:
    """Placeholder for a deque: creates a list."""

    def __new__(cls, *_: object, **__: object) -> list[Any]:  # pyright: ignore[reportInconsistentConstructor]
        return []


_VALUES = (Tensor, *_PLAIN, _Inert)
"""Types that are allowed beside tensors in a dict of weights."""


def _inert(*_: object, **__: object) -> _Inert:
    return _Inert()


_BUILTINS = ("list", "dict", "set", "frozenset", "tuple", "int", "float", "str", "bool", "slice", "range", "complex", "bytearray")
_INERT: list[Any] = [
    *((_inert, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *((_inert, f"numpy.{core}.numeric._frombuffer") for core in ("core", "_core")),
    *((_Inert, f"numpy.{name}") for name in ("dtype", "ndarray")),
    *((_Inert, f"builtins.{name}") for name in _BUILTINS),
    (_Table, "collections.defaultdict"),
    (_Inert, "collections.ChainMap"),
    (_Row, "collections.deque"),
    *((_Inert, f"pathlib.{name}") for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    *((_Inert, f"pathlib._local.{name}") for name in ("Path", "PosixPath", "WindowsPath")),
    *((_Inert, f"datetime.{name}") for name in ("datetime", "date", "timedelta", "timezone")),
    *((_Inert, name) for name in ("argparse.Namespace", "types.SimpleNamespace", "mmengine.logging.history_buffer.HistoryBuffer")),
    *(
        (_Inert, name)
        for name in ("mmengine.config.config.Config", "mmcv.utils.config.Config", "uuid.UUID", "decimal.Decimal", "typing.Any")
    ),
    *((_Inert, f"omegaconf.{name}") for name in ("dictconfig.DictConfig", "listconfig.ListConfig", "nodes.AnyNode")),
    *((_Inert, f"omegaconf.base.{name}") for name in ("Metadata", "ContainerMetadata")),
    *((_Table, f"{lightning}.AttributeDict") for lightning in ("lightning_fabric.utilities.data", "lightning.fabric.utilities.data")),
    (_Table, "pytorch_lightning.utilities.parsing.AttributeDict"),
    *((_Table, name) for name in ("mmcv.utils.config.ConfigDict", "mmengine.config.config.ConfigDict", "addict.addict.Dict")),
    *((_Table, name) for name in ("easydict.EasyDict", "yacs.config.CfgNode")),
]
"""Placeholders for the objects, by name, that weight files contain besides tensors."""


def read_published(path: str | Path, known: Collection[str] = (), ema: Choice = "") -> Published:
    """Read the tensors of a file, under the names of the architecture.

    Args:
        path: the file.
        known: names of the architecture, used to recognise prefixes that tools add.
        ema: `on` takes the moving average, `off` the weights; empty: the weights, or the average if the file has nothing else.

    Raises:
        CheckpointError: if the file is missing or damaged, holds anything but tensors and plain values, or lacks the requested set.
    """
    path = Path(path)
    where = printable_line(str(path))
    _require_weights(path, where)
    plain, average = _chosen_parts(_loaded(path, where), where)
    given = plain_names(plain, known, where)
    weights, averaged = given.weights, given.averaged
    if average:
        beside = plain_names(average, known, where)
        if averaged:
            raise CheckpointError(f"{where}: holds two moving averages, beside its weights and among them. Save only the one you want.")
        averaged = {**beside.weights, **beside.averaged}
        averaged = {name: value for name, value in averaged.items() if name in known or value.numel() != 1 or name not in COUNTERS}
    if ema == "on" and not averaged:
        raise CheckpointError(f"{where}: holds no moving average of its weights; leave out --ema.")
    if ema == "off" and not weights:
        raise CheckpointError(f"{where}: holds only a moving average of the weights; leave out --ema, or use --ema on.")
    notes: list[str] = []
    take = ema == "on" or not weights
    if take:
        rest = {name: value for name, value in weights.items() if name not in averaged}
        notes.append(
            f"{where}: used the moving average (EMA) of {len(averaged)} tensors" + (", not the weights beside it." if weights else ".")
        )
        if rest and averaged:
            notes.append(f"{where}: {len(rest)} tensors have no moving average; used their weights.")
        state = {**rest, **averaged}
    else:
        state = weights
        if averaged:
            notes.append(
                f"{where}: used the weights; the file also has a moving average (EMA) of {len(averaged)} tensors: --ema on uses it."
            )
    _require_plain(state, where)
    # safetensors cannot store tensors that share memory, so clone each
    return Published({name: value.detach().clone() for name, value in state.items()}, tuple(notes), take)


def _require_weights(path: Path, where: str) -> None:
    """Raise CheckpointError for a path whose first bytes show that it does not hold weights."""
    if path.is_dir():
        own = " It already holds an iidrive checkpoint, which needs no import." if (path / "manifest.json").is_file() else ""
        raise CheckpointError(f"{where}: a folder, not a file. Give the .pth file in it.{own}")
    if not path.is_file():
        raise CheckpointError(f"{where}: no such file. Give the .pth file of II-World's stage 1 or stage 2.")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{where}: cannot be read ({error.strerror or error}).") from None
    text = start.lstrip().lower()
    if not start:
        raise CheckpointError(f"{where}: an empty file, not weights. Download it again.")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{where}: a web page, not weights: the server asked for a confirmation or a login. Download the file in a browser, or with its key."
        )
    if text.startswith(LFS_POINTER):
        raise CheckpointError(f"{where}: {LFS_TOLD}")
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")):
        raise CheckpointError(f"{where}: a compressed archive, not weights. Unpack it, and give the .pth file in it.")


def _loaded(path: Path, where: str) -> Any:
    """The unpickled content of the file. Raises CheckpointError."""
    if _is_safetensors(path):
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(where, printable(" ".join(str(error).split()), 200)) from None
    try:
        with torch.serialization.safe_globals(_INERT), path.open("rb") as file:  # of a path, torch would look at the name
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{where}: holds more than tensors and plain values ({refused[1]}), so it was not loaded. If you trust it, load it in its own "
                "code base and save only its `state_dict`."
            ) from None
        raise _damaged(where, "not a readable torch.save pickle") from None
    except Exception as error:  # a damaged pickle can raise any error
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{where}: a TorchScript program, which iidrive never runs. Save the `state_dict` of its model."
            ) from None
        inside = member_names(path)
        if inside is not None and not any(name.split("/")[-1] == "data.pkl" for name in inside):
            shown = ", ".join(printable(name, 40) for name in inside[:4]) or "nothing"
            raise CheckpointError(
                f"{where}: a zip archive that holds {shown}, not weights. Unpack it, and give the .pth file in it."
            ) from None
        said = " ".join(str(error).split(". ")[0].split()) or type(error).__name__
        raise _damaged(where, printable(said, 120)) from None


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do, whatever its name: the length of a header in JSON, then that."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _damaged(where: str, reason: str) -> CheckpointError:
    return CheckpointError(f"{where}: not a file of weights, or damaged ({reason}). Download it again.")


def _chosen_parts(loaded: Any, where: str) -> tuple[State, State]:
    """The weights and the moving average in a file's container, under the file's names; either may be empty. Raises CheckpointError."""
    if isinstance(loaded, Mapping):
        plain = {key: found for key in WEIGHTS_UNDER if (found := _tensors(loaded.get(key)))}
        average = {key: found for key in AVERAGE_UNDER if (found := _tensors(loaded.get(key)))}
        if "state_dict" in plain:  # the usual key has precedence
            plain = {"state_dict": plain["state_dict"]}
        for found, what in ((plain, "weights"), (average, "a moving average")):
            if len(found) > 1:
                raise CheckpointError(f"{where}: holds {what} under several keys ({', '.join(found)}). Save only the one you want.")
        if plain or average:
            return next(iter(plain.values()), {}), next(iter(average.values()), {})
        if (bare := _tensors(loaded)) and all(isinstance(value, _VALUES) for value in loaded.values()):
            return bare, {}
    arrays = isinstance(loaded, Mapping) and any(_is_foreign(value) for value in (loaded, *loaded.values()))
    if arrays:
        raise CheckpointError(f"{where}: its weights are not tensors (NumPy arrays?). Save a dict of tensors with torch.save.")
    keys = f" of {', '.join(printable(k, 40) for k in list(loaded)[:4])} …" if isinstance(loaded, Mapping) and loaded else ""
    raise CheckpointError(
        f"{where}: expected a dict of tensors, bare or under {', '.join(f'`{key}`' for key in WEIGHTS_UNDER[:3])}; "
        f"found a {type(loaded).__name__.lstrip('_')}{keys}."
    )


def _is_foreign(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and all(isinstance(v, _Inert) for v in value.values())


def _tensors(value: Any, depth: int = 2) -> State:
    """The tensors of a dict or of a nested dict (`{'model': {'state_dict': …}}`); empty for a dict without tensors."""
    if not isinstance(value, Mapping):
        return {}
    found = {str(name): tensor for name, tensor in value.items() if isinstance(tensor, Tensor)}
    if found and all(isinstance(v, _VALUES) for v in value.values()):
        return found
    inner = [t for key in (*WEIGHTS_UNDER, "shadow") if depth and (t := _tensors(value.get(key), depth - 1))]
    return inner[0] if len(inner) == 1 else {}


def _require_plain(state: State, where: str) -> None:
    """Raise CheckpointError for tensors that cannot be weights."""
    odd = [name for name, v in state.items() if v.layout != torch.strided or v.is_meta or v.is_complex() or v.is_quantized]
    if odd:
        raise CheckpointError(
            f"{where}: expected plain tensors of real numbers; {_first(odd)} are sparse, complex, quantised or without values."
        )
    vast = [name for name, v in state.items() if v.numel() * v.element_size() > v.untyped_storage().nbytes()]
    if vast:
        raise CheckpointError(
            f"{where}: {_first(vast)} have more values than the file holds (strides of 0); save full tensors, with `.clone()`."
        )
    broken = [name for name, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v.float()).all())]
    if broken:
        raise CheckpointError(
            f"{where}: {len(broken)} tensors hold NaN or infinity ({_first(broken)}): the training diverged, or half precision overflowed. "
            "Use an earlier checkpoint, or save it in float32."
        )


def _first(names: list[str]) -> str:
    return ", ".join(printable(name) for name in names[:4])
