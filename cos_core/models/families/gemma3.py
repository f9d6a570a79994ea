"""Gemma 3: every picture in one size; the tokens of a picture see one another both ways."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from cos_core.errors import InputError
from cos_core.models.families._one_size import OneSize
from cos_core.models.grids import Grid


class Gemma3(OneSize):
    name: ClassVar[str] = "Gemma 3"
    projector: ClassVar[tuple[str, ...]] = ("multi_modal_projector",)
    needs_token_types: ClassVar[bool] = True

    def grids(self, config: Any, processor: Any, size: tuple[int, int], pictures: int = 1) -> tuple[Grid, ...]:
        """One grid over the whole picture."""
        if getattr(processor.image_processor, "do_pan_and_scan", None):
            raise InputError(
                "Gemma 3 with pan and scan shows parts of the picture that overlap, and relevance cannot be mapped to the "
                "picture; set do_pan_and_scan to false in its preprocessor_config.json"
            )
        side = math.isqrt(config.mm_tokens_per_image)
        return (Grid(side, side),)


def build() -> Gemma3:
    return Gemma3()
