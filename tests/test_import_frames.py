"""`cos store import` warns of boxes in another frame than the file's format says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from box_world import pictures, places, written
from PIL import Image
from reporters import Told

from cos_core.data.formats import Format
from cos_core.data.formats.exchange import StoreImportConfig, load
from cos_core.dialogue.box_conventions import IMAGE, PIXELS, SQUARE, THOUSANDTHS, Convention
from cos_core.geometry import Box
from cos_core.types import Annotation

BOXES = 60


@dataclass
class Row:
    """One box, by its corners, and its picture."""

    name: str
    corners: list[float]
    image: str
    size: tuple[int, int]


def coco(rows: Sequence[Row]) -> str:
    numbers = {row.image: i for i, row in enumerate(rows)}
    sizes = {row.image: row.size for row in rows}
    images = [{"id": i, "file_name": n, "width": sizes[n][0], "height": sizes[n][1]} for n, i in numbers.items()]
    sides = [(a, b, c - a, d - b) for a, b, c, d in (row.corners for row in rows)]
    boxes = [{"id": r.name, "image_id": numbers[r.image], "bbox": side} for r, side in zip(rows, sides, strict=True)]
    return json.dumps({"images": images, "annotations": boxes})


def visual_cot(rows: Sequence[Row]) -> str:
    common = {"question": "q", "answer": "a", "dataset": "d", "split": "s"}
    own = [
        {"image": r.image, "width": r.size[0], "height": r.size[1], "bboxs": [r.corners], "example_id": r.name} for r in rows
    ]
    return "".join(json.dumps(common | each) + "\n" for each in own)


def json_lines(rows: Sequence[Row]) -> str:
    made = [Annotation(row.name, Box(*map(float, row.corners)), 1.0, "p", "f" * 16, image=row.image) for row in rows]
    return "".join(json.dumps(each.to_json()) + "\n" for each in made)


WRITERS: Mapping[Format, Callable[[Sequence[Row]], str]] = {"coco": coco, "visual-cot": visual_cot, "jsonl": json_lines}


@pytest.mark.parametrize(
    ("form", "true"),
    [
        ("coco", PIXELS),
        ("coco", THOUSANDTHS),
        ("coco", IMAGE),
        ("visual-cot", PIXELS),
        ("visual-cot", THOUSANDTHS),
        ("jsonl", IMAGE),
        ("jsonl", SQUARE),
    ],
)
def test_boxes_in_another_frame_than_the_format_says(tmp_path: Path, form: Format, true: Convention) -> None:
    """One warning with the likely frame and the first box; what lies on its picture comes in as it stands."""
    right = true is (IMAGE if form == "jsonl" else PIXELS)
    random = np.random.default_rng(4)
    shown = pictures(random, BOXES, "photos")
    corners = written(places(random, BOXES, "uniform"), shown, true).numbers.tolist()
    sizes = [(int(wide), int(high)) for wide, high in shown[:, :2]]
    for wide, high in set(sizes):
        Image.new("RGB", (wide, high)).save(tmp_path / f"{wide}x{high}.png")
    rows = [
        Row(f"e{i}", box, f"{size[0]}x{size[1]}.png", size) for i, (box, size) in enumerate(zip(corners, sizes, strict=True))
    ]
    (tmp_path / "file").write_text(WRITERS[form](rows))
    told = Told()
    counts = load(StoreImportConfig(tmp_path / "file", tmp_path / "store", form, images=tmp_path), told).counts
    said = [line for line in told.warnings if "boxes look like" in line]
    assert len(said) == (not right)
    assert all(true.name in line and "the first: e" in line for line in said)
    assert counts["ok"] + counts["failed"] == BOXES
    assert counts["failed"] == 0 or true is THOUSANDTHS
