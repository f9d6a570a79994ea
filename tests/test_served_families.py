"""What a server is sent for models of other families than LLaVA-1.5, and how finely pictures are shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_families
from chat_server import Behaviour, serving
from PIL import Image
from reporters import Told
from test_engine_messages import picture, words

from cos_cli import main
from cos_core.dialogue.prompts import dialogue, load_profile
from cos_core.engines import _served, openai
from cos_core.engines._messages import ServedDialogue, assumed, of_folder
from cos_core.errors import InputError
from cos_core.evaluate import protocol
from cos_core.files import assets, manifest
from cos_core.infer import InferConfig
from cos_core.infer.settings import setting
from cos_core.interfaces import Request
from cos_core.models import families, processor, vision_input
from cos_core.models.families import PixelBudget
from cos_core.scoring import comparison
from cos_core.types import RunManifest

URL = "http://127.0.0.1:9/v1"
SIZES = ((64, 48), (7, 9), (333, 90), (33, 400), (224, 224), (300, 301))
Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A family's tiny checkpoint, built when it is first asked for."""
    root = tmp_path_factory.mktemp("families")
    return lambda name: root / name if (root / name).is_dir() else tiny_families.build(name, root / name)


def drawn(width: int, height: int) -> Image.Image:
    raster = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(raster)


def two_passes(sent: ServedDialogue, image: Image.Image) -> list[dict[str, Any]]:
    turns = dialogue(sent.profile, "What is it?", box_text="BOX")
    return sent.messages(turns, {"full": image, "roi": image.crop((0, 0, 20, 30))})


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "gemma3"])
def test_roles_and_system_text_are_left_to_the_template(folder: Folder, name: str) -> None:
    messages = two_passes(of_folder(folder(name)), drawn(64, 48))
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert words(messages[0]) == [
        "<picture>",
        'To answer the question: "What is it?", where is the region of interest in the image?',
    ], "the line break behind a picture is the template's affair"
    assert words(messages[1]) == ["BOX"]
    assert words(messages[2]) == [
        "The region of interest in the image is ",
        "<picture>",
        '. Answer the question: "What is it?"',
    ]


@pytest.mark.parametrize(("name", "size"), [("qwen2_5_vl", (84, 28)), ("gemma3", (56, 56)), ("internvl", (333, 90))])
def test_a_picture_is_sent_in_the_size_that_the_model_sees(folder: Folder, name: str, size: tuple[int, int]) -> None:
    """A family that cuts pictures into tiles resizes more than once: there the whole picture is sent."""
    image = drawn(333, 90)
    sent = picture(two_passes(of_folder(folder(name)), image)[0]["content"][0])
    assert sent.size == (size if name != "qwen2_5_vl" else setting(InferConfig(model=folder(name))).seen(image.size))
    assert name != "internvl" or sent.tobytes() == image.tobytes()


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma"])
def test_the_processor_sees_the_same_pixels_as_without_a_server(folder: Folder, name: str) -> None:
    shown, ours = vision_input.of_folder(folder(name)), processor.image_processor(folder(name))
    assert shown is not None
    assert shown.resizes
    for size in SIZES:
        sent = shown.shown(drawn(*size))
        assert sent.size == shown.seen(size) == shown.seen(sent.size)
        there, here = (ours([image], return_tensors="np") for image in (sent, drawn(*size)))
        assert all(np.array_equal(there[key], here[key]) for key in here)


def test_a_checkpoints_own_penalty_is_switched_off(folder: Folder) -> None:
    """In the words of the server at hand; LLaVA-1.5 is asked as ever."""
    server = Behaviour(unknown=frozenset({"repetition_penalty"}))
    with serving(server) as url:
        engine = openai.build(folder("qwen2_5_vl"), server=url)
        request = Request(dialogue(engine.dialogue.profile, "q"), {"full": drawn(64, 48)}, 4)
        assert [engine.generate([request])[0].error for _ in range(2)] == [None, None]
    bodies = [body for _, body in server.seen]
    assert [body.get("repetition_penalty") for body in bodies] == [1.0, None, None], "refused once, then left out"
    assert [body["frequency_penalty"] for body in bodies] == [0.0, 0.0, 0.0]
    llava = Behaviour()
    with serving(llava) as url:
        plain = openai.build("miniature", server=url)
        plain.generate([Request(dialogue(plain.dialogue.profile, "q"), {"full": drawn(64, 48)}, 4)])
    assert set(llava.seen[-1][1]) == {"model", "messages", "max_tokens", "temperature", "stream"}


# --- what is assumed -------------------------------------------------------------------------------------------------


