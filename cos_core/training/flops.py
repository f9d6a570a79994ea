"""How much arithmetic a step takes, and what a GPU can do in a second."""

from __future__ import annotations

import re
from dataclasses import dataclass

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
class PictureFlops:
    """FLOPs of the vision tower and projector, forward: `each` picture, `token` an image token, `square` a squared number of
    a picture's image tokens. A family with pictures of one size has the first alone, the others the other two.
    """

    each: float = 0.0
    token: float = 0.0
    square: float = 0.0

    def of(self, pictures: int, tokens: int) -> float:
        """The FLOPs of `pictures` with `tokens` image tokens together, as if they were of one size."""
        squares = tokens**2 / pictures if pictures else 0.0
        return self.each * pictures + self.token * tokens + self.square * squares


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Numbers of weights (not bytes) and of FLOPs of a model's parts.

    `language`: decoder and output embeddings, of which tied ones count once; `vision`: the tower and all that is in no other
    part; `vocabulary`: rows of the output embeddings; `linear`: weights of the decoder's linear layers, all layers together;
    `features`: inputs and outputs of these, so that adapters of rank r have r x `features` weights; `position`: FLOPs of the
    language model a position, forward, and `square` those of its attention a squared length, nothing masked; a mixture of
    experts counts the experts that a token is sent to; `picture_tokens`: image tokens of a picture of usual size.
    `not_measured`: why FLOPs are guessed from the weights; empty where they are measured.
    """

    language: int
    vision: int
    projector: int
    layers: int
    hidden: int
    vocabulary: int
    linear: int
    features: int
    position: float
    square: float
    picture: PictureFlops
    picture_tokens: int
    not_measured: str = ""

    @property
    def one_size(self) -> bool:
        """Whether every picture takes as much, whatever its size."""
        return self.picture.each > 0

    @property
    def total(self) -> int:
        return self.language + self.vision + self.projector

    def step_flops(self, tokens: int, squares: int, image_tokens: int, pictures: int, adapters: bool = False) -> float:
        """Model FLOPs of training on `tokens` positions, `image_tokens` of them those of `pictures`.

        `squares`: the sum of squared lengths, in tokens. Weights count three times, forward and twice backward; under
        `adapters` they get no gradient and count twice. Attention counts three times and half, as it is causal (in models
        with a sliding window, too). The tower is frozen: forward only. Recomputed activations do not count, as in every MFU.
        """
        dense = (2.0 if adapters else 3.0) * self.position * tokens
        attention = 1.5 * self.square * squares
        return dense + attention + self.picture.of(pictures, image_tokens)
