"""Maps of relevance over the square frame: what they can be put through before a region is taken from them.

A map is (rows, columns) over the padded square; cells are of equal size, and a cell's value holds over all of it. Relevance of
the first layers gathers at the border and in a few cells, whatever is asked (Chefer et al., issues 8 and 10; the same is
reported of other models); `clipped`, `smoothed` and `beyond` are remedies, none of them in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from cos_core.errors import InputError
from cos_core.geometry import Box, SquarePad
from cos_core.models import grids as token_grids
from cos_core.models.grids import Area, Grid

MOST_CELLS = 128
"""The most cells along a side of a map over grids: 16,384 image tokens on a square picture have as many."""

ScoreKind = Literal["contrast", "area"]
SCORE_KINDS: tuple[ScoreKind, ...] = get_args(ScoreKind)


def as_grid(heat: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """(rows, columns) in float64. Raises InputError for a map without cells."""
    grid = np.asarray(heat, dtype=np.float64)
    if grid.ndim != 2 or grid.size == 0:
        raise InputError(f"a heat map has rows and columns, got shape {grid.shape}")
    return grid


def over_grids(row: np.ndarray, grids: Sequence[Grid], size: tuple[int, int]) -> np.ndarray:
    """The relevance of a picture's image tokens, (tokens,) in the order of the sequence, as a map (n, n) in float64.

    `size`: (width, height) of the picture in pixels. One grid over exactly the square is the map itself. Else n is how many of
    the finest grid's cells fit along the square's side, `MOST_CELLS` at most; every token's relevance is spread evenly over its
    area, what falls on padding is left out, and grids add up. A cell's value is per share of it that is picture: cells at the
    picture's border do not look cold. Newlines and class tokens do not show.

    Raises InputError for another number of values than the grids have tokens, and for no grids.
    """
    values = np.asarray(row, dtype=np.float64)
    if not grids or values.shape != (token_grids.tokens(grids),):
        raise InputError(f"relevance of shape {values.shape} for {token_grids.tokens(grids)} image tokens")
    square = token_grids.square(*size)
    (left, top, right, bottom), first = square, grids[0]
    if len(grids) == 1 and first.area == square and first.rows == first.columns:
        return _cells(values, first)
    n = min(MOST_CELLS, max(_across(grid, square) for grid in grids if grid.columns))
    across, down = (np.linspace(low, high, n + 1) for low, high in ((left, right), (top, bottom)))
    total, at = np.zeros((n, n)), 0
    for grid in grids:
        x0, y0, x1, y1 = grid.area
        if grid.columns:
            cells = _cells(values[at : at + len(grid)], grid)
            total += _spread(down, y0, y1, grid.rows) @ cells @ _spread(across, x0, x1, grid.columns).T
        at += len(grid)
    share = np.outer(*(np.diff(edges.clip(0, 1)) / np.diff(edges) for edges in (down, across)))
    # A cell that only rounding calls a part of the picture would be a division by nothing.
    return np.divide(total, share, out=np.zeros_like(total), where=share > 1e-9)


def _cells(values: np.ndarray, grid: Grid) -> np.ndarray:
    """(rows, columns) of a grid's tokens, without those that look at no part."""
    plain = values[grid.class_token :]
    if grid.newlines == "row":
        return plain.reshape(grid.rows, grid.columns + 1)[:, :-1]
    return plain[: grid.rows * grid.columns].reshape(grid.rows, grid.columns)


def _across(grid: Grid, square: Area) -> int:
    """How many of a grid's cells fit along the square's side, along the axis on which they are finer."""
    x0, y0, x1, y1 = grid.area
    left, top, right, bottom = square
    return max(1, round(grid.columns * (right - left) / (x1 - x0)), round(grid.rows * (bottom - top) / (y1 - y0)))


def _spread(edges: np.ndarray, low: float, high: float, count: int) -> np.ndarray:
    """(cells, count): which share of each of `count` equal stretches of [low, high] lies in each cell's part of the picture."""
    stretches, inside = np.linspace(low, high, count + 1), edges.clip(0, 1)
    overlap = np.minimum(inside[1:, None], stretches[1:]) - np.maximum(inside[:-1, None], stretches[:-1])
    shares: np.ndarray = overlap.clip(0) * (count / (high - low))
    return shares


def picture_part(shape: tuple[int, ...], pad: SquarePad) -> tuple[slice, slice]:
    """The rows and columns of cells that hold any of the picture: the rest lies wholly in the padding."""
    (left, top), side = pad.offset, pad.side
    rows = _overlap(shape[0], top / side, (top + pad.height) / side)
    return rows, _overlap(shape[1], left / side, (left + pad.width) / side)


def _overlap(cells: int, low: float, high: float) -> slice:
    edges = np.arange(cells + 1) / cells
    inside = np.flatnonzero((edges[1:] > low) & (edges[:-1] < high))
    return slice(int(inside[0]), int(inside[-1]) + 1)


def without_padding(grid: np.ndarray, pad: SquarePad) -> np.ndarray:
    """The map with zeros in cells that lie wholly in the padding."""
    masked = np.zeros_like(grid)
    part = picture_part(grid.shape, pad)
    masked[part] = grid[part]
    return masked


def clipped(grid: np.ndarray, pad: SquarePad, percentile: float) -> np.ndarray:
    """No cell above that percentile (linear between cells) of the picture's cells."""
    return np.minimum(grid, np.percentile(grid[picture_part(grid.shape, pad)], percentile))


