"""The command line: which commands there are. What a command needs is imported when it is named, not before."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from iidrive.core.errors import ConfigError, IIDriveError, unknown
from iidrive.core.text import printable_line


@dataclass(frozen=True)
class Command:
    """One line about a command, how to get its function, and which shared options mean nothing for it (they are refused).

    `function` imports what it gives: call it only for the command that was named.
    """

    about: str
    function: Callable[[], Callable[..., None]]
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Commands of two words, such as `train planner`."""

    about: str
    commands: Mapping[str, Command]


# Modules themselves, so that the type checker sees the names that COMMANDS takes from them.
def _train():
    from iidrive.cli import train

    return train


def _evaluate():
    from iidrive.cli import evaluate

    return evaluate


def _view():
    from iidrive.cli import view

    return view


def _drive():
    from iidrive.cli import drive

    return drive


def _study():
    from iidrive.cli import study

    return study


def _score():
    from iidrive.cli import score

    return score


def _occupancy():
    from iidrive.cli import occupancy

    return occupancy


def _derive():
    from iidrive.cli import derive

    return derive


def _weights():
    from iidrive.cli import weights

    return weights


def _reproduce():
    from iidrive.cli import reproduce

    return reproduce


def _explain():
    from iidrive.cli import explain

    return explain


def _folds():
    from iidrive.cli import folds

    return folds


def _cache():
    from iidrive.cli import cache

    return cache


OCCUPANCY = ("occupancy", "gts", "predicted")
"""Options about occupancy: nothing to choose where none is read."""

COMMANDS: Mapping[str, Command | Group] = {
    "demo": Command("evaluate the weights that come with iidrive, or train your own; draw", lambda: _evaluate().demo, ("split",)),
    "train": Group(
        "train a stage",
        {
            "tokenizer": Command("stage 1: the scene tokenizer", lambda: _train().train_tokenizer, ("allow_mismatch",)),
            "world": Command("stage 2: the world model, on a tokenizer's tokens", lambda: _train().train_world),
            "planner": Command("the planner, on top of a world model", lambda: _train().train_planner),
        },
    ),
    "tokens": Command("write the token cache of a split", lambda: _train().tokens),
    "occupancy": Command("write occupancy of scenes that have no labels", lambda: _derive().occupancy, OCCUPANCY),
    "evaluate": Command("score a planner, world model, tokenizer or baseline on a split", lambda: _evaluate().evaluate),
    "drive": Command("drive a planner in closed loop through towns that react", lambda: _drive().drive, OCCUPANCY),
    "study": Group(
        "answer a question by experiment",
        {
            "ii": Command("does a world model help the planner?", lambda: _study().ii),
            "transfer": Command("what do towns teach about real streets?", lambda: _study().transfer, ("split",)),
        },
    ),
    "view": Command("show a sample in three dimensions, as one page", lambda: _view().view),
    "weights": Command("list the weights that come with iidrive, or say all about one", lambda: _weights().weights),
    "recipes": Command("list the recipes, or explain every field of one", lambda: _explain().recipes),
    "cases": Command("write the truth of a split, to score predictions against", lambda: _score().cases, OCCUPANCY),
    "folds": Command("divide scenes, so that each is tested on once", lambda: _folds().folds, OCCUPANCY),
    "score": Command("score planned paths by public protocols", lambda: _score().score, ("data", *OCCUPANCY)),
    "score-occupancy": Command("score occupancy grids by public rules", lambda: _occupancy().score_occupancy, ("data", *OCCUPANCY)),
    "compare": Command("is A better than B, worse, or is there no difference that shows?", lambda: _score().compare),
    "doctor": Command("examine tables, runs or predictions for what looks wrong", lambda: _score().doctor),
    "audit": Command("does anything that a model must not know change its answers?", lambda: _evaluate().audit),
    "lineage": Command("what descends from what, and whether it fits together", lambda: _evaluate().lineage),
    "swap": Command("score all combinations of the stages of some runs", lambda: _evaluate().swap),
    "cache": Command("show, or clear, the synthetic towns kept on disk", lambda: _cache().cache),
    "reproduce": Command("do one of the five reference runs", lambda: _reproduce().reproduce, ("split",)),
    "import": Group(
        "bring in weights of another project",
        {"ii-world": Command("make checkpoints of II-World's files", lambda: _weights().import_ii_world)},
    ),
    "export": Group(
        "give weights to another project",
        {"ii-world": Command("write weights as II-World's files", lambda: _weights().export_ii_world)},
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: errors that iidrive raises on purpose are printed as one sentence, exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale without a character must not end the command
            stream.reconfigure(errors="backslashreplace")
    try:
        prog, command, rest = named(sys.argv[1:] if arguments is None else arguments)
    except ConfigError as error:
        print(f"iidrive: {_shown(error)}", file=sys.stderr)
        sys.exit(2)
    run(command, prog, rest)


def named(arguments: Sequence[str]) -> tuple[str, Command, Sequence[str]]:
    """What to call the command that was named, the command, and its arguments. `--help` before a command lists commands.

    Raises:
        ConfigError: if there is no such command.
    """
    prog, about, table = "iidrive", "Train an II occupancy world model and a planner on it, and score them.", COMMANDS
    for i, word in enumerate(arguments):
        if word in ("-h", "--help"):
            _list(prog, about, table)
        if word not in table:
            what = "option" if word.startswith("-") else "command"
            raise ConfigError(f"{unknown(what, word, ('--help',) if what == 'option' else table)} `{prog} --help` lists every command.")
        prog, found = f"{prog} {word}", table[word]
        if isinstance(found, Command):
            return prog, found, arguments[i + 1 :]
        about, table = found.about, found.commands
    raise ConfigError(f"{prog} needs a command: {', '.join(table)}. `{prog} --help` lists every option.")


def run(command: Command, prog: str, arguments: Sequence[str]) -> None:
    """Parse the arguments of a command and do it. Every error that a user can cause becomes one sentence and an exit status."""
    from iidrive.cli.options import console
    from iidrive.cli.parser import call, parser_of
    from iidrive.runtime import distributed
    from iidrive.runtime.distributed import SharedError
    from iidrive.training.options import StopRequested

    try:
        function = command.function()
        call(function, parser_of(function, prog, command.without), arguments)
    except StopRequested as error:
        console.print(f"iidrive: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.status)
    except IIDriveError as error:
        console.quiet &= isinstance(error, SharedError)  # rank-local errors are printed by that rank
        console.print(f"iidrive: {_shown(error)}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        name = _shown(str(error.filename or "a file"))
        console.print(f"iidrive: cannot read or write {name}: {error.strerror or error}.", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("iidrive: stopped. Checkpoints written so far are whole; `--resume on` goes on from the newest.")
        sys.exit(130)
    finally:
        distributed.leave()


def _shown(error: object) -> str:
    """A message without control characters, whatever a file name or a value put into it; only its own lines stay lines."""
    return "\n".join(printable_line(line) for line in str(error).split("\n"))


def _list(prog: str, about: str, table: Mapping[str, Command | Group]) -> NoReturn:
    """Print the commands, one line each."""
    parser = argparse.ArgumentParser(
        prog,
        usage=f"{prog} COMMAND ...",
        description=about,
        epilog=f"`{prog} COMMAND --help` shows what a command takes.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=100),
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, entry in table.items():
        commands.add_parser(name, help=entry.about)
    parser.print_help()
    sys.exit(0)
