"""What must hold in the built site, whatever made it: ``python -m tests.site FOLDER``.

Links lead to pages and places that are there, nothing is loaded from elsewhere, headings do not
skip a level, pictures have a text, pages fit a phone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from posixpath import normpath
from urllib.parse import unquote, urlsplit

LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
    "link": "href",
}
"""Which attribute of a tag makes a browser fetch something."""
NOT_FETCHED = {"canonical", "next", "prev", "index", "search", "author", "genindex"}
ELSEWHERE = re.compile(r"""(?:url\(\s*['"]?|@import\s+['"])(?:https?:)?//""")
WITHOUT_TEXT = {"search.html", "genindex.html", "py-modindex.html"}  # made by Sphinx alone


@dataclass
class Read(HTMLParser):
    """What a page holds.

    Attributes:
        headings: Level of each heading, in order.
        ids: Places that a link can lead to.
        links: Where its links lead.
        loads: What a browser fetches to show it.
        problems: What is wrong with the page by itself.
    """

    headings: list[int] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    fits: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        elif tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "html" and not given.get("lang"):
            self.problems.append("no language")
        elif tag == "meta" and given.get("name") == "viewport":
            self.fits = "width=device-width" in given.get("content", "")
        elif tag == "img" and not given.get("alt", "").strip():
            self.problems.append(f"picture without a text: {given.get('src')}")
        wanted = LOADED.get(tag, "")
        if wanted in given and not set(given.get("rel", "").split()) & NOT_FETCHED:
            self.loads.append(given[wanted])


def problems(files: Mapping[str, str]) -> Iterator[str]:
    """Everything that is wrong with a site.

    Args:
        files: Text of every HTML page and style sheet by its path, and any text for other files.
    """
    pages = {}
    for name, text in files.items():
        if name.endswith(".html"):
            pages[name] = Read()
            pages[name].feed(text)
        elif name.endswith(".css") and ELSEWHERE.search(text):
            yield f"{name}: loads something from elsewhere"
    for name, page in pages.items():
        yield from (f"{name}: {problem}" for problem in _of_page(name, page))
        for link in (*page.links, *page.loads):
            if problem := _of_link(name, link, pages, files):
                yield f"{name}: {problem}"


def _of_page(name: str, page: Read) -> Iterator[str]:
    """What is wrong with a page by itself."""
    yield from page.problems
    if not page.fits:
        yield "no viewport as wide as the device"
    for source in page.loads:
        if urlsplit(source).scheme not in ("", "data") or source.startswith("//"):
            yield f"loads {source} from elsewhere"
    if name in WITHOUT_TEXT:
        return
    if page.headings.count(1) != 1 or page.headings[:1] != [1]:
        yield f"headings begin {page.headings[:3]}, not with the only h1"
    for upper, lower in zip(page.headings, page.headings[1:], strict=False):
        if lower > upper + 1:
            yield f"an h{lower} follows an h{upper}"


def _of_link(
    name: str, link: str, pages: Mapping[str, Read], files: Mapping[str, str]
) -> str | None:
    """What is wrong with a link, if it leads within the site."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    folder = PurePosixPath(name).parent
    target = normpath(str(folder / unquote(parts.path))) if parts.path else name
    if target not in files:
        return f"broken link {link}"
    place = unquote(parts.fragment)
    if place and target in pages and place not in pages[target].ids:
        return f"link to a missing place {link}"
    return None


def read(folder: Path) -> dict[str, str]:
    """The files of a site, by their paths."""
    texts = {".html", ".css"}
    return {
        path.relative_to(folder).as_posix(): (
            path.read_text(encoding="utf-8") if path.suffix in texts else ""
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def main(folder: str) -> int:
    """Prints what is wrong; 0 where nothing is."""
    files = read(Path(folder))
    pages = sum(name.endswith(".html") for name in files)
    found = list(problems(files))
    lines = [*found, f"{folder}: {pages} pages, {len(found)} problems"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if found or "index.html" not in files else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
