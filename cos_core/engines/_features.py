"""Pictures as a model sees them, each made ready and encoded once for as long as the caller holds it."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cos_core.errors import InputError
from cos_core.models.loaded import LoadedModel

if TYPE_CHECKING:
    from PIL.Image import Image

Key = tuple[int, int]
"""A picture's identity and the variant in which it is seen (LoadedModel.variant)."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture as it is seen in a dialogue: `number` stands for it in keys while it lives."""

    image: Image
    variant: int
    number: int

    @property
    def key(self) -> Key:
        return id(self.image), self.variant


class NotEncodedError(ValueError):
    """The vision tower does not take `picture`; the message says why."""

    def __init__(self, picture: Picture, why: str) -> None:
        super().__init__(why)
        self.picture = picture


class Features:
    """Inputs and features of the pictures that live; `on_drop` is called with the number of a picture that ended."""

    def __init__(self, loaded: LoadedModel, on_drop: Callable[[int], None]) -> None:
        self._loaded, self._on_drop = loaded, on_drop
        self._features: dict[Key, Any] = {}
        self._inputs: dict[Key, Any] = {}
        """What the image processor made of a picture, or the Future of it."""
        self._numbers: dict[Key, int] = {}
        self._count = itertools.count()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pixels")

    def __len__(self) -> int:
        """The number of pictures with anything kept."""
        return len(self._features.keys() | self._inputs.keys() | self._numbers.keys())

    def picture(self, image: Image, variant: int = 0) -> Picture:
        """The picture with its number; no other picture, nor another variant of it, ever gets that."""
        key = id(image), variant
        number = next(self._count)
        # In one step: `prepare` may ask for the same picture in another thread.
        given = self._numbers.setdefault(key, number)
        if given == number:
            weakref.finalize(image, _forget, weakref.ref(self), key)
        return Picture(image, variant, given)

    def prepare(self, images: Iterable[Image]) -> None:
        """Makes pictures ready ahead of their use, as a dialogue of one shows them; may run in another thread than `of`."""
        variant = self._loaded.variant(1)
        for picture in self._unknown(self.picture(image, variant) for image in images):
            with suppress(InputError):  # said where the picture is used
                self._inputs[picture.key] = self._loaded.picture(picture.image, variant)

    def ahead(self, pictures: Iterable[Picture]) -> None:
        """Makes pictures ready beside the model: those of later chunks while earlier ones run."""
        for picture in self._unknown(pictures):
            self._inputs[picture.key] = self._thread.submit(self._loaded.picture, picture.image, picture.variant)

    def inputs(self, picture: Picture) -> Any:
        """What the image processor makes of the picture, for models whose prompts depend on it."""
        if picture.key not in self._inputs:
            self._inputs[picture.key] = self._loaded.picture(picture.image, picture.variant)
        return self._ready(picture.key)

    def of(self, pictures: Sequence[Picture]) -> list[Any]:
        """The features of each; every distinct picture is encoded once. Raises NotEncodedError for one that cannot be."""
        new = {picture.key: picture for picture in pictures if picture.key not in self._features}
        self._features.update(zip(new, self._encoded(list(new.values())), strict=True))
        for key in new:
            rest = self._loaded.without_pixels(self._inputs.pop(key))
            if rest is not None:
                self._inputs[key] = rest
        return [self._features[picture.key] for picture in pictures]

    def _encoded(self, pictures: Sequence[Picture]) -> list[Any]:
        try:
            return self._loaded.features([self.inputs(picture) for picture in pictures])
        except InputError as error:
            if len(pictures) == 1:
                raise NotEncodedError(pictures[0], str(error)) from error
            return [features for picture in pictures for features in self._encoded([picture])]

    def release(self) -> None:
        """Drops all features; they are computed again from the pictures when they are needed."""
        for key in list(self._features):  # a picture may end meanwhile
            self._inputs.pop(key, None)
        self._features.clear()

    def _ready(self, key: Key) -> Any:
        value = self._inputs[key]
        if isinstance(value, Future):
            value = self._inputs[key] = value.result()
        return value

    def _unknown(self, pictures: Iterable[Picture]) -> Iterable[Picture]:
        return (each for each in pictures if each.key not in self._features and each.key not in self._inputs)

    def _drop(self, key: Key) -> None:
        self._features.pop(key, None)
        self._inputs.pop(key, None)
        self._on_drop(self._numbers.pop(key))


def _forget(features: weakref.ref[Features], key: Key) -> None:
    """Drops what was computed from a picture that ended."""
    self = features()
    if self is not None:
        self._drop(key)
