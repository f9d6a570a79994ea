"""What the Qwen-VL families share: pictures resized to multiples of a cell, within a budget of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cos_core.errors import InputError
from cos_core.models.families import Family, PixelBudget
from cos_core.models.families._pieces import library
from cos_core.models.grids import Grid

CELLS_OF_28: Mapping[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessorPil",
    "patch_size": 14,
    "merge_size": 2,
    "size": {"shortest_edge": 3136, "longest_edge": 12845056},
}
"""preprocessor_config.json of Qwen/Qwen2-VL-7B-Instruct and Qwen/Qwen2.5-VL-7B-Instruct: 4 to 16,384 tokens a picture. Without
one, the class in `transformers` shows 1,280 tokens at most."""
CELLS_OF_32: Mapping[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessorPil",
    "patch_size": 16,
    "merge_size": 2,
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
}
"""preprocessor_config.json of Qwen/Qwen3-VL-8B-Instruct: 64 to 16,384 tokens a picture."""


class DynamicResolution(Family):
    """Pictures keep their shape: each side becomes a multiple of `patch_size * merge_size`, the area fits the budget."""

    budget_words: ClassVar[tuple[str, ...]] = ("min_pixels", "max_pixels")

    def resized(self, image_processor: Any, width: int, height: int) -> tuple[int, int]:
        """By the image processor's own `smart_resize`."""
        size, cell = image_processor.size, self.cell(image_processor)
        high, wide = library(image_processor).smart_resize(
            height, width, cell, min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"]
        )
        return wide, high

    def grids(self, config: Any, processor: Any, size: tuple[int, int], pictures: int = 1) -> tuple[Grid, ...]:
        """One grid: a token is a cell of the resized picture."""
        cell = self.cell(processor.image_processor)
        wide, high = self.resized(processor.image_processor, *size)
        return (Grid(high // cell, wide // cell),)

    def cell(self, image_processor: Any) -> int:
        """Side of a token's part of the resized picture, in pixels."""
        return int(image_processor.patch_size * image_processor.merge_size)

    def resized_once(self, image_processor: Any) -> bool:
        return bool(image_processor.do_resize)

    def apply(self, image_processor: Any, budget: PixelBudget) -> None:
        size = dict(image_processor.size)
        low = size["shortest_edge"] if budget.min_pixels is None else budget.min_pixels
        high = size["longest_edge"] if budget.max_pixels is None else budget.max_pixels
        # A ceiling below the checkpoint's own floor lowers the floor: the ceiling is what was asked for.
        low = min(low, high) if budget.min_pixels is None else low
        if low > high:
            raise InputError(f"--min-pixels {low} lies above the checkpoint's own ceiling, --max-pixels {high}; give both")
        image_processor.size = {"shortest_edge": low, "longest_edge": high}
        for name, value in (("min_pixels", low), ("max_pixels", high)):
            if hasattr(image_processor, name):
                setattr(image_processor, name, value)

    def budget(self, image_processor: Any) -> dict[str, int]:
        return {
            "min_pixels": int(image_processor.size["shortest_edge"]),
            "max_pixels": int(image_processor.size["longest_edge"]),
        }
