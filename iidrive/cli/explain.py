"""The command `recipes`: every field of a recipe, with its value and meaning."""

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
"""Width of a line in characters, and the column of the comments."""


def recipes(names: list[str] = []) -> None:  # noqa: B006 - never written to
    """List the recipes, or print every field of one with its value and meaning, as YAML for --recipe.

    `iidrive recipes demo > mine.yaml` creates a recipe to edit.

    Args:
        names: name or file (YAML or JSON) of the recipe to print; default: list all recipes.
    """
    if len(names) > 1:
        raise ConfigError(f"recipes prints one recipe at a time; found {', '.join(names)}.")
    if names:
        print(explained(read_recipe(names[0])), end="")
        return
    for name, make in RECIPES.items():
        print(f"{name:10} {summary(make)}")


def explained(config: Any) -> str:
    """A config as YAML, with a comment about the config and one beside each value."""
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
