"""What the records of a run say of each of its questions: whether the second pass saw a region, which, and at what cost.

Facts are columns in the order of a run's scores. What a run's files do not say is left out, and a sentence names it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cos_core.files import jsonl, manifest
from cos_core.scoring.columns import IdColumn, Scores
from cos_core.scoring.comparison import ScoredRun
from cos_core.scoring.metrics import usable_box
from cos_core.scoring.recorded import UNSAID, Recorded
from cos_core.types import UNUSABLE_BOXES, Prediction

REGIONS = "regions.jsonl"

USABLE, UNUSABLE, ONCE, FAILED = range(4)
LOOKS = ("box usable", "box not usable", "no second look", "no answer")
"""What a question's second look was at, by number. "Box usable": the region of a box, of the model's own or of a fixed policy.
"Box not usable": what stands in for it (`--on-bad-box`). "No second look": one pass, or a closed gate."""

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """Columns over the questions `ids`.

    looks    (questions,) numbers of LOOKS
    called   (questions,) whether the second pass was shown a picture in the place of a usable box's region
    area     (questions,) the usable box's share of the picture; nan without one
    iou      (questions,) the usable box's IoU with the data's own region; nan without either
    prompt   (questions,) tokens of the second pass's prompt, its pictures included; -1 where that is not known

    `known`: whether the answers could be read; without them the columns hold nothing. `remarks`: what is not known and why, a
    sentence each.
    """

    ids: IdColumn
    looks: NDArray[np.int8]
    called: Bools
    area: NDArray[np.float64]
    iou: NDArray[np.float64]
    prompt: NDArray[np.int64]
    known: bool = True
    remarks: tuple[str, ...] = ()

    @property
    def looked(self) -> bool:
        """Whether any question is known to have had a second look."""
        return self.known and bool(np.any(self.looks <= UNUSABLE))

    def take(self, ids: IdColumn) -> Facts:
        """The facts of `ids`, which are all among this run's, in their order."""
        if ids.names == self.ids.names:
            return self
        places = self.ids.places()
        rows = np.fromiter((places[name] for name in ids.names), dtype=np.intp, count=len(ids))
        columns = {name: getattr(self, name)[rows] for name in ("looks", "called", "area", "iou", "prompt")}
        return replace(self, ids=ids, **columns)


def nothing(ids: IdColumn, *remarks: str) -> Facts:
    """Facts of a run whose answers are not known."""
    n = len(ids)
    return Facts(
        ids,
        np.full(n, FAILED, dtype=np.int8),
        np.zeros(n, dtype=np.bool_),
        np.full(n, np.nan),
        np.full(n, np.nan),
        np.full(n, -1, dtype=np.int64),
        known=False,
        remarks=remarks,
    )


def collect(ids: IdColumn, predictions: Iterable[Prediction]) -> Facts:
    """The facts that predictions hold, without `iou`. Of several answers to one question the last counts; a failure replaces
    none. A question without any counts as failed."""
    facts, places = nothing(ids), ids.places()
    answered = array("b", bytes(len(ids)))
    found = strange = sampled = 0
    for prediction in predictions:
        place = places.get(prediction.example_id)
        if prediction.profile == UNSAID or (place is not None and answered[place] and prediction.answer is None):
            continue
        if place is None:
            strange += 1
            continue
        found += 1
        sampled += bool(prediction.samples)
        answered[place] = prediction.answer is not None
        box, look = usable_box(prediction), _look(prediction)
        facts.looks[place] = look
        facts.called[place] = look == USABLE and prediction.shown != "absent"
        facts.area[place] = box.area if box is not None and look == USABLE else np.nan
        facts.prompt[place] = prediction.tokens.get("pass2_in", -1) if look <= UNUSABLE else -1
    if not found:
        why = "go by other ids than its scores" if strange else "say nothing of boxes"
        return replace(facts, remarks=(f"its answers {why}",))
    remarks = ("of several samples of an answer, the box is that of the first",) if sampled else ()
    return replace(facts, known=True, remarks=remarks)


def _look(prediction: Prediction) -> int:
    if prediction.box_status in UNUSABLE_BOXES and prediction.gate != "closed":
        return UNUSABLE
    if prediction.answer is None:
        return FAILED
    return ONCE if prediction.gate == "closed" or prediction.box is None else USABLE


def read(run: ScoredRun) -> Facts:
    """The facts of a run of `cos eval`, from the answers that it scored and the regions beside its scores.

    Answers that are gone, or are no longer those that were scored, are left out, and a remark says so. Those of the policy
    "none" need not be read: they have no second look. Raises InputError when a file changes while it is read.
    """
    ids = Scores.of(run.scores).ids
    if run.protocol.get("policy") == "none":
        once = nothing(ids)
        return replace(once, looks=np.full_like(once.looks, ONCE), known=True)
    file = _answers(run)
    facts = nothing(ids, file) if isinstance(file, str) else collect(ids, _predictions(file))
    return with_overlaps(facts, overlaps(run.path))


def with_overlaps(facts: Facts, overlaps: Iterable[tuple[str, float]]) -> Facts:
    """The facts with the IoU of (example id, IoU) pairs, where the box was usable."""
    iou, places = np.full(len(facts.ids), np.nan), facts.ids.places()
    for example_id, value in overlaps:
        place = places.get(example_id)
        if place is not None and facts.looks[place] == USABLE and facts.known:
            iou[place] = value
    return replace(facts, iou=iou)


def _predictions(file: Path) -> Iterator[Prediction]:
    unread: list[Any] = []
    for _, prediction in Recorded(file, unread.append).walk():
        yield prediction


def _answers(run: ScoredRun) -> Path | str:
    """The file of the answers that a run scored, or the reason for having none."""
    recorded = run.manifest.inputs.get("predictions", {})
    named = recorded.get("path")
    if not isinstance(named, str):
        return f"{run.path} does not say which answers it scored"
    places = (Path(named), run.path / Path(named).name)
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return f"the answers that {run.path} scored are gone: {named}"
    if manifest.file_digest(file) != recorded.get("sha256"):
        return f"{file} has changed since it was scored"
    return file


def overlaps(folder: Path) -> Iterator[tuple[str, float]]:
    """(example id, IoU) of the regions beside a run's scores that have one; lines that are no such record are passed over."""
    file = folder / REGIONS
    if not file.is_file():
        return
    for _, row in jsonl.read_lines(file, lambda problem: None):
        example_id, value = row.get("example_id"), row.get("iou")
        if isinstance(example_id, str) and isinstance(value, int | float) and not isinstance(value, bool):
            yield example_id, float(value)
