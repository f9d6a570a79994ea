"""Where pictures take their boxes from, one record at a time: a predictions file, a directory with one, or a store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cos_core import jsonl
from cos_core.errors import InputError
from cos_core.geometry import Box
from cos_core.jsonl import OnProblem, Problem
from cos_core.store import Store
from cos_core.types import Prediction

PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True, slots=True)
class Found:
    """One example's region, or why it has none: `status` is a box status, or "labelled", "no region", "failed" for a store."""

    box: Box | None
    status: str
    image: str | None = None


def is_store(path: Path) -> bool:
    """Whether `path` is an annotation store (an LMDB directory) rather than predictions."""
    return path.is_dir() and (path / "data.mdb").is_file()


def read_predictions(path: Path, on_problem: OnProblem | None = None) -> Iterator[Prediction]:
    """The predictions of a file, or of the `predictions.jsonl` in a directory.

    A line that is not a prediction goes to `on_problem`; without one it raises InputError naming file and line.
    """
    file = path / PREDICTIONS if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such predictions file")
    for line, record in jsonl.read_lines(file, on_problem):
        try:
            prediction = Prediction.from_json(record)
        except InputError as error:
            jsonl.report(Problem(file, line, None, str(error)), on_problem)
            continue
        yield prediction


def read_boxes(path: Path, on_problem: OnProblem | None = None) -> Iterator[Found]:
    """Every example's region in a store or predictions file, in stored order."""
    if not is_store(path):
        for prediction in read_predictions(path, on_problem):
            yield Found(prediction.box, "failed" if prediction.error else prediction.box_status, prediction.image)
        return
    with Store.read(path) as store:
        for annotation in store.annotations():
            yield Found(annotation.box, "labelled" if annotation.box else "no region", annotation.image)
        for _ in store.failures():
            yield Found(None, "failed")
