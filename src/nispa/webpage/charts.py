"""Charts as small inline SVG, complete without a script and readable on a phone.

Each chart has a title and a description, and a table beside it holds its values. Colours are
classes of the style sheet, so that they follow light, dark and print; a label, a dash or a pattern
repeats what a colour says. ``data-table`` names the table and ``data-x`` (``data-y``) the positions
of its rows, for the values under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from xml.etree.ElementTree import Element

from nispa.webpage.markup import Node, add, tag
from nispa.webpage.scales import Scale, coord, percent_range, scale_of, short

WIDTH = 360  # user units: about the width of a phone, so that text keeps its size there
LEFT, RIGHT, TOP, BOTTOM = 36, 10, 10, 30
LETTER, LINE = 5.8, 10.0  # size of a letter and of a line of text
COLOURS = 8
MAX_DOTS = 12  # positions; beyond, only isolated points get a dot
DASHES = ("", "5 2", "2 2", "7 2 2 2")


@dataclass(frozen=True)
class Words:
    """The text of a chart: its id on the page, title, description, and the id of its table."""

    id_: str
    title: str
    desc: str
    table: str | None = None


@dataclass(frozen=True)
class Series:
    """A line: a value per position, None if unknown; ``look`` numbers its colour and dash.

    ``group`` is the number of its group of runs, for the choice of runs.
    """

    name: str
    values: Sequence[float | None]
    look: int
    group: int | None = None


@dataclass(frozen=True)
class Across:
    """The x axis: a label per position, slanted if too long, and a name.

    Attributes:
        labels: Text per position.
        name: What the positions are.
        starts: Positions that begin a section, with its label.
        right: Room on the right, in user units; lines put their names there.
    """

    labels: Sequence[str]
    name: str
    starts: Sequence[tuple[int, str]] = ()
    right: float = RIGHT

    @property
    def step(self) -> float:
        """Distance of two positions."""
        return (WIDTH - LEFT - self.right) / max(1, len(self.labels))

    @property
    def places(self) -> list[float]:
        """The x coordinate of each position."""
        return [LEFT + self.step * (place + 0.5) for place in range(len(self.labels))]

    @property
    def widest(self) -> float:
        """Width of the longest label."""
        return LETTER * max(map(len, self.labels), default=0)

    @property
    def slanted(self) -> bool:
        """Whether labels are too long to stand side by side."""
        return self.widest > 3 * LETTER and self.widest + 4 > self.step

    @property
    def foot(self) -> float:
        """Height of labels and name below the plot."""
        return BOTTOM + (0.62 * self.widest if self.slanted else 0)


@dataclass(frozen=True)
class Strip:
    """A band of stacked bars: parts of ``whole`` per position, from below; None if unknown."""

    name: str
    parts: Sequence[Sequence[int] | None]
    whole: int


@dataclass(frozen=True)
class Spot:
    """A group of runs in a chart: its mean, its interval, and (number, x, value) of its runs."""

    number: int
    label: str
    mean: float
    interval: tuple[float, float] | None = None
    x: float = 0.0
    runs: Sequence[tuple[int, float, float]] = ()


# --- Lines ---------------------------------------------------------------------------------------


def lines(
    words: Words,
    across: Across,
    series: Sequence[Series],
    ends: tuple[float, float],
    unit: str,
) -> Element:
    """Lines over positions, each with its name at its right end; ``ends`` are of the y axis."""
    across = replace(
        across, right=22 + LETTER * max((len(line.name) for line in series), default=0)
    )
    bottom = max(180, TOP + 6 + LINE * len(series))
    scale = Scale(*ends, bottom, TOP + 6)
    return _over_positions(
        words,
        across,
        bottom,
        *_grid(scale, WIDTH - across.right, unit),
        *_starts(across, TOP - 8, bottom),
        *(_line(line, across.places, scale) for line in series),
        *_names(series, across.places, scale),
    )


def _line(series: Series, places: Sequence[float], scale: Scale) -> Element:
    path = dots = ""
    values = [None, *series.values, None]
    for place, x in enumerate(places):
        before, value, after = values[place : place + 3]
        if value is None:
            continue
        y = scale(value)
        path += f"{'M' if before is None else 'L'}{coord(x)} {coord(y)}"
        if len(places) <= MAX_DOTS or before is after is None:
            dots += f"M{coord(x)} {coord(y)}h0"
    dash = DASHES[(series.look // COLOURS + series.look) % len(DASHES)] or None
    return _group(
        series.look,
        series.group,
        tag("path", d=path, class_="line", stroke_dasharray=dash) if path else None,
        tag("path", d=dots, class_="dot") if dots else None,
    )


def _names(series: Sequence[Series], places: Sequence[float], scale: Scale) -> list[Element]:
    """The names of lines at their last points, moved down where they would overlap."""
    lasts = []
    for line in series:
        known = [place for place, value in enumerate(line.values) if value is not None]
        if known:
            lasts.append((scale(line.values[known[-1]] or 0.0), places[known[-1]], line))
    made, free = [], -math.inf
    for count, (y, x, line) in enumerate(sorted(lasts, key=lambda last: last[0])):
        lowest = scale.start - LINE * (len(lasts) - count - 1)  # leaves room for those below
        free = max(min(y, lowest), free)
        lead = f"M{coord(x + 4)} {coord(y)}L{coord(x + 14)} {coord(free)}"
        text = _text(x + 16, free + 3.5, line.name, "sign")
        made.append(_group(line.look, line.group, tag("path", d=lead, class_="lead"), text))
        free += LINE
    return made


# --- Stacked bars --------------------------------------------------------------------------------


def strips(
    words: Words, across: Across, bands: Sequence[Strip], looks: Sequence[str], rest: str
) -> Element:
    """Bands of stacked bars, one below the other.

    Args:
        words: Text of the chart.
        across: The x axis.
        bands: The bands.
        looks: Class of each part: ``full``, ``half`` (a pattern) or ``pale``.
        rest: Class of what is left of the whole.
    """
    row, bar = 50, 32
    top = TOP + (8 if across.starts else 0)
    bottom = top + row * len(bands) - 4
    wide = across.step * (0.84 if len(across.labels) <= 40 else 1)
    made: list[Element] = []
    for number, band in enumerate(bands):
        base = top + row * (number + 1) - 4
        made.append(_text(LEFT, base - bar - 4, band.name))
        made.append(_text(LEFT - 4, base - bar + 7, "100", "e"))
        made.append(_text(LEFT - 4, base, "0", "e"))
        # One path per look, the tallest bars first and the others over them: that is short.
        for depth, look in reversed(list(enumerate([*looks, rest]))):
            path = ""
            for x, parts in zip(across.places, band.parts, strict=True):
                if parts is None or not band.whole:
                    continue
                share = 1.0 if depth == len(looks) else sum(parts[: depth + 1]) / band.whole
                if share > 0:
                    y = coord(base - bar * min(1.0, share))
                    path += f"M{coord(x - wide / 2)} {base}V{y}h{coord(wide)}V{base}"
            if path:
                made.append(tag("path", d=path, class_=look))
    return _over_positions(words, across, bottom, *made, *_starts(across, 0, bottom))


# --- Groups of runs ------------------------------------------------------------------------------


def intervals(words: Words, spots: Sequence[Spot], unit: str) -> Element:
    """Means with their intervals, one group of runs below the other."""
    row, top = 34, 18
    reach = [value for spot in spots for value in (spot.mean, *(spot.interval or ()))]
    reach += [value for spot in spots for _, _, value in spot.runs]
    margin = max(0.5, 0.04 * (max(reach) - min(reach)))
    low, high = max(0.0, min(reach) - margin), min(100.0, max(reach) + margin)
    scale = Scale(low, high, 12, WIDTH - 12)
    bottom = top + row * len(spots)
    made = _upright(scale, top - 4, bottom, unit, WIDTH / 2, "{:g}".format)
    centres = [top + row * place + 22 for place in range(len(spots))]
    for spot, y in zip(spots, centres, strict=True):
        dots = [(number, scale(value), y + 6.0) for number, _, value in spot.runs]
        bar = None
        if spot.interval is not None:
            first, last = (coord(scale(end)) for end in spot.interval)
            caps = f"M{first} {y - 4}v8M{last} {y - 4}v8"
            bar = tag("path", d=f"M{first} {y}H{last}{caps}", class_="line")
        name = _text(12, y - 13, spot.label, "name")
        made.append(_spot(spot, scale(spot.mean), y, dots, name, bar))
    x = [scale(spot.mean) for spot in spots]
    return _picture(words, bottom + BOTTOM, *made, data_x=_joined(x), data_y=_joined(centres))


def scatter(words: Words, spots: Sequence[Spot], name: str) -> Element:
    """Mean accuracy of groups of runs (per cent) against a cost."""
    bottom = 270.0
    x_scale = scale_of([*(s.x for s in spots), *(x for s in spots for _, x, _ in s.runs)], 44, 345)
    values = [*(s.mean for s in spots), *(v for s in spots for _, _, v in s.runs)]
    y_scale = Scale(*percent_range(values), bottom - 6, TOP + 12)
    name += " (logarithmic)" if x_scale.log else ""
    made = _grid(y_scale, WIDTH - RIGHT, "accuracy (%)")
    made += _upright(x_scale, TOP + 6, bottom, name, (LEFT + WIDTH - RIGHT) / 2, short, 4)
    points = [(x_scale(spot.x), y_scale(spot.mean)) for spot in spots]
    taken = [(x, y, 6.0, 6.0) for x, y in points]
    for spot, (x, y) in zip(spots, points, strict=True):
        dots = [(number, x_scale(cost), y_scale(value)) for number, cost, value in spot.runs]
        made.append(add(_spot(spot, x, y, dots), *_label(spot.label, x, y, bottom, taken)))
    x_places, y_places = (_joined(point[axis] for point in points) for axis in (0, 1))
    return _picture(words, bottom + BOTTOM, *made, data_x=x_places, data_y=y_places)


def _spot(
    spot: Spot, x: float, y: float, dots: Iterable[tuple[int, float, float]], *others: Node
) -> Element:
    """A diamond for the mean, a dot for each run."""
    runs = (
        tag("path", d=f"M{coord(a)} {coord(b)}h0", class_="run", data_run=run) for run, a, b in dots
    )
    mean = tag("path", d=f"M{coord(x)} {coord(y - 5)}l5 5l-5 5l-5 -5z", class_="mean")
    return _group(spot.number - 1, spot.number, *others, *runs, mean)


def _label(
    name: str, x: float, y: float, bottom: float, taken: list[tuple[float, float, float, float]]
) -> list[Element]:
    """A name in the nearest free place to its point; a line leads to a distant one.

    ``taken`` holds centre, half the width and half the height of everything placed so far.
    """
    half = LETTER * len(name) / 2
    for far in range(0, 150, 7):
        for right, down in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1)):
            a = x + right * (half + 7 + (0 if down else far))
            b = y + down * (10 + far)
            inside = LEFT + half < a < WIDTH - half and TOP + 8 < b < bottom - 4
            if inside and all(
                abs(a - c) > half + wide or abs(b - d) > 4.5 + high for c, d, wide, high in taken
            ):
                taken.append((a, b, half, 4.5))
                lead = tag("path", d=f"M{coord(x)} {coord(y)}L{coord(a)} {coord(b)}", class_="lead")
                text = _text(a, b + 3.5, name, "m sign")
                return [lead, text] if far else [text]
    return []  # its table has the name


# --- Parts ---------------------------------------------------------------------------------------


def _picture(words: Words, height: float, *content: Node, **data: str | None) -> Element:
    title, desc = f"{words.id_}-t", f"{words.id_}-d"
    return tag(
        "svg",
        tag("title", words.title, id=title),
        tag("desc", words.desc, id=desc),
        *content,
        viewBox=f"0 0 {WIDTH} {coord(height)}",
        role="img",
        aria_labelledby=f"{title} {desc}",
        data_table=words.table,
        **data,
    )


def _over_positions(words: Words, across: Across, bottom: float, *content: Node) -> Element:
    """A chart over an x axis, with its labels and its name."""
    return _picture(
        words,
        bottom + across.foot,
        *content,
        *_below(across, bottom),
        data_x=_joined(across.places),
        data_low=coord(bottom),
    )


def _below(across: Across, bottom: float) -> list[Element]:
    wide = 15.0 if across.slanted else across.widest + 4
    made = []
    for place in range(0, len(across.labels), max(1, math.ceil(wide / across.step))):
        x, text = across.places[place], across.labels[place]
        if across.slanted:
            turn = f"rotate(-40 {coord(x + 3)} {coord(bottom + 9)})"
            made.append(_text(x + 3, bottom + 9, text, "e", transform=turn))
        else:
            made.append(_text(x, bottom + 12, text, "m"))
    middle = (LEFT + WIDTH - across.right) / 2
    return [*made, _text(middle, bottom + across.foot - 5, across.name, "m")]


def _starts(across: Across, top: float, bottom: float) -> list[Element]:
    """A dotted line where each section begins, with as much of its label as fits."""
    edges = [LEFT + across.step * place for place, _ in across.starts]
    path = "".join(f"M{coord(x)} {coord(top)}V{coord(bottom)}" for x in edges)
    made = [tag("path", d=path, class_="start")] if edges else []
    spans = pairwise([*edges, WIDTH - across.right])
    for (x, following), (_, label) in zip(spans, across.starts, strict=True):
        if text := label[: int((following - x - 2) / 5.4)].strip():
            made.append(_text(x + 2, top + 8, text, "s"))
    return made


def _grid(scale: Scale, right: float, unit: str) -> list[Element]:
    """Horizontal lines with their values on the left."""
    ticks = [(scale(tick), f"{tick:g}") for tick in scale.ticks()]
    path = "".join(f"M{LEFT} {coord(y)}H{coord(right)}" for y, _ in ticks)
    texts = [_text(LEFT - 4, y + 3.5, text, "e") for y, text in ticks]
    return [tag("path", d=path, class_="grid"), *texts, _text(0, TOP - 1, unit)]


def _upright(
    scale: Scale,
    top: float,
    bottom: float,
    name: str,
    middle: float,
    text: Callable[[float], str],
    most: int = 6,
) -> list[Element]:
    """Vertical lines with their values and the name of the axis below."""
    ticks = [(scale(tick), text(tick)) for tick in scale.ticks(most)]
    path = "".join(f"M{coord(x)} {coord(top)}V{coord(bottom)}" for x, _ in ticks)
    texts = [_text(x, bottom + 12, value, "m") for x, value in ticks]
    return [tag("path", d=path, class_="grid"), *texts, _text(middle, bottom + 25, name, "m")]


def _group(look: int, number: int | None, *content: Node) -> Element:
    """Content in a colour, hidden with its group of runs."""
    return tag("g", *content, class_=f"c{look % COLOURS}", data_group=number)


def _text(x: float, y: float, text: str, look: str | None = None, **more: str) -> Element:
    return tag("text", text, x=coord(x), y=coord(y), class_=look, **more)


def _joined(values: Iterable[float]) -> str:
    return " ".join(map(coord, values))
