"""InternVL (in the layout of `transformers`): tiles, then the whole picture; boxes in thousandths."""

from __future__ import annotations

from typing import Any, ClassVar

from cos_core.dialogue.prompts import BoxStyle
from cos_core.models.families import Family, PixelBudget
from cos_core.models.families._pieces import library, patches, tiled
from cos_core.models.grids import Grid


class InternVL(Family):
    name: ClassVar[str] = "InternVL"
    projector: ClassVar[tuple[str, ...]] = ("multi_modal_projector",)
    boxes: ClassVar[BoxStyle] = BoxStyle("image", "thousandth", "x0y0x1y1", "<box>[[{x0}, {y0}, {x1}, {y1}]]</box>", 0)
    boxes_source: ClassVar[str] = "OpenGVLab/InternVL issues 227 and 285"
    budget_words: ClassVar[tuple[str, ...]] = ("max_tiles",)

    def apply(self, image_processor: Any, budget: PixelBudget) -> None:
        image_processor.max_patches = max(budget.max_tiles or 1, image_processor.min_patches)

    def budget(self, image_processor: Any) -> dict[str, int]:
        return {"max_tiles": int(image_processor.max_patches) if image_processor.crop_to_patches else 1}

    def grids(self, config: Any, processor: Any, size: tuple[int, int], pictures: int = 1) -> tuple[Grid, ...]:
        """A grid a tile, then the whole picture."""
        images = processor.image_processor
        rows = columns = 1
        if images.crop_to_patches:
            tile = (images.size["height"], images.size["width"])
            columns, rows = library(images).get_optimal_tiled_canvas(
                (size[1], size[0]), tile, images.min_patches, images.max_patches
            )
        high, wide = patches(config)
        return tiled(rows, columns, Grid(int(high * config.downsample_ratio), int(wide * config.downsample_ratio)))


def build() -> InternVL:
    return InternVL()
