"""Families of vision-language models: what `transformers` cannot be asked of each, one file a family.

A file is named after the `model_type` of config.json and offers `build() -> Family`. A family without a file is `Family`
itself: a box is written as fractions of the picture, and what the engine assumes is checked when the checkpoint is loaded.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from cos_core.dialogue.prompts import BoxStyle
from cos_core.errors import InputError
from cos_core.files import plug
from cos_core.models.grids import Grid

DEFAULT_BOXES = BoxStyle()
"""How a family without a documented writing is asked for boxes: `[x0, y0, x1, y1]`, fractions of the picture."""


@dataclass(frozen=True, slots=True)
class PixelBudget:
    """How finely a picture is shown; None: as the checkpoint's image processor says.

    `min_pixels`, `max_pixels`: of the resized picture; `max_tiles`: tiles that a picture is cut into, the whole picture apart;
    `longest_edge`: of the resized picture, in pixels.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    max_tiles: int | None = None
    longest_edge: int | None = None

    def __post_init__(self) -> None:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise InputError(
                f"{option('min_pixels')} {self.min_pixels} lies above {option('max_pixels')} {self.max_pixels}; give a floor "
                "below it"
            )

    @property
    def words(self) -> dict[str, int]:
        """The fields that are set, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


class Family:
    """A family of models; subclasses say where it differs from the general case."""

    name: ClassVar[str] = ""
    """Its name in messages and documents; empty for a family without a file."""
    boxes: ClassVar[BoxStyle] = DEFAULT_BOXES
    """How it writes a box where nothing was fine-tuned."""
    boxes_source: ClassVar[str] = ""
    """Where that is documented; empty where nothing is."""
    budget_words: ClassVar[tuple[str, ...]] = ()
    """The fields of PixelBudget that it has."""
    not_continuable: ClassVar[str] = ""
    """Why a prompt's keys and values cannot be continued, as the end of a sentence; empty where they can."""
    second_view_change: ClassVar[str] = ""
    """How pass 2 shows the picture otherwise than pass 1, a sentence without its end; empty where it shows it alike."""

    @property
    def not_continued(self) -> str:
        """Why pass 2 does not go on from pass 1's keys and values, as the end of a sentence; empty where it does."""
        return self.not_continuable or self.second_view_change

    @property
    def not_trained(self) -> str:
        """Why it cannot learn dialogues of two passes, as the end of a sentence; empty where it can."""
        return "it knows no dialogue" if self.text_profile else self.not_continuable

    first_position: ClassVar[int] = 0
    """The position id of a sequence's first token."""
    text_profile: ClassVar[str] = ""
    """The profile of a family without a dialogue, which is asked in plain text about one picture (textual.py); else empty."""
    pictures_in_text: ClassVar[bool] = False
    """Whether its processor takes texts and pictures in one list; else one picture and one text (textual.py)."""
    replies_behind: ClassVar[bool] = False
    """Whether a reply is no turn of its own: it stands behind the whole prompt, then the tokenizer's end token."""
    pads_to_square: ClassVar[bool] = False
    """Whether a picture is padded to a square before the image processor sees it."""
    published: ClassVar[Mapping[str, Any]] = {}
    """What sizes pictures in the image processor of the family's published checkpoints, for a served one whose files are not
    here: `image_processor_type` and its settings; empty: they differ, or the processor does more than one resize."""
    one_token_with_another: ClassVar[bool] = False
    """Whether the classes in `transformers` cannot encode a single picture of one token: a copy goes along then."""
    projector: ClassVar[tuple[str, ...]] = ()
    """Where the modules stand in the model (`base_model`) that turn the tower's features into tokens; empty: not known."""
    needs_token_types: ClassVar[bool] = False
    """Whether the model's mask depends on which tokens are a picture's: it is then given `token_type_ids` of all columns."""

    no_grid: ClassVar[str] = ""
    """Why no image token looks at a part of the picture, as a sentence without its end; empty where they do."""

    def around(self, text: str, word: str) -> tuple[str, str]:
        """What stands before and behind the image tokens of a picture of one grid, from the text of any picture.

        `word`: the text of an image token.
        """
        return text[: text.index(word)], text[text.rindex(word) + len(word) :]

    def variant(self, pictures: int) -> int:
        """A number for how a picture is seen in a dialogue of `pictures` pictures; equal numbers see it alike."""
        return 0

    def copies(self, variant: int) -> int:
        """How many pictures the dialogue has in which the processor prepares a picture of this variant."""
        return 1

    def layout(self, text: str, processor: Any) -> str:
        """The rendered dialogue as the family's processor changes it before it puts image tokens in."""
        return text

    def token_types(self, is_image: Any, replied: Any = None) -> Any:
        """The `token_type_ids` of a sequence, from whether each of its ids is a picture's (0 or 1).

        `replied`: which of them (booleans) stand behind the prompt; None: none does.
        """
        return is_image

    def resized(self, image_processor: Any, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels of a picture of `width` x `height` as the model sees it; boxes in unit "pixel" are of it.

        Raises ValueError, the library's own, for a picture that the image processor refuses.
        """
        return width, height

    def resized_once(self, image_processor: Any) -> bool:
        """Whether the image processor leaves a picture of the size `resized` as it is, so that it can be resized beforehand."""
        return False

    def grids(self, config: Any, processor: Any, size: tuple[int, int], pictures: int = 1) -> tuple[Grid, ...]:
        """The grids of image tokens of a picture of `size` (width, height in pixels) in a dialogue of `pictures` pictures.

        `config`: the model's configuration; `processor`: the checkpoint's, with the run's pixel budget. Raises InputError where
        no image token looks at a part of the picture, or where it is not known which one.
        """
        if self.no_grid:
            raise InputError(f"relevance of {self.name} cannot be mapped to the picture: {self.no_grid}")
        raise InputError(
            f"cos does not know which part of the picture each image token of {self.name or 'this model'} looks at, so that "
            "relevance cannot be mapped to the picture; a family says it in cos_core/models/families (Family.grids)"
        )

    def text_layout(self, grids: Sequence[Grid]) -> Hashable:
        """What the number of a picture's tokens beside its image tokens depends on: pictures of equal layouts have as many."""
        return None

    def set_budget(self, image_processor: Any, budget: PixelBudget) -> None:
        """Sets what `budget` says in a loaded image processor. Raises InputError for a word that the family does not have."""
        for word in budget.words:
            if word not in self.budget_words:
                raise InputError(f"{option(word)} is no setting of {self.name or 'this model'}{self._have()}")
        if budget.words:
            self.apply(image_processor, budget)

    def apply(self, image_processor: Any, budget: PixelBudget) -> None:
        """Sets the words that the family has in a loaded image processor; at least one is set in `budget`."""

    def agree(self, config: Any, image_processor: Any) -> None:
        """Sets in a loaded model's config what its classes read there of the image processor's settings."""

    def budget(self, image_processor: Any) -> dict[str, int]:
        """The image processor's settings of `budget_words`, word to number."""
        return {}

    def _have(self) -> str:
        if not self.name:
            return "; its family has no file in cos, which knows no such setting of it"
        if not self.budget_words:
            return ", which shows every picture in one size"
        return "; it has " + " and ".join(option(word) for word in self.budget_words)


def option(word: str) -> str:
    """How a word of the budget is spelt on the command line."""
    return "--" + word.replace("_", "-")


def names() -> list[str]:
    """The model types with a file, sorted. Imports nothing."""
    return plug.families()


def file_name(model_type: str) -> str:
    """How the file of a `model_type` is called: "blip-2" is blip_2.py."""
    return model_type.replace("-", "_").replace(".", "_")


@functools.cache
def of_type(model_type: str) -> Family:
    """The family of a `model_type`; the general one where it has no file."""
    stem = file_name(model_type)
    if stem not in names():
        return Family()
    family: Family = importlib.import_module(f"{__name__}.{stem}").build()
    return family


def type_of(config: Mapping[str, Any]) -> str:
    """The `model_type` of a config.json. A `llava` with a Pixtral tower is Pixtral-12B."""
    vision = config.get("vision_config")
    tower = vision.get("model_type") if isinstance(vision, Mapping) else None
    kind = config.get("model_type", "llava")
    return "pixtral" if kind == "llava" and tower == "pixtral" else str(kind)


def of_config(config: Mapping[str, Any]) -> Family:
    """The family of a config.json."""
    return of_type(type_of(config))


_SPELLINGS = {
    "llava15": "llava",
    "llavav15": "llava",
    "llava16": "llava_next",
    "llavav16": "llava_next",
    "mistralsmall3": "mistral3",
    "gemma3n": "",
    "internvlchat": "",
}
"""How the hub's names spell a family where that is not its `model_type`; "": not one of those with a file."""


def guessed(name: str) -> str | None:
    """The family, one of `names`, in a model's name: "Qwen/Qwen2.5-VL-7B-Instruct" gives "qwen2_5_vl".

    The longest that fits; None where none does.
    """
    plain = _plain(name.rstrip("/").rpartition("/")[2])
    spellings = {_plain(stem): stem for stem in names()} | _SPELLINGS
    found = max((each for each in spellings if each in plain), key=len, default=None)
    return spellings[found] or None if found is not None else None


def _plain(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())
