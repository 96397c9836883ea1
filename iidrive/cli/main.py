"""The command line's entry point and list of commands. Modules of a command are imported only when that command runs."""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from iidrive.core.errors import ConfigError, IIDriveError, unknown
from iidrive.core.text import printable_line


@dataclass(frozen=True)
class Command:
    """A command: one line of help, a loader of its function, and the shared options that it does not accept.

    `function` imports the command's module and returns the function, so it is called only for the command that runs.
    """

    about: str
    function: Callable[[], Callable[..., None]]
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Commands of two words, such as `train planner`."""

    about: str
    commands: Mapping[str, Command]


# These functions return modules, so that the type checker knows the attributes used in COMMANDS.
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
"""Options about occupancy, for commands that do not read it."""

COMMANDS: Mapping[str, Command | Group] = {
    "demo": Command("evaluate the shipped weights, or train your own, with pictures", lambda: _evaluate().demo, ("split",)),
    "train": Group(
        "train a stage",
        {
            "tokenizer": Command("stage 1: the scene tokenizer", lambda: _train().train_tokenizer, ("allow_mismatch",)),
            "world": Command("stage 2: the world model, on the tokens of a tokenizer", lambda: _train().train_world),
            "reactions": Command(
                "a world model's reactions to the ego's plans, for a forecast per candidate", lambda: _train().train_reactions
            ),
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
    "view": Command("write a 3-D page of a sample, or a video of a scene", lambda: _view().view),
    "weights": Command("list the shipped weights, or describe a set of them", lambda: _weights().weights),
    "recipes": Command("list the recipes, or explain every field of one", lambda: _explain().recipes),
    "cases": Command("write the ground truth of a split, to score predictions against", lambda: _score().cases, OCCUPANCY),
    "folds": Command("divide scenes into folds for cross-validation", lambda: _folds().folds, OCCUPANCY),
    "score": Command("score planned paths by public protocols", lambda: _score().score, ("data", *OCCUPANCY)),
    "score-occupancy": Command("score occupancy grids by public rules", lambda: _occupancy().score_occupancy, ("data", *OCCUPANCY)),
    "compare": Command("is A better than B, worse, or is there no significant difference?", lambda: _score().compare),
    "doctor": Command("examine tables, runs, predictions or occupancy for errors", lambda: _score().doctor),
    "audit": Command("test a model for leaks of the future or of other samples", lambda: _evaluate().audit),
    "lineage": Command("print the lineage of models and results, and whether they match", lambda: _evaluate().lineage),
    "swap": Command("score all combinations of the stages of several runs", lambda: _evaluate().swap),
    "cache": Command("show, or clear, the synthetic towns kept on disk", lambda: _cache().cache),
    "reproduce": Command("run one of the five reference runs", lambda: _reproduce().reproduce, ("split",)),
    "import": Group(
        "import weights of another project",
        {"ii-world": Command("convert II-World's files to checkpoints", lambda: _weights().import_ii_world)},
    ),
    "export": Group(
        "export weights to another project",
        {"ii-world": Command("convert checkpoints to II-World's files", lambda: _weights().export_ii_world)},
    ),
}


SAVE_MEMORY = (
    ("iidrive train", "--parallel.micro_batch_size 1 (the same result, slower)"),
    ("iidrive train", "--parallel.activation_checkpointing on (the same result, a tenth to a third slower)"),
    ("iidrive demo", "--recipe tiny (smaller models)"),
    ("iidrive drive", "--scene NAME (one scene at once)"),
    ("iidrive audit", "--samples 4 (fewer samples at once, so fewer are audited)"),
    ("iidrive", "end other programs on this GPU (nvidia-smi lists them)"),
    ("iidrive", "CUDA_VISIBLE_DEVICES= before the command (computes on the CPU: the same up to rounding, but slower)"),
    ("iidrive", "a GPU with more memory"),
)
"""What saves memory when a command runs out of it, by the beginning of the command's name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Errors that a user can cause are printed as one sentence, with exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that the locale lacks must not raise
            stream.reconfigure(errors="backslashreplace")
    try:
        prog, command, rest = named(sys.argv[1:] if arguments is None else arguments)
    except ConfigError as error:
        print(f"iidrive: {_shown(error)}", file=sys.stderr)
        sys.exit(2)
    run(command, prog, rest)


def named(arguments: Sequence[str]) -> tuple[str, Command, Sequence[str]]:
    """The full name of the command in `arguments`, the command, and its own arguments. `--help` before a command lists the commands and exits.

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
    """Parse the arguments of a command and run it. Errors that a user can cause are printed as one sentence, with an exit status."""
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
    except RuntimeError as error:  # in a training step or validation, the training loop has a message of its own
        if not _is_out_of_memory(error):
            raise
        console.print(f"iidrive: {_out_of_memory(prog, error)}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        name = _shown(str(error.filename or "a file"))
        console.print(f"iidrive: cannot read or write {name}: {error.strerror or error}.", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("iidrive: stopped. Checkpoints written so far are complete; `--resume on` continues from the newest.")
        sys.exit(130)
    finally:
        distributed.leave()


def _is_out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _out_of_memory(prog: str, error: object) -> str:
    """Message for a GPU that is out of memory: what was asked of it, and what saves memory at which cost."""
    found = re.search(r"Tried to allocate .*?(?:is free|\.$)", str(error), re.DOTALL | re.MULTILINE)
    ways = [way for name, way in SAVE_MEMORY if prog.startswith(name)]
    return f"the GPU has too little memory for `{prog}`{f' ({_shown(found[0])})' if found else ''}. Use one of: {'; '.join(ways)}."


def _shown(error: object) -> str:
    """A message without control characters, which file names or values may contain. Its own line breaks are kept."""
    return "\n".join(printable_line(line) for line in str(error).split("\n"))


def _list(prog: str, about: str, table: Mapping[str, Command | Group]) -> NoReturn:
    """Print the commands, one line each, and exit."""
    parser = argparse.ArgumentParser(
        prog,
        usage=f"{prog} COMMAND ...",
        description=about,
        epilog=f"`{prog} COMMAND --help` shows the options of a command.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=100),
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, entry in table.items():
        commands.add_parser(name, help=entry.about)
    parser.print_help()
    sys.exit(0)
