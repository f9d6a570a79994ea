"""Dialogues and pictures of any family, by the checkpoint's own processor: chat template, tokenizer and image processor.

The chat template writes the dialogue, the processor says which tokens stand for a picture. Labels come from the text: an answer
is what stands behind the text of the prompt that asks for it. (The masks that chat templates can give are all zero for
templates without generation marks, as nearly all published ones are.)
"""

from __future__ import annotations

import bisect
import inspect
import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cos_core.dialogue.encoding import IGNORE, Encoded, check_letters
from cos_core.dialogue.messages import IMAGE_MARK, chat_messages
from cos_core.dialogue.prompts import Profile
from cos_core.errors import InputError
from cos_core.files import images
from cos_core.models import grids as token_grids
from cos_core.models import pretrained
from cos_core.models.encoder import Encoder, PictureSpan, Prompt
from cos_core.models.families import Family
from cos_core.models.grids import Grid
from cos_core.models.template_answers import Answer, TemplateParts, label, placed, template_parts
from cos_core.system.memory import is_out_of_memory
from cos_core.types import Slot, Turn

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


_PLAIN = (64, 64)
"""Pixels of the picture whose text is looked at; every family takes it."""


@dataclass(frozen=True, slots=True)
class PictureInputs:
    """A picture as the processor prepares it.

    `tensors`: what `get_image_features` takes; `text`: what stands for the picture in a prompt; `tokens`: how many of its
    tokens are features; `grid`: its `image_grid_thw` (1, 3), for families whose positions depend on it.
    """

    tensors: dict[str, torch.Tensor]
    text: str
    tokens: int
    grid: torch.Tensor | None = None


