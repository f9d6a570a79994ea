"""Regions in the formats of others: round trips, their exact loss, and the files as others read and publish them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import formats_world
import pytest
from formats_world import MARK, annotations, out_and_in
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from refusals import refused
from reporters import Told

from cos_core.data.datasets import read_examples
from cos_core.data.formats.exchange import StoreExportConfig, StoreImportConfig, export, load
from cos_core.data.released import ReleasedRegions, Square
from cos_core.dialogue.cropping import crop_region
from cos_core.errors import FailuresError
from cos_core.files.images import open_image
from cos_core.geometry import Box, SquarePad
from cos_core.interfaces import SilentReporter
from cos_core.store.annotations import Store
from cos_core.types import Annotation


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return formats_world.make(tmp_path)


def test_json_lines_lose_nothing(world: Path) -> None:
    said, counts, again = out_and_in(world, "jsonl")
    assert said.warnings == []
    assert counts["in"] == {"ok": 5, "no_region": 1, "heats": 2, "failed": 0, "skipped": 0}
    assert annotations(again) == annotations(world / "store")
    export(StoreExportConfig(again, world / "file2", "jsonl", failures=True, heats=True), SilentReporter())
    assert (world / "file2").read_bytes() == (world / "file").read_bytes()
    with Store.read(again) as store, Store.read(world / "store") as first:
        assert store.info()["provenance"] == {"model": "tiny"}, "from the manifest beside the file"
        assert store.fingerprint == MARK
        assert list(store.failures()) == list(first.failures())
        assert store.heat("x/1#q0") == first.heat("x/1#q0")
    load(StoreImportConfig(world / "file", again, "jsonl"), SilentReporter())
    assert annotations(again) == annotations(world / "store"), "imported again it is the same"


def close(found: Box, stored: Box, size: tuple[int, int]) -> bool:
    """Within the millionth of a pixel that the formats round to, on each side (two of them for the far ones)."""
    sides = (*size, *size)
    return all(abs(a - b) * side <= 2e-6 for a, b, side in zip(found.corners, stored.corners, sides, strict=True))


SIZES = {"coco/a.png": (97, 61), "coco/b.jpg": (53, 83), "coco/c.png": (71, 71)}


def test_coco_keeps_boxes_and_what_made_them(world: Path) -> None:
    said, counts, again = out_and_in(world, "coco")
    assert said.warnings == []
    assert (counts["out"]["ok"], counts["out"]["skipped"], counts["in"]["ok"]) == (5, 1, 5)
    stored = {a.example_id: a for a in annotations(world / "store")}
    for found in annotations(again):
        other = stored[found.example_id]
        assert close(found.box, other.box, SIZES[other.image])  # type: ignore[arg-type, index]
        assert found == Annotation(
            other.example_id, found.box, other.score, other.policy, MARK, other.regions_used, None, other.image
        )
    data = json.loads((world / "file").read_text())
    assert [(p["file_name"], p["width"], p["height"]) for p in data["images"]] == [
        ("coco/a.png", 97, 61), ("coco/b.jpg", 53, 83), ("coco/c.png", 71, 71)]  # fmt: skip
    first = data["annotations"][0]
    assert first["bbox"] == [9.7, 12.2, 32.689, 42.7], "x, y, width, height: 97 x 0.1, 61 x 0.2, 97 x 0.337, 61 x 0.7"
    assert first["area"] == pytest.approx(32.689 * 42.7, abs=1e-6)
    assert {a["image_id"] for a in data["annotations"]} <= {p["id"] for p in data["images"]}
    assert [c["id"] for c in data["categories"]] == [first["category_id"]]


def test_visual_cot_both_ways(world: Path) -> None:
    _, counts, again = out_and_in(world, "visual-cot", questions=None)  # type: ignore[arg-type]
    assert (counts["out"]["ok"], counts["out"]["skipped"], counts["in"]["ok"]) == (5, 2, 5)
    line = json.loads((world / "file").read_text().splitlines()[0])
    assert line == {
        "question": "q one", "answer": "answer to q one", "image": "coco/a.png", "width": 97, "height": 61,
        "bboxs": [[9.7, 12.2, 42.389, 54.9]], "dataset": "data", "split": "train", "example_id": "x/1#q0", "score": 1.5,
    }  # fmt: skip
    stored = {a.example_id: a for a in annotations(world / "store")}
    for found in annotations(again):
        other = stored[found.example_id]
        assert close(found.box, other.box, SIZES[other.image])  # type: ignore[arg-type, index]
        assert (found.score, found.image, found.policy) == (other.score, other.image, "imported")


def official_box(params: list[float], width: int, height: int) -> list[float]:
    """train_CoS.py, lines 716-741 (429335a): from `params` to the box that is trained, on the padded square."""
    left, right, top, bottom = params[1], params[1] + params[2], params[0], params[0] + params[2]
    if width > height:
        offset = (width - height) // 2
        top, bottom = top + offset, min(bottom + offset, height + offset)
        right = min(right, width)
    else:
        offset = (height - width) // 2
        left, right = left + offset, min(right + offset, width + offset)
        bottom = min(bottom, height)
    side = max(width, height)
    return [round(v / side, 3) for v in (left, top, right, bottom)]


sides = st.integers(1, 400)
spans = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted).filter(lambda v: v[1] - v[0] > 1e-6)


@settings(max_examples=300, deadline=None)
@given(width=sides, height=sides, x=spans, y=spans)
def test_the_square_and_its_exact_loss(width: int, height: int, x: list[float], y: list[float]) -> None:
    box = Box(x[0], y[0], x[1], y[1])
    square = Square.around(box, width, height)
    assert square.left >= 0, "the released loader does not clip near edges"
    assert square.top >= 0
    assert all(v == int(v) for v in (square.left, square.top, square.side))
    longest = max((x[1] - x[0]) * width, (y[1] - y[0]) * height)
    assert longest - 1e-5 <= square.side < longest + 2
    back = square.box(width, height)
    tiny = 2e-6 / min(width, height)
    assert back.x0 <= box.x0 + tiny
    assert back.y0 <= box.y0 + tiny
    assert back.x1 >= box.x1 - tiny
    assert back.y1 >= box.y1 - tiny
    assert square.inside(width, height), "our own check takes what we write"
    trained = official_box([square.top, square.left, square.side], width, height)
    ours = SquarePad(width, height).to_square(back)
    assert trained == pytest.approx(list(ours.corners), abs=0.000501), "the released loader sees the same box"


def test_the_square_by_hand() -> None:
    # 97 x 61: the box is 9.7..42.389 by 12.2..54.9; side 43 (of 42.7), centre 26.0445, 33.55: left 4, top 12.05 -> 12.
    assert Square.around(Box(0.1, 0.2, 0.437, 0.9), 97, 61) == Square(top=12.0, left=4.0, side=43.0)
    # Whole picture 97 x 61: the square begins at -18 and is moved down to 0; 36 pixels hang over the bottom.
    assert Square.around(Box(0, 0, 1, 1), 97, 61) == Square(0.0, 0.0, 97.0)


def test_the_released_layout(world: Path) -> None:
    said, counts, again = out_and_in(world, "chain-of-spot")
    assert (counts["out"]["ok"], counts["out"]["skipped"], counts["in"]["ok"]) == (5, 2, 5)
    data = json.loads((world / "file").read_text())
    assert list(data) == ["000001_x_1_q0", "000001_x_1_q1", "000002_x_2_q0", "000003_x_2_q0", "000003_x_2_q1"]
    assert data["000001_x_1_q0"] == {"params": [12, 4, 43]}
    assert said.warnings == []
    stored = {a.example_id: a for a in annotations(world / "store")}
    found = annotations(again)
    assert len(found) == 5
    for one in found:
        other = stored[one.example_id]
        size = SIZES[other.image]  # type: ignore[index]
        assert one.box == Square.around(other.box, *size).box(*size)  # type: ignore[arg-type]
    regions = ReleasedRegions(world / "file")
    renamed = next(e for e in read_examples(world / "data.json") if e.record_id)
    assert regions.find(renamed)[0] == "000003_x_2_q0", "found by the id that stands in the file"  # type: ignore[index]


def test_a_released_file_of_other_data(world: Path) -> None:
    regions = {
        "000001_x_1_q0": {"params": [0, 0, 40]},
        "000001_x_1_q1": {"params": [500, 0, 40]},
        "000009_strange_q0": {"params": [0, 0, 40]},
        "no key": {"params": [0, 0, 1]},
        "000002_x_2_q0": {"params": ["a"]},
    }
    (world / "r.json").write_text(json.dumps(regions))
    told = Told()
    config = StoreImportConfig(world / "r.json", world / "out", "chain-of-spot", world / "data.json", world / "images")
    found = load(config, told)
    assert (found.counts["ok"], found.counts["failed"]) == (1, 4)
    words = "\n".join(told.warnings)
    for said in (
        "the key is not",
        "`params` is not",
        "is not on 97x61 pixels (id '000001_x_1_q1')",
        "1 of its 3 regions belong to no",
    ):
        assert said in words
    with Store.read(world / "out") as store:
        assert "is not on 97x61 pixels" in (store.failure("x/1#q1") or "")
        assert store.info()["provenance"]["imported"]["format"] == "chain-of-spot"
    with refused(world / "r.json", "4 ", "3 ", kind=FailuresError):
        load(
            StoreImportConfig(world / "r.json", world / "o2", "chain-of-spot", world / "data.json", world / "images", None, 3),
            told,
        )


VISCOT = [
    {"question": "What animal?", "answer": "dog", "full_answer": "A dog.", "image": "a.png", "width": 97, "height": 61,
     "bboxs": [[10, 20, 30, 40], [5, 30, 50, 61]], "dataset": "vsr", "split": "val"},
    {"question": "Which brand?", "answer": "x", "image": "b.jpg", "width": 53, "height": 83,
     "bboxs": [[0, 0, 53.5, 83]], "dataset": "textcap", "split": "train"},
    {"question": "Outside?", "answer": "x", "image": "b.jpg", "width": 53, "height": 83,
     "bboxs": [[0, 0, 60, 83]], "dataset": "vsr", "split": "val"},
    {"question": "None?", "answer": "x", "image": "b.jpg", "width": 53, "height": 83,
     "bboxs": [], "dataset": "vsr", "split": "val"},
]  # fmt: skip


def test_visual_cot_as_its_authors_publish_it(world: Path) -> None:
    (world / "v.jsonl").write_text("".join(json.dumps(line) + "\n" for line in VISCOT))
    told = Told()
    found = load(StoreImportConfig(world / "v.jsonl", world / "v", "visual-cot", questions=world / "q.jsonl"), told)
    assert (found.counts["ok"], found.counts["failed"]) == (2, 2)
    by_id = {a.example_id: a for a in annotations(world / "v")}
    assert set(by_id) == {"vsr_val_0", "textcap_train_1"}
    assert by_id["vsr_val_0"].box == Box(5 / 97, 20 / 61, 50 / 97, 1.0), "the rectangle around both boxes"
    assert by_id["vsr_val_0"].image == "cot/vsr/a.png"
    assert by_id["textcap_train_1"].image == "cot/textvqa/b.jpg", "as convert_data_to_llava_format.py has it"
    assert by_id["textcap_train_1"].box == Box(0, 0, 1, 1), "half a pixel over is rounding"
    assert any("lies outside the picture of 53x83" in words and "v.jsonl:3" in words for words in told.warnings)
    asked = {e.id: e for e in read_examples(world / "q.jsonl")}
    assert set(asked) == set(by_id), "questions and regions go together"
    assert asked["vsr_val_0"].question == "What animal?"
    assert asked["vsr_val_0"].answers == ("dog",)
    assert asked["vsr_val_0"].gold == by_id["vsr_val_0"].box


def test_visual_cot_converted_conversations(world: Path) -> None:
    (world / "images" / "cot" / "vsr").mkdir(parents=True)
    Image.new("RGB", (97, 61)).save(world / "images" / "cot" / "vsr" / "a.png")
    asks = " Please provide the bounding box coordinate of the region that can help you answer the question better."
    turns = ["<image>\nWhat animal?" + asks, "[0.052, 0.510, 0.515, 0.814]", "<image>", "dog"]
    sample = {
        "dataset": "vsr", "split": "val", "question_id": 0,
        "image": ["cot/vsr/a.png", "cot/vsr/a.png###[5, 20, 50, 61]"],
        "conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)],
    }  # fmt: skip
    bad = [
        {**sample, "question_id": 1, "image": "cot/vsr/a.png"},
        {**sample, "question_id": 2, "image": ["x", "x###[1, 2]"]},
        7,
    ]
    (world / "v.json").write_text(json.dumps([sample, *bad]))
    told = Told()
    config = StoreImportConfig(
        world / "v.json", world / "v", "visual-cot", images=world / "images", questions=world / "q.jsonl"
    )
    found = load(config, told)
    assert (found.counts["ok"], found.counts["failed"]) == (1, 3), told.warnings
    (one,) = annotations(world / "v")
    assert (one.example_id, one.box) == ("vsr_val_0", Box(5 / 97, 20 / 61, 50 / 97, 1.0))
    (asked,) = read_examples(world / "q.jsonl")
    assert (asked.question, asked.answers) == ("What animal?", ("dog",))


def test_coco_of_others(world: Path) -> None:
    data = {
        "images": [{"id": 7, "file_name": "coco/a.png", "width": 97, "height": 61}, {"id": 8, "file_name": "coco/b.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 7, "bbox": [0, 0, 97, 30.5], "category_id": 3},
            {"id": 2, "image_id": 8, "bbox": [10, 10, 10, 10], "category_id": 3},
            {"id": 3, "image_id": 9, "bbox": [1, 1, 1, 1]},
            {"id": 4, "image_id": 7, "bbox": [90, 0, 20, 20]},
            {"id": 5, "image_id": 7, "bbox": [1, 1, 0, 5]},
            {"id": 6, "image_id": 7, "bbox": [1, 1, True, 5]},
            {"id": 7, "image_id": 7, "bbox": [1, 1, 5, 5], "score": math.nan},
            {"id": 8, "image_id": 7, "bbox": [-5, 1, 20, 5]},
            {"id": 9, "image_id": 7, "bbox": [-0.5, 0, 97, 61]},
        ],
    }
    (world / "c.json").write_text(json.dumps(data))
    told = Told()
    found = load(StoreImportConfig(world / "c.json", world / "c", "coco", images=world / "images"), told)
    assert (found.counts["ok"], found.counts["failed"]) == (3, 6)
    assert [(a.example_id, a.box) for a in annotations(world / "c")] == [
        ("1", Box(0, 0, 1, 0.5)), ("2", Box(10 / 53, 10 / 83, 20 / 53, 20 / 83)),
        ("9", Box(0, 0, 96.5 / 97, 1))]  # fmt: skip
    with Store.read(world / "c") as store:
        assert [name for name, _ in store.failures()] == ["3", "4", "5", "6", "8"]


# --- pixels of photographs that EXIF turns ---------------------------------------------------------------------------

TURNED = {  # the stored left upper corner piece (x 0 to 40 of 80, y 0 to 10 of 60) of a picture of 80 x 60, seen upright
    1: (0, 0, 1 / 2, 1 / 6), 2: (1 / 2, 0, 1, 1 / 6), 3: (1 / 2, 5 / 6, 1, 1), 4: (0, 5 / 6, 1 / 2, 1),
    5: (0, 0, 1 / 6, 1 / 2), 6: (5 / 6, 0, 1, 1 / 2), 7: (5 / 6, 1 / 2, 1, 1), 8: (0, 1 / 2, 1 / 6, 1),
}  # fmt: skip


def photograph(path: Path, orientation: int, form: str = "JPEG") -> Path:
    """80 x 60 stored pixels, black where the boxes below are."""
    stored = Image.new("RGB", (80, 60), "white")
    stored.paste("black", (0, 0, 40, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    stored.save(path, form, exif=exif, quality=95)
    return path


def boxed(folder: Path, form: str, stated: tuple[int, int] | None, box: list[float]) -> Path:
    """A file of one region in pixels, on the picture p.jpg."""
    size = dict(zip(("width", "height"), stated, strict=True)) if stated else {}
    file = folder / "regions"
    if form == "visual-cot":
        row = {"question": "q", "answer": "a", "image": "p.jpg", "bboxs": [box], "dataset": "d", "split": "train", **size}
        file.write_text(json.dumps(row) + "\n")
    else:
        left, top, right, bottom = box
        entry = {"id": 1, "image_id": 1, "bbox": [left, top, right - left, bottom - top]}
        file.write_text(json.dumps({"images": [{"id": 1, "file_name": "cot/d/p.jpg", **size}], "annotations": [entry]}))
    return file


def imported(folder: Path, form: str) -> tuple[list[Annotation], Told]:
    said = Told()
    out = folder / "store"
    load(StoreImportConfig(folder / "regions", out, form, images=folder / "images"), said)  # type: ignore[arg-type]
    return annotations(out), said


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["visual-cot", "coco"])
def test_boxes_of_stored_pixels_are_turned_with_their_picture(form: str, orientation: int, tmp_path: Path) -> None:
    photograph(tmp_path / "images" / "cot" / "d" / "p.jpg", orientation)
    boxed(tmp_path, form, (80, 60), [0, 0, 40, 10])
    (found,), said = imported(tmp_path, form)
    assert found.box is not None
    assert found.box.corners == pytest.approx(TURNED[orientation])
    # What lies in it, as every other part of this program shows the picture, is black.
    inside = crop_region(open_image(tmp_path / "images", "cot/d/p.jpg"), found.box, "image", (0, 0, 0))
    assert max(inside.resize((1, 1)).getpixel((0, 0))) < 20
    assert bool(said.warnings) == (orientation > 1)


@pytest.mark.parametrize(
    ("orientation", "stated", "box", "expected"),
    [
        (6, (60, 80), [0, 0, 30, 10], (0, 0, 1 / 2, 1 / 8)),  # the upright size: as it stands
        (6, None, [0, 0, 30, 10], (0, 0, 1 / 2, 1 / 8)),  # none: the picture as it is shown
        (6, (160, 120), [0, 0, 80, 20], TURNED[6]),  # the stored shape, enlarged
        (8, (30, 40), [0, 0, 15, 5], (0, 0, 1 / 2, 1 / 8)),  # the upright shape, reduced
        (1, (160, 120), [0, 0, 80, 20], TURNED[1]),
        (1, (60, 80), [0, 0, 30, 10], "the stated size 60x80 is not that of the image"),
        (6, (80, 63), [0, 0, 40, 10], "which has 60x80, stored as 80x60 pixels"),
        (6, (81, 80), [0, 0, 40, 10], "is not that of the image"),
        (6, None, [0, 0, 80, 10], "lies outside the picture of 60x80"),
    ],
)
@pytest.mark.parametrize("form", ["visual-cot", "coco"])
def test_the_stated_size_says_what_boxes_are_measured_in(
    form: str,
    orientation: int,
    stated: tuple[int, int] | None,
    box: list[float],
    expected: tuple[float, ...] | str,
    tmp_path: Path,
) -> None:
    photograph(tmp_path / "images" / "cot" / "d" / "p.jpg", orientation)
    boxed(tmp_path, form, stated, box)
    found, said = imported(tmp_path, form)
    if isinstance(expected, str):
        assert not found
        assert expected in " ".join(said.warnings)
    else:
        assert found[0].box is not None
        assert found[0].box.corners == pytest.approx(expected)


def test_pictures_that_are_not_there_leave_the_stated_size(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    boxed(tmp_path, "coco", (80, 60), [0, 0, 40, 10])
    (found,), said = imported(tmp_path, "coco")
    assert found.box is not None
    assert found.box.corners == pytest.approx(TURNED[1])
    assert "their stated sizes are believed" in " ".join(said.warnings)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["coco", "visual-cot", "chain-of-spot"])
def test_what_is_written_is_read_back_on_any_photograph(form: str, orientation: int, tmp_path: Path) -> None:
    photograph(tmp_path / "images" / "p.jpg", orientation)
    turns = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"id": "1", "image": "p.jpg", "conversations": turns}]))
    (example,) = read_examples(data)
    box = Box(0.25, 0.5, 0.5, 0.6875)  # 15 x 15 pixels upright where it is 60 x 80, on whole pixels either way
    with Store.create_or_resume(tmp_path / "store", MARK, {}) as store:
        store.commit([Annotation(example.id, box, 0.0, "p", MARK, image="p.jpg")], {}, [])
    images = tmp_path / "images"
    export(StoreExportConfig(tmp_path / "store", tmp_path / "file", form, data, images), SilentReporter())  # type: ignore[arg-type]
    load(StoreImportConfig(tmp_path / "file", tmp_path / "again", form, data, images), SilentReporter())  # type: ignore[arg-type]
    (found,) = annotations(tmp_path / "again")
    assert found.box is not None
    if form == "chain-of-spot":
        assert found.box.x0 <= box.x0 < box.x1 <= found.box.x1
        assert found.box.y0 <= box.y0 < box.y1 <= found.box.y1
        assert found.box.iou(box) > 0.5
    else:
        assert found.box.corners == pytest.approx(box.corners, abs=1e-6)


def test_export_measures_in_the_picture_and_not_in_what_is_stated(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (533, 800)).save(tmp_path / "images" / "p.jpg")
    data = {"id": "1", "image": "p.jpg", "question": "q", "answers": ["a"], "meta": {"width": 800, "height": 533}}
    (tmp_path / "data.jsonl").write_text(json.dumps(data) + "\n")
    with Store.create_or_resume(tmp_path / "store", MARK, {}) as store:
        store.commit([Annotation("1", Box(0.5, 0.25, 1.0, 0.5), 0.0, "p", MARK, image="p.jpg")], {}, [])
    export(
        StoreExportConfig(tmp_path / "store", tmp_path / "file", "coco", tmp_path / "data.jsonl", tmp_path / "images"),
        SilentReporter(),
    )
    found = json.loads((tmp_path / "file").read_text())
    assert found["annotations"][0]["bbox"] == [266.5, 200.0, 266.5, 200.0]
    assert (found["images"][0]["width"], found["images"][0]["height"]) == (533, 800)
