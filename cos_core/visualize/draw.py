"""Boxes on pictures: colours, strokes, labels and text. Works on copies; the caller's picture is not changed.

A box is framed from outside: the clear area inside the stroke is exactly the pixels of `Box.pixels`. The canvas has a margin
for the strokes, so that a stroke covers nothing inside its box and a box along the border is visible as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

from PIL import Image, ImageDraw, ImageFont

from cos_core.dialogue.cropping import CropFrom, crop_region
from cos_core.errors import InputError
from cos_core.files import images
from cos_core.files.text import printable
from cos_core.geometry import Box, SquarePad

RGB = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]
N = TypeVar("N", int, float)
MarkKind = Literal["predicted", "unseen", "sample", "gold", "annotated", "region", "fallback"]

# Okabe and Ito's palette, distinguishable with any common colour vision deficiency. The strokes differ by dash as well.
COLOURS: dict[MarkKind, RGB] = {
    "predicted": (230, 159, 0),
    "unseen": (230, 159, 0),
    "sample": (230, 159, 0),
    "gold": (86, 180, 233),
    "annotated": (204, 121, 167),
    "region": (240, 228, 66),
    "fallback": (153, 153, 153),
}
DASHES: dict[MarkKind, tuple[int, int] | None] = {
    "predicted": None,
    "unseen": (3, 2),
    "sample": None,
    "gold": (4, 3),
    "annotated": (1, 1),
    "region": (2, 1),
    "fallback": (3, 2),
}
"""Length and gap of a dashed stroke, in double strokes; None is a whole line."""
THIN: frozenset[MarkKind] = frozenset(("region", "sample"))
"""Candidate regions and sampled boxes are many: a thin line each."""
BLACK: RGB = (0, 0, 0)
PAPER: RGB = (250, 249, 246)
INK: RGB = (28, 28, 30)
SOFT_INK: RGB = (96, 94, 90)
HAIRLINE: RGB = (200, 197, 190)

LABEL_PX = 15
_TAG_PAD = 4
_LARGE = 4096
_TAG_PX = LABEL_PX + 2 * _TAG_PAD


@dataclass(frozen=True, slots=True)
class Mark:
    """A box to draw, in either frame, with its label; `kind` decides colour and dash."""

    box: Box
    label: str = ""
    kind: MarkKind = "predicted"


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture scaled for display by `factor`; an enlarged one has a whole factor (each pixel becomes a square)."""

    image: Image.Image
    source_size: tuple[int, int]
    factor: float

    def rectangle(self, box: Box) -> Rectangle:
        """(left, top, right, bottom) of `box` (frame "image") on `image`, right and bottom exclusive.

        Of an enlarged picture these are the source's pixels times `factor`: exactly those of a crop of the source.
        """
        if self.factor > 1:
            k = int(self.factor)
            left, top, right, bottom = box.pixels(*self.source_size)
            return left * k, top * k, right * k, bottom * k
        return box.pixels(*self.image.size)


@dataclass(frozen=True, slots=True)
class Marked:
    """The result of `draw_marks`: `image` holds the picture at `origin`; `rectangles` are in the picture's pixels."""

    image: Image.Image
    origin: tuple[int, int]
    rectangles: tuple[Rectangle, ...]


def show(picture: Image.Image, longest: int) -> Shown:
    """A copy whose longer side is at most `longest` pixels, and more than half of it: enlarged by a whole factor or reduced.

    Raises InputError for `longest` below 1.
    """
    if longest < 1:
        raise InputError(f"a picture cannot be shown {longest} pixels long")
    width, height = picture.size
    side = max(width, height)
    if side > longest:
        return Shown(_fitted(picture, longest), picture.size, longest / side)
    factor = longest // side
    enlarged = picture.resize((width * factor, height * factor), Image.Resampling.NEAREST) if factor > 1 else picture.copy()
    return Shown(enlarged, picture.size, factor)


def zoom(picture: Image.Image, longest: int) -> Image.Image:
    """A copy whose longer side is about `longest` pixels: interpolated, or with square pixels when it is tiny (see `show`)."""
    if max(picture.size) * 6 <= longest:
        return show(picture, longest).image
    return _fitted(picture, longest)


