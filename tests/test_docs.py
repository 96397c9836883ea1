"""What README and docs quote: commands and their options exist, both READMEs say the same, the picture of the floors is that of the contract."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from iidrive.cli.main import Command, named
from iidrive.cli.parser import Parser, parser_of

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
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


@pytest.mark.slow
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


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs form them from plain headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading)).strip().lower().replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    """Relative links of a page whose file, or whose heading in a Markdown file, does not exist."""
    dead = []
    for target, anchor in LINK.findall(FENCE.sub("", page.read_text())):
        path = page.parent / target if target else page
        if "://" in target:
            continue
        if not path.exists() or (anchor and anchor not in anchors(path.read_text())):
            dead.append(f"{target}#{anchor}" if anchor else target)
    return dead


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("docs/")] + ["iidrive/weights/town-small/README.md"])
def test_relative_links_lead_somewhere(page: str) -> None:
    assert dead_links(ROOT / page) == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# One `two`: three\n")
    (tmp_path / "a.md").write_text(
        "# A\n[x](b.md) [x](b.md#one-two-three) [x](#a) [x](https://example.org/y) [x](c.md) [x](b.md#four) [x](#b)\n"
    )
    assert dead_links(tmp_path / "a.md") == ["c.md", "b.md#four", "#b"]


def test_the_picture_of_the_floors_is_the_contract() -> None:
    source, drawn = ((ROOT / "docs" / "pictures" / name).read_text() for name in ("floors.mmd", "floors.svg"))
    block = re.search(r"^layers = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert block
    floors = [set(floor.split(" | ")) for floor in re.findall(r'"([^"]*)"', block[1])]
    order = re.sub(r'\["[^"]*"\]|%%.*|flowchart TD', "", source).replace("\n", " --> ").split("-->")
    chain = [set(step.split(" & ")) for step in map(str.strip, order) if step]
    assert [floor for k, floor in enumerate(chain) if k == 0 or floor != chain[k - 1]] == floors
    for label in re.findall(r'\["([^"]*)"\]', source):
        assert all(word in drawn for word in label.split())


def test_requests_to_other_hosts_are_found(tmp_path: Path) -> None:
    page = tmp_path / "site" / "a.html"
    page.parent.mkdir()
    page.write_text('<a href="https://example.org">read</a><link rel="canonical" href="https://example.org/a"><script src="a.js"></script>')
    check = [sys.executable, str(ROOT / ".ci" / "offline.py"), str(page.parent)]
    assert subprocess.run(check).returncode == 0
    for wrong in (
        '<script src="https://example.org/a.js"></script>',
        '<link rel="stylesheet" href="//example.org/a.css">',
        "<style>@import url(https://example.org/a.css)</style>",
        '<pre class="mermaid">a</pre>',
    ):
        page.write_text(wrong)
        assert subprocess.run(check, capture_output=True).returncode == 1
    page.unlink()
    assert subprocess.run(check, capture_output=True).returncode == 1
