"""The vision input of a model: its image processor and pixel budget, as far as they are known without its weights.

It decides what is sent to a server, how boxes in pixels are read, and what of the processor is part of a fingerprint. LLaVA-1.5
has none: models/pixels.py pads and resizes its pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cos_core.errors import InputError, MissingError
from cos_core.files.durable import utf8
from cos_core.files.images import square_pad
from cos_core.models import checkpoint_files as files
from cos_core.models import families, general_probe, pretrained
from cos_core.models import processor as processors
from cos_core.models.families import Family, PixelBudget
from cos_core.models.layout.families import is_other
from cos_core.models.pixels import padding_colour
from cos_core.system.extras import install

if TYPE_CHECKING:
    from PIL.Image import Image

    from cos_core.models.general_encoder import GeneralEncoder

LLAVA_15 = "llava"
"""The family with a path of its own (models/llava.py)."""


@dataclass(frozen=True, slots=True)
class VisionInput:
    """How pictures of a model are prepared.

    `kind`: the `model_type`, "" where it is not known; `image_processor`: with the run's pixel budget applied, None where it
    is not known; `budget`: what it is set to, by the family's words. `processor`: the name of the processor's class, and
    `template`: the SHA-256 of the chat template's text, where the checkpoint's files are here.
    """

    kind: str
    family: Family = field(compare=False)
    image_processor: Any = field(default=None, compare=False)
    budget: Mapping[str, int] = field(default_factory=dict)
    processor: str | None = None
    template: str | None = None

    @property
    def resizes(self) -> bool:
        """Whether a picture can be resized before the image processor sees it, which then leaves it as it is."""
        return self.image_processor is not None and self.family.resized_once(self.image_processor)

    def seen(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) in pixels of a picture of `size` as the model sees it, by the image processor's own rule.

        Raises InputError for a picture that the rule refuses, and where it is not known.
        """
        if self.image_processor is None:
            raise InputError(
                "the size of a picture as the model sees it is not known without its image processor; name the model's folder"
            )
        try:
            return self.family.resized(self.image_processor, *size)
        except ValueError as error:
            raise InputError(f"a picture of {size[0]} x {size[1]} pixels: {pretrained.quoted(error)}") from None

    def shown(self, picture: Image) -> Image:
        """The picture as it is sent to a server: padded to a square for families that pad.

        Where the image processor does nothing but resize it, it is resized here with the same filter: another one's library
        rounds differently (torchvision's pixels are up to two levels off Pillow's), and leaves a picture of that size alone.
        """
        if self.family.pads_to_square and self.image_processor is not None:
            return square_pad(picture, padding_colour(self.image_processor))
        if not self.resizes:
            return picture
        size = self.seen(picture.size)
        # A size that is not kept by the rule itself would be resized again, and to another one.
        if size == picture.size or self.seen(size) != size:
            return picture
        return picture.resize(size, self.image_processor.resample)

    def settings(self) -> dict[str, Any]:
        """The settings that are part of a fingerprint, as plain JSON."""
        return {
            "family": self.kind or None,
            "pixel_budget": dict(self.budget),
            "chat_template": self.template,
            "processor": self.processor,
        }


def of_folder(folder: str | Path, budget: PixelBudget | None = None) -> VisionInput | None:
    """The vision input of the checkpoint in `folder`; None for LLaVA-1.5 and for a folder without a config.json.

    Raises InputError for files that cannot be read, and for a word of the budget that the family does not have.
    """
    where, budget = Path(folder), budget or PixelBudget()
    config = files.settings(where, files.CONFIG)
    if config is None or not is_other(config):
        families.of_type(LLAVA_15).set_budget(None, budget)
        return None
    kind = families.type_of(config)
    family = families.of_type(kind)
    with _libraries(kind):
        image_processor = processors.image_processor(where)
        family.set_budget(image_processor, budget)
        cls, template = processors.processor_class(where).__name__, processors.chat_template(where)
    return VisionInput(kind, family, image_processor, family.budget(image_processor), cls, _digest(template))


def of_encoder(encoder: GeneralEncoder) -> VisionInput:
    """The vision input of a checkpoint whose encoder is here; equal to that of its folder."""
    family, processor = encoder.family, encoder.processor
    image_processor, template = processor.image_processor, general_probe.template_of(processor)
    kind, budget = families.type_of(encoder.config.to_dict()), family.budget(image_processor)
    return VisionInput(kind, family, image_processor, budget, type(processor).__name__, _digest(template))


def of_family(kind: str, budget: PixelBudget | None = None) -> VisionInput | None:
    """The vision input of a model of the family `kind` ("": not known) whose files are not here.

    The sizes are those of the family's published checkpoints. None for LLaVA-1.5. Raises InputError for a pixel budget that the
    family does not have or that resizing here does not bring about.
    """
    family, budget = families.of_type(kind), budget or PixelBudget()
    with _libraries(kind):
        image_processor = processors.published(family.published) if family.published else None
    if kind == LLAVA_15 or not set(budget.words) <= set(family.budget_words):
        family.set_budget(image_processor, budget)
        return None
    check_resizable(VisionInput(kind, family, image_processor), budget)
    family.set_budget(image_processor, budget)
    return VisionInput(kind, family, image_processor, {} if image_processor is None else family.budget(image_processor))


@contextmanager
def _libraries(kind: str) -> Iterator[None]:
    """Inside the block, a missing `transformers` becomes a MissingError."""
    try:
        yield
    except ImportError as error:
        needs = f"pictures for {kind} are prepared by its image processor, from the extra 'model': {install('model')}"
        raise MissingError(f"{needs} ({error})") from None


def check_resizable(vision: VisionInput | None, budget: PixelBudget | None) -> None:
    """Raises InputError for a pixel budget that resizing a picture before it is sent does not bring about."""
    if vision is not None and budget is not None and budget.words and not vision.resizes:
        words = " and ".join(map(families.option, budget.words))
        raise InputError(f"{words} cannot be asked of a server with {vision.family.name}; set it where the model is served")


def _digest(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(utf8(text)).hexdigest()
