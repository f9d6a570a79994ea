"""The paper's §3.2 with the LLaVA model itself: relevance of the answer to candidate regions seen at full resolution.

Every region that the detector proposes is cut from the original pixels, encoded, projected and pooled to one visual token;
these tokens stand in the place of the image in the plain dialogue, the gold answer is teacher-forced, and Eq. 4-6 give the
relevance of the answer to each of them. So the annotator can read what is unreadable in the shrunken picture. Regions are
encoded once an image, whatever the number of its questions.

No region's place is told: the token of a region carries its content only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cos_core import images, plug
from cos_core.backbones import _questions
from cos_core.interfaces import Detector, Relevance
from cos_core.manifest import fingerprint, plain
from cos_core.relevance import SweepSettings, TargetKind
from cos_core.types import Example, Regions

if TYPE_CHECKING:
    from PIL.Image import Image

CENTRE = 0.6
"""Share of a region's token grid, along each side, whose mean is its token: what stands at the border is half another's."""


@dataclass(frozen=True, slots=True)
class RegionsBackbone:
    """Made by `build`. `fingerprint` changes with the weights and with all settings that change scores.

    `roi`: the best window as it is. Windows are wider than most objects already, a threshold over overlapping windows only
    widens them, and on the miniature scenes it gained nothing.
    """

    asker: _questions.Asker
    detector: Detector
    fingerprint: str
    roi: Mapping[str, Any] = field(default_factory=lambda: {"region": "top1", "extend": 0.0})

    def relevance(self, groups: Sequence[tuple[Image, Sequence[Example]]]) -> list[list[Relevance]]:
        """See interfaces.Backbone. An image in which the detector finds nothing gives regions without boxes."""
        regions = [self.detector.detect(image) for image, _ in groups]
        features = self._features([(image, found) for (image, _), found in zip(groups, regions, strict=True)])
        places = [g for g, (_, examples) in enumerate(groups) for _ in examples if regions[g].boxes]
        examples = [e for g, (_, asked) in enumerate(groups) for e in asked if regions[g].boxes]
        questions = [self.asker.question(e, features[g]) for e, g in zip(examples, places, strict=True)]
        rows = iter(self.asker.explain(examples, questions))
        return [
            [Relevance(replace(found, scores=tuple(next(rows).tolist()) if found.boxes else ())) for _ in asked]
            for (_, asked), found in zip(groups, regions, strict=True)
        ]

    def _features(self, proposals: Sequence[tuple[Image, Regions]]) -> list[torch.Tensor]:
        """For each image (regions, hidden): one token a region."""
        model = self.asker.model
        crops = [images.crop_region(image, box) for image, found in proposals for box in found.boxes]
        if not crops:
            return [torch.empty(0) for _ in proposals]
        side = int(model.model.config.vision_config.image_size)
        step = _questions.pixels_per_call(side)
        tokens = [
            centre_token(model.image_features(pixels(model, crops[i : i + step])), model) for i in range(0, len(crops), step)
        ]
        return list(torch.cat(tokens).split([len(found.boxes) for _, found in proposals]))


def build(
    model: str,
    detector: str = "grid",
    target: TargetKind = "log-odds",
    last_layers: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> RegionsBackbone:
    """Loads the checkpoint and the detector. Raises InputError for attention that relevance does not know."""
    asker = _questions.load(model, device, dtype, SweepSettings(target, last_layers))
    proposer = plug.load("detectors", detector)
    settings = {"backbone": "regions", "centre": CENTRE, "target": target, "last_layers": last_layers, "detector": detector}
    model_settings = {"model": asker.model.fingerprint, "profile": asker.model.profile, "dtype": str(asker.model.model.dtype)}
    mark = fingerprint(plain({**settings, **model_settings, "detector_settings": _settings(proposer)}))
    return RegionsBackbone(asker, proposer, mark)


def pixels(model: Any, crops: Sequence[Image]) -> torch.Tensor:
    """What `Llava.pixels` gives, (n, 3, side, side), made a batch at a time where the processor only resizes and normalises.

    The processor's work a picture costs more than the vision tower does on small encoders. Equality is tested.
    """
    processor = model.image_processor
    side = _plain_side(processor)
    if side is None:
        result: torch.Tensor = model.pixels(crops)
        return result
    raster = np.empty((len(crops), side, side, 3), np.uint8)
    for place, crop in zip(raster, crops, strict=True):
        place[:] = np.asarray(images.square_pad(crop, model.fill).resize((side, side), processor.resample))
    # What the processor's arithmetic makes of each of the 256 values a byte can have, in its own order of rounding.
    rescaled = (np.arange(256) * processor.rescale_factor).astype(np.float32)
    for_channel = zip(processor.image_mean, processor.image_std, strict=True)
    tables = [(rescaled - np.float32(mean)) / np.float32(std) for mean, std in for_channel]
    normalised = np.stack([table[raster[..., c]] for c, table in enumerate(tables)], 1)
    return torch.from_numpy(normalised).to(model.device, model.model.dtype)


def centre_token(features: torch.Tensor, model: Any) -> torch.Tensor:
    """The mean over the central CENTRE of each side of the token grid: (n, image tokens, hidden) -> (n, hidden)."""
    vision = model.model.config.vision_config
    grid = int(vision.image_size) // int(vision.patch_size)
    cells = features[:, features.shape[1] - grid * grid :].unflatten(1, (grid, grid))  # a class token would stand first
    margin = (grid - max(1, round(CENTRE * grid))) // 2
    return cells[:, margin : grid - margin, margin : grid - margin].mean((1, 2))


def _plain_side(processor: Any) -> int | None:
    """The side that a square picture is resized to, when resizing, rescaling and normalising is all the processor does."""
    steps = ("do_resize", "do_rescale", "do_normalize")
    if not all(getattr(processor, step, False) for step in steps) or getattr(processor, "do_pad", False):
        return None
    size = dict(processor.size)
    sides = {int(v) for v in size.values() if v is not None}
    if getattr(processor, "do_center_crop", False):
        sides |= {int(v) for v in dict(processor.crop_size).values() if v is not None}
    return sides.pop() if len(sides) == 1 else None


def _settings(detector: Detector) -> Any:
    return plain(detector) if hasattr(detector, "__dataclass_fields__") else type(detector).__name__
