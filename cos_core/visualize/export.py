"""`cos visualize export`: a run for other viewers; what a format has no place for becomes an attribute.

coco          one JSON: images, annotations in pixels (x, y, width, height), categories "predicted" and "gold"
fiftyone      `fo.types.FiftyOneImageDetectionDataset`: labels by picture, boxes relative to it
label-studio  tasks with pre-annotations: rectangles in percent; `image_prefix` makes the pictures' addresses
lmms-eval     samples as `--log_samples` writes them: a line a question, with the response and the score
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal

import numpy as np

from cos_core.data.formats import coco
from cos_core.errors import FailuresError, InputError
from cos_core.files import images, manifest, outputs
from cos_core.files.durable import atomic_file
from cos_core.files.text import one_line
from cos_core.geometry import Box
from cos_core.interfaces import Reporter
from cos_core.types import RunManifest
from cos_core.visualize import runs, select
from cos_core.visualize.config import Format, RunExportConfig
from cos_core.visualize.run_questions import RunQuestion
from cos_core.visualize.runs import LATER_FIELDS, FinishedRun

_OURS: Mapping[str, outputs.IsOurs] = {"lmms-eval": outputs.records_with("doc_id", "doc_hash")}
_CATEGORIES = {"predicted": 1, "gold": 2}
_MOST_WARNINGS = 5
"""Warnings about single questions and pictures that are left out; the others are only counted."""


@dataclass(slots=True)
class _Job:
    """An export under way: settings, run, ids to export, and the numbers of failed questions and of unreadable pictures."""

    config: RunExportConfig
    run: FinishedRun
    ids: Sequence[str]
    reporter: Reporter
    failed: int = 0
    unreadable_pictures: int = 0

    def items(self) -> Iterator[tuple[str, RunQuestion]]:
        for example_id in self.ids:
            yield example_id, self.run.item(example_id)

    def fail(self, example_id: str, why: str) -> None:
        """Counts a question that is left out; the first few become warnings."""
        self.failed += 1
        if self.failed <= _MOST_WARNINGS:
            self.reporter.warn(f"{one_line(example_id)} is left out: {one_line(why)}")

    def json(self, example_id: str, value: object, indent: int | None = 1) -> str | None:
        """`value` as ASCII JSON (a lone surrogate becomes its escape); None, and a failure, where JSON cannot hold it."""
        try:
            return json.dumps(value, indent=indent, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            self.fail(example_id, "its record holds what JSON cannot (NaN, Infinity, or nested too deeply)")
            return None


def run(config: RunExportConfig, reporter: Reporter) -> RunManifest:
    """Writes `config.out` and `<out>.manifest.json`.

    A question whose picture's path names no picture, or (coco) cannot be read, or whose record JSON cannot hold, is left out
    with a warning and counted as failed.
    """
    outputs.check_file(config.out, "visualize export", (config.source, config.data, config.images), _OURS.get(config.format))
    work = manifest.started("visualize export", config)
    (loaded,) = runs.load([config.source], runs.RunSources(config.data, config.images, config.follow_links), reporter)
    job = _Job(config, loaded, select.selected_ids([loaded], config.selection), reporter)
    with atomic_file(config.out) as file:
        _WRITERS[config.format](job, file)
    result = work.finish({"ok": len(job.ids) - job.failed, "failed": job.failed}, results={"format": config.format})
    manifest.write(manifest.path_for(config.out), result)
    if job.failed and job.failed >= len(job.ids):
        raise FailuresError(f"none of {job.failed} questions has a picture that could be read ({config.out}); give --images")
    reporter.note(f"{len(job.ids) - job.failed} questions: {config.out}")
    return result


def _boxes(item: RunQuestion) -> list[tuple[Literal["predicted", "gold"], Box]]:
    boxes: list[tuple[Literal["predicted", "gold"], Box]] = []
    if item.box is not None:
        boxes.append(("predicted", item.box))
    if item.gold is not None:
        boxes.append(("gold", item.gold))
    return boxes


def _about(example_id: str, item: RunQuestion) -> dict[str, Any]:
    """The fields that every format gets with a box: id, question, answers, score, and how the region was predicted."""
    about: dict[str, Any] = {"example_id": example_id, "question": item.question, "answer": item.answer}
    about["gold_answer"] = item.truth
    if item.score is not None:
        about["score"] = item.score.value
    if item.prediction is not None:
        about |= {key: getattr(item.prediction, key) for key in ("box_status", "policy", "profile")}
        about |= _looks(item)
    return about


def _looks(item: RunQuestion) -> dict[str, Any]:
    """What stood in the second picture in place of the region, what the gate decided, and the sampled answers, where set."""
    if item.prediction is None:
        return {}
    looks = {name: value for name in LATER_FIELDS if (value := getattr(item.prediction, name)) is not None}
    return {**looks, "samples": [each.answer for each in item.prediction.samples]} if looks.pop("samples") else looks


class _List:
    """One JSON list, written element by element as `json.dumps(..., indent=1)` writes it at `depth`."""

    def __init__(self, file: BinaryIO, depth: int = 0) -> None:
        self._file, self._margin, self.count = file, "\n" + " " * (depth + 1), 0
        self._end = "\n" + " " * depth + "]"

    def add(self, text: str) -> None:
        before = "," if self.count else "["
        self._file.write(f"{before}{self._margin}{_moved(text, self._margin)}".encode())
        self.count += 1

    def close(self) -> None:
        self._file.write(self._end.encode() if self.count else b"[]")


def _moved(text: str, margin: str) -> str:
    """A JSON text indented by `margin` (JSON strings contain no line ends)."""
    return text.replace("\n", margin)


def _coco(job: _Job, file: BinaryIO) -> None:
    pictures: dict[str, tuple[int, int, int] | None] = {}
    # The file lists the pictures before the annotations, and the list is complete only after the last annotation.
    with tempfile.TemporaryFile() as images_part, tempfile.TemporaryFile() as annotations_part:
        listed, annotations = _List(images_part, 1), _List(annotations_part, 1)
        for example_id, item in job.items():
            if item.image is None:
                continue
            if item.image not in pictures:
                pictures[item.image] = _coco_image(job, item.image, len(pictures) + 1, listed)
            picture = pictures[item.image]
            if picture is None:
                job.failed += 1
                continue
            number, *size = picture
            entries = [
                coco.annotation(annotations.count + n, number, _CATEGORIES[kind], box, (size[0], size[1]))
                | _about(example_id, item)
                for n, (kind, box) in enumerate(_boxes(item), 1)
            ]
            texts = [job.json(example_id, entry) for entry in entries]
            for text in texts:
                if text is not None:
                    annotations.add(text)
        listed.close()
        annotations.close()
        info = {"description": f"regions of {job.run.name}", "version": "1.0"}
        categories = [{"id": number, "name": name, "supercategory": "region"} for name, number in _CATEGORIES.items()]
        file.write(f'{{\n "info": {_moved(json.dumps(info, indent=1), chr(10) + " ")},\n "licenses": [],\n "images": '.encode())
        for name, part in (("images", images_part), ("annotations", annotations_part)):
            file.write(b',\n "annotations": ' if name == "annotations" else b"")
            part.seek(0)
            shutil.copyfileobj(part, file)
        file.write(f',\n "categories": {_moved(json.dumps(categories, indent=1), chr(10) + " ")}\n}}\n'.encode())


def _coco_image(job: _Job, name: str, number: int, listed: _List) -> tuple[int, int, int] | None:
    """(number, width, height) of the picture, which is added to `listed`; None, with a warning, for an unreadable one."""
    try:
        width, height = images.picture_size(job.run.images, name)
    except InputError as error:
        job.unreadable_pictures += 1
        if job.unreadable_pictures <= _MOST_WARNINGS:
            job.reporter.warn(str(error))
        return None
    listed.add(json.dumps({"id": number, "file_name": name, "width": width, "height": height}, indent=1))
    return number, width, height


def _fiftyone(job: _Job, file: BinaryIO) -> None:
    """Labels by picture, in order of first appearance; the questions of one picture need not be neighbours."""
    numbers: dict[str, int] = {}
    picture_of = array("q")
    for example_id, item in job.items():
        label = None if item.image is None else _without_suffix(item.image)
        if item.image is not None and label is None:
            job.fail(example_id, f"{item.image!r} names no picture")
        picture_of.append(-1 if label is None else numbers.setdefault(label, len(numbers)))
    order = np.argsort(np.array(picture_of, dtype=np.int64), kind="stable").tolist() if picture_of else []
    names = list(numbers)
    file.write(b'{\n "labels": {')
    now = -1
    listed: _List | None = None
    for place in order:
        if picture_of[place] < 0:
            continue
        if picture_of[place] != now:
            if listed is not None:
                listed.close()
            file.write(f"{',' if now >= 0 else ''}\n  {json.dumps(names[picture_of[place]])}: ".encode())
            now, listed = picture_of[place], _List(file, 2)
        example_id = job.ids[place]
        item = job.run.item(example_id)
        for kind, box in _boxes(item):
            corners = [box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0]
            text = job.json(example_id, {"label": kind, "bounding_box": corners, "attributes": _about(example_id, item)})
            if text is not None and listed is not None:
                listed.add(text)
    if listed is not None:
        listed.close()
    file.write(b"\n }\n}\n" if numbers else b"}\n}\n")


def _without_suffix(name: str) -> str | None:
    """A picture's path as FiftyOne names it; None for a path that names no file."""
    path = PurePosixPath(name)
    return None if path.name in ("", "..") or "\0" in name else str(path.with_suffix(""))


