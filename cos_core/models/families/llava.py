"""LLaVA-1.5 through the general class: pictures padded to squares, as its own path does (models/llava.py)."""

from __future__ import annotations

from typing import Any, ClassVar

from cos_core.dialogue.prompts import BoxStyle
from cos_core.models.families import Family
from cos_core.models.families._pieces import patches
from cos_core.models.grids import Grid, square


class Llava15(Family):
    name: ClassVar[str] = "LLaVA-1.5"
    projector: ClassVar[tuple[str, ...]] = ("multi_modal_projector",)
    boxes: ClassVar[BoxStyle] = BoxStyle("square", "fraction", "x0y0x1y1", "", 3)
    boxes_source: ClassVar[str] = "haotian-liu/LLaVA issue 606; CoS Eq. 8"
    pads_to_square: ClassVar[bool] = True

    def grids(self, config: Any, processor: Any, size: tuple[int, int], pictures: int = 1) -> tuple[Grid, ...]:
        """One grid over the square."""
        return (Grid(*patches(config), square(*size)),)


def build() -> Llava15:
    return Llava15()
