"""Windows of several sizes over the whole image, the same for every picture: no model, nothing to train.

Windows are square in pixels, so that they reach the encoder undistorted and unpadded, and lie inside the picture. Sizes and
places are fractions of its shorter side; along the longer side there are more windows at the same spacing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cos_core.errors import InputError
from cos_core.geometry import Box
from cos_core.interfaces import Detector
from cos_core.types import Regions

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Grid(Detector):
    """`windows`: (side as a fraction of the shorter side, windows along it) for each size; `most`: along the longer side.

    The default, 5x5 windows of side 0.3 and 2x2 of side 0.5, gives 29 windows on a square picture.
    """

    windows: tuple[tuple[float, int], ...] = ((0.3, 5), (0.5, 2))
    most: int = 20

    parallel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.windows or self.most < 1:
            raise InputError("a grid needs at least one size of windows, and one window along each side")
        for side, count in self.windows:
            if not (0.0 < side <= 1.0) or count < 1:
                raise InputError(f"a grid's windows need a side in (0, 1] and a count of at least 1, got {side} and {count}")

    def detect(self, image: Image, path: str = "") -> Regions:
        """The windows from left to right, top to bottom, size by size; windows that fall together on tiny pictures once."""
        width, height = image.size
        shorter = min(width, height)
        boxes: dict[tuple[int, int, int], Box] = {}
        for fraction, count in self.windows:
            side = max(1, round(fraction * shorter))
            for top in self._starts(height, side, shorter, count):
                for left in self._starts(width, side, shorter, count):
                    box = Box(left / width, top / height, (left + side) / width, (top + side) / height)
                    boxes.setdefault((left, top, side), box)
        return Regions(tuple(boxes.values()), (1.0,) * len(boxes))

    def _starts(self, length: int, side: int, shorter: int, count: int) -> list[int]:
        """Where windows of `side` pixels begin along `length` pixels: evenly, from border to border; one alone centred."""
        room = length - side
        if length > shorter:
            step = (shorter - side) / (count - 1) if count > 1 and shorter > side else side
            count = min(self.most, 1 + math.ceil(room / step - 1e-9))
        if count == 1:
            return [room // 2]
        return [round(i * room / (count - 1)) for i in range(count)]


def build(windows: tuple[tuple[float, int], ...] | None = None, most: int = 20) -> Grid:
    return Grid(most=most) if windows is None else Grid(tuple((float(s), int(n)) for s, n in windows), most)
