"""Qwen2.5-VL: boxes as JSON in pixels of the resized picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cos_core.dialogue.prompts import BoxStyle
from cos_core.models.families._qwen import CELLS_OF_28, DynamicResolution


class Qwen25VL(DynamicResolution):
    name: ClassVar[str] = "Qwen2.5-VL"
    projector: ClassVar[tuple[str, ...]] = ("visual.merger",)
    boxes: ClassVar[BoxStyle] = BoxStyle("image", "pixel", "x0y0x1y1", '{"bbox_2d": [{x0}, {y0}, {x1}, {y1}]}', 0)
    boxes_source: ClassVar[str] = "QwenLM/Qwen3-VL issues 931 and 1427"
    published: ClassVar[Mapping[str, Any]] = CELLS_OF_28


def build() -> Qwen25VL:
    return Qwen25VL()
