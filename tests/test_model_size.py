"""What a model takes, measured without memory: weights by part, and FLOPs against sums by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cos_core.dialogue.prompts import load_profile
from cos_core.models import shapes
from cos_core.models.flops import ModelSize, PictureFlops
from cos_core.models.model_size import built, size_of, tensors_of
from cos_core.training.flops import step_flops

PUBLISHED = {
    "OpenGVLab/InternVL3-8B-hf": 7_944_373_760,
    "Qwen/Qwen2.5-VL-32B-Instruct": 33_452_718_336,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen3-VL-32B-Instruct": 33_357_390_064,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
    "llava-hf/llava-1.5-13b-hf": 13_351_494_656,
    "llava-hf/llava-1.5-7b-hf": 7_063_427_072,
    "llava-hf/llava-v1.6-vicuna-13b-hf": 13_351_499_776,
    "llava-hf/llava-v1.6-vicuna-7b-hf": 7_063_431_168,
}
"""Weights of the published checkpoints: bytes of their safetensors files by two, the files' headers aside."""


def measured(folder: Path) -> tuple[Any, ModelSize]:
    encoder = shapes.encoder(folder, load_profile("chat"))
    return encoder.config, size_of(encoder.config, tensors_of(encoder))


def language(config: Any) -> tuple[float, float]:
    """FLOPs a position and a squared length, by hand: 2 a weight; scores and values 2 each a pair and channel."""
    text = config.get_text_config()
    wide, keys = text.hidden_size, text.num_key_value_heads
    head = getattr(text, "head_dim", None) or wide // text.num_attention_heads
    queries = text.num_attention_heads * head
    block = 2 * wide * queries + 2 * wide * keys * head + 3 * wide * text.intermediate_size
    return 2 * (text.num_hidden_layers * block + wide * text.vocab_size), 4 * text.num_hidden_layers * queries


def vit(side: int, depth: int, wide: int, inner: int, patch: int, *, matrices: int = 2, token: int = 1) -> float:
    """FLOPs of a tower of whole attention on a square picture of `side` patches: `token` of them stands in front."""
    positions = side * side + token
    block = 2 * positions * (4 * wide * wide + matrices * wide * inner) + 4 * positions * positions * wide
    return 2 * side * side * 3 * patch * patch * wide + depth * block


def test_llava_by_hand(tiny_checkpoint: Callable[..., Path]) -> None:
    """CLIP with a class token, two linear layers behind it; every picture is one square."""
    config, size = measured(tiny_checkpoint("llava"))
    v, wide = config.vision_config, config.text_config.hidden_size
    side = v.image_size // v.patch_size
    expected = vit(side, v.num_hidden_layers, v.hidden_size, v.intermediate_size, v.patch_size)
    expected += 2 * side * side * (v.hidden_size * wide + wide * wide)
    assert size.picture == PictureFlops(each=pytest.approx(expected, rel=0.01))
    assert (size.position, size.square) == pytest.approx(language(config), rel=0.01)
    assert (size.one_size, size.picture_tokens) == (True, side * side)


def test_qwen_by_hand(tiny_checkpoint: Callable[..., Path]) -> None:
    """Windows of attention but in some layers, gated blocks, four patches a token; the cost grows with the picture."""
    config, size = measured(tiny_checkpoint("qwen2_5_vl"))
    v, wide = config.vision_config, config.text_config.hidden_size
    window = (v.window_size // v.patch_size) ** 2
    whole = len(v.fullatt_block_indexes)

    def picture(patches: int) -> float:
        deep = v.hidden_size
        block = 2 * patches * (4 * deep * deep + 3 * deep * v.intermediate_size)
        attention = 4 * patches * deep * (whole * patches + (v.depth - whole) * window)
        merger = 2 * (patches // 4) * (16 * deep * deep + 4 * deep * wide)
        return 2 * patches * 3 * v.temporal_patch_size * v.patch_size**2 * deep + v.depth * block + attention + merger

    for columns, rows in ((8, 8), (16, 8), (12, 12)):
        tokens = columns * rows // 4
        assert size.picture.of(1, tokens) == pytest.approx(picture(columns * rows), rel=0.01)
        assert size.picture.of(3, 3 * tokens) == pytest.approx(3 * picture(columns * rows), rel=0.01)
    assert (size.position, size.square) == pytest.approx(language(config), rel=0.01)
    assert not size.one_size


def test_internvl_by_hand(tiny_checkpoint: Callable[..., Path]) -> None:
    """Tiles, each by itself; four patches a token; as many FLOPs a token in every picture."""
    config, size = measured(tiny_checkpoint("internvl"))
    v, wide = config.vision_config, config.text_config.hidden_size
    side = v.image_size[0] // v.patch_size[0]
    tile = vit(side, v.num_hidden_layers, v.hidden_size, v.intermediate_size, v.patch_size[0])
    tokens = side * side // 4
    tile += 2 * tokens * (4 * v.hidden_size * wide + wide * wide)
    assert size.picture.of(2, 7 * tokens) == pytest.approx(7 * tile, rel=0.01)
    assert size.picture.square == 0
    assert (size.position, size.square) == pytest.approx(language(config), rel=0.01)


def test_a_mixture_of_experts_counts_those_that_are_asked() -> None:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]}
    text = {
        "vocab_size": 100, "hidden_size": 64, "moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rope_parameters": rope,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64, "patch_size": 14,
        "num_position_embeddings": 144, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    config = transformers.Qwen3VLMoeConfig(text_config=text, vision_config=vision)

    def pictures(size: tuple[int, int]) -> dict[str, torch.Tensor]:
        columns, rows = size[0] // 14, size[1] // 14
        pixels = torch.zeros(columns * rows, 3 * 2 * 14 * 14)
        return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, rows, columns]])}

    size = size_of(config, pictures)
    asked = 2 * 3 * 64 * 32
    assert size.position == pytest.approx(2 * (3 * (2 * 64 * 64 + 2 * 64 * 32 + 64 * 8 + asked) + 64 * 100), rel=0.01)
    experts = 3 * 8 * 3 * 64 * 32
    assert size.language > experts, "in memory are all of them"
    assert size.linear == 3 * (2 * 64 * 64 + 2 * 64 * 32), "and adapters are on none of them"


