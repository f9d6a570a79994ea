"""From relevance to a region of interest: which candidates count, and the box around them (CoS §3.2, last paragraph).

The paper says "a mask ... by a threshold" and "slightly extend"; what that leaves open is decided here and by `RoiRule`.
Finding nothing is a result with a reason, not an exception.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from cos_core.errors import InputError
from cos_core.geometry import Box, SquarePad, bounding
from cos_core.types import Regions

RegionKind = Literal["top1", "component", "union"]
REGION_KINDS: tuple[RegionKind, ...] = get_args(RegionKind)

NO_RELEVANCE = "no positive relevance"
FLAT = "the same relevance everywhere"
NOT_FINITE = "relevance is not finite"


@dataclass(frozen=True, slots=True)
class RoiRule:
    """How scores become a box.

    `region`: "top1" takes the best candidate; "component" the candidates at or above `threshold` that touch the best one,
    directly or through others; "union" all of them. `threshold`: a share of the range from the smallest to the largest score,
    in [0, 1]. `extend`: each side moves outwards by this share of its length.
    """

    region: RegionKind = "top1"
    threshold: float = 0.5
    extend: float = 0.0

    def __post_init__(self) -> None:
        if self.region not in REGION_KINDS:
            raise InputError(f"unknown region rule {self.region!r}; one of {', '.join(REGION_KINDS)}")
        if not 0.0 <= self.threshold <= 1.0:
            raise InputError(f"threshold must lie in [0, 1], got {self.threshold}")
        if not (math.isfinite(self.extend) and self.extend >= 0.0):
            raise InputError(f"extend must be 0 or more, got {self.extend}")


@dataclass(frozen=True, slots=True)
class Roi:
    """A box in frame "image", or None with a `reason`; `score`: the best candidate's relevance; `used`: who made the box."""

    box: Box | None
    score: float = 0.0
    used: tuple[int, ...] = ()
    reason: str | None = None


def from_regions(regions: Regions, rule: RoiRule) -> Roi:
    """The region of interest among scored candidates (boxes in frame "image"). Raises InputError when they have no scores."""
    if regions.scores is None:
        raise InputError("these regions carry no relevance scores")
    scores = np.asarray(regions.scores, dtype=np.float64)
    reason = _useless(scores)
    if reason:
        return Roi(None, reason=reason)
    best = int(scores.argmax())
    chosen = _above(scores, rule.threshold)
    if rule.region == "top1":
        chosen = [best]
    elif rule.region == "component":
        chosen = _touching(regions.boxes, chosen, best)
    box = bounding([regions.boxes[i] for i in chosen])
    return Roi(box.extended(rule.extend), float(scores[best]), tuple(chosen))


def from_heat(heat: Sequence[Sequence[float]], pad: SquarePad, rule: RoiRule) -> Roi:
    """The region of interest of a (rows, columns) map over the square frame, as a box in frame "image".

    Cells that lie wholly in the padding are left out; cells that touch at a corner belong together. `used` counts cells row by
    row. Raises InputError for a map without cells.
    """
    grid = np.asarray(heat, dtype=np.float64)
    if grid.ndim != 2 or grid.size == 0:
        raise InputError(f"a heat map has rows and columns, got shape {grid.shape}")
    inside = _inside(grid.shape, pad)
    reason = _useless(grid[inside])
    if reason:
        return Roi(None, reason=reason)
    best = int(np.where(inside, grid, -np.inf).argmax())
    flat = np.flatnonzero(inside)
    chosen = [int(flat[i]) for i in _above(grid[inside], rule.threshold)]
    columns = grid.shape[1]
    if rule.region == "top1":
        chosen = [best]
    elif rule.region == "component":
        chosen = _connected_cells(chosen, best, columns)
    rows, cols = [i // columns for i in chosen], [i % columns for i in chosen]
    square = Box(
        min(cols) / columns,
        min(rows) / grid.shape[0],
        (max(cols) + 1) / columns,
        (max(rows) + 1) / grid.shape[0],
        "square",
    )
    return Roi(pad.to_image(square).extended(rule.extend), float(grid.flat[best]), tuple(chosen))


def combined(scores: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """One score a candidate over several questions: each question's scores divided by their maximum, then summed.

    A question without positive relevance adds nothing (policy from_questions, CoS Table 3a).
    """
    total = np.zeros(len(scores[0]))
    for row in scores:
        values = np.asarray(row, dtype=np.float64)
        if np.isfinite(values).all() and values.max(initial=0.0) > 0:
            total += values / values.max()
    return tuple(total.tolist())


def _useless(scores: np.ndarray) -> str | None:
    """Why nothing can be chosen from `scores`, or None."""
    if not np.isfinite(scores).all():
        return NOT_FINITE
    if scores.size == 0 or scores.max() <= 0:
        return NO_RELEVANCE
    return FLAT if scores.size > 1 and scores.min() == scores.max() else None


def _above(scores: np.ndarray, threshold: float) -> list[int]:
    """Indices whose min-max normalised score reaches `threshold`; the best always does."""
    low, high = scores.min(), scores.max()
    if low == high:
        return list(range(scores.size))
    return [int(i) for i in np.flatnonzero((scores - low) / (high - low) >= threshold)]


def _touching(boxes: Sequence[Box], chosen: Sequence[int], best: int) -> list[int]:
    """Those of `chosen` that are linked to `best` by overlapping or touching boxes, in order."""
    corners = np.array([boxes[i].corners for i in chosen])
    linked = np.array([i == best for i in chosen])
    while True:
        x0, y0, x1, y1 = (corners[linked][:, k, None] for k in range(4))
        meets = (x0 <= corners[:, 2]) & (corners[:, 0] <= x1) & (y0 <= corners[:, 3]) & (corners[:, 1] <= y1)
        grown = linked | meets.any(0)
        if (grown == linked).all():
            return [i for i, keep in zip(chosen, linked, strict=True) if keep]
        linked = grown


def _connected_cells(chosen: Sequence[int], best: int, columns: int) -> list[int]:
    """Those of `chosen` in the 8-connected component of `best`, in order."""
    open_cells, reached, stack = set(chosen), {best}, [best]
    while stack:
        row, column = divmod(stack.pop(), columns)
        for y in (row - 1, row, row + 1):
            for x in range(max(0, column - 1), min(columns, column + 2)):
                cell = y * columns + x
                if cell in open_cells and cell not in reached:
                    reached.add(cell)
                    stack.append(cell)
    return sorted(reached)


def _inside(shape: tuple[int, ...], pad: SquarePad) -> np.ndarray:
    """(rows, columns) booleans: whether a cell of the square holds any of the picture."""
    (left, top), side = pad.offset, pad.side
    edges_y, edges_x = (np.arange(n + 1) / n * side for n in shape)
    rows = (edges_y[1:] > top) & (edges_y[:-1] < top + pad.height)
    columns = (edges_x[1:] > left) & (edges_x[:-1] < left + pad.width)
    return rows[:, None] & columns[None, :]
