"""Readers of boxes, one record at a time: from a predictions file, a directory with one, or a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cos_core.data import datasets
from cos_core.dialogue.cropping import CropSettings, OpenPicture, assumed_second_picture
from cos_core.errors import InputError
from cos_core.files import jsonl, manifest
from cos_core.files.jsonl import OnProblem
from cos_core.geometry import Box
from cos_core.scoring import metrics, recorded
from cos_core.store.annotations import Store, is_store
from cos_core.types import UNUSABLE_BOXES, Prediction

if TYPE_CHECKING:
    from PIL.Image import Image

PREDICTIONS = "predictions.jsonl"
NO_SECOND_LOOK = "no second look"
"""The status of a question whose plain answer stands under a gate: whatever its box, nothing was looked at."""


@dataclass(frozen=True, slots=True)
class SourceRegion:
    """One example's region, or why it has none: `status` is a box status, "failed" or NO_SECOND_LOOK; for a store "labelled",
    "no region" or "failed".

    `box` is None for a box that could not be read, also where a fallback region was used.
    """

    box: Box | None
    status: str
    image: str | None = None
    example_id: str = ""


def read_predictions(path: Path, on_problem: OnProblem | None = None) -> Iterator[Prediction]:
    """The predictions of a file, or of the `predictions.jsonl` in a directory.

    A line that is not a prediction goes to `on_problem`; without one it raises InputError naming file and line.
    """
    file = path / PREDICTIONS if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such predictions file")
    for _, _, prediction in recorded.read(file, on_problem, ours=True):
        yield prediction


def read_boxes(path: Path, on_problem: OnProblem | None = None) -> Iterator[SourceRegion]:
    """Every example's region in a store or predictions file, in stored order."""
    if not is_store(path):
        for prediction in read_predictions(path, on_problem):
            yield SourceRegion(*looked_at(prediction), prediction.image, prediction.example_id)
        return
    with Store.read(path) as store:
        for annotation in store.annotations():
            box = annotation.box
            yield SourceRegion(box, "no region" if box is None else "labelled", annotation.image, annotation.example_id)
        for example_id, _ in store.failures():
            yield SourceRegion(None, "failed", None, example_id)


def looked_at(prediction: Prediction) -> tuple[Box | None, str]:
    """The region of the model's that an answer rests on, and its status (see SourceRegion)."""
    if prediction.error:
        return metrics.usable_box(prediction), "failed"
    if prediction.gate == "closed" and prediction.box_status not in UNUSABLE_BOXES:
        return None, NO_SECOND_LOOK
    return metrics.usable_box(prediction), prediction.box_status


class Cuts:
    """How the second pictures of a predictions file were made, as the manifests of `cos infer` beside the file say."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, tuple[Mapping[str, Any], CropSettings | None]] = {}

    def _of(self, prediction: Prediction) -> tuple[Mapping[str, Any], CropSettings | None]:
        mark = prediction.fingerprint
        if mark not in self._known:
            record = manifest.beside(self._file, mark)
            found = None if record is None else record.results.get("settings")
            settings = found if isinstance(found, Mapping) else {}
            self._known[mark] = settings, CropSettings.from_settings(settings)
        return self._known[mark]

    def settings(self, prediction: Prediction) -> Mapping[str, Any]:
        """The recorded settings of its run; empty for an answer of an earlier version, another program or an unfinished run."""
        return self._of(prediction)[0]

    def of(self, prediction: Prediction) -> CropSettings | None:
        """The recorded settings of the cut; None where `settings` do not say them."""
        return self._of(prediction)[1]

    def crop(self, picture: Image, prediction: Prediction, other: OpenPicture | None = None) -> Image | None:
        """The second picture, made again (CropSettings.crop); without a record of how it was cut, the region is the part of the
        picture in its box. Raises InputError for one that cannot be made again."""
        cut = self.of(prediction)
        if cut is not None:
            return cut.crop(picture, prediction, other)
        return assumed_second_picture(picture, prediction, other=other)


@contextmanager
def references(path: Path | None) -> Iterator[Callable[[str], Box | None]]:
    """The region that another source names for an id: a store's (looked up, not held), a predictions file's, or the gold
    regions of a questions' file. Raises InputError."""
    if path is None:
        yield lambda example_id: None
    elif is_store(path):
        with Store.read(path) as store:

            def stored(example_id: str) -> Box | None:
                annotation = store.get(example_id)
                return annotation.box if annotation else None

            yield stored
    else:
        yield _held(path).get


def _held(path: Path) -> dict[str, Box]:
    if path.is_dir() or _holds_predictions(path):
        return {p.example_id: box for p in read_predictions(path) if (box := metrics.usable_box(p)) is not None}
    examples = datasets.read_examples(path, text_only="keep")
    return {e.id: e.gold for e in examples if e.gold is not None}


def _holds_predictions(path: Path) -> bool:
    return path.suffix == ".jsonl" and any("example_id" in row for _, row in islice(jsonl.read_lines(path), 1))
