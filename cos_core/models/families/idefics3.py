"""Idefics3: tiles, then the whole picture."""

from __future__ import annotations

from typing import ClassVar

from cos_core.models.families._edge import LongestEdge


class Idefics3(LongestEdge):
    name: ClassVar[str] = "Idefics3"


def build() -> Idefics3:
    return Idefics3()