def test_the_weights_of_every_part(tiny_checkpoint: Callable[..., Path]) -> None:
    """The parts are the model's own, and tied embeddings count once."""
    places = {
        "llava": ["multi_modal_projector"],
        "qwen3_vl": ["visual.merger", "visual.deepstack_merger_list"],
        "idefics3": ["connector"],
    }
    for name, projector in places.items():
        config, size = measured(tiny_checkpoint(name))
        model = built(config)
        found = [model.base_model.get_submodule(part) for part in projector]
        assert size.projector == sum(weight.numel() for part in found for weight in part.parameters())
        assert size.total == sum(weight.numel() for weight in model.parameters())
        assert all(weight.is_meta for weight in model.parameters())
    tied = transformers.AutoConfig.from_pretrained(tiny_checkpoint("llava"))
    tied.tie_word_embeddings = tied.text_config.tie_word_embeddings = True
    apart, once = measured(tiny_checkpoint("llava"))[1], size_of(tied)
    assert apart.language - once.language == tied.text_config.vocab_size * tied.text_config.hidden_size
    assert apart.position == once.position


def test_a_model_that_cannot_be_measured_is_guessed_from_its_weights(tiny_checkpoint: Callable[..., Path]) -> None:
    config = transformers.AutoConfig.from_pretrained(tiny_checkpoint("mllama"))
    size = size_of(config)
    assert size.not_measured
    assert step_flops(size, 10, 100, 5, 1) == pytest.approx(6 * size.language * 10 + 2 * (size.vision + size.projector) * 5)


def test_the_7b_of_the_paper_by_the_formula_of_weights() -> None:
    """6 FLOPs a weight and token, 12 x layers x hidden x length^2 of causal attention halved, 2 a weight and patch."""
    _, size = measured(shapes.shipped("llava-hf/llava-1.5-7b-hf") or Path())
    length, pictures = 1300, 2
    dense = 6 * (size.language - 32064 * 4096) * length
    attention = 6 * 32 * 4096 * length**2
    seeing = pictures * (2 * size.vision * 577 + 2 * size.projector * 576)
    assert step_flops(size, length, length**2, 2 * 576, pictures) == pytest.approx(dense + attention + seeing, rel=0.02)
    lora = step_flops(size, length, length**2, 2 * 576, pictures, adapters=True)
    assert lora == pytest.approx(dense * 4 / 6 + attention + seeing, rel=0.02)


@pytest.mark.slow
def test_every_shipped_shape_is_the_published_one() -> None:
    assert shapes.names() == sorted(PUBLISHED)
    for name, weights in PUBLISHED.items():
        folder = shapes.shipped(name)
        assert folder is not None
        _, size = measured(folder)
        assert (size.total, size.not_measured) == (weights, ""), name


def test_a_32b_model_is_built_without_memory() -> None:
    folder = shapes.shipped("qwen/qwen2.5-vl-32b-instruct@main")
    assert folder is not None
    assert shapes.shipped("qwen/qwen2.5-vl-33b-instruct") is None
    config, size = measured(folder)
    assert (size.total, size.layers, size.vocabulary) == (33_452_718_336, 64, 152_064)
    assert (size.position, size.square) == pytest.approx(language(config), rel=0.01)
    # Four layers attend to the whole picture: 4 FLOPs a pair of patches and channel, 16 pairs of patches a pair of tokens.
    assert size.picture.square == pytest.approx(4 * 4 * 1280 * 16, rel=0.01)
