"""What README and docs quote: commands and their options exist, both READMEs say the same, the picture of the floors is that of the contract."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from iidrive.cli.main import Command, named
from iidrive.cli.parser import Parser, parser_of

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "README.zh-CN.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))),
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CALL = re.compile(r"(?:^|[\s/])iidrive ((?:--?)?[a-z].*)")


def quoted(text: str) -> Iterator[str]:
    """What follows `iidrive` in each command of a page: lines of code blocks, and code within sentences."""
    for language, block in FENCE.findall(text):
        if language in ("bash", ""):
            lines = block.replace("\\\n", " ").split("\n")
            yield from (found[1] for line in lines if not line.startswith("iidrive: ") and (found := CALL.search(line)))
    for code in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
        if (found := CALL.search(" " + code.replace("\n", " "))) and not re.match(r"iidrive\.", code):
            yield found[1]


@cache
def parser(words: tuple[str, ...]) -> tuple[Parser, int]:
    """The parser of a command, and of how many words its name is."""
    prog, command, rest = named(words)
    assert isinstance(command, Command)
    return parser_of(command.function(), prog, command.without), len(words) - len(rest)


def unknown_options(call: str) -> list[str]:
    """Options of a quoted call that its command does not take."""
    words = [word for word in shlex.split(call, comments=True) if word not in ("…", "...")]
    if words[0].startswith("-"):
        return [word for word in words if word != "--help"]
    name = tuple(words[:2] if words[0] in ("train", "study", "import", "export") else words[:1])
    if "--help" in name or "--help" in words or len(words) == 1:
        return []
    options, _ = parser(name)
    known = options._option_string_actions
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    return [option for option in given if option not in known and option.replace("-", "_").replace("__", "--", 1) not in known]


@pytest.mark.parametrize("page", PAGES)
def test_quoted_options_exist(page: str) -> None:
    calls = list(quoted((ROOT / page).read_text()))
    wrong = {call: unknown for call in calls if (unknown := unknown_options(call))}
    assert not wrong


def test_quoted_commands_are_found() -> None:
    text = "```bash\n.venv/bin/iidrive demo --train  # so\nsrun x iidrive score a --json b\n```\nand `iidrive demo --trian`, `import iidrive` too"
    assert list(quoted(text)) == ["demo --train  # so", "score a --json b", "demo --trian"]
    assert unknown_options("demo --trian") == ["--trian"]
    assert unknown_options("demo --recipe.town.seed 5") == []
    assert unknown_options("demo --recipe.town.sead 5") == ["--recipe.town.sead"]


def test_both_readmes_quote_the_same_commands() -> None:
    english, chinese = ((ROOT / page).read_text() for page in ("README.md", "README.zh-CN.md"))

    def calls(text: str) -> list[list[str]]:
        blocks = [
            shlex.split(line, comments=True) for language, block in FENCE.findall(text) if language == "bash" for line in block.split("\n")
        ]
        return [words for words in blocks if words]

    def numbers(text: str) -> list[str]:
        return re.findall(r"\d[\d.,]*\d", "\n".join(line for line in text.split("\n") if line.startswith("|")))

    assert calls(english) == calls(chinese)
    assert numbers(english) == numbers(chinese)
