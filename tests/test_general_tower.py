"""How often the general class runs a vision tower, and pictures that are hard on one."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_families import build

from cos_core.dialogue.prompts import dialogue
from cos_core.engines.hf import HfEngine
from cos_core.interfaces import Reply, Request
from cos_core.models import general
from cos_core.models.families import PixelBudget


def test_a_picture_that_is_prepared_as_one_of_two_goes_through_the_tower_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = general.load(build("llava_onevision", tmp_path), device="cpu", dtype="float32")
    image = Image.frombytes("RGB", (120, 80), random.Random(1).randbytes(3 * 120 * 80))
    both = model.processor(text=["<image><image>"], images=[[image] * 2], return_tensors="pt")
    options = {name: both[name] for name in ("pixel_values", "image_sizes", "batch_num_images")}
    with torch.no_grad():
        expected = model.model.base_model.get_image_features(**options, return_dict=True).pooler_output[0]
    tower = model.model.base_model.vision_tower
    seen: list[int] = []
    monkeypatch.setattr(tower, "forward", counted(tower.forward, seen))
    (features,) = model.features([model.picture(image, model.variant(2))])
    assert seen == [1]
    assert torch.allclose(features.pooler_output[0], expected, atol=1e-5)


def counted(forward: Any, seen: list[int]) -> Any:
    """`forward`, which also notes how many pictures or tiles it is given."""

    def run(pixel_values: torch.Tensor, **options: Any) -> Any:
        seen.append(len(pixel_values))
        return forward(pixel_values, **options)

    return run


def answers(engine: HfEngine, pictures: list[Image.Image]) -> list[Reply]:
    turns = dialogue(engine.loaded.profile, "What is this?")
    return engine.generate([Request(turns, {"full": picture}, 4) for picture in pictures])


def test_a_picture_of_one_token(tiny_checkpoint: Callable[..., Path]) -> None:
    """Mistral 3's classes lose the axis of a single one (transformers 5.23)."""
    model = general.load(tiny_checkpoint("mistral3"), device="cpu", dtype="float32")
    pictures = [Image.new("RGB", size, (90, 200, 30)) for size in ((1, 1), (50, 40))]
    small, large = map(model.picture, pictures)
    assert small.tokens == 1 < large.tokens
    sizes = torch.cat([small.tensors["image_sizes"], large.tensors["image_sizes"]])
    both = torch.zeros(2, *large.tensors["pixel_values"].shape[1:])
    both[:1, :, : sizes[0, 0], : sizes[0, 1]] = small.tensors["pixel_values"]
    both[1:] = large.tensors["pixel_values"]
    with torch.no_grad():
        together = model.model.base_model.get_image_features(pixel_values=both, image_sizes=sizes, return_dict=True)
    (features,) = model.features([small])[0].pooler_output
    torch.testing.assert_close(features, together.pooler_output[0])
    engine = HfEngine(model)
    assert [reply.ids for reply in answers(engine, pictures)] == [answers(engine, [each])[0].ids for each in pictures]


def test_a_picture_that_the_tower_does_not_take(tiny_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = general.load(tiny_checkpoint("qwen2_5_vl"), device="cpu", dtype="float32")
    engine = HfEngine(model)
    pictures = [Image.new("RGB", size, (90, 200, 30)) for size in ((40, 40), (64, 40), (40, 64))]
    expected = answers(engine, pictures)
    engine.release()
    encode, beyond = model.model.base_model.get_image_features, model.picture(pictures[1]).grid

    def narrow(**tensors: Any) -> Any:
        if torch.equal(tensors["image_grid_thw"], beyond):
            raise RuntimeError("shape '[3, 5]' is invalid for input of size 16")
        return encode(**tensors)

    monkeypatch.setattr(model.model.base_model, "get_image_features", narrow)
    found = answers(engine, pictures)
    assert found[1].error is not None
    assert "invalid for input of size 16" in found[1].error
    assert [found[i].ids for i in (0, 2)] == [expected[i].ids for i in (0, 2)]
    assert expected[0].ids


@pytest.mark.parametrize(("name", "fewest"), [("llava_next", 2), ("llava_onevision", 1)])
def test_fewer_tiles_are_joined_as_they_were_cut(name: str, fewest: int, tiny_checkpoint: Callable[..., Path]) -> None:
    """`features` counts what the tower gives of a picture against the tokens that the processor wrote."""
    sizes = [(90, 70), (200, 30), (30, 200)]
    counts = []
    for tiles in (fewest, 3, None):
        budget = PixelBudget(max_tiles=tiles)
        model = general.load(tiny_checkpoint(name), device="cpu", dtype="float32", budget=budget)
        shown = [model.picture(Image.new("RGB", size, (90, 200, 30)), model.variant(1)) for size in sizes]
        assert len(model.features(shown)) == len(sizes)
        counts.append(sum(each.tokens for each in shown))
    assert counts[0] < counts[-1]
