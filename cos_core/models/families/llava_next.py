"""LLaVA-NeXT: the whole picture and tiles of it, joined without their padding."""

from __future__ import annotations

from typing import Any, ClassVar

from cos_core.errors import InputError
from cos_core.models.families import Family, PixelBudget
from cos_core.models.families._pieces import library, patches, stand_in
from cos_core.models.grids import Grid


class LlavaNext(Family):
    name: ClassVar[str] = "LLaVA-NeXT"
    projector: ClassVar[tuple[str, ...]] = ("multi_modal_projector",)
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

    def grids(self, config: Any, processor: Any, size: tuple[int, int], pictures: int = 1) -> tuple[Grid, ...]:
        """The whole picture, its shape not kept; then the tiles as one grid, a newline behind each row."""
        whole = Grid(*patches(config))
        canvas = library(processor.image_processor).select_best_resolution(
            (size[1], size[0]), processor.image_processor.image_grid_pinpoints
        )
        joined = self._joined(config, processor.image_processor, size, canvas)
        if canvas is None:
            raise InputError(f"a picture of {size[0]} x {size[1]} pixels fits none of the canvases that tiles are cut from")
        return (whole, joined) if joined else (whole,)

    def _joined(self, config: Any, image_processor: Any, size: tuple[int, int], canvas: tuple[int, int]) -> Grid | None:
        """The grid of the tiles on a canvas (height, width) without its padding; None: no token is left of it."""
        (width, height), (high, wide) = size, canvas
        tile_rows, tile_columns = patches(config)
        tile = int(config.vision_config.image_size)
        rows, columns = high // tile * tile_rows, wide // tile * tile_columns
        # The model leaves padding out by whole tokens, rounding otherwise than the image processor that put it there.
        above = left = 0
        if width / height > columns / rows:
            above = (rows - int(round(height * (columns / width), 7))) // 2
        else:
            left = (columns - int(round(width * (rows / height), 7))) // 2
        kept_rows, kept_columns = rows - 2 * above, columns - 2 * left
        if kept_rows == 0:
            return None  # of a line of pixels; of one from top to bottom the newlines are left
        shown_high, shown_wide = library(image_processor).get_patch_output_size(stand_in(size), canvas, "channels_first")
        x, y = (wide - shown_wide) // 2, (high - shown_high) // 2
        cell_high, cell_wide = tile / tile_rows, tile / tile_columns
        area = (
            (left * cell_wide - x) / shown_wide,
            (above * cell_high - y) / shown_high,
            ((left + kept_columns) * cell_wide - x) / shown_wide,
            ((above + kept_rows) * cell_high - y) / shown_high,
        )
        return Grid(*self._shrunk(config, kept_rows, kept_columns), area, "row")

    def _shrunk(self, config: Any, rows: int, columns: int) -> tuple[int, int]:
        """(rows, columns) that the model shows of the tiles' tokens."""
        return rows, columns

    def _tiles(self, image_processor: Any, canvas: Any) -> int:
        size = image_processor.size
        side = size.get("shortest_edge") or size["height"]
        return int(canvas[0] // side) * int(canvas[1] // side)


def build() -> LlavaNext:
    return LlavaNext()
