"""Relevance of image tokens as a map: by hand, against a slow way, and through the rule that makes a box of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cos_core.errors import InputError
from cos_core.geometry import SquarePad
from cos_core.models.grids import Grid, areas, square, tokens
from cos_core.relevance import heat, roi

TILES = tuple(Grid(2, 2, (j / 3, i / 2, (j + 1) / 3, (i + 1) / 2)) for i in range(2) for j in range(3))
CASES: dict[str, tuple[tuple[Grid, ...], tuple[int, int]]] = {
    "square": ((Grid(5, 5, square(90, 40)),), (90, 40)),
    "square with a class token": ((Grid(5, 5, square(40, 90), class_token=True),), (40, 90)),
    "square with a newline": ((Grid(4, 4, square(40, 90), "end"),), (40, 90)),
    "whole": ((Grid(4, 7),), (70, 40)),
    "whole, cells unlike squares": ((Grid(6, 6),), (100, 30)),
    "one token": ((Grid(1, 1),), (31, 17)),
    "tiles and the whole": ((*TILES, Grid(2, 2)), (120, 80)),
    "without padding, newlines": ((Grid(4, 4), Grid(5, 12, (0.0, -0.04, 1.0, 1.05), "row")), (300, 90)),
    "a side of one pixel": ((Grid(3, 3),), (200, 1)),
}


def slow(row: np.ndarray, grids: tuple[Grid, ...], size: tuple[int, int]) -> np.ndarray:
    """Token by token and cell by cell, on as many cells as `over_grids` has."""
    n = len(heat.over_grids(row, grids, size))
    left, top, right, bottom = square(*size)
    total = np.zeros((n, n))
    for down in range(n):
        y0, y1 = (max(0.0, min(1.0, top + (bottom - top) * (down + edge) / n)) for edge in (0, 1))
        for across in range(n):
            x0, x1 = (max(0.0, min(1.0, left + (right - left) * (across + edge) / n)) for edge in (0, 1))
            picture = (x1 - x0) * (y1 - y0) / ((right - left) * (bottom - top) / n**2)
            if picture < 1e-9:
                continue
            for value, area in zip(row, areas(grids), strict=True):
                if area is not None:
                    wide = max(0.0, min(x1, area[2]) - max(x0, area[0]))
                    high = max(0.0, min(y1, area[3]) - max(y0, area[1]))
                    share = wide * high / ((area[2] - area[0]) * (area[3] - area[1]))
                    total[down, across] += value * share / picture
    return total


def test_a_grid_over_the_square_is_the_map() -> None:
    row = np.random.default_rng(0).standard_normal(26).astype(np.float32)
    for grid, values in (
        (Grid(5, 5, square(90, 40)), row[:25]),
        (Grid(5, 5, square(90, 40), class_token=True), row),
        (Grid(5, 5, square(90, 40), "end"), np.roll(row, -1)),
        (Grid(5, 5), row[:25]),
    ):
        size = (64, 64) if grid.area == (0, 0, 1, 1) else (90, 40)
        found = heat.over_grids(values, (grid,), size)
        expected = (row[:25] if len(values) == 25 else row[1:]).astype(np.float64).reshape(5, 5)
        assert found.dtype == np.float64
        assert found.tobytes() == expected.tobytes()


def test_tiles_and_padding_by_hand() -> None:
    # A picture of two to one on a map of four cells: rows 1 and 2 hold it. Each of the two tiles' tokens is one cell.
    left, right = (Grid(2, 2, (x, 0.0, x + 0.5, 1.0)) for x in (0.0, 0.5))
    row = np.arange(1.0, 13.0)
    found = heat.over_grids(row, (left, right, Grid(2, 2)), (40, 20))
    # The whole picture's tokens are two cells wide: each has half of it.
    assert found.tolist() == [
        [0, 0, 0, 0],
        [1 + 4.5, 2 + 4.5, 5 + 5, 6 + 5],
        [3 + 5.5, 4 + 5.5, 7 + 6, 8 + 6],
        [0, 0, 0, 0],
    ]


def test_cells_at_the_border_do_not_look_cold() -> None:
    # Rows 1.5 to 3.5 of five hold the picture: a row of the picture's tokens reaches into one cell wholly, into others by half.
    found = heat.over_grids(np.ones(10), (Grid(2, 5),), (50, 20))
    assert found[[0, 4]].tolist() == [[0] * 5] * 2
    assert found[1:4] == pytest.approx(np.ones((3, 5)))


@pytest.mark.parametrize("case", CASES)
def test_equals_the_slow_way(case: str) -> None:
    grids, size = CASES[case]
    row = np.random.default_rng(1).uniform(size=tokens(grids))
    found = heat.over_grids(row, grids, size)
    if case.startswith("square"):
        return  # by hand above: values of padding stay
    assert found == pytest.approx(slow(row, grids, size), abs=1e-12)


@given(st.data())
def test_no_relevance_is_lost_or_made(data: st.DataObject) -> None:
    """What the map holds on the picture is what tokens hold there."""
    side = st.integers(1, 400)
    size = (data.draw(side), data.draw(side))
    wide, high, low = data.draw(st.floats(0.1, 3)), data.draw(st.floats(0.1, 3)), data.draw(st.floats(-0.5, 0.5))
    grids = (
        Grid(data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20)), (low, -low / 2, low + wide, high - low / 2), "row"),
        Grid(3, 2),
    )
    row = np.random.default_rng(2).uniform(size=tokens(grids))
    found = heat.over_grids(row, grids, size)
    edges = [np.linspace(low, high, len(found) + 1) for low, high in zip(square(*size)[:2], square(*size)[2:], strict=True)]
    inside_x, inside_y = (np.diff(each.clip(0, 1)) / np.diff(each) for each in edges)
    held = 0.0
    for value, area in zip(row, areas(grids), strict=True):
        if area is not None:
            x0, y0, x1, y1 = area
            inside = max(0.0, min(x1, 1) - max(x0, 0)) * max(0.0, min(y1, 1) - max(y0, 0))
            held += value * inside / ((x1 - x0) * (y1 - y0))
    assert float((found * np.outer(inside_y, inside_x)).sum()) == pytest.approx(held, abs=1e-9)
    assert found.min() >= 0


def test_the_map_is_as_fine_as_the_finest_grid_within_bounds() -> None:
    def cells(size: tuple[int, int], *grids: Grid) -> int:
        (rows, columns) = heat.over_grids(np.ones(tokens(grids)), grids, size).shape
        assert rows == columns
        return rows

    assert cells((100, 50), Grid(5, 10)) == 10
    assert cells((100, 50), Grid(10, 10)) == 20
    assert cells((120, 80), *TILES, Grid(2, 2)) == 6
    assert cells((1000, 1000), Grid(128, 128)) == heat.MOST_CELLS
    assert cells((5000, 50), Grid(10, 1000)) == heat.MOST_CELLS
    assert cells((5000, 1), Grid(16, 16)) == heat.MOST_CELLS


@pytest.mark.parametrize("case", CASES)
def test_one_hot_token_gives_a_box_in_its_area(case: str) -> None:
    """Through the rule's own ways: nothing further than a cell of the map from the area of the token."""
    grids, size = CASES[case]
    check_one_hot(grids, size)


