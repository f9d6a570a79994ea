"""The set of texts that `write_box` can write under a profile, for engines that let nothing else come out."""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from cos_core.dialogue.box_text import LAST_1024TH, fraction, raster_unit, sides, whole
from cos_core.dialogue.prompts import BoxStyle, Profile
from cos_core.errors import InputError

_LAST = "\x7f"
"""Sorts behind every character of a number."""
_SPECIAL = re.compile(r"[\\.^$*+?{}\[\]|()]")
"""What a regular expression does not read as itself."""


class _Raster(Protocol):
    """The numbers that can stand in a place, counted from 0; ranges of them are given as [low, high)."""

    @property
    def lines(self) -> int:
        """How many there are."""

    def able(self, part: str, low: int, high: int) -> bool:
        """Whether the text of a number in the range begins with `part`."""

    def find(self, part: str, low: int, high: int) -> int | None:
        """The number in the range whose text is `part`."""

    def behind(self, part: str, low: int, high: int) -> set[str]:
        """The characters that follow `part` in texts of the range."""

    def least(self, part: str, low: int, high: int) -> str:
        """The text of the least number in the range that begins with `part`; `able` must hold."""


@dataclass(frozen=True, slots=True)
class _Texts:
    """Numbers whose texts, in order, are their order too: all of them are `texts`, ascending."""

    texts: list[str]

    @property
    def lines(self) -> int:
        return len(self.texts)

    def _first(self, part: str, low: int, high: int) -> int:
        return bisect_left(self.texts, part, low, high)

    def able(self, part: str, low: int, high: int) -> bool:
        first = self._first(part, low, high)
        return first < high and self.texts[first].startswith(part)

    def find(self, part: str, low: int, high: int) -> int | None:
        first = self._first(part, low, high)
        return first if first < high and self.texts[first] == part else None

    def behind(self, part: str, low: int, high: int) -> set[str]:
        # Numbers that begin with this one and go on stand right behind it, in the order of their next characters.
        mark = bisect_right(self.texts, part, low, high)
        longer: set[str] = set()
        while mark < high and self.texts[mark].startswith(part):
            longer.add(self.texts[mark][len(part)])
            mark = bisect_right(self.texts, self.texts[mark][: len(part) + 1] + _LAST, mark, high)
        return longer

    def least(self, part: str, low: int, high: int) -> str:
        return self.texts[self._first(part, low, high)]


@dataclass(frozen=True, slots=True)
class _Whole:
    """The whole numbers from 0 to `lines` - 1, without leading zeros: as a text, 10 stands before 9."""

    lines: int

    def _decades(self, part: str, low: int, high: int) -> list[tuple[int, int]]:
        """The ranges of numbers that begin with `part`, cut to [low, high), ascending; empty ones left out."""
        if not part:
            return [(low, high)] if low < high else []
        if not (part.isascii() and part.isdigit()) or (part[0] == "0" and len(part) > 1) or len(part) > len(str(high)):
            return []
        start, step = int(part), 1
        found = []
        while start < high:
            first, last = max(start, low), min(start + step, high)
            if first < last:
                found.append((first, last))
            if start == 0:
                break
            start, step = start * 10, step * 10
        return found

    def able(self, part: str, low: int, high: int) -> bool:
        return bool(self._decades(part, low, high))

    def find(self, part: str, low: int, high: int) -> int | None:
        return int(part) if part and self.able(part, low, high) and low <= int(part) < high else None

    def behind(self, part: str, low: int, high: int) -> set[str]:
        return {digit for digit in "0123456789" if self.able(part + digit, low, high)}

    def least(self, part: str, low: int, high: int) -> str:
        return str(self._decades(part, low, high)[0][0])


@dataclass(frozen=True, slots=True)
class _State:
    """What stands next: the rest of a literal text, or a number of which `part` is there and which lies in [low, high).

    `place`: which of the four numbers, or before which of them the literal stands. Neither is left at the end of a text.
    """

    place: int
    literal: str = ""
    part: str = ""
    low: int = 0
    high: int = 0


