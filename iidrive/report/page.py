"""One HTML page that tells what a run did and what came out: inline style, pictures beside it, nothing from the network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from jinja2 import Environment, StrictUndefined

from iidrive.core.errors import DataError
from iidrive.runtime.run_folder import Run

ABSENT = ("", "-", "–", "—", "nan", "n/a")
NUMBER = re.compile(r"[-+−\[(]?\d[-+−±\d.,e%/()\[\]\s]*")
"""What may stand in a column of numbers: marks of absence, and numbers with their spread or interval, like `1.2 ± 0.1` or `3%`."""


@dataclass(frozen=True)
class Table:
    """A header and rows of cells, all as wide as the header; columns of numbers are set flush right.

    Raises:
        DataError: for a row of another length than the header.
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
        """Whether a column holds numbers (or marks of absence) and at least one number."""
        cells = [str(row[column]).strip() for row in self.rows]
        return all(cell in ABSENT or NUMBER.fullmatch(cell) for cell in cells) and any(map(NUMBER.fullmatch, cells))


@dataclass(frozen=True)
class Page:
    """What the page shows, from the top: title, one paragraph, tables, pictures, facts, notes. All text is plain; it is escaped.

    `facts` are (name, value); `tables` (caption, preformatted text or a `Table`); `pictures` (caption, path relative to the page's
    folder, with forward slashes).
    """

    title: str
    lead: str
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[tuple[str, str | Table]] = ()
    pictures: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()


def render(page: Page) -> str:
    """The page as HTML text."""
    # A page is data from anywhere: everything is escaped, and a name that the template misspells is an error.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE).render(page=page, style=STYLE)


def write_index(folder: Path | str, page: Page) -> Path:
    """Write `folder`/index.html, whole or not at all, and return its path; the folder is made.

    Raises:
        DataError: for a picture that is not in the folder, or whose path leaves it.
    """
    folder = Path(folder)
    for caption, name in page.pictures:
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts or ":" in name or "\\" in name:
            raise DataError(f"picture '{caption}': expected a path below the page's folder, like figures/scene.png; found '{name}'.")
        if not (folder / relative).is_file():
            raise DataError(f"picture '{caption}': {folder / relative} does not exist; write the picture before the page that shows it.")
    folder.mkdir(parents=True, exist_ok=True)
    return Run(folder).write_text("index.html", render(page))


STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #5b6472; --line: #dfe3e8; --paper: #ffffff; --shade: #f5f7f9; --mark: #0b63a5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #9aa4b2; --line: #343b45; --paper: #14181d; --shade: #1c2128; --mark: #6cb6f2; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2.2rem 1.4rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { margin: 0 0 .5rem; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 2.4rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); font-size: 1.25rem; }
.lead { margin: 0; max-width: 48rem; color: var(--soft); font-size: 1.1rem; }
figure { margin: 0 0 1.8rem; }
figcaption { margin: .45rem 0; max-width: 60rem; color: var(--soft); font-size: .95rem; }
.table > figcaption { color: var(--ink); font-weight: 600; }
img { display: block; width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; background: #ffffff; }
.scroll, pre { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; background: var(--shade); }
pre { margin: 0; padding: .8rem 1rem; }
pre, table { font: .85rem/1.5 ui-monospace, Consolas, "DejaVu Sans Mono", monospace; }
table { border-collapse: collapse; min-width: 100%; }
th, td { padding: .32rem .9rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.4rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
li { margin: .3rem 0; max-width: 60rem; }
a:focus-visible { outline: 3px solid var(--mark); outline-offset: 2px; display: block; }
@media (max-width: 40rem) {
  body { padding: 1.2rem .9rem 3rem; }
  h1 { font-size: 1.5rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .6rem; }
}
@media print { body { max-width: none; padding: 0; } figure { break-inside: avoid; } }
"""

TEMPLATE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ page.title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<header>
<h1>{{ page.title }}</h1>
<p class="lead">{{ page.lead }}</p>
</header>
<main>
{% if page.tables %}
<section>
<h2>Results</h2>
{% for caption, table in page.tables %}
<figure class="table">
<figcaption>{{ caption }}</figcaption>
{% if table is string %}
<pre tabindex="0">
{{ table }}</pre>
{% else %}
<div class="scroll" tabindex="0">
<table>
<thead><tr>
{%- for name in table.header %}<th scope="col"{% if table.numeric(loop.index0) %} class="number"{% endif %}>{{ name }}</th>{% endfor -%}
</tr></thead>
<tbody>
{% for row in table.rows %}
<tr>
{%- for cell in row %}<td{% if table.numeric(loop.index0) %} class="number"{% endif %}>{{ cell }}</td>{% endfor -%}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endif %}
</figure>
{% endfor %}
</section>
{% endif %}
{% if page.pictures %}
<section>
<h2>Pictures</h2>
{% for caption, path in page.pictures %}
<figure>
<a href="{{ path | urlencode }}"><img src="{{ path | urlencode }}" alt="{{ caption }}"></a>
<figcaption>{{ caption }}</figcaption>
</figure>
{% endfor %}
</section>
{% endif %}
{% if page.facts %}
<section>
<h2>How this was made</h2>
<dl>
{% for name, value in page.facts %}
<dt>{{ name }}</dt><dd>{{ value }}</dd>
{% endfor %}
</dl>
</section>
{% endif %}
{% if page.notes %}
<section>
<h2>Notes</h2>
<ul>
{% for note in page.notes %}
<li>{{ note }}</li>
{% endfor %}
</ul>
</section>
{% endif %}
</main>
</body>
</html>
"""
