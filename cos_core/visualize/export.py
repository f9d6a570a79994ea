"""`cos visualize export`: a run for other viewers; what a format has no place for becomes an attribute.

coco          one JSON: images, annotations in pixels (x, y, width, height), categories "predicted" and "gold"
fiftyone      `fo.types.FiftyOneImageDetectionDataset`: labels by picture, boxes relative to it
label-studio  tasks with pre-annotations: rectangles in percent; `image_prefix` makes the pictures' addresses
lmms-eval     samples as `--log_samples` writes them: a line a question, with the response and the score
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from cos_core import images, manifest
from cos_core.errors import InputError
from cos_core.formats import coco
from cos_core.geometry import Box
from cos_core.interfaces import Reporter
from cos_core.types import RunManifest
from cos_core.visualize import runs, select
from cos_core.visualize.runs import Item, Run
from cos_core.visualize.select import Selection

Format = Literal["coco", "fiftyone", "label-studio", "lmms-eval"]
FORMATS: tuple[Format, ...] = ("coco", "fiftyone", "label-studio", "lmms-eval")
_CATEGORIES = {"predicted": 1, "gold": 2}


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """`source`: an eval folder or a predictions file; `out`: the file to write; `format`: one of FORMATS; `data`, `images`:
    where questions and pictures are, when the run does not say; `image_prefix` stands before image paths (label-studio)."""

    source: Path
    out: Path
    format: Format
    data: Path | None = None
    images: Path | None = None
    image_prefix: str = ""
    selection: Selection = field(default_factory=Selection)

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"no export format is called {self.format!r}; there are: {', '.join(FORMATS)}")


@dataclass(slots=True)
class _Job:
    """The run, the chosen ids, and how many pictures could not be read."""

    config: ExportConfig
    run: Run
    ids: Sequence[str]
    reporter: Reporter
    failed: int = 0

    def items(self) -> Iterator[tuple[str, Item]]:
        for example_id in self.ids:
            yield example_id, self.run.item(example_id)


def run(config: ExportConfig, reporter: Reporter) -> RunManifest:
    """Writes `config.out` and `<out>.manifest.json`. In coco, questions without a readable picture are left out and counted."""
    work = manifest.started("visualize export", config)
    (found,) = runs.load([config.source], runs.RunSources(config.data, config.images), reporter)
    job = _Job(config, found, select.chosen([found], config.selection), reporter)
    text = _WRITERS[config.format](job)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    manifest.atomic_write(config.out, text)
    result = work.finish({"ok": len(job.ids) - job.failed, "failed": job.failed}, results={"format": config.format})
    manifest.write(manifest.path_for(config.out), result)
    reporter.note(f"{len(job.ids) - job.failed} questions: {config.out}")
    return result


def _boxes(item: Item) -> list[tuple[Literal["predicted", "gold"], Box]]:
    boxes: list[tuple[Literal["predicted", "gold"], Box]] = []
    if item.box is not None:
        boxes.append(("predicted", item.box))
    if item.gold is not None:
        boxes.append(("gold", item.gold))
    return boxes


def _about(example_id: str, item: Item) -> dict[str, Any]:
    """What every format carries beside the box."""
    about: dict[str, Any] = {"example_id": example_id, "question": item.question, "answer": item.answer}
    about["gold_answer"] = item.truth
    if item.score is not None:
        about["score"] = item.score.value
    if item.prediction is not None:
        about |= {key: getattr(item.prediction, key) for key in ("box_status", "policy", "profile")}
    return about


def _coco(job: _Job) -> str:
    pictures: dict[str, dict[str, Any] | None] = {}
    annotations: list[dict[str, Any]] = []
    for example_id, item in job.items():
        if item.image is None:
            continue
        if item.image not in pictures:
            pictures[item.image] = _coco_image(job, item.image, len(pictures) + 1)
        picture = pictures[item.image]
        if picture is None:
            job.failed += 1
            continue
        for kind, box in _boxes(item):
            entry = coco.annotation(
                len(annotations) + 1, picture["id"], _CATEGORIES[kind], box, (picture["width"], picture["height"])
            )
            annotations.append(entry | _about(example_id, item))
    data = {
        "info": {"description": f"regions of {job.run.name}", "version": "1.0"},
        "licenses": [],
        "images": [picture for picture in pictures.values() if picture is not None],
        "annotations": annotations,
        "categories": [{"id": number, "name": name, "supercategory": "region"} for name, number in _CATEGORIES.items()],
    }
    return _json(data)


def _coco_image(job: _Job, name: str, number: int) -> dict[str, Any] | None:
    try:
        width, height = images.picture_size(job.run.images, name)
    except InputError as error:
        job.reporter.warn(str(error))
        return None
    return {"id": number, "file_name": name, "width": width, "height": height}


def _fiftyone(job: _Job) -> str:
    labels: dict[str, list[dict[str, Any]]] = {}
    for example_id, item in job.items():
        if item.image is None:
            continue
        found = labels.setdefault(str(PurePosixPath(item.image).with_suffix("")), [])
        for kind, box in _boxes(item):
            place = [box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0]
            found.append({"label": kind, "bounding_box": place, "attributes": _about(example_id, item)})
    return _json({"labels": labels})


def _label_studio(job: _Job) -> str:
    tasks = []
    for example_id, item in job.items():
        if item.image is None:
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
        tasks.append({"data": data, "predictions": [{"model_version": v, "result": r} for v, r in versions.items()]})
    return _json(tasks)


def _lmms_eval(job: _Job) -> str:
    lines = []
    metric = str(job.run.results.get("headline", {}).get("metric", "score"))
    for number, (example_id, item) in enumerate(job.items()):
        doc = {"id": example_id, "question": item.question, "image": item.image, **_meta(item)}
        target = item.truth
        line: dict[str, Any] = {
            "doc_id": number,
            "doc": doc,
            "target": target,
            "arguments": [item.question],
            "resps": [[item.answer]],
            "filtered_resps": [(item.score.extracted if item.score else None) or item.answer],
            "doc_hash": hashlib.sha256(json.dumps(doc, indent=2).encode()).hexdigest(),
            "roi": {
                "box": list(item.box.corners) if item.box else None,
                "text": item.prediction.box_text if item.prediction else None,
                "status": item.prediction.box_status if item.prediction else None,
            },
        }
        if item.score is not None:
            line[metric] = item.score.value
        lines.append(json.dumps(line))
    return "\n".join(lines) + "\n"


def _meta(item: Item) -> Mapping[str, Any]:
    return {key: value for key, value in (item.example.meta if item.example else {}).items() if key not in ("id", "question")}


def _json(data: object) -> str:
    # ASCII: half a character in a text is kept as its escape.
    return json.dumps(data, indent=1) + "\n"


_WRITERS: Mapping[Format, Callable[[_Job], str]] = {
    "coco": _coco,
    "fiftyone": _fiftyone,
    "label-studio": _label_studio,
    "lmms-eval": _lmms_eval,
}
