"""The command line: which commands there are, and how their arguments are spelled."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, auto_cli

from iidrive.cli.cache import cache
from iidrive.cli.evaluate import audit, demo, evaluate, lineage, swap
from iidrive.cli.options import console
from iidrive.cli.reproduce import reproduce
from iidrive.cli.score import cases, compare, doctor, score, score_occupancy
from iidrive.cli.train import tokens, train_planner, train_tokenizer, train_world
from iidrive.cli.weights import export_ii_world, import_ii_world
from iidrive.core.config_io import to_plain
from iidrive.core.errors import ConfigError, IIDriveError
from iidrive.pipeline import recipes
from iidrive.runtime import distributed
from iidrive.runtime.distributed import SharedError
from iidrive.training.options import StopRequested

COMMANDS: dict[str, Any] = {
    "demo": demo,
    "train": {"_help": "Train a stage.", "tokenizer": train_tokenizer, "world": train_world, "planner": train_planner},
    "tokens": tokens,
    "evaluate": evaluate,
    "cases": cases,
    "score": score,
    "score-occupancy": score_occupancy,
    "compare": compare,
    "doctor": doctor,
    "audit": audit,
    "import": {"_help": "Bring in weights of another project.", "ii-world": import_ii_world},
    "export": {"_help": "Give weights to another project.", "ii-world": export_ii_world},
    "lineage": lineage,
    "reproduce": reproduce,
    "swap": swap,
    "cache": cache,
}
MANY = ("lineage", "swap", "compare", "doctor")
"""Commands that take any number of paths."""
ONE = {"score": "cases"}
"""Commands that take one path or none, and the option it is the value of."""


NAMED_RUN = ("train", "evaluate", "swap")
"""Commands whose run folder can be given as --out too: torchrun takes --run for an option of its own."""


class Parser(ArgumentParser):
    """Shows options as they are typed: `--test-ii`, where a field of a recipe keeps its own name."""

    def format_help(self, *args: Any, **options: Any) -> str:
        """The help text, dashes for underscores in the names of options."""
        return _dashed(super().format_help(*args, **options))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Wrong usage is one sentence too."""
        where = getattr(ex, "subcommand_parser", None) or self
        message = re.sub(r'Parser key "([\w.]+)"', r"--\1", " ".join(message.split()))
        message = re.sub(
            r"a (?:typing\.Literal\[([^]]*)\]|<class '(\w+)'>)", lambda found: f"one of {found[1]}" if found[1] else found[2], message
        )
        sentence = _dashed(message).rstrip(".")
        raise ConfigError(f"{sentence}. `{where.prog.replace(' [options]', '')} --help` lists every option.") from ex


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: errors that iidrive raises on purpose are printed as one sentence, exit status 2."""
    try:
        spelled = _spell(sys.argv[1:] if arguments is None else arguments)
        auto_cli(COMMANDS, args=spelled, as_positional=True, prog="iidrive", parser_class=Parser)
    except StopRequested as error:
        console.print(f"iidrive: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.status)
    except IIDriveError as error:
        console.quiet &= isinstance(error, SharedError)  # what happened in one process alone, that process says
        console.print(f"iidrive: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        console.print(f"iidrive: cannot read or write {error.filename or 'a file'}: {error.strerror}.", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("iidrive: stopped. Checkpoints written so far are whole; `--resume on` goes on from the newest.")
        sys.exit(130)
    finally:
        distributed.leave()


def _dashed(text: str) -> str:
    return re.sub(r"(?<![\w-])--[a-z_]+(?![\w.])", lambda found: found[0].replace("_", "-"), text)


def _spell(arguments: Sequence[str]) -> list[str]:
    """`--test-ii` as `--test_ii`, a recipe's name as its values, so that overrides can follow it, and many paths as one list."""
    if arguments and arguments[0] in MANY:
        arguments = _gather(arguments)
    if arguments and arguments[0] in ONE:
        arguments = _name_first(arguments)
    out: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == "--out" and arguments[0] in NAMED_RUN:
            name = "--run"
        if name.startswith("--"):
            argument = "--" + name[2:].replace("-", "_") + equals + value
        if arguments[0] == "reproduce":
            pass
        elif name == "--recipe" and value and not recipes.is_file(value):
            argument = f"--recipe={json.dumps(to_plain(recipes.named(value)))}"
        elif out and out[-1] == "--recipe" and not recipes.is_file(argument):
            argument = json.dumps(to_plain(recipes.named(argument)))
        out.append(argument)
    return out


def _gather(arguments: Sequence[str]) -> list[str]:
    """File names as one list wherever they stand."""
    options, files = _apart(arguments)
    return [arguments[0], *options, *([json.dumps(files)] if files else [])]


def _name_first(arguments: Sequence[str]) -> list[str]:
    """`score CASES` as `score --cases=CASES`."""
    options, files = _apart(arguments)
    name = ONE[arguments[0]]
    if len(files) + sum(option.partition("=")[0] == f"--{name}" for option in options) > 1:
        raise ConfigError(
            f"{arguments[0]} takes one {name} file; found {', '.join(files)}. Every other file follows an option, as in --predictions FILE."
        )
    return [arguments[0], *options, *(f"--{name}={file}" for file in files)]


def _apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Options with their values, and files; `--tables` and `--grid` as switches."""
    options, files, rest = [], [], iter(arguments[1:])
    for argument in rest:
        if argument in ("--tables", "--grid"):
            options.append(f"{argument}=true")
        elif argument.startswith("-"):
            # joined to its value, which would pass for a file after an option that there is not
            value = None if "=" in argument or argument in ("-h", "--help") else next(rest, None)
            options.append(argument if value is None else f"{argument}={value}")
        else:
            files.append(argument)
    return options, files
