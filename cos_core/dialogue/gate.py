"""The gate: whether a question gets its second look, by how sure the plain answer is or by how large the region is.

A gate is written `margin:X`, `area:LOW-HIGH` or `all`. A run under `all` records both answers to each question, from which
every other gate's answers and costs follow without a model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from cos_core.errors import InputError

MARGIN_DIGITS = 3
"""Decimals of a margin that count: what is recorded is what is compared."""


@dataclass(frozen=True, slots=True)
class Gate:
    """`kind` "margin": the second pass is run where the plain answer's margin is below `below`, a lead of logits (interfaces.
    Reply.margin). "area": where the region's share of the picture lies in [low, high]; elsewhere the plain answer stands.
    "all": always, and the plain answer is asked for as well."""

    kind: Literal["margin", "area", "all"]
    below: float = math.inf
    low: float = 0.0
    high: float = 1.0

    @property
    def text(self) -> str:
        """As it is written."""
        if self.kind == "margin":
            return f"margin:{_written(self.below)}"
        return "all" if self.kind == "all" else f"area:{_written(self.low)}-{_written(self.high)}"

    @property
    def plain_first(self) -> bool:
        """Whether the plain answer is asked for before anything else."""
        return self.kind != "area"

    def opens_at_margin(self, margin: float) -> bool:
        """Whether a plain answer with this margin gets a second look."""
        return self.kind != "margin" or round(margin, MARGIN_DIGITS) < self.below

    def opens_at_area(self, area: float) -> bool:
        """Whether a region that covers this share of the picture is looked at."""
        return self.kind != "area" or self.low <= area <= self.high


def _written(value: float) -> str:
    """A number without an exponent, whose sign would be taken for the dash between two numbers."""
    return "inf" if math.isinf(value) else format(Decimal(repr(value)).normalize(), "f")


def read_gate(text: str) -> Gate:
    """Raises InputError for a text that is no gate."""
    kind, _, value = text.strip().partition(":")
    try:
        if kind == "all" and not value:
            return Gate("all")
        if kind == "margin":
            below = float(value)
            if below >= 0:  # false for NaN
                return Gate("margin", below=below)
        elif kind == "area":
            low, _, high = value.partition("-")
            gate = Gate("area", low=float(low), high=float(high))
            if 0 <= gate.low < gate.high <= 1:
                return gate
    except ValueError:
        pass
    raise InputError(
        f"a gate is margin:X with X at least 0, area:LOW-HIGH with shares of the picture from 0 to 1, or all; not {text!r}"
    )


def gate_text(text: str) -> str:
    """The one spelling of a gate. Raises InputError."""
    return read_gate(text).text
