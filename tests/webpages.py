"""The HTML page of runs, taken apart for tests."""

from __future__ import annotations

from html.parser import HTMLParser
from importlib.resources import files

from nispa.runs.record import Record
from nispa.webpage import Run, page

VOID = {"meta", "input", "br", "hr", "img", "link"}
ALLOWED = {
    *("html", "head", "meta", "title", "style", "script", "body", "main", "header", "nav"),
    *("section", "details", "summary", "div", "p", "span", "strong", "code", "a", "button"),
    *("h1", "h2", "h3", "h4", "table", "caption", "thead", "tbody", "tr", "th", "td", "input"),
    *("dl", "dt", "dd", "figure", "figcaption", "svg", "desc", "path", "text", "g", "rect"),
    *("defs", "pattern", "fieldset", "legend", "label"),
}


class Page(HTMLParser):
    """What a page holds; elements that are not closed in order fail at once."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.raw = {"script": "", "style": ""}
        self.feed(data.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.raw:
            self.raw[self.open[-1]] += data
        else:
            self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag == name]


def made(*records: Record) -> Page:
    return Page(page([Run(f"run {k}", each) for k, each in enumerate(records)]))


def harmless(found: Page) -> None:
    """Nothing runs but the page's own script, nothing is fetched, all markup is the page's own."""
    assert {name for name, _ in found.tags} <= ALLOWED
    for name, attrs in found.tags:
        for key, value in attrs.items():
            assert not key.startswith("on")
            assert key not in ("style", "src", "srcdoc", "action", "formaction")
            assert key != "href" or str(value).startswith("#")
            assert str(value).isprintable(), (name, key)
    assert len(found.all("script")) == len(found.all("style")) == 1
    for kind, file in (("script", "script.js"), ("style", "style.css")):
        assert found.raw[kind] == (files("nispa.webpage") / file).read_text(encoding="utf-8")
    assert "NaN" not in found.text
    for svg in ("path", "text", "rect", "svg"):
        for attrs in found.all(svg):
            numbers = " ".join(str(attrs.get(key)) for key in ("d", "x", "y", "data-x", "viewbox"))
            assert "nan" not in numbers
            assert "inf" not in numbers
