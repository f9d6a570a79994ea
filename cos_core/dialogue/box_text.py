"""The box codec (CoS Eq. 8): the one place that writes a box as text and reads what models write.

A profile's BoxStyle says in which frame, unit and order, and between which words. `read_box` never raises on any text: it
returns a box, or None, and how it got there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise

from cos_core.dialogue.prompts import BoxStyle, Profile
from cos_core.errors import FrameError, InputError
from cos_core.geometry import Box, in_frame
from cos_core.types import BoxStatus

# Not inside a word or another number (the 0 of "x0", the "-" of "0.1-0.3"); letters of scripts without spaces may stand before.
_APART = r"(?<![A-Za-z0-9_.])"
_NUMERAL = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?"
_NUMBERS = re.compile(rf"({_APART}{_NUMERAL}|\bnan\b|\binf(?:inity)?\b)\s*(%?)", re.IGNORECASE)
_BRACKETED = re.compile(r"[\[(]([^\[\]()]*)[\])]")
_MARK = re.compile(r"<[^<>]*>")
_SQUEEZED = re.compile(r"[\s\"']+")

LAST_1024TH = 1023
"""The last of the 1024 location tokens."""


def sides(style: BoxStyle, seen: tuple[int, int] | None) -> tuple[int, int]:
    """How many units the frame is wide and high. `seen`: (width, height) in pixels of the picture as the model sees it.

    Raises InputError for boxes in pixels without `seen`.
    """
    if style.unit == "pixel":
        if seen is None:
            raise InputError("boxes in pixels need the size of the picture as the model sees it, which is not known here")
        return seen
    per = {"fraction": 1, "thousandth": 1000, "1024th": LAST_1024TH + 1}[style.unit]
    return per, per


@dataclass(frozen=True, slots=True)
class _Reading:
    """What `read_box` looks for under a style.

    `places`, `literals`: the style's. `exact`: whole texts as `write_box` writes them, and the same without the marks in angle
    brackets, which decoders drop with other special tokens. `numbers`: every number in a text, and whether "%" follows. `word`:
    the last word in front of the first number ("bbox_2d", "box_start"), if there is one. `opening`, `gaps`: what stands in
    front of the first number and between the numbers, blanks and quotes left out.
    """

    style: BoxStyle
    places: tuple[str, ...]
    literals: tuple[str, ...]
    exact: tuple[re.Pattern[str], ...]
    numbers: re.Pattern[str]
    word: re.Pattern[str] | None
    opening: str
    gaps: tuple[str, str, str]


@lru_cache(maxsize=64)
def _reading(profile: Profile) -> _Reading:
    """Raises InputError for a profile whose boxes are its family's, which is not known here."""
    if profile.box != "profile":
        raise InputError(f"the profile {profile.name!r} leaves boxes to the checkpoint's family; resolve it with with_boxes")
    style = profile.boxes
    literals = style.literals
    bare = [_MARK.sub("", part) for part in literals]
    number = {"fraction": r"\d(?:\.\d{1,6})?", "1024th": r"[0-9]{4}"}.get(style.unit, r"0|[1-9][0-9]{0,6}")
    forms = [literals, *([bare] if bare != literals and all(bare[1:4]) else [])]
    exact = tuple(re.compile(f"({number})".join(map(re.escape, form))) for form in forms)
    # A word that the style glues to its numbers (<loc0246>) does not hide them.
    glued = {ending[0] for part in literals[:4] if (ending := re.search(r"[A-Za-z_]+$", part))}
    starts = "|".join([_APART, *(f"(?<={re.escape(word)})" for word in sorted(glued))])
    words = re.findall(r"\w{3,}", literals[0])
    opening = re.search(r"[^\w]?\w*$", _squeezed(bare[0]))
    return _Reading(
        style,
        tuple(style.places),
        tuple(literals),
        exact,
        re.compile(rf"((?:{starts}){_NUMERAL}|\bnan\b|\binf(?:inity)?\b)(?:\s?(%))?", re.IGNORECASE),
        re.compile(rf"{re.escape(words[-1])}\W*$") if words else None,
        opening[0] if opening else "",
        (_squeezed(bare[1]), _squeezed(bare[2]), _squeezed(bare[3])),
    )


