"""One way to cut a region: what the model sees is what training and reports show, under a grey of the checkpoint's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from two_passes import QUIET, Recorder, make_pictures, questions, stored

from cos_core.dialogue.cropping import CropSettings, crop_region, region_of
from cos_core.dialogue.prompts import load_profile
from cos_core.files import manifest, plug
from cos_core.files.images import open_image
from cos_core.geometry import Box
from cos_core.infer import InferConfig, run
from cos_core.training.region_crops import RegionCrops
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