@dataclass(frozen=True)
class BoxGrammar:
    """The texts that `write_box` writes under a profile (see interfaces.Grammar); the second corner always beyond the first.

    `seen`: (width, height) in pixels of the picture as the model sees it, for boxes in pixels; None for others, which are the
    same for every picture. Raises InputError for a profile whose raster of fractions has more than ten thousand lines, whose
    boxes are written with special tokens, end with a number or are not settled, and for pixels without `seen`.
    """

    profile: Profile
    seen: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        name, style = self.profile.name, self._style
        if self.profile.box != "profile":
            raise InputError(f"the profile {name!r} leaves boxes to the checkpoint's family; resolve it with with_boxes")
        if style.unit == "fraction" and raster_unit(self.profile) < 1e-4:
            raise InputError(f"profile {name!r}: boxes of more than four decimals cannot be decoded by grammar")
        if "<|" in style.text or any(re.search(r"<\w*$", part) for part in style.literals[:4]):
            raise InputError(f"profile {name!r}: boxes written with special tokens cannot be decoded by grammar; decode freely")
        if not style.literals[4]:
            raise InputError(f"profile {name!r}: the end of a box that ends with a number cannot be told by grammar")
        sides(style, self.seen)

    @cached_property
    def _style(self) -> BoxStyle:
        return self.profile.boxes

    @cached_property
    def _literals(self) -> list[str]:
        return self._style.literals

    @cached_property
    def _characters(self) -> str:
        """What numbers are made of."""
        return ".0123456789" if self._style.unit == "fraction" else "0123456789"

    @cached_property
    def alphabet(self) -> frozenset[str]:
        """See interfaces.Grammar, here and below."""
        return frozenset("".join(self._literals) + self._characters)

    @cached_property
    def pattern(self) -> str:
        """Four numbers of the raster. That a second corner lies beyond the first, no short expression can say."""
        literals = [_SPECIAL.sub(r"\\\g<0>", part) for part in self._literals]
        numbers = [f"({self._number(place)})" for place in range(4)]
        return literals[0] + "".join(number + behind for number, behind in zip(numbers, literals[1:], strict=True))

    def _number(self, place: int) -> str:
        """An expression for the numbers of a place; of pixels, for all that have no more digits than the largest."""
        decimals = self.profile.box_decimals
        if self._style.unit == "1024th":
            return r"0[0-9]{3}|10[01][0-9]|102[0-3]"
        if self._style.unit != "fraction":
            top = str(self._raster(place).lines - 1)
            if top == "1" + "0" * (len(top) - 1):
                return _up_to(len(top) - 1) + f"|{top}" if len(top) > 1 else "0|1"
            return _up_to(len(top))
        if self.profile.box_step:
            return "|".join(re.escape(number) for number in self._numbers)
        if self.profile.box_pad_zeros:
            return rf"0\.[0-9]{{{decimals}}}|1\.0{{{decimals}}}"
        longer = rf"|0\.[0-9]{{1,{decimals - 1}}}[1-9]" if decimals > 1 else ""
        return rf"0\.[0-9]{longer}|1\.0"

    @cached_property
    def _numbers(self) -> list[str]:
        """Every number of a raster of fractions as it is written, ascending; those of one style stand in the order of their
        texts."""
        count = math.ceil(1 / raster_unit(self.profile)) + 1
        return sorted({fraction(i, self.profile) for i in range(count)})

    @cached_property
    def _rasters(self) -> tuple[_Raster, _Raster]:
        """Of the numbers along x and along y."""
        if self._style.unit == "fraction":
            raster: _Raster = _Texts(self._numbers)
            return raster, raster
        if self._style.unit == "1024th":
            raster = _Texts([whole(i, self._style) for i in range(LAST_1024TH + 1)])
            return raster, raster
        wide, high = sides(self._style, self.seen)
        return _Whole(wide + 1), _Whole(high + 1)

    def _raster(self, place: int) -> _Raster:
        return self._rasters[self._style.places[place][0] == "y"]

    def follows(self, prefix: str) -> frozenset[str]:
        state = self._state(prefix)
        if state is None:
            return frozenset()
        if state.literal or state.place == 4:
            return frozenset(state.literal[:1])
        raster = self._raster(state.place)
        ends = raster.find(state.part, state.low, state.high) is not None
        longer = raster.behind(state.part, state.low, state.high)
        return frozenset(longer | ({self._literals[state.place + 1][0]} if ends else set()))

    def viable(self, prefix: str) -> bool:
        return self._state(prefix) is not None

    def finish(self, prefix: str) -> str:
        """The smallest numbers that fit, one line of the raster apart where corners are still to come."""
        while state := self._state(prefix):
            if state.literal:
                prefix += state.literal
            elif state.place == 4:
                break
            else:
                number = self._raster(state.place).least(state.part, state.low, state.high)
                # The first number in order is a whole one as early as any that begins with these digits.
                prefix += number[len(state.part) :] + self._literals[state.place + 1]
        return prefix

    def _state(self, prefix: str) -> _State | None:
        """None when no text begins with `prefix`."""
        done: list[int] = []
        at = 0
        for place, literal in enumerate(self._literals):
            if len(prefix) - at < len(literal):
                return _State(place, literal[len(prefix) - at :]) if literal.startswith(prefix[at:]) else None
            if not prefix.startswith(literal, at):
                return None
            at += len(literal)
            if place == 4:
                break
            part = prefix[at : at + len(prefix[at:]) - len(prefix[at:].lstrip(self._characters))]
            low, high = self._range(place, done)
            if at + len(part) == len(prefix):
                return _State(place, "", part, low, high) if self._raster(place).able(part, low, high) else None
            number = self._raster(place).find(part, low, high)
            if number is None:
                return None
            done.append(number)
            at += len(part)
        return _State(4) if at == len(prefix) else None

    def _range(self, place: int, done: list[int]) -> tuple[int, int]:
        """Which numbers can stand at `place`, given those before it: a first corner below the last line, a second above it."""
        name, lines = self._style.places[place], self._raster(place).lines
        return (done[self._style.places.index(name[0] + "0")] + 1, lines) if name[1] == "1" else (0, lines - 1)


def _up_to(digits: int) -> str:
    """Whole numbers of at most so many digits, without leading zeros."""
    return rf"0|[1-9][0-9]{{0,{digits - 1}}}" if digits > 1 else "[0-9]"
