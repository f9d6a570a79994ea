"""Relevance of the answer to the patches of the ordinary image: a heat map over the square frame (CoS Eq. 4-6).

The model sees what it always sees, the whole picture at the encoder's size; what it cannot read there it cannot point at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from cos_core.backbones import _questions
from cos_core.interfaces import Detector, Relevance
from cos_core.manifest import fingerprint, plain
from cos_core.relevance import SweepSettings, TargetKind
from cos_core.roi import RoiRule
from cos_core.types import Example

if TYPE_CHECKING:
    from PIL.Image import Image

ROI = RoiRule("component", threshold=0.5, extend=0.1)
"""What suits this backbone's scores; see the class."""


@dataclass(frozen=True, slots=True)
class PatchesBackbone:
    """Made by `build`. `roi`: the component around the hottest patch, sides extended by a tenth (the paper's "slightly")."""

    asker: _questions.Asker
    fingerprint: str
    roi: RoiRule = ROI

    @property
    def notes(self) -> tuple[str, ...]:
        """See interfaces.Backbone."""
        return self.asker.notes

    def relevance(self, groups: Sequence[tuple[Image, Sequence[Example]]]) -> list[list[Relevance]]:
        """See interfaces.Backbone."""
        if not groups:
            return []
        model = self.asker.model
        step = _questions.pixels_per_call(int(model.model.config.vision_config.image_size))
        pictures = [image for image, _ in groups]
        parts = [model.image_features(model.pixels(pictures[i : i + step])) for i in range(0, len(pictures), step)]
        features = [one for part in parts for one in part]
        examples = [e for _, asked in groups for e in asked]
        places = [g for g, (_, asked) in enumerate(groups) for _ in asked]
        questions = [self.asker.question(e, features[g]) for e, g in zip(examples, places, strict=True)]
        rows = iter(self.asker.explain(examples, questions))
        return [[Relevance(heat=heat_map(next(rows))) for _ in asked] for _, asked in groups]


def build(
    model: str,
    detector: Detector | None = None,
    target: TargetKind = "log-odds",
    last_layers: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> PatchesBackbone:
    """Loads the checkpoint. `detector` is not used: patches are their own candidates."""
    asker = _questions.load(model, device, dtype, SweepSettings(target, last_layers))
    settings = {"backbone": "patches", "target": target, "last_layers": last_layers}
    model_settings = {"model": asker.model.fingerprint, "profile": asker.model.profile, "dtype": str(asker.model.model.dtype)}
    return PatchesBackbone(asker, fingerprint(plain({**settings, **model_settings})))


def heat_map(row: torch.Tensor) -> tuple[tuple[float, ...], ...]:
    """Relevance of image positions, row-major over a square of patches, as (rows, columns), without a class token in front."""
    side = math.isqrt(row.shape[0])
    cells: list[list[Any]] = row[row.shape[0] - side * side :].view(side, side).tolist()
    return tuple(tuple(line) for line in cells)
