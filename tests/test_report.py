"""The index page: complete, escaped, and without network access."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from iidrive.core.errors import DataError
from iidrive.report.page import Page, Table, render, write_index

EVIL = '<script>alert("1")</script> & <b>bold</b>'
PAGE = Page(
    "Two models & a town",
    "What they plan.",
    facts=[("data", "town, seed 0"), ("seconds", "12")],
    tables=[
        ("planning", Table(("planner", "L2 3 s"), [("ii on", "0.31 ± 0.02"), ("ii off", "—")])),
        ("forecast", "  mIoU   IoU\n  31.2  42.1"),
    ],
    pictures=[("a scene", "figures/scene 1#.png")],
    notes=["A small run.", "Another note."],
)
VOID = {"meta", "img", "link", "br"}


class _Reader(HTMLParser):
    """Tags with attributes, the text within each kind of tag, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.text.setdefault(self.open[-1], []).append(data)

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run" / "figures").mkdir(parents=True)
    (tmp_path / "run" / "figures" / "scene 1#.png").write_bytes(b"picture")
    return tmp_path / "run"


def test_the_page_contains_everything(folder: Path) -> None:
    path = write_index(folder, PAGE)
    assert path == folder / "index.html"
    assert sorted(p.name for p in folder.iterdir()) == ["figures", "index.html"], "no temporary file stays"
    page = _Reader(path.read_text(encoding="utf-8"))
    assert page.open == [], "every tag is closed"
    assert page.attributes("html") == [{"lang": "en"}]
    assert page.text["title"] == page.text["h1"] == ["Two models & a town"]
    assert page.text["p"] == ["What they plan."]
    assert page.text["dt"] == ["data", "seconds"]
    assert page.text["dd"] == ["town, seed 0", "12"]
    assert page.text["li"] == ["A small run.", "Another note."]
    assert page.text["a"] == ["figures/scene 1#.png"]
    assert page.text["span"] == ["7 B"]
    assert page.text["button"] == ["planner", "L2 3 s"]
    assert page.text["td"] == ["ii on", "0.31 ± 0.02", "ii off", "—"]
    assert page.text["pre"] == ["\n  mIoU   IoU\n  31.2  42.1"]
    assert page.text["figcaption"] == ["planning", "forecast", "a scene"]
    (picture,) = page.attributes("img")
    assert picture["alt"] == "a scene"
    assert (folder / unquote(str(picture["src"]))).read_bytes() == b"picture"


def test_the_page_loads_nothing_from_the_network(folder: Path) -> None:
    text = write_index(folder, PAGE).read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    page = _Reader(text)
    assert page.attributes("script") == [{}], "written into the page"
    assert not _Reader(render(Page("No table", "", tables=[("text", "1 2")]))).attributes("script")
    assert not page.attributes("link")
    assert "prefers-color-scheme" in text


def test_everything_is_escaped() -> None:
    everywhere = Page(
        EVIL,
        EVIL,
        [(EVIL, EVIL)],
        [(EVIL, EVIL), (EVIL, Table((EVIL,), [(EVIL,)]))],
        [(EVIL, "a.png"), (EVIL, 'b" onerror="x.png')],
        [EVIL],
    )
    text = render(everywhere)
    assert text.count("<script>") == 1, "the page's own"
    assert "alert(" not in text.split("<script>")[1]
    assert "<b>" not in text
    page = _Reader(text)
    assert all(set(a) == {"src", "alt"} for a in page.attributes("img")), "no attribute slips in"
    assert [a["alt"] for a in page.attributes("img")] == [EVIL, EVIL]
    for tag in ("title", "h1", "p", "dt", "dd", "button", "td", "li"):
        assert page.text[tag] == [EVIL], tag


def test_an_almost_empty_page(tmp_path: Path) -> None:
    page = _Reader(write_index(tmp_path / "new" / "run", Page("Title", "Lead.")).read_text(encoding="utf-8"))
    assert page.open == []
    assert "h2" not in page.text, "no heading stands over nothing"


def test_a_second_page_replaces_the_first(tmp_path: Path) -> None:
    write_index(tmp_path, Page("First", ""))
    write_index(tmp_path, Page("Second", ""))
    assert [p.name for p in tmp_path.iterdir()] == ["index.html"]
    assert "First" not in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_numeric_columns_are_detected() -> None:
    rows = [("a", "1.5", "3%", "-0.2 [-0.4, 0.1]", "—", "1e-3"), ("2", "—", "12", "1.2 ± 0.1", "", "nan")]
    table = Table(tuple("abcdef"), rows)
    assert [table.numeric(k) for k in range(6)] == [False, True, True, True, False, True]


def test_intervals_are_drawn_in_the_range_of_their_column() -> None:
    table = Table(("planner", "EPDMS"), [("a", "40.0 [30, 50]"), ("b", "60.0 [55, 70.0]"), ("c", "-")])
    first, second = table.span(0, 1), table.span(1, 1)
    assert first is not None
    assert second is not None
    assert (first.value, first.interval) == ("40.0", "[30, 50]")
    assert (first.low, second.high) == (2, 98)
    assert first.at == 2 + 96 * 10 / 40
    assert table.span(2, 1) is None
    assert table.span(0, 0) is None
    assert table.numeric(1)
    text = render(Page("t", "", tables=[("drives", table)]))
    assert text.count("<svg") == 2
    assert _Reader(text).text["small"] == ["[30, 50]", "[55, 70.0]"]
    alone = Table(("x",), [("1 [1, 1]",)]).span(0, 0)
    assert alone is not None
    assert alone.at == 50
    assert Table(("x",), [("1 [a, b]",)]).span(0, 0) is None


def test_every_file_is_linked_and_folders_of_many_are_one_line(folder: Path) -> None:
    (folder / "scores.json").write_text("{}" * 700)
    (folder / ".hidden").write_text("")
    (folder / "rollouts" / "deep").mkdir(parents=True)
    for k in range(13):
        (folder / "rollouts" / "deep" / f"{k}.npz").write_bytes(b"")
    write_index(folder, PAGE)
    page = _Reader(write_index(folder, PAGE).read_text(encoding="utf-8"))
    assert page.text["a"] == ["figures/scene 1#.png", "rollouts/", "scores.json"]
    assert page.text["span"] == ["7 B", "13 files", "1 kB"]
    assert [(folder / unquote(str(a["href"]))).exists() for a in page.attributes("a")] == [True] * 4  # and the picture's own


@pytest.mark.parametrize(
    "name", ["missing.png", "/etc/hostname", "../run/figures/scene 1#.png", "https://example.org/a.png", "figures\\a.png"]
)
def test_pictures_must_lie_in_the_folder(folder: Path, name: str) -> None:
    with pytest.raises(DataError, match="a scene"):
        write_index(folder, replace(PAGE, pictures=[("a scene", name)]))
    assert not (folder / "index.html").exists()


def test_views_are_shown_inside_the_page_and_must_lie_in_the_folder(folder: Path) -> None:
    (folder / "scene 1.html").write_text("view")
    page = _Reader(write_index(folder, replace(PAGE, views=[("drag to turn", "scene 1.html")])).read_text(encoding="utf-8"))
    (frame,) = page.attributes("iframe")
    assert (folder / unquote(str(frame["src"]))).read_text() == "view"
    assert frame["title"] == "drag to turn"
    with pytest.raises(DataError, match="no view"):
        write_index(folder, replace(PAGE, views=[("no view", "gone.html")]))


def test_rows_must_fit_the_header() -> None:
    with pytest.raises(DataError, match="row 2"):
        Table(("a", "b"), [("1", "2"), ("1",)])
