"""Loading a LLaVA-1.5-layout checkpoint for every stage that runs a model.

A checkpoint is a local directory, a hub id (`llava-hf/llava-1.5-7b-hf`) or the word `miniature`, in the ordinary `transformers`
layout. Only safetensors are read: a pickle from a stranger can run code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cos_core.dialogue.encoding import Encoded, detokenize, encode
from cos_core.dialogue.messages import IMAGE_MARK
from cos_core.dialogue.prompts import Profile, checkpoint_profile
from cos_core.errors import InputError, MissingError
from cos_core.models import hub, pretrained
from cos_core.models.devices import fits, placement, quiet_libraries
from cos_core.models.encoder import Encoder, PictureSpan, Prompt
from cos_core.models.grids import Grid, square
from cos_core.models.layout.check import check
from cos_core.models.loaded import LoadedModel
from cos_core.models.pixels import check_pictures, processed
from cos_core.models.vocabulary import check_tokens, unused_rows
from cos_core.system.extras import install
from cos_core.types import ImageSlot, Slot, Turn

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


PICTURES_AT_ONCE = 8
"""Pictures that go through the vision tower together at most."""


@dataclass(slots=True)
class LlavaEncoder(Encoder):
    """LLaVA-1.5's dialogues and pictures.

    `config`: the model's configuration; `image_tokens`: positions that one picture takes in the sequence (576 for LLaVA-1.5);
    `fill`: the processor's mean, as LLaVA pads; `context`: the most positions that the model has.
    """

    config: Any
    tokenizer: Any
    image_processor: Any
    profile: Profile
    image_token_id: int
    image_tokens: int
    fill: tuple[int, int, int] = (0, 0, 0)
    context: int | None = None

    def picture(self, image: Image, variant: int = 0) -> torch.Tensor:
        """Pixels, (3, side, side) in float32."""
        return processed(self.image_processor, [image], self.fill)[0]

    def crops(self, tokens: int) -> int:
        return tokens

    def encode(self, turns: Sequence[Turn], picture: Callable[[Slot], Any] | None = None) -> Encoded:
        """Every picture takes `image_tokens` positions, or as many as the `crops` that stand in its place."""
        slots = (part.slot for turn in turns for part in turn.parts if isinstance(part, ImageSlot))
        shown = None if picture is None or (slot := next(slots, None)) is None else picture(slot)
        tokens = shown if isinstance(shown, int) else self.image_tokens
        return encode(self.profile, turns, self.tokenizer, self.image_token_id, tokens, self.context)

    def end_length(self, answer: Sequence[int]) -> int:
        mark = self.tokenizer(self.profile.turn_end, add_special_tokens=False)["input_ids"]
        return len(mark) if mark and list(answer[-len(mark) :]) == mark else 0

    def prompt(self, turns: Sequence[Turn], picture: Callable[[Slot], Any] | None = None) -> Prompt:
        encoded = self.encode(turns)
        places = [place for place, token in enumerate(encoded.ids) if token == self.image_token_id]
        if len(places) != len(encoded.slots) * self.image_tokens:
            raise InputError(IMAGE_MARK)
        starts = places[:: self.image_tokens]
        return Prompt(
            encoded.ids,
            tuple(
                PictureSpan(slot, start, start + self.image_tokens, self.image_tokens)
                for slot, start in zip(encoded.slots, starts, strict=True)
            ),
        )

    def tensors(self, pictures: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        import torch

        return {"pixel_values": torch.stack(list(pictures))}

    def grids(self, size: tuple[int, int], pictures: int = 1) -> tuple[Grid, ...]:
        """One grid over the square that the picture is padded to."""
        side = int(self.config.vision_config.image_size) // int(self.config.vision_config.patch_size)
        return (Grid(side, side, square(*size), class_token=self.image_tokens == side * side + 1),)

    def picture_tokens(self, size: tuple[int, int], pictures: int = 1) -> int:
        return self.image_tokens


@dataclass(slots=True)
class Llava(LoadedModel):
    """A loaded model with its encoder."""

    model: Any
    encoder: LlavaEncoder
    name: str
    fingerprint: str
    unused_rows: tuple[int, ...] = ()
    """Rows of the vocabulary that no answer can hold (vocabulary.py)."""

    @property
    def decoder(self) -> Any:
        return self.model.model.language_model

    @property
    def image_processor(self) -> Any:
        return self.encoder.image_processor

    @property
    def image_tokens(self) -> int:
        """Positions that one picture takes in the sequence."""
        return self.encoder.image_tokens

    def pixels(self, images: Sequence[Image]) -> torch.Tensor:
        """Pictures of any size as (n, 3, side, side) in the model's dtype, padded to squares, resized, normalised."""
        return processed(self.image_processor, images, self.fill).to(self.model.device, self.model.dtype)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokenizer's and the model's end tokens, and the profile's end mark if it is one token."""
        configured = self.model.generation_config.eos_token_id
        ids = {self.tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
        mark = self.tokenizer(self.profile.turn_end, add_special_tokens=False)["input_ids"] if self.profile.turn_end else []
        if len(mark) == 1:
            ids.add(mark[0])
        return frozenset(int(i) for i in ids if i is not None)

    def picture(self, image: Image, variant: int = 0) -> torch.Tensor:
        """Pixels, (3, side, side) in the model's dtype."""
        return self.pixels([image])[0]

    def encode(self, turns: Sequence[Turn], picture: Callable[[Slot], Any] | None = None) -> Encoded:
        """See LlavaEncoder."""
        return self.encoder.encode(turns, picture)

    def pooled(self, features: torch.Tensor, pool: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return pool(features)

    def joined(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        import torch

        return torch.cat(list(features))

    def features(self, pictures: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """(image_tokens, hidden) each; a few pictures at a time."""
        import torch

        groups = [torch.stack(list(pictures[at : at + PICTURES_AT_ONCE])) for at in range(0, len(pictures), PICTURES_AT_ONCE)]
        return [each for group in groups for each in self.image_features(group)]

    def positions(self, ids: Any, pictures: Callable[[], Sequence[Any]]) -> Any:
        import numpy as np

        return np.arange(len(ids))

    def forward(self, ids: torch.Tensor, shown: Sequence[tuple[Any, int]], **inputs: Any) -> torch.Tensor:
        import torch

        inputs.pop("whole", None)
        inputs.pop("replied", None)
        if shown:
            inputs["inputs_embeds"] = self.embed(ids, torch.cat([features[stored:] for features, stored in shown]))
        else:
            inputs["input_ids"] = ids
        logits: torch.Tensor = self.model(**inputs).logits
        return logits

    def text(self, ids: Sequence[int]) -> str:
        return detokenize(ids, self.tokenizer)

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Projected features of pictures: (n, 3, side, side) -> (n, image_tokens, hidden), without gradients."""
        import torch

        with torch.no_grad():
            return torch.stack(list(self.model.get_image_features(pixel_values=pixel_values).pooler_output))

    def embed(self, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Token embeddings (batch, length, hidden) with the image positions replaced, in order, by `features` (..., hidden).

        Raises InputError when the number of image positions and of features differ.
        """
        embeddings = self.model.get_input_embeddings()(ids)
        places = ids == self.image_token_id
        features = features.reshape(-1, features.shape[-1]).to(embeddings.dtype)
        if int(places.sum()) != features.shape[0]:
            raise InputError(f"{int(places.sum())} image positions, but {features.shape[0]} image features")
        return embeddings.masked_scatter(places[..., None].expand_as(embeddings), features)


def load(
    model: str | Path,
    *,
    profile: str | Profile | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attention: str | None = None,
) -> Llava:
    """Loads a checkpoint for inference (eval mode), each weight straight to the device.

    `device`: "auto" takes a CUDA GPU when there is one; `dtype`: see `dtype_name`; `attention`: an
    attention implementation name known to `transformers`. Raises MissingError without torch or transformers, InputError for a
    checkpoint that cannot be read, is not LLaVA-1.5, or lacks weights.
    """
    where = hub.resolve(model)
    # Checked before anything large is imported, so that the error comes at once.
    check(where)
    target, kind = placement(device, dtype)
    with fits(where, target, kind):
        net = read_network(where, dtype=kind, device=None if target.type == "cpu" else target, attention=attention)
    return equipped(net, where, name=str(model), profile=profile)


def read_network(
    where: str,
    *,
    dtype: torch.dtype,
    device: torch.device | None = None,
    attention: str | None = None,
    quantization: Any = None,
    read: Callable[..., tuple[Any, dict[str, Any]]] = pretrained.network,
) -> Any:
    """The network of a checkpoint folder, in eval mode, each weight read from its file to where it stays.

    `device`: a GPU, to which the weights go one by one; None: the CPU, or, where DeepSpeed's ZeRO-3 is set up, the parts that
    it cuts them into. Nothing is moved afterwards: no second copy exists at any time, and what ZeRO-3 placed stays there.
    `quantization`: a transformers quantization configuration, applied weight by weight; `read`: what reads the folder, another
    one for other families. Raises InputError for a checkpoint that cannot be read, is not LLaVA or lacks weights; what says
    that memory ran out is let through (see memory.py).
    """
    import torch

    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
    if device is not None:
        if find_spec("accelerate") is None:
            raise MissingError(f"loading to a GPU needs the package 'accelerate': {install('model')}")
        index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
        options["device_map"] = {"": torch.device(device.type, index)}
    if quantization is not None:
        options["quantization_config"] = quantization
    net, info = read(where, **options)
    pretrained.check_complete(where, info)
    return net


def equipped(net: Any, where: str, *, name: str, profile: str | Profile | None = None) -> Llava:
    """A network with its checkpoint folder's tokenizer, processor and profile. Raises InputError when they cannot be read."""
    tokenizer, processor = pretrained.tokenizer(where), pretrained.image_processor(where)
    rows = int(net.config.text_config.vocab_size)
    check_tokens(where, tokenizer, rows)
    fill = check_pictures(where, processor, int(net.config.vision_config.image_size))
    encoder = LlavaEncoder(
        config=net.config,
        tokenizer=tokenizer,
        image_processor=processor,
        profile=checkpoint_profile(where, profile),
        image_token_id=int(net.config.image_token_id),
        image_tokens=image_tokens_of(net.config),
        fill=fill,
        context=int(net.config.get_text_config().max_position_embeddings),
    )
    return Llava(net, encoder, name, hub.fingerprint(where), unused_rows(tokenizer, encoder.image_token_id, rows))


def encoder(folder: str, profile: Profile | None = None, *, pictures: bool = False) -> LlavaEncoder:
    """The encoder of a checkpoint's folder, which may be without weights, for dialogues of any length.

    It has an image processor with `pictures` only. Raises MissingError without transformers, InputError for what is no LLaVA.
    """
    check(folder, weights=False)
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingError(f"reading a tokenizer needs the extra 'model': {install('model')} ({error})") from None
    quiet_libraries()
    config, tokenizer = pretrained.configuration(folder), pretrained.tokenizer(folder)
    check_tokens(folder, tokenizer, int(config.text_config.vocab_size))
    processor = pretrained.image_processor(folder) if pictures else None
    fill = check_pictures(folder, processor, int(config.vision_config.image_size)) if pictures else (0, 0, 0)
    return LlavaEncoder(
        config=config,
        tokenizer=tokenizer,
        image_processor=processor,
        profile=checkpoint_profile(folder, profile),
        image_token_id=int(config.image_token_id),
        image_tokens=image_tokens_of(config),
        fill=fill,
    )


def image_tokens_of(config: Any) -> int:
    """How many positions one picture takes under a LLaVA configuration: 576 for LLaVA-1.5."""
    vision = config.vision_config
    patches = (int(vision.image_size) // int(vision.patch_size)) ** 2
    return patches if config.vision_feature_select_strategy == "default" else patches + 1
