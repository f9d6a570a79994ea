"""LLaVA-OneVision: tiled as LLaVA-NeXT while a dialogue shows one picture, each at its base resolution where it shows more."""

from __future__ import annotations

from typing import ClassVar

from cos_core.models.families.llava_next import LlavaNext


class LlavaOneVision(LlavaNext):
    name: ClassVar[str] = "LLaVA-OneVision"
    base_view: ClassVar[bool] = True

    def variant(self, pictures: int) -> int:
        return int(pictures > 1)

    def shown_as(self, variant: int) -> int:
        return 1 + variant


def build() -> LlavaOneVision:
    return LlavaOneVision()
