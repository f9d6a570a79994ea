"""Token ids, labels, box text and crop rectangle of the released training code, sample by sample, under the released recipe.

The expected files were recorded from the original code (its train_CoS.py and train.py) with both settings of its tokenizer.
Where the original's behaviour is a defect, the departure is named beside the case.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from training_world import PictureKeeper, collected

from cos_core.data.datasets import Problem, read_examples
from cos_core.data.released import ReleasedRegions, Square
from cos_core.dialogue.box_text import as_written
from cos_core.dialogue.cropping import crop_region
from cos_core.dialogue.encoding import IGNORE
from cos_core.dialogue.prompts import load_profile
from cos_core.files import plug
from cos_core.files.images import open_image, square_pad
from cos_core.geometry import SquarePad
from cos_core.training.dataset import Recipe, make_item
from cos_core.training.samples import Sample

GOLDEN = Path(__file__).resolve().parent / "golden" / "original"
EXPECTED = GOLDEN / "expected"
IMAGE, IMAGE_TOKENS = 999_999, 3
AFTER_END = {"legacy_true": "spaced", "legacy_false": "cut"}

# (sample, question) of the original's cases that are defects, and what is done here instead.
DEPARTURES = {
    (4, 0): "silent fallback to the whole picture: here the same tokens and picture, but named and counted",
    (4, 1): "silent fallback to the whole picture: here the same tokens and picture, but named and counted",
    (6, 0): '" ASSISTANT: " inside a turn masks the whole sample: here box and answers are learnt',
    (6, 1): '" ASSISTANT: " inside a turn masks the whole sample: here box and answers are learnt',
    (6, 2): "a crop of one pixel fails in the old processor, silent fallback: here it is a crop like any other",
    (8, 0): "an image mark inside an answer is cut out in silence: here it is reported with its line",
    (10, 0): "a conversation that begins with gpt kills the run: here it is reported with its line",
}
PLAIN_DEPARTURES = {
    8: "an image mark inside an answer becomes a second picture there: here it is reported with its line",
    6: '" ASSISTANT: " inside a turn masks the whole sample: here the answers are learnt',
    10: "a conversation that begins with gpt loses that turn in silence: here it is reported with its line",
}


@cache
def tokenizer(setting: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(GOLDEN / "tokenizers" / setting)


def expected(name: str, setting: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((EXPECTED / f"{name}_{setting}.json").read_text())
    return found


def recipe(setting: str, policy: str = "from_single_question") -> Recipe:
    encoder = PictureKeeper.of(
        profile=replace(load_profile("repo-2024-train"), after_end=AFTER_END[setting]),
        tokenizer=tokenizer(setting),
        image_token_id=IMAGE,
        image_tokens=IMAGE_TOKENS,
    )
    return Recipe(
        policy=plug.load("policies", policy),
        encoder=encoder,
        images=GOLDEN / "images",
        extra_turns=True,
        crop_of="region",
    )


@cache
def samples(policy: str) -> dict[int, Sample]:
    problems: list[object] = []
    examples = list(read_examples(EXPECTED / "ef_data.json", text_only="keep", on_problem=problems.append))
    regions = ReleasedRegions(EXPECTED / "ef_chain-of-spot.json")
    found = collected(examples, plug.load("policies", policy), regions).samples
    return {int(sample.questions[0].index): sample for sample in found}


def collapsed(ids: tuple[int, ...], labels: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """As the original writes them before its model widens them: one -200 a picture."""
    kept = [(-200 if i == IMAGE else i, label) for i, label in zip(ids, labels, strict=True)]
    out: list[tuple[int, int]] = []
    run = 0
    for pair in kept:
        run = run + 1 if pair[0] == -200 else 0
        if run <= 1 or (run - 1) % IMAGE_TOKENS == 0:
            out.append(pair)
    return [i for i, _ in out], [label for _, label in out]


def made(sample: Sample, question: int, setting: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The item of a sample, its draw fixed to the question that the original's seed chose."""
    monkeypatch.setattr("cos_core.training.dataset.draw", lambda *_: sample.usable.index(question))
    item = make_item(sample, 0, recipe(setting))
    return item.encoded, item.pictures


