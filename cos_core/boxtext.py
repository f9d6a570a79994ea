"""The box codec (CoS Eq. 8): the one place that writes a box as text and reads what models write.

Text speaks of the square frame. `read_box` never raises on any text: it returns a box, or None, and how it got there.
"""

from __future__ import annotations

import math
import re

from cos_core.errors import FrameError
from cos_core.geometry import Box
from cos_core.prompts import Profile
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
    digits = [f"{v:.{profile.box_decimals}f}" for v in values]
    if not profile.box_pad_zeros:
        # As Python's str writes a rounded float: 0.5, 1.0; but never 1e-05.
        digits = [d[:3] + d[3:].rstrip("0") for d in digits]
    return "[" + ", ".join(digits) + "]"


def _rounded(low: float, high: float, profile: Profile) -> tuple[float, float]:
    unit = profile.box_step or 10.0**-profile.box_decimals
    first, last = round(low / unit), round(high / unit)
    if last <= first:
        first = min(math.floor((low + high) / 2 / unit), math.ceil(1 / unit) - 1)
        last = first + 1
    return max(0.0, first * unit), min(1.0, last * unit)


def read_box(text: str, profile: Profile) -> tuple[Box | None, BoxStatus]:
    """The box that `text` names, in frame "square", and its status.

    ok: four numbers in brackets, as the codec writes them (any of 0-6 decimals). repaired: read after ignoring words, missing
    brackets or spaces, further numbers, percent signs, or after swapping corners. clamped: a coordinate lay outside [0, 1].
    degenerate (None): no area left. unparsable (None): not four finite numbers.
    """
    clean = _CLEAN.fullmatch(text.strip())
    status: BoxStatus = "ok" if clean else "repaired"
    values = [float(v) for v in clean.groups()] if clean else _find_numbers(text)
    if values is None:
        return None, "unparsable"
    x0, y0, x1, y1 = values if profile.box_order == "x0y0x1y1" else (values[0], values[2], values[1], values[3])
    if x0 > x1 or y0 > y1:
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


def _value(number: str, percent: str) -> float:
    value = float(number)
    return value / 100 if percent else value
