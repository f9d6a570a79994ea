"""Boxes and the one converter between their two frames.

Frames (design: a box never travels without its frame):
  "image"   fractions of the original picture's width and height, unpadded;
  "square"  fractions of the side of the square that the picture is centred in (LLaVA-1.5's `image_aspect_ratio = pad`).
Pixels never live in a Box; `Box.pixels` hands them out for cropping and drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cos_core.errors import FrameError, InputError

Frame = Literal["image", "square"]


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-aligned rectangle, x to the right and y down, `0 <= x0 < x1 <= 1` and `0 <= y0 < y1 <= 1`.

    Raises InputError when a coordinate is not finite, is out of range, or the area is not positive.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    frame: Frame = "image"

    def __post_init__(self) -> None:
        values = (self.x0, self.y0, self.x1, self.y1)
        if self.frame not in ("image", "square"):
            raise InputError(f"unknown box frame {self.frame!r}; use 'image' or 'square'")
        # Plain floats are the rule, and millions are made; the comparisons below refuse what is not finite among them.
        plain = type(self.x0) is type(self.y0) is type(self.x1) is type(self.y1) is float
        if not plain and not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
            raise InputError(f"box coordinates must be finite numbers, got {values}")
        if not (0.0 <= self.x0 < self.x1 <= 1.0 and 0.0 <= self.y0 < self.y1 <= 1.0):
            raise InputError(f"a box needs 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, got {values}")
        if self.area == 0.0:
            # Two sides near 1e-200 multiply to nothing, and an IoU would divide by it.
            raise InputError(f"a box needs an area, got {values}")

    def __reduce__(self) -> tuple[Any, ...]:
        # As types.py says: boxes travel by the million.
        return Box, (self.x0, self.y0, self.x1, self.y1, self.frame)

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1), in this box's frame."""
        return (self.x0, self.y0, self.x1, self.y1)

    @property
    def area(self) -> float:
        """Share of the frame's area, in (0, 1]."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the middle, in this box's frame."""
        return ((self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2)

    def contains(self, x: float, y: float) -> bool:
        """Whether the point (x, y), given in this box's frame, lies inside or on the border."""
        return self.x0 <= x <= self.x1 and self.y0 <= y <= self.y1

    def iou(self, other: Box) -> float:
        """Intersection over union, in [0, 1]. Raises FrameError when the frames differ."""
        self._same_frame(other)
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        if width <= 0 or height <= 0:
            return 0.0
        both = width * height
        return both / (self.area + other.area - both)

    def union(self, other: Box) -> Box:
        """The smallest box that holds both. Raises FrameError when the frames differ."""
        self._same_frame(other)
        return Box(min(self.x0, other.x0), min(self.y0, other.y0), max(self.x1, other.x1), max(self.y1, other.y1), self.frame)

    def extended(self, fraction: float) -> Box:
        """Each side moved outwards by `fraction` of that side's length, clipped to the frame (CoS §3.3)."""
        dx, dy = fraction * (self.x1 - self.x0), fraction * (self.y1 - self.y0)
        return clipped(self.x0 - dx, self.y0 - dy, self.x1 + dx, self.y1 + dy, self.frame)

    def pixels(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) in pixels of a `width` x `height` raster of this frame: whole pixels, at least one."""
        left, right = _span(self.x0, self.x1, width)
        top, bottom = _span(self.y0, self.y1, height)
        return left, top, right, bottom

    def _same_frame(self, other: Box) -> None:
        if self.frame != other.frame:
            raise FrameError(f"boxes in frames {self.frame!r} and {other.frame!r} cannot be mixed; convert one with SquarePad")

    def to_json(self) -> dict[str, object]:
        """`{"box": [x0, y0, x1, y1], "frame": ...}`."""
        return {"box": list(self.corners), "frame": self.frame}

    @classmethod
    def from_json(cls, data: object) -> Box:
        """The inverse of `to_json`; a bare list of four numbers is taken as frame "image". Raises InputError."""
        numbers: Any = data
        frame: Any = "image"
        if isinstance(data, dict):
            numbers, frame = data.get("box"), data.get("frame", "image")
        if not isinstance(numbers, list | tuple) or len(numbers) != 4:
            raise InputError(f"a box is [x0, y0, x1, y1], got {str(numbers)[:80]!r}")
        if any(isinstance(v, bool) or not isinstance(v, int | float) for v in numbers):
            raise InputError(f"box coordinates must be finite numbers, got {str(numbers)[:80]}")
        try:
            x0, y0, x1, y1 = (float(v) for v in numbers)
        except OverflowError:
            raise InputError("box coordinates must be finite numbers, got an integer too large for one") from None
        return cls(x0, y0, x1, y1, frame)


def full_box(frame: Frame = "image") -> Box:
    """The whole frame."""
    return Box(0.0, 0.0, 1.0, 1.0, frame)


def central_box(frame: Frame = "image") -> Box:
    """The middle of the frame, half as wide and half as high: a quarter of its area."""
    return Box(0.25, 0.25, 0.75, 0.75, frame)


def clipped(x0: float, y0: float, x1: float, y1: float, frame: Frame) -> Box:
    """The part of the rectangle that lies in the frame. Raises InputError when nothing of it does."""
    return Box(max(0.0, x0), max(0.0, y0), min(1.0, x1), min(1.0, y1), frame)


def bounding(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all of `boxes`. Raises InputError for none, FrameError when they are of two frames."""
    if not boxes:
        raise InputError("the bounding box of no boxes does not exist")
    result = boxes[0]
    for box in boxes[1:]:
        result = result.union(box)
    return result


def _span(low: float, high: float, size: int) -> tuple[int, int]:
    """Fractions to whole pixels, half to even as Pillow rounds, kept inside [0, size] and never empty."""
    start, end = round(low * size), round(high * size)
    if end <= start:
        # A box thinner than a pixel: take the pixel that holds its middle.
        start = min(int((low + high) / 2 * size), size - 1)
        end = start + 1
    return start, min(end, size)


@dataclass(frozen=True, slots=True)
class SquarePad:
    """The only converter between the frames, for a picture of `width` x `height` pixels.

    The picture stands in a square of side S = max(width, height), offset by (S - short) // 2 pixels on the short axis,
    exactly as LLaVA's `expand2square` pads (upstream §7).
    """

    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise InputError(f"an image needs at least one pixel, got {self.width}x{self.height}")

    @property
    def side(self) -> int:
        """Side of the square, in pixels."""
        return max(self.width, self.height)

    @property
    def offset(self) -> tuple[int, int]:
        """(left, top) of the picture inside the square, in pixels."""
        return ((self.side - self.width) // 2, (self.side - self.height) // 2)

    def to_square(self, box: Box) -> Box:
        """Frame "image" to "square". Raises FrameError for a box that is already in "square"."""
        if box.frame != "image":
            raise FrameError(f"to_square needs a box in frame 'image', got {box.frame!r}")
        (dx, dy), s = self.offset, self.side
        return clipped(
            (box.x0 * self.width + dx) / s,
            (box.y0 * self.height + dy) / s,
            (box.x1 * self.width + dx) / s,
            (box.y1 * self.height + dy) / s,
            "square",
        )

    def to_image(self, box: Box) -> Box:
        """Frame "square" to "image", clipped to the picture.

        Raises FrameError for a box that is already in "image", InputError for one that lies wholly in the padding.
        """
        if box.frame != "square":
            raise FrameError(f"to_image needs a box in frame 'square', got {box.frame!r}")
        (dx, dy), s = self.offset, self.side
        return clipped(
            (box.x0 * s - dx) / self.width,
            (box.y0 * s - dy) / self.height,
            (box.x1 * s - dx) / self.width,
            (box.y1 * s - dy) / self.height,
            "image",
        )


def in_frame(box: Box, frame: Frame, size: tuple[int, int]) -> Box:
    """The box in the frame asked for; `size`: (width, height) of its picture in pixels.

    Raises InputError for a box that lies wholly in the padding of the square, asked for in frame "image".
    """
    if box.frame == frame:
        return box
    pad = SquarePad(*size)
    return pad.to_square(box) if frame == "square" else pad.to_image(box)
