"""In which frame boxes are: hand-computed cases, every wrong frame found, no alarm about right data."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from box_world import ADVERSE, KINDS, MIXES, pictures, places, sample, written

from cos_core.dialogue.box_conventions import (
    IMAGE,
    IN_TEXT,
    LARGER,
    PARTS_OF_1024,
    PIXELS,
    SEEN_PIXELS,
    SEEN_SHARES,
    SMALLER,
    SQUARE,
    THOUSANDTHS,
    UNRESIZED,
    Boxes,
    Convention,
    copies,
    in_order,
    of_style,
)
from cos_core.dialogue.box_frames import agreeing, judge, log_chance, swapped
from cos_core.dialogue.prompts import BoxStyle
from cos_core.geometry import Box, SquarePad
from cos_core.models import families

UNITS = (IMAGE, SQUARE, THOUSANDTHS, SEEN_PIXELS, PIXELS)
OF_REGIONS = (SQUARE, SEEN_SHARES, *copies(IMAGE, SMALLER))
ALIKE = {frozenset((SEEN_PIXELS.name, PIXELS.name))}
"""Conventions that differ by a few percent where pictures are not resized by more."""


def boxes(rows: list[tuple[float, ...]], size: tuple[int, int] = (640, 480), seen: tuple[int, int] | None = None) -> Boxes:
    return Boxes(np.array(rows, float), np.tile(np.array([*size, *(seen or size)], float), (len(rows), 1)))


@pytest.mark.parametrize(
    ("convention", "numbers"),
    [
        (IMAGE, (0.25, 0.5, 0.5, 0.75)),
        (SQUARE, (0.25, 0.5, 0.5, 0.6875)),
        (THOUSANDTHS, (250, 500, 500, 750)),
        (PARTS_OF_1024, (256, 512, 512, 768)),
        (PIXELS, (160, 240, 320, 360)),
        (SEEN_PIXELS, (80, 120, 160, 180)),
        (SEEN_SHARES, (0.125, 0.25, 0.25, 0.375)),
        (in_order(THOUSANDTHS, "y0x0y1x1"), (500, 250, 750, 500)),
        (in_order(PIXELS, "x0y0wh"), (160, 240, 160, 120)),
        (copies(PIXELS, [2.0])[0], (320, 480, 640, 720)),
    ],
)
def test_one_box_in_every_convention(convention: Convention, numbers: tuple[float, ...]) -> None:
    one = boxes([numbers], seen=(320, 240))
    assert convention.fractions(one).tolist() == [[0.25, 0.5, 0.5, 0.75]]
    assert convention.fits(one).all()
    square = SquarePad(640, 480).to_square(Box(0.25, 0.5, 0.5, 0.75))
    assert square.corners == (0.25, 0.5, 0.5, 0.6875)


def test_what_no_convention_holds() -> None:
    assert not IMAGE.fits(boxes([(0.5, 0.1, 0.4, 0.2)])).any(), "corners in another order"
    assert not THOUSANDTHS.fits(boxes([(0.1, 0.2, 0.5, 0.75)])).any(), "fractions are no whole numbers"
    assert not PIXELS.fits(boxes([(0, 0, 100, 490)])).any()
    assert PIXELS.fits(boxes([(0, 0, 641, 480)])).all(), "rounding may carry it over the edge"


def test_a_chance_by_hand() -> None:
    """A picture of 400 x 200: in the padded square it takes the middle half of the height.

    Each box lies at the left and just below the square's upper quarter. As it stands and mirrored it keeps to the band; with x
    and y exchanged it does not: 4 of 8 copies fit, on any of 20 equal pictures, and once more its own place counts.
    """
    rows = boxes([(0.05, 0.27, 0.15, 0.33)] * 20, (400, 200))
    assert log_chance(rows, IMAGE, SQUARE) == pytest.approx(20 * math.log((20 * 0.5 + 1) / 21))
    assert log_chance(rows, SQUARE, IMAGE) == 0.0, "the picture is no smaller than its own band"
    middle = boxes([(0.05, 0.45, 0.15, 0.55)] * 20, (400, 200))
    assert log_chance(middle, IMAGE, SQUARE) == 0.0, "they do not fill the band either"


def test_half_of_a_mirrored_copy_counts_where_one_side_is_smaller() -> None:
    """Boxes in the upper left ninth of a copy half as large: of 8 copies only the box and its exchange fit."""
    half = copies(IMAGE, [0.5])[0]
    rows = boxes([(0.0, 0.3, 0.1, 0.45)] * 30, (400, 400))
    assert log_chance(rows, IMAGE, half) == pytest.approx(30 * math.log(1 - (1 - (30 * 0.25 + 1) / 31) / 2))


def test_styles_of_families_are_conventions() -> None:
    """Every family's boxes, written by the codec, lie where they should in its convention."""
    from cos_core.dialogue.box_text import write_box
    from cos_core.dialogue.prompts import load_profile
    from cos_core.dialogue.text_boxes import boxes_in
    from cos_core.geometry import in_frame

    size, seen = (640, 480), (644, 476)
    for name in families.names():
        family = families.of_type(name)
        profile = load_profile("chat").with_boxes(family.boxes)
        text = write_box(in_frame(Box(0.25, 0.5, 0.5, 0.75), profile.box_frame, size), profile, seen)
        (found,) = boxes_in(f"There: {text}.", (family.boxes,))
        placed = of_style(family.boxes).fractions(boxes([found.numbers], size, seen))
        np.testing.assert_allclose(placed, [[0.25, 0.5, 0.5, 0.75]], atol=0.003, err_msg=name)


