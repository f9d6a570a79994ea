"""What the files of families share: the grid of a tower, tiles, and a checkpoint's image processor's own functions."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from cos_core.models.grids import Grid


def patches(config: Any) -> tuple[int, int]:
    """(rows, columns) of patches that the vision tower of a model's configuration makes of a picture of its size."""
    (high, wide), (patch_high, patch_wide) = _both(config, "image_size"), _both(config, "patch_size")
    return high // patch_high, wide // patch_wide


def _both(config: Any, name: str) -> tuple[int, int]:
    """A setting of the vision tower along y and x; files have one number or two."""
    value = getattr(config.vision_config, name)
    high, wide = value if isinstance(value, list | tuple) else (value, value)
    return int(high), int(wide)


def tiled(rows: int, columns: int, tile: Grid) -> tuple[Grid, ...]:
    """The grids of a picture that is cut into `rows` x `columns` tiles, then shown whole; of one that is not cut, its own.

    `tile`: the grid of each.
    """
    if rows * columns <= 1:
        return (tile,)
    areas = [(j / columns, i / rows, (j + 1) / columns, (i + 1) / rows) for i in range(rows) for j in range(columns)]
    return (*(Grid(tile.rows, tile.columns, area) for area in areas), tile)


def library(image_processor: Any) -> Any:
    """The module of `transformers` that an image processor is from, for the functions beside its class."""
    return sys.modules[type(image_processor).__module__]


def stand_in(size: tuple[int, int]) -> np.ndarray:
    """(3, height, width) without memory, for functions that read nothing of a picture but its shape."""
    return np.broadcast_to(np.uint8(0), (3, size[1], size[0]))
