"""An overlay as vectors, by matplotlib: the panels of `overlay_pixels`, aligned, in inches; only photographs are pixels.

Lengths are points. A map is laid over the picture before it is embedded, and is part of that photograph; its colour bar is not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from cos_core.visualize.config import PAGE_INCHES, PANELS, FigureOptions
from cos_core.visualize.draw import (
    COLOURS,
    DASHES,
    HAIRLINE,
    INK,
    PAPER,
    RGB,
    SOFT_INK,
    THIN,
    Mark,
    image_box,
    reduced,
    tag_place,
    zoom,
)
from cos_core.visualize.figures import POINTS, TYPE_PT, fraction, shortened, text_width, wrapped
from cos_core.visualize.panels import OverlayInput, Panel, panels
from cos_core.visualize.relevance_maps import blend, colours

_MAP_PX = 2048
"""The longer side of a picture under a map, which has far fewer cells."""
_TALLEST = 1.25
"""The height of a row of panels, in widths of the figure, at most."""
_BANDS = 128
_LINES = 4
_LEADING = 1.4
"""From line to line of the notes, in sizes of type; a note has at most `_LINES` of them."""
WHITE: RGB = (255, 255, 255)

Corners = tuple[float, float, float, float]


class Place(NamedTuple):
    """Where a panel stands: the left end and the top of its column, the column's width, and the size of its picture."""

    panel: Panel
    left: float
    top: float
    column: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class _Page:
    """The sheet: its axes in points, downwards; its size; the size of type; whether labels stand at their boxes; the dots per
    inch of pictures, None for all."""

    axes: Any
    size: tuple[float, float]
    type: float
    tagged: bool
    dpi: int | None
    raster: bool

    def words(self, text: str, left: float, top: float, colour: RGB = INK, bold: bool = False, at: str = "top") -> None:
        weight = "bold" if bold else "normal"
        look = {"fontsize": self.type, "color": fraction(colour), "weight": weight, "va": at}
        self.axes.text(left, top, text, parse_math=False, **look)

    def block(self, corners: Corners, **look: Any) -> None:
        left, top, right, bottom = corners
        self.axes.add_patch(Rectangle((left, top), right - left, bottom - top, clip_on=False, **look))


def draw(
    scene: OverlayInput,
    options: FigureOptions,
    chosen: Collection[str] = PANELS,
    *,
    dpi: int | None = None,
    raster: bool = False,
) -> Figure:
    """The sheet as a figure: panels side by side at one height (one below the other under a wide picture), then the notes.

    Labels stand at their boxes; on the style "paper" in a key below the panels, so that they cover nothing.

    `dpi`: pictures finer than this are reduced to it; None embeds every pixel. `raster`: the figure is for a file of pixels,
    and small pictures are enlarged to `dpi`, too. Raises InputError when there is no panel among `chosen`.
    """
    inches = options.inches(PAGE_INCHES)
    paper = options.style == "paper"
    size = TYPE_PT if paper else TYPE_PT * inches / PAGE_INCHES
    margin = 0.25 * size if paper else 1.25 * size
    width = inches * POINTS
    shown = panels(scene, chosen)
    if paper:
        shown = [replace(panel, caption=panel.short) for panel in shown]
    places = arranged(shown, (width, margin), size, scene.stacked)
    bottom = max(place.top + place.height for place in places) + _frame_width(size)
    key = _key(places[0].panel.marks, width - 2 * margin, size) if paper else []
    bottom += 1.5 * size * len(key)
    lines = _note_lines(scene.notes if "notes" in chosen else (), width - 2 * margin, size)
    notes_height = _LEADING * size * sum(len(rows) for _, rows in lines) + 0.5 * margin if lines else 0.0
    height = bottom + margin + notes_height
    figure = Figure(figsize=(inches, height / POINTS), facecolor=fraction(WHITE if paper else PAPER))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    page = _Page(axes, (width, height), size, not paper, dpi, raster)
    for place in places:
        _panel(page, place)
    for number, explained in enumerate(reversed(key)):
        _key_row(page, explained, margin, bottom - size * (0.5 + 1.5 * number))
    _notes(page, lines, margin, bottom + margin)
    return figure


