"""In which frame, unit and order the numbers of boxes are, by statistics over many boxes and the sizes of their pictures.

Three kinds of evidence against a convention, each with its assumption about right data:

- Boxes lie beyond it. Right data has some wrong boxes, too: a share of DIRT is let pass.
- Boxes keep inside the smaller area that another convention gives every picture. Assumption: a right box, mirrored, turned, and
  put on another picture of the sample, is as likely as it was. So a box fits the smaller area with the chance that its turned
  and moved copies do, and all fit with the product of these chances. Where only one side of the other area is smaller, mirrored
  boxes count half: right data may reach one side a third as often as the opposite one (documents are read from the top left).
  The boxes must also fill the other area: what lies in the middle of everything says nothing.
- The shapes of boxes follow the shapes of pictures the wrong way round (x and y swapped). Assumption: in fractions of the
  picture, boxes are not wider for their height where pictures are wider for theirs.
- Boxes agree better with other boxes of the same objects when they are read in another convention.

What cannot be found: conventions that differ by a few percent of the picture's side (0-999 and 0-1000), and x and y swapped in
fractions where pictures have one shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cos_core.dialogue.box_conventions import Boxes, Convention, Floats, inside, relative, sides

FEWEST = 20
"""Boxes without which nothing is said of what they do not reach."""
FALSE_ALARMS = 1e-3
"""The share of right data sets that may be called wrong."""
DIRT = 0.03
"""The share of boxes that may be wrong in right data."""
_SURELY_WRONG = 3
_MOVED = 64
_FILLED = 1 / 3
_BEYOND_THE_MIDDLE = 0.1
_CERTAIN = 3.72
"""Standard deviations of a normal distribution that 1 in 10,000 exceeds."""


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """Boxes are not in the convention that was claimed. `likely`: the one that they seem to be in; None: none that is known.

    `against` (n,): the boxes that speak against the claim; all of them where they keep inside the smaller area of `likely`.
    `part`: only those are in `likely`. `chance`: of right data doing the same (0: it cannot).
    """

    likely: Convention | None
    against: NDArray[np.bool_]
    part: bool = False
    chance: float = 0.0

    def said(self, claimed: Convention) -> str:
        """The verdict in words, to follow "boxes" or the like; `claimed`: what they should be in."""
        count, total = int(self.against.sum()), len(self.against)
        likely = self.likely.name if self.likely else "in no convention that cos knows"
        if self.part:
            seem = f"look like {likely}" if self.likely else f"are {likely}"
            return f"are {claimed.name}, but {count} of {total} cannot be: they {seem}"
        if self.chance:
            why = (
                f"{total} stay within the picture as it would lie there, which right ones do with a chance of {self.chance:.0e}"
            )
        else:
            why = f"{count} of {total} lie beyond these"
        return f"look like {likely}, not like {claimed.name}: {why}"


def judge(boxes: Boxes, claimed: Convention, others: Sequence[Convention]) -> Verdict | None:
    """What speaks against boxes being in the convention `claimed`; None for nothing, or too little.

    `others`: what else they may be in, the commonest first.
    """
    beyond = ~claimed.fits(boxes)
    if beyond.sum() >= _SURELY_WRONG and not _holds(boxes, claimed):
        return _beyond(boxes, beyond, claimed, others)
    likely, chance = _tightest(boxes, claimed, others)
    return None if likely is claimed else Verdict(likely, np.ones(len(boxes), bool), chance=chance)


def _beyond(boxes: Boxes, beyond: NDArray[np.bool_], claimed: Convention, others: Sequence[Convention]) -> Verdict:
    holding = _first(boxes, others)
    if holding is not None:
        likely, _ = _tightest(boxes, holding, others)
        area = _area_in(claimed, likely, boxes.pictures)
        if area is None or beyond.sum() >= _FILLED * (1 - _fit_chances(likely.fractions(boxes), area)).sum():
            return Verdict(likely, beyond)
    return Verdict(_first(boxes[beyond], others), beyond, part=True)


def _first(boxes: Boxes, conventions: Sequence[Convention]) -> Convention | None:
    """The first that holds the boxes, some of them beyond the middle: four small numbers are of anything."""
    for each in conventions:
        if _holds(boxes, each) and (each.fractions(boxes)[:, 2:].max(1) > 0.5).mean() >= _BEYOND_THE_MIDDLE:
            return each
    return None


def _holds(boxes: Boxes, convention: Convention) -> bool:
    return bool((~convention.fits(boxes)).sum() <= DIRT * len(boxes))


def _tightest(boxes: Boxes, start: Convention, others: Sequence[Convention]) -> tuple[Convention, float]:
    """The convention that `start` gives way to, as long as another explains better what boxes do not reach, and the chance of
    the first such step were `start` right."""
    current, chance = start, 1.0
    if len(boxes) < FEWEST:
        return current, chance
    for _ in others:
        smaller = [other for other in others if _is_smaller(_area_in(other, current, boxes.pictures))]
        # All of them share the false alarms that are allowed; half of these are the commonest one's.
        shares = [0.5, *[0.5 / max(len(smaller) - 1, 1)] * (len(smaller) - 1)]
        found = [
            (log_chance(boxes, current, other) - math.log(share), place)
            for place, (other, share) in enumerate(zip(smaller, shares, strict=False))
            if _holds(boxes, other)
        ]
        # Of equals (x and y in thousandths) the first.
        least, place = min(found, default=(0.0, 0))
        if least > math.log(FALSE_ALARMS):
            break
        chance = math.exp(least) if current is start else chance
        current = smaller[place]
    return current, chance


def log_chance(boxes: Boxes, right: Convention, other: Convention) -> float:
    """The logarithm of the chance that boxes in the convention `right` keep inside the areas of `other` as these do.

    0.0 where that says nothing: where the areas are no smaller, or where the boxes do not fill them.
    """
    area = _area_in(other, right, boxes.pictures)
    if area is None or not _is_smaller(area):
        return 0.0
    placed = right.fractions(boxes)
    slack = other.slack / sides(right.area(boxes.pictures))
    # The same step once more: right boxes of `other` leave the area that is as much smaller again.
    within = relative(placed, area)
    left, expected = ~inside(within, area, slack), 1 - _fit_chances(within, area, slack)
    if left.sum() < _FILLED * expected.sum():
        return 0.0
    centred = np.abs(area[:, :2] + area[:, 2:] - 1).max() < 0.02
    misfit = (1 - _fit_chances(placed, area, slack)) * (1.0 if centred else 0.5)
    return _log_tail(misfit, int((~inside(placed, area, slack)).sum()))


def _is_smaller(area: Floats | None) -> bool:
    """Whether areas, in fractions of the picture, leave some of it out."""
    return area is not None and bool((area[:, :2] > 0).any() or (area[:, 2:] < 1).any())


def swapped(boxes: Boxes, claimed: Convention) -> bool:
    """Whether the shapes of boxes say that x and y are swapped; it takes pictures of several shapes."""
    if len(boxes) < FEWEST:
        return False
    shapes = np.log(boxes.pictures[:, 0] / boxes.pictures[:, 1])
    lengths = sides(claimed.fractions(boxes)).clip(1e-3, None)
    ratios = np.log(lengths[:, 0] / lengths[:, 1]).clip(-2, 2)
    if shapes.std() < 0.1 or ratios.std() == 0:
        return False
    correlation = float(np.corrcoef(shapes, ratios)[0, 1])
    return correlation * math.sqrt(len(boxes) - 1) > _CERTAIN


def agreeing(boxes: Boxes, reference: Floats, claimed: Convention, others: Sequence[Convention]) -> Verdict | None:
    """The convention in which boxes agree better with `reference` (n, 4) than in `claimed`; None where none does.

    `reference`: boxes of the same objects, in fractions of the picture.
    """
    before = _iou(claimed.fractions(boxes), reference)
    best, most = None, 0.05
    for other in others:
        gain = _iou(other.fractions(boxes), reference) - before
        won, lost = int((gain > 0.02).sum()), int((gain < -0.02).sum())
        chance = math.exp(_log_tail(np.full(won + lost, 0.5), lost))
        if gain.mean() > most and won + lost >= FEWEST and chance < FALSE_ALARMS / len(others):
            best, most = Verdict(other, gain > 0.02, chance=chance), float(gain.mean())
    return best


def _iou(ones: Floats, others: Floats) -> Floats:
    overlap = (np.minimum(ones[:, 2:], others[:, 2:]) - np.maximum(ones[:, :2], others[:, :2])).clip(0, None).prod(1)
    union = sides(ones).prod(1) + sides(others).prod(1) - overlap
    return np.where(union > 0, overlap / np.where(union > 0, union, 1.0), 0.0)


def _log_tail(misfit: Floats, found: int) -> float:
    """The logarithm of a bound (Chernoff's) on the chance of at most `found` misfits, of which each box is one by `misfit`."""
    if found >= misfit.sum():
        return 0.0
    if found == 0:
        return float(np.log1p(-misfit).sum())
    tilts = np.linspace(0.05, 12.0, 120)
    bounds = np.log1p(misfit[:, None] * np.expm1(-tilts)).sum(0) + tilts * found
    return float(bounds.min())


def _fit_chances(fractions: Floats, areas: Floats, slack: Floats | float = 0.0) -> Floats:
    """(n,): the share of the turned and mirrored copies of each box that fits into the areas of the sample's pictures."""
    rows = np.unique(np.linspace(0, len(areas) - 1, min(_MOVED, len(areas))).astype(int))
    wide = np.broadcast_to(np.asarray(slack, float), (len(areas), 2))
    low, high = (areas[rows, :2] - wide[rows]).T, (areas[rows, 2:] + wide[rows]).T
    total = np.zeros((len(fractions), len(rows)))
    x, y = fractions[:, 0::2], fractions[:, 1::2]
    for spans in ((x, y), (y, x)):
        fit = [np.zeros_like(total), np.zeros_like(total)]
        for axis, span in enumerate(spans):
            for begin, end in _both_ways(span):
                fit[axis] += (begin[:, None] >= low[axis]) & (end[:, None] <= high[axis])
        total += fit[0] * fit[1] / 8
    # Its own place counts as well, where it was seen: no chance is 0.
    return (total.sum(1) + inside(fractions, areas, wide)) / (len(rows) + 1)


def _both_ways(span: Floats) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """The beginnings and ends (n,) of spans from 0 to 1, and of their mirror images."""
    return (span[:, 0], span[:, 1]), (1 - span[:, 1], 1 - span[:, 0])


def _area_in(inner: Convention, outer: Convention, pictures: Floats) -> Floats | None:
    """The areas of `inner`, in fractions of those of `outer` (n, 4); None where their orders cannot be compared."""
    area = inner.area(pictures)
    if {inner.order, outer.order} == {"x0y0x1y1", "y0x0y1x1"}:
        area = area[:, [1, 0, 3, 2]]
    elif inner.order != outer.order:
        return None
    return relative(area, outer.area(pictures))
