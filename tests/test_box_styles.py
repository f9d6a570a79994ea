"""The box codec in the families' units, frames and orders: what it writes, what it makes of what models write, its grammar."""

from __future__ import annotations

import random
import re
import time
from dataclasses import replace

import pytest
from box_styles import PROFILES, SPECIAL, STYLES
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llava import byte_tokenizer

from cos_core.dialogue.box_grammar import BoxGrammar
from cos_core.dialogue.box_text import read_box, with_marks, write_box
from cos_core.dialogue.prompts import load_profile
from cos_core.engines._constrain import TokenGrammar
from cos_core.errors import FrameError, InputError
from cos_core.geometry import Box, in_frame
from cos_core.types import BOX_STATUSES

Corners = tuple[float, float, float, float]
SEEN = (1120, 560)
"""Width and height of the picture as the model sees it, in these tests."""
BOX: Corners = (0.075, 0.25, 0.5, 0.75)
WRITTEN = {
    "llava": "[0.075, 0.250, 0.500, 0.750]",
    "qwen2_vl": "<|box_start|>(75,250),(500,750)<|box_end|>",
    "qwen2_5_vl": '{"bbox_2d": [84, 140, 560, 420]}',
    "qwen3_vl": '{"bbox_2d": [75, 250, 500, 750]}',
    "internvl": "<box>[[75, 250, 500, 750]]</box>",
    "paligemma": "<loc0256><loc0077><loc0768><loc0512>",
    "undocumented": "[0.075, 0.250, 0.500, 0.750]",
    "whole numbers in brackets": "[75, 250, 500, 750]",
    "pixels, x first": "x 84:560; y 140/420;",
    "words around fractions": "box(0.07 0.25 0.50 0.75)",
}


def boxed(corners: Corners, name: str) -> Box:
    return Box(*corners, STYLES[name].frame)


@pytest.mark.parametrize("name", STYLES)
def test_each_style_by_hand(name: str) -> None:
    text = write_box(boxed(BOX, name), PROFILES[name], SEEN)
    assert text == WRITTEN[name]
    box, status = read_box(f" {text}\n", PROFILES[name], SEEN)
    assert status == "ok"
    assert box is not None
    assert box.corners == pytest.approx(BOX, abs=0.006)
    other = "image" if STYLES[name].frame == "square" else "square"
    with pytest.raises(FrameError):
        write_box(Box(*BOX, other), PROFILES[name], SEEN)


def test_the_ends_of_each_scale() -> None:
    assert write_box(Box(0, 0, 1, 1), PROFILES["qwen3_vl"]) == '{"bbox_2d": [0, 0, 1000, 1000]}'
    assert write_box(Box(0, 0, 1, 1), PROFILES["qwen2_5_vl"], (28, 1)) == '{"bbox_2d": [0, 0, 28, 1]}'
    assert write_box(Box(0, 0, 1, 1), PROFILES["paligemma"]) == "<loc0000><loc0000><loc1023><loc1023>"
    # A side thinner than a unit is widened to one, at the end as well.
    assert write_box(Box(0.9999, 0.9999, 1, 1), PROFILES["paligemma"]) == "<loc1022><loc1022><loc1023><loc1023>"
    assert write_box(Box(0.9999, 0.4, 1, 0.4001), PROFILES["qwen3_vl"]) == '{"bbox_2d": [999, 400, 1000, 401]}'
    assert read_box('{"bbox_2d": [0, 0, 1000, 1000]}', PROFILES["qwen3_vl"]) == (Box(0, 0, 1, 1), "ok")
    assert read_box("<loc0000><loc0000><loc1023><loc1023>", PROFILES["paligemma"]) == (
        Box(0, 0, 1023 / 1024, 1023 / 1024),
        "ok",
    )


def test_what_is_not_settled_or_not_known_is_refused() -> None:
    chat = load_profile("chat")
    for use in (lambda: write_box(Box(0, 0, 1, 1), chat), lambda: read_box("x", chat), lambda: BoxGrammar(chat)):
        with pytest.raises(InputError, match="family"):
            use()
    pixels = PROFILES["qwen2_5_vl"]
    for use in (lambda: write_box(Box(0, 0, 1, 1), pixels), lambda: read_box("x", pixels), lambda: BoxGrammar(pixels)):
        with pytest.raises(InputError, match="size of the picture"):
            use()


