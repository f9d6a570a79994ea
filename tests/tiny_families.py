"""Tiny random checkpoints of vision-language families: real classes of `transformers`, byte tokenizers, no download.

`build(name, folder)` writes one; `by_hand(name)` gives the processor that it was written from, made without any loader. Widths
are tens and layers two or three. Weights are drawn wide, so that answers depend on the picture and on the question. The shape
"other" has other widths, layers, patches and numbers of tokens, and another order of its vocabulary: a check that fits one
shape only fails on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import published_templates as templates
import tiny_others
from tiny_parts import CLIP, HALF, SHAPES, Parts, Shape, byte_tokenizer, ids, save_processor, square, text, tower, vicuna_tokens


def build(
    name: str,
    folder: Path,
    *,
    seed: int = 0,
    shape: str | Shape = "usual",
    layout: Literal["saved", "published"] = "saved",
    bfloat16: bool = False,
    generation_config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the family's checkpoint into `folder` and returns it.

    `layout`: processor files as transformers saves them now, or as most checkpoints were published (`save_processor`).
    `generation_config`: fields of generation_config.json beside the tokens, `{"repetition_penalty": 1.3}`.
    """
    import torch
    import transformers

    parts = BUILDERS[name](shape if isinstance(shape, Shape) else SHAPES[shape])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForImageTextToText.from_config(parts.config).eval()
        for key, weight in model.named_parameters():
            if key.endswith("mm_input_projection_weight") or "attn_gate" in key or "ffn_gate" in key:
                # Zero when drawn (Gemma 3's projection, Mllama's gates): pictures would not be seen.
                torch.nn.init.normal_(weight, std=0.2 if weight.dim() > 1 else 1.0)
            if parts.cls in ("Gemma3Processor", "PaliGemmaProcessor") and key.endswith("embed_tokens.weight"):
                # Gemma multiplies them by the root of the width: what a layer adds would be lost, and an answer repeat a token.
                weight.data *= 0.2
    if bfloat16:
        model = model.to(torch.bfloat16)
    tokens = parts.tokenizer
    ends = [tokens.convert_tokens_to_ids(word) for word in parts.stops]
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    model.generation_config.pad_token_id = tokens.pad_token_id
    model.generation_config.bos_token_id = tokens.bos_token_id
    for key, value in (generation_config or {}).items():
        setattr(model.generation_config, key, value)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    save_processor(parts, folder, layout)
    return folder


def by_hand(name: str, shape: str = "usual") -> Any:
    """The family's processor, of the library's own class, called with its parts; videos are out of its reach.

    PixtralProcessor is no class without torchvision; cos has one, which is taken.
    """
    import importlib
    from types import SimpleNamespace

    import transformers

    parts = BUILDERS[name](SHAPES[shape])
    if parts.cls == "PixtralProcessor":
        from cos_core.models.pixtral_processor import PixtralProcessor as cls
    else:
        cls = getattr(transformers, parts.cls)
    module = importlib.import_module(cls.__module__)
    fields = {"image_processor": parts.image_processor, "tokenizer": parts.tokenizer, **parts.more}
    options = {**parts.options, **({"chat_template": parts.template} if parts.template else {})}
    with (
        mock.patch.object(transformers.ProcessorMixin, "check_argument_for_proper_class"),
        mock.patch.object(module, "num2words", str, create=True),
    ):
        if "video_processor" in cls.get_attributes():
            fields["video_processor"] = SimpleNamespace(num_frames=None, fps=None)
        return cls(**fields, **options)


