"""Checkpoints that are known by their settings alone: config.json, perhaps what prepares pictures; no weights, no tokenizer.

The settings of some published checkpoints ship with cos (templates/shapes, a folder each), so that the cost of a run is known
before anything is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from cos_core.dialogue.encoding import Encoded
from cos_core.dialogue.prompts import Profile
from cos_core.errors import InputError
from cos_core.files import assets, images
from cos_core.models import checkpoint_files as files
from cos_core.models import families, general_check, hub, pretrained
from cos_core.models import processor as processors
from cos_core.models.encoder import Encoder, Prompt
from cos_core.models.families import Family, PixelBudget
from cos_core.models.grids import Grid, tokens
from cos_core.types import Slot, Turn

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def names() -> list[str]:
    """The hub ids of the checkpoints whose settings ship with cos, sorted."""
    return sorted(path.name.replace("--", "/") for path in _folders())


def shipped(model: str) -> Path | None:
    """The folder of a hub id's shipped settings; a revision and the case of letters do not matter. None: there are none."""
    wanted = model.partition("@")[0].replace("/", "--").lower()
    return next((path for path in _folders() if path.name.lower() == wanted), None)


def _folders() -> Iterator[Path]:
    return (path for path in sorted(assets.template("shapes").iterdir()) if path.is_dir())


def settings_of(model: str) -> tuple[Path, bool]:
    """The folder with a checkpoint's settings, and whether it is the shipped one of a hub id that is not on this machine.

    Only a hub id that is neither here nor shipped is downloaded. Raises InputError and MissingError as `hub.resolve` does.
    """
    here = hub.local(model)
    if here is None and (known := shipped(model)) is not None:
        return known, True
    return Path(here or hub.resolve(model)), False


def has_tokenizer(folder: str | Path) -> bool:
    """Whether a checkpoint's folder can turn texts into tokens."""
    return any((Path(folder) / name).is_file() for name in _TOKENIZER_FILES)


@dataclass(slots=True)
class PictureEncoder(Encoder):
    """What a checkpoint without a tokenizer says of pictures.

    `usual`: the image tokens of a picture where its family does not say how many a size has.
    """

    config: Any
    image_processor: Any
    family: Family
    profile: Profile
    image_token_id: int
    usual: int = 0
    fill: tuple[int, int, int] = images.FILL
    tokenizer: Any = None

    def picture(self, image: Image, variant: int = 0) -> Mapping[str, torch.Tensor]:
        """The tensors that the vision tower takes."""
        from cos_core.models.general_encoder import picture_inputs

        if self.family.pads_to_square:
            image = images.square_pad(image, self.fill)
        batch = self.image_processor(images=[image], return_tensors="pt")
        names = picture_inputs(self.config)
        return {name: value for name, value in batch.items() if name in names}

    def tensors(self, pictures: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Those of pictures of one size."""
        import torch

        return {name: torch.cat([picture[name] for picture in pictures]) for name in pictures[0]}

    def grids(self, size: tuple[int, int], pictures: int = 1) -> tuple[Grid, ...]:
        return self.family.grids(self.config, SimpleNamespace(image_processor=self.image_processor), size, pictures)

    def picture_tokens(self, size: tuple[int, int], pictures: int = 1) -> int:
        try:
            return tokens(self.grids(size, pictures))
        except InputError:  # the family does not know
            return self.usual

    def crops(self, tokens: int) -> Any:
        raise self._textless()

    def prompt(self, turns: Sequence[Turn], picture: Callable[[Slot], Any]) -> Prompt:
        raise self._textless()

    def encode(self, turns: Sequence[Turn], picture: Callable[[Slot], Any]) -> Encoded:
        raise self._textless()

    def end_length(self, answer: Sequence[int]) -> int:
        raise self._textless()

    def _textless(self) -> InputError:
        return InputError(f"there is no tokenizer of this {self.family.name or 'model'}, which turns texts into tokens")


def configuration(folder: Path) -> Any:
    """The configuration of a checkpoint's folder of any family, which may be without weights. Raises InputError."""
    general_check.facts(folder, weights=False)
    return pretrained.any_configuration(folder)


def encoder(folder: Path, profile: Profile, budget: PixelBudget | None = None) -> PictureEncoder:
    """What a folder's settings say of pictures, shown within `budget`.

    Where none prepare pictures, those of a published checkpoint of its family do, else the library's usual ones. Raises
    InputError for settings that cannot be read and for pictures that no class of `transformers` prepares.
    """
    config = configuration(folder)
    family = families.of_config(config.to_dict())
    image_processor = processors.settled(_processor_class(config), _image_processor(folder, config, family))
    family.set_budget(image_processor, budget or PixelBudget())
    return PictureEncoder(
        config=config,
        image_processor=image_processor,
        family=family,
        profile=profile,
        image_token_id=int(getattr(config, "image_token_id", None) or 0),
    )


def _processor_class(config: Any) -> Any:
    """The processor of a model type; None where transformers has none."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    return getattr(transformers, PROCESSOR_MAPPING_NAMES.get(config.model_type, ""), None)


def _image_processor(folder: Path, config: Any, family: Family) -> Any:
    if any(files.settings(folder, name) for name in ("preprocessor_config.json", "processor_config.json")):
        return processors.image_processor(folder)
    kind = families.type_of(config.to_dict())
    for path in _folders():
        if (files.settings(path, files.CONFIG) or {}).get("model_type") == kind:
            return processors.image_processor(path)
    if family.published:
        return processors.published(family.published)
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    named = IMAGE_PROCESSOR_MAPPING_NAMES.get(kind)
    name = named.get("pil") if isinstance(named, Mapping) else None
    if name is None:
        raise InputError(f"{folder} does not say how pictures are prepared; put its preprocessor_config.json there")
    return processors.published({"image_processor_type": name})
