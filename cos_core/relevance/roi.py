"""From relevance to a region of interest: which candidates count, and the box around them (CoS §3.2, last paragraph).

The paper says "a mask ... by a threshold" and "slightly extend"; what that leaves open is decided here and by `RoiRule`.
A picture without a region gives a result with a reason, not an exception.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from cos_core import options
from cos_core.errors import InputError
from cos_core.geometry import Box, SquarePad, bounding
from cos_core.relevance.heat import as_grid, finer, picture_part
from cos_core.types import Regions

RegionKind = Literal["top1", "component", "union"]
REGION_KINDS: tuple[RegionKind, ...] = get_args(RegionKind)

NO_RELEVANCE = "no positive relevance"
FLAT = "the same relevance everywhere"
NOT_FINITE = "relevance is not finite"


OTSU: Literal["otsu"] = "otsu"


@dataclass(frozen=True, slots=True)
class RoiRule:
    """How scores become a box.

    `region`: "top1" takes the best candidate; "component" the candidates that pass and touch the best one, directly or through
    others; "union" all that pass. They pass with scores at or above `threshold`, a share of the range from the smallest to the
    largest score, in [0, 1], or "otsu": the split of the scores in two with the largest variance between the parts; with
    `keep_mass` instead the fewest candidates, best first, that hold this share, in (0, 1], of all positive relevance. `extend`:
    each side moves outwards by this share of its length. `finer`: a heat map is interpolated to this many times as many cells
    along each side before all this (not for "top1"), for edges between its cells.
    """

    region: RegionKind = "top1"
    threshold: float | Literal["otsu"] = 0.5
    extend: float = 0.0
    keep_mass: float | None = None
    finer: int = 1

    def __post_init__(self) -> None:
        if self.region not in REGION_KINDS:
            raise InputError(f"unknown region rule {self.region!r}; one of {', '.join(REGION_KINDS)}")
        if self.threshold != OTSU and (isinstance(self.threshold, str) or not 0.0 <= self.threshold <= 1.0):
            raise InputError(f"threshold must lie in [0, 1] or be 'otsu', got {self.threshold}")
        options.check_number("extend", self.extend, 0, 10)
        if self.keep_mass is not None and not 0.0 < self.keep_mass <= 1.0:
            raise InputError(f"keep_mass must lie in (0, 1], got {self.keep_mass}")
        options.check_number("finer", self.finer, 1, options.FINER)


@dataclass(frozen=True, slots=True)
class Roi:
    """A box in frame "image", or None with a `reason`.

    `score`: the best candidate's relevance; `used`: the indices of the candidates that the box is around.
    """

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
    passing = _passing(scores, rule)
    if rule.region == "top1":
        passing = [best]
    elif rule.region == "component":
        passing = _touching(regions.boxes, passing, best)
    box = bounding([regions.boxes[i] for i in passing])
    return Roi(box.extended(rule.extend), float(scores[best]), tuple(passing))


def from_heat(heat: Sequence[Sequence[float]], pad: SquarePad, rule: RoiRule) -> Roi:
    """The region of interest of a (rows, columns) map over the square frame, as a box in frame "image".

    Cells that lie wholly in the padding are left out; cells that touch at a corner belong together. `used` counts the map's own
    cells row by row. Raises InputError for a map without cells.
    """
    grid = as_grid(heat)
    rows, columns = picture_part(grid.shape, pad)
    part = grid[rows, columns]
    reason = _useless(part.ravel())
    if reason:
        return Roi(None, reason=reason)
    score, factor = float(part.max()), 1 if rule.region == "top1" else rule.finer
    part = finer(part, factor)
    best = int(part.argmax())
    passing = [best] if rule.region == "top1" else _passing(part.ravel(), rule)
    if rule.region == "component":
        passing = _connected_cells(passing, best, part.shape[1])
    down, right = np.divmod(np.array(passing), part.shape[1])
    down, right = down + rows.start * factor, right + columns.start * factor
    high, wide = grid.shape[0] * factor, grid.shape[1] * factor
    square = Box(
        int(right.min()) / wide, int(down.min()) / high, (int(right.max()) + 1) / wide, (int(down.max()) + 1) / high, "square"
    )
    used = sorted(set((down // factor * grid.shape[1] + right // factor).tolist()))
    return Roi(pad.to_image(square).extended(rule.extend), score, tuple(used))


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


def _passing(scores: np.ndarray, rule: RoiRule) -> list[int]:
    """Indices of the scores that pass the rule, in order; the best always does."""
    low, high = scores.min(), scores.max()
    if low == high:
        return list(range(scores.size))
    if rule.keep_mass is not None:
        return _holding(scores, rule.keep_mass)
    if isinstance(rule.threshold, str):
        return [int(i) for i in np.flatnonzero(scores > _otsu(scores))]
    return [int(i) for i in np.flatnonzero((scores - low) / (high - low) >= rule.threshold)]


def _holding(scores: np.ndarray, share: float) -> list[int]:
    """The fewest scores, largest first, that sum to `share` of all positive ones."""
    order = np.argsort(-scores, kind="stable")
    mass = np.clip(scores[order], 0, None).cumsum()
    # The sum of all may differ from the last of the running sums by rounding.
    count = int(np.searchsorted(mass, share * mass[-1] * (1 - 1e-12))) + 1
    return sorted(int(i) for i in order[:count])


def _otsu(scores: np.ndarray) -> float:
    """The score such that those up to it and those above it have the largest variance between them (Otsu 1979).

    On the scores themselves, not on a histogram of 256 levels as in Chefer et al.'s DETR notebook; the lowest of equal splits.
    """
    ordered = np.sort(scores)
    lower = np.arange(1, ordered.size)
    sums = ordered.cumsum()
    below, above = sums[:-1] / lower, (sums[-1] - sums[:-1]) / (ordered.size - lower)
    between = np.where(ordered[1:] > ordered[:-1], lower * (ordered.size - lower) * (above - below) ** 2, -1.0)
    return float(ordered[int(between.argmax())])


def _touching(boxes: Sequence[Box], passing: Sequence[int], best: int) -> list[int]:
    """Those of `passing` that are linked to `best` by overlapping or touching boxes, in order."""
    corners = np.array([boxes[i].corners for i in passing])
    linked = np.array([i == best for i in passing])
    while True:
        x0, y0, x1, y1 = (corners[linked][:, k, None] for k in range(4))
        meets = (x0 <= corners[:, 2]) & (corners[:, 0] <= x1) & (y0 <= corners[:, 3]) & (corners[:, 1] <= y1)
        grown = linked | meets.any(0)
        if (grown == linked).all():
            return [i for i, keep in zip(passing, linked, strict=True) if keep]
        linked = grown


def _connected_cells(passing: Sequence[int], best: int, columns: int) -> list[int]:
    """Those of `passing` in the 8-connected component of `best`, in order."""
    open_cells, reached, stack = set(passing), {best}, [best]
    while stack:
        row, column = divmod(stack.pop(), columns)
        for y in (row - 1, row, row + 1):
            for x in range(max(0, column - 1), min(columns, column + 2)):
                cell = y * columns + x
                if cell in open_cells and cell not in reached:
                    reached.add(cell)
                    stack.append(cell)
    return sorted(reached)
