"""Scores and heat maps to boxes, by hand and by property."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cos_core.errors import InputError
from cos_core.geometry import Box, SquarePad
from cos_core.relevance import roi
from cos_core.relevance.roi import RoiRule
from cos_core.types import Regions

LEFT, MIDDLE, RIGHT, FAR = Box(0, 0, 0.3, 0.3), Box(0.2, 0.1, 0.5, 0.4), Box(0.5, 0.1, 0.7, 0.4), Box(0.8, 0.8, 1.0, 1.0)


def scored(*scores: float) -> Regions:
    boxes = (LEFT, MIDDLE, RIGHT, FAR)[: len(scores)]
    return Regions(boxes, (1.0,) * len(boxes), scores=scores)


class TestRegions:
    # Min-max over 1..5 with threshold 0.5 keeps scores of 3 and more: LEFT, MIDDLE (by touching RIGHT) and FAR.
    scores = (5.0, 3.0, 1.0, 4.0)

    def test_top1(self) -> None:
        found = roi.from_regions(scored(*self.scores), RoiRule("top1"))
        assert found == roi.Roi(LEFT, 5.0, (0,))

    def test_union(self) -> None:
        found = roi.from_regions(scored(*self.scores), RoiRule("union"))
        assert found == roi.Roi(Box(0, 0, 1, 1), 5.0, (0, 1, 3))

    def test_component_leaves_the_far_one_out(self) -> None:
        found = roi.from_regions(scored(*self.scores), RoiRule("component"))
        assert found == roi.Roi(Box(0, 0, 0.5, 0.4), 5.0, (0, 1))

    def test_component_goes_through_others_and_touching_counts(self) -> None:
        found = roi.from_regions(scored(5.0, 4.0, 4.0, 0.0), RoiRule("component"))
        assert found.used == (0, 1, 2)
        assert found.box == Box(0, 0, 0.7, 0.4)

    def test_threshold_one_keeps_the_best_alone(self) -> None:
        assert roi.from_regions(scored(*self.scores), RoiRule("union", threshold=1.0)).used == (0,)

    def test_extension_is_a_share_of_each_side_and_is_clipped(self) -> None:
        found = roi.from_regions(scored(0.0, 1.0), RoiRule("top1", extend=0.1)).box
        assert found is not None
        assert found.corners == pytest.approx((0.17, 0.07, 0.53, 0.43))
        assert roi.from_regions(scored(1.0, 0.0), RoiRule("top1", extend=0.5)).box == Box(0, 0, 0.3 + 0.15, 0.3 + 0.15)

    @pytest.mark.parametrize(
        ("scores", "reason"),
        [
            ((), roi.NO_RELEVANCE),
            ((0.0, 0.0), roi.NO_RELEVANCE),
            ((-1.0, -2.0), roi.NO_RELEVANCE),
            ((2.0, 2.0), roi.FLAT),
            ((1.0, math.nan), roi.NOT_FINITE),
            ((math.inf, 1.0), roi.NOT_FINITE),
        ],
    )
    def test_nothing_found_has_a_reason(self, scores: tuple[float, ...], reason: str) -> None:
        found = roi.from_regions(scored(*scores), RoiRule())
        assert found.box is None
        assert found.reason == reason

    def test_a_single_candidate_is_enough(self) -> None:
        assert roi.from_regions(scored(2.0), RoiRule("component")).box == LEFT

    def test_regions_without_scores(self) -> None:
        with pytest.raises(InputError, match="no relevance scores"):
            roi.from_regions(Regions((LEFT,), (1.0,)), RoiRule())


class TestHeat:
    def test_component_on_a_square_picture(self) -> None:
        heat = [
            [0, 0, 0, 0, 9],
            [0, 8, 0, 0, 0],
            [0, 0, 10, 0, 0],
            [0, 0, 0, 0, 0],
            [0, 4, 0, 0, 0],
        ]
        found = roi.from_heat(heat, SquarePad(70, 70), RoiRule("component"))
        assert found.used == (6, 12)  # joined at a corner; the 9 and the 4 (below half) stay out
        assert found.score == 10.0
        assert found.box is not None
        assert found.box.corners == pytest.approx((0.2, 0.2, 0.6, 0.6))
        union = roi.from_heat(heat, SquarePad(70, 70), RoiRule("union")).box
        assert union is not None
        assert union.corners == pytest.approx((0.2, 0.0, 1.0, 0.6))
        assert roi.from_heat(heat, SquarePad(70, 70), RoiRule("top1")).used == (12,)

    def test_padding_is_left_out_and_the_box_is_in_the_image(self) -> None:
        # 40 wide and 20 high: the square is 40, the picture its rows 1 and 2 of 4.
        heat = [[99, 99, 99, 99], [1, 0, 0, 0], [0, 0, 0, 3], [99, 99, 99, 99]]
        found = roi.from_heat(heat, SquarePad(40, 20), RoiRule("top1"))
        assert found.used == (11,)
        assert found.box == Box(0.75, 0.5, 1.0, 1.0, "image")
        assert roi.from_heat([[9, 9], [9, 9]], SquarePad(40, 20), RoiRule()).reason == roi.FLAT

    def test_only_padding_is_hot(self) -> None:
        heat = [[5, 5, 5, 5], [0, 0, 0, 0], [0, 0, 0, 0], [5, 5, 5, 5]]
        assert roi.from_heat(heat, SquarePad(40, 20), RoiRule()).reason == roi.NO_RELEVANCE

    def test_a_map_without_cells(self) -> None:
        with pytest.raises(InputError, match="rows and columns"):
            roi.from_heat([], SquarePad(4, 4), RoiRule())


class TestWhoPasses:
    def test_mass_takes_the_best_until_the_share_is_reached(self) -> None:
        scores = scored(5.0, 3.0, -9.0, 2.0)
        assert roi.from_regions(scores, RoiRule("union", keep_mass=0.5)).used == (0,)
        assert roi.from_regions(scores, RoiRule("union", keep_mass=0.51)).used == (0, 1)
        assert roi.from_regions(scores, RoiRule("union", keep_mass=0.8)).used == (0, 1)
        assert roi.from_regions(scores, RoiRule("union", keep_mass=1.0)).used == (0, 1, 3)

    def test_mass_of_a_map(self) -> None:
        found = roi.from_heat([[1, 2, 4], [0, 0, 3]], SquarePad(9, 9), RoiRule("component", keep_mass=0.7))
        assert found.used == (2, 5)

    def test_otsu_by_hand(self) -> None:
        # Splits after 0, 1, 2: (1 x 3, means 0 and 13/3), (2 x 2, 0.5 and 6), (3 x 1, 1 and 10): products 56.3, 121, 243.
        assert roi.from_regions(scored(0.0, 10.0, 1.0, 2.0), RoiRule("union", "otsu")).used == (1,)
        assert roi.from_regions(scored(9.0, 10.0, 1.0, 2.0), RoiRule("union", "otsu")).used == (0, 1)

    @given(st.lists(st.integers(-20, 20), min_size=2, max_size=13))
    def test_otsu_has_the_largest_variance_between(self, values: list[int]) -> None:
        scores = np.array(values, dtype=np.float64)
        if scores.min() == scores.max():
            return

        def between(level: float) -> float:
            low, high = scores[scores <= level], scores[scores > level]
            return float(len(low) * len(high) * (low.mean() - high.mean()) ** 2) if len(high) else -1.0

        best = max(between(level) for level in scores)
        assert between(roi._otsu(scores)) == pytest.approx(best)

    @given(st.lists(st.integers(-20, 20), min_size=1, max_size=13), st.integers(1, 100))
    def test_mass_is_reached_with_the_fewest(self, values: list[int], percent: int) -> None:
        scores = np.array(values, dtype=np.float64)
        if scores.max() <= 0 or scores.min() == scores.max():
            return
        chosen = roi._passing(scores, RoiRule(keep_mass=percent / 100))
        kept, goal = np.clip(scores[chosen], 0, None).sum(), percent / 100 * np.clip(scores, 0, None).sum()
        assert kept >= goal - 1e-9
        assert kept - scores[chosen].min() < goal
        assert min(scores[chosen]) >= max(np.delete(scores, chosen), default=-math.inf)

    def test_finer_cells_give_finer_edges(self) -> None:
        heat = [[0, 0, 0], [0, 4, 2], [0, 0, 0]]
        coarse = roi.from_heat(heat, SquarePad(9, 9), RoiRule("component", 0.65)).box
        assert coarse == Box(1 / 3, 1 / 3, 2 / 3, 2 / 3)
        # At a fifth of a cell: row 1 falls from 4 at x = 1.5 to 2 at x = 2.5 and to 0 at x = 0.5. 0.65 of 4 is 2.6.
        found = roi.from_heat(heat, SquarePad(9, 9), RoiRule("component", 0.65, finer=5))
        assert found.used == (4, 5)
        assert found.score == 4.0
        assert found.box is not None
        assert found.box.corners == pytest.approx((6 / 15, 6 / 15, 11 / 15, 9 / 15))
        top = roi.from_heat(heat, SquarePad(9, 9), RoiRule("top1", finer=5))
        assert (top.box, top.used) == (coarse, (4,))

    def test_finer_cells_know_the_padding(self) -> None:
        heat = [[99, 99, 99, 99], [0, 0, 0, 3], [0, 0, 0, 3], [99, 99, 99, 99]]
        found = roi.from_heat(heat, SquarePad(40, 20), RoiRule("component", 0.5, finer=2))
        assert found.box == Box(0.75, 0.0, 1.0, 1.0)
        assert found.used == (7, 11)


def test_combined_scales_each_question_and_drops_mute_ones() -> None:
    assert roi.combined([[1.0, 4.0, 0.0], [10.0, 5.0, 0.0], [0.0, 0.0, 0.0], [1.0, math.nan, 1.0]]) == (1.25, 1.5, 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"region": "best"}, "unknown region rule"),
        ({"threshold": 1.1}, "threshold"),
        ({"threshold": "half"}, "threshold must lie in"),
        ({"extend": -0.1}, "extend"),
        ({"keep_mass": 0.0}, "keep_mass"),
        ({"finer": 0}, "finer"),
    ],
)
def test_rules_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RoiRule(**settings)


unit = st.integers(0, 50).map(lambda i: i / 50)


@st.composite
def rectangles(draw: st.DrawFn) -> Box:
    x0, y0 = draw(st.integers(0, 49)), draw(st.integers(0, 49))
    return Box(x0 / 50, y0 / 50, draw(st.integers(x0 + 1, 50)) / 50, draw(st.integers(y0 + 1, 50)) / 50)


@given(st.lists(st.tuples(rectangles(), unit), min_size=1, max_size=9), unit)
def test_each_rule_holds_the_one_before(found: list[tuple[Box, float]], threshold: float) -> None:
    boxes, scores = zip(*found, strict=True)
    regions = Regions(boxes, (1.0,) * len(boxes), scores=scores)
    results = [roi.from_regions(regions, RoiRule(kind, threshold)) for kind in ("top1", "component", "union")]
    if results[0].box is None:
        assert len({r.reason for r in results}) == 1
        return
    for small, large in pairwise(results):
        assert set(small.used) <= set(large.used)
        assert small.box is not None
        assert large.box is not None
        assert small.box.union(large.box) == large.box


@given(st.lists(st.lists(unit, min_size=7, max_size=7), min_size=5, max_size=5), st.integers(1, 97), st.integers(1, 89))
def test_heat_boxes_lie_in_the_image(heat: list[list[float]], width: int, height: int) -> None:
    found = roi.from_heat(heat, SquarePad(width, height), RoiRule("component", extend=0.1))
    assert (found.box is None) != (found.reason is None)
    assert found.box is None or found.box.frame == "image"
