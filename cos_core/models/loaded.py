"""What an engine needs of a model that is loaded in this process, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cos_core.dialogue.prompts import Profile
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


class LoadedModel(ABC):
    """A model with its tokenizer and wording, as the engine `hf` runs it.

    `image_token_id`: the id that stands where a picture's features go; `unused_rows`: rows of the vocabulary that no answer
    holds (vocabulary.py); `fingerprint`: of the checkpoint's content.
    """

    __slots__ = ()

    model: Any
    tokenizer: Any
    profile: Profile
    image_token_id: int
    name: str
    fingerprint: str
    unused_rows: tuple[int, ...]

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def context(self) -> int:
        """Positions of a sequence that the model was made for."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @property
    def rows(self) -> int:
        """Rows of the vocabulary, which ids of texts must not exceed."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def axes(self) -> int | None:
        """Axes of position ids: None for one number a token, 3 for M-RoPE."""
        return None

    @property
    def role(self) -> str:
        """The end of a prompt's text: the assistant's role, behind which a reply stands."""
        return self.profile.assistant

    @property
    def gap(self) -> str:
        """What a reply begins with before its first word."""
        return " "

    @property
    def continues(self) -> bool:
        """Whether the keys and values of a prompt's beginning serve every prompt that begins alike."""
        return True

    @property
    def refuses_shapes(self) -> bool:
        """Whether `picture` may raise InputError for a picture's shape."""
        return False

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end an answer."""
        return frozenset()

    def variant(self, pictures: int) -> int:
        """A number for how a picture is seen in a dialogue of `pictures` pictures; equal numbers see it alike."""
        return 0

    @abstractmethod
    def picture(self, image: Image, variant: int = 0) -> Any:
        """What the model's image processor makes of a picture, on the CPU; may be called from any thread."""

    def without_pixels(self, picture: Any) -> Any:
        """What is kept of a `picture` once its features are known: what prompts and positions need."""
        return None

    @abstractmethod
    def features(self, pictures: Sequence[Any]) -> list[Any]:
        """What the vision tower and its projector make of `picture`s, one entry each, without gradients."""

    @abstractmethod
    def prompt(self, turns: Sequence[Turn], picture: Callable[[Slot], Any]) -> Prompt:
        """The prompt of a dialogue; `picture` gives the `picture` of a slot.

        Raises InputError for text that holds the image mark, or that cannot be tokenised.
        """

    @abstractmethod
    def positions(self, ids: Any, pictures: Callable[[], Sequence[Any]]) -> Any:
        """Position ids of a sequence that shows `pictures`, a NumPy array (length,) or (axes, length) of int64.

        `ids`: a NumPy array (length,); `pictures` gives what `picture` made of them, for models that look at it.
        """

    @abstractmethod
    def run(self, ids: torch.Tensor, shown: Sequence[tuple[Any, int]], **inputs: Any) -> torch.Tensor:
        """Logits behind the last position of each row, (rows, vocabulary).

        `ids`: (rows, width), padded on the left; `shown`: the features whose image tokens stand in `ids`, in order, each with
        how many of its tokens stand in front of `ids`; `inputs`: attention_mask (rows, columns), position_ids, past_key_values
        and, for models that ask for it, `whole` (rows, columns), the ids of every column.
        """

    @abstractmethod
    def text(self, ids: Sequence[int]) -> str:
        """The text of generated ids, without end marks."""
