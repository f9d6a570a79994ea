"""Overlays from predictions, from a single picture, and for awkward pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cos_core.dialogue.cropping import assumed_crop
from cos_core.errors import InputError
from cos_core.files import manifest
from cos_core.geometry import Box
from cos_core.interfaces import SilentReporter
from cos_core.store.annotations import Store
from cos_core.types import Annotation, Example, Prediction
from cos_core.visualize.draw import COLOURS, Mark
from cos_core.visualize.overlay import OverlayConfig, OverlayInput, notes, render, run

QUIET = SilentReporter()


def has(image: Image.Image, colour: tuple[int, int, int]) -> bool:
    return bool((np.asarray(image.convert("RGB")).reshape(-1, 3) == colour).all(axis=1).any())


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A predictions file of three answers on one picture, its questions and a store."""
    Image.new("RGB", (200, 100), (30, 60, 90)).save(tmp_path / "a.png")
    predictions = [
        Prediction("q1", "no", question="Is it red?", image="a.png"),
        Prediction("q2", "7", Box(0.25, 0.5, 0.5, 1.0), "[0.25, 0.5, 0.5, 0.75]", "ok", question="What number?", image="a.png"),
        Prediction("q3", None, image="gone.png", error="out of memory"),
    ]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(p.to_json()) + "\n" for p in predictions))
    example = Example("q2", "toy", "a.png", "What number?", ("7",), meta={"gold": [0.2, 0.4, 0.5, 0.9]})
    (tmp_path / "data.jsonl").write_text(json.dumps(example.to_json()) + "\n")
    with Store.create_or_resume(tmp_path / "store", "f" * 16, {}) as store:
        store.put_many([Annotation("q2", Box(0.1, 0.1, 0.9, 0.9), 1.0, "from_single_question", "f" * 16)])
    return tmp_path


def test_the_first_prediction_with_a_box_is_drawn(finished: Path) -> None:
    out = finished / "new" / "look.png"
    result = run(OverlayConfig(out, predictions=finished / "predictions.jsonl", images=finished), QUIET)
    # 200 x 100: x 50..100, y 50..100
    assert result.results["boxes"] == [{"label": "region of interest", "kind": "predicted", "pixels": [50, 50, 100, 100]}]
    assert result.results["example_id"] == "q2"
    with Image.open(out) as sheet:
        assert has(sheet, COLOURS["predicted"])
        assert not has(sheet, COLOURS["gold"])
    assert manifest.read(out.with_name("look.png.manifest.json")).counts == {"ok": 1, "failed": 0, "skipped": 0}


def test_a_directory_with_predictions_and_everything_known_about_one(finished: Path) -> None:
    config = OverlayConfig(
        finished / "all.png", finished, "q2", images=finished, data=finished / "data.jsonl", store=finished / "store"
    )
    kinds = [box["kind"] for box in run(config, QUIET).results["boxes"]]
    assert kinds == ["gold", "annotated", "predicted"]
    with Image.open(config.out) as sheet:
        assert all(has(sheet, COLOURS[kind]) for kind in ("gold", "annotated", "predicted"))


def test_an_annotation_with_its_map(finished: Path) -> None:
    with Store.create_or_resume(finished / "store", "f" * 16, {}) as store:
        items = [
            Annotation("q0", None, 0.0, "from_single_question", "f" * 16, reason="flat", image="a.png"),
            Annotation("q2", Box(0.1, 0.2, 0.5, 0.9), 1.25, "from_single_question", "f" * 16, image="a.png"),
        ]
        store.commit(items, {"q2": [[0.0, 0.0], [1.0, 0.0]]}, [("q9", "torn")])
    config = OverlayConfig(finished / "o.png", store=finished / "store", images=finished, data=finished / "data.jsonl")
    found = run(config, QUIET).results
    assert found["example_id"] == "q2", "the first with a box"
    assert [box["kind"] for box in found["boxes"]] == ["gold", "annotated"]
    assert found["boxes"][1]["pixels"] == [20, 20, 100, 90]
    np.save(finished / "map.npy", np.array([[0.0, 0.0], [1.0, 0.0]]))
    by_file = OverlayConfig(finished / "f.png", store=finished / "store", images=finished, data=finished / "data.jsonl",
                            heat=finished / "map.npy")  # fmt: skip
    run(by_file, QUIET)
    assert (finished / "f.png").read_bytes() == (finished / "o.png").read_bytes(), "the store's map is drawn as a file's"
    for example, named in (("q9", "'q9'.*torn"), ("q8", "'q8'")):
        with pytest.raises(InputError, match=named):
            run(OverlayConfig(finished / "n.png", store=finished / "store", images=finished, example=example), QUIET)
    assert (
        run(OverlayConfig(finished / "n.png", store=finished / "store", images=finished, example="q0"), QUIET).results["boxes"]
        == []
    )
    with_map = OverlayConfig(finished / "p.png", finished, "q2", images=finished, store=finished / "store")
    without = OverlayConfig(finished / "w.png", finished, "q2", images=finished)
    run(with_map, QUIET)
    run(without, QUIET)
    with Image.open(finished / "p.png") as more, Image.open(finished / "w.png") as less:
        assert more.height > less.height, "a panel of its own"


