"""`cos store export` for the trainers of others, read back by the layouts that their documentation states.

Their loaders are not installed: what is asserted is each document's schema, the frames of boxes, and the pixels of crops.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import formats_world
import numpy as np
import pytest
from PIL import Image
from refusals import refused
from reporters import Told

from cos_core.data.datasets import read_examples
from cos_core.data.formats.exchange import StoreExportConfig, export
from cos_core.dialogue.box_text import as_written, read_box
from cos_core.dialogue.cropping import crop_region
from cos_core.dialogue.prompts import Profile, dialogue, load_profile
from cos_core.files import manifest
from cos_core.models import families
from cos_core.store.annotations import Store
from cos_core.types import Annotation

CHAT = load_profile("chat").with_boxes(families.DEFAULT_BOXES)
SIZES = {"a.png": (97, 61), "b.jpg": (53, 83), "c.png": (71, 71)}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """The store of formats_world with noise for pictures, so that a crop tells where it was cut."""
    formats_world.make(tmp_path)
    draw = np.random.default_rng(3)
    for name, (width, height) in SIZES.items():
        pixels = draw.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "coco" / name)
    return tmp_path


def exported(world: Path, form: str, out: str, **options: Any) -> tuple[Told, Any, Path]:
    told = Told()
    given = {"data": world / "data.json", "images": world / "images", "crops": world / "crops", **options}
    made = export(StoreExportConfig(world / "store", world / out, form, **given), told)  # type: ignore[arg-type]
    return told, made, world / out


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def boxed(world: Path) -> list[Annotation]:
    """Those with a box, in the order of the data."""
    with Store.read(world / "store") as store:
        found = [store.get(e.id) for e in read_examples(world / "data.json")]
    return [a for a in found if a is not None and a.box is not None]


def expected(world: Path, profile: Profile, annotation: Annotation) -> tuple[list[tuple[str, str]], Image.Image, Image.Image]:
    """Turns with `<image>` for pictures, the picture and the crop, as `cos train` makes them."""
    example = next(e for e in read_examples(world / "data.json") if e.id == annotation.example_id)
    picture = Image.open(world / "images" / str(example.image)).convert("RGB")
    assert annotation.box is not None
    text, area = as_written(annotation.box, picture.size, profile)
    turns = dialogue(profile, example.question, box_text=text, answer=example.answers[0])
    flat = [(t.role, "".join(p if isinstance(p, str) else "<image>" for p in t.parts)) for t in turns]
    return flat, picture, crop_region(picture, area, profile.crop_from, (0, 0, 0))


def same(path: str, picture: Image.Image) -> bool:
    found = Image.open(path)
    return found.mode == "RGB" and np.array_equal(np.asarray(found), np.asarray(picture))


def check_messages(record: dict[str, Any]) -> None:
    """Roles alternate from `user`, and every `<image>` has a picture."""
    roles = [m["role"] for m in record["messages"]]
    assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert sum(m["content"].count("<image>") for m in record["messages"]) == len(record["images"])
    assert all(Path(p).is_absolute() and Path(p).is_file() for p in record["images"])


@pytest.mark.parametrize("family", [None, "qwen3_vl", "llava"])
def test_llama_factory(world: Path, family: str | None) -> None:
    profile = load_profile("chat").with_boxes(families.of_type(family).boxes) if family else CHAT
    told, made, out = exported(world, "llama-factory", "train.json", family=family)
    assert made.counts == {"ok": 5, "failed": 0, "skipped": 2}
    assert made.results["left_out"] == {"no annotation in the store": 1, "no region": 1}
    assert len(told.notes) == 2
    records, stored = lines(out), boxed(world)
    assert [r["id"] for r in records] == [a.example_id for a in stored]
    for record, annotation in zip(records, stored, strict=True):
        check_messages(record)
        turns, picture, crop = expected(world, profile, annotation)
        assert [(m["role"], m["content"]) for m in record["messages"]] == turns
        assert len(turns) == 4
        assert Path(record["images"][0]).samefile(world / "images" / str(annotation.image))
        assert Image.open(record["images"][0]).size == picture.size
        assert same(record["images"][1], crop)
    entry = json.loads((world / "dataset_info.json").read_text())["train"]
    assert (entry["file_name"], entry["formatting"]) == ("train.json", "sharegpt")
    assert {entry["columns"][k] for k in ("messages", "images")} <= set(records[0])
    tags, first = entry["tags"], records[0]["messages"][0]
    assert (first[tags["role_tag"]], tags["content_tag"] in first) == (tags["user_tag"], True)


def test_dataset_info_keeps_other_entries(world: Path) -> None:
    (world / "dataset_info.json").write_text('{"theirs": {"file_name": "t.json"}}')
    exported(world, "llama-factory", "train.json")
    exported(world, "llama-factory", "train.json")
    assert set(json.loads((world / "dataset_info.json").read_text())) == {"theirs", "train"}
    (world / "dataset_info.json").write_text("[1]")
    with refused(world / "dataset_info.json"):
        exported(world, "llama-factory", "other.json")
    assert not (world / "other.json").exists()


@pytest.mark.parametrize("with_crops", [True, False])
def test_ms_swift(world: Path, with_crops: bool) -> None:
    _, made, out = exported(world, "ms-swift", "train.jsonl", crops=world / "crops" if with_crops else None)
    assert made.counts["ok"] == 5
    for record, annotation in zip(lines(out), boxed(world), strict=True):
        check_messages(record)
        texts = [m["content"] for m in record["messages"]]
        assert (len(texts), len(record["images"])) == ((4, 2) if with_crops else (2, 1))
        assert sum(text.count("<bbox>") for text in texts) == len(record["objects"]["bbox"]) == 1
        assert texts[1] == "<bbox>"
        assert (record["objects"]["bbox_type"], record["objects"]["image_id"], record["objects"]["ref"]) == ("real", [0], [])
        width, height = Image.open(record["images"][record["objects"]["image_id"][0]]).size
        x0, y0, x1, y1 = record["objects"]["bbox"][0]
        assert annotation.box is not None
        assert (x0 / width, y0 / height, x1 / width, y1 / height) == pytest.approx(annotation.box.corners, abs=1e-7)
        if with_crops:
            picture = Image.open(record["images"][0]).convert("RGB")
            assert same(record["images"][1], picture.crop(annotation.box.pixels(*picture.size)))
    assert lines(out)[0]["objects"]["bbox"] == [[9.7, 12.2, 42.389, 54.9]], "97 x 0.1, 61 x 0.2, 97 x 0.437, 61 x 0.9"


def test_what_has_no_dialogue_is_counted(world: Path) -> None:
    records = [e.to_json() for e in read_examples(world / "data.json")]
    records[0]["question"], records[2]["answers"] = "what is a <bbox>?", []
    (world / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (world / "images" / "coco" / "c.png").unlink()
    told, made, out = exported(world, "ms-swift", "train.jsonl", data=world / "data.jsonl")
    assert (made.counts["ok"], made.counts["failed"]) == (1, 2)
    assert made.results["left_out"]["no answer to learn"] == 1
    assert sum("mark" in reason for reason in made.results["left_out"]) == 1
    assert any("c.png" in words for words in told.warnings)
    assert [r["id"] for r in lines(out)] == ["x/1#q1"]


def test_pictures_that_exif_turns_are_copied_upright(world: Path) -> None:
    """Stored on its side, orientation 6: the trainers open the pixels as stored, and boxes are of the upright picture."""
    upright = Image.open(world / "images" / "coco" / "a.png").convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(world / "images" / "coco" / "a.png", exif=exif)
    _, made, out = exported(world, "ms-swift", "train.jsonl")
    assert made.results["upright_copies"] == 2
    first = lines(out)[0]
    assert same(first["images"][0], upright)
    assert first["objects"]["bbox"] == [[9.7, 12.2, 42.389, 54.9]]
    assert same(first["images"][1], upright.crop(boxed(world)[0].box.pixels(97, 61)))  # type: ignore[union-attr]
    _, made, out = exported(world, "ms-swift", "alone.jsonl", crops=None)
    assert made.counts["ok"] == 3
    assert sum(number for reason, number in made.results["left_out"].items() if "EXIF" in reason) == 2


def test_trl(world: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="the extra arrow is not installed; make setup installs it")
    _, made, out = exported(world, "trl", "train.parquet")
    assert made.counts["ok"] == 5
    kept = json.loads(pq.read_schema(out).metadata[b"huggingface"])["info"]["features"]
    assert kept == {"images": {"feature": {"_type": "Image"}, "_type": "Sequence"}}
    assert str(pq.read_schema(out).field("images").type) == "list<element: struct<bytes: binary, path: string>>"
    for record, annotation in zip(pq.read_table(out).to_pylist(), boxed(world), strict=True):
        turns, _, crop = expected(world, CHAT, annotation)
        found = [
            (m["role"], "".join("<image>" if p["type"] == "image" else p["text"] for p in m["content"]))
            for m in record["messages"]
        ]
        assert found == turns
        assert {p["type"] for m in record["messages"] for p in m["content"]} == {"image", "text"}
        assert sum(p["type"] == "image" for m in record["messages"] for p in m["content"]) == len(record["images"]) == 2
        assert same(record["images"][1]["path"], crop)


def test_verl(world: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet", reason="the extra arrow is not installed; make setup installs it")
    _, made, out = exported(world, "verl", "train.parquet")
    assert made.counts["ok"] == 5
    for place, (record, annotation) in enumerate(zip(pq.read_table(out).to_pylist(), boxed(world), strict=True)):
        assert set(record) == {"data_source", "prompt", "images", "ability", "reward_model", "extra_info"}
        turns, _, crop = expected(world, CHAT, annotation)
        assert [(m["role"], m["content"]) for m in record["prompt"]] == turns[:-1], "the answer is for the model to find"
        assert record["prompt"][-1]["role"] == "user"
        pieces = [piece for m in record["prompt"] for piece in re.split("(<image>|<video>)", m["content"])]
        assert pieces.count("<image>") == len(record["images"]) == 2
        assert record["reward_model"] == {"style": "rule", "ground_truth": turns[-1][1]}
        assert (record["extra_info"]["index"], record["extra_info"]["id"]) == (place, annotation.example_id)
        assert tuple(record["extra_info"]["box"]) == annotation.box.corners  # type: ignore[union-attr]
        named, _ = read_box(turns[1][1], CHAT)
        assert named is not None
        assert named.corners == pytest.approx(record["extra_info"]["box"], abs=6e-4)
        assert set(record["images"][0]) == {"image"}, "no `bytes`: verl opens the path"
        assert same(record["images"][1]["image"], crop)


def test_needs_and_refusals(world: Path) -> None:
    for form, out, options, fact in (
        ("llama-factory", "t.json", {"crops": None}, "--crops"),
        ("llama-factory", "t.json", {"data": None}, "--data"),
        ("llama-factory", "t.txt", {}, ".jsonl"),
        ("trl", "t.json", {}, ".parquet"),
        ("ms-swift", "t.json", {"family": "llava"}, "--family"),
        ("coco", "t.json", {}, "--crops"),
        ("llama-factory", "t.json", {"family": "qwen2_5_vl"}, "ms-swift"),
        ("llama-factory", "t.json", {"profile": "paper"}, "'paper'"),
        ("llama-factory", "t.json", {"crops": world}, world),
        ("llama-factory", "sub/t.json", {"crops": world / "images"}, "images"),
    ):
        with refused(fact):
            exported(world, form, out, **options)
    (world / "mine").mkdir()
    (world / "mine" / "notes.txt").write_text("mine")
    with refused("notes.txt", "--crops"):
        exported(world, "verl", "t.parquet", crops=world / "mine")
    assert not manifest.path_for(world / "t.parquet").exists()
