"""Command-line options from typed functions, with jsonargparse: one option per parameter, help texts from the docstring's `Args:`.

This module adds to jsonargparse:

- the fields of a parameter whose type is in `FLAT` are top-level options (`--root`, not `--where.root`);
- `list[str]` accepts files anywhere among the options; `bool` is a flag without a value;
- `--test-ii` and `--test_ii` are the same option, and so are `--run` and `--out`;
- `--recipe NAME` sets all fields of that recipe. Each can be overridden, and `--help` does not list them;
- errors are one sentence.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import json
import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import docstring_parser
from jsonargparse import (
    ActionConfigFile,  # pyright: ignore[reportPrivateImportUsage]
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
)
from jsonargparse._actions import _ActionConfigLoad
from jsonargparse._typehints import ActionTypeHint

from iidrive.cli.options import DataOptions, DriveOptions, RecipeGiven, StageOptions, TownFields, TrainOptions
from iidrive.core.config_io import from_plain, to_plain
from iidrive.core.errors import ConfigError, DataError, unknown
from iidrive.core.text import printable
from iidrive.core.untrusted.yaml_text import read_yaml
from iidrive.pipeline.recipes import RECIPES, Recipe, is_file, named

FLAT = (DataOptions, DriveOptions, StageOptions, TrainOptions)
"""Parameter types whose fields are top-level options."""
RECIPE_HELP = "a name or FILE.yaml; --recipe.FIELD VALUE overrides a field (see `iidrive recipes`)."


class HelpFormatter(DefaultHelpFormatter):
    """Help with one line per option where it fits, with defaults and without types."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=max(100, min(shutil.get_terminal_size().columns, 140)))

    def _get_help_string(self, action: argparse.Action) -> str:
        shown = action.help or ""
        if action.default in (None, "", 0, argparse.SUPPRESS) or not action.option_strings or "default:" in shown:
            return shown
        return f"{shown.removesuffix('.')} (default: %(default)s)"


class Parser(ArgumentParser):
    """The parser of one command."""

    recipe_file = ""
    """The file given with `--recipe`, for errors about its fields."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog=prog, formatter_class=HelpFormatter, allow_abbrev=False, print_config="--print-config")

    def format_help(self, *args: Any, **options: Any) -> str:
        """The help text, without the fields of a recipe; all options in one list."""
        hidden = [
            (action, action.help) for action in self._actions if action.dest in ("parallel", "print_config") or "recipe." in action.dest
        ]
        groups, first = self._action_groups, self._action_groups[1]
        own = first._group_actions
        for action, _ in hidden:
            action.help = argparse.SUPPRESS
        try:
            self._action_groups = groups[:2]
            first._group_actions = [*own, *(action for group in groups[2:] for action in group._group_actions)]
            return super().format_help(*args, **options)
        finally:
            self._action_groups, first._group_actions = groups, own
            for action, shown in hidden:
                action.help = shown

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Report wrong usage in one sentence, with the option's name as typed.

        Raises:
            ConfigError: always.
        """
        of_recipe = "Unable to load config" in message or "recipe." in message
        message = re.sub(r'(?:Parser key|Key) "([\w.]+)"', lambda found: self._typed(found[1]), " ".join(message.split()))
        message = re.sub(
            r"Group '(\w+)' does not accept option '([\w.]+)'", lambda found: self._unrecognized(f"--{found[1]}.{found[2]}"), message
        )
        message = re.sub(r"a typing\.Literal\[([^]]*)\]", r"one of \1", message).replace("a <class 'bool'>", "one of 'on', 'off'")
        message = re.sub(r"a <class '(\w+)'>", r"\1", message)
        message = printable(re.sub(r"(?s)(?:--\w+: )?Unable to load config '.*' - ", "", message), 600)
        if self.recipe_file and of_recipe and self.recipe_file not in message:
            message = f"{self.recipe_file}: {message}"
        raise ConfigError(f"{message}{'' if message.endswith(('.', '?')) else '.'} `{self.prog} --help` lists every option.") from ex

    def _unrecognized(self, option: str) -> str:
        near = difflib.get_close_matches(option, self._option_string_actions, n=1)
        hint = f". Did you mean {self._option_string_actions[near[0]].option_strings[0]}?" if near else ""
        return f"unrecognized arguments: {option}{hint}"

    def _typed(self, dest: str) -> str:
        """The option of a parameter: `--test-ii` for `test_ii`. The name of a recipe field is unchanged."""
        option = f"--{dest}"
        return self._option_string_actions[option].option_strings[0] if option in self._option_string_actions else dest

    def _parse_known_args(self, arg_strings: Sequence[str], namespace: Any, *rest: Any, **options: Any) -> tuple[Any, list[str]]:
        """Parse options first, then the remaining arguments as files, like `argparse.ArgumentParser.parse_intermixed_args`."""
        positionals = [(action, action.nargs, action.default) for action in self._get_positional_actions()]
        for action, _, _ in positionals:
            action.nargs = action.default = argparse.SUPPRESS
        try:
            namespace, words = super()._parse_known_args(list(arg_strings), namespace, *rest, **options)
        finally:
            for action, nargs, default in positionals:
                action.nargs, action.default = nargs, default
        for word in words:
            if re.match("--?[a-z]", word):
                self.error(self._unrecognized(word.partition("=")[0]))
        return super()._parse_known_args(words, namespace, *rest, **options)


