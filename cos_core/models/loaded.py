"""What an engine needs of a model that is loaded in this process, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cos_core.dialogue.encoding import Encoded
from cos_core.dialogue.prompts import Profile
from cos_core.models.encoder import Encoder, Prompt
from cos_core.models.grids import Grid
from cos_core.types import Slot, Turn

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class LoadedModel(ABC):
    """A model with its encoder, as the engine `hf` and the annotator run it.

    `unused_rows`: rows of the vocabulary that no answer
    holds (vocabulary.py); `fingerprint`: of the checkpoint's content.
    """

    __slots__ = ()

    model: Any
    encoder: Encoder
    name: str
    fingerprint: str
    unused_rows: tuple[int, ...]

    @property
    def tokenizer(self) -> Any:
        return self.encoder.tokenizer

    @property
    def profile(self) -> Profile:
        return self.encoder.profile

    @property
    def image_token_id(self) -> int:
        return self.encoder.image_token_id

    @property
    def fill(self) -> tuple[int, int, int]:
        return self.encoder.fill

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def context(self) -> int:
        """Positions of a sequence that the model was made for."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @property
    def decoder(self) -> Any:
        """The language model with its `layers`."""
        return self.model.get_decoder()

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
        """See Encoder."""
        return self.encoder.role

    @property
    def gap(self) -> str:
        """See Encoder."""
        return self.encoder.gap

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
        """See Encoder."""
        return self.encoder.variant(pictures)

    def picture(self, image: Image, variant: int = 0) -> Any:
        """See Encoder; may be called from any thread."""
        return self.encoder.picture(image, variant)

    def without_pixels(self, picture: Any) -> Any:
        """What is kept of a `picture` once its features are known: what prompts and positions need."""
        return None

    @abstractmethod
    def features(self, pictures: Sequence[Any]) -> list[Any]:
        """What the vision tower and its projector make of `picture`s, one entry each, without gradients."""

    @abstractmethod
    def pooled(self, features: Any, pool: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        """Features of a picture of which `pool` keeps or makes some tokens: (tokens, hidden) -> (fewer tokens, hidden)."""

    @abstractmethod
    def joined(self, features: Sequence[Any]) -> Any:
        """Features of several pictures as those of one, its tokens one behind the other."""

    def prompt(self, turns: Sequence[Turn], picture: Callable[[Slot], Any]) -> Prompt:
        """See Encoder."""
        return self.encoder.prompt(turns, picture)

    def encode(self, turns: Sequence[Turn], picture: Callable[[Slot], Any]) -> Encoded:
        """See Encoder."""
        return self.encoder.encode(turns, picture)

    def seen(self, size: tuple[int, int]) -> tuple[int, int]:
        """See Encoder."""
        return self.encoder.seen(size)

    def grids(self, size: tuple[int, int], pictures: int = 1) -> tuple[Grid, ...]:
        """See Encoder."""
        return self.encoder.grids(size, pictures)

    @abstractmethod
    def positions(self, ids: Any, pictures: Callable[[], Sequence[Any]]) -> Any:
        """Position ids of a sequence that shows `pictures`, a NumPy array (length,) or (axes, length) of int64.

        `ids`: a NumPy array (length,); `pictures` gives what `picture` made of them, for models that look at it.
        """

    def run(self, ids: torch.Tensor, shown: Sequence[tuple[Any, int]], **inputs: Any) -> torch.Tensor:
        """Logits behind the last position of each row, (rows, vocabulary), by `forward`."""
        return self.forward(ids, shown, **inputs, use_cache=True, logits_to_keep=1)[:, -1]

    @abstractmethod
    def forward(self, ids: torch.Tensor, shown: Sequence[tuple[Any, int]], **inputs: Any) -> torch.Tensor:
        """Logits behind each position, (rows, width, vocabulary), of the whole model: its own masks, positions and features.

        `ids`: (rows, width); `shown`: the features whose image tokens stand in `ids`, in order, each with how many of its
        tokens stand in front of `ids`; `inputs`: whatever the model's forward takes (attention_mask (rows, columns),
        position_ids, past_key_values, logits_to_keep) and, for models that ask for it, `whole` (rows, columns), the ids of
        every column, and `replied` (rows, columns), which of them stand behind the prompt; none where it is not given.
        """

    @abstractmethod
    def text(self, ids: Sequence[int]) -> str:
        """The text of generated ids, without end marks."""
