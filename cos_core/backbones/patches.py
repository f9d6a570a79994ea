"""Relevance of the answer to the patches of the ordinary image: a heat map over the square frame (CoS Eq. 4-6).

The model sees what it always sees, the whole picture in its own way; what it cannot read there it cannot point at. Which part
of the picture each image token looks at says the family (Family.grids). With a detector (the mixed mode) its boxes are scored
on that map: the region has the outline of a thing and not of patches.

Defaults come from 100 scenes of the miniature (seed 9103, up to six questions each; IoU with gold / centre hit over all kinds
but counting). The map's component: 0.437/0.84, interpolated fourfold 0.467/0.85; clipped 0.440/0.84, smoothed 0.209/0.89 (on
five patches a side), contrasted 0.429/0.84; Otsu 0.441/0.85, half of the mass 0.445/0.85. The last 3 layers alone 0.437/0.85,
the last 2 and 1 worse. Boxes, best one: components 0.731/0.82 by "area", 0.727/0.82 by "contrast"; grid 0.481/0.84, 0.481/0.83.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import structs

from cos_core.backbones import _pictures, _questions
from cos_core.backbones._ahead import Ahead
from cos_core.errors import InputError
from cos_core.files.plug import described
from cos_core.geometry import SquarePad
from cos_core.interfaces import Backbone, Detector, Relevance
from cos_core.models.families import PixelBudget
from cos_core.models.loaded import LoadedModel
from cos_core.relevance import heat
from cos_core.relevance.propagation import SweepSettings, TargetKind
from cos_core.relevance.roi import RoiRule
from cos_core.types import Example

if TYPE_CHECKING:
    from PIL.Image import Image

ROI = RoiRule("component", threshold=0.5, extend=0.1, finer=4)
BOX_ROI = RoiRule("top1", extend=0.0)
"""What suits maps, and a detector's boxes scored on them."""


@dataclass(frozen=True, slots=True)
class MapOptions:
    """What a map is put through, in this order; see cos_core/relevance/heat.py.

    `contrast`: what the map of a prompt that asks nothing in particular (Inst.1 about the image alone, the model's own first
    word) shows on the same picture is taken away, at the cost of one more question a picture; `clip`: no cell above that
    percentile (99 is common); `smooth`: means of 3x3 cells. `score`: how a detector's boxes are scored.
    """

    contrast: bool = False
    clip: float | None = None
    smooth: bool = False
    score: heat.ScoreKind = "area"

    def __post_init__(self) -> None:
        if self.clip is not None and not 0.0 < self.clip <= 100.0:
            raise InputError(f"clip is a percentile in (0, 100], got {self.clip}")
        if self.score not in heat.SCORE_KINDS:
            raise InputError(f"unknown score {self.score!r}; one of {', '.join(heat.SCORE_KINDS)}")


