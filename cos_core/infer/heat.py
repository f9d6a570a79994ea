"""Where to look without training: the relevance of a plain answer to the picture's patches stands for the first pass.

The model answers once, plainly; its own answer is explained (CoS Eq. 4-6, the annotator's backbone `patches`); the warmest
area is the region. Any LLaVA can do this, one that never learnt to write boxes included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cos_core import plug, roi
from cos_core.geometry import Box, SquarePad
from cos_core.interfaces import Backbone, Policy
from cos_core.types import Example

if TYPE_CHECKING:
    from PIL.Image import Image

POLICY = Policy(name="relevance", source="fixed", summary="the warmest area of the plain answer's relevance (no training)")


@dataclass(frozen=True, slots=True)
class HeatFinder:
    """Regions from relevance; the backbone holds a copy of the model of its own."""

    backbone: Backbone
    rule: roi.RoiRule

    def find(self, asked: Sequence[tuple[Example, Image, str]]) -> list[Box | None]:
        """For each (example, picture, plain answer) the region in frame "image", None where nothing stands out."""
        groups = [(image, [replace(example, answers=(answer,))]) for example, image, answer in asked]
        found: list[Box | None] = []
        for (image, _), (relevance,) in zip(groups, self.backbone.relevance(groups), strict=True):
            if relevance.regions is not None:
                found.append(roi.from_regions(relevance.regions, self.rule).box)
            else:
                found.append(roi.from_heat(relevance.heat or (), SquarePad(*image.size), self.rule).box)
        return found


def build(model: str, device: str, dtype: str) -> HeatFinder:
    """Loads the model once more, for the gradients. Raises what `llava.load` raises."""
    backbone: Any = plug.load("backbones", "patches", model=model, device=device, dtype=dtype)
    return HeatFinder(backbone, getattr(backbone, "roi", roi.RoiRule()))