def _squeezed(text: str) -> str:
    return _SQUEEZED.sub("", text)


def write_box(box: Box, profile: Profile, seen: tuple[int, int] | None = None) -> str:
    """The text of a box in the profile's frame, e.g. `[0.250, 0.500, 0.750, 1.000]`.

    Coordinates are rounded to the profile's decimals (or snapped to its `box_step`), to whole numbers in the other units; a
    side that rounding would make empty is widened by one unit. `seen`: (width, height) in pixels of the picture as the model
    sees it, for boxes in pixels. Raises FrameError for a box in another frame, InputError for a profile whose boxes are not
    settled (`box` "family"), and for pixels without `seen`.
    """
    reading = _reading(profile)
    style = reading.style
    if box.frame != style.frame:
        raise FrameError(
            f"the profile {profile.name!r} writes boxes in the frame {style.frame!r}, got one in {box.frame!r};"
            " convert it with in_frame (SquarePad)"
        )
    if style.unit == "fraction":
        x = [_digits(v, profile) for v in _rounded(box.x0, box.x1, profile)]
        y = [_digits(v, profile) for v in _rounded(box.y0, box.y1, profile)]
    else:
        wide, high = sides(style, seen)
        x = [whole(v, style) for v in _lines(box.x0, box.x1, wide, style)]
        y = [whole(v, style) for v in _lines(box.y0, box.y1, high, style)]
    named = {"x0": x[0], "y0": y[0], "x1": x[1], "y1": y[1]}
    return _joined([named[place] for place in reading.places], reading)


def _joined(numbers: Sequence[str], reading: _Reading) -> str:
    first, *rest = reading.literals
    return first + "".join(number + behind for number, behind in zip(numbers, rest, strict=True))


def with_marks(text: str, profile: Profile) -> str:
    """A reply as the model wrote it, where a decoder dropped the marks of a box with other special tokens.

    Only a text that is exactly what the codec writes, without any mark in angle brackets, gets them back; the second pass then
    shows the model its own tokens. Every other text is returned as it is.
    """
    reading = _reading(profile)
    bare = reading.exact[1].fullmatch(text.strip()) if len(reading.exact) > 1 else None
    return _joined(bare.groups(), reading) if bare else text


def _digits(value: float, profile: Profile) -> str:
    digits = f"{value:.{profile.box_decimals}f}"
    # Unpadded, as Python's str writes a rounded float: 0.5, 1.0; but never 1e-05.
    return digits if profile.box_pad_zeros else digits[:3] + digits[3:].rstrip("0")


def fraction(line: int, profile: Profile) -> str:
    """A line of the raster of fractions as it is written: `line` units from the frame's left or upper side."""
    return _digits(min(1.0, line * raster_unit(profile)), profile)


def raster_unit(profile: Profile) -> float:
    """The distance between two lines of the raster of fractions, as a share of the frame's side."""
    return profile.box_step or 10.0**-profile.box_decimals


def whole(number: int, style: BoxStyle) -> str:
    """A whole number as it is written."""
    return f"{number:04}" if style.unit == "1024th" else str(number)


def _rounded(low: float, high: float, profile: Profile) -> tuple[float, float]:
    unit = raster_unit(profile)
    # Python's round looks at a number's exact value; dividing first would turn some halves the other way.
    near = (low, high) if profile.box_step else (round(low, profile.box_decimals), round(high, profile.box_decimals))
    first, last = round(near[0] / unit), round(near[1] / unit)
    if last <= first:
        first = min(math.floor((low + high) / 2 / unit), math.ceil(1 / unit) - 1)
        last = first + 1
    return max(0.0, first * unit), min(1.0, last * unit)


def _lines(low: float, high: float, side: int, style: BoxStyle) -> tuple[int, int]:
    """Two fractions of a side of `side` units as whole numbers of units."""
    top = LAST_1024TH if style.unit == "1024th" else side
    first, last = round(low * side), min(round(high * side), top)
    if last <= first:
        first = min(math.floor((low + high) / 2 * side), top - 1)
        last = first + 1
    return first, last


