"""The paper's §3.2 with the model itself: relevance of the answer to candidate regions seen at full resolution.

Every region that the detector proposes is cut from the original pixels, encoded as a picture of its own, projected and pooled
to one visual token (or a few), from the grid of tokens that shows the whole of it; these stand in the place of the image in
the plain dialogue, the gold answer is teacher-forced, and Eq. 4-6 give the relevance of the answer to each of them. So the
annotator can read what is unreadable in the shrunken picture. Regions are encoded once an image, whatever the number of its
questions.

The model gets no region's place: the token of a region carries its content only. Positions are those of a picture that is one
row of tokens; features that enter several layers of the decoder (deepstack) are pooled alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from cos_core import options
from cos_core.backbones import _pictures, _questions
from cos_core.backbones._ahead import Ahead
from cos_core.dialogue.cropping import crop_region
from cos_core.errors import InputError
from cos_core.files import plug
from cos_core.geometry import Box
from cos_core.interfaces import Backbone, Detector, Relevance
from cos_core.models.families import PixelBudget
from cos_core.models.grids import Grid
from cos_core.relevance.propagation import SweepSettings, TargetKind
from cos_core.relevance.roi import RoiRule
from cos_core.types import Example, Regions

if TYPE_CHECKING:
    from PIL.Image import Image


_SEVERAL = 2
"""Crops are seen as pictures of a dialogue that shows several: LLaVA-OneVision cuts those into no tiles."""
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
    ahead: Ahead[tuple[Regions, list[_pictures.Prepared]]] = field(default_factory=Ahead, repr=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """See interfaces.Backbone."""
        return (*self.detector.notes, *self.asker.notes)

    def relevance(self, groups: Sequence[tuple[Image, Sequence[Example]]]) -> list[list[Relevance]]:
        """See interfaces.Backbone. An image in which the detector finds nothing gives regions without boxes."""
        proposals = [self._proposed(image, next((e.image for e in group), None) or "") for image, group in groups]
        regions = [candidates for candidates, _ in proposals]
        shown = [self._shown(crops) for crops in self._pooled([crops for _, crops in proposals])]
        places = [g for g, (_, examples) in enumerate(groups) for _ in examples if regions[g].boxes]
        examples = [e for g, (_, group) in enumerate(groups) for e in group if regions[g].boxes]
        questions = [self.asker.question(e, each) for e, g in zip(examples, places, strict=True) if (each := shown[g])]
        rows = iter(self.asker.explain(examples, questions))
        return [
            [Relevance(replace(candidates, scores=self._scores(next(rows)) if candidates.boxes else ())) for _ in group]
            for (_, group), candidates in zip(groups, regions, strict=True)
        ]

    def prepare(self, image: Image, path: str) -> None:
        """See interfaces.Backbone: cuts and prepares the candidates, where the detector may be asked in any thread."""
        if not self.detector.parallel:
            return
        try:
            candidates = self.detector.detect(image, path)
        except InputError:
            return  # `relevance` raises it again
        one = _pictures.known_bytes(self.asker.model)
        size = len(candidates.boxes) * one if one is not None else lambda made: sum(crop.nbytes for crop in made[1])
        self.ahead.put(image, size, lambda: (candidates, [self._crop(image, box) for box in candidates.boxes]))

    def _proposed(self, image: Image, path: str) -> tuple[Regions, Sequence[_pictures.Picture]]:
        """The candidates on a picture, and their crops, prepared, or what makes them."""
        ready = self.ahead.take(image)
        if ready is not None:
            return ready
        candidates = self.detector.detect(image, path)
        return candidates, [partial(self._crop, image, box) for box in candidates.boxes]

    def _crop(self, image: Image, box: Box) -> _pictures.Prepared:
        model = self.asker.model
        return _pictures.prepared(model, crop_region(image, box, model.profile.crop_from, model.fill), _SEVERAL)

    def _pooled(self, crops: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """The features of each crop's tokens, `tokens` squared of them, picture by picture."""
        model = self.asker.model

        def read(crop: _pictures.Prepared, features: Any) -> Any:
            grids = model.encoder.grids(crop.size, _SEVERAL)
            return model.pooled(features, lambda tokens: centre(whole(tokens, grids), self.tokens))

        flat = iter(_pictures.encoded(model, [one for each in crops for one in each], self.asker.pictures_allowed, read))
        return [list(islice(flat, len(each))) for each in crops]

    def _shown(self, crops: Sequence[Any]) -> _pictures.Shown | None:
        """A picture in whose place the tokens of its crops stand; None where there are none."""
        if not crops:
            return None
        model = self.asker.model
        return _pictures.Shown(model.encoder.crops(len(crops) * self.tokens**2), model.joined(crops))

    def _scores(self, row: torch.Tensor) -> tuple[float, ...]:
        """Relevance of token positions, region after region, to one score a region."""
        return tuple(row.view(-1, self.tokens**2).sum(1).tolist())


