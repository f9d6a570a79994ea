"""How much arithmetic and memory a step takes, from a checkpoint's configuration alone: no weights are read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

# Dense half-precision peaks in FLOP/s, from the makers' data sheets, by what the driver's name must hold. The first that fits
# counts. Whole words only: an RTX A4000 is no A40, an A10G no A10. What is not here has no peak, rather than a neighbour's.
_PEAKS = (
    (r"H200 NVL", 835e12),
    (r"G?H200", 989e12),
    (r"H100 NVL", 835e12),
    (r"H100 PCIe", 756e12),
    (r"H[18]00", 989e12),
    (r"A[18]00", 312e12),
    (r"L40S", 362e12),
    (r"L40", 181e12),
    (r"L4", 121e12),
    (r"A40", 150e12),
    (r"A10", 125e12),
    (r"GeForce RTX 4090(?! (Laptop|D))", 165e12),
    (r"V100S?", 125e12),
)


def peak_flops(device_name: str) -> float | None:
    """The peak of one device in FLOP/s, None for one that is not in the table (a CPU, say)."""
    return next((peak for name, peak in _PEAKS if re.search(rf"\b{name}\b", device_name)), None)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Weights (numbers, not bytes) and the shape that attention needs."""

    language: int
    embedding: int
    vision: int
    projector: int
    layers: int
    hidden: int
    vocabulary: int
    vision_positions: int

    @property
    def total(self) -> int:
        return self.language + self.vision + self.projector

    def step_flops(self, tokens: int, squares: int, pictures: int, adapters: bool = False) -> float:
        """Model FLOPs of training on `tokens` positions; `squares`: the sum of squared lengths; frozen tower: forward only.

        6 x weights x tokens for forward and backward, 12 x layers x hidden x length^2 for attention (halved, as it is causal),
        2 x weights x positions for each picture. Under `adapters` the weights get no gradient: 4 instead of 6. Recomputed
        activations do not count, as in every MFU.
        """
        dense = (4.0 if adapters else 6.0) * (self.language - self.embedding) * tokens
        attention = 6.0 * self.layers * self.hidden * squares
        seeing = (2.0 * self.vision * self.vision_positions + 2.0 * self.projector * self.vision_positions) * pictures
        return dense + attention + seeing


def size_of(config: Any) -> ModelSize:
    """The size of a LLaVA configuration; the model is built without memory ("meta" device)."""
    import torch
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)

    def count(part: Any) -> int:
        return sum(p.numel() for p in part.parameters())

    text, vision = config.text_config, config.vision_config
    inner = model.model
    return ModelSize(
        language=count(inner.language_model) + count(model.lm_head),
        embedding=count(model.get_input_embeddings()),
        vision=count(inner.vision_tower),
        projector=count(inner.multi_modal_projector),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        vision_positions=(vision.image_size // vision.patch_size) ** 2 + 1,
    )
