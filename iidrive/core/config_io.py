"""Frozen config dataclasses ↔ plain values that JSON can hold."""

from __future__ import annotations

import dataclasses
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from iidrive.core.errors import ConfigError, unknown
from iidrive.core.text import printable

T = TypeVar("T")


def to_plain(config: Any) -> Any:
    """Convert a config to plain values: dataclasses to dicts, tuples to lists."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, (list, tuple)):
        return [to_plain(v) for v in config]
    if isinstance(config, dict):
        return {k: to_plain(v) for k, v in config.items()}
    return config


def from_plain(kind: type[T], plain: Any, where: str) -> T:
    """A config of type `kind` from plain values; missing fields take their defaults.

    Raises:
        ConfigError: naming `where` and the field, for an unknown field or a value of the wrong type.
    """
    if not isinstance(plain, dict):
        raise ConfigError(f"{where}: expected the fields of {kind.__name__}, found {printable(plain) if plain is not None else 'nothing'}.")
    hints = get_type_hints(kind)
    fields = {f.name for f in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    for key in plain:
        if key not in fields:
            raise ConfigError(f"{where}: {unknown(f'field of {kind.__name__}', key, sorted(fields))}")
    return kind(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in plain.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_plain(hint, value, where)  # pyright: ignore[reportArgumentType]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(inner) == len(value):
            return tuple(_value(h, v, where) for h, v in zip(inner, value, strict=True))
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin in (Union, types.UnionType):
        return value
    elif origin is dict:
        if isinstance(value, dict):
            return value
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool) == isinstance(value, bool):
        return value
    found = repr(printable(value)) if isinstance(value, str) else printable(value)
    raise ConfigError(f"{where}: expected {getattr(hint, '__name__', hint)}, found {found}.")
