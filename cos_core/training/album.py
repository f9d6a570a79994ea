"""What an annotator sees in the place of a picture: its candidate regions, each cut at full resolution, a few tokens each.

`cos annotate --backbone regions` shows a model pictures so (backbones/regions.py); fine-tuned on answers alone, the model
learns to read such albums and to bind a question to the region that answers it, without any region being told.
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

    from cos_core.models.llava import Llava

_ABOUT = 30


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
    def about(self) -> int:
        """A guess at the number of regions a picture, for plans."""
        return _ABOUT

    def crops(self, picture: Image, path: str, crop_from: CropFrom, fill: tuple[int, int, int]) -> tuple[Image, ...]:
        """The regions of a picture as the backbone cuts them, under the profile's `crop_from` and the checkpoint's `fill`.

        Raises InputError when the detector finds none.
        """
        boxes = self.detector.detect(picture, path).boxes
        if not boxes:
            raise InputError("the detector proposes no region of its picture")
        return tuple(crop_region(picture, box, crop_from, fill) for box in boxes)


@contextmanager
def regions_as_tokens(llava: Llava, album: RegionCrops | None) -> Iterator[None]:
    """Inside, what the projector makes of a region is pooled to the album's tokens, as the backbone pools it.

    A hook on the projector, so that the model's own forward does the rest under every engine, ZeRO-3's included.
    """
    if album is None:
        yield
        return
    from cos_core.backbones.regions import centre_tokens

    model = llava.model

    def pooled(_projector: Any, _inputs: Any, features: Any) -> Any:
        return centre_tokens(features, llava, album.tokens).unflatten(0, (features.shape[0], album.positions))

    whole = model.get_base_model() if hasattr(model, "peft_config") else model
    hook = whole.model.multi_modal_projector.register_forward_hook(pooled)
    try:
        yield
    finally:
        hook.remove()
