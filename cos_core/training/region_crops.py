"""The regions that an annotator sees in place of a picture, each cut at full resolution, a few tokens each.

`cos annotate --backbone regions` shows a model pictures so (backbones/regions.py); fine-tuned on answers alone, the model
learns to use such inputs and to attend to the region that answers a question, without any labelled region.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cos_core.dialogue.cropping import CropFrom, crop_region
from cos_core.errors import InputError
from cos_core.interfaces import Detector

if TYPE_CHECKING:
    from PIL.Image import Image

    from cos_core.models.loaded import LoadedModel

_EXPECTED_REGIONS = 30


@dataclass(frozen=True, slots=True)
class RegionCrops:
    """`tokens`: visual tokens a region along each side of a small grid, as RegionsBackbone's."""

    detector: Detector
    tokens: int = 1

    @property
    def positions(self) -> int:
        """Tokens a region."""
        return self.tokens**2

    @property
    def expected_regions(self) -> int:
        """A guess at the number of regions per picture, for cost estimates and sorting by length."""
        return _EXPECTED_REGIONS

    def crops(self, picture: Image, path: str, crop_from: CropFrom, fill: tuple[int, int, int]) -> tuple[Image, ...]:
        """The regions of a picture as the backbone cuts them, under the profile's `crop_from` and the checkpoint's `fill`.

        Raises InputError when the detector finds none.
        """
        boxes = self.detector.detect(picture, path).boxes
        if not boxes:
            raise InputError("the detector proposes no region of its picture")
        return tuple(crop_region(picture, box, crop_from, fill) for box in boxes)


@contextmanager
def regions_as_tokens(loaded: LoadedModel, region_crops: RegionCrops | None) -> Iterator[None]:
    """Inside, the projector's output for a region is pooled to the tokens of `region_crops`, as the backbone pools it.

    A hook on the projector, so that the model's own forward does the rest under every engine, ZeRO-3's included.
    """
    if region_crops is None:
        yield
        return
    from cos_core.backbones.regions import centre_tokens
    from cos_core.models.llava import Llava

    model = loaded.model
    assert isinstance(loaded, Llava)

    def pooled(_projector: Any, _inputs: Any, features: Any) -> Any:
        return centre_tokens(features, loaded, region_crops.tokens).unflatten(0, (features.shape[0], region_crops.positions))

    whole = model.get_base_model() if hasattr(model, "peft_config") else model
    hook = whole.model.multi_modal_projector.register_forward_hook(pooled)
    try:
        yield
    finally:
        hook.remove()
