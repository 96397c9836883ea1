"""The HTML page of a run: tables, pictures, facts and files. Style and script are inline, and nothing is loaded from the network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jinja2 import Environment, StrictUndefined

from iidrive.core.errors import DataError
from iidrive.report.page_parts import SCRIPT, STYLE, TEMPLATE
from iidrive.runtime.run_folder import Run

ABSENT = ("", "-", "–", "—", "nan", "n/a")
NUMBER = re.compile(r"[-+−\[(]?\d[-+−±\d.,e%/()\[\]\s]*")
"""A number with an optional unit, spread or interval, such as `1.2 ± 0.1` or `3%`. A numeric column holds these and values of `ABSENT`."""

_WITH_INTERVAL = re.compile(r"([-+−]?[\d.,e+-]+)\s*(\[([-+−]?[\d.e+-]+), ([-+−]?[\d.e+-]+)\])")
MOST_LISTED = 12
"""A subfolder with more files than this is listed as one line."""


@dataclass(frozen=True)
class Span:
    """A value with its interval, as written, and their positions within the range of the column, 0..100."""

    value: str
    interval: str
    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Table:
    """A header and rows of cells. Numeric columns are right-aligned, and the page can sort by any column.

    A cell like `59.1 [51.2, 67.0]` is a value with its interval, which is also drawn as a bar.

    Raises:
        DataError: if a row has another length than the header.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows, start=1):
            if len(row) != len(self.header):
                raise DataError(
                    f"row {number} of a table has {len(row)} cells {list(row)} under {len(self.header)} headings {list(self.header)}."
                )

    def numeric(self, column: int) -> bool:
        """Whether a column has only numbers and absent values, and at least one number."""
        cells = [str(row[column]).strip() for row in self.rows]
        return all(cell in ABSENT or NUMBER.fullmatch(cell) for cell in cells) and any(map(NUMBER.fullmatch, cells))

    def span(self, row: int, column: int) -> Span | None:
        """The interval of a cell, scaled to the range of its column; None if the cell has no interval."""
        spans = [_interval(str(cells[column])) for cells in self.rows]
        mine = spans[row]
        if mine is None:
            return None
        known = [number for interval in spans if interval is not None for number in interval[2]]
        lowest, width = min(known), max(known) - min(known)
        at, low, high = (round(2 + 96 * (number - lowest) / width, 1) if width else 50.0 for number in mine[2])
        return Span(mine[0], mine[1], at, low, high)


@dataclass(frozen=True)
class Page:
    """The content of a page. All text is plain and will be escaped.

    `lead`: one paragraph below the title. `facts`: (name, value). `tables`: (caption, preformatted text or a `Table`). `pictures`, `views`: (caption,
    path relative to the page's folder, with forward slashes). Views are separate HTML pages embedded in this one.
    """

    title: str
    lead: str
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[tuple[str, str | Table]] = ()
    pictures: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    views: Sequence[tuple[str, str]] = ()


def _interval(cell: str) -> tuple[str, str, tuple[float, float, float]] | None:
    """Value and interval of a cell as written, and as numbers (value, low, high); None for anything else."""
    match = _WITH_INTERVAL.fullmatch(cell.strip())
    if match is None:
        return None
    try:
        numbers = [float(match[k].replace("−", "-")) for k in (1, 3, 4)]
    except ValueError:
        return None
    return match[1], match[2], (numbers[0], numbers[1], numbers[2])


def render(page: Page, files: Sequence[tuple[str, str]] = ()) -> str:
    """The page as HTML text. `files` are (path relative to the page's folder, size)."""
    # All content is untrusted, so everything is escaped. A misspelt name in the template is an error.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    sortable = any(isinstance(table, Table) for _, table in page.tables)
    return environment.from_string(TEMPLATE).render(page=page, style=STYLE, script=SCRIPT, sortable=sortable, files=files)


def files_in(folder: Path) -> list[tuple[str, str]]:
    """The files below a folder as (relative path, size). A subfolder with many files is one entry; hidden files are left out."""
    return [entry for entry in _listed(folder, "") if entry[0] != "index.html"]


def _listed(folder: Path, within: str) -> list[tuple[str, str]]:
    found = []
    for path in sorted(folder.iterdir()):
        name = f"{within}{path.name}"
        if path.name.startswith("."):
            continue
        if path.is_file():
            found.append((name, _size(path.stat().st_size)))
        elif path.is_dir():
            files = sum(one.is_file() for one in path.rglob("*"))
            found += [(f"{name}/", f"{files} files")] if files > MOST_LISTED else _listed(path, f"{name}/")
    return found


def _size(size: int) -> str:
    return f"{size} B" if size < 1000 else f"{size / 1e3:.0f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"


def write_index(folder: Path | str, page: Page) -> Path:
    """Write `folder`/index.html, with links to every file of the folder, atomically; create the folder. Returns the path of the page.

    Raises:
        DataError: if a picture is not in the folder, or its path leaves the folder.
    """
    folder = Path(folder)
    for caption, name in (*page.pictures, *page.views):
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts or ":" in name or "\\" in name:
            raise DataError(f"picture '{caption}': expected a path below the page's folder, like figures/scene.png; found '{name}'.")
        if not (folder / relative).is_file():
            raise DataError(f"picture '{caption}': {folder / relative} does not exist; write the picture before the page that shows it.")
    folder.mkdir(parents=True, exist_ok=True)
    return Run(folder).write_text("index.html", render(page, files_in(folder)))
