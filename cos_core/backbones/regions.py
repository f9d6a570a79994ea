"""The paper's §3.2 with the LLaVA model itself: relevance of the answer to candidate regions seen at full resolution.

Every region that the detector proposes is cut from the original pixels, encoded, projected and pooled to one visual token
(or a few); these stand in the place of the image in the plain dialogue, the gold answer is teacher-forced, and Eq. 4-6 give
the relevance of the answer to each of them. So the annotator can read what is unreadable in the shrunken picture. Regions are
encoded once an image, whatever the number of its questions.

The model gets no region's place: the token of a region carries its content only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from cos_core import options
from cos_core.backbones import _questions
from cos_core.backbones._ahead import Ahead
from cos_core.dialogue.cropping import crop_region
from cos_core.errors import InputError
from cos_core.files import plug
from cos_core.geometry import Box
from cos_core.interfaces import Backbone, Detector, Relevance
from cos_core.relevance.propagation import SweepSettings, TargetKind
from cos_core.relevance.roi import RoiRule
from cos_core.types import Example, Regions

if TYPE_CHECKING:
    from PIL.Image import Image


CENTRE = 0.6
"""Share of a region's token grid, along each side, that its tokens are pooled from: things at the border are cut in half."""

ROI = RoiRule("union", threshold=0.3, extend=0.0)
"""What suits this backbone's scores; see the class."""


@dataclass(frozen=True, slots=True)
class RegionsBackbone(Backbone):
    """Made by `build`.

    `tokens`: visual tokens a region along each side of a small grid (1: one token a region, 2: four); its score is their sum.
    `roi`: all windows that are at least three tenths as relevant as the best, together: one window where one place answers the
    question, a wide region where the whole picture does. Windows are wider than most objects already, so nothing is added.
    """

    asker: _questions.Asker
    detector: Detector
    settings: Mapping[str, Any]
    tokens: int = 1
    roi: RoiRule = ROI
    ahead: Ahead[tuple[Regions, list[torch.Tensor]]] = field(default_factory=Ahead, repr=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """See interfaces.Backbone."""
        return (*self.detector.notes, *self.asker.notes)

    def relevance(self, groups: Sequence[tuple[Image, Sequence[Example]]]) -> list[list[Relevance]]:
        """See interfaces.Backbone. An image in which the detector finds nothing gives regions without boxes."""
        proposals = [self._proposed(image, next((e.image for e in group), None) or "") for image, group in groups]
        regions = [candidates for candidates, _ in proposals]
        features = self._features(proposals)
        places = [g for g, (_, examples) in enumerate(groups) for _ in examples if regions[g].boxes]
        examples = [e for g, (_, group) in enumerate(groups) for e in group if regions[g].boxes]
        questions = [self.asker.question(e, features[g]) for e, g in zip(examples, places, strict=True)]
        rows = iter(self.asker.explain(examples, questions))
        return [
            [Relevance(replace(candidates, scores=self._scores(next(rows)) if candidates.boxes else ())) for _ in group]
            for (_, group), candidates in zip(groups, regions, strict=True)
        ]

    def prepare(self, image: Image, path: str) -> None:
        """See interfaces.Backbone: cuts and resizes the candidates, where the detector may be asked in any thread."""
        if not self.detector.parallel:
            return
        try:
            candidates = self.detector.detect(image, path)
        except InputError:
            return  # `relevance` raises it again
        size = len(candidates.boxes) * _questions.pixel_bytes(self.asker.model)
        self.ahead.put(image, size, lambda: (candidates, [self._pixels(image, box) for box in candidates.boxes]))

    def _proposed(self, image: Image, path: str) -> tuple[Regions, Sequence[_questions.Pixels]]:
        """The candidates on a picture, and their pixels or what makes them."""
        ready = self.ahead.take(image)
        if ready is not None:
            return ready
        candidates = self.detector.detect(image, path)
        return candidates, [partial(self._pixels, image, box) for box in candidates.boxes]

    def _pixels(self, image: Image, box: Box) -> torch.Tensor:
        model = self.asker.model
        return _questions.pixels(model, crop_region(image, box, model.profile.crop_from, model.fill))

    def _scores(self, row: torch.Tensor) -> tuple[float, ...]:
        """Relevance of token positions, region after region, to one score a region."""
        return tuple(row.view(-1, self.tokens**2).sum(1).tolist())

    def _features(self, proposals: Sequence[tuple[Regions, Sequence[_questions.Pixels]]]) -> list[torch.Tensor]:
        """For each image (regions x tokens a region, hidden)."""
        model = self.asker.model

        def read(features: torch.Tensor) -> Sequence[torch.Tensor]:
            return centre_tokens(features, model, self.tokens).split(self.tokens**2)

        tokens = _questions.encoded(self.asker, [one for _, pixels in proposals for one in pixels], read)
        if not tokens:
            return [torch.empty(0) for _ in proposals]
        return list(torch.cat(tokens).split([len(candidates.boxes) * self.tokens**2 for candidates, _ in proposals]))


def build(
    model: str,
    detector: Detector | None = None,
    target: TargetKind = "log-odds",
    last_layers: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    tokens: int = 1,
    stream_layers: bool | None = None,
) -> RegionsBackbone:
    """Loads the checkpoint; `detector` None: the windows of `grid`; `tokens`: see RegionsBackbone.

    `stream_layers`: see relevance.SweepSettings. Raises InputError for tokens that are not 1 or more.
    """
    if type(tokens) is not int:
        raise InputError(f"tokens of a region is a whole number, got {tokens!r}")
    options.check_number("tokens of a region", tokens, 1, options.REGION_SIDE)
    asker = _questions.load(model, device, dtype, SweepSettings(target, last_layers, stream_layers))
    proposer: Detector = detector or plug.load("detectors", "grid")
    settings = {"name": "regions", "centre": CENTRE, "tokens": tokens, "detector": plug.described(proposer)}
    return RegionsBackbone(asker, proposer, {**settings, **asker.described()}, tokens)


def centre_tokens(features: torch.Tensor, model: Any, side: int = 1) -> torch.Tensor:
    """The central CENTRE of each side of the token grid, pooled to side x side.

    (n, image tokens, hidden) -> (n side^2, hidden); with `side` 1 the mean over the centre. Where `side` does not divide the
    centre evenly, neighbouring tokens share cells.
    """
    vision = model.model.config.vision_config
    grid = int(vision.image_size) // int(vision.patch_size)
    cells = features[:, features.shape[1] - grid * grid :].unflatten(1, (grid, grid))  # a class token would stand first
    margin = (grid - max(1, round(CENTRE * grid))) // 2
    centre = cells[:, margin : grid - margin, margin : grid - margin].permute(0, 3, 1, 2)
    return functional.adaptive_avg_pool2d(centre, side).flatten(2).transpose(1, 2).flatten(0, 1)
