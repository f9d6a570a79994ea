"""Which part of the picture each of its image tokens looks at.

The image tokens of a picture are a sequence of grids, one after the other: the whole picture, tiles of it, a thumbnail. What
differs from family to family is how many there are and which part of the picture each covers (Family.grids).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cos_core.errors import InputError
from cos_core.geometry import SquarePad

Area = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in fractions of the original picture's width and height; beyond [0, 1] lies padding."""

WHOLE: Area = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Grid:
    """`rows` x `columns` image tokens, row by row, over `area`.

    Tokens among them that look at no part: `newlines`, one behind each row ("row"), one at the end ("end"), or none; and a
    `class_token` in front. A grid without columns has nothing but its newlines. Raises InputError for one without tokens.
    """

    rows: int
    columns: int
    area: Area = WHOLE
    newlines: Literal["none", "row", "end"] = "none"
    class_token: bool = False

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < (0 if self.newlines == "row" else 1):
            raise InputError(f"a grid of image tokens has rows and columns, got {self.rows} x {self.columns}")

    def __len__(self) -> int:
        return self.class_token + self.rows * self.columns + {"none": 0, "row": self.rows, "end": 1}[self.newlines]

    def areas(self) -> list[Area | None]:
        """The part of the picture that each token looks at, in the order of the sequence; None for one that looks at none."""
        x0, y0, x1, y1 = self.area
        wide, high = (x1 - x0) / max(1, self.columns), (y1 - y0) / self.rows
        found: list[Area | None] = [None] * self.class_token
        for row in range(self.rows):
            top, bottom = y0 + row * high, y0 + (row + 1) * high
            found += [(x0 + column * wide, top, x0 + (column + 1) * wide, bottom) for column in range(self.columns)]
            if self.newlines == "row":
                found.append(None)
        return [*found, None] if self.newlines == "end" else found


def areas(grids: Sequence[Grid]) -> list[Area | None]:
    """The part of the picture that each of its image tokens looks at, in the order of the sequence."""
    return [area for grid in grids for area in grid.areas()]


def tokens(grids: Sequence[Grid]) -> int:
    """How many image tokens the grids have together."""
    return sum(map(len, grids))


def square(width: int, height: int) -> Area:
    """The square that a picture of `width` x `height` pixels is centred in."""
    pad = SquarePad(width, height)
    (left, top), side = pad.offset, pad.side
    return -left / width, -top / height, (side - left) / width, (side - top) / height
