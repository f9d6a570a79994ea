"""Statistics of any number of boxes in bounded memory (CoS Fig. 7, appendix B): counts, histograms, the centre-bias map."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from cos_core.geometry import Box
from cos_core.types import UNUSABLE_BOXES

MAP_CELLS = 64
"""The centre-bias map has this many rows and columns over the picture."""
_BATCH = 4096
_FINE = 2000

AREA_EDGES = np.linspace(0.0, 1.0, 41)
OFFSET_EDGES = np.linspace(0.0, np.sqrt(0.5), 21)
OVERLAP_EDGES = np.linspace(0.0, 1.0, 21)
ASPECT_EDGES = np.geomspace(1 / 8, 8, 25)


class Histogram:
    """Counts in bins between `edges` (values outside go to the end bins), with mean, spread and quantiles.

    Quantiles come from a grid of 2,000 bins between the end edges (`log`: equal ratios) and are right to within one of them.
    """

    def __init__(self, edges: np.ndarray, log: bool = False) -> None:
        self.edges = edges
        space = np.geomspace if log else np.linspace
        self.fine_edges = space(edges[0], edges[-1], _FINE + 1)
        self.counts = np.zeros(len(edges) - 1, dtype=np.int64)
        self.fine = np.zeros(_FINE, dtype=np.int64)
        self.log = log
        self.total = 0.0
        self.squares = 0.0

    def add(self, values: np.ndarray) -> None:
        inside = np.clip(values, self.edges[0], self.edges[-1])
        self.counts += np.histogram(inside, self.edges)[0]
        self.fine += np.histogram(inside, self.fine_edges)[0]
        scaled = np.log(values) if self.log else values
        self.total += float(scaled.sum())
        self.squares += float((scaled * scaled).sum())

    def merge(self, other: Histogram) -> None:
        """Adds the values of a histogram with the same edges."""
        self.counts += other.counts
        self.fine += other.fine
        self.total += other.total
        self.squares += other.squares

    def summary(self) -> dict[str, float | int | None]:
        """n, mean (for `log`: geometric), standard deviation (for `log`: of the logarithms), quartiles; None when empty."""
        n = int(self.counts.sum())
        if n == 0:
            return {"n": 0, "mean": None, "sd": None, "q25": None, "median": None, "q75": None}
        mean = self.total / n
        sd = float(np.sqrt(max(0.0, self.squares / n - mean * mean)))
        mean = float(np.exp(mean)) if self.log else mean
        q25, median, q75 = (self._quantile(q) for q in (0.25, 0.5, 0.75))
        return {"n": n, "mean": mean, "sd": sd, "q25": q25, "median": median, "q75": q75}

    def _quantile(self, share: float) -> float:
        reached = np.cumsum(self.fine)
        place = int(np.searchsorted(reached, share * reached[-1]))
        low, high = self.fine_edges[place], self.fine_edges[place + 1]
        return float(np.sqrt(low * high) if self.log else (low + high) / 2)

    def rows(self) -> list[tuple[float, float, int]]:
        """(low, high, count) a bin."""
        return [
            (float(low), float(high), int(n)) for low, high, n in zip(self.edges[:-1], self.edges[1:], self.counts, strict=True)
        ]


class BoxTally:
    """Takes boxes (frame "image") one at a time; its size does not depend on how many."""

    def __init__(self) -> None:
        self.status: Counter[str] = Counter()
        self.area = Histogram(AREA_EDGES)
        self.offset = Histogram(OFFSET_EDGES)
        self.aspect = Histogram(ASPECT_EDGES, log=True)
        self.overlap = Histogram(OVERLAP_EDGES)
        self._cover = np.zeros((MAP_CELLS, MAP_CELLS))
        self._boxes = 0
        self._centre_hits = 0
        self._reference_hits = 0
        self._missed = 0
        self._waiting: list[tuple[float, float, float, float, float]] = []
        self._paired: list[tuple[float, ...]] = []

    def add(self, box: Box | None, status: str, shape: float = 1.0, reference: Box | None = None) -> None:
        """`shape`: the picture's width / height, for the aspect ratio in pixels; 1 leaves it in fractions of the picture.
        `reference`: the region that another source names; without a `box` it counts as IoU 0 and no hit."""
        self.status[status] += 1
        if box is None:
            self._missed += reference is not None
            return
        self._waiting.append((box.x0, box.y0, box.x1, box.y1, shape))
        if reference is not None:
            self._paired.append((*box.corners, *reference.corners))
        if len(self._waiting) == _BATCH:
            self._flush()

    def add_many(self, boxes: np.ndarray, status: str) -> None:
        """`boxes`: (n, 4) corners x0, y0, x1, y1, of one status; aspect ratios are in fractions of the picture."""
        self.status[status] += len(boxes)
        if len(boxes):
            self._count(boxes, np.ones(len(boxes)))

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows = np.array(self._waiting)
        self._waiting.clear()
        self._count(rows[:, :4], rows[:, 4])
        if self._paired:
            self._flush_paired()

    def _count(self, boxes: np.ndarray, shape: np.ndarray) -> None:
        x0, y0, x1, y1 = boxes.T
        width, height = x1 - x0, y1 - y0
        self.area.add(width * height)
        self.aspect.add(width * shape / height)
        self.offset.add(np.hypot((x0 + x1) / 2 - 0.5, (y0 + y1) / 2 - 0.5))
        self._centre_hits += int(((x0 <= 0.5) & (x1 >= 0.5) & (y0 <= 0.5) & (y1 >= 0.5)).sum())
        self._cover += _covered(boxes)
        self._boxes += len(x0)

    def _flush_paired(self) -> None:
        x0, y0, x1, y1, rx0, ry0, rx1, ry1 = np.array(self._paired).T
        self._paired.clear()
        both = np.clip(np.minimum(x1, rx1) - np.maximum(x0, rx0), 0, None)
        both = both * np.clip(np.minimum(y1, ry1) - np.maximum(y0, ry0), 0, None)
        self.overlap.add(both / ((x1 - x0) * (y1 - y0) + (rx1 - rx0) * (ry1 - ry0) - both))
        cx, cy = (rx0 + rx1) / 2, (ry0 + ry1) / 2
        self._reference_hits += int(((x0 <= cx) & (cx <= x1) & (y0 <= cy) & (cy <= y1)).sum())

    def merge(self, other: BoxTally) -> None:
        """Adds everything that `other` has counted."""
        other._flush()
        self._flush()
        self.status.update(other.status)
        for name in ("area", "offset", "aspect", "overlap"):
            getattr(self, name).merge(getattr(other, name))
        self._cover += other._cover
        for name in ("_boxes", "_centre_hits", "_reference_hits", "_missed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def boxes(self) -> int:
        """How many boxes were added."""
        self._flush()
        return self._boxes

    @property
    def unread(self) -> int:
        """How many boxes were asked for and could not be read."""
        return sum(self.status[status] for status in UNUSABLE_BOXES)

    @property
    def centre_bias(self) -> np.ndarray:
        """(MAP_CELLS, MAP_CELLS), rows downwards: the share of boxes that cover each cell, in [0, 1]; zeros without boxes."""
        self._flush()
        return self._cover / max(1, self._boxes)

    def to_json(self) -> dict[str, Any]:
        """Every figure that the plots show, and the summaries."""
        self._flush()
        total = sum(self.status.values())
        return {
            "examples": total,
            "boxes": self._boxes,
            "not_readable": self.unread,
            "status": {
                name: {"count": count, "share": count / total} for name, count in sorted(self.status.items(), key=_by_count)
            },
            "area": self.area.summary(),
            "aspect": self.aspect.summary(),
            "centre_offset": self.offset.summary(),
            "covers_picture_centre": self._centre_hits / self._boxes if self._boxes else None,
            **({"reference": self._to_reference()} if self.overlap.counts.sum() + self._missed else {}),
        }

    def _to_reference(self) -> dict[str, Any]:
        """Against the reference regions: how many, the share whose centre is held, and the mean IoU; a missing box counts 0."""
        pairs = int(self.overlap.counts.sum())
        n = pairs + self._missed
        return {
            "n": n,
            "without_box": self._missed,
            "holds_centre": self._reference_hits / n,
            "iou_mean": self.overlap.total / n,
            "iou": self.overlap.summary(),
        }


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _covered(boxes: np.ndarray) -> np.ndarray:
    """(MAP_CELLS, MAP_CELLS): the share of every cell that each box covers, summed over the boxes.

    A box is the rectangle from the origin to its far corner, less two to its other corners, plus the one to its near corner.
    Such a rectangle covers the cells before its corner's whole and the corner's own row and column in part, so that four counts
    of the corners by cell say it all, without a matrix product whose threads would wait for each other.
    """
    x0, y0, x1, y1 = boxes.T * MAP_CELLS
    sides = MAP_CELLS + 1
    total = np.zeros((sides, sides))
    for sign, x, y in ((1, x1, y1), (-1, x0, y1), (-1, x1, y0), (1, x0, y0)):
        column, row = x.astype(np.intp), y.astype(np.intp)
        right, down = x - column, y - row

        def counted(weights: np.ndarray | None, place: np.ndarray = row * sides + column) -> np.ndarray:
            return np.bincount(place, weights, sides * sides).reshape(sides, sides)

        whole = _beyond(_beyond(counted(None), 0), 1)
        total += sign * (whole + _beyond(counted(down), 1) + _beyond(counted(right), 0) + counted(down * right))
    return np.maximum(total[:-1, :-1], 0.0)


def _beyond(counts: np.ndarray, axis: int) -> np.ndarray:
    """At each place the sum of the counts after it along `axis`."""
    return np.flip(np.cumsum(np.flip(counts, axis), axis), axis) - counts
