"""Records between a store and a file of another format, and the picture sizes that pixel boxes need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cos_core.data.formats.frames import FileBoxes
from cos_core.errors import InputError
from cos_core.files.images import Header, read_header
from cos_core.files.jsonl import OnProblem
from cos_core.files.picture_files import Root
from cos_core.geometry import Box, clipped
from cos_core.interfaces import Reporter
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
    """A file's record of one example: an annotation, perhaps with its map, or a `failure`; the question where it has one."""

    example_id: str
    annotation: Annotation | None = None
    failure: str | None = None
    heat: Heats | None = None
    example: Example | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """What pixel boxes are measured in: `width` x `height` pixels, which the EXIF `orientation` (1 to 8) turns upright."""

    width: int
    height: int
    orientation: int = 1

    def upright(self, box: Box) -> Box:
        """A box in fractions of these pixels as one in fractions of the picture as it is shown."""
        ends = [_TURNS[self.orientation](x, y) for x, y in ((box.x0, box.y0), (box.x1, box.y1))]
        (x0, x1), (y0, y1) = (sorted(values) for values in zip(*ends, strict=True))
        return Box(x0, y0, x1, y1, "image")


_TURNS: Mapping[int, Callable[[float, float], tuple[float, float]]] = {
    1: lambda x, y: (x, y),
    2: lambda x, y: (1 - x, y),
    3: lambda x, y: (1 - x, 1 - y),
    4: lambda x, y: (x, 1 - y),
    5: lambda x, y: (y, x),
    6: lambda x, y: (1 - y, x),
    7: lambda x, y: (1 - y, 1 - x),
    8: lambda x, y: (y, 1 - x),
}
"""Where a point of the stored picture, in fractions, stands in the upright one, by the EXIF orientation."""


class Sizes:
    """Picture sizes in pixels, from the headers of the pictures and from what the data states (`width`, `height`).

    Counts for the report: `turned` frames by "clear" or "unclear" (see `frame`), and pictures that could not be read to
    compare their size with the stated one (`unseen`).
    """

    def __init__(self, images: Root) -> None:
        self.images = images
        self.turned: Counter[str] = Counter()
        self.unseen = 0
        # Questions on one image follow each other; a small memory keeps each header from being read again.
        self._known = lru_cache(maxsize=1024)(self._read)

    def of(self, image: str | None, meta: Mapping[str, Any] | None = None) -> tuple[int, int]:
        """(width, height) as the picture is shown: its own where it can be read, else what is stated. Raises InputError."""
        header = self._known(image) if image is not None and self.images is not None else None
        if isinstance(header, Header):
            return header.size
        return _stated(meta) or self._missing(image, header)

    def frame(self, image: str | None, meta: Mapping[str, Any] | None = None, *, shown: bool = False) -> Frame:
        """What the boxes of an image are measured in, by the size that the data states.

        That of the picture as shown, or one of its shape: the picture as shown. That of the pixels as stored, where EXIF turns
        the picture: those; a size that is both (half a turn, a mirrored or a square picture) counts as stored, unless `shown`
        says that the data's author knows pictures upright only. None: the picture as shown. A stated size is used unchecked
        where there is no picture. Raises InputError for one that fits neither, or where none is found.
        """
        stated = _stated(meta)
        header = self._known(image) if image is not None and self.images is not None else None
        if not isinstance(header, Header):
            self.unseen += header is not None and stated is not None
            return Frame(*(stated or self._missing(image, header)))
        if stated is None:
            return Frame(*header.size)
        upright, stored = _fits(stated, header.size), _fits(stated, header.stored)
        certain = upright and (shown or (stated == header.size != header.stored))
        if stored and header.orientation != 1 and not certain:
            self.turned["unclear" if upright else "clear"] += 1
            return Frame(*stated, header.orientation)
        if upright:
            return Frame(*stated)
        has = "{}x{}".format(*header.size) + (
            "" if header.stored == header.size else ", stored as {}x{}".format(*header.stored)
        )
        raise InputError(f"the stated size {stated[0]}x{stated[1]} is not that of the image {image!r}, which has {has} pixels")

    def tell(self, reporter: Reporter) -> None:
        """Reports the counts `turned` and `unseen`."""
        if total := self.turned.total():
            unclear = self.turned["unclear"]
            more = f" (for {unclear} of them the stated size is the same either way)" if unclear else ""
            reporter.warn(f"{total} boxes are of pixels as stored, and were turned as EXIF turns their pictures{more}")
        if self.unseen:
            reporter.warn(f"{self.unseen} boxes are of pictures that cannot be read here; their stated sizes are believed")

    def _missing(self, image: str | None, why: InputError | None) -> tuple[int, int]:
        if image is None:
            raise InputError("the region names no image")
        raise why or InputError(f"the size of {image} is stated nowhere; give the picture folder (--images)")

    def _read(self, image: str) -> Header | InputError:
        try:
            return read_header(self.images, image)
        except InputError as error:
            return error


def _stated(meta: Mapping[str, Any] | None) -> tuple[int, int] | None:
    width, height = ((meta or {}).get(name) for name in ("width", "height"))
    return (width, height) if type(width) is int and type(height) is int and min(width, height) > 0 else None


def _fits(stated: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a picture of one size may be the other, enlarged: the same shape, up to the rounding of a pixel."""
    return abs(stated[0] * size[1] / (stated[1] * size[0]) - 1) <= 1 / min(*stated, *size) + 1e-6


@dataclass(frozen=True, slots=True)
class ImportSource:
    """A file to read: `fingerprint` is what its annotations carry, `data` the questions' file that it is joined with.

    `boxes` takes its boxes for the statistics of their frame.
    """

    path: Path
    fingerprint: str
    sizes: Sizes
    data: Path | None
    on_problem: OnProblem
    boxes: FileBoxes

    def measure(self, record: Annotation) -> None:
        """Takes a box in fractions for the statistics of frames, where the size of its picture can be found."""
        if record.box is None or record.box.frame != "image" or self.sizes.images is None:
            return
        if self.boxes.wants():
            with suppress(InputError):
                self.boxes.add(record.box.corners, self.sizes.of(record.image), record.image, record.example_id)


def from_pixels(left: float, top: float, right: float, bottom: float, frame: Frame) -> Box:
    """The box of pixel corners in a frame, on the picture as it is shown.

    Raises InputError when it leaves the picture by more than SLACK_PX.
    """
    width, height = frame.width, frame.height
    if min(left, top) < -SLACK_PX or right > width + SLACK_PX or bottom > height + SLACK_PX:
        corners = [round(v, 2) for v in (left, top, right, bottom)]
        raise InputError(f"the box {corners} lies outside the picture of {width}x{height} pixels")
    return frame.upright(clipped(left / width, top / height, right / width, bottom / height, "image"))
