"""Grids of image tokens, by the pixels that change a token, by the processors' own counts and at published sizes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grid_pixels
import numpy as np
import pytest
import tiny_families
import transformers
from PIL import Image
from test_heat_grids import check_one_hot
from tiny_families import WITH_DIALOGUE
from tiny_parts import CLIP, HALF, SHAPES

from cos_core.errors import InputError
from cos_core.models import families, general
from cos_core.models.families import PixelBudget
from cos_core.models.general_encoder import GeneralEncoder
from cos_core.models.grids import tokens

Checkpoint = Callable[..., Path]
BLOCKS = 12
"""Blocks along each side of a picture that are changed one at a time."""
CASES: dict[str, list[tuple[int, int]]] = {
    "usual": [(120, 80), (64, 64), (300, 90)],
    "other": [(60, 100), (45, 31)],
}
"""Pictures, width x height, by the checkpoint's shape."""


def reach(name: str, cell: float) -> float:
    """How far beyond its pixels a token's features may depend on the picture, in pixels; see grid_pixels.Seen.

    2 for a bicubic resize; Idefics3 resizes twice with Lanczos, 3 each; LLaVA-OneVision's model shrinks its tokens between two
    neighbours, without an average over what lies between.
    """
    return {"idefics3": 6.0, "smolvlm": 6.0, "llava_onevision": 2.0 + cell}.get(name, 2.0)


def check_by_pixels(name: str, folder: Path, sizes: list[tuple[int, int]]) -> None:
    model = grid_pixels.without_tower_attention(general.load(folder, device="cpu", dtype="float32"))
    cell = grid_pixels.cell_of(model)
    views = {model.variant(pictures): pictures for pictures in (2, 1)}
    for size, pictures in [(size, pictures) for size in sizes for pictures in views.values()]:
        blocks = grid_pixels.blocks_of(size, BLOCKS)
        grids = model.grids(size, pictures)
        found = grid_pixels.changed(model, size, blocks, pictures)
        seen = grid_pixels.seen(found, blocks, grids, size, cell)
        assert seen.fits(reach(name, cell)), (size, pictures, seen)
        assert seen.judged >= grid_pixels.in_picture(grids), (size, pictures, seen)
        for columns, rows in ((1, 0), (0, 1)):
            moved = grid_pixels.seen(found, blocks, grid_pixels.shifted(grids, columns, rows), size, cell)
            assert not moved.fits(reach(name, cell)), (size, pictures, moved)


def test_llava_next_by_pixels(tiny_checkpoint: Checkpoint) -> None:
    """Tiles without their padding, newlines, and the whole picture; the other families below."""
    check_by_pixels("llava_next", tiny_checkpoint("llava_next"), [(120, 80)])


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", WITH_DIALOGUE)
def test_every_family_by_pixels(name: str, shape: str, tiny_checkpoint: Checkpoint) -> None:
    check_by_pixels(name, tiny_checkpoint(name, shape=shape), CASES[shape])


SIZES = [(120, 80), (1, 1), (3, 500), (500, 3), (1, 900), (900, 1), (300, 90)]
BUDGETS = {"max_tiles": 3, "longest_edge": 70, "max_pixels": 2500, "min_pixels": 3000}
"""Other than the tiny checkpoints' own; 70 is no whole number of their tiles."""


def check_counts(name: str, folder: Path, count: int) -> None:
    """Tokens and positions of pictures are those of pictures that are prepared, whatever the budget."""
    rng = random.Random(name)
    sizes = SIZES + [(rng.randint(1, 500), rng.randint(1, 500)) for _ in range(count)]
    words = families.of_type(name).budget_words
    for budget in (PixelBudget(), *(PixelBudget(**{word: BUDGETS[word]}) for word in words)):
        encoder, prepared = (general.encoder_of(str(folder), budget=budget) for _ in range(2))
        for size, pictures in [(size, pictures) for size in sizes for pictures in (1, 2)]:
            try:
                shown = prepared.picture(Image.new("RGB", size), prepared.variant(pictures))
            except InputError:
                for refused in (encoder.grids, encoder.picture_tokens):
                    with pytest.raises(InputError):
                        refused(size, pictures)
                continue
            found = encoder.checked_grids(size, shown.tokens, pictures)
            assert tokens(found) == shown.tokens, (size, pictures)
            positions = len(prepared.tokenizer(shown.text, add_special_tokens=False)["input_ids"])
            assert encoder.picture_tokens(size, pictures) == positions, (size, pictures)
            with pytest.raises(InputError):
                encoder.checked_grids(size, shown.tokens + 1, pictures)