def _label_studio(job: _Job, file: BinaryIO) -> None:
    tasks = _List(file)
    for example_id, item in job.items():
        if item.image is None:
            continue
        if _without_suffix(item.image) is None:
            job.fail(example_id, f"{item.image!r} names no picture")
            continue
        versions: dict[str, list[dict[str, Any]]] = {}
        for kind, box in _boxes(item):
            value = {
                "x": 100 * box.x0,
                "y": 100 * box.y0,
                "width": 100 * (box.x1 - box.x0),
                "height": 100 * (box.y1 - box.y0),
                "rotation": 0,
                "rectanglelabels": [kind],
            }
            name = hashlib.sha256(f"{example_id}/{kind}".encode("utf-8", "replace")).hexdigest()[:10]
            region = {"id": name, "type": "rectanglelabels", "from_name": "label", "to_name": "image", "value": value}
            versions.setdefault(job.run.name if kind == "predicted" else kind, []).append(region)
        data = {"image": job.config.image_prefix + item.image, **_about(example_id, item)}
        predictions = [{"model_version": v, "result": r} for v, r in versions.items()]
        text = job.json(example_id, {"data": data, "predictions": predictions})
        if text is not None:
            tasks.add(text)
    tasks.close()
    file.write(b"\n")


def _lmms_eval(job: _Job, file: BinaryIO) -> None:
    metric = str(job.run.results.get("headline", {}).get("metric", "score"))
    written = 0
    for number, (example_id, item) in enumerate(job.items()):
        doc = {"id": example_id, "question": item.question, "image": item.image, **_meta(item)}
        hashed = job.json(example_id, doc, 2)
        if hashed is None:
            continue
        looks = _looks(item)
        sampled = looks.pop("samples", [item.answer])
        line: dict[str, Any] = {
            "doc_id": number,
            "doc": doc,
            "target": item.truth,
            "arguments": [item.question],
            "resps": [sampled],
            "filtered_resps": [(item.score.extracted if item.score else None) or item.answer],
            "doc_hash": hashlib.sha256(hashed.encode()).hexdigest(),
            "roi": {
                "box": list(item.box.corners) if item.box else None,
                "text": item.prediction.box_text if item.prediction else None,
                "status": item.prediction.box_status if item.prediction else None,
                **looks,
            },
        }
        if item.score is not None:
            line[metric] = item.score.value
        text = job.json(example_id, line, None)
        if text is not None:
            file.write(f"{text}\n".encode())
            written += 1
    file.write(b"" if written else b"\n")


def _meta(item: RunQuestion) -> Mapping[str, Any]:
    meta = {} if item.example is None else {**item.example.steering(), **item.example.meta}
    return {key: value for key, value in meta.items() if key not in ("id", "question")}


_WRITERS: Mapping[Format, Callable[[_Job, BinaryIO], None]] = {
    "coco": _coco,
    "fiftyone": _fiftyone,
    "label-studio": _label_studio,
    "lmms-eval": _lmms_eval,
}
