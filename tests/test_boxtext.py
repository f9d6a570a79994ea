"""The box codec: what it writes, and what it makes of everything that models write."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cos_core.dialogue.box_grammar import BoxGrammar
from cos_core.dialogue.box_text import read_box, write_box
from cos_core.dialogue.prompts import Profile, load_profile
from cos_core.errors import FrameError, InputError
from cos_core.geometry import Box
from cos_core.types import BOX_STATUSES

PAPER, RELEASED = load_profile("paper"), load_profile("repo-2024")
Corners = tuple[float, float, float, float]
USUAL: Corners = (0.1, 0.2, 0.8, 0.9)

READ: list[tuple[str, Corners | None, str]] = [
    # as the codec writes
    ("[0.100, 0.200, 0.800, 0.900]", USUAL, "ok"),
    ("[0.1, 0.2, 0.8, 0.9]", USUAL, "ok"),
    ("  [0.1, 0.2, 0.8, 0.9]\n", USUAL, "ok"),
    ("[0, 0, 1, 1]", (0, 0, 1, 1), "ok"),
    ("[0.123456, 0.2, 0.8, 0.9]", (0.123456, 0.2, 0.8, 0.9), "ok"),
    # other marks and spaces
    ("[0.1,0.2,0.8,0.9]", USUAL, "repaired"),
    ("[0.1,  0.2,\t0.8, 0.9]", USUAL, "repaired"),
    ("0.1, 0.2, 0.8, 0.9", USUAL, "repaired"),
    ("0.1 0.2 0.8 0.9", USUAL, "repaired"),
    ("(0.1, 0.2, 0.8, 0.9)", USUAL, "repaired"),
    ("[0.1; 0.2; 0.8; 0.9]", USUAL, "repaired"),
    ("[0.1, 0.2, 0.8, 0.9", USUAL, "repaired"),
    ("[[0.1, 0.2, 0.8, 0.9]]", USUAL, "repaired"),
    ("[(0.1, 0.2), (0.8, 0.9)]", USUAL, "repaired"),
    ("[.1, .2, .8, .9]", USUAL, "repaired"),
    ("[1e-1, 2e-1, .8, 9.0e-1]", USUAL, "repaired"),
    ("[0.12, 0.1234, 0.8, 0.9]", (0.12, 0.1234, 0.8, 0.9), "ok"),
    ("[0.1,0.2, 0.8 0.9]", USUAL, "repaired"),
    ("[0.1, 0.2][0.8, 0.9]", USUAL, "repaired"),
    ("<box>0.1 0.2 0.8 0.9</box>", USUAL, "repaired"),
    ("[+0.1, +0.2, +0.8, +0.9]", USUAL, "repaired"),
    ("0.1,0.2,0.8,0.9", USUAL, "repaired"),
    ("[0.1, 0.2, 0.8, 0.9].", USUAL, "repaired"),
    ("[0.1, 0.2, 0.8, 0.9]</s>", USUAL, "repaired"),
    ("0.1-0.2-0.8-0.9", USUAL, "repaired"),
    ("[0.1234567, 0.2, 0.8, 0.9]", (0.1234567, 0.2, 0.8, 0.9), "repaired"),
    # words around, and numbers inside words
    ("The region is [0.1, 0.2, 0.8, 0.9]", USUAL, "repaired"),
    ("The 2 dogs (see [0.1, 0.2, 0.8, 0.9]) play", USUAL, "repaired"),
    ("x0=0.1, y0=0.2, x1=0.8, y1=0.9", USUAL, "repaired"),
    ('{"x0": 0.1, "y0": 0.2, "x1": 0.8, "y1": 0.9}', USUAL, "repaired"),
    ("区域是0.1, 0.2, 0.8, 0.9。", USUAL, "repaired"),
    ("information: 0.1 0.2 0.8 0.9", USUAL, "repaired"),
    ("[٠.1, ０.2, 0.8, 0.9]", USUAL, "ok"),
    # more numbers than four
    ("[0.1, 0.2, 0.8, 0.9, 0.5]", USUAL, "repaired"),
    ("[0.1, 0.2, 0.8, 0.9], [0.3, 0.3, 0.4, 0.4]", USUAL, "repaired"),
    ("[7] [0.1, 0.2, 0.8, 0.9]", USUAL, "repaired"),
    # percent
    ("10% 20% 80% 90%", USUAL, "repaired"),
    ("[-0.0, 0.2, 0.8, 0.9]", (0, 0.2, 0.8, 0.9), "repaired"),
    ("[10%, 20%, 80%, 90 %]", USUAL, "repaired"),
    # swapped corners
    ("[0.8, 0.2, 0.1, 0.9]", USUAL, "repaired"),
    ("[0.8, 0.9, 0.1, 0.2]", USUAL, "repaired"),
    # outside the square
    ("[0.1, 0.2, 1.4, 1.3]", (0.1, 0.2, 1, 1), "clamped"),
    ("[-0.2, 0.2, 0.8, 0.9]", (0, 0.2, 0.8, 0.9), "clamped"),
    ("[0.1, 0.2, 1e9, 0.9]", (0.1, 0.2, 1, 0.9), "clamped"),
    ("[150%, 20%, -10%, 90%]", (0, 0.2, 1, 0.9), "clamped"),
    # no area
    ("[0.5, 0.5, 0.5, 0.5]", None, "degenerate"),
    ("[0.5, 0.2, 0.5, 0.9]", None, "degenerate"),
    ("[1, 2, 3, 4]", None, "degenerate"),
    ("[100, 200, 300, 400]", None, "degenerate"),
    ("[0, 0, 1e-200, 1e-200]", None, "degenerate"),
    ("[-3, -3, -1, -1]", None, "degenerate"),
    # nothing to read
    ("", None, "unparsable"),
    ("[0.1, 0.2, 0.8]", None, "unparsable"),
    ("[inf, 0, 1, 1]", None, "unparsable"),
    ("[nan, nan, nan, nan]", None, "unparsable"),
    ("[0.1, 0.2, NaN, 0.9]", None, "unparsable"),
    ("[1e999, 0, 1, 1]", None, "unparsable"),
    ("the dog on the left", None, "unparsable"),
    ("1.2.3.4", None, "unparsable"),
    ("[0.1, 0.2, 0.8, ²]", None, "unparsable"),
    ("[" * 1000, None, "unparsable"),
]


@pytest.mark.parametrize(("text", "corners", "status"), READ, ids=[repr(row[0][:30]) for row in READ])
def test_what_models_write(text: str, corners: Corners | None, status: str) -> None:
    box, got = read_box(text, PAPER)
    assert got == status
    assert (box and box.corners) == (corners and pytest.approx(corners))
    assert box is None or box.frame == "square"


def check(text: str) -> None:
    for profile in (PAPER, replace(PAPER, box_order="x0x1y0y1")):
        box, status = read_box(text, profile)
        assert status in BOX_STATUSES
        assert (box is None) == (status in ("degenerate", "unparsable"))
        if box is not None:
            assert all(0 <= v <= 1 and math.isfinite(v) for v in box.corners)
            assert box.area > 0


pieces = st.sampled_from(
    [*"[]()0123456789.,-+eE%", " ", "\n", "nan", "inf", "-inf", "0.5", "1e-308", "1e308", "box", "x0=", "</s>", "_"]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(pieces, max_size=40).map("".join) | st.text(max_size=60))
def test_no_text_breaks_it(text: str) -> None:
    check(text)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.floats() | st.integers(), min_size=3, max_size=6), st.sampled_from([", ", ",", " ", "; "]))
def test_no_numbers_break_it(values: list[float], mark: str) -> None:
    check(f"[{mark.join(map(str, values))}]")


def test_long_texts_take_no_long_time() -> None:
    for text in (
        "9" * 100_000,
        "0.1 " * 50_000,
        "[" * 100_000,
        "[0.1," * 30_000,
        "1e" * 50_000,
        "-" * 100_000,
        " " * 100_000 + "%",
    ):
        check(text)


def test_writing_by_hand() -> None:
    box = Box(0.25, 0.5, 0.7504, 1.0, "square")
    assert write_box(box, PAPER) == "[0.250, 0.500, 0.750, 1.000]"
    assert write_box(box, RELEASED) == "[0.25, 0.5, 0.75, 1.0]"
    assert write_box(box, replace(PAPER, box_order="x0x1y0y1")) == "[0.250, 0.750, 0.500, 1.000]"
    assert write_box(box, replace(PAPER, box_decimals=1)) == "[0.2, 0.5, 0.8, 1.0]"
    assert write_box(box, replace(PAPER, box_step=0.2, box_decimals=1)) == "[0.2, 0.4, 0.8, 1.0]"
    with pytest.raises(FrameError, match="SquarePad"):
        write_box(Box(0, 0, 1, 1, "image"), PAPER)


def test_a_thin_side_is_widened_to_one_unit() -> None:
    assert write_box(Box(0.4, 0.4, 0.40001, 0.8, "square"), PAPER) == "[0.400, 0.400, 0.401, 0.800]"
    assert write_box(Box(0.99999, 0.0, 1.0, 0.00001, "square"), PAPER) == "[0.999, 0.000, 1.000, 0.001]"


fractions = st.floats(0, 1, allow_subnormal=False)


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(fractions, fractions).filter(lambda v: abs(v[0] - v[1]) > 1e-9),
    st.tuples(fractions, fractions).filter(lambda v: abs(v[0] - v[1]) > 1e-9),
    st.sampled_from([PAPER, RELEASED]),
    st.sampled_from(["x0y0x1y1", "x0x1y0y1"]),
    st.sampled_from([(1, None), (2, None), (3, None), (6, None), (3, 0.025), (2, 0.04), (3, 0.125)]),
)
def test_what_is_written_is_read_as_written(x: tuple, y: tuple, base: object, order: str, raster: tuple) -> None:
    decimals, step = raster
    profile = replace(base, box_order=order, box_decimals=decimals, box_step=step)  # type: ignore[type-var]
    box = Box(min(x), min(y), max(x), max(y), "square")
    text = write_box(box, profile)
    read, status = read_box(text, profile)
    assert status == "ok"
    assert read is not None
    assert write_box(read, profile) == text, "writing again changes nothing"
    unit = step or 10.0**-decimals
    for low, high, low_read, high_read in ((box.x0, box.x1, read.x0, read.x1), (box.y0, box.y1, read.y0, read.y1)):
        # Half a unit; a whole one where a side thinner than a unit was widened.
        allowed = (unit / 2 if high - low >= unit else unit) + 1e-9
        assert abs(low - low_read) <= allowed
        assert abs(high - high_read) <= allowed


RELEASED_READS: list[tuple[str, Corners | None, str]] = [
    ("[0.1, 0.2, 0.8, 0.9]", USUAL, "ok"),
    ("(0.1, 0.2, 0.8, 0.9)", USUAL, "repaired"),
    ("[0.1, 0.2, 0.8, 0.9, 0.5]", USUAL, "repaired"),
    ("[1e-1, 2e-1, .8, 9.0e-1]", USUAL, "repaired"),
    ("[0_0.1, 0.2, 0.8, 0.9]", USUAL, "repaired"),
    ("[0.1,0.2,0.8,0.9]", None, "unparsable"),
    ("0.1, 0.2, 0.8, 0.9", (0.1, 0.2, 0.8, 0.0), "unparsable"),
    ("[0.8, 0.2, 0.1, 0.9]", None, "unparsable"),
    ("[0.1, 0.2, 0.8, 0.9].", None, "unparsable"),
    ("[0.1, 0.2, 1.4, 1.3]", (0.1, 0.2, 1, 1), "clamped"),
    ("[0.5, 0.5, 0.5, 0.5]", None, "degenerate"),
    ("", None, "unparsable"),
]


@pytest.mark.parametrize(("text", "corners", "status"), RELEASED_READS, ids=[repr(row[0][:30]) for row in RELEASED_READS])
def test_the_released_reader_falls_back_where_the_released_code_does(text: str, corners: object, status: str) -> None:
    box, got = read_box(text, RELEASED)
    assert got == status
    if box is not None:
        assert box.corners == pytest.approx(corners)


GRAMMARS = [
    PAPER,
    RELEASED,
    replace(PAPER, box_order="x0x1y0y1"),
    replace(PAPER, box_step=0.0625),
    replace(RELEASED, box_decimals=1),
    replace(PAPER, box_step=0.2, box_decimals=1),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(GRAMMARS), st.randoms(use_true_random=False))
def test_whatever_follows_the_grammar_is_read_as_written(profile: object, dice: object) -> None:
    grammar = BoxGrammar(profile)  # type: ignore[arg-type]
    text = ""
    while follows := grammar.follows(text):
        assert grammar.viable(text)
        assert follows <= grammar.alphabet
        assert read_box(grammar.finish(text), profile)[1] == "ok"  # type: ignore[arg-type]
        text += dice.choice(sorted(follows))  # type: ignore[attr-defined]
    box, status = read_box(text, profile)  # type: ignore[arg-type]
    assert status == "ok"
    assert box is not None
    assert write_box(box, profile) == text  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(st.tuples(*[fractions] * 4), st.sampled_from(GRAMMARS), st.integers(0, 40), st.sampled_from(list("[]0123456789., x")))
def test_everything_written_follows_the_grammar(values: tuple, profile: object, at: int, other: str) -> None:
    x0, y0, x1, y1 = values
    if not (x0 < x1 and y0 < y1):
        return
    grammar = BoxGrammar(profile)  # type: ignore[arg-type]
    try:
        text = write_box(Box(x0, y0, x1, y1, "square"), profile)  # type: ignore[arg-type]
    except InputError:
        return
    for end in range(len(text)):
        assert text[end] in grammar.follows(text[:end])
    assert grammar.viable(text)
    assert grammar.follows(text) == frozenset()
    # A wrong character makes it unviable, and follows() knows it.
    wrong = text[:at] + other
    assert grammar.viable(wrong) == (other in grammar.follows(text[:at]) if at <= len(text) else wrong == text)


def test_the_grammar_by_hand() -> None:
    grammar = BoxGrammar(PAPER)
    assert grammar.follows("") == {"["}
    assert grammar.follows("[") == {"0"}, "the first corner lies below 1"
    assert grammar.follows("[0.999") == {","}
    assert grammar.follows("[0.999, 0.000, ") == {"1"}, "only 1.000 lies beyond 0.999"
    assert grammar.follows("[0.250, 0.000, 0.2") == set("56789")
    assert grammar.follows("[0.250, 0.000, 0.25") == set("123456789")
    assert not grammar.viable("[0.250, 0.000, 0.250")
    assert BoxGrammar(RELEASED).follows("[0.5") == set("0123456789,")
    with pytest.raises(InputError, match="four decimals"):
        BoxGrammar(replace(PAPER, box_decimals=5))


def raster_profiles() -> list[Profile]:
    """Wordings whose numbers are written in every way there is."""
    return [
        replace(PAPER, box_decimals=decimals, box_pad_zeros=padded, box_step=step)
        for decimals, padded, step in [(1, True, None), (2, True, None), (3, True, None), (4, True, None), (1, False, None),
                                       (2, False, None), (3, False, None), (2, True, 0.25), (3, False, 0.1), (2, True, 0.05)]
    ]  # fmt: skip


@pytest.mark.parametrize("profile", raster_profiles(), ids=lambda p: f"{p.box_decimals}-{p.box_pad_zeros}-{p.box_step}")
def test_the_pattern_matches_every_text_of_the_grammar(profile: Profile) -> None:
    grammar = BoxGrammar(profile)
    dice = random.Random(7)
    numbers = grammar._numbers
    for _ in range(300):
        text = ""
        while follows := grammar.follows(text):
            text += dice.choice(sorted(follows))
        assert re.fullmatch(grammar.pattern, text), text
    for number in numbers if len(numbers) < 2000 else dice.sample(numbers, 2000):
        assert re.fullmatch(grammar.pattern, f"[{number}, {number}, {number}, {number}]"), number


@pytest.mark.parametrize("profile", raster_profiles(), ids=lambda p: f"{p.box_decimals}-{p.box_pad_zeros}-{p.box_step}")
def test_what_the_pattern_matches_is_four_numbers_of_the_raster(profile: Profile) -> None:
    grammar = BoxGrammar(profile)
    raster = set(grammar._numbers)

    @given(st.from_regex(grammar.pattern, fullmatch=True))
    @settings(max_examples=100, deadline=None, derandomize=True)
    def check(text: str) -> None:
        assert set(text[1:-1].split(", ")) <= raster
        box, status = read_box(text, profile)
        assert status in ("ok", "repaired", "degenerate")
        assert (box is None) == (status == "degenerate")

    check()
    for text in ("[0.1]", "0.100, 0.200, 0.300, 0.400", "[2.000, 0.000, 1.000, 1.000]", "[0.100,0.200,0.300,0.400]", ""):
        assert not re.fullmatch(grammar.pattern, text)
