"""Where to look without training: the relevance of a plain answer to the picture's patches stands for the first pass.

The model answers once, plainly; its own answer is explained (CoS Eq. 4-6, the annotator's backbone `patches`); the warmest
area is the region. Any model whose image tokens look at parts of the picture can do this, one that never learnt to write boxes
included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec import structs

from cos_core.backbones._each import relevance_of_each
from cos_core.files import plug
from cos_core.geometry import Box, SquarePad
from cos_core.interfaces import Backbone, Engine, HoldsModel, Policy
from cos_core.relevance import roi
from cos_core.types import Example

if TYPE_CHECKING:
    from PIL.Image import Image

    from cos_core.models.families import PixelBudget

POLICY = Policy(name="relevance", source="fixed", summary="the warmest area of the plain answer's relevance (no training)")


@dataclass(frozen=True, slots=True)
class HeatFinder:
    """Regions from relevance. `release`: frees what the engine keeps for later, where it shares its model with the backbone."""

    backbone: Backbone
    rule: roi.RoiRule
    release: Callable[[], None] | None = None

    def find(self, answers: Sequence[tuple[Example, Image, str]]) -> list[Box | str | None]:
        """For each (example, picture, plain answer) the region in frame "image", None where nothing stands out, or a text that
        says why the answer cannot be explained.
        """
        groups = [(image, [structs.replace(example, answers=(answer,))]) for example, image, answer in answers]
        boxes: list[Box | str | None] = []
        for (image, _), (relevance,) in zip(groups, relevance_of_each(self.backbone, groups, self.release), strict=True):
            if isinstance(relevance, str):
                boxes.append(relevance)
            elif relevance.regions is not None:
                boxes.append(roi.from_regions(relevance.regions, self.rule).box)
            else:
                boxes.append(roi.from_heat(relevance.heat or (), SquarePad(*image.size), self.rule).box)
        return boxes


def build(model: str, device: str, dtype: str, engine: Engine | None = None, budget: PixelBudget | None = None) -> HeatFinder:
    """A finder on the model that `engine` has loaded, whose memory both then share; for any other engine it is loaded here.

    `budget`: how finely pictures are shown, where it is loaded here. Raises what `loading.check_grids` and `loading.load`
    raise.
    """
    shared = engine if isinstance(engine, HoldsModel) else None
    options: dict[str, Any]
    options = {"model": shared.loaded, "room": shared.make_room} if shared else {"model": model, "budget": budget}
    backbone: Backbone = plug.load("backbones", "patches", device=device, dtype=dtype, **options)
    return HeatFinder(backbone, backbone.roi or roi.RoiRule(), shared.release if shared else None)
