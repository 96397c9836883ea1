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

WIDTH = 140


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
        value = getattr(config, field.name)
        meaning = helps[field.name]
        if dataclasses.is_dataclass(value):
            lines += [f"{indent}{field.name}:  # {meaning}", *_fields(value, indent + "  ")]
            continue
        start = f"{indent}{field.name}: {json.dumps(to_plain(value))}"
        first, *more = textwrap.wrap(meaning, max(40, WIDTH - max(len(start), 40) - 4), break_long_words=False)
        lines.append(f"{start:40}  # {first}")
        lines += [" " * max(len(start), 40) + f"  # {line}" for line in more]
    return lines
