"""Pixtral: one grid of patches; Pixtral-12B's `model_type` is llava."""

from __future__ import annotations

from typing import ClassVar

from cos_core.models.families._edge import LongestEdge


class Pixtral(LongestEdge):
    name: ClassVar[str] = "Pixtral"


def build() -> Pixtral:
    return Pixtral()