def test_an_answer_without_a_box_is_drawn_too(finished: Path) -> None:
    result = run(OverlayConfig(finished / "o.webp", finished, "q1", images=finished), QUIET)
    assert result.results["boxes"] == []


@pytest.mark.parametrize("suffix", ["png", "webp", "pdf"])
def test_one_picture_directly(finished: Path, suffix: str) -> None:
    before = (finished / "a.png").read_bytes()
    config = OverlayConfig(finished / f"o.{suffix}", image=finished / "a.png", box=(0.0, 0.0, 0.5, 0.5), question="What?")
    assert run(config, QUIET).results["boxes"][0]["pixels"] == [0, 0, 100, 50]
    assert (finished / "a.png").read_bytes() == before
    assert config.out.stat().st_size > 500


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"out": Path("o.gif")}, r"o\.gif"),
        ({"image": Path("a.png")}, "predictions.*image"),
        ({"predictions": None}, "predictions.*store.*image"),
        ({"example": "absent"}, "'absent'"),
        ({"predictions": Path("nothing.jsonl")}, r"nothing\.jsonl"),
        ({"example": "q3"}, "gone.png"),
    ],
)
def test_the_error_names_what_cannot_be_drawn(finished: Path, changes: dict[str, object], named: str) -> None:
    options = {"out": finished / "o.png", "predictions": finished, "images": finished, **changes}
    with pytest.raises(InputError, match=named):
        run(OverlayConfig(**options), QUIET)  # type: ignore[arg-type]
    assert not (finished / "o.png").exists()


def test_empty_and_broken_predictions(finished: Path) -> None:
    file = finished / "p.jsonl"
    file.write_text("")
    with pytest.raises(InputError, match=r"p\.jsonl"):
        run(OverlayConfig(finished / "o.png", file, images=finished), QUIET)
    file.write_text('{"answer": "7"}\n')
    with pytest.raises(InputError, match=r"p\.jsonl:1"):
        run(OverlayConfig(finished / "o.png", file, images=finished), QUIET)


def test_a_picture_turned_by_its_camera_is_drawn_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (60, 30))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    result = run(OverlayConfig(tmp_path / "o.png", image=tmp_path / "turned.jpg", box=(0.0, 0.0, 1.0, 0.5)), QUIET)
    assert result.results["image_size"] == [30, 60]
    assert result.results["boxes"][0]["pixels"] == [0, 0, 30, 30]


@pytest.mark.parametrize("size", [(1, 1), (17, 23), (40, 3000), (3000, 40), (7680, 4320)])
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255)])
def test_awkward_pictures(size: tuple[int, int], colour: tuple[int, int, int]) -> None:
    box = Box(0.9, 0.9, 1.0, 1.0)
    text = (("Question", "why? " * 3000), ("Answer", "\ud800\x00 w" + "w" * 5000))
    picture = Image.new("RGB", size, colour)
    sheet = render(OverlayInput(picture, (Mark(box, "region of interest"),), assumed_crop(picture, box), notes=text), 640)
    assert 300 < sheet.width < 1800
    assert 200 < sheet.height < 1800
    assert has(sheet, COLOURS["predicted"])


def test_notes_hold_the_box_text_the_error_and_the_truth() -> None:
    text = dict(notes(Prediction("q", "7", None, "red [0.1", "unparsable", question="What?")))
    assert {**text, "Region": ""} == {"Question": "What?", "Region": "", "Answer": "7"}
    assert text["Region"].startswith("red [0.1  (")
    failed = dict(notes(Prediction("q", None, error="out of memory"), Example("q", "d", None, "What?", ("7", "seven"))))
    assert "out of memory" in failed["Answer"]
    assert failed["Truth"] == "7 / seven"
