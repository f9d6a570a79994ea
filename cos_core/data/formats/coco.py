"""COCO's object detection layout: boxes in pixels, x, y, width, height, to a millionth of a pixel.

A region's other fields (example id, score, policy, fingerprint, regions used) are further keys of its annotation.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cos_core.data.formats.records import IMPORTED, ImportSource, Incoming, Outgoing, from_pixels
from cos_core.errors import InputError
from cos_core.files.jsonl import Problem, decode, open_input, report
from cos_core.geometry import Box
from cos_core.types import Annotation

_DECIMALS = 6
CATEGORY = {"id": 1, "name": "region of interest", "supercategory": "region"}


def annotation(number: int, image_id: int, category_id: int, box: Box, size: tuple[int, int]) -> dict[str, Any]:
    """One entry of `annotations`; `size` is the picture's, (width, height) in pixels."""
    width, height = size
    x, y = box.x0 * width, box.y0 * height
    sides = ((box.x1 - box.x0) * width, (box.y1 - box.y0) * height)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [round(v, _DECIMALS) for v in (x, y, *sides)],
        "area": round(sides[0] * sides[1], _DECIMALS),
        "iscrowd": 0,
    }


def write(file: BinaryIO, regions: Iterable[Outgoing], description: str) -> int:
    """The whole file, one annotation a line as they come, then the images; returns the number of annotations.

    Memory grows with the images, not with the annotations.
    """
    pictures: dict[str, dict[str, Any]] = {}
    info = {"description": description, "version": "1.0"}
    file.write(b'{"info":' + _json(info) + b',"licenses":[],"categories":[' + _json(CATEGORY) + b'],\n"annotations":[')
    count = 0
    for region in regions:
        record = region.annotation
        name = record.image or record.example_id
        size = (region.width, region.height)
        picture = pictures.setdefault(name, {"id": len(pictures) + 1, "file_name": name, "width": size[0], "height": size[1]})
        entry = annotation(count + 1, picture["id"], CATEGORY["id"], region.box, size)  # type: ignore[arg-type]
        entry |= {
            "example_id": record.example_id,
            "score": record.score,
            "policy": record.policy,
            "fingerprint": record.fingerprint,
        }
        entry["regions_used"] = list(record.regions_used)
        file.write((b",\n" if count else b"\n") + _json(entry))
        count += 1
    file.write(b'\n],\n"images":[\n' + b",\n".join(map(_json, pictures.values())) + b"\n]}\n")
    return count


def load(path: Path) -> Mapping[str, Any]:
    """The file, read whole as every reader of COCO does. Raises InputError when it is not in this layout."""
    with open_input(path) as file:
        try:
            data = decode(file.read())
        except ValueError as error:
            raise InputError(f"{path} is not valid JSON: {error}") from None
    parts = [data.get(name) if isinstance(data, dict) else None for name in ("images", "annotations")]
    if not all(isinstance(part, list) and all(isinstance(entry, dict) for entry in part) for part in parts):
        raise InputError(f"{path} is not a COCO file: expected an object with lists `images` and `annotations`")
    return data


def fingerprint(data: Mapping[str, Any]) -> str | None:
    """The settings that all annotations name; None for a file that was not made by us, or of several jobs."""
    marks = [entry.get("fingerprint") for entry in data["annotations"]]
    return marks[0] if marks and isinstance(marks[0], str) and marks.count(marks[0]) == len(marks) else None


def read(data: Mapping[str, Any], source: ImportSource) -> Iterator[Incoming]:
    """The annotations of a loaded file. An id is the entry's `example_id`, else the entry's own `id`.

    What does not fit goes to `source.on_problem`.
    """
    pictures = {entry["id"]: entry for entry in data["images"] if isinstance(entry.get("id"), int | str)}
    for place, entry in enumerate(data["annotations"]):
        name = str(entry.get("example_id", entry.get("id", "")))
        try:
            number = entry.get("image_id")
            picture = pictures.get(number) if isinstance(number, int | str) else None
            if picture is None or not isinstance(picture.get("file_name"), str):
                raise InputError(f"`image_id` {number!r} names no image of the file")
            image = picture["file_name"]
            x, y, width, height = _numbers(entry.get("bbox"))
            frame = source.sizes.frame(image, picture, shown="fingerprint" in entry)
            if source.boxes.wants():
                source.boxes.add((x, y, width, height), (frame.width, frame.height), image, name)
            record = Annotation(
                name,
                from_pixels(x, y, x + width, y + height, frame),
                _number(entry.get("score", 0.0)),
                str(entry.get("policy", IMPORTED)),
                source.fingerprint,
                tuple(int(i) for i in entry.get("regions_used", ())),
                image=image,
            )
        except (InputError, TypeError, ValueError) as error:
            reason = f"annotation {place}: {error}"
            report(Problem(source.path, None, name or None, reason), source.on_problem)
            if name:
                yield Incoming(name, failure=f"{source.path.name}: {reason}")
            continue
        yield Incoming(name, record)


def _numbers(bbox: object) -> list[float]:
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise InputError("`bbox` must be [x, y, width, height]")
    return [_number(v) for v in bbox]


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"expected a number, found {value!r}")
    return float(value)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
