"""The command that explains recipes: every field, its value and what it means."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from typing import Any

from iidrive.cli.parser import meanings, read_recipe, summary
from iidrive.core.config_io import to_plain
from iidrive.core.errors import ConfigError
from iidrive.pipeline.recipes import RECIPES

WIDTH, COLUMN = 140, 40
"""Characters of a line, and where meanings begin."""


def recipes(names: list[str] = []) -> None:  # noqa: B006 - never written to
    """List the recipes, or print every field of one with its value and its meaning, as YAML that --recipe takes.

    `iidrive recipes demo > mine.yaml` starts a recipe of your own.

    Args:
        names: the recipe to print, or its file (YAML or JSON); default: list them all.
    """
    if len(names) > 1:
        raise ConfigError(f"recipes prints one recipe at a time; found {', '.join(names)}.")
    if names:
        print(explained(read_recipe(names[0])), end="")
        return
    for name, make in RECIPES.items():
        print(f"{name:10} {summary(make)}")


def explained(config: Any) -> str:
    """A frozen config as YAML: a comment says what each class is for, and beside each value what it means."""
    return "\n".join([f"# {summary(type(config))}", *_fields(config, "")]) + "\n"


def _fields(config: Any, indent: str) -> list[str]:
    helps, lines = meanings(type(config)), []
    for field in dataclasses.fields(config):
        value, under = getattr(config, field.name), []
        start = f"{indent}{field.name}:"
        if dataclasses.is_dataclass(value):
            under = _fields(value, indent + "  ")
        elif len(plain := json.dumps(to_plain(value))) < WIDTH / 2:
            start = f"{start} {plain}"
        else:
            under = [f"{indent}  - {json.dumps(item)}" for item in value]
        start = f"{start:{COLUMN}}"
        first, *more = textwrap.wrap(helps[field.name], WIDTH - len(start) - 4)
        lines += [f"{start}  # {first}", *(f"{'':{len(start)}}  # {line}" for line in more), *under]
    return lines