def meanings(of: Callable[..., Any]) -> dict[str, str]:
    """Descriptions of the `Args:` or `Attributes:` in a docstring, by name, each on one line."""
    found = docstring_parser.parse(inspect.getdoc(of) or "").params
    return {param.arg_name: " ".join((param.description or "").split()) for param in found}


def summary(of: Callable[..., Any]) -> str:
    """The first sentence or line of a docstring."""
    return docstring_parser.parse(inspect.getdoc(of) or "").short_description or ""


def parser_of(function: Callable[..., Any], prog: str, without: Sequence[str] = ()) -> Parser:
    """The parser of a command's function. `without` names fields of `FLAT` types that the command does not accept."""
    parser, helps, hints = Parser(prog), meanings(function), get_type_hints(function)
    parameters = inspect.signature(function).parameters
    own = [name for name in parameters if hints[name] in (list[str], bool, TownFields, RecipeGiven, *FLAT)]
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip=set(own))
    for name in own:
        default = parameters[name].default
        if hints[name] == list[str]:
            some = "+" if default is inspect.Parameter.empty else "*"
            parser.add_argument(name, nargs=some, metavar=name.upper(), help=helps[name])
        elif hints[name] is bool:
            parser.add_argument(f"--{name}", action="store_true", help=helps[name])
        elif hints[name] in FLAT:
            parser.add_class_arguments(hints[name], as_group=False, default=default, skip=set(without))
    parser.add_argument("--config", action=_ConfigFile, help="YAML file of these options (switches quoted, as in 'test_ii: \"on\"').")
    parser.description = summary(function)
    _respell(parser)
    _shorten(parser, helps)
    return parser


def _respell(parser: Parser) -> None:
    """Add options with dashes, `--out` as an alias of `--run`, and recipes by name."""
    known = parser._option_string_actions
    for option, action in list(known.items()):
        if "_" in option and "." not in option:
            action.option_strings = [option.replace("_", "-")]
            known[action.option_strings[0]] = action
    if "--run" in known and "--out" not in known:
        known["--run"].option_strings = ["--run", "--out"]  # torchrun has its own --run option
        known["--out"] = known["--run"]
    if isinstance(known.get("--recipe"), _ActionConfigLoad):
        known["--recipe"].type = partial(_recipe_fields, parser)


def _recipe_fields(parser: Parser, text: str) -> str:
    """The fields of a named recipe or of a file as JSON. Later options can override them.

    Raises:
        ConfigError: if there is no such recipe or file, or the file cannot be read or does not hold fields.
    """
    if not is_file(text):
        return json.dumps(to_plain(named(text)))
    if not Path(text).is_file():
        raise ConfigError(f"--recipe {text}: no such file. Give a file or one of {', '.join(RECIPES)}.")
    found = _fields_in(text)
    _require_fields(Recipe, found, text, "")
    parser.recipe_file = text
    return json.dumps(found)


