"""Strokes stand where the box says, content is untouched, and what the encoder is given is what is shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cos_core.errors import InputError
from cos_core.geometry import Box
from cos_core.visualize.draw import (
    BLACK,
    COLOURS,
    EncoderView,
    Mark,
    draw_marks,
    font_at,
    printable,
    shorten,
    show,
    wrap,
    zoom,
)

NOISE = np.random.default_rng(7)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(NOISE.integers(0, 255, (height, width, 3), dtype=np.uint8))


BOXES = {
    "inside": Box(0.25, 0.5, 0.75, 0.9),
    "border": Box(0.0, 0.0, 0.3, 0.3),
    "whole": Box(0.0, 0.0, 1.0, 1.0),
    "one pixel": Box(0.5, 0.5, 0.503, 0.503),
    "last corner": Box(0.999, 0.999, 1.0, 1.0),
}
SIZES = [(400, 300), (31, 7), (7, 31), (1, 1), (1500, 97), (8192, 64)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
def test_the_clear_area_inside_the_stroke_is_the_box(size: tuple[int, int], box: Box) -> None:
    picture = noise(*size)
    shown = show(picture, 640)
    marked = draw_marks(shown, [Mark(box)])
    left, top, right, bottom = marked.rectangles[0]
    dx, dy = marked.origin
    drawn = np.asarray(marked.image)
    inside = drawn[dy + top : dy + bottom, dx + left : dx + right]
    assert np.array_equal(inside, np.asarray(shown.image)[top:bottom, left:right])
    ring = [(left - 1, top), (right, top), (left, top - 1), (left, bottom), (right, bottom)]
    assert all(tuple(drawn[dy + y, dx + x]) == BLACK for x, y in ring)
    coloured = [(left - 2, top), (right + 1, top), (left, top - 2), (left, bottom + 1)]
    assert all(tuple(drawn[dy + y, dx + x]) == COLOURS["predicted"] for x, y in coloured)


@pytest.mark.parametrize(("size", "factor"), [((400, 300), 1), ((640, 480), 1), ((321, 10), 1), ((31, 7), 20), ((1, 1), 640)])
def test_enlarged_rectangles_are_the_pixels_that_a_crop_holds(size: tuple[int, int], factor: int) -> None:
    box = Box(0.4, 0.4, 0.6, 0.6)
    assert show(noise(*size), 640).rectangle(box) == tuple(factor * v for v in box.pixels(*size))


def test_reduced_rectangles_are_the_box_on_the_reduced_raster() -> None:
    shown = show(noise(4000, 2000), 500)
    assert shown.image.size == (500, 250)
    assert shown.rectangle(Box(0.1, 0.2, 0.5, 1.0)) == (50, 50, 250, 250)


def test_a_square_box_is_converted() -> None:
    # 200 x 100 in a square of 200, 50 above: rows 50..150 of the square are the picture.
    marked = draw_marks(show(noise(200, 100), 200), [Mark(Box(0.25, 0.25, 0.5, 0.5, "square"))])
    assert marked.rectangles == ((50, 0, 100, 50),)
    with pytest.raises(InputError):
        draw_marks(show(noise(200, 100), 200), [Mark(Box(0.1, 0.0, 0.2, 0.2, "square"))])


def test_the_callers_picture_stays_as_it_is() -> None:
    picture = noise(120, 90)
    before = picture.tobytes()
    draw_marks(show(picture, 120), [Mark(box, name, "gold") for name, box in BOXES.items()])
    EncoderView(40).view(picture, BOXES["border"])
    zoom(picture, 300)
    assert picture.tobytes() == before


@pytest.mark.parametrize("kind", ["gold", "annotated", "region"])
def test_dashed_strokes_have_both_colours(kind: str) -> None:
    marked = draw_marks(show(noise(400, 300), 400), [Mark(BOXES["inside"], "", kind)])  # type: ignore[arg-type]
    left, top, right, _ = marked.rectangles[0]
    dx, dy = marked.origin
    row = {tuple(v) for v in np.asarray(marked.image)[dy + top - 2, dx + left : dx + right]}
    assert row == {BLACK, COLOURS[kind]}  # type: ignore[index]


def test_labels_of_equal_boxes_do_not_hide_each_other() -> None:
    marks = [Mark(BOXES["inside"], name, name) for name in ("gold", "annotated", "predicted")]  # type: ignore[arg-type]
    image = np.asarray(draw_marks(show(noise(400, 300), 400), marks).image).reshape(-1, 3)
    for name in ("gold", "annotated", "predicted"):
        assert (image == COLOURS[name]).all(axis=1).sum() > 300  # type: ignore[index]


def luminance(colour: tuple[int, int, int]) -> float:
    parts = [v / 255 / 12.92 if v / 255 <= 0.04045 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("colour", COLOURS.values(), ids=COLOURS.keys())
def test_black_text_on_every_label_is_legible(colour: tuple[int, int, int]) -> None:
    # WCAG 2: contrast of at least 4.5 to 1; the same figure is the stroke against its dark lines.
    assert (luminance(colour) + 0.05) / 0.05 >= 4.5


def test_the_encoder_is_given_a_padded_square() -> None:
    view = EncoderView(40, fill=(10, 20, 30)).view(Image.new("RGB", (200, 100), (255, 255, 255)))
    assert view.size == (40, 40)
    assert view.getpixel((20, 2)) == (10, 20, 30)
    assert view.getpixel((20, 20)) == (255, 255, 255)
    assert view.getpixel((20, 37)) == (10, 20, 30)


def test_the_encoder_is_given_the_region_alone() -> None:
    picture = Image.new("RGB", (200, 100), (0, 0, 0))
    picture.paste((255, 0, 0), (100, 0, 200, 100))
    view = EncoderView(16).view(picture, Box(0.5, 0.0, 1.0, 1.0))
    assert view.getcolors() == [(256, (255, 0, 0))]


def test_a_panorama_is_viewed_without_its_giant_square() -> None:
    assert EncoderView(40).view(Image.new("RGB", (60000, 3))).size == (40, 40)


def test_zoom_keeps_few_pixels_apart() -> None:
    few = zoom(noise(4, 2), 400)
    assert few.size == (400, 200)
    assert len(few.getcolors() or []) <= 8
    assert zoom(noise(300, 150), 400).size == (400, 200)


def test_show_refuses_no_room() -> None:
    with pytest.raises(InputError):
        show(noise(3, 3), 0)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300), st.integers(30, 400), st.integers(1, 4))
def test_wrapped_text_fits(text: str, width: int, lines: int) -> None:
    font = font_at(14)
    rows = wrap(text, font, width, lines)
    assert len(rows) <= lines
    # One character may be wider than a very narrow column; nothing else may.
    assert all(font.getlength(row) <= width or len(row) <= 1 for row in rows)


def test_wrap_by_hand() -> None:
    font = font_at(14)
    width = font.getlength("one two")
    assert wrap("one two three", font, width, 3) == ["one two", "three"]
    assert wrap("one two three", font, width, 1)[0].endswith("…")
    assert wrap("", font, width, 3) == []
    assert "".join(wrap("w" * 50, font, font.getlength("w" * 20), 5)) == "w" * 50
    assert len(wrap("x" * 10_000_000, font, 200, 3)) == 3
    assert shorten("one  two\n", font, 1000) == "one two"


def test_what_no_file_can_hold_becomes_a_mark() -> None:
    assert printable("a\x00b\ud800c\nd") == "a\ufffdb\ufffdc\nd"
