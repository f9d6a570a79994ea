"""The miniature network: real LLaVA classes, 1.6 million weights, random to begin with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cos_core.dialogue.prompts import Profile
from cos_core.models import layout


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of the miniature. `image_side` / `patch` = 5, so one picture takes 25 tokens."""

    image_side: int = 40
    patch: int = 8
    width: int = 128
    tower_layers: int = 3
    layers: int = 5
    head_width: int = 32

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_side // self.patch


IMAGE_MEAN = (0.55, 0.55, 0.55)
IMAGE_STD = (0.31, 0.31, 0.31)


def build(tokenizer: Any, shape: ModelShape, seed: int) -> Any:
    """A `LlavaForConditionalGeneration` with random weights, drawn from `seed`."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    heads = shape.width // shape.head_width
    vision = CLIPVisionConfig(
        hidden_size=shape.width,
        intermediate_size=3 * shape.width,
        num_hidden_layers=shape.tower_layers,
        num_attention_heads=heads,
        image_size=shape.image_side,
        patch_size=shape.patch,
        projection_dim=shape.width,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.width * 8 // 3 // 16 * 16,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # Wide enough that tied embeddings can tell words apart from the first step.
        initializer_range=0.05,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=shape.grid**2,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        # Learnt position embeddings start as 2-d sinusoids: place is known before anything else is.
        places = model.model.vision_tower.embeddings.position_embedding.weight
        places[1:] = 0.5 * torch.tensor(_sinusoids(shape.grid, shape.width), dtype=places.dtype)
    model.generation_config.max_length = None
    return model


def _sinusoids(side: int, width: int) -> np.ndarray:
    """(side * side, width) two-dimensional sine-cosine codes, row-major."""
    y, x = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    rates = 20.0 ** -(np.arange(width // 4) / (width // 4))
    codes = [np.concatenate([np.sin(p.reshape(-1, 1) * rates), np.cos(p.reshape(-1, 1) * rates)], 1) for p in (y, x)]
    return np.concatenate(codes, 1)


def image_processor(shape: ModelShape) -> Any:
    """The CLIP image processor that goes with the tower (Pillow backend: no torchvision needed)."""
    from transformers import CLIPImageProcessorPil

    side = shape.image_side
    return CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )


def save(model: Any, tokenizer: Any, profile: Profile, shape: ModelShape, out: Path) -> None:
    """Writes the checkpoint, complete for other programs (layout/)."""
    layout.save_model(model, out)
    layout.complete(
        out, settings=model.config, tokenizer=tokenizer, image_processor=image_processor(shape), profile=profile, card=CARD
    )


CARD = layout.ModelCard(
    "miniature",
    "A LLaVA-1.5-layout model of 1.6 million weights, trained from random ones on synthetic scenes: with it, every stage of "
    "Chain-of-Spot runs on a laptop in minutes. It is of no use on photographs.",
    facts={
        "data": "scenes of coloured shapes with digits, drawn as they are needed",
        "settings": "pretrain.json, with the command that makes it again",
    },
)
