"""The box codec (CoS Eq. 8): the one place that writes a box as text and reads what models write.

Text speaks of the square frame. `read_box` never raises on any text: it returns a box, or None, and how it got there.
`BoxGrammar` is the set of texts that `write_box` can write, for engines that let nothing else come out.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property

from cos_core.dialogue.prompts import Profile
from cos_core.errors import FrameError, InputError
from cos_core.geometry import Box
from cos_core.types import BoxStatus

# Not inside a word or another number (the 0 of "x0", the "-" of "0.1-0.3"); letters of scripts without spaces may stand before.
_NUMBER = r"(?<![A-Za-z0-9_.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?"
_NUMBERS = re.compile(rf"({_NUMBER}|\bnan\b|\binf(?:inity)?\b)\s*(%?)", re.IGNORECASE)
_BRACKETED = re.compile(r"[\[(]([^\[\]()]*)[\])]")
_CLEAN = re.compile(r"\[(\d(?:\.\d{1,6})?), (\d(?:\.\d{1,6})?), (\d(?:\.\d{1,6})?), (\d(?:\.\d{1,6})?)\]")


def write_box(box: Box, profile: Profile) -> str:
    """The text of a box in frame "square", e.g. `[0.250, 0.500, 0.750, 1.000]`.

    Coordinates are rounded to the profile's decimals (or snapped to its `box_step`); a side that rounding would make empty is
    widened by one unit. Raises FrameError for a box in frame "image".
    """
    if box.frame != "square":
        raise FrameError(f"box text speaks of the square frame, got a box in {box.frame!r}; use SquarePad.to_square")
    x0, x1 = _rounded(box.x0, box.x1, profile)
    y0, y1 = _rounded(box.y0, box.y1, profile)
    values = (x0, y0, x1, y1) if profile.box_order == "x0y0x1y1" else (x0, x1, y0, y1)
    return "[" + ", ".join(_digits(v, profile) for v in values) + "]"


def _digits(value: float, profile: Profile) -> str:
    digits = f"{value:.{profile.box_decimals}f}"
    # Unpadded, as Python's str writes a rounded float: 0.5, 1.0; but never 1e-05.
    return digits if profile.box_pad_zeros else digits[:3] + digits[3:].rstrip("0")


def _rounded(low: float, high: float, profile: Profile) -> tuple[float, float]:
    unit = profile.box_step or 10.0**-profile.box_decimals
    # Python's round looks at a number's exact value; dividing first would turn some halves the other way.
    near = (low, high) if profile.box_step else (round(low, profile.box_decimals), round(high, profile.box_decimals))
    first, last = round(near[0] / unit), round(near[1] / unit)
    if last <= first:
        first = min(math.floor((low + high) / 2 / unit), math.ceil(1 / unit) - 1)
        last = first + 1
    return max(0.0, first * unit), min(1.0, last * unit)


def read_box(text: str, profile: Profile) -> tuple[Box | None, BoxStatus]:
    """The box that `text` names, in frame "square", and its status.

    ok: four numbers in brackets, as the codec writes them (any of 0-6 decimals). repaired: read after ignoring words, missing
    brackets or spaces, further numbers, percent signs, or after swapping corners. clamped: a coordinate lay outside [0, 1].
    degenerate (None): no area left. unparsable (None): not four finite numbers.

    Under `box_reader` "released" the text is taken apart as the released evaluation does, and what that cannot read, or reads
    as swapped corners, is unparsable. Two departures remain: it lets coordinates outside [0, 1] through (black pixels), here
    they are clamped; and a box without area, which there ends the run or becomes a plain picture, is degenerate.
    """
    clean = _CLEAN.fullmatch(text.strip())
    status: BoxStatus = "ok" if clean else "repaired"
    find = _as_released if profile.box_reader == "released" else _find_numbers
    values = [float(v) for v in clean.groups()] if clean else find(text)
    if values is None:
        return None, "unparsable"
    x0, y0, x1, y1 = values if profile.box_order == "x0y0x1y1" else (values[0], values[2], values[1], values[3])
    if x0 > x1 or y0 > y1:
        if profile.box_reader == "released":
            return None, "unparsable"
        x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
        status = "repaired"
    inside = [min(1.0, max(0.0, v)) for v in (x0, y0, x1, y1)]
    if inside != [x0, y0, x1, y1]:
        status = "clamped"
    if inside[0] >= inside[2] or inside[1] >= inside[3] or (inside[2] - inside[0]) * (inside[3] - inside[1]) == 0.0:
        return None, "degenerate"
    return Box(inside[0], inside[1], inside[2], inside[3], "square"), status


def _find_numbers(text: str) -> list[float] | None:
    """The first four numbers of the first bracket that has four, else of the whole text; None when there are none."""
    for part in [*_BRACKETED.findall(text), text]:
        values = [_value(number, percent) for number, percent in _NUMBERS.findall(part)][:4]
        if len(values) == 4 and all(math.isfinite(v) for v in values):
            return values
    return None


def _as_released(text: str) -> list[float] | None:
    """The released parser: first and last character off, split at comma and space, `float` of the first four."""
    parts = text.strip()[1:-1].split(", ")[:4]
    try:
        values = [float(part) for part in parts]
    except ValueError:
        return None
    return values if len(values) == 4 and all(math.isfinite(v) for v in values) else None


def _value(number: str, percent: str) -> float:
    value = float(number)
    return value / 100 if percent else value


_LAST = "\x7f"
"""Sorts behind every character of a number."""


@dataclass(frozen=True)
class BoxGrammar:
    """The texts that `write_box` writes under a profile (see interfaces.Grammar); the second corner always beyond the first.

    Raises InputError for a profile whose raster has more than ten thousand lines.
    """

    profile: Profile

    def __post_init__(self) -> None:
        if (self.profile.box_step or 10.0**-self.profile.box_decimals) < 1e-4:
            raise InputError(f"profile {self.profile.name!r}: boxes of more than four decimals cannot be decoded by grammar")

    @property
    def alphabet(self) -> frozenset[str]:
        """See interfaces.Grammar, here and below."""
        return frozenset("[], .0123456789")

    @cached_property
    def pattern(self) -> str:
        """Four numbers of the raster in brackets. That a second corner lies beyond the first, no short expression can say."""
        decimals = self.profile.box_decimals
        if self.profile.box_step:
            number = "|".join(re.escape(number) for number in self._numbers)
        elif self.profile.box_pad_zeros:
            number = rf"0\.[0-9]{{{decimals}}}|1\.0{{{decimals}}}"
        else:
            longer = rf"|0\.[0-9]{{1,{decimals - 1}}}[1-9]" if decimals > 1 else ""
            number = rf"0\.[0-9]{longer}|1\.0"
        return rf"\[({number}), ({number}), ({number}), ({number})\]"

    @cached_property
    def _numbers(self) -> list[str]:
        """Every number of the raster as it is written, ascending; values of one style stand in the order of their texts."""
        unit = self.profile.box_step or 10.0**-self.profile.box_decimals
        return sorted({_digits(min(1.0, i * unit), self.profile) for i in range(math.ceil(1 / unit) + 1)})

    def follows(self, prefix: str) -> frozenset[str]:
        state = self._state(prefix)
        if state is None:
            return frozenset()
        literal, number, low, high = state
        if literal:
            return frozenset(literal[0])
        mark = bisect_right(self._numbers, number, low, high)
        whole = low < mark and self._numbers[mark - 1] == number
        # Numbers that begin with this one and go on stand right behind it, in the order of their next characters.
        longer = set()
        while mark < high and self._numbers[mark].startswith(number):
            longer.add(self._numbers[mark][len(number)])
            mark = bisect_right(self._numbers, self._numbers[mark][: len(number) + 1] + _LAST, mark, high)
        return frozenset(longer | ({"]" if prefix.count(",") == 3 else ","} if whole else set()))

    def viable(self, prefix: str) -> bool:
        return self._state(prefix) is not None

    def finish(self, prefix: str) -> str:
        """The smallest numbers that fit, one line of the raster apart where corners are still to come."""
        while state := self._state(prefix):
            literal, number, low, high = state
            if not literal and low == high:
                break
            # The first number in order is a whole one as early as any that begins with these digits.
            prefix += literal or self._numbers[low][len(number) :] + ("]" if prefix.count(",") == 3 else ",")
        return prefix

    def _state(self, prefix: str) -> tuple[str, str, int, int] | None:
        """What stands next: (literal text, "", 0, 0), or ("", the number so far, the range of numbers that it can become).

        ("", "", 0, 0) after a whole text; None when no text begins with `prefix`.
        """
        if not prefix:
            return "[", "", 0, 0
        if prefix[0] != "[":
            return None
        body, closed, rest = prefix[1:].partition("]")
        parts = body.split(",")
        if len(parts) > 4 or rest or (closed and len(parts) != 4):
            return None
        done: list[int] = []
        for place, part in enumerate(parts):
            if place:
                if not part:
                    return (" ", "", 0, 0) if place == len(parts) - 1 and not closed else None
                if part[0] != " ":
                    return None
                part = part[1:]
            low, high = self._range(place, done)
            first = bisect_left(self._numbers, part, low, high)
            if first == high or not self._numbers[first].startswith(part):
                return None
            if place == len(parts) - 1 and not closed:
                return "", part, first, high
            if self._numbers[first] != part:
                return None
            done.append(first)
        return "", "", 0, 0

    def _range(self, place: int, done: list[int]) -> tuple[int, int]:
        """Which numbers can stand at `place`, given those before it: a first corner below the last line, a second above it."""
        partner = place - (2 if self.profile.box_order == "x0y0x1y1" else 1)
        second = place >= 2 if self.profile.box_order == "x0y0x1y1" else place % 2 == 1
        return (done[partner] + 1, len(self._numbers)) if second else (0, len(self._numbers) - 1)
