"""Conventions of boxes: in which frame, unit and order four numbers stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cos_core.dialogue.box_text import LAST_1024TH
from cos_core.dialogue.prompts import BoxOrder, BoxStyle

Floats = NDArray[np.float64]
Order = BoxOrder | Literal["x0y0wh"]

SMALLER = (0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1)
LARGER = (1.1, 1.25, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0)
"""Copies of pictures, by how many times as large they are. Nearer to 1, boxes that seldom reach the far sides look the same."""


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """`numbers` (n, 4), in the order in which they stand; `pictures` (n, 4): width and height in pixels of each box's picture,
    and the same of the picture as the model sees it."""

    numbers: Floats
    pictures: Floats

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: Any) -> Boxes:
        return Boxes(self.numbers[rows], self.pictures[rows])


@dataclass(frozen=True, slots=True, eq=False)
class Convention:
    """How four numbers may be meant. `name`: for a message, "thousandths of the picture".

    `area`: from pictures (n, 4) to the rectangle of each in this convention's numbers (n, 4), x0 y0 x1 y1. `slack`: how far
    rounding may carry a number. `whole`: numbers are whole, so that 0.5 is none.
    """

    name: str
    area: Callable[[Floats], Floats]
    slack: float
    order: Order = "x0y0x1y1"
    whole: bool = False

    def corners(self, numbers: Floats) -> Floats:
        """(n, 4) as x0, y0, x1, y1."""
        if self.order == "x0y0wh":
            return np.concatenate([numbers[:, :2], numbers[:, :2] + numbers[:, 2:]], axis=1)
        places = [self.order.index(place) // 2 for place in ("x0", "y0", "x1", "y1")]
        return numbers[:, places]

    def fits(self, boxes: Boxes) -> NDArray[np.bool_]:
        """(n,): whether each box may be meant so: corners in order, inside its picture."""
        corners, area = self.corners(boxes.numbers), self.area(boxes.pictures)
        fit = inside(corners, area, self.slack) & ordered(corners)
        if self.whole:
            fit &= ~((boxes.numbers <= 1).all(1) & (boxes.numbers % 1 != 0).any(1))
        return fit

    def fractions(self, boxes: Boxes) -> Floats:
        """(n, 4): the corners as fractions of the picture."""
        return relative(self.corners(boxes.numbers), self.area(boxes.pictures))


def _unit(side: float) -> Callable[[Floats], Floats]:
    return lambda pictures: np.tile([0.0, 0.0, side, side], (len(pictures), 1))


def _padded(pictures: Floats) -> Floats:
    size = pictures[:, :2]
    side = size.max(1, keepdims=True)
    begin = (side - size) // 2 / side
    return np.concatenate([begin, begin + size / side], axis=1)


def _from_zero(sides: Floats) -> Floats:
    return np.concatenate([np.zeros_like(sides), sides], axis=1)


IMAGE = Convention("fractions of the picture", _unit(1.0), 0.0051)
SQUARE = Convention("fractions of the padded square", _padded, 0.0051)
THOUSANDTHS = Convention("thousandths of the picture", _unit(1000.0), 1.5, whole=True)
PARTS_OF_1024 = Convention("1024ths of the picture", _unit(LAST_1024TH + 1.0), 1.5, whole=True)
PIXELS = Convention("pixels of the picture", lambda pictures: _from_zero(pictures[:, :2]), 1.5, whole=True)
SEEN_PIXELS = Convention(
    "pixels of the picture as the model sees it", lambda pictures: _from_zero(pictures[:, 2:]), 1.5, whole=True
)
_DIVIDED = ", divided by the picture's own size"
SEEN_SHARES = Convention(
    SEEN_PIXELS.name + _DIVIDED,
    lambda pictures: _from_zero(pictures[:, 2:] / pictures[:, :2]),
    0.0051,
)
"""What becomes of a box in pixels of the resized picture that is taken for one in pixels of the picture itself."""
_ORDERS: Mapping[Order, str] = {"x0y0x1y1": "", "y0x0y1x1": ", y before x", "x0y0wh": ", as x, y, width, height"}
_UNITS = (IMAGE, SQUARE, THOUSANDTHS, SEEN_PIXELS, PIXELS, PARTS_OF_1024)


def in_order(convention: Convention, order: Order) -> Convention:
    """The same with its numbers in another order."""
    if order == convention.order:
        return convention
    return replace(convention, name=convention.name + _ORDERS.get(order, f", as {order}"), order=order)


IN_TEXT = tuple(in_order(unit, order) for order in _ORDERS for unit in _UNITS)
"""What boxes in texts may be in, the commonest first."""
UNRESIZED = tuple(in_order(unit, order) for order in _ORDERS for unit in _UNITS if unit is not SEEN_PIXELS)
"""The same where the model sees pictures in their own size, or no model is known."""


def of_style(style: BoxStyle) -> Convention:
    """The convention of a family or profile."""
    if style.unit == "fraction":
        found = SQUARE if style.frame == "square" else IMAGE
    else:
        found = {"thousandth": THOUSANDTHS, "1024th": PARTS_OF_1024, "pixel": SEEN_PIXELS}[style.unit]
    return in_order(found, style.order)


def _enlarged(area: Callable[[Floats], Floats], factor: float, pictures: Floats) -> Floats:
    return area(pictures) * factor


def copies(claimed: Convention, factors: Sequence[float]) -> tuple[Convention, ...]:
    """What boxes of `claimed` (IMAGE or PIXELS) may be in if they were measured on copies of the pictures, all so many times as
    large."""
    divided = "" if claimed.whole else _DIVIDED
    return tuple(
        replace(
            claimed,
            name=f"pixels of copies of the picture about {factor:g} times as large{divided}",
            area=partial(_enlarged, claimed.area, factor),
        )
        for factor in factors
    )


def relative(corners: Floats, area: Floats) -> Floats:
    return (corners - np.tile(area[:, :2], 2)) / np.tile(sides(area), 2)


def sides(area: Floats) -> Floats:
    return area[:, 2:] - area[:, :2]


def inside(corners: Floats, area: Floats, slack: Floats | float) -> NDArray[np.bool_]:
    return np.asarray(((corners[:, :2] >= area[:, :2] - slack) & (corners[:, 2:] <= area[:, 2:] + slack)).all(1))


def ordered(corners: Floats) -> NDArray[np.bool_]:
    return np.asarray((corners[:, :2] <= corners[:, 2:]).all(1))
