"""HTML and SVG as a tree of elements, so that no text can become markup.

Records may come from strangers. Nothing on the page is put together from strings: the serialiser of
the standard library escapes every text and attribute. Only the page's own style and script stand in
it as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element, tostring

Node = Element | str | None


def tag(name: str, /, *children: Node, **attributes: str | int | float | None) -> Element:
    """An element.

    Args:
        name: Its name.
        children: Elements and texts in order; None is passed over.
        attributes: Its attributes; ``class_`` stands for ``class``, other underscores for hyphens,
            None for an attribute that is not there.
    """
    element = Element(name)
    for key, value in attributes.items():
        if value is not None:
            element.set(key.rstrip("_").replace("_", "-"), clean(str(value)))
    return add(element, *children)


def add(element: Element, *children: Node) -> Element:
    """The element with further children."""
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif child:
            _append_text(element, clean(child))
    return element


def _append_text(element: Element, text: str) -> None:
    if len(element):
        element[-1].tail = (element[-1].tail or "") + text
    else:
        element.text = (element.text or "") + text


def clean(text: str) -> str:
    """A text without control characters, halves of characters and marks that turn the writing."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def raw(name: str, text: str) -> Element:
    """A ``style`` or ``script`` element with a text of this package's own."""
    if "</" in text:
        raise ValueError(f"'</' would end the {name} element")
    element = Element(name)
    element.text = text
    return element


def render(element: Element) -> str:
    """The element as HTML."""
    return tostring(element, encoding="unicode", method="html")


def cell(value: Node, *, number: bool = False, head: bool = False) -> Element:
    """A cell of a table body: of a number, of a text, or the head of its row."""
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
        caption: What it shows; also the name of the box.
        heads: The heads of its columns.
        rows: Their cells: the first is the row's head; ready ``td`` elements are taken as they are.
        id_: Its name within the page.
        texts: Columns that hold texts; all others hold numbers.
    """
    left = {0, *texts}
    head = [
        tag("th", text, scope="col", class_=None if column in left else _look(text))
        for column, text in enumerate(heads)
    ]
    body = tag("tbody")
    for values in rows:
        line = tag("tr")
        for column, value in enumerate(values):
            ready = isinstance(value, Element) and value.tag in ("td", "th")
            if ready and isinstance(value, Element):
                line.append(value)
            else:
                line.append(cell(value, number=column not in left, head=column == 0))
        body.append(line)
    made = tag("table", tag("caption", caption), tag("thead", tag("tr", *head)), body, id=id_)
    return scroll(caption, made)


def _look(head: str) -> str:
    """The class of a head of numbers; long ones get the room not to stand in many lines."""
    return "n wide" if len(head) > 14 else "n"


def scroll(label: str, content: Element) -> Element:
    """A box that scrolls sideways and can be reached with the keyboard."""
    return tag("div", content, class_="scroll", role="region", aria_label=label, tabindex=0)


def folded(summary: str, *content: Node) -> Element:
    """Content that opens with a click or a key, without a script."""
    return tag("details", tag("summary", summary), *content)
