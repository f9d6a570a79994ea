"""Boxes of every family: from a share of the picture to text and back, at the sizes its own processor shows pictures in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_families
from PIL import Image

from cos_core.dialogue.box_text import read_box, write_box
from cos_core.dialogue.cropping import region_of
from cos_core.engines.hf import HfEngine
from cos_core.errors import InputError
from cos_core.files import plug
from cos_core.files.images import square_pad
from cos_core.geometry import Box, in_frame
from cos_core.infer.passes import TwoPass
from cos_core.infer.steps import Setting
from cos_core.interfaces import Reply, Request
from cos_core.models import families, loading, processor, vision_input
from cos_core.models.checkpoint_files import settings
from cos_core.models.wording import resolved_profile
from cos_core.types import Example, OnBadBox

SQUARES = ((384, 384), (1, 1), (4096, 4096))
SIZES = (*SQUARES, (1, 5000), (5000, 1), (3, 2), (57, 200), (640, 480), (1333, 800), (47, 2000), (9000, 60))
"""Pictures, width x height: from a line of pixels to beyond every family's budget."""

STEPS = {"thousandth": 1 / 1000, "1024th": 1 / 1024}
CELLS = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl"}


def boxes(seed: int) -> Iterator[Box]:
    rng = random.Random(seed)
    yield Box(0.0, 0.0, 1.0, 1.0)
    yield Box(0.999, 0.0, 1.0, 0.001)
    for _ in range(60):
        x0, y0 = rng.uniform(0, 0.9), rng.uniform(0, 0.9)
        yield Box(x0, y0, rng.uniform(x0 + 0.05, 1), rng.uniform(y0 + 0.05, 1))


def shown_size(loaded: Any, name: str, size: tuple[int, int]) -> tuple[int, int] | None:
    """(width, height) of a picture of `size` in what the processor itself makes of it; None where it refuses the picture.

    The Qwen-VL families give patches with their number a side, the others pixels.
    """
    try:
        out = loaded.image_processor(Image.new("RGB", size, (200, 10, 90)), return_tensors="pt")
    except ValueError:
        return None
    if name in CELLS:
        _, rows, columns = out["image_grid_thw"][0].tolist()
        patch = loaded.image_processor.patch_size
        return columns * patch, rows * patch
    height, width = out["pixel_values"].shape[-2:]
    return width, height


@pytest.mark.parametrize("shape", ["usual", "other"])
@pytest.mark.parametrize("name", sorted(CELLS))
def test_the_resized_size_is_the_processor_s(tiny_checkpoint: Callable[..., Path], name: str, shape: str) -> None:
    where = tiny_checkpoint(name, shape=shape)
    loaded = processor.processor(where)
    rng = random.Random(5)
    sizes = [*SIZES, *((rng.randint(1, 900), rng.randint(1, 900)) for _ in range(60))]
    for budget in (families.PixelBudget(), families.PixelBudget(max_pixels=9000), families.PixelBudget(min_pixels=4000)):
        view = vision_input.of_folder(where, budget)
        assert view is not None
        loaded.image_processor = view.image_processor
        refused = 0
        for size in sizes:
            actual = shown_size(loaded, name, size)
            if actual is None:
                refused += 1
                with pytest.raises(InputError):
                    view.seen(size)
            else:
                assert view.seen(size) == actual
        assert 0 < refused < len(sizes) // 2, "lines of pixels are refused, pictures are not"


@pytest.mark.parametrize("name", tiny_families.WITH_DIALOGUE)
def test_a_box_is_within_a_unit_after_text(tiny_checkpoint: Callable[..., Path], name: str) -> None:
    where = tiny_checkpoint(name)
    profile, view = resolved_profile(where), vision_input.of_folder(where)
    for number, size in enumerate(SIZES):
        try:
            seen = view.seen(size) if view is not None else None
        except InputError:
            continue
        for box in boxes(number):
            text = write_box(in_frame(box, profile.box_frame, size), profile, seen)
            read, status = read_box(text, profile, seen)
            assert read is not None
            assert status == "ok", text
            back = in_frame(read, "image", size)
            for axis, (low, high) in enumerate(zip(box.corners, back.corners, strict=True)):
                extent, pixels = size[axis % 2], (seen or size)[axis % 2]
                steps = {**STEPS, "pixel": 1 / pixels, "fraction": 10.0**-profile.box_decimals}
                # A share of the square is a larger share of the shorter side.
                unit = steps[profile.box_unit] * (max(size) / extent if profile.box_frame == "square" else 1)
                assert abs(low - high) <= min(1.0, unit * 1.001), (text, box, back)


def test_only_llava_pads(tiny_checkpoint: Callable[..., Path]) -> None:
    """The frame of each family's boxes is what its pictures are: a padded square, or the picture."""
    for name in tiny_families.WITH_DIALOGUE:
        where = tiny_checkpoint(name)
        family = families.of_config(settings(where, "config.json") or {})
        assert (resolved_profile(where).box_frame == "square") == family.pads_to_square == (name == "llava")
    assert square_pad(Image.new("RGB", (4, 2)), (1, 2, 3)).size == (4, 4)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "mistral3", "idefics3"])
@pytest.mark.parametrize("on_bad_box", ["full", "skip"])
def test_a_line_of_pixels_is_no_region(tiny_checkpoint: Callable[..., Path], name: str, on_bad_box: OnBadBox) -> None:
    """A crop that the image processor refuses counts as a box without area; a picture that it refuses fails alone."""
    loaded = loading.load(tiny_checkpoint(name), device="cpu", dtype="float32")
    engine = HfEngine(loaded)
    view = vision_input.of_folder(tiny_checkpoint(name))
    assert view is not None
    thin = write_box(Box(0.1, 0.5, 1.0, 0.5004), loaded.profile, seen := view.seen((2000, 1000)))
    area = region_of(thin, (2000, 1000), loaded.profile, "full", seen).area
    assert area is not None
    # Written in pixels of a small picture, a line is some pixels of the large one.
    crop, line_is_refused = PICTURES[0].crop(area.pixels(2000, 1000)), engine.refuses(PICTURES[1])
    assert engine.refuses(crop) == (name == "mistral3")

    class Written(HfEngine):
        def generate(self, requests: Sequence[Request]) -> list[Reply]:
            """The model's replies, but for a first pass: there a line of pixels."""
            return [
                reply if "roi" in request.images or reply.error else replace(reply, text=thin)
                for request, reply in zip(requests, super().generate(requests), strict=True)
            ]

    setting = Setting(
        plug.load("policies", "from_single_question"), loaded.profile, (0, 0, 0), on_bad_box=on_bad_box, seen=view.seen
    )
    asked = [(Example(str(number), "d", f"{number}.png", "what?"), image) for number, image in enumerate(PICTURES)]
    wide, line = TwoPass(Written(loaded), setting).predict(asked)
    if engine.refuses(crop):
        assert wide.box_status == "degenerate"
        assert (wide.box, wide.error is None) == ((Box(0, 0, 1, 1), True) if on_bad_box == "full" else (None, False))
    else:
        assert (wide.box_status, wide.error) == ("ok", None)
    assert (line.answer is None) == line_is_refused == ("3000 x 1" in str(line.error))


PICTURES = (Image.new("RGB", (2000, 1000), (30, 60, 200)), Image.new("RGB", (3000, 1)))
