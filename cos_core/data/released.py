"""The region file that the Chain-of-Spot authors released: `{"000007_id_q2": {"params": [top, left, side]}}`.

The six digits are the sample's row in the very file that was annotated, so a filtered or shuffled file silently gets other
samples' regions there. Here a region is joined by id and question; the row number is only compared.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from array import array
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cos_core.errors import InputError
from cos_core.files.big_json import read_members
from cos_core.geometry import Box, SquarePad, clipped
from cos_core.types import Example

_KEY = re.compile(r"(\d{6,18})_(.*)_q(\d{1,18})", re.DOTALL)
_PAIR = struct.Struct("<2Q")
_SNAP_PX = 1e-6
"""Pixels that went through fractions and back are off by less than this."""


def key_of(example: Example) -> str:
    """The key of an example's region: `<row, 6 digits>_<id, "/" written "_">_q<question>`, as the released loader forms it.

    Raises InputError for an example without `index`.
    """
    if example.index is None:
        raise InputError(f"the example {example.id!r} does not say its row in the data")
    return _key(example.index, _name(example), example.turn or 0)


def _name(example: Example) -> str:
    # A sample that was renamed because its id was taken has its original id in the file.
    name = next(name for name in (example.record_id, example.sample, example.id) if name is not None)
    return str(name).replace("/", "_")


@dataclass(frozen=True, slots=True)
class Square:
    """A region as released: a square of `side` pixels, its corner at (`left`, `top`), in pixels of the unpadded picture."""

    top: float
    left: float
    side: float

    @classmethod
    def around(cls, box: Box, width: int, height: int) -> Square:
        """The square for a box (frame "image") on a picture of `width` x `height` pixels, in whole pixels.

        Its side is the box's longer one, it has the box's centre, and is moved right or down until it begins on the picture;
        its far edges may hang over, where the released loader clips (near edges it does not). It holds the box, and its side
        is less than two pixels more than the box's longer one.
        """
        left, top, right, bottom = box.x0 * width, box.y0 * height, box.x1 * width, box.y1 * height
        side = math.ceil(max(right - left, bottom - top) - _SNAP_PX)
        x = max(0, math.floor((left + right - side) / 2 + _SNAP_PX))
        y = max(0, math.floor((top + bottom - side) / 2 + _SNAP_PX))
        # Whole pixels may have moved it off the box's far edge.
        side = max(1, side, math.ceil(right - x - _SNAP_PX), math.ceil(bottom - y - _SNAP_PX))
        return cls(float(y), float(x), float(side))

    def box(self, width: int, height: int) -> Box:
        """The part of the square that lies on a picture of `width` x `height`, frame "image". Raises InputError for none."""
        left, top = self.left / width, self.top / height
        return clipped(left, top, left + self.side / width, top + self.side / height, "image")

    def inside(self, width: int, height: int, slack: float = 1.0) -> bool:
        """Whether the square begins on the picture and is no larger than it, give or take `slack` pixels.

        Far edges may hang over: the released squares do, and are clamped.
        """
        near = -slack <= self.left < width and -slack <= self.top < height
        return near and 0 < self.side <= max(width, height) + slack

    def on_canvas(self, pad: SquarePad) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in pixels of the padded square as the released code cuts it: far edges clamped, near ones not."""
        dx, dy = pad.offset
        x0, y0 = self.left + dx, self.top + dy
        return x0, y0, min(x0 + self.side, pad.width + dx), min(y0 + self.side, pad.height + dy)


@dataclass(frozen=True, slots=True)
class Shifted:
    """A key whose row number is not its sample's: `row` in the key, `actual` in the data."""

    key: str
    row: int
    actual: int

    def __str__(self) -> str:
        return f"the region {self.key!r} was made for row {self.row}, but the sample is row {self.actual}"


class ReleasedRegions:
    """The file, joined by sample id and question. `find(example)` is what training calls.

    Regions are stored in arrays, some fifty bytes each, as the released file has millions.
    """

    def __init__(self, path: Path) -> None:
        """Raises InputError when the file is not in the released layout."""
        self.path = path
        self.bad: dict[str, str] = {}
        self._unusual: dict[tuple[int, int], str] = {}
        digests, more, rows, numbers = array("Q"), array("Q"), array("q"), array("d")
        for key, value in read_members(path):
            match = _KEY.fullmatch(key)
            if match is None:
                self.bad[key] = "the key is not '<row>_<id>_q<k>'"
                continue
            square = _square(value)
            row, name, k = int(match[1]), match[2], int(match[3])
            if square is None:
                self.bad[key] = "`params` is not [top, left, side] in pixels"
                continue
            digest = _digest(name, k)
            if key != _key(row, name, k):
                self._unusual[digest[0], row] = key
            digests.append(digest[0])
            more.append(digest[1])
            rows.append(row)
            numbers.extend((square.top, square.left, square.side))
        # Stable: regions of one name and question stay in the order of the file.
        order = np.argsort(np.array(digests, np.uint64), kind="stable")
        # Python's own arrays: single numbers are read from them several times as fast.
        self._digests, self._more = array("Q", np.array(digests)[order].tobytes()), array("Q", np.array(more)[order].tobytes())
        self._rows = array("q", np.array(rows)[order].tobytes())
        self._squares = array("d", np.array(numbers).reshape(-1, 3)[order].tobytes())

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, example: Example) -> tuple[str, int, Square] | None:
        """(key, row in the key, square) of an example; where several rows share the id, the one at the sample's own row."""
        name, k = _name(example), example.turn or 0
        first, second = _digest(name, k)
        index = example.index
        match: int | None = None
        for place in range(bisect_left(self._digests, first), len(self._digests)):
            if self._digests[place] != first:
                break
            # Of a key that is there twice the last one counts, as in any JSON object.
            if self._more[place] == second and (match is None or self._rows[place] in (index, self._rows[match])):
                match = place
        if match is None:
            return None
        row = self._rows[match]
        return self._unusual.get((first, row)) or _key(row, name, k), row, Square(*self._squares[3 * match : 3 * match + 3])

    def shifted(self, example: Example) -> Shifted | None:
        """The example's key when it names another row than the one the example stands in."""
        region = self.find(example)
        return None if region is None else shifted_from(example, *region[:2])


def shifted_from(example: Example, key: str, row: int) -> Shifted | None:
    """The key that was found for an example, when its row is another than the one the example stands in."""
    return None if example.index is None or row == example.index else Shifted(key, row, example.index)


def _key(row: int, name: str, question: int) -> str:
    return f"{row:06d}_{name}_q{question}"


def _digest(name: str, question: int) -> tuple[int, int]:
    """128 bits that stand for a sample's name and a question, in two numbers."""
    text = f"{question} {name}".encode("utf-8", "surrogatepass")
    first, second = _PAIR.unpack(hashlib.blake2b(text, digest_size=16).digest())
    return first, second


def _square(value: object) -> Square | None:
    params = value.get("params") if isinstance(value, dict) else None
    if not isinstance(params, list) or len(params) < 3:
        return None
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in params[:3]):
        return None
    top, left, side = (float(v) for v in params[:3])
    return Square(top, left, side) if side > 0 else None
