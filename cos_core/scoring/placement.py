"""Regions against chance: the map that boxes of the same sizes give when each lies anywhere in its picture, and how far the
regions are from it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cos_core.scoring.box_tally import MAP_CELLS

GROUPS = 512
"""Most groups of pictures that are resampled. Up to so many pictures each is one; further ones join them at random (the method
of random groups: Wolter, Introduction to Variance Estimation, ch. 2), which bounds the memory."""
_EDGES = np.linspace(0.0, 1.0, MAP_CELLS + 1)
_AT_ONCE = 64


class Departure(NamedTuple):
    """The total variation between two maps, in [0, 1], its 95 % interval (None where pictures are not known, or are one), and
    the number of pictures, or of groups of them, that were resampled."""

    total_variation: float
    low: float | None
    high: float | None
    resampled: int | None


class Placement:
    """Takes boxes (frame "image") in batches; its size does not depend on how many.

    A box of width w and height h that is placed uniformly at random inside the picture covers a point with a probability that
    is a product of one factor for each axis: for x the length of the possible left ends, 1 - w in all, that cover it. Its mean
    over a cell of the map is in closed form.
    """

    def __init__(self) -> None:
        self._apart = np.zeros((GROUPS, MAP_CELLS, MAP_CELLS))
        self._mass = np.zeros(GROUPS)
        self._expected = np.zeros((MAP_CELLS, MAP_CELLS))
        self._boxes = 0
        self._group_of: dict[str, int] = {}
        self._known = True

    def add(self, boxes: np.ndarray, pictures: Sequence[str | None]) -> None:
        """`boxes`: (n, 4) corners x0, y0, x1, y1 in [0, 1], of `pictures` by name."""
        if not len(boxes):
            return
        groups = np.array([self._group(name) for name in pictures])
        order = np.argsort(groups, kind="stable")
        boxes, groups = boxes[order], groups[order]
        across, down = _covered(boxes[:, 0], boxes[:, 2]), _covered(boxes[:, 1], boxes[:, 3])
        any_x, any_y = covered_at_random(boxes[:, 2] - boxes[:, 0]), covered_at_random(boxes[:, 3] - boxes[:, 1])
        starts = np.flatnonzero(np.diff(groups, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(groups)], strict=True):
            expected = any_y[start:end].T @ any_x[start:end]
            self._expected += expected
            self._apart[groups[start]] += down[start:end].T @ across[start:end] - expected
            self._mass[groups[start]] += expected.sum()
        self._boxes += len(boxes)

    def _group(self, picture: str | None) -> int:
        if picture is None:
            self._known = False
            return 0
        group = self._group_of.get(picture)
        if group is None:
            if len(self._group_of) == GROUPS:
                return zlib.crc32(picture.encode("utf-8", "replace")) % GROUPS
            group = self._group_of[picture] = len(self._group_of)
        return group

    @property
    def expected(self) -> np.ndarray:
        """(MAP_CELLS, MAP_CELLS), rows downwards: the expected share of the boxes, placed at random, that cover each cell."""
        return self._expected / max(1, self._boxes)

    def departure(self, replicates: int = 1000, seed: int = 0) -> Departure | None:
        """The total variation between the map of the regions and `expected`, each scaled to sum 1; None without boxes.

        The interval resamples pictures with all of their boxes. It is the basic bootstrap interval, 2 t - t*: a distance
        between maps is larger in resamples, which are noisier, and this takes as much off as resampling adds.
        """
        if self._boxes == 0:
            return None
        found = _distance(self._apart.sum(axis=0)[None], self._mass.sum()[None])[0]
        count = len(self._group_of)
        if not self._known or count < 2:
            return Departure(float(found), None, None, None)
        rng, apart = np.random.default_rng(seed), self._apart[:count].reshape(count, -1)
        again = []
        for start in range(0, replicates, _AT_ONCE):
            weights = rng.multinomial(count, np.full(count, 1 / count), min(_AT_ONCE, replicates - start)).astype(float)
            again.append(_distance(weights @ apart, weights @ self._mass[:count]))
        low, high = np.quantile(np.concatenate(again), (0.025, 0.975))
        ends = np.clip([2 * found - high, 2 * found - low], 0.0, 1.0)
        return Departure(float(found), float(ends[0]), float(ends[1]), count)


def covered_at_random(lengths: np.ndarray) -> np.ndarray:
    """(n, MAP_CELLS): the mean over each cell of the probability that an interval, placed uniformly at random in [0, 1], covers
    a point; an interval for each of `lengths`, in (0, 1]."""
    free = np.maximum(1.0 - lengths, 1e-12)[:, None]
    before, after = np.maximum(free - _EDGES, 0.0), np.maximum(_EDGES - lengths[:, None], 0.0)
    until = _EDGES + (before * before - after * after) / (2.0 * free)
    return np.clip(np.diff(until, axis=1) * MAP_CELLS, 0.0, 1.0)


def _covered(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(n, MAP_CELLS): the share of each cell between `low` and `high`."""
    inside = np.minimum(high[:, None], _EDGES[1:]) - np.maximum(low[:, None], _EDGES[:-1])
    return np.clip(inside, 0.0, None) * MAP_CELLS


def _distance(apart: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Half of the absolute differences of two maps of one mass, summed, in masses: (n, ...) and (n,) -> (n,)."""
    return np.abs(apart.reshape(len(apart), -1)).sum(axis=1) / (2.0 * np.maximum(mass, 1e-300))