def test_every_wrong_frame_is_found_and_named() -> None:
    random = np.random.default_rng(5)
    found = named = total = 0
    for claimed, true, kind, mix in product(UNITS, UNITS, KINDS, ("one shape", "photos", "large")):
        if claimed is true or {claimed.name, true.name} in ALIKE:
            continue
        verdict = judge(sample(random, 100, kind, mix, true), claimed, IN_TEXT)
        total += 1
        found += verdict is not None
        likely = verdict.likely.name if verdict is not None and verdict.likely is not None else ""
        alike = {likely, true.name} in ALIKE and mix not in ("large", "pages")
        named += likely == true.name or alike
    assert total == 18 * 9
    assert found >= 0.99 * total
    assert named >= 0.97 * total


@pytest.mark.parametrize("mix", ["large", "pages"])
@pytest.mark.parametrize("claimed", [SEEN_PIXELS, PIXELS])
def test_pixels_of_the_resized_picture_and_of_its_own_are_told_apart(mix: str, claimed: Convention) -> None:
    random = np.random.default_rng(6)
    true = PIXELS if claimed is SEEN_PIXELS else SEEN_PIXELS
    for kind in KINDS:
        verdict = judge(sample(random, 100, kind, mix, true), claimed, IN_TEXT)
        assert verdict is not None
        assert verdict.likely is true
        assert judge(sample(random, 100, kind, mix, claimed), claimed, IN_TEXT) is None


@pytest.mark.parametrize("true", [SQUARE, SEEN_SHARES, *copies(IMAGE, (0.8, 0.62, 0.25))], ids=lambda c: c.name)
def test_regions_that_were_measured_elsewhere(true: Convention) -> None:
    """Regions are fractions in [0, 1], whatever they were made from."""
    random = np.random.default_rng(7)
    mix = "large" if true is SEEN_SHARES else "photos"
    for kind in KINDS:
        verdict = judge(sample(random, 100, kind, mix, true), IMAGE, OF_REGIONS)
        assert verdict is not None, kind
        assert verdict.chance < 1e-3
        assert verdict.likely is not None
        shown = pictures(random, 8, mix)
        # A factor is found to a twentieth.
        np.testing.assert_allclose(verdict.likely.area(shown), true.area(shown), atol=0.051)
        assert judge(sample(random, 100, kind, mix, IMAGE), IMAGE, OF_REGIONS) is None


@pytest.mark.parametrize("true", [THOUSANDTHS, IMAGE, PIXELS, in_order(PIXELS, "y0x0y1x1"), copies(PIXELS, (2.0,))[0]])
def test_pixel_boxes_of_a_file(true: Convention) -> None:
    """What comes in as x, y, width, height in pixels (COCO) and is something else."""
    claimed = in_order(PIXELS, "x0y0wh")
    others = (*UNRESIZED, *copies(claimed, (*SMALLER, *LARGER)))
    random = np.random.default_rng(8)
    true = true if "copies" not in true.name else copies(claimed, (2.0,))[0]
    for kind in KINDS:
        verdict = judge(sample(random, 100, kind, "photos", true), claimed, others)
        assert verdict is not None, kind
        assert verdict.likely is not None
        assert verdict.likely.name == true.name
        assert judge(sample(random, 100, kind, "photos", claimed), claimed, others) is None


def test_a_minority_in_another_frame() -> None:
    random = np.random.default_rng(9)
    right, wrong = (sample(random, n, "uniform", "large", c) for n, c in ((180, THOUSANDTHS), (20, PIXELS)))
    both = Boxes(np.concatenate([right.numbers, wrong.numbers]), np.concatenate([right.pictures, wrong.pictures]))
    verdict = judge(both, THOUSANDTHS, IN_TEXT)
    assert verdict is not None
    assert verdict.part
    assert verdict.likely is PIXELS
    assert 8 <= verdict.against.sum() <= 20
    assert not verdict.against[:180].any()


