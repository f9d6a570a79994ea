"""SmolVLM: tiles, then the whole picture."""

from __future__ import annotations

from typing import ClassVar

from cos_core.models.families._edge import LongestEdge


class SmolVLM(LongestEdge):
    name: ClassVar[str] = "SmolVLM"


def build() -> SmolVLM:
    return SmolVLM()