K: Corners = (0.074, 0.361, 0.324, 0.808)
"""What 74 361 324 808 name in thousandths."""
P: Corners = (74 / 1120, 361 / 560, 324 / 1120, 1.0)
"""The same in pixels of the picture as it is seen, 560 high: clamped."""
Q: Corners = (74 / 1120, 36 / 560, 324 / 1120, 408 / 560)
FENCED = '```json\n[\n\t{{"bbox_2d": [{}], "label": "{}"}},\n\t{{"bbox_2d": [1, 2, 3, 4], "label": "b"}}\n]\n```'

READ: list[tuple[str, str, Corners | None, str]] = [
    # Qwen2-VL: two points between marks that a decoder drops
    ("qwen2_vl", "<|box_start|>(74,361),(324,808)<|box_end|>", K, "ok"),
    ("qwen2_vl", "(74,361),(324,808)", K, "ok"),
    ("qwen2_vl", "<|box_start|>(74,361),(324,808)", K, "repaired"),
    ("qwen2_vl", "(74, 361), (324, 808)", K, "repaired"),
    ("qwen2_vl", "<|box_start|>(324,808),(74,361)<|box_end|>", K, "repaired"),
    ("qwen2_vl", "<|object_ref_start|>the 2 dogs<|object_ref_end|><|box_start|>(74,361),(324,808)<|box_end|>", K, "repaired"),
    ("qwen2_vl", "the 2 dogs(74,361),(324,808)", K, "repaired"),
    ("qwen2_vl", "(74,361),(324,808) and (1,2),(3,4)", K, "repaired"),
    ("qwen2_vl", '{"bbox_2d": [74, 361, 324, 808]}', K, "repaired"),
    ("qwen2_vl", "<|box_start|>(74,361),(324,1808)<|box_end|>", (0.074, 0.361, 0.324, 1), "clamped"),
    ("qwen2_vl", "(74,361),(74,808)", None, "degenerate"),
    ("qwen2_vl", "(74,361),(324", None, "unparsable"),
    # Qwen2.5-VL: pixels of the picture as it is seen
    ("qwen2_5_vl", '{"bbox_2d": [74, 36, 324, 408]}', Q, "ok"),
    ("qwen2_5_vl", '{"bbox_2d": ["74", "36", "324", "408"]}', Q, "repaired"),
    ("qwen2_5_vl", FENCED.format("74, 36, 324, 408", "a [9, 9, 99, 99]"), Q, "repaired"),
    ("qwen2_5_vl", '{"bbox_2d": [74, 361, 324, 808]}', P, "clamped"),
    ("qwen2_5_vl", '{"bbox_2d": [0, 0, 1, 1]}', (0, 0, 1 / 1120, 1 / 560), "ok"),
    ("qwen2_5_vl", "[0, 0, 1, 1]", (0, 0, 1 / 1120, 1 / 560), "repaired"),
    ("qwen2_5_vl", '{"bbox_2d": [0, 0, 1.0, 1]}', (0, 0, 1, 1), "repaired"),
    ("qwen2_5_vl", '{"bbox_2d": [0.1, 0.2, 0.8, 0.9]}', (0.1, 0.2, 0.8, 0.9), "repaired"),
    ("qwen2_5_vl", '{"bbox_2d": [0.5, 0.5, 1.5, 1.5]}', (0.5 / 1120, 0.5 / 560, 1.5 / 1120, 1.5 / 560), "repaired"),
    ("qwen2_5_vl", "74px, 36px, 324px, 408px", Q, "repaired"),
    # Qwen3-VL: the same text in thousandths
    ("qwen3_vl", '{"bbox_2d": [74, 361, 324, 808]}', K, "ok"),
    ("qwen3_vl", '{"bbox_2d":[74,361,324,808]}', K, "repaired"),
    ("qwen3_vl", '{"label": "2 dogs [1, 2, 3, 4]", "bbox_2d": [74, 361, 324, 808]}', K, "repaired"),
    ("qwen3_vl", '{"label": "2 dogs", "box": [74, 361, 324, 808]}', K, "repaired"),
    ("qwen3_vl", '{"bbox_2d": "none"}, {"bbox_2d": [74, 361, 324, 808]}', K, "repaired"),
    ("qwen3_vl", '{"bbox_2d": [[74, 361], [324, 808]]}', K, "repaired"),
    ("qwen3_vl", '{"bbox_2d": {"x0": 74, "y0": 361, "x1": 324, "y1": 808}}', K, "repaired"),
    ("qwen3_vl", '{"bbox_2d": "74, 361, 324, 808"}', K, "repaired"),
    ("qwen3_vl", '{"bbox_2d": [74, 361, 324, 808, 0.97]}', K, "repaired"),
    ("qwen3_vl", '{"bbox_2d": [74, 361, 324, 808', K, "repaired"),
    ("qwen3_vl", '{"bbox_2d": [074, 361, 324, 808]}', K, "repaired"),
    ("qwen3_vl", "bbox_2d: 74, 361, 324, 808", K, "repaired"),
    ("qwen3_vl", "2d box: 74, 361, 324, 808", K, "repaired"),
    ("qwen3_vl", "The region is [74, 361, 324, 808].", K, "repaired"),
    ("qwen3_vl", "2 dogs at [74, 361, 324, 808]", K, "repaired"),
    ("qwen3_vl", "from (74, 361) to (324, 808)", K, "repaired"),
    ("qwen3_vl", "left 74, top 361, right 324, bottom 808", K, "repaired"),
    ("qwen3_vl", "74 361 324 808", K, "repaired"),
    ("qwen3_vl", "7.4% 36.1% 32.4% 80.8%", K, "repaired"),
    ("qwen3_vl", "[74.0, 361.5, 324.0, 808.0]", (0.074, 0.3615, 0.324, 0.808), "repaired"),
    ("qwen3_vl", '{"bbox_2d": [-5, 361, 324, 808]}', (0, 0.361, 0.324, 0.808), "clamped"),
    ("qwen3_vl", '{"bbox_2d": [324, 808, 74, 361]}', K, "repaired"),
    ("qwen3_vl", '{"bbox_2d": [2000, 0, 3000, 9]}', None, "degenerate"),
    ("qwen3_vl", '{"bbox_2d": [74, 361, 324], "label": "3 dogs"}', None, "unparsable"),
    ("qwen3_vl", '{"bbox_2d": [74, 361, nan, 808]}', None, "unparsable"),
    ("qwen3_vl", '{"bbox_2d": [74, 361, 1e999, 808]}', None, "unparsable"),
    ("qwen3_vl", "In 1990 there were 3 dogs, 4 cats and 12 birds.", None, "unparsable"),
    ("qwen3_vl", "1. The dog. 2. The cat. 3. The bird. 4. The fish.", None, "unparsable"),
    ("qwen3_vl", "", None, "unparsable"),
    # InternVL
    ("internvl", "<box>[[74, 361, 324, 808]]</box>", K, "ok"),
    ("internvl", "[[74, 361, 324, 808]]", K, "ok"),
    ("internvl", "<box>[[74,361,324,808]]</box>", K, "repaired"),
    ("internvl", "<ref>3 cats</ref><box>[[74, 361, 324, 808], [1, 2, 3, 4]]</box>", K, "repaired"),
    ("internvl", "3 cats[[74, 361, 324, 808]]", K, "repaired"),
    ("internvl", "<box>[74, 361, 324, 808]</box>", K, "repaired"),
    # PaliGemma: y first
    ("paligemma", "<loc0256><loc0077><loc0768><loc0512>", (77 / 1024, 0.25, 0.5, 0.75), "ok"),
    ("paligemma", "<loc0256><loc0077><loc0768><loc0512> 2 dogs ; <loc0001><loc0002><loc0003><loc0004> cat",
     (77 / 1024, 0.25, 0.5, 0.75), "repaired"),
    ("paligemma", "2 dogs <loc0256> <loc0077> <loc0768> <loc0512>", (77 / 1024, 0.25, 0.5, 0.75), "repaired"),
    ("paligemma", "<loc256><loc77><loc768><loc512>", (77 / 1024, 0.25, 0.5, 0.75), "repaired"),
    ("paligemma", "0256 0077 0768 0512", (77 / 1024, 0.25, 0.5, 0.75), "repaired"),
    ("paligemma", "<loc0768><loc0512><loc0256><loc0077>", (77 / 1024, 0.25, 0.5, 0.75), "repaired"),
    ("paligemma", "<loc0256><loc0077><loc0768><loc9999>", (77 / 1024, 0.25, 1, 0.75), "clamped"),
    ("paligemma", "<loc0256><loc0077><loc0768> 3 cats", None, "unparsable"),
    ("paligemma", "<loc0256><loc0077><loc0256><loc0512>", None, "degenerate"),
    # families without a documented writing: as LLaVA, of the picture
    ("undocumented", "[0.074, 0.361, 0.324, 0.808]", K, "ok"),
    ("undocumented", "x0=0.074, y0=0.361, x1=0.324, y1=0.808", K, "repaired"),
    ("undocumented", "[74, 361, 324, 808]", None, "degenerate"),
    # other styles that a profile may name
    ("whole numbers in brackets", "[74, 361, 324, 808]", K, "ok"),
    ("whole numbers in brackets", "[7] [74, 361, 324, 808]", K, "repaired"),
    ("pixels, x first", "x 74:324; y 36/408;", Q, "ok"),
    ("pixels, x first", "x 74 : 324; y 36 / 408", Q, "repaired"),
    ("words around fractions", "box(0.07 0.36 0.32 0.81)", (0.07, 0.36, 0.32, 0.81), "ok"),
    ("words around fractions", "the box: (0.07, 0.36, 0.32, 0.81)", (0.07, 0.36, 0.32, 0.81), "repaired"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "corners", "status"), READ, ids=[f"{row[0]}-{row[1][:24]!r}" for row in READ])
