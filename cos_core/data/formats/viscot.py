"""Visual-CoT (Shao et al. 2024, deepcs233/Visual-CoT): 438k questions with the boxes of the regions that answer them.

Two layouts are read. Metadata, a JSON object a line: `{"question", "answer", "image", "width", "height", "bboxs": [[left, top,
right, bottom]], "dataset", "split"}`, pixels of the unpadded picture. And what tools/convert_data_to_llava_format.py makes of
it (viscot_363k.json, the benchmark): a list of `{"dataset", "split", "question_id", "image": [path, "path###[l, t, r, b]"],
"conversations"}`; `question_id` is the line of the metadata, from 0, so that both layouts give an example the same id,
`<dataset>_<split>_<question_id>`. As there, several boxes of one question count as the rectangle around them.

Written is the metadata layout, with `example_id` and `score` as further keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from msgspec import structs

from cos_core.data.formats.records import IMPORTED, ImportSource, Incoming, Outgoing, from_pixels
from cos_core.errors import InputError
from cos_core.files.big_json import read_json_list
from cos_core.files.jsonl import Problem, encode_line, open_input, read_lines, report
from cos_core.types import Annotation, Example

_MARKED = re.compile(r"(?P<image>.+)###\[(?P<box>[^\]]*)\]", re.DOTALL)
_ASKS = re.compile(
    r" Please (?:think step by step and )?provide the bounding box coordinate of the region that can help you answer the "
    r"question better\.\s*\Z"
)
_FOLDER_OF = {"textcap": "textvqa"}
"""The picture folder of a data set, where it is another's; relative to Visual-CoT's `cot/`."""


def write(file: BinaryIO, regions: Iterable[Outgoing]) -> int:
    """One line a region; returns their number. Raises InputError for regions without their questions."""
    count = 0
    for region in regions:
        example, record = region.example, region.annotation
        if example is None:
            raise InputError("Visual-CoT's layout holds questions and answers; give the questions' file (--data)")
        sides = (region.width, region.height, region.width, region.height)
        line = {
            "question": example.question,
            "answer": example.answers[0] if example.answers else "",
            "image": record.image or example.image,
            "width": region.width,
            "height": region.height,
            "bboxs": [[round(v * side, 6) for v, side in zip(region.box.corners, sides, strict=True)]],
            "dataset": example.dataset,
            "split": str(example.meta.get("split", "train")),
            "example_id": record.example_id,
            "score": record.score,
        }
        file.write(encode_line(line))
        count += 1
    return count


def read(source: ImportSource) -> Iterator[Incoming]:
    """Regions with their questions from a file in either layout; what does not fit goes to `source.on_problem`."""
    for line, place, record in _records(source):
        name = None
        try:
            example, boxes = _metadata(record, place) if "bboxs" in record else _converted(record)
            name = example.id
            frame = source.sizes.frame(example.image, example.meta, shown="example_id" in record)
            corners = _around(boxes)
            if source.boxes.wants():
                source.boxes.add(corners, (frame.width, frame.height), example.image, name)
            box = from_pixels(*corners, frame)
            score = record.get("score", 0.0)
            if isinstance(score, bool) or not isinstance(score, int | float):
                raise InputError("`score` must be a number")
            annotation = Annotation(name, box, float(score), IMPORTED, source.fingerprint, image=example.image)
        except InputError as error:
            report(Problem(source.path, line, name, str(error)), source.on_problem)
            if name is not None:
                yield Incoming(name, failure=f"{source.path.name}:{line}: {error}")
            continue
        yield Incoming(name, annotation, example=structs.replace(example, gold=box))


def _records(source: ImportSource) -> Iterator[tuple[int, int, dict[str, Any]]]:
    with open_input(source.path) as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"["):
        yield from read_json_list(source.path, source.on_problem)
        return
    for line, record in read_lines(source.path, source.on_problem):
        yield line, line - 1, record


def _metadata(record: Mapping[str, Any], place: int) -> tuple[Example, Sequence[Sequence[float]]]:
    image, question = _text(record, "image"), _text(record, "question")
    dataset, split = _text(record, "dataset"), _text(record, "split")
    boxes = record["bboxs"]
    if not isinstance(boxes, list) or not boxes:
        raise InputError("`bboxs` must be a list with at least one box")
    meta = {name: record[name] for name in ("width", "height") if name in record} | {"split": split}
    answers = (record["answer"],) if isinstance(record.get("answer"), str) and record["answer"] else ()
    if "example_id" in record:
        return Example(_text(record, "example_id"), dataset, image, question, answers, meta=meta), boxes
    path = f"cot/{_FOLDER_OF.get(dataset, dataset)}/{image}"
    return Example(f"{dataset}_{split}_{place}", dataset, path, question, answers, meta=meta), boxes


def _converted(record: Mapping[str, Any]) -> tuple[Example, Sequence[Sequence[float]]]:
    pictures, turns, number = record.get("image"), record.get("conversations"), record.get("question_id")
    if not isinstance(number, str | int):
        raise InputError("neither metadata (`bboxs`) nor a converted sample (`question_id`, `image`, `conversations`)")
    match = _MARKED.fullmatch(str(pictures[-1])) if isinstance(pictures, list) and pictures else None
    if match is None:
        raise InputError("`image` must be a list that ends with 'path###[left, top, right, bottom]'")
    if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(t, dict) for t in turns):
        raise InputError("`conversations` must be a list of turns")
    try:
        box = [float(v) for v in match["box"].split(",")]
    except ValueError:
        raise InputError(f"the box [{match['box'][:40]}] after '###' is not four numbers") from None
    dataset, split = _text(record, "dataset"), _text(record, "split")
    question = _ASKS.sub("", str(turns[0].get("value", "")).replace("<image>", "").strip())
    if not question:
        raise InputError("the first turn is empty")
    answer = str(turns[-1].get("value", ""))
    meta = {"split": split}
    return Example(f"{dataset}_{split}_{number}", dataset, match["image"], question, (answer,) if answer else (), (), meta), [
        box
    ]


def _around(boxes: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """The rectangle around boxes of pixel corners."""
    for box in boxes:
        numbers = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)
        if not numbers:
            raise InputError(f"a box is [left, top, right, bottom] in pixels, got {str(box)[:80]}")
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value:
        raise InputError(f"`{name}` must be a text")
    return value
