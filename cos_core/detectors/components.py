"""Connected areas that differ from the colour of the picture's border: proposals for things on a plain background.

Label-free and model-free. On photographs, where no colour is the background's, it finds one big area or none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cos_core.errors import InputError
from cos_core.geometry import Box, clipped
from cos_core.interfaces import Detector
from cos_core.types import Regions

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Components(Detector):
    """`side`: the longer side of the reduced picture that is looked at, in pixels; `contrast`: how far (0-255) a colour channel
    must lie from the border's median; `least`: the smallest area, in reduced pixels; `margin`: added on each side, as a
    fraction of the picture; `most`: how many areas are kept, the largest first.
    """

    side: int = 96
    contrast: int = 40
    least: int = 20
    margin: float = 0.025
    most: int = 36

    parallel: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.side, self.least, self.most) < 1 or self.contrast < 0 or self.margin < 0:
            raise InputError("components needs a positive side, least and most, and no negative contrast or margin")

    def detect(self, image: Image, path: str = "") -> Regions:
        """Bounding boxes of the areas, the largest area first."""
        shrunk = image.copy()
        shrunk.thumbnail((self.side, self.side))
        pixels = np.asarray(shrunk.convert("RGB")).astype(np.int16)
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        different = np.abs(pixels - np.median(border, axis=0)).max(-1) > self.contrast
        height, width = different.shape
        areas = [rows_columns for rows_columns in _areas(different) if len(rows_columns[0]) >= self.least]
        areas.sort(key=lambda area: -len(area[0]))
        boxes = [self._box(rows, columns, height, width) for rows, columns in areas[: self.most]]
        return Regions(tuple(boxes), (1.0,) * len(boxes))

    def _box(self, rows: np.ndarray, columns: np.ndarray, height: int, width: int) -> Box:
        return clipped(
            columns.min() / width - self.margin,
            rows.min() / height - self.margin,
            (columns.max() + 1) / width + self.margin,
            (rows.max() + 1) / height + self.margin,
            "image",
        )


def build() -> Components:
    return Components()


def _areas(mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rows, columns) of each 4-connected area of a (height, width) mask."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        # Every pixel takes the largest label among itself and its neighbours, until nothing changes.
        grown = labels.copy()
        np.maximum(grown[1:], labels[:-1], out=grown[1:])
        np.maximum(grown[:-1], labels[1:], out=grown[:-1])
        np.maximum(grown[:, 1:], labels[:, :-1], out=grown[:, 1:])
        np.maximum(grown[:, :-1], labels[:, 1:], out=grown[:, :-1])
        grown[~mask] = 0
        if (grown == labels).all():
            areas = [np.nonzero(labels == label) for label in np.unique(labels) if label]
            return [(rows, columns) for rows, columns in areas]
        labels = grown
