"""LLaVA-OneVision: tiled as LLaVA-NeXT while a dialogue shows one picture, each at its base resolution where it shows more."""

from __future__ import annotations

from typing import ClassVar

from cos_core.models.families.llava_next import LlavaNext


class LlavaOneVision(LlavaNext):
    name: ClassVar[str] = "LLaVA-OneVision"
    second_view_change: ClassVar[str] = (
        "pass 2 shows the picture and its crop at base resolution, where pass 1 shows the picture in tiles"
    )

    def variant(self, pictures: int) -> int:
        return int(pictures > 1)

    def copies(self, variant: int) -> int:
        return 1 + variant


def build() -> LlavaOneVision:
    return LlavaOneVision()