@pytest.mark.parametrize("name", ["idefics3", "llava_onevision", "pixtral", "qwen2_5_vl"])
def test_counts(name: str, tiny_checkpoint: Checkpoint) -> None:
    check_counts(name, tiny_checkpoint(name), 3)


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", WITH_DIALOGUE)
def test_counts_of_every_family(name: str, shape: str, tiny_checkpoint: Checkpoint) -> None:
    check_counts(name, tiny_checkpoint(name, shape=shape), 8)


def test_a_family_without_grids_prepares_a_picture_of_each_size(
    tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = general.encoder_of(str(tiny_checkpoint("qwen2_5_vl")))
    by_grids = [encoder.picture_tokens(size) for size in ((120, 80), (60, 90))]

    def refuse(*_: Any) -> Any:
        raise InputError("unknown")

    made: list[tuple[int, int]] = []
    monkeypatch.setattr(type(encoder.family), "grids", refuse)
    encoder = general.encoder_of(str(tiny_checkpoint("qwen2_5_vl")))
    prepare = GeneralEncoder.picture
    monkeypatch.setattr(
        GeneralEncoder, "picture", lambda self, image, variant=0: made.append(image.size) or prepare(self, image, variant)
    )
    assert [encoder.picture_tokens(size) for size in ((120, 80), (60, 90), (120, 80))] == [*by_grids, by_grids[0]]
    assert made == [(120, 80), (60, 90)]


def test_wrong_grids_do_not_count(tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = general.encoder_of(str(tiny_checkpoint("qwen2_5_vl")))
    cell = type(encoder.family).cell
    right = [encoder.picture_tokens(size) for size in ((120, 80), (60, 90))]
    monkeypatch.setattr(type(encoder.family), "cell", lambda *args: 2 * cell(*args))
    encoder = general.encoder_of(str(tiny_checkpoint("qwen2_5_vl")))
    assert [encoder.picture_tokens(size) for size in ((120, 80), (60, 90))] == right
    with pytest.raises(InputError):
        encoder.checked_grids((120, 80), encoder.picture(Image.new("RGB", (120, 80))).tokens)


@pytest.mark.parametrize("settings", [{"do_pan_and_scan": True}, {"do_resize": False}])
def test_settings_without_grids(settings: dict[str, bool], tiny_checkpoint: Checkpoint) -> None:
    encoder = general.encoder_of(str(tiny_checkpoint("gemma3")))
    assert encoder.grids((120, 80))
    for name, value in settings.items():
        setattr(encoder.processor.image_processor, name, value)
    with pytest.raises(InputError):
        encoder.grids((120, 80))


@pytest.mark.parametrize("name", WITH_DIALOGUE)
def test_one_hot_token_gives_a_box_in_its_area(name: str) -> None:
    config, processor = tiny_families.BUILDERS[name](SHAPES["usual"]).config, tiny_families.by_hand(name)
    family = families.of_type(name)
    for pictures in {family.variant(n): n for n in (2, 1)}.values():
        check_one_hot(family.grids(config, processor, (300, 170), pictures), (300, 170))


def _llava_next() -> tuple[Any, Any]:
    canvases = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    sizes = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    return _published(
        "llava_next",
        transformers.LlavaNextImageProcessorPil(image_grid_pinpoints=canvases, **sizes, **CLIP),
        {"image_size": 336, "patch_size": 14},
        {"patch_size": 14},
    )


def _llava_onevision() -> tuple[Any, Any]:
    return _published(
        "llava_onevision",
        transformers.LlavaOnevisionImageProcessorPil(size={"height": 384, "width": 384}, **HALF),
        {"image_size": 384, "patch_size": 14},
        {"num_image_tokens": 729, "vision_aspect_ratio": "anyres_max_9"},
        vision_aspect_ratio="anyres_max_9",
    )


def _qwen(name: str, patch: int, low: int, high: int) -> tuple[Any, Any]:
    size = {"shortest_edge": low, "longest_edge": high}
    return _published(name, transformers.Qwen2VLImageProcessorPil(patch_size=patch, size=size, **CLIP), {}, {})


def _internvl() -> tuple[Any, Any]:
    options = {"size": {"height": 448, "width": 448}, "crop_to_patches": True, "min_patches": 1, "max_patches": 12}
    images = transformers.GotOcr2ImageProcessorPil(**options, **CLIP)
    vision = {"image_size": [448, 448], "patch_size": [14, 14]}
    return _published("internvl", images, vision, {"image_seq_length": 256}, downsample_ratio=0.5)


def _idefics3_like(name: str, images: str, tile: int, edge: int, patch: int, scale: int) -> tuple[Any, Any]:
    sizes = {"size": {"longest_edge": edge}, "max_image_size": {"longest_edge": tile}}
    pixels = getattr(transformers, images)(**sizes, **HALF)
    length = (tile // patch // scale) ** 2
    return _published(name, pixels, {"image_size": tile, "patch_size": patch}, {"image_seq_len": length}, scale_factor=scale)


def _published(name: str, image_processor: Any, vision: Any, options: Any, **config: Any) -> tuple[Any, Any]:
    """(what grids read of a configuration, the processor)."""
    processor = tiny_families.by_hand(name)
    processor.image_processor = image_processor
    for key, value in options.items():
        setattr(processor, key, value)
    return SimpleNamespace(vision_config=SimpleNamespace(**vision), **config), processor


PUBLISHED: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": lambda: _qwen("qwen2_vl", 14, 3136, 12845056),
    "qwen2_5_vl": lambda: _qwen("qwen2_5_vl", 14, 3136, 12845056),
    "qwen3_vl": lambda: _qwen("qwen3_vl", 16, 65536, 16777216),
    "internvl": _internvl,
    "idefics3": lambda: _idefics3_like("idefics3", "Idefics3ImageProcessorPil", 364, 4 * 364, 14, 2),
    "smolvlm": lambda: _idefics3_like("smolvlm", "SmolVLMImageProcessorPil", 512, 4 * 512, 16, 4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_at_published_sizes(name: str) -> None:
    """By the arithmetic of the library's processors; of those with tiles by its number of tiles."""
    config, processor = PUBLISHED[name]()
    rng = random.Random(7)
    sizes = [(rng.randint(20, 3000), rng.randint(20, 3000)) for _ in range(100)]
    if name in ("internvl", "idefics3", "smolvlm"):
        length = getattr(processor, "image_seq_length", None) or processor.image_seq_len
        tiles = [np.atleast_1d(processor.image_processor.get_number_of_image_patches(high, wide))[0] for wide, high in sizes]
        counted = [length * max(1, count) for count in tiles]
    else:
        counted = processor._get_num_multimodal_tokens(image_sizes=[(high, wide) for wide, high in sizes])["num_image_tokens"]
    for size, expected in zip(sizes, counted, strict=True):
        assert tokens(families.of_type(name).grids(config, processor, size, 1)) == expected, size


@pytest.mark.slow
@pytest.mark.parametrize(("name", "patch", "merge", "edge"), [("pixtral", 16, 1, 1024), ("mistral3", 14, 2, 1540)])
def test_counts_of_resized_pictures_at_published_sizes(name: str, patch: int, merge: int, edge: int) -> None:
    cells = {"height": patch, "width": patch}
    images = transformers.PixtralImageProcessorPil(size={"longest_edge": edge}, patch_size=cells, **CLIP)
    config, processor = _published(name, images, {}, {"patch_size": patch, "spatial_merge_size": merge})
    rng = random.Random(7)
    for _ in range(10):
        size = (rng.randint(20, 1600), rng.randint(20, 1600))
        shown = processor(text=[processor.image_token], images=[[Image.new("RGB", size)]])
        found = families.of_type(name).grids(config, processor, size, 1)
        assert tokens(found) == list(shown["input_ids"][0]).count(processor.image_token_id), size
