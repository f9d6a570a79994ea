"""Idefics3: tiles, then the whole picture."""

from __future__ import annotations

from typing import ClassVar

from cos_core.models.families._edge import TilesOfEdge


class Idefics3(TilesOfEdge):
    name: ClassVar[str] = "Idefics3"
    projector: ClassVar[tuple[str, ...]] = ("connector",)


def build() -> Idefics3:
    return Idefics3()