def test_a_few_wrong_boxes_are_dirt() -> None:
    random = np.random.default_rng(10)
    one = sample(random, 200, "uniform", "photos", THOUSANDTHS)
    one.numbers[:5] += 1500
    assert judge(one, THOUSANDTHS, IN_TEXT) is None


def test_too_few_boxes_say_nothing_of_what_they_do_not_reach() -> None:
    random = np.random.default_rng(11)
    wrong = sample(random, 19, "uniform", "photos", copies(IMAGE, (0.3,))[0])
    assert judge(wrong, IMAGE, OF_REGIONS) is None


def test_swapped_coordinates_show_in_the_shapes_of_boxes() -> None:
    """Objects keep their shape in pixels whatever the picture's: in fractions they are the narrower, the wider it is."""
    random = np.random.default_rng(12)
    shown = pictures(random, 256, "photos")
    side = np.sqrt(random.uniform(0.02, 0.2, 256))
    stretch = np.exp(random.normal(0, 0.35, 256)) * np.sqrt(shown[:, 1] / shown[:, 0])
    wide, high = (side * stretch).clip(0, 0.95), (side / stretch).clip(0, 0.95)
    x, y = random.uniform(0, 1, (2, 256)) * (1 - np.stack([wide, high]))
    right = np.stack([x, y, x + wide, y + high], axis=1)
    assert not swapped(Boxes(right, shown), IMAGE)
    assert swapped(Boxes(right[:, [1, 0, 3, 2]], shown), IMAGE)
    assert not swapped(Boxes(right[:, [1, 0, 3, 2]], np.tile(shown[:1], (256, 1))), IMAGE), "pictures of one shape say nothing"


@pytest.mark.parametrize("true", [SQUARE, in_order(IMAGE, "y0x0y1x1"), copies(IMAGE, (0.8,))[0]], ids=lambda c: c.name)
def test_other_boxes_of_the_same_objects_decide_most_sharply(true: Convention) -> None:
    random = np.random.default_rng(13)
    gold = places(random, 40, "centred")
    shown = pictures(random, 40, "photos")
    near = np.clip(gold + random.normal(0, 0.02, gold.shape), 0, 1)
    others = (*OF_REGIONS, in_order(IMAGE, "y0x0y1x1"))
    assert agreeing(written(near, shown, IMAGE), gold, IMAGE, others) is None
    verdict = agreeing(written(near, shown, true), gold, IMAGE, others)
    assert verdict is not None
    assert verdict.likely is not None
    assert verdict.likely.name == true.name


def alarms(seed: int, times: int, kinds: tuple[str, ...]) -> tuple[int, int]:
    """How often right data was called wrong, of how many data sets of 20 to 100 boxes."""
    random = np.random.default_rng(seed)
    called = total = 0
    for _, kind, mix, unit in product(range(times), kinds, MIXES, (*UNITS, PARTS_OF_1024)):
        count = int(random.choice([20, 30, 50, 100]))
        called += judge(sample(random, count, kind, mix, unit), unit, IN_TEXT) is not None
        called += unit is IMAGE and judge(sample(random, count, kind, mix, unit), unit, OF_REGIONS) is not None
        total += 1 + (unit is IMAGE)
    return called, total


def test_right_data_is_let_pass() -> None:
    called, total = alarms(14, 3, KINDS)
    assert total == 315
    assert called == 0


@pytest.mark.slow
def test_one_false_alarm_in_a_thousand_at_most() -> None:
    """Of right data as it is assumed to be, and of data that it is not."""
    called, total = alarms(15, 20, KINDS)
    assert total == 2100
    assert called <= total / 1000
    called, total = alarms(16, 15, ADVERSE)
    assert total == 1050
    assert called <= total / 1000


@pytest.mark.slow
def test_a_hundred_boxes_find_99_in_100_wrong_frames() -> None:
    random = np.random.default_rng(17)
    for claimed, true in product(UNITS, UNITS):
        if claimed is true or {claimed.name, true.name} in ALIKE:
            continue
        missed = [
            (kind, mix)
            for _, kind, mix in product(range(8), KINDS, MIXES)
            if judge(sample(random, 100, kind, mix, true), claimed, IN_TEXT) is None
        ]
        assert len(missed) <= 0.01 * 8 * len(KINDS) * len(MIXES), (claimed.name, true.name, missed)


def test_a_style_without_a_writing_is_fractions_of_the_picture() -> None:
    assert of_style(BoxStyle()) is IMAGE