def _require_fields(kind: type, given: dict[str, Any], path: str, place: str) -> None:
    """Raise ConfigError for a name in a file that a config and the configs in it do not have, and for a config without fields."""
    hints = get_type_hints(kind)
    for name, value in given.items():
        if name not in hints:
            raise ConfigError(
                f"{path}: {unknown(f'field of {place[:-1]}' if place else 'field', f'{place}{name}', [place + n for n in hints])}"
            )
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, dict):
                shown = "nothing" if value is None else printable(value, 40)
                raise ConfigError(
                    f"{path}: {place}{name} must hold fields of its own, as in `{name}: {{…}}`; found {shown}. Leave it out for the defaults."
                )
            _require_fields(hints[name], value, path, f"{place}{name}.")


def _fields_in(path: str) -> dict[str, Any]:
    """The fields of a YAML or JSON file. Raises ConfigError for a file that cannot be read or does not hold a mapping."""
    try:
        found = read_yaml(path)
    except DataError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path}: expected names and values, as in `town: {{seed: 3}}`; found {'nothing' if found is None else printable(found, 40)}."
        )
    return found


class _ConfigFile(ActionConfigFile):
    """The action of `--config`: a file of options, read like a recipe."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Merge the file's options into the earlier ones."""
        super().__call__(parser, cfg, json.dumps(_fields_in(values)) if Path(values).exists() else values, option_string)


def _shorten(parser: Parser, helps: dict[str, str]) -> None:
    """Shorten the help: few headings, short metavars, and a usage line without the options."""
    parser._action_groups[0].title = "arguments"
    for action in parser._actions:
        if isinstance(action, _ActionConfigLoad) and action.dest == "recipe":
            action.metavar, action.help = "NAME", f"{helps[action.dest].removesuffix('.')}: {RECIPE_HELP}"
        elif isinstance(action, ActionTypeHint) and action._typehint is bool:
            action.metavar = "{on,off}"
        elif isinstance(action, ActionTypeHint) and action._typehint is int:
            action.metavar = "N"
    for group in parser._action_groups[2:]:
        group.title = group.description = None
    words = [str(action.metavar or action.dest) for action in parser._get_positional_actions()]
    words = [word if word.startswith("{") else word.upper() for word in words]
    parser.usage = " ".join([parser.prog, "[options]", *words])


def call(function: Callable[..., Any], parser: Parser, arguments: Sequence[str]) -> None:
    """Parse the arguments and call the function with them."""
    parsed = _instantiated(parser, parser.parse_args(list(arguments)))
    given, hints = {}, get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if hints[name] in FLAT:
            fields = [field.name for field in dataclasses.fields(hints[name]) if field.name in parsed]
            given[name] = dataclasses.replace(parameter.default, **{field: parsed[field] for field in fields})
        elif hints[name] is TownFields:
            given[name] = TownFields(tuple(found[1] for word in arguments if (found := re.match(r"--recipe\.town\.(\w+)", word))))
        elif hints[name] is RecipeGiven:
            given[name] = RecipeGiven(any(re.match(r"--(config|recipe(?!\.town\.))", word) for word in arguments))
        else:
            given[name] = parsed[name]
    function(**given)


def read_recipe(text: str, prog: str = "iidrive recipes") -> Recipe:
    """A recipe by name or from a file. Fields missing in the file are those of `small`. Raises ConfigError."""
    if not is_file(text):
        return named(text)
    parser = Parser(prog)
    parser.add_class_arguments(Recipe, "recipe", default=named("small"))  # pyright: ignore[reportArgumentType]
    _respell(parser)
    return _instantiated(parser, parser.parse_args(["--recipe", text]))["recipe"]


def _instantiated(parser: Parser, parsed: Any) -> Any:
    """The parsed values as config objects. A ConfigError about a recipe names the stage and, if there is one, the file."""
    file = f"{parser.recipe_file}: " if parser.recipe_file else ""
    if isinstance(plain := parsed.get("recipe"), Namespace):
        for name, hint in get_type_hints(Recipe).items():
            if dataclasses.is_dataclass(hint):
                try:  # jsonargparse takes null for a value of any type
                    from_plain(hint, plain[name].as_dict(), name)  # pyright: ignore[reportArgumentType]
                except ConfigError as error:
                    raise ConfigError(f"{file}{'' if str(error).startswith(name) else f'{name}: '}{error}") from error
    try:
        return parser.instantiate(parsed)
    except ConfigError as error:
        raise ConfigError(f"{file}{error}") from error