def check_one_hot(grids: tuple[Grid, ...], size: tuple[int, int]) -> None:
    """A box inside each token's area, widened by a cell of the map."""
    pad, count = SquarePad(*size), tokens(grids)
    for place, area in enumerate(areas(grids)):
        grid = heat.without_padding(heat.over_grids(np.eye(count)[place], grids, size), pad)
        for rule in (roi.RoiRule("top1"), roi.RoiRule("component"), roi.RoiRule("component", finer=4)):
            found = roi.from_heat(grid, pad, rule)
            if area is None or min(area[2:]) <= 0 or max(area[:2]) >= 1:
                assert found.box is None
                continue
            if count == 1:
                assert found.reason == roi.FLAT or found.box is not None
                continue
            assert found.box is not None, (place, area)
            wide, high = (pad.side / len(grid) / side for side in size)
            x0, y0, x1, y1 = found.box.corners
            assert x0 >= area[0] - wide - 1e-9
            assert y0 >= area[1] - high - 1e-9
            assert x1 <= area[2] + wide + 1e-9
            assert y1 <= area[3] + high + 1e-9


@pytest.mark.parametrize("count", [0, 8, 10])
def test_another_number_of_values_than_tokens(count: int) -> None:
    with pytest.raises(InputError):
        heat.over_grids(np.ones(count), (Grid(3, 3),), (40, 20))


def test_no_grids_and_no_tokens() -> None:
    with pytest.raises(InputError):
        heat.over_grids(np.ones(0), (), (40, 20))
    for rows, columns in ((0, 3), (3, 0)):
        with pytest.raises(InputError):
            Grid(rows, columns)
