"""Whether a built site can be read without a network: no page or style sheet asks another host for anything.

    python .ci/offline.py build/site

Links that a reader may click are allowed. Scripts, styles, fonts, pictures and frames must lie in the site.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

OUTSIDE = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
LOADED = re.compile(r"""(?:url\(|@import\s)\s*["']?\s*((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
NAMING = {"canonical", "alternate", "next", "prev", "author", "license", "edit"}
"""Values of `rel` of a <link> that is not fetched when the page opens."""


class Page(HTMLParser):
    """Collects what one page fetches from another host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        fetched = [given[name] for name in ("src", "srcset", "poster", "data") if name in given]
        if tag == "link" and not NAMING & set(given.get("rel", "").split()):
            fetched.append(given.get("href", ""))
        self.found += [f"<{tag}> {value}" for value in fetched if OUTSIDE.match(value)]
        self.found += [f"style of <{tag}>: {address}" for address in LOADED.findall(given.get("style", ""))]
        if "mermaid" in given.get("class", "").split():
            self.found.append(f"<{tag} class=mermaid>, which the theme draws with a script from another host")


def requests(path: Path) -> list[str]:
    """What a page or a style sheet fetches from another host."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".css":
        return LOADED.findall(text)
    page = Page()
    page.feed(text)
    return page.found + [
        address for block in re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL) for address in LOADED.findall(block)
    ]


def main() -> None:
    """Name every request to another host; exit status 1 if there is one, or if there is no page."""
    site = Path(sys.argv[1])
    files = [path for path in sorted(site.rglob("*")) if path.suffix in (".html", ".css", ".svg")]
    found = [f"{path}: {request}" for path in files for request in requests(path)]
    if not any(path.suffix == ".html" for path in files):
        found.append(f"{site}: no page")
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