def read_box(text: str, profile: Profile, seen: tuple[int, int] | None = None) -> tuple[Box | None, BoxStatus]:
    """The box that `text` names, in the profile's frame, and its status.

    ok: four numbers as the codec writes them (fractions with any of 0-6 decimals); marks in angle brackets such as
    `<|box_start|>` may be missing altogether, since decoders drop them. repaired: read after ignoring words, missing
    brackets or spaces, quotes, further numbers and boxes (the first is taken), percent signs, or after swapping corners.
    clamped: a coordinate lay outside the frame. degenerate (None): no area left. unparsable (None): not four finite numbers.

    Where the style's unit is written in whole numbers, four numbers of which none exceeds 1 and one has a decimal point are
    fractions of the frame (repaired): such a box would be smaller than one unit, and models that were taught fractions write
    them on. Whole numbers always stay in their unit: `[0, 0, 1, 1]` in pixels is one pixel.

    Under `box_reader` "released" the text is taken apart as the released evaluation does, and what that cannot read, or reads
    as swapped corners, is unparsable. Two departures remain: it lets coordinates outside [0, 1] through (black pixels), here
    they are clamped; and a box without area, which there ends the run or becomes a plain picture, is degenerate.

    `seen`: as in `write_box`. Raises InputError as `write_box` does, for the profile or a missing `seen`, never for the text.
    """
    reading = _reading(profile)
    wide, high = sides(reading.style, seen)
    status: BoxStatus = "ok"
    stripped = text.strip()
    clean = next(filter(None, (form.fullmatch(stripped) for form in reading.exact)), None)
    if clean:
        found: Sequence[_Number] | None = [_Number(float(v)) for v in clean.groups()]
    else:
        status, found = "repaired", _found(text, profile, reading)
    if found is None:
        return None, "unparsable"
    named = dict(zip(reading.places, found, strict=True))
    if _in_fractions(found, reading.style):
        wide, high = 1, 1
    x0, x1 = (named[place].of(wide) for place in ("x0", "x1"))
    y0, y1 = (named[place].of(high) for place in ("y0", "y1"))
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
    return Box(inside[0], inside[1], inside[2], inside[3], reading.style.frame), status


def as_written(box: Box, size: tuple[int, int], profile: Profile, seen: tuple[int, int] | None = None) -> tuple[str, Box]:
    """The text of a box of a picture of `size` (width, height in pixels) and the box that this text names, in the profile's
    frame. `seen`: as in `write_box`.

    The crop that training shows is cut from the text's own box, as inference will cut it, not from the annotation: when the
    profile rounds or snaps coarsely the two differ by pixels.
    """
    text = write_box(in_frame(box, profile.box_frame, size), profile, seen)
    written, _ = read_box(text, profile, seen)
    if written is None:
        raise InputError(f"the box {box.corners} does not survive being written as {text!r}")
    return text, written


@dataclass(frozen=True, slots=True)
class _Number:
    """A number as it was read: `pointed` with a decimal point or an exponent, `share` a percentage, already divided by 100.
    It stands in the text from `start` to `end`."""

    value: float
    pointed: bool = False
    share: bool = False
    start: int = 0
    end: int = 0

    def of(self, side: int) -> float:
        """As a share of a side of `side` units."""
        return self.value if self.share or side == 1 else self.value / side


def _in_fractions(found: Sequence[_Number], style: BoxStyle) -> bool:
    """Whether numbers in a whole unit are fractions nevertheless (see `read_box`)."""
    if style.unit == "fraction" or any(number.share for number in found):
        return False
    return any(number.pointed for number in found) and all(abs(number.value) <= 1 for number in found)


def _found(text: str, profile: Profile, reading: _Reading) -> Sequence[_Number] | None:
    """The four numbers of a text that is not written as the codec writes, in the text's order; None without four."""
    if profile.box_reader == "released":
        return _as_released(text)
    if reading.style.unit == "fraction" and not reading.style.text:
        return _bracketed(text)
    numbers = list(islice(_numbers_of(text, reading), _MOST_NUMBERS))
    for fits in (_after_the_word, _as_written, _listed, _in_pairs, _alike):
        for i in range(len(numbers) - 3):
            four = numbers[i : i + 4]
            before = text[max(numbers[i - 1].end if i else 0, four[0].start - 40) : four[0].start]
            near = four[3].start - four[0].end <= _WIDEST and all(math.isfinite(number.value) for number in four)
            if near and fits(before, [text[a.end : b.start] for a, b in pairwise(four)], reading):
                return four
    return None


