"""Maps of relevance: treatment, boxes scored on them and painted, by hand and against the plain way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cos_core.errors import InputError
from cos_core.geometry import Box, SquarePad
from cos_core.relevance import heat

SQUARE, WIDE, TALL = SquarePad(70, 70), SquarePad(40, 20), SquarePad(20, 40)
"""WIDE on 4 rows: the picture is rows 1 and 2; TALL on 4 columns: columns 1 and 2."""


class TestPadding:
    def test_cells_that_hold_some_of_the_picture(self) -> None:
        assert heat.picture_part((5, 7), SQUARE) == (slice(0, 5), slice(0, 7))
        assert heat.picture_part((4, 4), WIDE) == (slice(1, 3), slice(0, 4))
        assert heat.picture_part((4, 4), TALL) == (slice(0, 4), slice(1, 3))
        # On three rows the picture, from a quarter to three quarters, reaches into all of them.
        assert heat.picture_part((3, 3), WIDE) == (slice(0, 3), slice(0, 3))

    def test_others_are_zero(self) -> None:
        assert heat.without_padding(np.ones((4, 2)), WIDE).tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]


class TestTreatment:
    def test_clipped_at_a_percentile_of_the_picture(self) -> None:
        grid = np.array([[99.0, 99, 99, 99], [1, 2, 3, 4], [5, 6, 7, 8], [99, 99, 99, 99]])
        # Eight cells: the percentile 100 * 5 / 7 is the sixth of them.
        assert heat.clipped(grid, WIDE, 100 * 5 / 7)[1:3].tolist() == pytest.approx(np.array([[1, 2, 3, 4], [5, 6, 6, 6]]))

    def test_smoothed_within_the_picture(self) -> None:
        grid = np.array([[50.0, 50, 50, 50], [9, 0, 0, 0], [0, 0, 0, 6], [50, 50, 50, 50]])
        found = heat.smoothed(grid, WIDE)
        assert found[1].tolist() == pytest.approx([9 / 4, 9 / 6, 1, 6 / 4])
        assert found[0].tolist() == [50] * 4
        assert grid[1, 0] == 9

    def test_beyond_what_nothing_in_particular_shows(self) -> None:
        grid, plain = np.array([[2.0, 6.0]]), np.array([[1.0, 1.0]])
        assert heat.beyond(grid, plain, SQUARE).tolist() == [[0.0, 0.25]]
        assert heat.beyond(grid, np.zeros((1, 2)), SQUARE) is grid
        assert heat.beyond(np.zeros((1, 2)), plain, SQUARE).tolist() == [[0, 0]]

    def test_finer_by_hand(self) -> None:
        # Middles of the fine cells lie at -1/4, 1/4, 3/4 and 5/4 of the way from one middle to the next.
        assert heat.finer(np.array([[0.0, 4.0]]), 2).tolist() == [[0, 1, 3, 4], [0, 1, 3, 4]]
        assert heat.finer(np.array([[3.0]]), 3).tolist() == [[3.0] * 3] * 3

    @pytest.mark.parametrize("factor", [1, 2, 3, 5])
    def test_finer_equals_torch(self, factor: int) -> None:
        import torch

        grid = np.random.default_rng(factor).uniform(size=(5, 7))
        expected = torch.nn.functional.interpolate(
            torch.tensor(grid)[None, None], scale_factor=factor, mode="bilinear", align_corners=False
        )[0, 0]
        assert heat.finer(grid, factor) == pytest.approx(expected.numpy(), abs=1e-12)

    def test_a_map_without_cells(self) -> None:
        with pytest.raises(InputError, match="rows and columns"):
            heat.as_grid([])


def slow_mean(grid: np.ndarray, box: Box) -> tuple[float, float]:
    """(integral, area) of a box in frame "square", cell by cell."""
    rows, columns = grid.shape
    total = 0.0
    for row in range(rows):
        for column in range(columns):
            wide = min(box.x1, (column + 1) / columns) - max(box.x0, column / columns)
            high = min(box.y1, (row + 1) / rows) - max(box.y0, row / rows)
            total += grid[row, column] * max(0.0, wide) * max(0.0, high)
    return total, box.area


@st.composite
def rectangles(draw: st.DrawFn) -> Box:
    x0, y0 = draw(st.integers(0, 96)), draw(st.integers(0, 96))
    return Box(x0 / 97, y0 / 97, draw(st.integers(x0 + 1, 97)) / 97, draw(st.integers(y0 + 1, 97)) / 97)


class TestBoxScores:
    def test_by_hand(self) -> None:
        grid = [[0.0, 0.0], [0.0, 8.0]]
        corner, middle = Box(0.5, 0.5, 1, 1), Box(0.25, 0.25, 0.75, 0.75)
        # The middle holds a quarter of its area at 8: mean 2; outside 8/4 - 2/4 over 3/4 of the area: 2.
        assert heat.box_scores(grid, [corner, middle], SQUARE, "contrast") == pytest.approx((8.0, 0.0))
        assert heat.box_scores(grid, [corner, middle], SQUARE, "area") == pytest.approx((8.0 / 2, 2.0 / 2))
        assert heat.box_scores(grid, [], SQUARE, "area") == ()

    def test_the_whole_picture_stands_out_from_nothing(self) -> None:
        assert heat.box_scores([[1.0, 2.0]], [Box(0, 0, 1, 1)], SQUARE, "contrast") == (0.0,)

    def test_padding_does_not_count(self) -> None:
        grid = [[99.0] * 4, [0, 0, 0, 2], [0, 0, 0, 2], [99.0] * 4]
        right = Box(0.75, 0, 1, 1)
        assert heat.box_scores(grid, [right], WIDE, "contrast") == pytest.approx((2.0,))
        assert heat.box_scores(grid, [right], WIDE, "area") == pytest.approx((1.0,))

    @given(
        st.lists(rectangles(), min_size=1, max_size=5),
        st.integers(0, 2**31),
        st.sampled_from([SQUARE, WIDE, TALL, SquarePad(89, 53)]),
        st.sampled_from(heat.SCORE_KINDS),
    )
    def test_equals_the_sum_over_cells(self, boxes: list[Box], seed: int, pad: SquarePad, kind: heat.ScoreKind) -> None:
        grid = np.random.default_rng(seed).uniform(size=(5, 7))
        whole, area = slow_mean(grid, pad.to_square(Box(0, 0, 1, 1)))
        expected = []
        for box in boxes:
            inside, size = slow_mean(grid, pad.to_square(box))
            if kind == "area":
                expected.append(inside / size * math.sqrt(size / area))
            else:
                rest = area - size
                expected.append(inside / size - (whole - inside) / rest if rest > 1e-9 else 0.0)
        assert heat.box_scores(grid, boxes, pad, kind) == pytest.approx(expected, abs=1e-9)

    def test_unknown_kind(self) -> None:
        with pytest.raises(InputError, match="unknown score 'mean'"):
            heat.box_scores([[1.0]], [Box(0, 0, 1, 1)], SQUARE, "mean")  # type: ignore[arg-type]


class TestPainted:
    def test_each_cell_is_the_largest_score_on_it(self) -> None:
        boxes = [Box(0, 0, 0.5, 1), Box(0.25, 0, 0.75, 0.5), Box(0, 0, 1, 0.25)]
        found = heat.painted(boxes, [2.0, 5.0, -1.0], SQUARE, side=4)
        assert found == ((2, 5, 5, 0), (2, 5, 5, 0), (2, 2, 0, 0), (2, 2, 0, 0))

    def test_over_the_square_frame(self) -> None:
        assert heat.painted([Box(0.5, 0, 1, 1)], [3.0], WIDE, side=4) == ((0,) * 4, (0, 0, 3, 3), (0, 0, 3, 3), (0,) * 4)

    def test_a_box_smaller_than_a_cell_shows(self) -> None:
        assert heat.painted([Box(0.51, 0.95, 0.52, 1.0)], [3.0], SQUARE, side=2) == ((0, 0), (0, 3))

    def test_nothing_to_paint(self) -> None:
        assert heat.painted([], [], SQUARE) == ((0.0,) * 24,) * 24

    def test_numbers_must_agree(self) -> None:
        with pytest.raises(InputError, match="1 boxes, but 2 scores"):
            heat.painted([Box(0, 0, 1, 1)], [1.0, 2.0], SQUARE)
