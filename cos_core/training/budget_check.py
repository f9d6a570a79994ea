"""What the pixel budget of a run makes of its pictures: tokens of pictures and crops, and regions below one token."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cos_core.errors import InputError
from cos_core.geometry import Box
from cos_core.models import families
from cos_core.models.encoder import Encoder
from cos_core.models.families import Family, option
from cos_core.models.grids import Grid

CEILINGS = ("max_pixels", "max_tiles", "longest_edge")
"""The words of a pixel budget that bound the tokens of a picture."""


def family_of(encoder: Encoder) -> Family:
    """The family of the checkpoint of an encoder."""
    return families.of_config(encoder.config.to_dict())


def way_out(family: Family) -> str:
    """What helps against samples longer than max_length."""
    lower = [option(word) for word in CEILINGS if word in family.budget_words]
    return "raise --max-length" + (f", or show pictures in fewer tokens with {' or '.join(lower)}" if lower else "")


def cell_share(encoder: Encoder, size: tuple[int, int], pictures: int) -> float:
    """The smallest share of a picture of `size` that one of its image tokens looks at. Raises InputError as picture_tokens."""
    try:
        return min(map(_cell, encoder.grids(size, pictures)))
    except InputError:
        return 1 / encoder.picture_tokens(size, pictures)


def _cell(grid: Grid) -> float:
    x0, y0, x1, y1 = grid.area
    return (x1 - x0) * (y1 - y0) / (grid.rows * grid.columns)


def share_of(region: Box, size: tuple[int, int]) -> float:
    """The area of a region in a picture of `size`, as a share of the picture's."""
    return region.area * (1.0 if region.frame == "image" else max(size) ** 2 / (size[0] * size[1]))


@dataclass(frozen=True, slots=True)
class Shown:
    """How one question's picture is shown: its `tokens`; where it has a region, those of the `crop`, and whether the region is
    `small`, that is smaller than the part of the picture that one image token looks at."""

    tokens: int
    crop: int | None = None
    small: bool = False


def shown(
    encoder: Encoder, size: tuple[int, int], pictures: int, crop: tuple[int, int] | None = None, region: Box | None = None
) -> Shown:
    """Of a picture of `size` (width, height) in a dialogue of `pictures` pictures; `crop`: the size of its `region`'s crop.

    Raises InputError as picture_tokens.
    """
    tokens = encoder.picture_tokens(size, pictures)
    if crop is None or region is None:
        return Shown(tokens)
    small = share_of(region, size) < cell_share(encoder, size, pictures)
    return Shown(tokens, encoder.picture_tokens(crop, pictures), small)


@dataclass(slots=True)
class PictureTokens:
    """How all questions' pictures are shown. `budget`: the pixel budget in words."""

    budget: str = ""
    full: array[int] = field(default_factory=lambda: array("l"))
    crops: array[int] = field(default_factory=lambda: array("l"))
    small: int = 0

    def add(self, one: Shown) -> None:
        self.full.append(one.tokens)
        if one.crop is not None:
            self.crops.append(one.crop)
        self.small += one.small

    def __str__(self) -> str:
        crops = f", crops of regions {_spread(self.crops)}" if self.crops else ""
        return f"pictures take {_spread(self.full)}{crops}{self.budget}" if self.full else ""

    def too_small(self) -> str:
        """How many regions are small; empty where none is."""
        share = 100 * self.small / max(len(self.crops), 1)
        one = "smaller than the part of the picture that one image token looks at"
        return f"{self.small} of {len(self.crops)} regions ({share:.0f} %) are {one}" if self.small else ""


def _spread(counts: Sequence[int]) -> str:
    ranked = sorted(counts)
    if ranked[0] == ranked[-1]:
        return f"{ranked[0]:,} tokens each"
    return f"{ranked[0]:,} to {ranked[-1]:,} tokens ({ranked[len(ranked) // 2]:,} in the middle)"


def budget_said(encoder: Encoder) -> str:
    """The pixel budget of an encoder's image processor, by its options: " (--max-pixels 1003520)"; empty where it has none."""
    processor: Any = getattr(encoder, "processor", None)
    words = family_of(encoder).budget(processor.image_processor) if processor is not None else {}
    return f" ({', '.join(f'{option(word)} {number}' for word, number in words.items())})" if words else ""
