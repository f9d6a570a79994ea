"""How often the general class runs a vision tower."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_families import build

from cos_core.models import general


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