def test_what_models_write(name: str, text: str, corners: Corners | None, status: str) -> None:
    box, got = read_box(text, PROFILES[name], SEEN)
    assert got == status
    assert (box and box.corners) == (corners and pytest.approx(corners))
    assert box is None or box.frame == STYLES[name].frame


pieces = st.sampled_from(
    [*"[](){}<>0123456789.,-+eE%\"'|: ", "\n", "nan", "inf", "74", "0.5", "1e308", "bbox_2d", '"bbox_2d": [', "<|box_start|>(",
     "<box>[[", "<loc0", "```json", "label", "</s>", "_", "\u0663", "\uff11"]
)  # fmt: skip


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(PROFILES)), st.lists(pieces, max_size=40).map("".join) | st.text(max_size=60))
def test_no_text_breaks_it(name: str, text: str) -> None:
    box, status = read_box(text, PROFILES[name], SEEN)
    assert status in BOX_STATUSES
    assert (box is None) == (status in ("degenerate", "unparsable"))
    assert box is None or box.frame == STYLES[name].frame


HOSTILE = ["9", "[1,", "1 ", "(1,1),", '{"bbox_2d": ', '{"bbox_2d": [1, ', '"', "<", "<loc0001>", "<box>", "1.", "1e", "-"]
HOSTILE += ["nan ", "<|box_start|>(", " ", "a", "[[", "1%", "bbox_2d\n"]


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_long_text_takes_no_long_time(piece: str) -> None:
    """Time grows with the length and no faster: a tenth of a second or so for these 200,000 characters."""
    text = piece * (200_000 // len(piece))
    for name in ("qwen2_vl", "qwen2_5_vl", "paligemma"):
        start = time.process_time()
        for hostile in (text, f'{{"bbox_2d": [{text}, 2, 3, 4]}}', f"[1{text}%"):
            read_box(hostile, PROFILES[name], SEEN)
        assert time.process_time() - start < 5, name


@pytest.mark.parametrize("name", PROFILES)
def test_marks_that_a_decoder_dropped_are_put_back(name: str) -> None:
    text, profile = WRITTEN[name], PROFILES[name]
    dropped = re.sub(r"<[|/]?box[^>]*>", "", text)
    assert (dropped != text) == (name in ("qwen2_vl", "internvl"))
    assert with_marks(dropped, profile) == with_marks(text, profile) == text
    assert with_marks(f" {dropped}\n", profile) == (text if dropped != text else f" {dropped}\n")
    for other in ("", "red", dropped + ".", dropped[1:], "(1, 2),(3, 4)", "[[1,2,3,4]]", "<|box_start|>(1,2),(3,4)"):
        assert with_marks(other, profile) == other


# --- there and back ------------------------------------------------------------------------------------------------------

SIZES = [(1, 5000), (5000, 1), (20000, 30), (30, 20000), (640, 480), (1, 1), (1333, 800)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", STYLES)
def test_a_box_of_a_picture_comes_back_within_one_unit(name: str, size: tuple[int, int]) -> None:
    """Picture fraction -> text -> picture fraction; a unit is a fraction of the frame, the longer side where that is padded."""
    dice = random.Random(f"{name} {size}")
    style, profile = STYLES[name], PROFILES[name]
    for _ in range(300):
        seen = (dice.randrange(1, 3000), dice.randrange(1, 3000))
        ends = sorted(dice.choice([dice.random(), 0.0, 1.0, dice.random() ** 9]) for _ in range(2))
        sides = sorted(dice.choice([dice.random(), 0.0, 1.0, 1 - dice.random() ** 9]) for _ in range(2))
        if ends[1] - ends[0] < 1e-9 or sides[1] - sides[0] < 1e-9:
            continue
        box = Box(ends[0], sides[0], ends[1], sides[1])
        text = write_box(in_frame(box, style.frame, size), profile, seen)
        read, status = read_box(text, profile, seen)
        assert status == "ok", text
        assert read is not None
        assert write_box(read, profile, seen) == text, "writing again changes nothing"
        back = in_frame(read, "image", size)
        units = {"fraction": (10.0**-style.decimals,) * 2, "thousandth": (1e-3,) * 2, "1024th": (1 / 1024,) * 2}
        x, y = units.get(style.unit, (1 / seen[0], 1 / seen[1]))
        if style.frame == "square":
            x, y = x * max(size) / size[0], y * max(size) / size[1]
        # The 1024ths end at 1023: what touches the end is a unit off, and what is thinner than a unit there two.
        allowed = 2.0 if style.unit == "1024th" else 1.0
        for place, (a, b) in enumerate(zip(box.corners, back.corners, strict=True)):
            assert abs(a - b) <= allowed * (y if place % 2 else x) + 1e-9


# --- the grammar ---------------------------------------------------------------------------------------------------------

PLAIN = [name for name in STYLES if name not in SPECIAL]


def grammar_of(name: str, seen: tuple[int, int] = SEEN) -> BoxGrammar:
    return BoxGrammar(PROFILES[name], seen if STYLES[name].unit == "pixel" else None)


@pytest.mark.parametrize("name", SPECIAL)
def test_texts_of_special_tokens_are_no_grammar(name: str) -> None:
    with pytest.raises(InputError, match="special tokens"):
        BoxGrammar(PROFILES[name])


def test_a_text_that_ends_with_a_number_is_no_grammar() -> None:
    with pytest.raises(InputError, match="ends with a number"):
        BoxGrammar(replace(PROFILES["undocumented"], box_text="{x0} {y0} {x1} {y1}"))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.sampled_from(PLAIN),
    st.sampled_from([SEEN, (1, 1), (9, 10), (1, 3000), (28, 99), (100, 1001)]),
    st.randoms(use_true_random=False),
)
def test_whatever_follows_the_grammar_is_read_as_written(name: str, seen: tuple[int, int], dice: random.Random) -> None:
    grammar, profile = grammar_of(name, seen), PROFILES[name]
    text = ""
    while follows := grammar.follows(text):
        assert grammar.viable(text)
        assert follows <= grammar.alphabet
        whole = grammar.finish(text)
        assert whole.startswith(text)
        assert grammar.follows(whole) == frozenset()
        assert read_box(whole, profile, seen)[1] == "ok"
        for other in grammar.alphabet - follows:
            assert not grammar.viable(text + other)
        text += dice.choice(sorted(follows))
    assert re.fullmatch(grammar.pattern, text)
    box, status = read_box(text, profile, seen)
    assert status == "ok"
    assert box is not None
    assert write_box(box, profile, seen) == text


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(PLAIN),
    st.tuples(*[st.floats(0, 1, allow_subnormal=False) | st.sampled_from([0.0, 1.0])] * 4),
    st.sampled_from([SEEN, (1, 1), (9, 10), (1, 3000)]),
)
def test_everything_written_follows_the_grammar(name: str, values: Corners, seen: tuple[int, int]) -> None:
    x0, y0, x1, y1 = values
    if x1 - x0 < 1e-9 or y1 - y0 < 1e-9:
        return
    grammar = grammar_of(name, seen)
    text = write_box(boxed(values, name), PROFILES[name], seen)
    for end in range(len(text)):
        assert grammar.viable(text[:end])
        assert text[end] in grammar.follows(text[:end])
    assert grammar.viable(text)
    assert grammar.follows(text) == frozenset()
    assert grammar.finish(text) == text
    assert re.fullmatch(grammar.pattern, text)


