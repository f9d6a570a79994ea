"""Other models' folders: what they are called, and what a user can do with one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cos_core.files.text import one_line

_VISION_LANGUAGE = {
    "llava_next": "LLaVA-NeXT",
    "llava_next_video": "LLaVA-NeXT-Video",
    "llava_onevision": "LLaVA-OneVision",
    "video_llava": "Video-LLaVA",
    "vipllava": "ViP-LLaVA",
    "llava_qwen": "LLaVA-OneVision or LLaVA-NeXT in its own layout",
    "llava_mistral": "LLaVA-NeXT in its own layout",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "smolvlm": "SmolVLM",
    "idefics2": "Idefics2",
    "idefics3": "Idefics3",
    "internvl": "InternVL",
    "internvl_chat": "InternVL in its own layout",
    "paligemma": "PaliGemma",
    "gemma3": "Gemma 3",
    "mllama": "Llama 3.2 Vision",
    "llama4": "Llama 4",
    "mistral3": "Mistral Small 3",
    "pixtral": "Pixtral",
    "blip-2": "BLIP-2",
    "instructblip": "InstructBLIP",
    "kosmos-2": "Kosmos-2",
    "minicpmv": "MiniCPM-V",
    "phi3_v": "Phi-3 Vision",
    "phi4_multimodal": "Phi-4 multimodal",
    "glm4v": "GLM-4V",
    "molmo": "Molmo",
    "florence2": "Florence-2",
    "fuyu": "Fuyu",
    "chameleon": "Chameleon",
    "deepseek_vl": "DeepSeek-VL",
    "aya_vision": "Aya Vision",
    "ovis2": "Ovis2",
}
_TOWERS = ("clip", "clip_vision_model", "siglip", "siglip_vision_model", "siglip2", "dinov2", "vit", "chinese_clip", "altclip")
_EYES = ("vision_config", "visual", "vision_tower_config")
"""Sections of config.json that describe a vision tower."""
_LANGUAGE = (
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt2",
    "opt",
    "t5",
    "bert",
)
"""The most frequent types without a tower; what is not here is known after transformers is imported."""


def is_llava(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of LLaVA-1.5 in the layout of `transformers`; one without `model_type` is known by its parts."""
    parts = isinstance(config.get("text_config"), Mapping) and isinstance(config.get("vision_config"), Mapping)
    kind = config.get("model_type", "llava" if parts else None)
    return kind == "llava" and not is_original(config)


def is_llava_15(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is for the fast path: LLaVA-1.5, in either layout, with CLIP's tower; Pixtral-12B's type is
    `llava`, too. The tower of one that names none is CLIP's."""
    if is_original(config):
        return True
    vision = config.get("vision_config")
    tower = vision.get("model_type", "clip_vision_model") if isinstance(vision, Mapping) else "clip_vision_model"
    return is_llava(config) and tower == "clip_vision_model"


def is_other(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a family for the general class: it names a `model_type`, and is not LLaVA-1.5's."""
    return isinstance(config.get("model_type"), str) and not is_llava_15(config)


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of LLaVA-1.5 in its authors' layout."""
    kind = config.get("model_type", "llava")
    named = "mm_projector_type" in config or "mm_hidden_size" in config or "mm_vision_tower" in config
    return kind in ("llava", "llava_llama") and named and "text_config" not in config


def refusal(folder: Path, config: Mapping[str, Any]) -> str:
    """The sentence for a folder whose config.json is not LLaVA-1.5's where only LLaVA-1.5 will do: its family, and what to
    do."""
    if is_original(config):
        return f"{folder} is not in the transformers layout of LLaVA; convert it with: cos model convert"
    if (other := not_vision_language(folder, config)) is not None:
        return other
    word = one_line(config["model_type"], 60)
    named = f" ({_VISION_LANGUAGE[word]})" if word in _VISION_LANGUAGE else ""
    return (
        f"{folder} holds {word}{named}, and {LLAVA_ONLY} need LLaVA-1.5 in the transformers layout (docs/models.md); what "
        f"works with this checkpoint, says: cos model info {folder}"
    )


LLAVA_ONLY = "training and converting"
"""What runs LLaVA-1.5 alone, as the subject of a sentence."""


def not_vision_language(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The sentence that refuses a folder of no vision-language model, by its config.json alone; None for one that is, and for a
    type that is not listed here, of which transformers decides."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        return f"{folder} is in no layout of transformers: its config.json names no `model_type`"
    word = one_line(kind, 60)
    needs = "cos needs a vision-language model (docs/models.md)"
    if kind in _TOWERS:
        return f"{folder} holds {word}, a vision tower without a language model: {needs}"
    if kind == "lxmert":
        return (
            f"{folder} holds lxmert, which only locates regions: annotate with --backbone lxmert, or name a "
            f"vision-language model"
        )
    if kind in _VISION_LANGUAGE or any(isinstance(config.get(name), Mapping) for name in _EYES):
        return None
    if kind in _LANGUAGE:
        return f"{folder} holds {word}, a model without a vision tower, which sees no pictures: {needs}"
    return None


def name_of(kind: str) -> str:
    """What people call a `model_type`; itself where nothing else is known."""
    return _VISION_LANGUAGE.get(kind, one_line(kind, 60))
