"""What a model is shown in place of a picture's content: controls that take it away and keep the size.

black   every pixel black
noise   each pixel drawn by itself from a normal distribution with the whole picture's mean and spread in each channel
swap    the same box of another question's picture, brought to the region's size
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from typing import get_args

import numpy as np
from PIL import Image

from cos_core.files.durable import utf8
from cos_core.files.text import one_line
from cos_core.types import CropContent

SWAP = "swap: "
"""What `Prediction.shown` begins with for a swapped region; the other picture's name follows."""

_STRIP = 1 << 20
"""Pixels of noise that are drawn at a time."""


def black(size: tuple[int, int]) -> Image.Image:
    """A black RGB picture of `size` (width, height in pixels)."""
    return Image.new("RGB", size)


def noise(size: tuple[int, int], picture: Image.Image, seed: int, example_id: str) -> Image.Image:
    """Noise of `size` (width, height) with the mean and the standard deviation of each of `picture`'s channels, in 0..255.

    The same for a seed and an example's id, whatever else is drawn.
    """
    width, height = size
    mean, spread = _statistics(picture)
    generator = np.random.default_rng(_digest("noise", seed, example_id))
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    rows = max(1, _STRIP // max(1, width))
    for top in range(0, height, rows):
        part = pixels[top : top + rows]
        drawn = generator.standard_normal(part.shape, dtype=np.float32) * spread + mean
        part[:] = np.clip(np.rint(drawn), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def swapped(size: tuple[int, int], other: Image.Image) -> Image.Image:
    """The region cut from the other picture, brought to the size of the region that it replaces."""
    return other if other.size == size else other.resize(size, Image.Resampling.BICUBIC)


def degraded(picture: Image.Image, scale: float) -> Image.Image:
    """The picture with what is left of it at `scale` times its sides: shrunk, and brought back to its size.

    Its size stays, and with it every frame and the number of tokens.
    """
    width, height = picture.size
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    if small == picture.size:
        return picture
    return picture.resize(small, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BICUBIC)


def partner(names: Sequence[str], name: str, seed: int, example_id: str) -> str | None:
    """Another picture of a run than `name`: of the run's pictures `names`, sorted and each once, one drawn by the seed and the
    example's id, every one as likely. None where there is no other."""
    own = bisect_left(names, name)
    others = len(names) - (own < len(names) and names[own] == name)
    if others < 1:
        return None
    number = _digest("swap", seed, example_id) % others
    return names[number + (others < len(names) and number >= own)]


def shown_words(content: CropContent, other: str | None) -> str | None:
    """How `Prediction.shown` records a second picture; None for the region itself."""
    if content == "region":
        return None
    return f"{SWAP}{other}" if content == "swap" else content


def content_of(shown: str) -> str:
    """The kind of what `Prediction.shown` says stood in the second picture: a CropContent, or "other" for none of them."""
    kind = "swap" if shown.startswith(SWAP) else shown
    return kind if kind in get_args(CropContent) else "other"


def replacement_words(shown: str) -> str:
    """What `Prediction.shown` says stood in the second picture, in words: "black", "the same box of b.png", ..."""
    if shown.startswith(SWAP):
        return f"the same box of {one_line(shown.removeprefix(SWAP))}"
    return "no second picture" if shown == "absent" else one_line(shown)


def _statistics(picture: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (3,) of a picture's channels, from their histograms."""
    counts = np.array(picture.convert("RGB").histogram(), dtype=np.float64).reshape(3, 256)
    levels = np.arange(256)
    total = counts.sum(axis=1)
    mean = counts @ levels / total
    spread = np.sqrt(np.maximum(0.0, counts @ levels**2 / total - mean**2))
    return mean.astype(np.float32), spread.astype(np.float32)


def _digest(what: str, seed: int, example_id: str) -> int:
    return int.from_bytes(hashlib.sha256(utf8(f"{what}:{seed}:{example_id}")).digest()[:8], "big")