_MOST_NUMBERS = 4096
"""Numbers of a text that are looked at: a reply has some dozens."""
_WIDEST = 160
"""Characters between the first and the last of four numbers that belong together."""


def _numbers_of(text: str, reading: _Reading) -> Iterator[_Number]:
    for match in reading.numbers.finditer(text):
        numeral, percent = match.groups()
        behind = text[match.end() : match.end() + 2]
        if percent or not (behind[:1].isascii() and (behind[:1].isalpha() or behind[:1] == "_")) or behind == "px":
            value = float(numeral) / (100 if percent else 1)
            yield _Number(value, not numeral.lstrip("+-").isdigit(), bool(percent), match.start(), match.end())


_OPENED = re.compile(r"[\[({][\s\"']*$")
_SEPARATORS = re.compile(r"[\s,;|()\[\]\"']{1,16}")
_COMMA = re.compile(r"[\s\"',;]{1,16}")
_CLOSED_AND_OPENED = re.compile(r"\s*[\])]\s*,?\s*[\[(]\s*")
_WORDS = re.compile(r"[^\W\d_]\w*")


def _after_the_word(before: str, gaps: Sequence[str], reading: _Reading) -> bool:
    """`"bbox_2d": [1, 2, 3, 4]`, `<|box_start|>(1,2),(3,4)`: the style's own word stands in front."""
    if reading.word is None or not reading.word.search(before):
        return False
    return all(_SEPARATORS.fullmatch(gap) for gap in gaps)


def _as_written(before: str, gaps: Sequence[str], reading: _Reading) -> bool:
    """What the style puts in front of the numbers and between them, but for blanks and quotes."""
    return _squeezed(before).endswith(reading.opening) and tuple(map(_squeezed, gaps)) == reading.gaps


def _listed(before: str, gaps: Sequence[str], _: _Reading) -> bool:
    """`[1, 2, 3, 4]`, `(1 2 3 4)`."""
    return bool(_OPENED.search(before)) and all(_COMMA.fullmatch(gap) for gap in gaps)


def _in_pairs(before: str, gaps: Sequence[str], _: _Reading) -> bool:
    """`(1, 2), (3, 4)`, `[[1, 2], [3, 4]]`."""
    inside = _COMMA.fullmatch(gaps[0]) and _COMMA.fullmatch(gaps[2])
    return bool(inside and _CLOSED_AND_OPENED.fullmatch(gaps[1]) and _OPENED.search(before))


def _alike(_: str, gaps: Sequence[str], __: _Reading) -> bool:
    """`1 2 3 4`, `x0=1, y0=2, x1=3, y1=4`, `from 1, 2 to 3, 4`: at most a word between two numbers, and the same marks within
    both pairs. Four numbers of a sentence are no box."""
    marks = [_squeezed(_WORDS.sub("a", gap)) for gap in gaps]
    return marks[0] == marks[2] and all(len(gap) <= 24 and len(_WORDS.findall(gap)) <= 1 for gap in gaps)


def _bracketed(text: str) -> Sequence[_Number] | None:
    """The first four numbers of the first bracket that has four, else of the whole text; None when there are none."""
    for part in [*_BRACKETED.findall(text), text]:
        values = [_value(number, percent) for number, percent in _NUMBERS.findall(part)][:4]
        if len(values) == 4 and all(math.isfinite(v) for v in values):
            return [_Number(v) for v in values]
    return None


def _as_released(text: str) -> Sequence[_Number] | None:
    """The released parser: first and last character off, split at comma and space, `float` of the first four."""
    parts = text.strip()[1:-1].split(", ")[:4]
    try:
        values = [float(part) for part in parts]
    except ValueError:
        return None
    return [_Number(v) for v in values] if len(values) == 4 and all(math.isfinite(v) for v in values) else None


def _value(number: str, percent: str) -> float:
    value = float(number)
    return value / 100 if percent else value