def _llava(s: Shape) -> Parts:
    from transformers import CLIPImageProcessorPil, LlavaConfig

    tokens, patch = vicuna_tokens(s), 2 * s.patch
    side = s.grid * patch
    config = LlavaConfig(
        vision_config=tower(s, side=side, patch=patch, model_type="clip_vision_model"),
        text_config=text(tokens, s, model_type="llama"),
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
        image_seq_length=s.grid**2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        pad_token_id=tokens.pad_token_id,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square(side), **CLIP)
    options = {"patch_size": patch, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return Parts(config, "LlavaProcessor", images, tokens, templates.LLAVA, ["</s>"], options)


def _llava_next(s: Shape) -> Parts:
    from transformers import LlavaNextConfig, LlavaNextImageProcessorPil

    tokens, side = vicuna_tokens(s), s.grid * s.patch
    # (height, width): LLaVA-NeXT's own list, where a tile has 336 pixels
    pins = [[side, 2 * side], [2 * side, side], [2 * side, 2 * side], [3 * side, side], [side, 3 * side]]
    config = LlavaNextConfig(
        vision_config=tower(s, side=side, patch=s.patch, model_type="clip_vision_model"),
        text_config=text(tokens, s, model_type="llama"),
        image_grid_pinpoints=pins,
        image_seq_length=s.grid**2,
        **ids(tokens, image_token_index="<image>"),
    )
    images = LlavaNextImageProcessorPil(size={"shortest_edge": side}, crop_size=square(side), image_grid_pinpoints=pins, **CLIP)
    options = {"patch_size": s.patch, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return Parts(config, "LlavaNextProcessor", images, tokens, templates.LLAVA, ["</s>"], options)


def _llava_onevision(s: Shape) -> Parts:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionImageProcessorPil

    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    tokens, side = byte_tokenizer(words, s, bos=None, eos="<|im_end|>", pad="<|endoftext|>"), s.grid * s.patch
    pins = [[side * i, side * j] for i in range(1, 5) for j in range(1, 5)]
    config = LlavaOnevisionConfig(
        vision_config=tower(s, side=side, patch=s.patch, model_type="siglip_vision_model", vision_use_head=False),
        text_config=text(tokens, s, model_type="qwen2"),
        image_grid_pinpoints=pins,
        vision_aspect_ratio="anyres_max_4",
        **ids(tokens, image_token_index="<image>", video_token_index="<video>"),
    )
    images = LlavaOnevisionImageProcessorPil(size=square(side), image_grid_pinpoints=pins, **HALF)
    options = {"num_image_tokens": s.grid**2, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_4"}
    return Parts(config, "LlavaOnevisionProcessor", images, tokens, templates.LLAVA_ONEVISION, ["<|im_end|>"], options)


_QWEN = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def _qwen(s: Shape, config: str, processor: str, template: str, vision: dict[str, Any], **more: Any) -> Parts:
    """`vision`: what this generation's tower is called; `more`: of the decoder's rotary settings."""
    import transformers

    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_QWEN.values()]
    tokens = byte_tokenizer(words, s, bos=None, eos="<|im_end|>", pad="<|endoftext|>")
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3], **more}
    shared = {"depth": s.tower_layers, "num_heads": s.tower_heads, "patch_size": s.patch, "initializer_range": 0.2}
    text_config = text(tokens, s, rope_parameters=rope, **({"head_dim": s.hidden // s.heads} if more else {}))
    settings = getattr(transformers, config)(
        text_config=text_config, vision_config={**shared, **vision}, **ids(tokens, **_QWEN)
    )
    # From 4 to 36 tokens a picture, or from 9 to 64.
    low, high = (s.grid * s.patch) ** 2, ((2 * s.grid + 4) * s.patch) ** 2
    images = transformers.Qwen2VLImageProcessorPil(
        patch_size=s.patch, merge_size=2, size={"shortest_edge": low, "longest_edge": high}, **CLIP
    )
    return Parts(settings, processor, images, tokens, template, ["<|im_end|>", "<|endoftext|>"])


def _qwen2_vl(s: Shape) -> Parts:
    vision = {"embed_dim": s.tower, "hidden_size": s.hidden, "mlp_ratio": 2}
    return _qwen(s, "Qwen2VLConfig", "Qwen2VLProcessor", templates.QWEN2_VL, vision)


def _qwen2_5_vl(s: Shape) -> Parts:
    vision = {"hidden_size": s.tower, "intermediate_size": 2 * s.tower, "out_hidden_size": s.hidden}
    windows = {"window_size": 4 * s.patch, "fullatt_block_indexes": [s.tower_layers - 1]}
    return _qwen(s, "Qwen2_5_VLConfig", "Qwen2_5_VLProcessor", templates.QWEN2_VL, {**vision, **windows})


def _qwen3_vl(s: Shape) -> Parts:
    vision = {"hidden_size": s.tower, "intermediate_size": 2 * s.tower, "out_hidden_size": s.hidden}
    deep = {"num_position_embeddings": 144, "deepstack_visual_indexes": [0]}
    return _qwen(s, "Qwen3VLConfig", "Qwen3VLProcessor", templates.QWEN3_VL, {**vision, **deep}, mrope_interleaved=True)


def _internvl(s: Shape) -> Parts:
    from transformers import GotOcr2ImageProcessorPil, InternVLConfig

    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *named.values()]
    tokens, side = byte_tokenizer(words, s, bos=None, eos="<|im_end|>", pad="<|endoftext|>", named=named), s.grid * s.patch
    length = (s.grid // 2) ** 2
    config = InternVLConfig(
        vision_config=tower(s, side=side, patch=s.patch),
        text_config=text(tokens, s, model_type="qwen2"),
        image_seq_length=length,
        downsample_ratio=0.5,
        **ids(tokens, image_token_id="<IMG_CONTEXT>"),
    )
    images = GotOcr2ImageProcessorPil(size=square(side), crop_to_patches=True, min_patches=1, max_patches=6, **CLIP)
    return Parts(config, "InternVLProcessor", images, tokens, templates.INTERNVL, ["<|im_end|>"], {"image_seq_length": length})


def _idefics3_like(s: Shape, config: str, images: str, processor: str) -> Parts:
    import transformers

    tiles = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    words = ["<pad>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>", *tiles]
    tokens, side = byte_tokenizer(words, s, bos="<|im_start|>", eos="<end_of_utterance>", pad="<pad>"), s.grid * s.patch
    settings = getattr(transformers, config)(
        vision_config=tower(s, side=side, patch=s.patch),
        text_config=text(tokens, s, model_type="llama"),
        scale_factor=2,
        pad_token_id=tokens.pad_token_id,
        **ids(tokens, image_token_id="<image>"),
    )
    pixels = getattr(transformers, images)(size={"longest_edge": 3 * side}, max_image_size={"longest_edge": side}, **HALF)
    options = {"image_seq_len": (s.grid // 2) ** 2}
    return Parts(settings, processor, pixels, tokens, templates.IDEFICS3, ["<end_of_utterance>"], options)


def _idefics3(s: Shape) -> Parts:
    return _idefics3_like(s, "Idefics3Config", "Idefics3ImageProcessorPil", "Idefics3Processor")


def _smolvlm(s: Shape) -> Parts:
    return _idefics3_like(s, "SmolVLMConfig", "SmolVLMImageProcessorPil", "SmolVLMProcessor")


def _gemma3(s: Shape) -> Parts:
    from transformers import Gemma3Config, Gemma3ImageProcessorPil

    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    words = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", *named.values()]
    tokens, side = byte_tokenizer(words, s, bos="<bos>", eos="<eos>", pad="<pad>", named=named), 2 * s.grid * s.patch
    layers = ["sliding_attention"] * (s.layers - 1) + ["full_attention"]
    head = s.hidden // s.heads
    config = Gemma3Config(
        text_config=text(tokens, s, head_dim=head, sliding_window=32, query_pre_attn_scalar=head, layer_types=layers),
        vision_config=tower(s, side=side, patch=s.patch, model_type="siglip_vision_model", vision_use_head=False),
        mm_tokens_per_image=s.grid**2,
        **ids(tokens, boi_token_index=named["boi_token"], eoi_token_index=named["eoi_token"]),
        **ids(tokens, image_token_index=named["image_token"]),
        eos_token_id=[tokens.eos_token_id, tokens.convert_tokens_to_ids("<end_of_turn>")],
    )
    images = Gemma3ImageProcessorPil(size=square(side), **HALF)
    options = {"image_seq_length": s.grid**2}
    return Parts(config, "Gemma3Processor", images, tokens, templates.GEMMA3, ["<eos>", "<end_of_turn>"], options)


def _paligemma(s: Shape) -> Parts:
    from transformers import PaliGemmaConfig, SiglipImageProcessorPil

    # Its processor adds these two kinds of words to a tokenizer that lacks them.
    places = tuple(f"<loc{i:04}>" for i in range(1024)) + tuple(f"<seg{i:03}>" for i in range(128))
    tokens = byte_tokenizer(["<pad>", "<eos>", "<bos>", "<image>"], s, bos="<bos>", eos="<eos>", pad="<pad>", plain=places)
    side = s.grid * 2 * s.patch
    images = SiglipImageProcessorPil(size=square(side), **HALF)
    images.image_seq_length = s.grid**2
    config = PaliGemmaConfig(
        vision_config=tower(s, side=side, patch=2 * s.patch, model_type="siglip_vision_model", vision_use_head=False),
        text_config=text(tokens, s, model_type="gemma", head_dim=s.hidden // s.heads, num_key_value_heads=1),
        projection_dim=s.hidden,
        hidden_size=s.hidden,
        vocab_size=len(tokens),
        **ids(tokens, image_token_index="<image>"),
    )
    return Parts(config, "PaliGemmaProcessor", images, tokens, templates.PALIGEMMA, ["<eos>"])


def _mistral(s: Shape, config: str, template: str, *, longest: int, merge: int, **more: Any) -> Parts:
    import transformers

    words = [
        "<pad>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[SYSTEM_PROMPT]",
        "[/SYSTEM_PROMPT]",
        "[IMG]",
        "[IMG_BREAK]",
        "[IMG_END]",
    ]
    tokens = byte_tokenizer(words, s, bos="<s>", eos="</s>", pad="<pad>")
    settings = getattr(transformers, config)(
        vision_config=tower(s, side=longest, patch=s.patch, model_type="pixtral"),
        text_config=text(tokens, s, model_type="mistral", head_dim=s.hidden // s.heads, sliding_window=None),
        **ids(tokens, image_token_index="[IMG]"),
        **more,
    )
    images = transformers.PixtralImageProcessorPil(size={"longest_edge": longest}, patch_size=square(s.patch), **CLIP)
    options = {"patch_size": s.patch, "spatial_merge_size": merge}
    return Parts(settings, "PixtralProcessor", images, tokens, template, ["</s>"], options)


def _mistral3(s: Shape) -> Parts:
    longest = (2 * s.grid + 8) * s.patch
    return _mistral(s, "Mistral3Config", templates.MISTRAL3, longest=longest, merge=2, spatial_merge_size=2)


def _pixtral(s: Shape) -> Parts:
    """Model type llava with a Pixtral tower: every patch is a token."""
    longest = (s.grid + 4) * s.patch
    features = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    return _mistral(s, "LlavaConfig", templates.PIXTRAL, longest=longest, merge=1, **features)


_DIALOGUE: dict[str, Callable[[Shape], Parts]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "mistral3": _mistral3,
    "pixtral": _pixtral,
}
_PEERS: dict[str, Callable[[Shape], Parts]] = {
    "blip_2": tiny_others.blip_2,
    "instructblip": tiny_others.instructblip,
    "idefics": tiny_others.idefics,
}
_REFUSED: dict[str, Callable[[Shape], Parts]] = {"fuyu": tiny_others.fuyu}
_HELD_OUT: dict[str, Callable[[Shape], Parts]] = {
    "glm4v": tiny_others.glm4v,
    "aya_vision": tiny_others.aya_vision,
    "mllama": tiny_others.mllama,
}

BUILDERS = {**_DIALOGUE, **_PEERS, **_REFUSED, **_HELD_OUT}
WITH_DIALOGUE = tuple(_DIALOGUE)
"""Families with a chat template (PaliGemma's is ours)."""
PEERS = tuple(_PEERS)
"""Models of the paper's tables that know no dialogue."""
REFUSED = tuple(_REFUSED)
FAMILIES = WITH_DIALOGUE + PEERS + REFUSED
HELD_OUT = tuple(_HELD_OUT)
"""Families that nobody wrote a file for; the last one reads pictures through cross-attention."""