@pytest.mark.parametrize("setting", AFTER_END)
def test_chained_samples_equal_the_original(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0
    for case in expected("e_train_cos", setting):
        place = (case["sample"], case["q"])
        if place in DEPARTURES:
            continue
        encoded, pictures = made(samples("from_single_question")[place[0]], place[1], setting, monkeypatch)
        assert collapsed(encoded.ids, encoded.labels) == (case["input_ids"], case["labels"]), place
        assert crop_of(place, case) == pictures[1].tobytes(), place
        compared += 1
    assert compared == 4


def crop_of(place: tuple[int, int], case: dict[str, Any]) -> bytes:
    """The original's crop, cut from the padded square by its recorded pixels; its box text is checked on the way."""
    sample = samples("from_single_question")[place[0]]
    picture = open_image(GOLDEN / "images", str(sample.image))
    square = sample.boxes[place[1]]
    assert isinstance(square, Square)
    pad = SquarePad(*picture.size)
    assert list(square.on_canvas(pad)) == case["crop_call"]["box"]
    text, _ = as_written(square.box(*picture.size), picture.size, load_profile("repo-2024-train"))
    assert text == case["box_text"], place
    canvas = Image.new("RGB", (pad.side, pad.side), (122, 116, 104))
    canvas.paste(picture, pad.offset)
    return canvas.crop(case["crop_call"]["int_box"]).tobytes()


@pytest.mark.parametrize("setting", AFTER_END)
def test_plain_samples_equal_the_original(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain LLaVA training: the first question of the picture, all others behind it, without the chain's words."""
    compared = 0
    for case in expected("f_train_plain", setting):
        if case["sample"] in PLAIN_DEPARTURES:
            continue
        sample = samples("none")[case["sample"]]
        usual = recipe(setting, "none")
        assert isinstance(usual.encoder, PictureKeeper)
        plain = replace(usual, encoder=replace(usual.encoder, profile=replace(usual.profile, extra_turn_prefix="")))
        monkeypatch.setattr("cos_core.training.dataset.draw", lambda *_: 0)
        encoded = make_item(sample, 0, plain).encoded
        assert collapsed(encoded.ids, encoded.labels) == (case["input_ids"], case["labels"]), case["sample"]
        compared += 1
    assert compared == 3


@pytest.mark.parametrize("setting", AFTER_END)
def test_departures_from_the_original(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {(case["sample"], case["q"]): case for case in expected("e_train_cos", setting)}
    for question in (0, 1):
        assert cases[4, question]["fallback"]
        encoded, (full, roi) = made(samples("from_single_question")[4], question, setting, monkeypatch)
        assert collapsed(encoded.ids, encoded.labels) == (cases[4, question]["input_ids"], cases[4, question]["labels"])
        assert roi.tobytes() == square_pad(full, (122, 116, 104)).tobytes()
        assert question in samples("from_single_question")[4].fallbacks, DEPARTURES[4, question]
    for question in (0, 1, 2):
        case = cases[6, question]
        assert all(label == IGNORE for label in case["labels"])
        encoded, pictures = made(samples("from_single_question")[6], question, setting, monkeypatch)
        assert any(label != IGNORE for label in encoded.labels), DEPARTURES[6, question]
        if not case["fallback"]:
            assert collapsed(encoded.ids, encoded.labels)[0] == case["input_ids"], "the ids are still the original's"
            assert crop_of((6, question), case) == pictures[1].tobytes()
    assert cases[6, 2]["fallback"]
    assert pictures[1].size == (1, 1), DEPARTURES[6, 2]
    assert cases[10, 0]["error"].startswith("AssertionError")
    assert 10 not in samples("from_single_question"), DEPARTURES[10, 0]
    assert 8 not in samples("from_single_question"), DEPARTURES[8, 0]
    problems: list[Problem] = []
    list(read_examples(EXPECTED / "ef_data.json", text_only="keep", on_problem=problems.append))
    assert any("turn 0 is from 'gpt'" in problem.reason and problem.line for problem in problems), DEPARTURES[10, 0]


def test_a_negative_edge_is_clamped() -> None:
    """The original lets a negative near edge reach into the padding of the square; here a box never leaves the picture."""
    square = Square(top=-5, left=80, side=40)
    pad = SquarePad(100, 60)
    assert square.on_canvas(pad) == (80, 15, 100, 55), "the original's crop, 5 rows of padding"
    assert square.box(100, 60).corners == pytest.approx((0.8, 0.0, 1.0, 35 / 60))
    assert not square.inside(100, 60)
    picture = Image.new("RGB", (100, 60), (200, 10, 10))
    assert crop_region(picture, square.box(100, 60), "canvas", (122, 116, 104)).getcolors() == [(20 * 35, (200, 10, 10))]