def test_whole_numbers_by_hand() -> None:
    grammar = grammar_of("qwen2_5_vl", (100, 28))
    head = '{"bbox_2d": ['
    assert grammar.follows("") == {"{"}
    assert grammar.finish("") == '{"bbox_2d": [0, 0, 1, 1]}'
    assert grammar.follows(head) == set("0123456789")
    assert grammar.follows(head + "0") == {","}, "no leading zeros"
    assert grammar.follows(head + "9") == set("0123456789,")
    assert grammar.follows(head + "99") == {","}
    assert grammar.follows(head + "10") == {","}, "the first corner lies below 100"
    assert grammar.follows(head + "9, 27, ") == set("123456789"), "9 is no more, 10 to 100 are"
    assert grammar.follows(head + "9, 27, 1") == set("0123456789"), "1 is less than 9"
    assert grammar.follows(head + "9, 27, 10") == set("0,")
    assert grammar.follows(head + "99, 27, ") == {"1"}
    assert grammar.finish(head + "99, 27, 1") == head + "99, 27, 100, 28]}"
    assert grammar.finish(head + "19, 2, 3") == head + "19, 2, 30, 3]}"
    assert not grammar.viable(head + "00")
    assert not grammar.viable(head + "100")
    assert not grammar.viable(head + "5, 28")
    assert not grammar.viable(head + "5,5")
    assert not grammar.viable(head + "\u0665")
    other = grammar_of("qwen2_5_vl", (28, 100))
    assert other != grammar
    assert grammar_of("qwen3_vl") == grammar_of("qwen3_vl", (1, 1)), "thousandths are the same for every picture"


