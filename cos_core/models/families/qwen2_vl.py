"""Qwen2-VL: boxes in thousandths of the picture between marks of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cos_core.dialogue.prompts import BoxStyle
from cos_core.models.families._qwen import CELLS_OF_28, DynamicResolution


class Qwen2VL(DynamicResolution):
    name: ClassVar[str] = "Qwen2-VL"
    projector: ClassVar[tuple[str, ...]] = ("visual.merger",)
    boxes: ClassVar[BoxStyle] = BoxStyle(
        "image", "thousandth", "x0y0x1y1", "<|box_start|>({x0},{y0}),({x1},{y1})<|box_end|>", 0
    )
    boxes_source: ClassVar[str] = "QwenLM/Qwen3-VL issue 663"
    published: ClassVar[Mapping[str, Any]] = CELLS_OF_28


def build() -> Qwen2VL:
    return Qwen2VL()
