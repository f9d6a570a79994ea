"""How a checkpoint turns dialogues and pictures into what its model takes, without its weights.

One encoder serves inference, relevance and training; it may be used in any thread and in the processes that load data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cos_core.dialogue.encoding import Encoded
from cos_core.dialogue.prompts import Profile
from cos_core.errors import InputError
from cos_core.models import grids as token_grids
from cos_core.models.grids import Grid
from cos_core.types import Slot, Turn

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class PictureSpan:
    """The positions of one picture in a prompt: features stand at `tokens` of the positions [start, stop)."""

    slot: Slot
    start: int
    stop: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """The token ids of a dialogue that ends with the assistant's role, and where its pictures stand, in order."""

    ids: tuple[int, ...]
    spans: tuple[PictureSpan, ...]

    def __len__(self) -> int:
        return len(self.ids)


class Encoder(ABC):
    """A checkpoint's tokenizer, image processor and wording.

    `config`: the model's configuration; `image_token_id`: the id that stands where a picture's features go; `fill`: the colour
    that pads a picture to a square.
    """

    __slots__ = ()

    config: Any
    tokenizer: Any
    profile: Profile
    image_token_id: int
    fill: tuple[int, int, int]

    @property
    def role(self) -> str:
        """The end of a prompt's text: the assistant's role, behind which a reply stands."""
        return self.profile.assistant

    @property
    def gap(self) -> str:
        """What a reply begins with before its first word."""
        return " "

    def variant(self, pictures: int) -> int:
        """A number for how a picture is seen in a dialogue of `pictures` pictures; equal numbers see it alike."""
        return 0

    @abstractmethod
    def picture(self, image: Image, variant: int = 0) -> Any:
        """What the model's image processor makes of a picture, on the CPU."""

    @property
    def remarks(self) -> list[str]:
        """How an encoded dialogue differs from what the checkpoint's chat template writes, sentences without an end."""
        return []

    @abstractmethod
    def crops(self, tokens: int) -> Any:
        """A `picture` of so many image tokens in a row, for tokens of crops that stand in a picture's place (see `encode`)."""

    @abstractmethod
    def prompt(self, turns: Sequence[Turn], picture: Callable[[Slot], Any]) -> Prompt:
        """The prompt of a dialogue that ends with a user's turn; `picture` gives the `picture` of a slot.

        Raises InputError for text that holds the image mark, or that cannot be tokenised.
        """

    @abstractmethod
    def encode(self, turns: Sequence[Turn], picture: Callable[[Slot], Any]) -> Encoded:
        """Token ids of a dialogue of any turns, with a label each; `picture` gives the `picture` of a slot.

        What the assistant says in turns with `learn` is labelled, its end mark included; what stands in front of it is what
        the `prompt` that asks for it ends with. Where a chat template writes no end mark, the label behind an answer is the end
        token, whatever id stands there. Raises InputError as `prompt` does, for an answer that holds an end token, and for a
        chat template that does not render an answer as a continuation of what stands before it.
        """

    @abstractmethod
    def tensors(self, pictures: Sequence[Any]) -> dict[str, torch.Tensor]:
        """What the model's forward pass takes for `picture`s, in the order in which they stand in a batch of dialogues."""

    def token_inputs(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the model's forward pass takes for the tokens of a batch, (rows, width), besides `ids` and the mask."""
        return {}

    @abstractmethod
    def grids(self, size: tuple[int, int], pictures: int = 1) -> tuple[Grid, ...]:
        """The grids of image tokens of a picture of `size` (width, height in pixels) in a dialogue of `pictures` pictures.

        Raises InputError where its tokens look at no known part of the picture.
        """

    def checked_grids(self, size: tuple[int, int], tokens: int, pictures: int = 1) -> tuple[Grid, ...]:
        """`grids` of a picture that has `tokens` image tokens in a prompt (PictureSpan.tokens).

        Raises InputError as `grids` does, and where the grids have another number of tokens.
        """
        found = self.grids(size, pictures)
        if (expected := token_grids.tokens(found)) != tokens:
            raise InputError(
                f"a picture of {size[0]} x {size[1]} pixels has {tokens} image tokens where its grids have {expected}: "
                "cos does not know the grids of these settings of the processor, or of this version of transformers, so that "
                "relevance cannot be mapped to the picture"
            )
        return found

    @abstractmethod
    def picture_tokens(self, size: tuple[int, int], pictures: int = 1) -> int:
        """How many positions a picture of `size` takes in a dialogue of `pictures` pictures, without the picture itself."""

    @abstractmethod
    def end_length(self, answer: Sequence[int]) -> int:
        """How many tokens at the end of an answer, as `encode` labels it, are its end mark."""

    def seen(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) in pixels of a picture of `size` as the model sees it."""
        return size
