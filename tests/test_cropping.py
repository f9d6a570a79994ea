"""One way to cut a region: what the model sees is what training and reports show, under a grey of the checkpoint's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from box_styles import PROFILES
from PIL import Image
from two_passes import QUIET, Recorder, make_pictures, questions, stored

from cos_core.dialogue.box_grammar import BoxGrammar
from cos_core.dialogue.box_text import as_written
from cos_core.dialogue.cropping import CropSettings, crop_region, region_of
from cos_core.dialogue.prompts import load_profile
from cos_core.errors import InputError
from cos_core.files import manifest, plug
from cos_core.files.images import open_image
from cos_core.geometry import Box
from cos_core.infer import InferConfig, run
from cos_core.infer.passes import TwoPass
from cos_core.infer.steps import Setting
from cos_core.training.region_crops import RegionCrops
from cos_core.types import Example, Prediction
from cos_core.visualize import run_report
from cos_core.visualize.overlay import OverlayConfig
from cos_core.visualize.overlay import run as overlay
from cos_core.visualize.source import Cuts

GREY = (140, 140, 140)
BORDER = "[0.000, 0.000, 0.500, 0.750]"
"""In the padded square of a wide picture this box takes in a stretch of the padding."""


@pytest.fixture
def answered(tmp_path: Path) -> InferConfig:
    """One question about a wide picture, under a profile that cuts from the padded square."""
    profile = tmp_path / "canvas.json"
    profile.write_text(json.dumps({**load_profile("paper").to_json(), "name": "canvas", "crop_from": "canvas"}))
    model = tmp_path / "model"
    model.mkdir()
    (model / "preprocessor_config.json").write_text('{"image_mean": [0.55, 0.55, 0.55]}')
    config = InferConfig(
        model=model,
        engine="scripted",
        data=questions(tmp_path, [("q1", "a.png", "colour?")]),
        images=make_pictures(tmp_path / "images"),
        out=tmp_path / "predictions.jsonl",
        profile=str(profile),
    )
    engine = Recorder(BORDER)
    run(config, QUIET, engine)
    seen = engine.seen[-1].images["roi"]
    assert seen.size == (20, 30)
    assert seen.getpixel((3, 3)) == GREY, "the checkpoint's own colour, not CLIP's mean"
    assert seen.getpixel((3, 10)) == (3, 0, 200), "the picture begins ten pixels below the square's edge"
    seen.save(tmp_path / "seen.png")
    return config


def test_a_report_shows_the_crop_that_the_model_saw(
    answered: InferConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Image.open(tmp_path / "seen.png").tobytes()
    (prediction,) = stored(answered.out)
    picture = open_image(answered.images, "a.png")
    crop = Cuts(tmp_path / "predictions.jsonl").crop(picture, prediction)
    assert crop is not None
    assert crop.tobytes() == seen
    shown: list[Image.Image] = []
    add = run_report.PagePictures.add
    monkeypatch.setattr(run_report.PagePictures, "add", lambda album, image: (shown.append(image), add(album, image))[1])
    config = run_report.ReportConfig((tmp_path / "predictions.jsonl",), tmp_path / "r.html", answered.data, answered.images)
    run_report.run(config, QUIET)
    assert seen in [image.tobytes() for image in shown]
    assert "is assumed" not in (tmp_path / "r.html").read_text()


def test_an_older_run_is_shown_as_before_and_the_page_says_so(answered: InferConfig, tmp_path: Path) -> None:
    path = manifest.path_for(tmp_path / "predictions.jsonl")
    path.write_text(json.dumps({**json.loads(path.read_text()), "results": {}}))
    (prediction,) = stored(answered.out)
    assert prediction.box is not None
    picture = open_image(answered.images, "a.png")
    crop = Cuts(tmp_path / "predictions.jsonl").crop(picture, prediction)
    assert crop is not None
    assert crop.tobytes() == picture.crop((0, 0, 20, 20)).tobytes()
    config = run_report.ReportConfig((tmp_path / "predictions.jsonl",), tmp_path / "r.html", answered.data, answered.images)
    run_report.run(config, QUIET)
    assert "is assumed" in (tmp_path / "r.html").read_text()


def test_an_overlay_draws_the_crop_that_the_model_saw(answered: InferConfig, tmp_path: Path) -> None:
    config = OverlayConfig(tmp_path / "o.png", tmp_path / "predictions.jsonl", images=answered.images)
    overlay(config, QUIET)
    with_padding = Image.open(tmp_path / "o.png").convert("RGB").getcolors(2**24) or []
    assert GREY in [colour for _, colour in with_padding]


@pytest.mark.parametrize(
    ("changes"),
    [
        {"fill": [1, 2]},
        {"fill": ["x", 1, 2]},
        {"fill": [1, 2, 999]},
        {"profile": {"name": "x"}},
        {"on_bad_box": "left"},
        {"fill": None},
    ],
)
def test_settings_that_do_not_say_it(changes: dict) -> None:
    settings = {"profile": load_profile("paper").to_json(), "fill": [1, 2, 3], "on_bad_box": "full"}
    assert CropSettings.from_settings(settings) == CropSettings(load_profile("paper"), (1, 2, 3), "full")
    assert CropSettings.from_settings({**settings, **changes}) is None


def test_a_region_by_hand() -> None:
    profile = load_profile("paper")
    assert region_of("[0.0, 0.25, 0.5, 0.75]", (40, 20), profile, "full").box == Box(0, 0, 0.5, 1, "image")
    in_the_padding = region_of("[0.0, 0.0, 1.0, 0.2]", (40, 20), profile, "center")
    assert (in_the_padding.status, in_the_padding.area) == ("degenerate", Box(0.25, 0.25, 0.75, 0.75, "image"))
    assert region_of("there", (40, 20), profile, "skip").area is None


@pytest.mark.parametrize("crop_from", ["image", "canvas"])
def test_an_album_is_cut_as_its_backbone_cuts(crop_from: str) -> None:
    picture = Image.new("RGB", (37, 21))
    picture.putdata([(x, y, 9) for y in range(21) for x in range(37)])
    grid = plug.load("detectors", "grid")
    profile = replace(load_profile("paper"), crop_from=crop_from)
    crops = RegionCrops(grid).crops(picture, "a.png", profile.crop_from, GREY)
    expected = [crop_region(picture, box, profile.crop_from, GREY) for box in grid.detect(picture, "a.png").boxes]
    assert [crop.tobytes() for crop in crops] == [crop.tobytes() for crop in expected]


# --- boxes of the picture ------------------------------------------------------------------------------------------------


def shown_smaller(size: tuple[int, int]) -> tuple[int, int]:
    """As a model that sees half the pixels; of the portrait it says that it cannot be shown."""
    if size[1] > size[0]:
        raise InputError("the picture is too tall")
    return size[0] // 2, size[1] // 2


def one_pass(picture: Image.Image, engine: Recorder, **changes: object) -> Prediction:
    profile = PROFILES["qwen2_5_vl"]
    policy = changes.pop("policy", "from_single_question")
    values: dict = {"policy": plug.load("policies", str(policy)), "profile": profile, "fill": GREY, "seen": shown_smaller}
    example = Example(id="q", dataset="d", image="a.png", question="colour?", meta={"gold": [0.1, 0.3, 0.5, 0.9]})
    (prediction,) = TwoPass(engine, Setting(**{**values, **changes})).predict([(example, picture)])
    return prediction


def test_the_area_of_a_box_of_the_picture_is_the_box() -> None:
    region = region_of('{"bbox_2d": [5, 2, 10, 10]}', (40, 20), PROFILES["qwen2_5_vl"], "full", (20, 10))
    assert region.area == region.box == Box(0.25, 0.2, 0.5, 1.0, "image")
    assert region.status == "ok"
    assert region_of("[0, 0, 0, 9]", (40, 20), PROFILES["qwen3_vl"], "center").area == Box(0.25, 0.25, 0.75, 0.75, "image")


def test_pixels_are_read_at_the_size_that_the_model_sees() -> None:
    picture = Image.new("RGB", (40, 20))
    picture.putdata([(x, y, 9) for y in range(20) for x in range(40)])
    engine = Recorder('{"bbox_2d": [5, 2, 10, 10]}')
    prediction = one_pass(picture, engine)
    assert (prediction.box, prediction.box_status) == (Box(0.25, 0.2, 0.5, 1.0), "ok")
    seen = engine.seen[-1].images["roi"]
    assert seen.tobytes() == picture.crop((10, 4, 20, 20)).tobytes()
    # A report knows the recorded settings and the prediction, not the model.
    settings = {"profile": json.loads(json.dumps(PROFILES["qwen2_5_vl"].to_json())), "fill": GREY, "on_bad_box": "full"}
    crops = CropSettings.from_settings(settings)
    assert crops is not None
    again = crops.crop(picture, Prediction.from_json(json.loads(json.dumps(prediction.to_json()))))
    assert again is not None
    assert again.tobytes() == seen.tobytes()
    assert CropSettings.from_settings({**settings, "profile": load_profile("chat").to_json()}) is None


def test_the_second_pass_shows_the_marks_that_a_server_dropped() -> None:
    engine = Recorder("(250,200),(500,999)")
    prediction = one_pass(Image.new("RGB", (40, 20)), engine, profile=PROFILES["qwen2_vl"])
    assert (prediction.box_text, prediction.box_status) == ("<|box_start|>(250,200),(500,999)<|box_end|>", "ok")
    assert engine.seen[-1].turns[1].parts == (prediction.box_text,)
    engine = Recorder("at (250, 200), (500, 999)")
    prediction = one_pass(Image.new("RGB", (40, 20)), engine, profile=PROFILES["qwen2_vl"])
    assert (prediction.box_text, prediction.box_status) == ("at (250, 200), (500, 999)", "repaired")


def test_a_fixed_box_is_written_at_the_size_that_the_model_sees() -> None:
    prediction = one_pass(Image.new("RGB", (40, 20)), Recorder(), policy="gold")
    assert prediction.box_text == '{"bbox_2d": [2, 3, 10, 9]}'
    assert prediction.box == Box(0.1, 0.3, 0.5, 0.9)


def test_a_picture_that_cannot_be_shown_fails_alone() -> None:
    prediction = one_pass(Image.new("RGB", (20, 40)), Recorder())
    assert prediction.error == "the picture is too tall"
    assert one_pass(Image.new("RGB", (20, 40)), Recorder(), policy="none").error is None, "no box, no size"


def test_the_grammar_of_pixels_is_the_pictures() -> None:
    engine = Recorder('{"bbox_2d": [5, 2, 10, 10]}')
    one_pass(Image.new("RGB", (40, 20)), engine, box_decode="grammar")
    assert engine.seen[0].grammar == BoxGrammar(PROFILES["qwen2_5_vl"], (20, 10))
    one_pass(Image.new("RGB", (40, 20)), engine, box_decode="grammar", profile=PROFILES["qwen3_vl"])
    assert engine.seen[2].grammar == BoxGrammar(PROFILES["qwen3_vl"])


@pytest.mark.parametrize(
    "changes",
    [
        {"profile": load_profile("chat")},
        {"seen": None},
        {"profile": PROFILES["qwen2_vl"], "box_decode": "grammar"},
    ],
)
def test_what_cannot_be_written_is_refused_before_the_first_question(changes: dict) -> None:
    engine = Recorder()
    with pytest.raises(InputError):
        one_pass(Image.new("RGB", (40, 20)), engine, **changes)
    assert not engine.seen
    assert one_pass(Image.new("RGB", (40, 20)), engine, policy="none", **changes).error is None


@pytest.mark.parametrize("name", PROFILES)
def test_training_cuts_what_answering_cuts(name: str) -> None:
    size, profile = (61, 47), PROFILES[name]
    text, written = as_written(Box(0.2, 0.3, 0.7, 0.8), size, profile, (122, 94))
    region = region_of(text, size, profile, "skip", (122, 94))
    assert (region.area, region.status) == (written, "ok")
    assert written.frame == profile.box_frame