def smoothed(grid: np.ndarray, pad: SquarePad) -> np.ndarray:
    """Every cell of the picture becomes the mean of the 3x3 around it, as far as these belong to the picture; others stay."""
    part = picture_part(grid.shape, pad)
    means = grid.copy()
    means[part] = _window_sums(grid[part]) / _window_sums(np.ones_like(grid[part]))
    return means


def _window_sums(grid: np.ndarray) -> np.ndarray:
    wide = np.pad(grid, 1)
    windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3))
    sums: np.ndarray = windows.sum((2, 3))
    return sums


def beyond(grid: np.ndarray, plain: np.ndarray, pad: SquarePad) -> np.ndarray:
    """What `grid` has in a cell beyond what the map of no particular question has there, each scaled to a sum of 1.

    What is less is 0. A map without relevance takes nothing away and stays as it is.
    """
    part = picture_part(grid.shape, pad)
    sums = [float(one[part].sum()) for one in (grid, plain)]
    if min(sums) <= 0 or not np.isfinite(sums).all():
        return grid
    return np.clip(grid / sums[0] - plain / sums[1], 0, None)


def finer(grid: np.ndarray, factor: int) -> np.ndarray:
    """(rows, columns) -> (rows factor, columns factor): bilinear between the middles of cells, level beyond the outer ones."""
    for axis in (0, 1):
        cells = grid.shape[axis]
        places = np.clip((np.arange(cells * factor) + 0.5) / factor - 0.5, 0, cells - 1)
        low = np.minimum(places.astype(int), max(0, cells - 2))
        share = (places - low).reshape([-1, 1] if axis == 0 else [1, -1])
        grid = grid.take(low, axis) * (1 - share) + grid.take(np.minimum(low + 1, cells - 1), axis) * share
    return grid


def box_scores(
    heat: Sequence[Sequence[float]] | np.ndarray, boxes: Sequence[Box], pad: SquarePad, kind: ScoreKind
) -> tuple[float, ...]:
    """Relevance of boxes (frame "image") on a map: the exact mean over each box, from one integral image with bilinear corners.

    "contrast": the mean inside less the mean over the rest of the picture; "area": the mean inside times the square root of the
    box's share of the picture. (The mean alone prefers the smallest box around the hottest cell.) Padding does not count.
    Raises InputError for a map without cells or an unknown kind.
    """
    if kind not in SCORE_KINDS:
        raise InputError(f"unknown score {kind!r}; one of {', '.join(SCORE_KINDS)}")
    if not boxes:
        return ()
    grid = as_grid(heat)
    corners = np.array([pad.to_square(box).corners for box in boxes])
    whole = np.array([pad.to_square(Box(0.0, 0.0, 1.0, 1.0)).corners])
    sums, total = _sums(grid, corners), _sums(grid, whole)[0]
    areas, all_of_it = _areas(corners), _areas(whole)[0]
    inside = sums / areas
    if kind == "area":
        return tuple((inside * np.sqrt(areas / all_of_it)).tolist())
    rest = all_of_it - areas
    # A box around the whole picture has no outside to stand out from.
    outside = np.where(rest > 1e-9 * all_of_it, (total - sums) / np.where(rest > 0, rest, 1), inside)
    return tuple((inside - outside).tolist())


def _areas(corners: np.ndarray) -> np.ndarray:
    area: np.ndarray = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    return area


def _sums(grid: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """The integral of the map over each box (x0, y0, x1, y1 as fractions of the square), the square's area being 1."""
    rows, columns = grid.shape
    integral = np.zeros((rows + 1, columns + 1))
    integral[1:, 1:] = grid.cumsum(0).cumsum(1) / grid.size

    def upto(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, y = x * columns, y * rows
        left, top = (np.clip(v.astype(int), 0, n - 1) for v, n in ((x, columns), (y, rows)))
        right, down = x - left, y - top
        above = integral[top, left] * (1 - right) + integral[top, left + 1] * right
        below = integral[top + 1, left] * (1 - right) + integral[top + 1, left + 1] * right
        corner: np.ndarray = above * (1 - down) + below * down
        return corner

    x0, y0, x1, y1 = corners.T
    sums: np.ndarray = upto(x1, y1) - upto(x0, y1) - upto(x1, y0) + upto(x0, y0)
    return sums


def painted(boxes: Sequence[Box], scores: Sequence[float], pad: SquarePad, side: int = 24) -> tuple[tuple[float, ...], ...]:
    """Scored boxes (frame "image") as a map of side x side cells over the square frame: each cell the largest score on it.

    As Chefer et al. paint LXMERT's boxes (pixel-wise maximum on a canvas of zeros, scores as they are), on a canvas that is
    small enough to keep. A box is on a cell when it covers the cell's middle; one too small for that, on the cell of its own.
    Scores below 0 do not show. Raises InputError for unlike numbers of boxes and scores.
    """
    if len(boxes) != len(scores):
        raise InputError(f"{len(boxes)} boxes, but {len(scores)} scores")
    canvas = np.zeros((side, side))
    for box, score in zip(boxes, scores, strict=True):
        x0, y0, x1, y1 = (v * side for v in pad.to_square(box).corners)
        columns, rows = _covered(x0, x1, side), _covered(y0, y1, side)
        canvas[rows, columns] = np.maximum(canvas[rows, columns], score)
    return tuple(tuple(row) for row in canvas.tolist())


def _covered(low: float, high: float, cells: int) -> slice:
    first, end = int(np.ceil(low - 0.5)), int(np.ceil(high - 0.5))
    if first >= end:
        first = min(int((low + high) / 2), cells - 1)
        end = first + 1
    return slice(max(0, first), min(cells, end))
