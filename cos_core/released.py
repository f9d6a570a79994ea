"""The region file that the Chain-of-Spot authors released: `{"000007_id_q2": {"params": [top, left, side]}}`.

The six digits are the sample's row in the very file that was annotated, so a filtered or shuffled file silently gets other
samples' regions there. Here a region is joined by id and question; the row number is only compared.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from cos_core.errors import InputError
from cos_core.geometry import Box, SquarePad, clipped
from cos_core.jsonl import decode, open_input
from cos_core.types import Example

_KEY = re.compile(r"(\d{6,})_(.*)_q(\d+)", re.DOTALL)
_SNAP_PX = 1e-6
"""Pixels that went through fractions and back are off by less than this."""


def key_of(example: Example) -> str:
    """The key of an example's region: `<row, 6 digits>_<id, "/" written "_">_q<question>`, as the released loader forms it.

    Raises InputError for an example that does not say its row.
    """
    row = example.meta.get("index")
    if not isinstance(row, int):
        raise InputError(f"the example {example.id!r} does not say its row in the data")
    return f"{row:06d}_{_name(example)}_q{_question(example)}"


def _name(example: Example) -> str:
    # A sample whose id another had before has a name of its own here, but not in the file.
    name = example.meta.get("record_id", example.meta.get("sample", example.id))
    return str(name).replace("/", "_")


def _question(example: Example) -> int:
    return int(example.meta.get("turn", 0))


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


class ReleasedRegions:
    """The file, joined by sample id and question. Answers `region(example)` as training asks it."""

    def __init__(self, path: Path) -> None:
        """Raises InputError when the file is not in the released layout."""
        with open_input(path) as file:
            try:
                data = decode(file.read())
            except ValueError as error:
                raise InputError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(data, dict):
            raise InputError(f"{path} is not a region file: expected an object of '<row>_<id>_q<k>' keys")
        self.path = path
        self.bad: dict[str, str] = {}
        self._by_name: dict[tuple[str, int], list[tuple[int, str, Square]]] = {}
        for key, value in data.items():
            match = _KEY.fullmatch(key)
            if match is None:
                self.bad[key] = "the key is not '<row>_<id>_q<k>'"
                continue
            square = _square(value)
            if square is None:
                self.bad[key] = "`params` is not [top, left, side] in pixels"
                continue
            row, name, k = int(match[1]), match[2], int(match[3])
            self._by_name.setdefault((name, k), []).append((row, key, square))

    def __len__(self) -> int:
        return sum(map(len, self._by_name.values()))

    def find(self, example: Example) -> tuple[str, int, Square] | None:
        """(key, row in the key, square) of an example; where several rows share the id, the one at the sample's own row."""
        found = self._by_name.get((_name(example), _question(example)))
        if not found:
            return None
        row, key, square = min(found, key=lambda entry: entry[0] != example.meta.get("index"))
        return key, row, square

    def shifted(self, example: Example) -> Shifted | None:
        """The example's key when it names another row than the one the example stands in."""
        found = self.find(example)
        index = example.meta.get("index")
        if found is None or index is None or found[1] == index:
            return None
        return Shifted(found[0], found[1], int(index))


def _square(value: object) -> Square | None:
    params = value.get("params") if isinstance(value, dict) else None
    if not isinstance(params, list) or len(params) < 3:
        return None
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in params[:3]):
        return None
    top, left, side = (float(v) for v in params[:3])
    return Square(top, left, side) if side > 0 else None
