"""Boxes as they may lie in the pictures of a data set, written in any convention: what the tests of box frames share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cos_core.dialogue.box_conventions import Boxes, Convention

Floats = NDArray[np.float64]

MIXES = {
    "one shape": [(640, 480)],
    "photos": [(640, 480), (480, 640), (640, 427), (427, 640), (500, 375), (333, 500)],
    "large": [(1920, 1080), (1080, 1920), (2048, 1536), (1600, 1200), (3000, 2000)],
    "pages": [(1240, 1754), (1700, 2200), (850, 1100), (1654, 2339)],
    "mixed": [(640, 480), (480, 640), (1920, 1080), (1240, 1754), (800, 300), (224, 224)],
}
"""(width, height) of the pictures of a data set."""
KINDS = ("uniform", "centred", "small")
"""Boxes all over the picture; most of them near its middle; small ones all over it."""
ADVERSE = ("skewed", "horizon")
"""Boxes that seldom reach the far sides, as on pages; small ones around the middle of the height, as in streets."""


def places(random: np.random.Generator, count: int, kind: str) -> Floats:
    """(count, 4): boxes in fractions of the picture, x0 y0 x1 y1."""
    small = kind in ("small", "horizon")
    sides = random.uniform(0.02, 0.1, (count, 2)) if small else random.uniform(0.05, 0.6, (count, 2))
    shapes = {"centred": (2, 2), "skewed": (1, 2)}
    where = random.beta(*shapes.get(kind, (1, 1)), (count, 2))
    if kind == "horizon":
        where[:, 1] = random.normal(0.5, 0.05, count).clip(0, 1)
    corner = where * (1 - sides)
    return np.concatenate([corner, corner + sides], axis=1)


def pictures(random: np.random.Generator, count: int, mix: str) -> Floats:
    """(count, 4): sizes, and the sizes that a model of cells of 28 pixels and at most a million pixels sees."""
    sizes = np.array(MIXES[mix], float)[random.integers(0, len(MIXES[mix]), count)]
    scale = np.minimum(1, np.sqrt(1003520 / sizes.prod(1, keepdims=True)))
    return np.concatenate([sizes, np.maximum(28, np.round(sizes * scale / 28) * 28)], axis=1)


def written(fractions: Floats, shown: Floats, convention: Convention) -> Boxes:
    """Boxes in fractions of their pictures as the convention writes them."""
    area = convention.area(shown)
    corners = np.tile(area[:, :2], 2) + fractions * np.tile(area[:, 2:] - area[:, :2], 2)
    corners = np.round(corners) if convention.whole else np.round(corners, 3)
    if convention.order == "y0x0y1x1":
        corners = corners[:, [1, 0, 3, 2]]
    elif convention.order == "x0y0wh":
        corners = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    return Boxes(corners, shown)


def sample(random: np.random.Generator, count: int, kind: str, mix: str, convention: Convention) -> Boxes:
    return written(places(random, count, kind), pictures(random, count, mix), convention)
