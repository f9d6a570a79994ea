"""Boxes that stand in texts, in any family's writing: the questions and answers of grounding data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from cos_core.dialogue.prompts import BoxStyle

MOST = 64
"""Boxes of one text that are looked at."""
_NUMBER = r"([-+]?\d{1,7}(?:\.\d{0,8})?|\.\d{1,8})"
_NAMED = re.compile(r"\w{3,}")
_LISTED = ("[", ",", ",", ",", "]")
_IN_PAIRS = ("(", ",", "),(", ",", ")")


@dataclass(frozen=True, slots=True)
class TextBox:
    """`numbers`: in the text's order. `styles`: those that write so; empty for bare numbers in brackets, which many do.

    `whole`: whether the numbers are whole, or one of them exceeds 1, so that they are not fractions.
    """

    numbers: tuple[float, float, float, float]
    styles: tuple[BoxStyle, ...]

    @property
    def whole(self) -> bool:
        return any(number > 1 for number in self.numbers)


def boxes_in(text: str, styles: Sequence[BoxStyle]) -> list[TextBox]:
    """The boxes of a text, from its beginning, at most MOST: in the words of a style, else `[a, b, c, d]`, `(a, b), (c, d)`."""
    return list(islice(_found(text, tuple(styles)), MOST))


def _found(text: str, styles: tuple[BoxStyle, ...]) -> Iterator[TextBox]:
    pattern, owners = _writings(styles)
    for match in pattern.finditer(text):
        a, b, c, d = (float(number) for number in match.groups() if number is not None)
        yield TextBox((a, b, c, d), owners[(match.lastindex or 4) // 4 - 1])


@lru_cache(maxsize=16)
def _writings(styles: tuple[BoxStyle, ...]) -> tuple[re.Pattern[str], tuple[tuple[BoxStyle, ...], ...]]:
    """One pattern of all writings, four groups each, and whose each writing is; those with words stand first."""
    owners: dict[tuple[str, ...], list[BoxStyle]] = {}
    for style in styles:
        named = list(_NAMED.finditer(style.literals[0]))
        if named:
            first, *between, last = style.literals
            # From the style's own word on; whatever follows the fourth number's bracket (a label) does not matter.
            owners.setdefault((first[named[-1].start() :], *between, last[:1]), []).append(style)
    bare: list[tuple[str, ...]] = [_LISTED, ("(", *_LISTED[1:4], ")"), _IN_PAIRS]
    writings = [*owners, *bare]
    pattern = "|".join(_NUMBER.join(map(_loose, writing)) for writing in writings)
    return re.compile(pattern), (*(tuple(each) for each in owners.values()), *((),) * len(bare))


def _loose(literal: str) -> str:
    """A pattern for a literal with blanks and quotes anywhere, or nowhere."""
    kept = [re.escape(character) for character in literal if not character.isspace() and character not in "\"'"]
    return r"[\s\"']{0,8}".join(["", *kept, ""])
