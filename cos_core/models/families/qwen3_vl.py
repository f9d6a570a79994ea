"""Qwen3-VL: boxes as JSON in thousandths of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cos_core.dialogue.prompts import BoxStyle
from cos_core.models.families._qwen import CELLS_OF_32, DynamicResolution


class Qwen3VL(DynamicResolution):
    name: ClassVar[str] = "Qwen3-VL"
    projector: ClassVar[tuple[str, ...]] = ("visual.merger", "visual.deepstack_merger_list")
    boxes: ClassVar[BoxStyle] = BoxStyle("image", "thousandth", "x0y0x1y1", '{"bbox_2d": [{x0}, {y0}, {x1}, {y1}]}', 0)
    boxes_source: ClassVar[str] = "QwenLM/Qwen3-VL issues 1427 and 1486"
    published: ClassVar[Mapping[str, Any]] = CELLS_OF_32


def build() -> Qwen3VL:
    return Qwen3VL()