TOPS = [(1, "0 1", "2"), (9, "0 1 5 9", "a"), (10, "0 7 10", "11"), (999, "0 999", "1000"), (1000, "0 10 1000", "1001")]


@pytest.mark.parametrize(("top", "inside", "outside"), TOPS)
def test_the_pattern_of_whole_numbers(top: int, inside: str, outside: str) -> None:
    pattern = grammar_of("pixels, x first", (top, top)).pattern
    for number in inside.split():
        assert re.fullmatch(pattern, f"x {number}:{number}; y {number}/{number};")
    assert not re.fullmatch(pattern, f"x {outside}:{outside}; y {outside}/{outside};")
    assert not re.fullmatch(pattern, "x 00:1; y 0/1;")


def test_marks_that_a_tokenizer_takes_for_special_tokens_are_refused() -> None:
    """InternVL's `<box>`: a reply would come without it. As plain text, or as a token like others, it is decoded."""
    grammar = grammar_of("internvl")
    for special in (None, False, True):
        tokenizer = byte_tokenizer()
        if special is not None:
            tokenizer.add_tokens(["<box>", "</box>"], special_tokens=special)
        if special:
            with pytest.raises(InputError, match="special tokens"):
                TokenGrammar(grammar, tokenizer, "ASSISTANT:")
            continue
        tokens = TokenGrammar(grammar, tokenizer, "ASSISTANT:")
        written = tokens.ids_of(WRITTEN["internvl"])
        assert tokens.text(written) == WRITTEN["internvl"]
        assert tokens.complete(written)
        again = TokenGrammar(grammar_of("internvl"), tokenizer, "ASSISTANT:")
        assert again.candidates == tokens.candidates
