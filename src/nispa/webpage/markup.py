"""HTML and SVG as a tree of elements, so that no text can become markup.

Records may come from anyone. Nothing on the page is joined from strings: the serialiser of the
standard library escapes every text and attribute, except the page's own style and script.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element, tostring

Node = Element | str | None


def tag(name: str, /, *children: Node, **attributes: str | int | float | None) -> Element:
    """An element.

    Args:
        name: Its tag.
        children: Elements and texts in order; None is skipped.
        attributes: ``class_`` stands for ``class``, other underscores for hyphens; None leaves an
            attribute out.
    """
    element = Element(name)
    for key, value in attributes.items():
        if value is not None:
            element.set(key.rstrip("_").replace("_", "-"), clean(str(value)))
    return add(element, *children)


def add(element: Element, *children: Node) -> Element:
    """Appends children to an element and returns it."""
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif child and len(element):
            element[-1].tail = (element[-1].tail or "") + clean(child)
        elif child:
            element.text = (element.text or "") + clean(child)
    return element


def clean(text: str) -> str:
    """A text without control characters, surrogates and marks that turn the writing direction."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def raw(name: str, text: str) -> Element:
    """A ``style`` or ``script`` element with this package's own text, not escaped."""
    if "</" in text:
        raise ValueError(f"'</' would end the {name} element")
    element = Element(name)
    element.text = text
    return element


def render(element: Element) -> str:
    """The element as HTML."""
    return tostring(element, encoding="unicode", method="html")


def cell(value: Node, *, number: bool = False, head: bool = False) -> Element:
    """A cell of a table's body: a number, a text, or the head of its row."""
    if head:
        return tag("th", value, scope="row")
    long = isinstance(value, str) and len(value) > 40
    return tag("td", value, class_=None if number else "t long" if long else "t")


def table(
    caption: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[Node]],
    *,
    id_: str | None = None,
    texts: Iterable[int] = (),
) -> Element:
    """A table in a box that scrolls sideways on a narrow screen.

    Args:
        caption: Its caption, also the accessible name of the box.
        heads: The heads of its columns.
        rows: Cells, the first of which is the row's head; ``td`` and ``th`` elements stay as given.
        id_: Its id on the page.
        texts: Columns of text, aligned left; all others hold numbers.
    """
    left = {0, *texts}
    head = tag("tr")
    for k, text in enumerate(heads):  # long heads of numbers get room, not many lines
        look = None if k in left else "n wide" if len(text) > 14 else "n"
        add(head, tag("th", text, scope="col", class_=look))
    body = tag("tbody")
    for values in rows:
        line = tag("tr")
        for k, value in enumerate(values):
            ready = isinstance(value, Element) and value.tag in ("td", "th")
            add(line, value if ready else cell(value, number=k not in left, head=k == 0))
        body.append(line)
    made = tag("table", tag("caption", caption), tag("thead", head), body, id=id_)
    return scroll(caption, made)


def scroll(label: str, content: Element) -> Element:
    """A box that scrolls sideways, also with the keyboard."""
    return tag("div", content, class_="scroll", role="region", aria_label=label, tabindex=0)


def folded(summary: str, *content: Node) -> Element:
    """Content that opens with a click or a key, without a script."""
    return tag("details", tag("summary", summary), *content)


def figure(caption: str | None, chart: Node, *others: Node) -> Element:
    """A chart with its caption, and what belongs below it."""
    return tag("figure", tag("figcaption", caption) if caption else None, chart, *others)


def warn(*children: Node) -> Element:
    """A paragraph that a reader must not miss."""
    return tag("p", *children, class_="warn")


def count(value: int | None) -> str:
    """A count with separators of thousands; empty if unknown."""
    return "" if value is None else f"{value:,}"


def listed(names: Sequence[str], most: int = 6) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
