"""The general class on the miniature: what it gives is what LLaVA-1.5's own path gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from cos_core.dialogue.prompts import dialogue
from cos_core.engines.hf import HfEngine
from cos_core.files import plug
from cos_core.files.images import open_image
from cos_core.files.jsonl import decode
from cos_core.infer.passes import TwoPass
from cos_core.infer.steps import Setting
from cos_core.miniature import scenes
from cos_core.models import general, llava
from cos_core.models.loaded import LoadedModel
from cos_core.types import BoxDecode, Example, Prediction

Asked = Sequence[tuple[Example, Image.Image]]


@pytest.fixture(scope="module")
def both() -> tuple[LoadedModel, LoadedModel]:
    """The miniature by its own path and by the general one."""
    options = {"device": "cpu", "dtype": "float32"}
    return llava.load("miniature", **options), general.load("miniature", **options)


def questions(folder: Path, pictures: int, each: int) -> list[tuple[Example, Image.Image]]:
    """`each` questions on each of some drawn scenes, every other scene cut to a wide or a tall picture."""
    file = scenes.write_dataset(folder, pictures, seed=7, per_image=each)
    asked = []
    for number, line in enumerate(file.read_bytes().splitlines()):
        record = decode(line)
        whole = open_image(folder / "images", record["image"])
        picture = whole.crop([(0, 0, 384, 384), (0, 0, 384, 211), (0, 0, 384, 384), (10, 0, 187, 384)][number % 4])
        for turn, said in enumerate(record["conversations"][::2]):
            question = said["value"].removeprefix("<image>\n")
            asked.append((Example(f"{record['id']}-{turn}", "scenes", record["image"], question), picture))
    return asked


def answers(model: LoadedModel, asked: Asked, fill: tuple[int, int, int], decode: BoxDecode) -> list[Prediction]:
    policy = plug.load("policies", "from_single_question")
    chain = TwoPass(HfEngine(model), Setting(policy, model.profile, fill, box_decode=decode))
    return [each for at in range(0, len(asked), 16) for each in chain.predict(asked[at : at + 16])]


def test_prompts_and_pixels_are_the_same(both: tuple[LoadedModel, LoadedModel], tmp_path: Path) -> None:
    own, other = both
    for example, picture in questions(tmp_path, 4, 2):
        inputs = other.picture(picture)
        assert torch.equal(inputs.tensors["pixel_values"][0], own.picture(picture))
        for box in (None, "[0.250, 0.500, 0.750, 1.000]", "no box"):
            for suffix in ("", "\nAnswer in a word."):
                turns = dialogue(own.profile, example.question, box_text=box, suffix=suffix)
                assert other.prompt(turns, lambda _: inputs) == own.prompt(turns, lambda _: None)  # noqa: B023
    assert other.stop_ids == own.stop_ids
    assert (other.role, other.gap) == (own.role, own.gap)


@pytest.mark.parametrize(
    ("pictures", "box_decode"), [(5, "free"), (5, "grammar"), pytest.param(120, "free", marks=pytest.mark.slow)]
)
def test_both_passes_are_the_same(
    both: tuple[LoadedModel, LoadedModel], tmp_path: Path, pictures: int, box_decode: BoxDecode
) -> None:
    asked = questions(tmp_path, pictures, 10)
    assert len(asked) >= 9 * pictures
    own, other = (answers(model, asked, both[0].fill, box_decode) for model in both)  # type: ignore[attr-defined]
    for a, b in zip(own, other, strict=True):
        assert (b.box_text, b.box_status, b.answer, b.tokens, b.error) == (a.box_text, a.box_status, a.answer, a.tokens, None)
    assert len({prediction.answer for prediction in own}) > 3, "one answer to everything would show nothing"
    # The base model answers in its first pass where nothing keeps it from that: it has not been trained yet. By grammar all is
    # a box, and a few of them lie in the padding.
    usable = sum(prediction.box_status == "ok" for prediction in own)
    assert usable > (0.8 * len(asked) if box_decode == "grammar" else 0)
