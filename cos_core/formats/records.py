"""What travels between a store and a file of another format, and the picture sizes that pixels need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cos_core import images
from cos_core.errors import InputError
from cos_core.geometry import Box, clipped
from cos_core.jsonl import OnProblem
from cos_core.types import Annotation, Example

SLACK_PX = 1.0
"""A region may leave its picture by this much, as rounding does, and is clipped; further out it is refused."""
IMPORTED = "imported"
"""The policy of regions that came without one."""
Heats = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A region with a box, and the size in pixels of its upright picture."""

    annotation: Annotation
    box: Box
    width: int
    height: int
    example: Example | None = None


@dataclass(frozen=True, slots=True)
class Incoming:
    """What a file says of one example: an annotation, perhaps with its map, or a `failure`; the question where it has one."""

    example_id: str
    annotation: Annotation | None = None
    failure: str | None = None
    heat: Heats | None = None
    example: Example | None = None


class Sizes:
    """Picture sizes in pixels: as the data states them (`width`, `height` in an example's meta), else from the headers."""

    def __init__(self, images: Path | None) -> None:
        self.images = images
        # Questions on one image follow each other; a small memory keeps each header from being read again.
        self._known = lru_cache(maxsize=1024)(self._read)

    def of(self, image: str | None, meta: Mapping[str, Any] | None = None) -> tuple[int, int]:
        """(width, height). Raises InputError when it is stated nowhere and the picture cannot be read."""
        stated = ((meta or {}).get("width"), (meta or {}).get("height"))
        if all(type(side) is int and side > 0 for side in stated):
            return stated  # type: ignore[return-value]
        if image is None:
            raise InputError("the region names no image")
        return self._known(image)

    def _read(self, image: str) -> tuple[int, int]:
        if self.images is None:
            raise InputError(f"the size of {image} is stated nowhere; give the picture folder (--images)")
        return images.picture_size(self.images, image)


@dataclass(frozen=True, slots=True)
class Source:
    """A file to read: `fingerprint` is what its annotations carry, `data` the questions' file that it is joined with."""

    path: Path
    fingerprint: str
    sizes: Sizes
    data: Path | None
    on_problem: OnProblem


def from_pixels(left: float, top: float, right: float, bottom: float, width: int, height: int) -> Box:
    """The box of pixel corners on a picture. Raises InputError when it leaves the picture by more than SLACK_PX."""
    if min(left, top) < -SLACK_PX or right > width + SLACK_PX or bottom > height + SLACK_PX:
        corners = [round(v, 2) for v in (left, top, right, bottom)]
        raise InputError(f"the box {corners} lies outside the picture of {width}x{height} pixels")
    return clipped(left / width, top / height, right / width, bottom / height, "image")
