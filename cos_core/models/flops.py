"""How much arithmetic a model of some configuration takes, and how many weights it has."""

from __future__ import annotations

from dataclasses import dataclass


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
