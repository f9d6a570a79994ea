"""Tiny checkpoints of other families: peers without a dialogue, one that is refused, and three that nobody wrote a file for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import published_templates as templates
from tiny_parts import CLIP, Parts, Shape, byte_tokenizer, ids, square, text, tower, vicuna_tokens


def _blip(s: Shape, config: str, processor: str, more: Mapping[str, Any]) -> Parts:
    import transformers

    tokens, side = vicuna_tokens(s), s.grid * 2 * s.patch
    opt = {
        "model_type": "opt",
        "hidden_size": s.hidden,
        "word_embed_proj_dim": s.hidden,
        "ffn_dim": 2 * s.hidden,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "max_position_embeddings": 2048,
        "init_std": 0.2,
        "vocab_size": len(tokens),
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    questions = {
        "vocab_size": len(tokens),
        "hidden_size": s.tower,
        "intermediate_size": 2 * s.tower,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.tower_heads,
        "cross_attention_frequency": 1,
        "initializer_range": 0.2,
    }
    queries = 2 * s.grid
    settings = getattr(transformers, config)(
        vision_config=tower(s, side=side, patch=2 * s.patch),
        qformer_config=questions,
        text_config=opt,
        num_query_tokens=queries,
        **ids(tokens, image_token_index="<image>"),
    )
    images = transformers.BlipImageProcessorPil(size=square(side), **CLIP)
    return Parts(settings, processor, images, tokens, None, ["</s>"], {"num_query_tokens": queries}, more)


def blip_2(s: Shape) -> Parts:
    return _blip(s, "Blip2Config", "Blip2Processor", {})


def instructblip(s: Shape) -> Parts:
    tokens = vicuna_tokens(s)
    tokens.padding_side = "right"  # as BERT's, whose positions count from the first column
    return _blip(s, "InstructBlipConfig", "InstructBlipProcessor", {"qformer_tokenizer": tokens})


def idefics(s: Shape) -> Parts:
    from transformers import IdeficsConfig, IdeficsImageProcessorPil

    words = ["<pad>", "<s>", "</s>", "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    tokens = byte_tokenizer(words, s, bos="<s>", eos="</s>", pad="<pad>", named={"image_token": "<image>"})
    side = s.grid * 2 * s.patch
    vision = tower(s, side=side, patch=2 * s.patch)
    vision["embed_dim"] = vision.pop("hidden_size")
    decoder = text(tokens, s)
    del decoder["num_key_value_heads"]
    config = IdeficsConfig(
        vision_config=vision,
        additional_vocab_size=0,
        use_resampler=False,
        cross_layer_interval=1,
        alpha_initializer="ones",
        tie_word_embeddings=False,
        qk_layer_norms=False,
        **decoder,
    )
    images = IdeficsImageProcessorPil(image_size=side, **CLIP)
    return Parts(config, "IdeficsProcessor", images, tokens, None, ["</s>"])


def fuyu(s: Shape) -> Parts:
    from transformers import FuyuConfig, FuyuImageProcessorPil

    words = ["|ENDOFTEXT|", "<s>", "<0x04>", "|SPEAKER|", "|NEWLINE|", "<0x00>", "<0x01>", "<0x02>", "<0x03>"]
    tokens, patch = byte_tokenizer(words, s, bos="<s>", eos="|ENDOFTEXT|", pad="|ENDOFTEXT|"), s.patch + 3
    decoder = text(tokens, s, model_type="persimmon", qk_layernorm=True)
    del decoder["num_key_value_heads"]
    shared = {key: decoder[key] for key in ("hidden_size", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    config = FuyuConfig(
        text_config=decoder, patch_size=patch, num_channels=3, **ids(tokens, image_token_id="|SPEAKER|"), **shared
    )
    images = FuyuImageProcessorPil(size={"height": 6 * patch, "width": 8 * patch}, patch_size=square(patch))
    return Parts(config, "FuyuProcessor", images, tokens, None, ["|ENDOFTEXT|"])


def glm4v(s: Shape) -> Parts:
    """Qwen-like positions (M-RoPE) and merged patches, a template of its own."""
    from transformers import Glm4vConfig, Glm4vImageProcessorPil

    marks = {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    }
    words = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", *marks.values()]
    tokens = byte_tokenizer(words, s, bos=None, eos="<|endoftext|>", pad="<|endoftext|>")
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3], "partial_rotary_factor": 1.0}
    vision = {
        "depth": s.tower_layers,
        "hidden_size": s.tower,
        "intermediate_size": 2 * s.tower,
        "out_hidden_size": s.hidden,
        "num_heads": s.tower_heads,
        "patch_size": s.patch,
        "image_size": 6 * s.patch,
        "initializer_range": 0.2,
    }
    config = Glm4vConfig(text_config=text(tokens, s, rope_parameters=rope), vision_config=vision, **ids(tokens, **marks))
    size = {"shortest_edge": (s.grid * s.patch) ** 2, "longest_edge": ((2 * s.grid + 4) * s.patch) ** 2}
    images = Glm4vImageProcessorPil(patch_size=s.patch, merge_size=2, temporal_patch_size=2, size=size, **CLIP)
    return Parts(config, "Glm4vProcessor", images, tokens, templates.GLM4V, ["<|endoftext|>", "<|user|>"])


def aya_vision(s: Shape) -> Parts:
    """Tiles with names that are text of several tokens, a decoder with sliding windows and scaled logits."""
    from transformers import AyaVisionConfig, GotOcr2ImageProcessorPil

    turns = ["<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"]
    marks = ["<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"]
    words = ["<PAD>", "<BOS_TOKEN>", "<EOS_TOKEN>", *turns, *marks]
    tokens = byte_tokenizer(words, s, bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", pad="<PAD>")
    side, layers = s.grid * s.patch, ["sliding_attention"] * (s.layers - 1) + ["full_attention"]
    decoder = text(tokens, s, model_type="cohere2", sliding_window=32, logit_scale=0.25, layer_types=layers)
    config = AyaVisionConfig(
        vision_config=tower(s, side=side, patch=s.patch, model_type="siglip_vision_model", vision_use_head=False),
        text_config=decoder,
        downsample_factor=2,
        adapter_layer_norm_eps=1e-6,
        **ids(tokens, image_token_index="<|IMG_PATCH|>"),
    )
    images = GotOcr2ImageProcessorPil(size=square(side), crop_to_patches=True, min_patches=1, max_patches=6, **CLIP)
    options = {"patch_size": s.patch, "img_size": side, "downsample_factor": 2}
    return Parts(config, "AyaVisionProcessor", images, tokens, templates.AYA_VISION, ["<|END_OF_TURN_TOKEN|>"], options)


def mllama(s: Shape) -> Parts:
    """Llama 3.2 Vision: pictures are read through cross-attention, one token stands for each."""
    from transformers import MllamaConfig, MllamaImageProcessorPil

    turns = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"]
    words = ["<|finetune_right_pad_id|>", "<|begin_of_text|>", "<|end_of_text|>", *turns, "<|image|>"]
    tokens = byte_tokenizer(words, s, bos="<|begin_of_text|>", eos="<|eot_id|>", pad="<|finetune_right_pad_id|>")
    side, tiles = s.grid * s.patch, 4
    vision = tower(s, side=side, patch=s.patch)
    vision |= {"num_global_layers": 1, "attention_heads": vision["num_attention_heads"], "vision_output_dim": 2 * s.tower}
    vision |= {"intermediate_layers_indices": [0], "max_num_tiles": tiles}
    vision["supported_aspect_ratios"] = [[i, j] for i in range(1, 5) for j in range(1, 5) if i * j <= tiles]
    # The embeddings hold eight rows more than the head, for the image token.
    decoder = text(tokens, s, cross_attention_layers=[1], num_hidden_layers=s.layers + 1)
    config = MllamaConfig(vision_config=vision, text_config=decoder, **ids(tokens, image_token_index="<|image|>"))
    images = MllamaImageProcessorPil(size=square(side), max_image_tiles=tiles, **CLIP)
    return Parts(config, "MllamaProcessor", images, tokens, templates.MLLAMA, ["<|eot_id|>", "<|end_of_text|>"])
