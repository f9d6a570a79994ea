"""Pictures for a model that is asked: prepared in threads, then through its vision tower a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from cos_core.models.llava import Llava
from cos_core.models.loaded import LoadedModel
from cos_core.system import memory, worker_process

if TYPE_CHECKING:
    from PIL.Image import Image

R = TypeVar("R")


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A picture of `size` (width, height) in pixels as the model's image processor makes it ready, on the CPU.

    `inputs`: what LoadedModel.picture gives; of LLaVA-1.5 pixels, (3, side, side) in the model's dtype.
    """

    size: tuple[int, int]
    inputs: Any

    @property
    def nbytes(self) -> int:
        tensors = [self.inputs] if isinstance(self.inputs, torch.Tensor) else self.inputs.tensors.values()
        return sum(tensor.nbytes for tensor in tensors)


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What questions show of one picture; questions with the same object are on the same picture.

    `inputs`: what prompts and positions need of it; `features`: what stands at its image tokens (LoadedModel.features).
    """

    inputs: Any
    features: Any


Picture = Prepared | Callable[[], Prepared]
"""A picture that is prepared, or what prepares it."""


def prepared(model: LoadedModel, picture: Image, pictures: int = 1) -> Prepared:
    """A picture as in a dialogue of so many `pictures`; for use in any thread.

    Raises InputError for a picture that the image processor does not take.
    """
    inputs = model.encoder.picture(picture, model.variant(pictures))
    return Prepared(picture.size, inputs.to(model.model.dtype) if isinstance(inputs, torch.Tensor) else inputs)


def known_bytes(model: LoadedModel) -> int | None:
    """What a prepared picture takes where all take the same; None where that depends on the picture."""
    return 3 * _side(model) ** 2 * int(model.model.dtype.itemsize) if isinstance(model, Llava) else None


def encoded(
    model: LoadedModel,
    pictures: Sequence[Picture],
    allowed: memory.Allowance,
    read: Callable[[Prepared, Any], R],
) -> list[R]:
    """`read(picture, features)` of each picture, with what the vision tower makes of it (LoadedModel.features).

    As many go through the tower together as `at_once` says, or fewer where memory runs out. Pictures are prepared in threads
    where need be: those of the next call while the model computes.
    """
    step = at_once(model)
    making: dict[int, Future[Prepared]] = {}

    def picture(place: int) -> Prepared:
        one = pictures[place]
        return one if isinstance(one, Prepared) else making[place].result()

    def run(part: Sequence[int]) -> Sequence[R]:
        for place in range(part[0], min(part[-1] + 1 + step, len(pictures))):
            one = pictures[place]
            if place not in making and not isinstance(one, Prepared):
                making[place] = pool.submit(one)
        ready = [picture(place) for place in part]
        features = _features(model, [each.inputs for each in ready])
        results = [read(*each) for each in zip(ready, features, strict=True)]
        for place in part:
            making.pop(place, None)
        return results

    with ThreadPoolExecutor(worker_process.feeders(), thread_name_prefix="crops") as pool:
        return memory.in_parts(range(len(pictures)), run, step, allowed)


def _features(model: LoadedModel, inputs: Sequence[Any]) -> Sequence[Any]:
    if isinstance(model, Llava):
        return list(model.image_features(torch.stack(list(inputs)).to(model.device)))
    return model.features(inputs)


def at_once(model: LoadedModel) -> int:
    """How many pictures go through the vision tower together: those of LLaVA-1.5 have one size, others go one by one."""
    return pixels_per_call(_side(model)) if isinstance(model, Llava) else 1


def pixels_per_call(side: int) -> int:
    """How many pictures of `side` pixels go through the vision tower together: about two million pixels, 512 at most."""
    return max(8, min(512, 2**21 // (side * side)))


def _side(model: LoadedModel) -> int:
    return int(model.model.config.vision_config.image_size)
