"""SmolVLM: tiles, then the whole picture."""

from __future__ import annotations

from typing import ClassVar

from cos_core.models.families._edge import TilesOfEdge


class SmolVLM(TilesOfEdge):
    name: ClassVar[str] = "SmolVLM"
    projector: ClassVar[tuple[str, ...]] = ("connector",)


def build() -> SmolVLM:
    return SmolVLM()
