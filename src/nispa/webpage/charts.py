"""Charts as small SVG pictures, complete without a script and readable on a phone.

Every picture has a title and a description, and a table beside it that holds its values. Colours
are classes of the page's style, so that they follow light, dark and print; a name, a dash or a
pattern says the same as each colour. ``data-table`` names the table and ``data-x`` (``data-y``)
says where its rows lie, so that the page's script can show them under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from xml.etree.ElementTree import Element

from nispa.webpage.markup import Node, add, tag
from nispa.webpage.scales import Scale, at, rounded, short, spread

WIDTH = 360  # user units: about a phone's width, so that the letters keep their size there
LEFT, RIGHT, TOP, BOTTOM = 36, 10, 10, 30
LETTER, LINE = 5.8, 10.0  # what a letter and a line of text take
COLOURS = 8
MAX_DOTS = 12  # positions; with more, only points that stand alone are marked
DASHES = ("", "5 2", "2 2", "7 2 2 2")


@dataclass(frozen=True)
class Words:
    """What every picture carries.

    Attributes:
        id_: Its name within the page, from which others are made.
        title: What it shows.
        desc: What can be seen, for those who cannot.
        table: Name of the table that holds its values, a row per position.
    """

    id_: str
    title: str
    desc: str
    table: str | None = None


@dataclass(frozen=True)
class Series:
    """One line: ``values`` by position, None where there is none.

    Attributes:
        name: What it is; stands at its end.
        values: Its values.
        look: Number of its colour and dash, from 0.
        group: Group of runs that it belongs to, for the choice of runs.
    """

    name: str
    values: Sequence[float | None]
    look: int
    group: int | None = None


@dataclass(frozen=True)
class Across:
    """The positions along the x axis.

    Attributes:
        labels: A label per position: upright where there is room, else slanting.
        name: What the positions are.
        starts: Positions before which a line is drawn, with the label of what begins there.
        right: Room on the right, in user units.
    """

    labels: Sequence[str]
    name: str
    starts: Sequence[tuple[int, str]] = field(default=())
    right: float = RIGHT

    def places(self) -> list[float]:
        """Where the positions lie."""
        step = self.step
        return [LEFT + step * (place + 0.5) for place in range(len(self.labels))]

    @property
    def step(self) -> float:
        """From one position to the next."""
        return (WIDTH - LEFT - self.right) / max(1, len(self.labels))

    @property
    def slanting(self) -> bool:
        """Whether the labels are too long to stand side by side."""
        return self.longest > 3 and LETTER * self.longest + 4 > self.step

    @property
    def longest(self) -> int:
        """Letters of the longest label."""
        return max(map(len, self.labels), default=0)

    @property
    def foot(self) -> float:
        """Height that labels and name take below the picture."""
        return BOTTOM + (0.62 * LETTER * self.longest if self.slanting else 0)


def beside(names: Iterable[str]) -> float:
    """Room on the right for names at the ends of lines."""
    return 22 + LETTER * max(map(len, names), default=0)


def _picture(
    words: Words, height: float, *content: Node, x: str, y: str | None = None, low: float = 0
) -> Element:
    return tag(
        "svg",
        tag("title", words.title, id=f"{words.id_}-t"),
        tag("desc", words.desc, id=f"{words.id_}-d"),
        *content,
        viewBox=f"0 0 {WIDTH} {at(height)}",
        role="img",
        aria_labelledby=f"{words.id_}-t {words.id_}-d",
        data_table=words.table,
        data_x=x,
        data_y=y,
        data_low=None if y else at(low),
    )


def _text(x: float, y: float, text: str, look: str | None = None, **more: str) -> Element:
    return tag("text", text, x=at(x), y=at(y), class_=look, **more)


def _grid(scale: Scale, left: float, right: float, unit: str) -> list[Element]:
    """Lines across at round values, with the values on the left."""
    ticks = scale.ticks()
    lines = "".join(f"M{at(left)} {at(scale(tick))}H{at(right)}" for tick in ticks)
    texts = [_text(left - 4, scale(tick) + 3.5, f"{tick:g}", "e") for tick in ticks]
    return [tag("path", d=lines, class_="grid"), *texts, _text(0, TOP - 1, unit)]


def _below(across: Across, bottom: float) -> list[Element]:
    """Labels of the positions, those that fit, and the name of the axis."""
    places, made = across.places(), []
    wide = 15.0 if across.slanting else LETTER * across.longest + 4
    for place in range(0, len(places), max(1, math.ceil(wide / across.step))):
        x, text = places[place], across.labels[place]
        if across.slanting:
            turn = f"rotate(-40 {at(x + 3)} {at(bottom + 9)})"
            made.append(_text(x + 3, bottom + 9, text, "e", transform=turn))
        else:
            made.append(_text(x, bottom + 12, text, "m"))
    middle = (LEFT + WIDTH - across.right) / 2
    made.append(_text(middle, bottom + across.foot - 5, across.name, "m"))
    return made


def _starts(across: Across, top: float, bottom: float) -> list[Element]:
    edges = [LEFT + across.step * place for place, _ in across.starts]
    lines = "".join(f"M{at(x)} {at(top)}V{at(bottom)}" for x in edges)
    made = [tag("path", d=lines, class_="start")] if edges else []
    for (x, following), (_, label) in zip(
        pairwise([*edges, WIDTH - across.right]), across.starts, strict=True
    ):
        if text := label[: int((following - x - 2) / 5.4)].strip():
            made.append(_text(x + 2, top + 8, text, "s"))
    return made


def lines(
    words: Words,
    across: Across,
    series: Sequence[Series],
    *,
    low: float,
    high: float,
    unit: str,
    tall: float = 210,
) -> Element:
    """Lines over positions, each with its name at its end; a value that stands alone is a dot.

    Args:
        words: What the picture carries.
        across: The positions; their room on the right is for the names.
        series: The lines.
        low: Least value of the y axis.
        high: Greatest value of the y axis.
        unit: What the y axis counts.
        tall: Height of the picture with one row of labels, in user units; more where the names
            need it.
    """
    bottom = max(tall - BOTTOM, TOP + 6 + LINE * len(series))
    scale = Scale(low, high, bottom, TOP + 6)
    places = across.places()
    return _picture(
        words,
        bottom + across.foot,
        *_grid(scale, LEFT, WIDTH - across.right, unit),
        *_starts(across, TOP - 8, bottom),
        *_below(across, bottom),
        *(_line(each, places, scale) for each in series),
        *_ends(series, places, scale),
        x=" ".join(map(at, places)),
        low=bottom,
    )


def _ends(series: Sequence[Series], places: Sequence[float], scale: Scale) -> list[Element]:
    """The names of lines to the right of their last points, moved apart where they would touch."""
    lasts = []
    for each in series:
        known = [place for place, value in enumerate(each.values) if value is not None]
        if known:
            lasts.append((scale(each.values[known[-1]] or 0.0), places[known[-1]], each))
    made, free = [], -math.inf
    for count, (y, x, each) in enumerate(sorted(lasts, key=lambda last: last[0])):
        lowest = scale.start - LINE * (len(lasts) - count - 1)  # room for those below
        free = max(min(y, lowest), free)
        path = f"M{at(x + 4)} {at(y)}L{at(x + 14)} {at(free)}"
        group = tag("g", class_=f"c{each.look % COLOURS}", data_group=each.group)
        add(group, tag("path", d=path, class_="lead"), _text(x + 16, free + 3.5, each.name, "sign"))
        made.append(group)
        free += LINE
    return made


def _line(series: Series, places: Sequence[float], scale: Scale) -> Element:
    path = dots = ""
    values = [None, *series.values, None]
    for place, x in enumerate(places):
        before, value, after = values[place : place + 3]
        if value is None:
            continue
        y = scale(value)
        path += f"{'M' if before is None else 'L'}{at(x)} {at(y)}"
        if len(places) <= MAX_DOTS or before is after is None:
            dots += f"M{at(x)} {at(y)}h0"
    made = tag("g", class_=f"c{series.look % COLOURS}", data_group=series.group)
    dash = DASHES[(series.look // COLOURS + series.look) % len(DASHES)] or None
    if path:
        add(made, tag("path", d=path, class_="line", stroke_dasharray=dash))
    if dots:
        add(made, tag("path", d=dots, class_="dot"))
    return made


@dataclass(frozen=True)
class Strip:
    """One band of stacked bars: per position the parts of a whole, from below.

    ``parts`` has per position a sequence of counts, or None where nothing is known; ``whole`` is
    what the full height stands for.
    """

    name: str
    parts: Sequence[Sequence[int] | None]
    whole: int


def strips(
    words: Words, across: Across, bands: Sequence[Strip], looks: Sequence[str], empty: str
) -> Element:
    """Bands of stacked bars, one below the other, over the same positions.

    Args:
        words: What the picture carries.
        across: The positions.
        bands: The bands.
        looks: Name of each part's look: ``full``, ``half`` (a pattern) or ``pale``.
        empty: Look of what is left of the whole.
    """
    row, bar = 50, 32
    top = TOP + (8 if across.starts else 0)
    bottom = top + row * len(bands) - 4
    places, wide = across.places(), across.step * (0.84 if len(across.labels) <= 40 else 1)
    made: list[Element] = []
    for number, band in enumerate(bands):
        base = top + row * (number + 1) - 4
        made.append(_text(LEFT, base - bar - 4, band.name))
        made.append(_text(LEFT - 4, base - bar + 7, "100", "e"))
        made.append(_text(LEFT - 4, base, "0", "e"))
        # The looks lie one over the other, the tallest first: short paths, as runs have many bars.
        for depth in range(len(looks), -1, -1):
            path = ""
            for x, parts in zip(places, band.parts, strict=True):
                if parts is None or not band.whole:
                    continue
                part = 1.0 if depth == len(looks) else sum(parts[: depth + 1]) / band.whole
                if part > 0:
                    tall = at(base - bar * min(1.0, part))
                    path += f"M{at(x - wide / 2)} {base}V{tall}h{at(wide)}V{base}"
            if path:
                made.append(tag("path", d=path, class_=[*looks, empty][depth]))
    return _picture(
        words,
        bottom + across.foot,
        *made,
        *_starts(across, 0, bottom),
        *_below(across, bottom),
        x=" ".join(map(at, places)),
        low=bottom,
    )


@dataclass(frozen=True)
class Spot:
    """One group of runs in a picture: its mean, where known the interval, and its runs.

    ``runs`` holds (run, x, value); only :func:`scatter` looks at ``x``.
    """

    number: int
    label: str
    mean: float
    interval: tuple[float, float] | None = None
    x: float = 0.0
    runs: Sequence[tuple[int, float, float]] = ()


def intervals(words: Words, spots: Sequence[Spot], unit: str) -> Element:
    """Means with their intervals, one group of runs below the other."""
    row, top = 34, 18
    reach = [value for spot in spots for value in (spot.mean, *(spot.interval or ()))]
    reach += [value for spot in spots for _, _, value in spot.runs]
    low, high = min(reach), max(reach)
    margin = max(0.5, 0.04 * (high - low))
    scale = Scale(max(0.0, low - margin), min(100.0, high + margin), 12, WIDTH - 12)
    bottom = top + row * len(spots)
    ticks = scale.ticks(6)
    grid = "".join(f"M{at(scale(tick))} {top - 4}V{bottom}" for tick in ticks)
    made = [tag("path", d=grid, class_="grid")]
    made += [_text(scale(tick), bottom + 12, f"{tick:g}", "m") for tick in ticks]
    made.append(_text(WIDTH / 2, bottom + 25, unit, "m"))
    made += [_interval(spot, scale, top + row * place) for place, spot in enumerate(spots)]
    centres = [top + row * place + 22 for place in range(len(spots))]
    x = " ".join(at(scale(spot.mean)) for spot in spots)
    return _picture(words, bottom + BOTTOM, *made, x=x, y=" ".join(map(at, centres)))


def _interval(spot: Spot, scale: Scale, top: float) -> Element:
    y = top + 22
    made = tag("g", class_=f"c{(spot.number - 1) % COLOURS}", data_group=spot.number)
    add(made, _text(12, top + 9, spot.label, "name"))
    for run, _, value in spot.runs:
        add(made, tag("path", d=f"M{at(scale(value))} {at(y + 6)}h0", class_="run", data_run=run))
    if spot.interval is not None:
        ends = [scale(end) for end in spot.interval]
        caps = "".join(f"M{at(end)} {at(y - 4)}v8" for end in ends)
        add(made, tag("path", d=f"M{at(ends[0])} {at(y)}H{at(ends[1])}{caps}", class_="line"))
    return add(made, tag("path", d=_diamond(scale(spot.mean), y), class_="mean"))


def _diamond(x: float, y: float) -> str:
    return f"M{at(x)} {at(y - 5)}l5 5l-5 5l-5 -5z"


def scatter(words: Words, spots: Sequence[Spot], name: str) -> Element:
    """Mean accuracy of groups of runs (per cent) against a cost; one or many groups."""
    bottom = 270.0
    x_scale = spread([*(s.x for s in spots), *(x for s in spots for _, x, _ in s.runs)], 44, 345)
    values = [*(s.mean for s in spots), *(v for s in spots for _, _, v in s.runs)]
    y_scale = Scale(*rounded(values), bottom - 6, TOP + 12)
    ticks = x_scale.ticks(4)
    up = "".join(f"M{at(x_scale(tick))} {TOP + 6}V{at(bottom)}" for tick in ticks)
    made = [*_grid(y_scale, LEFT, WIDTH - RIGHT, "accuracy (%)"), tag("path", d=up, class_="grid")]
    made += [_text(x_scale(tick), bottom + 12, short(tick), "m") for tick in ticks]
    note = " (logarithmic)" if x_scale.log else ""
    made.append(_text((LEFT + WIDTH - RIGHT) / 2, bottom + 25, name + note, "m"))
    points = [(x_scale(spot.x), y_scale(spot.mean)) for spot in spots]
    taken = [(x, y, 6.0, 6.0) for x, y in points]
    for spot, (x, y) in zip(spots, points, strict=True):
        group = tag("g", class_=f"c{(spot.number - 1) % COLOURS}", data_group=spot.number)
        for run, cost, value in spot.runs:
            path = f"M{at(x_scale(cost))} {at(y_scale(value))}h0"
            add(group, tag("path", d=path, class_="run", data_run=run))
        add(group, tag("path", d=_diamond(x, y), class_="mean"))
        made.append(add(group, *_named(spot.label, x, y, bottom, taken)))
    x_places, y_places = (" ".join(at(point[axis]) for point in points) for axis in (0, 1))
    return _picture(words, bottom + BOTTOM, *made, x=x_places, y=y_places)


def _named(
    name: str, x: float, y: float, bottom: float, taken: list[tuple[float, float, float, float]]
) -> list[Element]:
    """A name beside its point, as near as nothing else stands; a line leads to one far away.

    ``taken`` holds what stands: middle, half the width and half the height of each.
    """
    half = LETTER * len(name) / 2
    for far in range(0, 150, 7):
        for right, down in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1)):
            at_x = x + right * (half + 7 + (0 if down else far))
            at_y = y + down * (10 + far)
            inside = LEFT + half < at_x < WIDTH - half and TOP + 8 < at_y < bottom - 4
            if inside and all(
                abs(at_x - a) > half + wide or abs(at_y - b) > 4.5 + high
                for a, b, wide, high in taken
            ):
                taken.append((at_x, at_y, half, 4.5))
                lead = tag("path", d=f"M{at(x)} {at(y)}L{at(at_x)} {at(at_y)}", class_="lead")
                text = _text(at_x, at_y + 3.5, name, "m sign")
                return [lead, text] if far else [text]
    return []  # the table has its name
