"""LLaVA-NeXT: the whole picture and tiles of it, joined without their padding."""

from __future__ import annotations

from typing import Any, ClassVar

from cos_core.models.families import Family, PixelBudget


class LlavaNext(Family):
    name: ClassVar[str] = "LLaVA-NeXT"
    budget_words: ClassVar[tuple[str, ...]] = ("max_tiles",)

    def apply(self, image_processor: Any, budget: PixelBudget) -> None:
        """Leaves the canvases of at most `max_tiles` tiles, the smallest one at least."""
        tiles = {tuple(canvas): self._tiles(image_processor, canvas) for canvas in image_processor.image_grid_pinpoints}
        most = max(budget.max_tiles or 1, min(tiles.values()))
        image_processor.image_grid_pinpoints = [list(canvas) for canvas, count in tiles.items() if count <= most]

    def agree(self, config: Any, image_processor: Any) -> None:
        """The model joins the tiles again by the canvas that it chooses from its own list."""
        config.image_grid_pinpoints = image_processor.image_grid_pinpoints

    def budget(self, image_processor: Any) -> dict[str, int]:
        return {"max_tiles": max(self._tiles(image_processor, canvas) for canvas in image_processor.image_grid_pinpoints)}

    def _tiles(self, image_processor: Any, canvas: Any) -> int:
        size = image_processor.size
        side = size.get("shortest_edge") or size["height"]
        return int(canvas[0] // side) * int(canvas[1] // side)


def build() -> LlavaNext:
    return LlavaNext()
