"""How much arithmetic a step takes, and what a GPU can do in a second."""

from __future__ import annotations

import re

from cos_core.models.flops import ModelSize

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


def step_flops(size: ModelSize, tokens: int, squares: int, image_tokens: int, pictures: int, adapters: bool = False) -> float:
    """Model FLOPs of training on `tokens` positions, `image_tokens` of them those of `pictures`.

    `squares`: the sum of squared lengths, in tokens. Weights count three times, forward and twice backward; under
    `adapters` they get no gradient and count twice. Attention counts three times and half, as it is causal (in models
    with a sliding window, too). The tower is frozen: forward only. Recomputed activations do not count, as in every MFU.
    """
    dense = (2.0 if adapters else 3.0) * size.position * tokens
    attention = 1.5 * size.square * squares
    return dense + attention + size.picture.of(pictures, image_tokens)