def arranged(shown: Sequence[Panel], sheet: tuple[float, float], size: float, stacked: bool) -> list[Place]:
    """The places of the panels in a figure of (width, margin): in a row at one height, or `stacked`, as wide as the figure and
    no higher than the first. `size`: of type."""
    width, margin = sheet
    gap, inner = 1.5 * size, width - 2 * margin - 2 * _frame_width(size)
    shapes = [panel.picture.width / panel.picture.height for panel in shown]
    beside = [0.0 if panel.heat is None else _bar_width(panel, size) for panel in shown]
    left, top = margin + _frame_width(size), margin
    places = []
    if stacked:
        most = None
        for panel, shape, bar in zip(shown, shapes, beside, strict=True):
            height = min((inner - bar) / shape, most or _TALLEST * width)
            most = most or height
            top += _caption_height(panel, inner, size)
            places.append(Place(panel, left, top, inner, height * shape, height))
            top += height + gap
        return places
    room = inner - gap * (len(shown) - 1)
    least = [min(7 * size + bar, room / len(shown)) for bar in beside]
    height = min(_TALLEST * width, _common_height(shapes, beside, least, room))
    columns = [max(small, height * shape + bar) for small, shape, bar in zip(least, shapes, beside, strict=True)]
    top += max(_caption_height(panel, column, size) for panel, column in zip(shown, columns, strict=True))
    for panel, shape, column in zip(shown, shapes, columns, strict=True):
        places.append(Place(panel, left, top, column, height * shape, height))
        left += column + gap
    return places


def _common_height(shapes: Sequence[float], beside: Sequence[float], least: Sequence[float], room: float) -> float:
    """The height at which columns of pictures of these shapes (width / height), with so much `beside` each, fill `room`; a
    column has at least its `least` width."""
    narrow: set[int] = set()
    for _ in shapes:
        wide = [i for i in range(len(shapes)) if i not in narrow]
        free = room - sum(least[i] for i in narrow) - sum(beside[i] for i in wide)
        height = max(1.0, free / sum(shapes[i] for i in wide))
        more = {i for i in wide if height * shapes[i] + beside[i] < least[i]}
        if not more or len(more) == len(wide):
            return height
        narrow |= more
    return height


def _frame_width(size: float) -> float:
    """How far a box's frame reaches out of it."""
    return _stroke(size) + 2 * _edge(size)


def _stroke(size: float) -> float:
    return 0.16 * size


def _edge(size: float) -> float:
    return 0.05 * size


def _bar_width(panel: Panel, size: float) -> float:
    return 1.8 * size + text_width(_most(panel), size)


def _most(panel: Panel) -> str:
    return "" if panel.heat is None else f"{float(panel.heat.max()):.3g}"


def _caption_lines(panel: Panel, column: float, size: float) -> list[str]:
    return wrapped(panel.caption, size, column, 3)


def _caption_height(panel: Panel, column: float, size: float) -> float:
    return 1.25 * size * len(_caption_lines(panel, column, size)) + 0.5 * size


def _panel(page: _Page, place: Place) -> None:
    """The caption, the picture with a hairline around it, and what belongs to it: marks, or the map's bar."""
    panel, size = place.panel, page.type
    left, top, right, bottom = corners = (place.left, place.top, place.left + place.width, place.top + place.height)
    lines = _caption_lines(panel, place.column, size)
    for number, line in enumerate(reversed(lines)):
        page.words(line, left, top - 0.6 * size - 1.25 * size * number, SOFT_INK, at="baseline")
    pixels = np.asarray(_embedded(page, place).convert("RGB"))
    page.axes.imshow(pixels, extent=(left, right, bottom, top), interpolation="none", aspect="auto")
    page.block(corners, fill=False, edgecolor=fraction(HAIRLINE), linewidth=0.05 * size)
    if panel.heat is not None:
        _bar(page, (right + 0.6 * size, top, right + 1.4 * size, bottom), _most(panel))
    _marks(page, panel, corners)


def _key(marks: Sequence[Mark], width: float, size: float) -> list[list[Mark]]:
    """The labelled marks, each label once, in rows of at most `width`: what the strokes of a picture without tags mean."""
    rows: list[list[Mark]] = []
    left = width
    for mark in {(mark.kind, mark.label): mark for mark in marks if mark.label}.values():
        needed = text_width(mark.label, size) + 4 * size
        if rows and left + needed <= width + size:
            rows[-1].append(mark)
        else:
            rows.append([mark])
            left = 0.0
        left += needed
    return rows


def _key_row(page: _Page, row: Sequence[Mark], left: float, middle: float) -> None:
    """A row of the key: a piece of each stroke, and its label."""
    size = page.type
    for mark in row:
        _stroke_piece(page, (left, left + 2.4 * size), middle, mark)
        label = shortened(mark.label, size, page.size[0] - left - 3 * size)
        page.words(label, left + 2.8 * size, middle, at="center_baseline")
        left += text_width(label, size) + 4 * size


def _stroke_piece(page: _Page, ends: tuple[float, float], middle: float, mark: Mark) -> None:
    width, edge, style = _pen(page, mark)
    for colour, dash, line in (("black", "-", width + 2 * edge), (fraction(COLOURS[mark.kind]), style, width)):
        look = {"color": colour, "linewidth": line, "linestyle": dash}
        page.axes.plot(ends, (middle, middle), solid_capstyle="butt", dash_capstyle="butt", clip_on=False, **look)


