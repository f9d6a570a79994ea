"""Models of one picture and no dialogue: BLIP-2, InstructBLIP, IDEFICS, peers in the paper's Tables 1 and 2.

They have no chat template, and two pictures are beyond them or beyond what they were asked with, so that they answer in one
pass. A text profile writes what stands around the picture. Their own processor makes tensors of it, one dialogue at a time, and
these are padded here: InstructBLIP's processor pads the question for its query transformer on the side of the language model's
tokenizer, and an answer would depend on the other rows of its batch (BERT counts positions from the first column).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cos_core.dialogue.messages import IMAGE_MARK
from cos_core.dialogue.prompts import Profile
from cos_core.errors import InputError
from cos_core.models import families, hub, pretrained
from cos_core.models import processor as processors
from cos_core.models.devices import fits, placement
from cos_core.models.families import Family, PixelBudget
from cos_core.models.general_check import check
from cos_core.models.llava import read_network
from cos_core.models.vocabulary import unused_rows
from cos_core.models.wording import resolved_profile
from cos_core.types import ImageSlot, Slot, Turn

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

NO_LIMIT = 2**31
"""Positions of a model that counts none (T5's are relative)."""


@dataclass(slots=True)
class TextualModel:
    """A loaded model that is asked in plain text about one picture; fields as in LoadedModel.

    `image_marks`: ids that stand for a picture, which no text may hold and no answer does.
    """

    model: Any
    processor: Any
    profile: Profile
    family: Family
    image_marks: frozenset[int]
    name: str
    fingerprint: str
    unused_rows: tuple[int, ...]
    stop_ids: frozenset[int]

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def context(self) -> int:
        """Positions of a sequence that the language model was made for."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or NO_LIMIT)

    def text(self, ids: Sequence[int]) -> str:
        """The text of generated ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def check(self, turns: Sequence[Turn]) -> None:
        """Raises InputError for more than one question or picture, and for text that holds what stands for a picture."""
        check_pictures(self.family, sum(isinstance(part, ImageSlot) for turn in turns for part in turn.parts))
        if len(turns) != 1:
            raise InputError(f"{self.family.name} knows no dialogue: it takes one question; --roi none asks one")
        for text in self.prompt(turns)[::2]:
            if self.image_marks & set(self.tokenizer(text, add_special_tokens=False)["input_ids"]):
                raise InputError(IMAGE_MARK)
            if self.family.pictures_in_text and _is_address(text):
                raise InputError("the question is an address, which the processor of IDEFICS would fetch as a picture")

    def prompt(self, turns: Sequence[Turn]) -> tuple[str, Slot, str]:
        """What stands before the picture, its slot, and what stands behind it. `turns`: one, with one picture."""
        parts = turns[0].parts
        at = next(place for place, part in enumerate(parts) if isinstance(part, ImageSlot))
        slot = parts[at]
        assert isinstance(slot, ImageSlot)
        before, after = (["" if isinstance(part, ImageSlot) else part for part in run] for run in (parts[:at], parts[at + 1 :]))
        profile = self.profile
        return profile.system + profile.user + "".join(before), slot.slot, "".join(after) + profile.assistant

    def tensors(self, asked: Sequence[tuple[Sequence[Turn], Mapping[str, Image]]]) -> dict[str, torch.Tensor]:
        """What `generate` takes for dialogues and their pictures by slot: rows padded to one length, on the left.

        Raises InputError for a question that is too long for the query transformer.
        """
        rows = [self._row(self.prompt(turns), images) for turns, images in asked]
        return {name: _stacked(name, [row[name] for row in rows]) for name in rows[0]}

    def _row(self, prompt: tuple[str, Slot, str], images: Mapping[str, Image]) -> dict[str, torch.Tensor]:
        before, slot, after = prompt
        if self.family.pictures_in_text:
            row = dict(
                self.processor(text=[[text for text in (before, images[slot], after) if text != ""]], return_tensors="pt")
            )
        else:
            row = dict(self.processor(images=images[slot], text=before + after, return_tensors="pt"))
        if "qformer_input_ids" in row:
            length, most = row["qformer_input_ids"].shape[1], int(self.model.config.qformer_config.max_position_embeddings)
            if length > most:
                raise InputError(f"the question has {length} tokens, and the query transformer of {self.name} reads {most}")
        return row


def check_pictures(family: Family, pictures: int) -> None:
    """Raises InputError where a family without a dialogue is shown another number of pictures than one."""
    if family.text_profile and pictures != 1:
        raise InputError(f"{family.name} shows one picture a dialogue; Chain-of-Spot shows two; --roi none works")


def _stacked(name: str, rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors of one row each as one; positions (axis 1) that a row lacks are zeros, which its mask hides.

    They stand on the left, save those of the query transformer's text, whose positions count from the first column.
    """
    import torch

    if name == "pixel_values":
        return torch.cat(list(rows))
    longest = max(row.shape[1] for row in rows)
    right = name.startswith("qformer_")
    padded = []
    for row in rows:
        zeros = row.new_zeros(1, longest - row.shape[1], *row.shape[2:])
        padded.append(torch.cat([row, zeros] if right else [zeros, row], dim=1))
    return torch.cat(padded)


def _is_address(text: str) -> bool:
    from transformers.models.idefics.processing_idefics import is_url

    return bool(is_url(text.strip(" ")))


def load(
    model: str | Path,
    *,
    profile: str | Profile | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attention: str | None = None,
    budget: PixelBudget | None = None,
) -> TextualModel:
    """Loads a checkpoint of a family with a text profile; the options as for `general.load`, which says what it raises."""
    where = hub.resolve(model)
    family = families.of_config(check(where))
    chosen = resolved_profile(where, profile)
    if chosen.roles == "template":
        raise InputError(
            f"the profile {chosen.name!r} leaves the roles to a chat template, and {family.name} has none; "
            f"leave --profile out, or take {family.text_profile}"
        )
    target, kind = placement(device, dtype)
    processor = processors.processor(where)
    family.set_budget(processor.image_processor, budget or PixelBudget())
    marks = _image_marks(where, processor)
    with fits(where, target, kind):
        place = None if target.type == "cpu" else target
        net = read_network(where, dtype=kind, device=place, attention=attention, read=pretrained.any_network)
    rows = int(net.get_output_embeddings().out_features) + int(getattr(net.config, "additional_vocab_size", 0))
    return TextualModel(
        model=net,
        processor=processor,
        profile=chosen,
        family=family,
        image_marks=marks,
        name=str(model),
        fingerprint=hub.fingerprint(where),
        unused_rows=tuple(sorted({*unused_rows(processor.tokenizer, -1, rows), *marks})),
        stop_ids=_stop_ids(net, processor.tokenizer, chosen),
    )


def _image_marks(where: str, processor: Any) -> frozenset[int]:
    """The ids that stand for a picture. Raises InputError where the processor's files do not say how many a picture takes."""
    tokenizer = processor.tokenizer
    if hasattr(processor, "num_query_tokens"):
        if not processor.num_query_tokens:
            raise InputError(
                f"cannot use the checkpoint {where}: its processor does not say how many tokens a picture takes "
                f"(num_query_tokens); take the files that are published now"
            )
        words = [str(processor.image_token)]
    else:
        words = ["<image>", "<fake_token_around_image>"]
    vocabulary = tokenizer.get_vocab()
    return frozenset(vocabulary[word] for word in words if word in vocabulary)


def _stop_ids(net: Any, tokenizer: Any, profile: Profile) -> frozenset[int]:
    """The ids that end an answer: the end tokens of tokenizer and model, and the profile's end mark where it is one token."""
    configured = [net.generation_config.eos_token_id, net.config.get_text_config().eos_token_id, tokenizer.eos_token_id]
    ids = [i for each in configured for i in (each if isinstance(each, list) else [each])]
    if profile.turn_end:
        # Behind a letter: SentencePiece puts a space of its own in front of a text.
        last = tokenizer("a" + profile.turn_end, add_special_tokens=False)["input_ids"][-1]
        if tokenizer.decode([last]) == profile.turn_end:
            ids.append(last)
    return frozenset(int(i) for i in ids if i is not None)