def reduced(picture: Image.Image, longest: int) -> Image.Image:
    """`picture` itself when its longer side is at most `longest` pixels, else a smaller copy."""
    return picture if max(picture.size) <= longest else _fitted(picture, longest)


def _fitted(picture: Image.Image, longest: int) -> Image.Image:
    scale = longest / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC, reducing_gap=3.0)


@dataclass(frozen=True, slots=True)
class EncoderView:
    """The input of a square-padding vision encoder: `side` in pixels, the padding's colour, and the frame of its regions."""

    side: int = 336
    fill: RGB = images.FILL
    crop_from: CropFrom = "image"

    def view(self, picture: Image.Image, box: Box | None = None) -> Image.Image:
        """The encoder's input for `picture`, or for its region `box`: side x side, RGB, before normalisation.

        Bicubic as CLIP's processor.
        """
        region = picture if box is None else crop_region(picture, box, self.crop_from, self.fill)
        # A panorama's square would be a hundred times the picture; reduced first, the view differs by less than is seen.
        return images.square_pad(reduced(region, _LARGE), self.fill).resize((self.side, self.side), Image.Resampling.BICUBIC)


def draw_marks(shown: Shown, marks: Sequence[Mark], scale: float = 1.0) -> Marked:
    """A new picture with every mark on it, in order; later ones lie on top. Labels are written `scale` times as large as usual.

    Raises InputError for a box in frame "square" that lies wholly in the padding.
    """
    stroke = max(3, max(shown.image.size) // 200)
    tag = round(_TAG_PX * scale)
    margin = stroke + 2 + (tag if any(mark.label for mark in marks) else 0)
    width, height = shown.image.width + 2 * margin, shown.image.height + 2 * margin
    canvas = Image.new("RGB", (width, height), PAPER)
    canvas.paste(shown.image, (margin, margin))
    sheet = _Sheet(ImageDraw.Draw(canvas), canvas.size, stroke, tag, [])
    # A hairline shows where the picture ends when it is as bright as the paper.
    sheet.pen.rectangle((margin - 1, margin - 1, width - margin, height - margin), outline=HAIRLINE)
    rectangles = tuple(shown.rectangle(image_box(mark.box, shown.source_size)) for mark in marks)
    on_canvas = [(left + margin, top + margin, right + margin, bottom + margin) for left, top, right, bottom in rectangles]
    for mark, rectangle in zip(marks, on_canvas, strict=True):
        _frame(replace(sheet, stroke=1) if mark.kind in THIN else sheet, rectangle, mark.kind)
    # The last mark is the one that matters most; its label gets the first choice of places.
    for mark, rectangle in reversed(list(zip(marks, on_canvas, strict=True))):
        if mark.label:
            _label(sheet, rectangle, mark)
    return Marked(canvas, (margin, margin), rectangles)


def image_box(box: Box, size: tuple[int, int]) -> Box:
    """`box` in frame "image", for a picture of `size` (width, height) pixels. Raises InputError when it lies in the padding."""
    return box if box.frame == "image" else SquarePad(*size).to_image(box)


@dataclass(frozen=True, slots=True)
class _Sheet:
    """The canvas of the strokes: its pen, its size, the stroke's width, the height of label tags, and the tags drawn so far."""

    pen: ImageDraw.ImageDraw
    size: tuple[int, int]
    stroke: int
    tag: int
    tags: list[Rectangle]


def _frame(sheet: _Sheet, rectangle: Rectangle, kind: MarkKind) -> None:
    """One dark line, `stroke` coloured ones, one dark line, each around the last: visible on any background."""
    left, top, right, bottom = rectangle
    dash = DASHES[kind]
    for ring in range(1, sheet.stroke + 3):
        colour = COLOURS[kind] if 1 < ring < sheet.stroke + 2 and dash is None else BLACK
        sheet.pen.rectangle((left - ring, top - ring, right - 1 + ring, bottom - 1 + ring), outline=colour)
    if dash is not None:
        _dashes(sheet, rectangle, dash, COLOURS[kind])


def _dashes(sheet: _Sheet, rectangle: Rectangle, dash: tuple[int, int], colour: RGB) -> None:
    """Coloured dashes (length and gap in double strokes) along the middle of the dark frame, from each side's first corner."""
    left, top, right, bottom = rectangle
    stroke = sheet.stroke
    length, gap = dash[0] * 2 * stroke, dash[1] * 2 * stroke
    for start in range(left - 2, right + 2, length + gap):
        end = min(start + length, right + 2) - 1
        sheet.pen.rectangle((start, top - 1 - stroke, end, top - 2), fill=colour)
        sheet.pen.rectangle((start, bottom + 1, end, bottom + stroke), fill=colour)
    for start in range(top - 2, bottom + 2, length + gap):
        end = min(start + length, bottom + 2) - 1
        sheet.pen.rectangle((left - 1 - stroke, start, left - 2, end), fill=colour)
        sheet.pen.rectangle((right + 1, start, right + stroke, end), fill=colour)


def _label(sheet: _Sheet, rectangle: Rectangle, mark: Mark) -> None:
    """Writes the mark's label at the nearest free place (`tag_place`)."""
    size = LABEL_PX * sheet.tag // _TAG_PX
    pad, font = (sheet.tag - size) // 2, font_at(size)
    text = shorten(mark.label, font, sheet.size[0] - 2 * pad)
    width = min(sheet.size[0], round(font.getlength(text)) + 2 * pad)
    place = tag_place(rectangle, (width, sheet.tag), sheet.stroke + 2, sheet.size, sheet.tags)
    sheet.pen.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=COLOURS[mark.kind], outline=BLACK)
    sheet.pen.text((place[0] + pad, place[1] + sheet.tag // 2), text, fill=BLACK, font=font, anchor="lm")
    sheet.tags.append(place)


def tag_place(
    box: tuple[N, N, N, N], tag: tuple[N, N], outside: N, size: tuple[N, N], taken: Sequence[tuple[N, N, N, N]]
) -> tuple[N, N, N, N]:
    """(left, top, right, bottom) of a tag of (width, height) on a canvas of `size`: the nearest place that no tag in `taken`
    holds, above its box, below it, or further off; else over another tag. `outside`: the width of the box's frame."""
    width, height = tag
    places = []
    for step in range(3):
        tops = (box[1] - outside - (step + 1) * height, box[3] + outside + step * height)
        lefts = (box[0] - outside, box[2] + outside - width)
        places += [_moved_inside((left, top, left + width, top + height), size) for top in tops for left in lefts]
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])


