"""Pictures as a model sees them, each made ready and encoded once for as long as the caller holds it."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from cos_core.models import llava as loader

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES_AT_ONCE = 8


class Features:
    """Pixels and features of the pictures that live; `on_drop` is called with the number of a picture that ended."""

    def __init__(self, llava: loader.Llava, on_drop: Callable[[int], None]) -> None:
        self._llava, self._on_drop = llava, on_drop
        self._features: dict[int, torch.Tensor] = {}
        self._pixels: dict[int, torch.Tensor | Future[torch.Tensor]] = {}
        self._numbers: dict[int, int] = {}
        self._count = itertools.count()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pixels")

    def __len__(self) -> int:
        """The number of pictures with anything kept."""
        return len(self._features.keys() | self._pixels.keys() | self._numbers.keys())

    def number(self, image: Image) -> int:
        """The number that stands for the picture in keys while it lives; no other picture ever gets it."""
        if id(image) not in self._numbers:
            self._numbers[id(image)] = next(self._count)
            weakref.finalize(image, _forget, weakref.ref(self), id(image))
        return self._numbers[id(image)]

    def prepare(self, images: Iterable[Image]) -> None:
        """Pads, resizes and normalises pictures ahead of their use; may run in another thread than `of`."""
        for image in self._unknown(images):
            self.number(image)
            self._pixels[id(image)] = self._pixels_of(image)

    def ahead(self, images: Iterable[Image]) -> None:
        """Pads and resizes pictures beside the model: those of later chunks while earlier ones run."""
        for image in self._unknown(images):
            self._pixels[id(image)] = self._thread.submit(self._pixels_of, image)

    def of(self, images: Sequence[Image]) -> list[torch.Tensor]:
        """(image_tokens, hidden) each, every distinct picture encoded once."""
        new = {id(image): image for image in images if id(image) not in self._features}
        ready = [self._pixels.pop(key, None) for key in new]
        pixels = [
            one.result() if isinstance(one, Future) else self._pixels_of(image) if one is None else one
            for image, one in zip(new.values(), ready, strict=True)
        ]
        for start in range(0, len(pixels), PICTURES_AT_ONCE):
            stacked = torch.stack(pixels[start : start + PICTURES_AT_ONCE])
            keys = list(new)[start : start + PICTURES_AT_ONCE]
            self._features.update(zip(keys, self._llava.image_features(stacked), strict=True))
        return [self._features[id(image)] for image in images]

    def release(self) -> None:
        """Drops all features; they are computed again from the pictures when they are needed."""
        self._features.clear()

    def _unknown(self, images: Iterable[Image]) -> Iterable[Image]:
        return (image for image in images if id(image) not in self._features and id(image) not in self._pixels)

    def _pixels_of(self, image: Image) -> torch.Tensor:
        return self._llava.pixels([image])[0]

    def _drop(self, key: int) -> None:
        self._features.pop(key, None)
        self._pixels.pop(key, None)
        self._on_drop(self._numbers.pop(key))


def _forget(features: weakref.ref[Features], key: int) -> None:
    """Drops what was computed from a picture that ended."""
    self = features()
    if self is not None:
        self._drop(key)