@dataclass(frozen=True, slots=True)
class PatchesBackbone(Backbone):
    """Made by `build`. `roi`: the component around the hottest patch, sides extended by a tenth (the paper's "slightly"); with
    a `detector` its best box.
    """

    asker: _questions.Asker
    settings: Mapping[str, Any]
    detector: Detector | None = None
    options: MapOptions = MapOptions()
    roi: RoiRule = ROI
    ahead: Ahead[_pictures.Prepared] = field(default_factory=Ahead, repr=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """See interfaces.Backbone."""
        return (*(self.detector.notes if self.detector else ()), *self.asker.notes)

    def relevance(self, groups: Sequence[tuple[Image, Sequence[Example]]]) -> list[list[Relevance]]:
        """See interfaces.Backbone; with a detector both its boxes with scores and the map they were scored on."""
        if not groups:
            return []
        pictures = [image for image, _ in groups]
        shown = self._shown(pictures)
        examples = [e for _, group in groups for e in group]
        places = [g for g, (_, group) in enumerate(groups) for _ in group]
        if self.options.contrast:
            # One more for each picture that is asked about: the question that asks nothing.
            examples += [structs.replace(group[0], question="", answers=()) for _, group in groups if group]
            places += [g for g, (_, group) in enumerate(groups) if group]
        questions = [self.asker.question(e, shown[g]) for e, g in zip(examples, places, strict=True)]
        rows = self.asker.explain(examples, questions)
        maps = [self._map(row.double().numpy(), pictures[g]) for row, g in zip(rows, places, strict=True)]
        count = sum(len(group) for _, group in groups)
        question_maps, empty_maps = iter(maps[:count]), iter(maps[count:])
        return [self._finished(image, group, question_maps, empty_maps) for image, group in groups]

    def prepare(self, image: Image, path: str) -> None:
        """See interfaces.Backbone: what the image processor does. Raises InputError for a picture that it does not take."""
        model = self.asker.model
        size = _pictures.known_bytes(model) or (lambda made: made.nbytes)
        self.ahead.put(image, size, partial(_pictures.prepared, model, image))

    def _shown(self, pictures: Sequence[Image]) -> list[_pictures.Shown]:
        model = self.asker.model
        ready = [self.ahead.take(picture) for picture in pictures]
        todo = [
            partial(_pictures.prepared, model, picture) if one is None else one
            for picture, one in zip(pictures, ready, strict=True)
        ]

        def read(picture: _pictures.Prepared, features: Any) -> _pictures.Shown:
            return _pictures.Shown(model.without_pixels(picture.inputs), features)

        return _pictures.encoded(model, todo, self.asker.pictures_allowed, read)

    def _map(self, row: np.ndarray, picture: Image) -> np.ndarray:
        return heat.over_grids(row, self.asker.model.encoder.checked_grids(picture.size, len(row)), picture.size)

    def _finished(
        self, image: Image, group: Sequence[Example], maps: Iterator[np.ndarray], empty: Iterator[np.ndarray]
    ) -> list[Relevance]:
        """The next maps, one for each question on the picture, as results."""
        if not group:
            return []
        pad = SquarePad(*image.size)
        nothing = next(empty) if self.options.contrast else None
        candidates = self.detector.detect(image, group[0].image or "") if self.detector else None
        results = []
        for _ in group:
            grid = self._treated(next(maps), nothing, pad)
            regions = None
            if candidates is not None:
                regions = replace(candidates, scores=heat.box_scores(grid, candidates.boxes, pad, self.options.score))
            results.append(Relevance(regions, tuple(tuple(row) for row in grid.tolist())))
        return results

    def _treated(self, grid: np.ndarray, nothing: np.ndarray | None, pad: SquarePad) -> np.ndarray:
        grid = heat.without_padding(grid, pad)
        if nothing is not None:
            grid = heat.beyond(grid, nothing, pad)
        if self.options.clip is not None:
            grid = heat.clipped(grid, pad, self.options.clip)
        return heat.smoothed(grid, pad) if self.options.smooth else grid


def build(
    model: str | LoadedModel,
    detector: Detector | None = None,
    target: TargetKind = "log-odds",
    last_layers: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    stream_layers: bool | None = None,
    contrast: bool = False,
    clip: float | None = None,
    smooth: bool = False,
    score: heat.ScoreKind = "area",
    room: _questions.Room | None = None,
    budget: PixelBudget | None = None,
) -> PatchesBackbone:
    """Loads the checkpoint, unless `model` is one that is loaded. `detector`: boxes to score on the map; None: the map alone.

    `contrast`, `clip`, `smooth`, `score`: see MapOptions; `room`: what else uses the model's memory, see _questions.Room;
    `budget`: how finely pictures are shown. Raises InputError for a model whose image tokens look at no part of the picture.
    """
    options = MapOptions(contrast, clip, smooth, score)
    asker = _questions.load(model, device, dtype, SweepSettings(target, last_layers, stream_layers), room, budget)
    settings = {"name": "patches", **asdict(options), "detector": detector and described(detector)}
    return PatchesBackbone(asker, {**settings, **asker.described()}, detector, options, BOX_ROI if detector else ROI)
