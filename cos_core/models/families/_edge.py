"""What the families share whose pictures are bounded by their longest edge."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

from cos_core.models.families import Family, PixelBudget
from cos_core.models.families._pieces import library, stand_in, tiled
from cos_core.models.grids import Grid


class LongestEdge(Family):
    """The longer side of a picture is resized to at most `longest_edge` pixels."""

    budget_words: ClassVar[tuple[str, ...]] = ("longest_edge",)

    def apply(self, image_processor: Any, budget: PixelBudget) -> None:
        image_processor.size = {"longest_edge": budget.longest_edge}

    def budget(self, image_processor: Any) -> dict[str, int]:
        return {"longest_edge": int(image_processor.size["longest_edge"])}


class PatchesOfEdge(LongestEdge):
    """One grid of cells of the resized picture; a token that is no image token stands behind each row."""

    def grids(self, config: Any, processor: Any, size: tuple[int, int], pictures: int = 1) -> tuple[Grid, ...]:
        """By the image processor's own rule; a cell is a square of merged patches."""
        cell = int(processor.patch_size * processor.spatial_merge_size)
        edge = int(processor.image_processor.size["longest_edge"])
        high, wide = library(processor.image_processor).get_resize_output_image_size(
            stand_in(size), (edge, edge), (cell, cell), "channels_first"
        )
        return (Grid(high // cell, wide // cell),)

    def text_layout(self, grids: Sequence[Grid]) -> Hashable:
        return grids[0].rows


class TilesOfEdge(LongestEdge):
    """The resized picture in tiles, with a name in front of each; then the whole picture."""

    def grids(self, config: Any, processor: Any, size: tuple[int, int], pictures: int = 1) -> tuple[Grid, ...]:
        """By the image processor's own rules.

        Its `get_number_of_image_patches` is not asked: where its `longest_edge` is no whole number of tiles, it can have
        another number than the image processor makes.
        """
        images = processor.image_processor
        tile = int(images.max_image_size["longest_edge"])
        rows = columns = 1
        if images.do_image_splitting:
            rows, columns = _tiles(library(images), size, int(images.size["longest_edge"]), tile)
        side = tile // int(config.vision_config.patch_size) // int(config.scale_factor)
        return tiled(rows, columns, Grid(side, side))

    def text_layout(self, grids: Sequence[Grid]) -> Hashable:
        return tuple(grid.area for grid in grids)

    def around(self, text: str, word: str) -> tuple[str, str]:
        """The last stretch of image tokens is the whole picture, and what stands before it names it so."""
        before, _, behind = text.rpartition(word)
        while before.endswith(word):
            before = before.removesuffix(word)
        return before.rpartition(word)[2].lstrip("\n"), behind


def _tiles(module: Any, size: tuple[int, int], edge: int, tile: int) -> tuple[int, int]:
    """(rows, columns) of tiles: the longer side becomes a whole number of them first, the other one follows it."""
    high, wide = module.get_resize_output_image_size(stand_in(size), edge)
    shape = wide / high
    if wide >= high:
        columns = math.ceil(wide / tile)
        return math.ceil(int(columns * tile / shape) / tile), columns
    rows = math.ceil(high / tile)
    return rows, math.ceil(int(rows * tile * shape) / tile)
