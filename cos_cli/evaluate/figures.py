"""Figures as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

TableFormat = Literal["text", "latex"]
WIDTH = 80
"""Words are broken here; a table is as wide as what it holds."""


def number(value: object, unit: str, sign: str = "") -> str:
    """Four decimals of a fraction, two of a percentage or of points, two digits of a p; "undefined" for nan and None."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "undefined"
    if not isinstance(value, float):
        return str(value)
    if unit == "p":
        return f"{value:.2g}"
    digits = 2 if unit == "percent" or (unit == "points" and abs(value) > 1) else 4
    return f"{value:{sign}.{digits}f}"


def interval(ends: Sequence[float] | None, unit: str, sign: str = "") -> str:
    """`0.6555 to 0.8098`; nothing of None."""
    return f"{number(ends[0], unit, sign)} to {number(ends[1], unit, sign)}" if ends else ""
