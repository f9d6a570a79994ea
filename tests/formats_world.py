"""What the tests of the formats share: a store with all that can be in one, its questions, its pictures, the way out and in."""

from __future__ import annotations

import json
import os
from pathlib import Path

from PIL import Image
from reporters import Told

import cos_core
from cos_core.data.datasets import read_examples
from cos_core.data.formats.exchange import StoreExportConfig, StoreImportConfig, export, load
from cos_core.geometry import Box
from cos_core.store.annotations import Store
from cos_core.types import Annotation

MARK = "0123456789abcdef"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cos_core.__file__).parents[1])}


def make(tmp_path: Path) -> Path:
    """Three pictures of prime sides, questions on them (two samples share an id), and a store with all that can be in one."""
    (tmp_path / "images" / "coco").mkdir(parents=True)
    for name, size in (("a.png", (97, 61)), ("b.jpg", (53, 83)), ("c.png", (71, 71))):
        Image.new("RGB", size, "grey").save(tmp_path / "images" / "coco" / name)

    def sample(name: str, image: str, *questions: str) -> dict:
        turns = [{"from": who, "value": text} for q in questions for who, text in (("human", q), ("gpt", f"answer to {q}"))]
        return {"id": name, "image": f"coco/{image}", "conversations": turns}

    data = [
        {"id": "text", "conversations": [{"from": "human", "value": "no picture"}, {"from": "gpt", "value": "none"}]},
        sample("x/1", "a.png", "q one", "q two"),
        sample("x/2", "b.jpg", "q three"),
        sample("x/2", "c.png", "q four", "q five"),
        sample("y", "c.png", "q six", "q seven"),
    ]
    (tmp_path / "data.json").write_text(json.dumps(data))
    examples = list(read_examples(tmp_path / "data.json"))
    boxes = [Box(0.1, 0.2, 0.437, 0.9), Box(0.0, 0.0, 1.0, 1.0), Box(0.5, 0.75, 1.0, 1.0), Box(1 / 3, 0.1, 0.34, 0.11)]
    boxes += [Box(0.9, 0.05, 1.0, 0.5)]
    with Store.create_or_resume(tmp_path / "store", MARK, {"model": "tiny"}) as store:
        items = [
            Annotation(e.id, box, 1.5 + i, "from_single_question", MARK, (i, 3), None, e.image)
            for i, (e, box) in enumerate(zip(examples, boxes, strict=False))
        ]
        items.append(
            Annotation(examples[5].id, None, 0.0, "from_single_question", MARK, reason="flat", image=examples[5].image)
        )
        heats = {items[0].example_id: [[0.1, 0.7], [0.0, 0.2]], items[5].example_id: [[0.0]]}
        store.commit(items, heats, [(examples[6].id, "torn")])
    return tmp_path


def annotations(path: Path) -> list[Annotation]:
    with Store.read(path) as store:
        return list(store.annotations())


def out_and_in(world: Path, form: str, again: str = "again", **options: Path) -> tuple[Told, dict, Path]:
    """Exported, imported into a new store."""
    data, images = world / "data.json", world / "images"
    told = Told()
    needs = {"jsonl": {}, "coco": {"images": images}}.get(form, {"images": images, "data": data})
    kept = {"failures": True, "heats": True} if form == "jsonl" else {}
    made = export(StoreExportConfig(world / "store", world / "file", form, **needs, **kept), told)  # type: ignore[arg-type]
    found = load(StoreImportConfig(world / "file", world / again, form, **{**needs, **options}), told)  # type: ignore[arg-type]
    return told, {"out": made.counts, "in": found.counts}, world / again