@dataclass(slots=True)
class GeneralEncoder(Encoder):
    """A checkpoint's processor with its prompt profile. `config`: the model's configuration; `name`: for messages."""

    config: Any
    processor: Any
    profile: Profile
    family: Family
    image_token_id: int
    name: str
    fill: tuple[int, int, int] = images.FILL
    tokenizer: Any = None
    parts: TemplateParts = field(default_factory=TemplateParts)
    _around: tuple[str, str] | None = None
    """What stands before and behind a picture's image tokens; see `crops`."""
    end_ids: frozenset[int] = frozenset()
    """The ids that end an answer: the tokenizer's, and what the template writes behind one where that is a special token."""
    end_written: bool = True
    """Whether the template writes an id that ends an answer behind each."""
    _end_learnt: int | None = None
    """What is learnt behind an answer where the template writes no such id."""
    _picture_inputs: frozenset[str] = frozenset()
    _by_kind: bool = False
    """Whether the model is told which tokens are a picture's, to place them (M-RoPE)."""
    _sizes: dict[tuple[tuple[int, int], int], tuple[int, int]] = field(default_factory=dict)
    _others: dict[tuple[Hashable, int], int] = field(default_factory=dict)
    """How many tokens beside image tokens a picture has, by its layout and variant."""

    def __post_init__(self) -> None:
        tokenizer = self.tokenizer = self.processor.tokenizer
        self.parts = template_parts(self.processor)
        behind = tokenizer(self.parts.behind, add_special_tokens=False)["input_ids"] if self.parts.behind else []
        # What the template writes behind an answer ends one, where it is a token made for that.
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        ends = {tokenizer.eos_token_id} | (set(behind[:1]) & (special | set(tokenizer.all_special_ids)))
        self.end_ids = frozenset(int(i) for i in ends if i is not None)
        self.end_written = not self.end_ids.isdisjoint(behind)
        self._end_learnt = None if self.end_written else tokenizer.eos_token_id
        self._picture_inputs, self._by_kind = picture_inputs(self.config), "mm_token_type_ids" in forward_inputs(self.config)

    @property
    def role(self) -> str:
        """The end of a prompt's text: what stands between question and answer."""
        return self.parts.role

    @property
    def gap(self) -> str:
        """What an answer begins with before its first word."""
        return self.parts.gap

    @property
    def has_image_tokens(self) -> bool:
        """Whether features stand in the place of a picture's tokens (`get_image_features`)."""
        return bool(self._picture_inputs)

    @property
    def remarks(self) -> list[str]:
        said = []
        if self.parts.white_space:
            said.append(
                "its chat template writes other white space in front of a finished answer than at the end of a prompt; answers "
                "are learnt behind the prompt's"
            )
        if not self.end_written:
            end = self.tokenizer.eos_token
            said.append(f"its chat template writes no end mark behind an answer; {end} is learnt there, so that answers end")
        return said

    def variant(self, pictures: int) -> int:
        return self.family.variant(pictures)

    def seen(self, size: tuple[int, int]) -> tuple[int, int]:
        """By the image processor's own rule. Raises ValueError, the library's own, for a picture that it refuses."""
        return self.family.resized(self.processor.image_processor, *size)

    def grids(self, size: tuple[int, int], pictures: int = 1) -> tuple[Grid, ...]:
        """Raises InputError for a picture that the processor does not take, too, and for settings that give no grids."""
        try:
            if not getattr(self.processor.image_processor, "do_resize", True):
                raise InputError("grids are known of resized pictures; set do_resize to true in its preprocessor_config.json")
            return self.family.grids(self.config, self.processor, size, pictures)
        except InputError:
            raise
        except Exception as error:  # functions of an image processor declare no errors, and another one may lack them
            raise InputError(
                f"the grids of image tokens of a picture of {size[0]} x {size[1]} pixels cannot be told for {self.name}: "
                f"{pretrained.quoted(error)}"
            ) from error

    def picture_tokens(self, size: tuple[int, int], pictures: int = 1) -> int:
        """By grids, where the family has them: one picture is prepared for each layout of other tokens around them.

        Else a picture is prepared for each size. Raises InputError as `picture` does.
        """
        variant = self.variant(pictures)
        try:
            grids = self.grids(size, pictures)
        except InputError:
            # Where it is the picture that is refused, preparing it says so.
            return self._prepared(size, variant)[1]
        layout = (self.family.text_layout(grids), variant)
        if layout not in self._others:
            tokens, positions = self._prepared(size, variant)
            if tokens != token_grids.tokens(grids):
                return positions  # the grids are wrong, of other sizes as well: each is prepared
            self._others[layout] = positions - tokens
        return token_grids.tokens(grids) + self._others[layout]

    def _prepared(self, size: tuple[int, int], variant: int) -> tuple[int, int]:
        """(image tokens, positions) of a picture of a size, by preparing one."""
        if (size, variant) not in self._sizes:
            from PIL import Image

            shown = self.picture(Image.new("RGB", size), variant)
            self._sizes[size, variant] = shown.tokens, len(self._ids(shown.text)) - len(self._ids(""))
        return self._sizes[size, variant]

    def picture(self, image: Image, variant: int = 0) -> PictureInputs:
        """Raises InputError for a picture that the processor does not take: families refuse shapes like 1 x 5,000 pixels."""
        if self.family.pads_to_square:
            image = images.square_pad(image, self.fill)
        times = self.family.copies(variant)
        mark = self.processor.image_token
        try:
            batch = self.processor(
                text=[mark * times], images=[[image] * times], return_text_replacement_offsets=True, return_tensors="pt"
            )
        except Exception as error:  # processors declare no errors: any can come of a picture
            if is_out_of_memory(error):
                raise
            raise InputError(
                f"the image processor of {self.name} does not take a picture of {image.width} x {image.height} pixels: "
                f"{pretrained.quoted(error)}"
            ) from error
        text = str(batch["text_replacement_offsets"][0][0]["replacement"])
        tensors = {name: value for name, value in batch.items() if name in self._picture_inputs}
        if times > 1:
            # Of the copies of a picture that is prepared as one of several, only the first goes through the tower.
            tensors = {name: value[:1] if len(value) == times else value for name, value in tensors.items()}
        tokens = int((batch["input_ids"] == self.image_token_id).sum()) // times
        grid = tensors["image_grid_thw"][:1] if "image_grid_thw" in tensors else None
        return PictureInputs(tensors, text, tokens, grid)

    def crops(self, tokens: int) -> PictureInputs:
        """The family's own text around a picture, and the positions of a picture that is one row of tokens."""
        import torch

        word = str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))
        if self._around is None:
            from PIL import Image

            self._around = self.family.around(self.picture(Image.new("RGB", _PLAIN)).text, word)
        before, behind = self._around
        grid = None
        if "image_grid_thw" in self._picture_inputs:
            merge = int(self.processor.image_processor.merge_size)
            grid = torch.tensor([[1, merge, merge * tokens]])
        return PictureInputs({}, before + word * tokens + behind, tokens, grid)

    def prompt(self, turns: Sequence[Turn], picture: Callable[[Slot], PictureInputs]) -> Prompt:
        encoded, spans = self._encoded(turns, picture, labelled=False)
        return Prompt(encoded.ids, spans)

    def encode(self, turns: Sequence[Turn], picture: Callable[[Slot], PictureInputs]) -> Encoded:
        return self._encoded(turns, picture)[0]

    def end_length(self, answer: Sequence[int]) -> int:
        return int(bool(answer) and answer[-1] in self.end_ids)

    def _encoded(
        self, turns: Sequence[Turn], picture: Callable[[Slot], PictureInputs], labelled: bool = True
    ) -> tuple[Encoded, tuple[PictureSpan, ...]]:
        slots: list[Slot] = []

        def part(slot: Slot) -> dict[str, Any]:
            slots.append(slot)
            return {"type": "image"}

        check_letters([piece for turn in turns for piece in turn.parts if isinstance(piece, str)])
        text, answers = self._text(chat_messages(self.profile, turns, part), turns, labelled)
        mark = self.processor.image_token
        stretches = text.split(mark)
        if len(stretches) != len(slots) + 1:
            raise InputError(IMAGE_MARK)
        pictures = [picture(slot) for slot in slots]
        whole, marks, gained = stretches[0], [], [0]
        for each, rest in zip(pictures, stretches[1:], strict=True):
            marks.append(len(whole) - gained[-1])
            gained.append(gained[-1] + len(each.text) - len(mark))
            whole += each.text + rest
        ids, offsets = self._tokens(whole)
        places = [place for place, token in enumerate(ids) if token == self.image_token_id]
        if len(places) != sum(each.tokens for each in pictures):
            raise InputError(IMAGE_MARK)
        spans: list[PictureSpan] = []
        for slot, each in zip(slots, pictures, strict=True):
            shown, places = places[: each.tokens], places[each.tokens :]
            spans.append(PictureSpan(slot, shown[0], shown[-1] + 1, each.tokens))
        labels = [IGNORE] * len(ids)
        for answer in answers:
            start, end, stop = (at + gained[bisect.bisect_left(marks, at)] for at in (answer.start, answer.end, answer.stop))
            label(ids, labels, offsets, Answer(start, end, stop), self.end_ids, self._end_learnt)
        return Encoded(tuple(ids), tuple(labels), tuple(slots)), tuple(spans)

    def _text(self, messages: list[dict[str, Any]], turns: Sequence[Turn], labelled: bool) -> tuple[str, list[Answer]]:
        """The dialogue as its processor reads it, and where what is learnt stands in it."""
        if self.family.replies_behind and turns[-1].role == "assistant":
            text = self.family.layout(self.rendered(messages[:-1]), self.processor)
            words, end = "".join(str(part) for part in turns[-1].parts), str(self.tokenizer.eos_token)
            stop = len(text) + len(words)
            answers = [Answer(len(text), stop, stop + len(end))] if labelled and turns[-1].learn else []
            return text + words + end, answers
        text, answers = self._with_answers(messages, turns) if labelled else (self.rendered(messages), [])
        return self.family.layout(text, self.processor), answers

    def _with_answers(self, messages: list[dict[str, Any]], turns: Sequence[Turn]) -> tuple[str, list[Answer]]:
        found = placed(self.rendered, messages, turns, self.parts)
        if found is None:
            raise InputError(
                f"the chat template of {self.name} does not render an answer as a continuation of what stands before it; "
                "such a dialogue cannot be learnt or explained"
            )
        text, answers = found
        if answers and not self.end_written and self._end_learnt is None:
            raise InputError(
                f"neither the chat template nor the tokenizer of {self.name} names an end token, so that no answer would end"
            )
        if answers and not self.end_written and turns[-1].role == "assistant" and turns[-1].learn:
            text = text[: answers[-1].end]
        return text, answers

    def tensors(self, pictures: Sequence[PictureInputs]) -> dict[str, torch.Tensor]:
        """Pictures of unlike numbers of tiles or pixels are filled up with zeros, as the processors do."""
        names = dict.fromkeys(name for picture in pictures for name in picture.tensors)
        tensors = {name: _stacked([picture.tensors[name] for picture in pictures]) for name in names}
        if "batch_num_images" in tensors:
            tensors["batch_num_images"] = _together(tensors["batch_num_images"].tolist())
        return tensors

    def token_inputs(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        kinds = ids == self.image_token_id
        result = {}
        if self.family.needs_token_types:
            result["token_type_ids"] = self.family.token_types(kinds.long())
        if self._by_kind:
            result["mm_token_type_ids"] = kinds.int()
        return result

    def rendered(self, messages: list[dict[str, Any]]) -> str:
        """The chat template's text of messages; behind a user's, ready for the assistant's answer.

        Raises InputError where it refuses them.
        """
        asked = messages[-1]["role"] != "assistant"
        try:
            return str(self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=asked))
        except Exception as error:  # a template is a program of the checkpoint and can raise anything
            raise InputError(f"the chat template of {self.name} refuses the dialogue: {pretrained.quoted(error)}") from error

    def _ids(self, text: str) -> list[int]:
        return self._tokens(text)[0]

    def _tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and the characters [start, end) of each."""
        tokenizer = self.tokenizer
        begun = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        out = tokenizer(text, add_special_tokens=not begun, return_offsets_mapping=True)
        return [int(each) for each in out["input_ids"]], [(int(low), int(high)) for low, high in out["offset_mapping"]]


def forward_inputs(config: Any) -> frozenset[str]:
    """The names of what the model of a configuration takes; none where transformers has no such model."""
    import transformers

    model = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    return frozenset(inspect.signature(model.forward).parameters) if model else frozenset()


def picture_inputs(config: Any) -> frozenset[str]:
    """The names of what the model of a configuration takes for pictures (`get_image_features`); none where it has no such."""
    import transformers

    # The outer of the two hands on more than its signature says: Pixtral-12B's sizes of pictures.
    mappings = (transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, transformers.MODEL_MAPPING)
    models = [mapping.get(type(config), None) for mapping in mappings]
    # A model without it (cross-attention) is asked the plain way: engines/_probe.py.
    encoders = filter(None, (getattr(model, "get_image_features", None) for model in models))
    return frozenset(name for encode in encoders for name in inspect.signature(encode).parameters) - {"self"}


def _together(pictures: Sequence[int]) -> torch.Tensor:
    """LLaVA-OneVision's `batch_num_images`, from how many pictures each picture was prepared as one of.

    The model expands the numbers to one entry a picture: those that were prepared alone have a 1 each, and those of a dialogue
    of several are counted together.
    """
    import torch

    counts: list[int] = []
    for several, group in itertools.groupby(pictures, lambda number: number > 1):
        shown = list(group)
        counts += [max(len(shown), shown[0])] if several else shown
    return torch.tensor(counts)


def _stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors one behind the other along their first axis; along the others each is filled up with zeros behind its end."""
    import torch

    shape = [max(part.shape[axis] for part in parts) for axis in range(1, parts[0].dim())]
    if all(list(part.shape[1:]) == shape for part in parts):
        return torch.cat(list(parts))
    result = parts[0].new_zeros(sum(len(part) for part in parts), *shape)
    at = 0
    for part in parts:
        result[(slice(at, at + len(part)), *(slice(size) for size in part.shape[1:]))] = part
        at += len(part)
    return result