def _moved_inside(rectangle: tuple[N, N, N, N], size: tuple[N, N]) -> tuple[N, N, N, N]:
    """The rectangle moved onto a canvas of `size` that is large enough for it."""
    dx = max(0, -rectangle[0]) or min(0, size[0] - rectangle[2])
    dy = max(0, -rectangle[1]) or min(0, size[1] - rectangle[3])
    return rectangle[0] + dx, rectangle[1] + dy, rectangle[2] + dx, rectangle[3] + dy


def _overlap(one: tuple[N, N, N, N], other: tuple[N, N, N, N]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@lru_cache(maxsize=16)
def font_at(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans at `size` pixels, the file that matplotlib ships (a wide choice of scripts, no system fonts needed)."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def shorten(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """`text` on one line of at most `width` pixels, cut with an ellipsis where it is longer."""
    text = " ".join(printable(text).split())
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle] + "…") <= width else (low, middle - 1)
    return text[:low] + "…"


def wrap(text: str, font: ImageFont.FreeTypeFont, width: float, lines: int) -> list[str]:
    """`text` in at most `lines` lines of at most `width` pixels; the last is cut with an ellipsis.

    Words longer than a line are broken.
    """
    # 400 characters fill any line; the cut bounds the time spent on a hostile 10 MB question.
    words = printable(text[: 400 * lines]).split()
    result: list[str] = []
    while words and len(result) < lines:
        if len(result) == lines - 1:
            result.append(shorten(" ".join(words), font, width))
            break
        line = words.pop(0)
        if font.getlength(line) > width:
            fitting = max(1, len(shorten(line, font, width)) - 1)
            words.insert(0, line[fitting:])
            line = line[:fitting]
        while words and font.getlength(f"{line} {words[0]}") <= width:
            line = f"{line} {words.pop(0)}"
        result.append(line)
    return result
