"""Boxes, their frames, and the way through the square and its text and back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cos_core.dialogue.box_text import read_box, write_box
from cos_core.dialogue.prompts import load_profile
from cos_core.errors import FrameError, InputError
from cos_core.geometry import Box, SquarePad, bounding, clipped, full_box, in_frame

PRIMES = (1, 2, 3, 7, 13, 97, 101, 239, 337, 641, 997, 1009, 2003, 4999, 7919, 30011)
sizes = st.tuples(st.sampled_from(PRIMES), st.sampled_from(PRIMES))


@st.composite
def pixel_boxes(draw: st.DrawFn) -> tuple[SquarePad, Box]:
    """A picture of prime sides and a box of whole pixels on it, at least one pixel each way."""
    width, height = draw(sizes)
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    x1, y1 = draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))
    return SquarePad(width, height), Box(x0 / width, y0 / height, x1 / width, y1 / height)


def edges_px(pad: SquarePad, box: Box) -> tuple[float, ...]:
    return box.x0 * pad.width, box.y0 * pad.height, box.x1 * pad.width, box.y1 * pad.height


@settings(deadline=None)
@given(pixel_boxes())
def test_square_and_back_is_the_same_box(case: tuple[SquarePad, Box]) -> None:
    pad, box = case
    back = pad.to_image(pad.to_square(box))
    for before, after in zip(edges_px(pad, box), edges_px(pad, back), strict=True):
        assert abs(before - after) <= 1e-9 * pad.side
    assert back.pixels(pad.width, pad.height) == box.pixels(pad.width, pad.height)


@pytest.mark.parametrize("name", ["paper", "repo-2024"])
@settings(deadline=None)
@given(case=pixel_boxes())
def test_text_moves_an_edge_by_half_a_thousandth_of_the_side(name: str, case: tuple[SquarePad, Box]) -> None:
    pad, box = case
    profile = load_profile(name)
    read, status = read_box(write_box(pad.to_square(box), profile), profile)
    assert status == "ok"
    assert read is not None
    back = pad.to_image(read)
    # A side thinner than a thousandth is widened to one, so there one edge may move by a whole unit.
    unit = [0.0005 if high - low >= 0.001 * pad.side else 0.001 for low, high in _sides(pad, box)]
    for before, after, share in zip(edges_px(pad, box), edges_px(pad, back), unit * 2, strict=True):
        assert abs(before - after) <= (share + 1e-9) * pad.side


def _sides(pad: SquarePad, box: Box) -> list[tuple[float, float]]:
    x0, y0, x1, y1 = edges_px(pad, box)
    return [(x0, x1), (y0, y1)]


def test_square_pad_of_a_wide_and_a_tall_picture() -> None:
    wide = SquarePad(100, 61)
    assert (wide.side, wide.offset) == (100, (0, 19))  # (100 - 61) // 2
    assert wide.to_square(full_box()).corners == pytest.approx((0.0, 0.19, 1.0, 0.80))
    tall = SquarePad(64, 97)
    assert (tall.side, tall.offset) == (97, (16, 0))  # 33 // 2: the odd pixel goes to the right
    assert tall.to_square(Box(0.5, 0.0, 1.0, 0.5)).corners == pytest.approx((48 / 97, 0.0, 80 / 97, 0.5))


def test_a_box_in_the_padding_has_no_place_on_the_picture() -> None:
    pad = SquarePad(100, 50)
    assert pad.to_image(Box(0.0, 0.0, 1.0, 1.0, "square")) == full_box()
    with pytest.raises(InputError):
        pad.to_image(Box(0.0, 0.0, 1.0, 0.2, "square"))


def test_frames_are_never_mixed() -> None:
    image, square, pad = full_box(), full_box("square"), SquarePad(3, 5)
    for mixed in (lambda: image.iou(square), lambda: image.union(square), lambda: bounding([image, square])):
        with pytest.raises(FrameError):
            mixed()
    with pytest.raises(FrameError):
        pad.to_square(square)
    with pytest.raises(FrameError):
        pad.to_image(image)


@pytest.mark.parametrize(
    "values",
    [
        (0.5, 0.0, 0.5, 1.0),
        (0.6, 0.0, 0.5, 1.0),
        (-0.1, 0.0, 0.5, 1.0),
        (0.0, 0.0, 1.0, 1.1),
        (math.nan, 0.0, 1.0, 1.0),
        (0.0, 0.0, math.inf, 1.0),
        (0.0, 0.0, 1e-200, 1e-200),
    ],
)
def test_impossible_boxes_are_refused(values: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError):
        Box(*values)


def test_iou_union_extension_by_hand() -> None:
    a, b = Box(0.0, 0.0, 0.5, 0.5), Box(0.25, 0.25, 0.75, 0.75)
    assert a.iou(b) == pytest.approx(0.0625 / 0.4375)
    assert a.iou(Box(0.5, 0.5, 1.0, 1.0)) == 0.0
    assert a.union(b) == Box(0.0, 0.0, 0.75, 0.75)
    assert Box(0.4, 0.0, 0.6, 0.5).extended(0.1).corners == pytest.approx((0.38, 0.0, 0.62, 0.55))
    assert bounding([a, b, Box(0.9, 0.1, 1.0, 0.2)]) == Box(0.0, 0.0, 1.0, 0.75)
    assert a.centre == (0.25, 0.25)
    assert a.contains(0.5, 0.5)
    assert not a.contains(0.51, 0.5)
    with pytest.raises(InputError):
        clipped(1.1, 0.0, 1.5, 1.0, "image")


@settings(deadline=None)
@given(pixel_boxes())
def test_pixels_of_a_pixel_box_are_its_own(case: tuple[SquarePad, Box]) -> None:
    pad, box = case
    got = box.pixels(pad.width, pad.height)
    assert got == tuple(round(v) for v in edges_px(pad, box))


@settings(deadline=None)
@given(sizes, st.floats(0, 1), st.floats(0, 1), st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_pixels_are_inside_and_never_empty(size: tuple[int, int], x: float, y: float, w: float, h: float) -> None:
    box = Box(min(x, 1 - 1e-7), min(y, 1 - 1e-7), min(1.0, x + w), min(1.0, y + h))
    left, top, right, bottom = box.pixels(*size)
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]


def test_pixels_round_half_to_even_as_pillow_does() -> None:
    assert Box(0.105, 0.205, 0.805, 0.905).pixels(100, 100) == (10, 20, 80, 90)


@pytest.mark.parametrize(
    "data", [None, [], [1, 2, 3], [0, 0, "1", 1], [0, 0, True, 1], {"box": [0, 0, 1, 1], "frame": 3}, [10**400] * 4]
)
def test_broken_json_boxes_are_refused(data: object) -> None:
    with pytest.raises(InputError):
        Box.from_json(data)


def test_json_round_trip() -> None:
    box = Box(0.1, 0.2, 0.3, 0.4, "square")
    assert Box.from_json(box.to_json()) == box
    assert Box.from_json([0, 0, 1, 1]) == full_box()


def test_a_box_in_the_frame_asked_for() -> None:
    wide, box = (40, 20), Box(0.25, 0.5, 0.75, 1.0)
    assert in_frame(box, "image", wide) is box
    square = in_frame(box, "square", wide)
    assert square == SquarePad(*wide).to_square(box)
    assert in_frame(square, "square", wide) is square
    assert in_frame(square, "image", wide) == box
    with pytest.raises(InputError):
        in_frame(Box(0, 0, 1, 0.2, "square"), "image", wide)