def said(served: _served.ServedModel) -> tuple[int, int]:
    """(notes, warnings)"""
    told = Told()
    served.report(told)
    return len(told.notes), len(told.warnings)


def of_model(name: str, **named: Any) -> _served.ServedModel:
    return _served.of_model(name, URL, named.get("profile"), named.get("family"), named.get("budget"))


def test_a_family_is_named_guessed_or_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_served, "_root", lambda url, model: None)
    guessed = of_model("Qwen/Qwen2.5-VL-7B-Instruct")
    named = of_model("mine", family="qwen2_5_vl")
    assert (guessed.kind, said(guessed)) == ("qwen2_5_vl", (0, 1))
    assert guessed.dialogue == named.dialogue == assumed(kind="qwen2_5_vl")
    assert said(of_model("mine", family="qwen2_5_vl", profile="chat")) == (1, 0), "nothing is left to assume but sizes"
    assert guessed.dialogue.profile.box_unit == "pixel"
    sent = picture(two_passes(guessed.dialogue, drawn(333, 90))[0]["content"][0])
    assert sent.size == (336, 84), "multiples of 28, within the published budget"
    assert of_model("Qwen3-VL-8B").dialogue.vision.seen((333, 90)) == (512, 160), "multiples of 32, 65,536 pixels at least"
    unknown = of_model("mine")
    assert (unknown.kind, said(unknown), unknown.dialogue.profile.name) == ("", (0, 1), "chat")
    assert (unknown.dialogue.profile.box_unit, unknown.dialogue.profile.box_frame) == ("fraction", "image")
    assert picture(two_passes(unknown.dialogue, drawn(333, 90))[0]["content"][0]).size == (333, 90)
    for name, profile in (("llava-hf/llava-1.5-7b-hf", None), ("mine", "paper")):
        assert of_model(name, profile=profile).dialogue == assumed()


def test_names_of_the_hub() -> None:
    names = {
        "Qwen/Qwen2-VL-2B-Instruct": "qwen2_vl",
        "Qwen/Qwen3-VL-30B-A3B-Instruct@main": "qwen3_vl",
        "OpenGVLab/InternVL3-8B-hf": "internvl",
        "llava-hf/llava-1.5-7b-hf": "llava",
        "llava-hf/llava-v1.6-mistral-7b-hf": "llava_next",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf": "llava_onevision",
        "google/gemma-3-4b-it": "gemma3",
        "google/gemma-3n-E4B-it": None,
        "google/paligemma2-3b-mix-224": "paligemma",
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503": "mistral3",
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct": "smolvlm",
        "/models/llava/qwen2.5-vl/": "qwen2_5_vl",
        "gpt-4o": None,
        "": None,
    }
    assert {name: families.guessed(name) for name in names} == names


def test_boxes_in_pixels_need_a_size_that_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_served, "_root", lambda url, model: None)
    pixels = tmp_path / "pixels.json"
    pixels.write_text(json.dumps(load_profile("chat").with_boxes(families.of_type("qwen2_5_vl").boxes).to_json()))
    for family in (None, "internvl"):
        with pytest.raises(InputError, match="--family"):
            of_model("mine", profile=str(pixels), family=family)
    assert of_model("mine", profile=str(pixels), family="qwen3_vl").dialogue.profile.box_unit == "pixel"


def test_the_folders_family_is_not_to_be_named_otherwise(folder: Folder) -> None:
    where = str(folder("qwen2_5_vl"))
    assert of_model(where, family="qwen2_5_vl").kind == "qwen2_5_vl"
    for engine in ("hf", "openai"):
        with pytest.raises(InputError, match="--family"):
            setting(InferConfig(model=where, family="internvl", engine=engine, server=URL, roi="none"))