def build(
    model: str,
    detector: Detector | None = None,
    target: TargetKind = "log-odds",
    last_layers: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    tokens: int = 1,
    stream_layers: bool | None = None,
    budget: PixelBudget | None = None,
) -> RegionsBackbone:
    """Loads the checkpoint; `detector` None: the windows of `grid`; `tokens`: see RegionsBackbone.

    `stream_layers`: see relevance.SweepSettings; `budget`: how finely crops are shown. Raises InputError for tokens that are
    not 1 or more, and for a model whose image tokens look at no part of the picture.
    """
    if type(tokens) is not int:
        raise InputError(f"tokens of a region is a whole number, got {tokens!r}")
    options.check_number("tokens of a region", tokens, 1, options.REGION_SIDE)
    asker = _questions.load(model, device, dtype, SweepSettings(target, last_layers, stream_layers), None, budget)
    proposer: Detector = detector or plug.load("detectors", "grid")
    settings = {"name": "regions", "centre": CENTRE, "tokens": tokens, "detector": plug.described(proposer)}
    return RegionsBackbone(asker, proposer, {**settings, **asker.described()}, tokens)


def whole(features: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
    """Of a picture's features (tokens, hidden) those of the smallest grid that shows all of it, (rows, columns, hidden)."""
    ends = list(accumulate(map(len, grids), initial=0))
    shows_all = [place for place, grid in enumerate(grids) if _shows_all(grid)]
    place = min(shows_all, key=lambda place: (grids[place].newlines == "row", len(grids[place])))
    grid = grids[place]
    cells = features[ends[place] : ends[place + 1]][[area is not None for area in grid.areas()]]
    return cells.unflatten(0, (grid.rows, grid.columns))


def _shows_all(grid: Grid) -> bool:
    x0, y0, x1, y1 = grid.area
    return max(x0, y0) <= 0 and min(x1, y1) >= 1


def centre(cells: torch.Tensor, side: int = 1) -> torch.Tensor:
    """The central CENTRE of each side of grids (..., rows, columns, hidden), pooled to (..., side^2, hidden).

    With `side` 1 the mean over the centre. Where `side` does not divide the centre evenly, neighbouring tokens share cells.
    """
    rows, columns = (slice(margin, size - margin) for size in cells.shape[-3:-1] for margin in [_margin(size)])
    part = cells[..., rows, columns, :].movedim(-1, -3)
    return functional.adaptive_avg_pool2d(part, side).flatten(-2).transpose(-1, -2)


def _margin(size: int) -> int:
    return (size - max(1, round(CENTRE * size))) // 2


def centre_tokens(features: torch.Tensor, model: Any, side: int = 1) -> torch.Tensor:
    """`centre` of pictures as LLaVA-1.5 sees them: (n, image tokens, hidden) -> (n side^2, hidden)."""
    vision = model.model.config.vision_config
    grid = int(vision.image_size) // int(vision.patch_size)
    cells = features[:, features.shape[1] - grid * grid :].unflatten(1, (grid, grid))  # a class token would stand first
    return centre(cells, side).flatten(0, 1)