def _pen(page: _Page, mark: Mark) -> tuple[float, float, Any]:
    """The width of a mark's coloured line, that of the dark line on each side of it, and its dashes."""
    dash = DASHES[mark.kind]
    width = _stroke(page.type) * (0.3 if mark.kind in THIN else 1.0)
    return width, _edge(page.type), "-" if dash is None else (0, (2 * dash[0], 2 * dash[1]))


def _embedded(page: _Page, place: Place) -> Image.Image:
    """The panel's picture with as many pixels as the file gets."""
    longest = None if page.dpi is None else max(1, round(max(place.width, place.height) / POINTS * page.dpi))
    picture = place.panel.picture
    if place.panel.heat is not None:
        picture = blend(reduced(picture, min(longest or _MAP_PX, _MAP_PX)), place.panel.heat, place.panel.heat_frame)
    if longest is None:
        return picture
    return zoom(picture, longest) if page.raster else reduced(picture, longest)


def _bar(page: _Page, corners: Corners, most: str) -> None:
    """A colour bar: 0 at the bottom, the map's maximum on top. Each band reaches up to the top, so that no seam shows."""
    left, top, right, bottom = corners
    for band in range(_BANDS):
        colour = colours()[round(255 * band / (_BANDS - 1))] / 255
        start = bottom - (bottom - top) * band / _BANDS
        page.block((left, top, right, start), facecolor=tuple(colour), linewidth=0)
    page.block(corners, fill=False, edgecolor=fraction(HAIRLINE), linewidth=0.05 * page.type)
    page.words(most, right + 0.3 * page.type, top, SOFT_INK)
    page.words("0", right + 0.3 * page.type, bottom, SOFT_INK, at="bottom")


def _marks(page: _Page, panel: Panel, picture: Corners) -> None:
    """The panel's boxes, each framed from outside, and their labels inside the picture's edges."""
    left, top, right, bottom = picture
    columns, rows = panel.picture.size
    framed = []
    for mark in panel.marks:
        x0, y0, x1, y1 = image_box(mark.box, panel.picture.size).pixels(columns, rows)
        across, down = (right - left) / columns, (bottom - top) / rows
        box = (left + x0 * across, top + y0 * down, left + x1 * across, top + y1 * down)
        _frame(page, box, mark)
        framed.append((mark, box))
    tags: list[Corners] = []
    # The last mark is the one that matters most; its label gets the first choice of places.
    for mark, box in reversed(framed):
        if mark.label and page.tagged:
            _tag(page, mark, box, picture, tags)


def _frame(page: _Page, box: Corners, mark: Mark) -> None:
    """A dark line, and the coloured one in its middle: the clear area inside is the box."""
    stroke, edge, style = _pen(page, mark)
    out = stroke / 2 + edge
    around = (box[0] - out, box[1] - out, box[2] + out, box[3] + out)
    page.block(around, fill=False, edgecolor="black", linewidth=stroke + 2 * edge, joinstyle="miter")
    colour = fraction(COLOURS[mark.kind])
    page.block(around, fill=False, edgecolor=colour, linewidth=stroke, linestyle=style, joinstyle="miter", capstyle="butt")


def _tag(page: _Page, mark: Mark, box: Corners, picture: Corners, tags: list[Corners]) -> None:
    left, top, right, bottom = picture
    pad, height = 0.35 * page.type, 1.5 * page.type
    room = (right - left, bottom - top)
    text = shortened(mark.label, page.type, max(2 * page.type, room[0] - 2 * pad))
    width = min(room[0], text_width(text, page.type) + 2 * pad)
    inside = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
    place = tag_place(inside, (width, height), _frame_width(page.type), room, tags)
    tags.append(place)
    corners = (place[0] + left, place[1] + top, place[2] + left, place[3] + top)
    page.block(corners, facecolor=fraction(COLOURS[mark.kind]), edgecolor="black", linewidth=_edge(page.type))
    page.words(text, corners[0] + pad, (corners[1] + corners[3]) / 2, (0, 0, 0), at="center_baseline")


def _notes(page: _Page, lines: Sequence[tuple[str, list[str]]], left: float, top: float) -> None:
    """Writes the notes from `top` on, headings in a column of their own."""
    column = max((text_width(heading, page.type, True) for heading, _ in lines), default=0.0) + page.type
    for heading, rows in lines:
        page.words(heading, left, top, bold=True)
        for row in rows:
            page.words(row, left + column, top)
            top += _LEADING * page.type


def _note_lines(notes: Sequence[tuple[str, str]], width: float, size: float) -> list[tuple[str, list[str]]]:
    """The notes' headings, and their text in lines beside them."""
    column = max((text_width(heading, size, True) for heading, _ in notes), default=0.0) + size
    return [(heading, wrapped(text, size, max(8 * size, width - column), _LINES) or [""]) for heading, text in notes]
