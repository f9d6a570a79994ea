"""LLaVA-OneVision: tiled as LLaVA-NeXT while a dialogue shows one picture, each at its base resolution where it shows more."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from cos_core.models.families._pieces import patches
from cos_core.models.families.llava_next import LlavaNext
from cos_core.models.grids import Grid, square


class LlavaOneVision(LlavaNext):
    name: ClassVar[str] = "LLaVA-OneVision"
    second_view_change: ClassVar[str] = (
        "pass 2 shows the picture and its crop at base resolution, where pass 1 shows the picture in tiles"
    )

    def variant(self, pictures: int) -> int:
        return int(pictures > 1)

    def copies(self, variant: int) -> int:
        return 1 + variant

    def grids(self, config: Any, processor: Any, size: tuple[int, int], pictures: int = 1) -> tuple[Grid, ...]:
        """Of several pictures each is one grid over its square, a newline behind it."""
        if self.variant(pictures):
            return (Grid(*patches(config), square(*size), "end"),)
        return super().grids(config, processor, size)

    def _shrunk(self, config: Any, rows: int, columns: int) -> tuple[int, int]:
        """Where the tokens are more than those of N tiles (`anyres_max_N`), by a tenth along each side, they are resized."""
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(rows * columns / (most * patches(config)[0] ** 2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


def build() -> LlavaOneVision:
    return LlavaOneVision()