# --- the pixel budget ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["hf", "openai"])
def test_a_budget_is_part_of_what_decides(folder: Folder, engine: str) -> None:
    config = InferConfig(model=folder("qwen2_5_vl"), engine=engine, server=URL, device="cpu")
    plain = setting(config)
    own = plain.settings["pixel_budget"]
    assert set(own) == {"min_pixels", "max_pixels"}
    assert (plain.settings["family"], plain.settings["processor"]) == ("qwen2_5_vl", "Qwen2_5_VLProcessor")
    assert len(plain.settings["chat_template"]) == 64
    same = setting(replace(config, max_pixels=own["max_pixels"]))
    assert same.fingerprint == plain.fingerprint, "it counts as what the processor is set to"
    less = setting(replace(config, max_pixels=own["max_pixels"] // 2))
    assert less.fingerprint != plain.fingerprint
    assert less.settings["pixel_budget"] == {**own, "max_pixels": own["max_pixels"] // 2}
    assert less.seen is not None
    assert np.prod(less.seen((400, 300))) <= own["max_pixels"] // 2
    assert not {"min_pixels", "family_name"} & set(plain.settings)


def test_the_chat_template_is_part_of_what_decides(folder: Folder, tmp_path: Path) -> None:
    where = tiny_families.build("qwen2_5_vl", tmp_path / "copy")
    before = setting(InferConfig(model=where, device="cpu", roi="none")).settings
    template = where / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another #}")
    after = setting(InferConfig(model=where, device="cpu", roi="none")).settings
    assert [key for key in before if before[key] != after[key]] == ["chat_template"]


@pytest.mark.parametrize(
    ("name", "word", "engine", "taken"),
    [
        ("qwen2_5_vl", "max_tiles", "hf", False),
        ("internvl", "max_tiles", "hf", True),
        ("internvl", "max_tiles", "openai", False),
        ("internvl", "max_pixels", "hf", False),
        ("gemma3", "longest_edge", "openai", False),
        ("miniature", "max_pixels", "hf", False),
        ("miniature", "max_pixels", "openai", False),
    ],
)
def test_a_family_has_its_own_words(folder: Folder, name: str, word: str, engine: str, taken: bool) -> None:
    where = assets.miniature_checkpoint() if name == "miniature" else folder(name)
    config = InferConfig(model=where, device="cpu", engine=engine, server=URL, roi="none")
    changed = replace(config, **{word: 2})
    if taken:
        assert setting(changed).settings["pixel_budget"] == {word: 2}
    else:
        with pytest.raises(InputError, match="--" + word.replace("_", "-")):
            setting(changed)


def test_llavas_settings_are_what_they_were() -> None:
    settings = setting(InferConfig(model="miniature", device="cpu")).settings
    assert not {"family", "pixel_budget", "chat_template", "processor", "max_pixels"} & set(settings)


def test_a_server_that_shows_less_is_warned_of(folder: Folder) -> None:
    own = vision_input.of_folder(folder("qwen2_5_vl")).budget  # type: ignore[union-attr]
    where = str(folder("qwen2_5_vl"))
    assert said(of_model(where, budget=PixelBudget(max_pixels=own["max_pixels"] // 2))) == (0, 0)
    assert said(of_model(where, budget=PixelBudget(max_pixels=own["max_pixels"] * 2))) == (0, 1)


def test_scores_of_two_budgets_are_not_compared_unasked(tmp_path: Path) -> None:
    answers = tmp_path / "predictions.jsonl"

    def said() -> dict[str, str]:
        return protocol.pixel_budget(protocol.settings(protocol.answered(answers)))

    assert said() == {}, "answers of another tool do not say"
    runs = []
    for most, file in ((100, answers), (200, tmp_path / "predictions.1-of-2.jsonl")):
        settings = {"pixel_budget": {"min_pixels": 4, "max_pixels": most}}
        manifest.write(manifest.path_for(file), RunManifest("infer", "complete", {}, "", {}, results={"settings": settings}))
        results = {"protocol": {"profile": "chat", **said()}}
        runs.append(comparison.ScoredRun(file, RunManifest("eval", "complete", {}, "", {}, results=results), ()))
        manifest.path_for(file).unlink()
    assert runs[0].protocol["pixel_budget"] == "min_pixels 4, max_pixels 100"
    with pytest.raises(InputError, match="pixel_budget"):
        comparison.fair(*runs)
    assert comparison.fair(*runs, despite=["pixel_budget"]) == ["pixel_budget"]
    none = RunManifest("eval", "complete", {}, "", {}, results={"protocol": {"profile": "chat"}})
    llava = comparison.ScoredRun(tmp_path, none, ())
    assert comparison.fair(runs[0], llava) == [], "a model without such a setting"


def test_the_doctor_compares_with_what_the_processor_writes(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    """tests/test_served_families_server.py shows that it agrees with a server that computes our prompts."""
    where = folder("qwen2_5_vl")
    for models, code, level in (
        ([{"id": "served", "root": str(where)}], 4, "missing"),  # this one counts nine tokens, whatever it is asked
        ([{"id": "served"}], 0, "warning"),
    ):
        capsys.readouterr()
        with serving(Behaviour(models=models)) as url:
            assert main.run(["doctor", "--server", url, "--model", "served", "--json"]) == code
        findings = json.loads(capsys.readouterr().out)["findings"]
        assert [finding["level"] for finding in findings if finding["check"] == "prompt"] == [level]
