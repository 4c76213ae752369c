"""Charts as small SVG pictures, complete without a script and readable on a phone.

Every picture has a title and a description, and a table beside it that holds its values. Colours
are classes of the page's style, so that they follow light, dark and print; a number, a dash or a
pattern says the same as each colour. ``data-table`` names the table and ``data-x`` (``data-y``)
says where its rows lie, so that the page's script can show them under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from nispa.webpage.markup import Node, add, tag
from nispa.webpage.scales import Scale, at, rounded, short, spread

WIDTH = 360  # user units: about a phone's width, so that the letters keep their size there
LEFT, RIGHT, TOP, BOTTOM = 36, 10, 10, 30
COLOURS = 8
MAX_DOTS = 30  # positions; with more, only points that stand alone are marked
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
        name: What it is.
        values: Its values.
        look: Number of its colour and dash, from 0.
        sign: A short text at its first point; empty for none.
        group: Group of runs that it belongs to, for the choice of runs.
    """

    name: str
    values: Sequence[float | None]
    look: int
    sign: str = ""
    group: int | None = None


@dataclass(frozen=True)
class Across:
    """The positions along the x axis.

    Attributes:
        labels: A label per position; as many are written as there is room for.
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


def _picture(words: Words, height: float, *content: Node, x: str, y: str | None = None) -> Element:
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
    )


def _text(x: float, y: float, text: str, look: str | None = None) -> Element:
    return tag("text", text, x=at(x), y=at(y), class_=look)


def _grid(scale: Scale, left: float, right: float, unit: str) -> list[Element]:
    """Lines across at round values, with the values on the left."""
    ticks = scale.ticks()
    lines = "".join(f"M{at(left)} {at(scale(tick))}H{at(right)}" for tick in ticks)
    texts = [_text(left - 4, scale(tick) + 3.5, f"{tick:g}", "e") for tick in ticks]
    return [tag("path", d=lines, class_="grid"), *texts, _text(0, TOP - 1, unit)]


def _below(across: Across, bottom: float) -> list[Element]:
    """Labels of the positions, those that fit, and the name of the axis."""
    places, made = across.places(), []
    longest = max(map(len, across.labels), default=1)
    every = max(1, math.ceil((6 * longest + 5) / across.step))
    for place in range(0, len(places), every):
        made.append(_text(places[place], bottom + 12, across.labels[place], "m"))
    made.append(_text((LEFT + WIDTH - RIGHT) / 2, bottom + 25, across.name, "m"))
    return made


def _starts(across: Across, top: float, bottom: float) -> list[Element]:
    edges = [(LEFT + across.step * place, label) for place, label in across.starts]
    lines = "".join(f"M{at(x)} {at(top)}V{at(bottom)}" for x, _ in edges)
    made = [tag("path", d=lines, class_="start")] if edges else []
    free = 0.0
    for x, label in edges:  # those for which there is room
        if x >= free:
            made.append(_text(x + 2, top + 8, label, "s"))
            free = x + 6 * len(label) + 6
    return made


def lines(
    words: Words,
    across: Across,
    series: Sequence[Series],
    *,
    low: float,
    high: float,
    unit: str,
    height: float = 210,
    ends: bool = False,
) -> Element:
    """Lines over positions; a value that stands alone is a dot.

    Args:
        words: What the picture carries.
        across: The positions.
        series: The lines.
        low: Least value of the y axis.
        high: Greatest value of the y axis.
        unit: What the y axis counts.
        height: Height of the picture, in user units.
        ends: Whether the signs stand at the ends of the lines, one apart from the other.
    """
    bottom = height - BOTTOM
    scale = Scale(low, high, bottom, TOP + 6)
    places = across.places()
    drawn = [_line(each, places, scale, sign=not ends) for each in series]
    if ends:
        drawn += _ends(series, places, scale)
    return _picture(
        words,
        height,
        *_grid(scale, LEFT, WIDTH - RIGHT, unit),
        *_starts(across, TOP - 8, bottom),
        *_below(across, bottom),
        *drawn,
        x=" ".join(map(at, places)),
    )


def _ends(series: Sequence[Series], places: Sequence[float], scale: Scale) -> list[Element]:
    """The signs of lines to the right of their last points, moved apart where they would touch."""
    lasts = []
    for each in series:
        known = [place for place, value in enumerate(each.values) if value is not None]
        if known:
            lasts.append((scale(each.values[known[-1]] or 0.0), places[known[-1]], each))
    made, free = [], -math.inf
    for count, (y, x, each) in enumerate(sorted(lasts, key=lambda last: last[0])):
        lowest = scale.start - 10.0 * (len(lasts) - count - 1)  # room for those below
        free = max(min(y, lowest), free)
        path = f"M{at(x + 4)} {at(y)}L{at(x + 14)} {at(free)}"
        group = tag("g", class_=f"c{each.look % COLOURS}", data_group=each.group)
        add(group, tag("path", d=path, class_="lead"), _text(x + 17, free + 3.5, each.sign, "sign"))
        made.append(group)
        free += 10.0
    return made


def _line(series: Series, places: Sequence[float], scale: Scale, *, sign: bool = True) -> Element:
    path = dots = ""
    first: tuple[float, float] | None = None
    values = [None, *series.values, None]
    for place, x in enumerate(places):
        before, value, after = values[place : place + 3]
        if value is None:
            continue
        y = scale(value)
        path += f"{'M' if before is None else 'L'}{at(x)} {at(y)}"
        if len(places) <= MAX_DOTS or before is after is None:
            dots += f"M{at(x)} {at(y)}h0"
        first = first or (x, y)
    look = series.look % COLOURS
    made = tag("g", class_=f"c{look}", data_group=series.group)
    if first is None:
        return made
    dash = DASHES[(series.look // COLOURS + series.look) % len(DASHES)] or None
    add(made, tag("path", d=path, class_="line", stroke_dasharray=dash))
    if dots:
        add(made, tag("path", d=dots, class_="dot"))
    if series.sign and sign:
        add(made, _text(first[0], first[1] - 6, series.sign, "m sign"))
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
    height = top + row * len(bands) + BOTTOM - 4
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
    bottom = top + row * len(bands) - 4
    return _picture(
        words,
        height,
        *made,
        *_starts(across, 0, bottom),
        *_below(across, bottom),
        x=" ".join(map(at, places)),
    )


@dataclass(frozen=True)
class Spot:
    """One group of runs in a picture: its mean, where known the interval, and its runs.

    ``runs`` holds (run, value) for :func:`intervals` and (run, x, value) for :func:`scatter`.
    """

    number: int
    label: str
    mean: float
    half: float | None = None
    x: float = 0.0
    runs: Sequence[tuple[int, float, float]] = ()


def intervals(words: Words, spots: Sequence[Spot], unit: str) -> Element:
    """Means with their intervals, one group of runs below the other."""
    row, top = 34, 18
    reach = [spot.mean + sign * (spot.half or 0) for spot in spots for sign in (-1, 1)]
    reach += [value for spot in spots for _, _, value in spot.runs]
    low, high = max(0.0, min(reach)), min(100.0, max(reach))
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
    add(made, _text(12, top + 9, f"{spot.number} {spot.label}", "name"))
    for run, _, value in spot.runs:
        add(made, tag("path", d=f"M{at(scale(value))} {at(y + 6)}h0", class_="run", data_run=run))
    x = scale(spot.mean)
    if spot.half is not None:
        ends = scale(spot.mean - spot.half), scale(spot.mean + spot.half)
        caps = "".join(f"M{at(end)} {at(y - 4)}v8" for end in ends)
        add(made, tag("path", d=f"M{at(ends[0])} {at(y)}H{at(ends[1])}{caps}", class_="line"))
    return add(made, tag("path", d=f"M{at(x)} {at(y - 5)}l5 5l-5 5l-5 -5z", class_="mean"))


def scatter(words: Words, spots: Sequence[Spot], name: str) -> Element:
    """Mean accuracy of groups of runs (per cent) against a cost; one or many groups."""
    height = 250
    bottom = height - BOTTOM
    x_scale = spread([*(s.x for s in spots), *(x for s in spots for _, x, _ in s.runs)], 44, 345)
    values = [*(s.mean for s in spots), *(v for s in spots for _, _, v in s.runs)]
    y_scale = Scale(*rounded(values), bottom - 6, TOP + 12)
    made = _grid(y_scale, LEFT, WIDTH - RIGHT, "accuracy (%)")
    ticks = x_scale.ticks(4)
    made.append(
        tag(
            "path", d="".join(f"M{at(x_scale(t))} {TOP + 6}V{bottom}" for t in ticks), class_="grid"
        )
    )
    made += [_text(x_scale(tick), bottom + 12, short(tick), "m") for tick in ticks]
    note = " (logarithmic)" if x_scale.log else ""
    made.append(_text((LEFT + WIDTH - RIGHT) / 2, bottom + 25, name + note, "m"))
    taken = [(x_scale(spot.x), y_scale(spot.mean) + 4) for spot in spots]
    for spot in spots:
        made.append(_spot(spot, x_scale, y_scale, taken))
    return _picture(
        words,
        height,
        *made,
        x=" ".join(at(x_scale(spot.x)) for spot in spots),
        y=" ".join(at(y_scale(spot.mean)) for spot in spots),
    )


def _spot(spot: Spot, x_scale: Scale, y_scale: Scale, taken: list[tuple[float, float]]) -> Element:
    """A group's mean with its number beside it, where no other number stands."""
    made = tag("g", class_=f"c{(spot.number - 1) % COLOURS}", data_group=spot.number)
    for run, x, value in spot.runs:
        path = f"M{at(x_scale(x))} {at(y_scale(value))}h0"
        add(made, tag("path", d=path, class_="run", data_run=run))
    x, y = x_scale(spot.x), y_scale(spot.mean)
    add(made, tag("path", d=f"M{at(x)} {at(y - 5)}l5 5l-5 5l-5 -5z", class_="mean"))
    around = [(7, 4), (-7, 4), (0, -8), (0, 16), (9, -6), (9, 14), (-9, -6), (-9, 14)]
    around += [(7 + 14 * k, 4) for k in range(1, 8)]
    for dx, dy in around:
        centre = (x + dx + math.copysign(5, dx) * bool(dx), y + dy)
        inside = centre[0] < WIDTH - 8 and centre[1] < y_scale.start + 8
        if inside and all(abs(centre[0] - a) > 12 or abs(centre[1] - b) > 10 for a, b in taken):
            break
    taken.append(centre)
    if math.dist(centre, (x, y)) > 20:
        path = f"M{at(x)} {at(y)}L{at(centre[0])} {at(centre[1] - 3)}"
        add(made, tag("path", d=path, class_="lead"))
    return add(made, _text(centre[0], centre[1], str(spot.number), "m sign"))
