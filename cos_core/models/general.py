"""Any vision-language model of `transformers` with a chat template and room for two pictures.

The checkpoint's chat template writes the dialogue, its processor says which tokens stand for a picture, its vision tower is run
once a picture (`get_image_features`), and the whole model is run on ids, explicit positions and these features
(`mm_encoder_outputs`): position ids of more axes, features that enter several layers, and masks that look both ways inside a
picture are the model's own. What differs from family to family stands in families/.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from cos_core.dialogue.messages import IMAGE_MARK, chat_messages
from cos_core.dialogue.prompts import Profile
from cos_core.errors import InputError
from cos_core.files import images
from cos_core.models import checkpoint_files as files
from cos_core.models import families, hub, pretrained
from cos_core.models import processor as processors
from cos_core.models.devices import fits, placed, placement
from cos_core.models.families import Family, PixelBudget
from cos_core.models.general_check import check
from cos_core.models.general_probe import check_dialogue
from cos_core.models.layout.families import is_other
from cos_core.models.llava import read_network
from cos_core.models.loaded import LoadedModel, PictureSpan, Prompt
from cos_core.models.pixels import padding_colour
from cos_core.models.vocabulary import unused_rows
from cos_core.models.wording import resolved_profile
from cos_core.system.memory import is_out_of_memory
from cos_core.types import Slot, Turn

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


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
class GeneralModel(LoadedModel):
    """A loaded model of any family with its processor and prompt profile."""

    model: Any
    tokenizer: Any
    processor: Any
    profile: Profile
    family: Family
    image_token_id: int
    name: str
    fingerprint: str
    unused_rows: tuple[int, ...] = ()
    fill: tuple[int, int, int] = images.FILL
    """The colour that pads pictures to squares, for families that do."""
    stop_ids: frozenset[int] = frozenset()
    role: str = ""
    gap: str = ""
    axes: int | None = None
    _feature_options: frozenset[str] = frozenset()
    _shown_marks: frozenset[int] = field(default_factory=frozenset)
    """Special tokens that are part of a box's text."""

    def __post_init__(self) -> None:
        base = self.model.base_model
        # A model without it (cross-attention) is asked the plain way: engines/_probe.py.
        encode = getattr(base, "get_image_features", None)
        self._feature_options = frozenset(inspect.signature(encode).parameters if encode else ())
        self.axes = 3 if hasattr(base, "get_rope_index") else None
        tokenizer = self.tokenizer
        self.role, self.gap, behind = template_parts(self.processor)
        configured = self.model.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
        first = tokenizer(behind, add_special_tokens=False)["input_ids"][:1] if behind else []
        # What the template writes behind an answer ends one, where it is a token made for that.
        ends |= set(first) & set(tokenizer.all_special_ids)
        self.stop_ids = frozenset(int(i) for i in ends if i is not None)
        special = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        self._shown_marks = frozenset(number for token, number in special if token in self.profile.box_text)

    @property
    def rows(self) -> int:
        return int(self.model.get_input_embeddings().num_embeddings)

    @property
    def continues(self) -> bool:
        return not self.family.not_continuable

    @property
    def refuses_shapes(self) -> bool:
        return not self.family.pads_to_square

    def variant(self, pictures: int) -> int:
        return self.family.variant(pictures)

    def seen(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) in pixels of a picture of `size` as the model sees it, by the image processor's own rule."""
        return self.family.resized(self.processor.image_processor, *size)

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
        tensors = {name: value for name, value in batch.items() if name in self._feature_options}
        if times > 1:
            # Of the copies of a picture that is prepared as one of several, only the first goes through the tower.
            tensors = {name: value[:1] if len(value) == times else value for name, value in tensors.items()}
        tokens = int((batch["input_ids"] == self.image_token_id).sum()) // times
        grid = tensors["image_grid_thw"][:1] if "image_grid_thw" in tensors else None
        return PictureInputs(tensors, text, tokens, grid)

    def without_pixels(self, picture: PictureInputs) -> PictureInputs:
        return replace(picture, tensors={})

    def features(self, pictures: Sequence[PictureInputs]) -> list[Any]:
        import torch

        with torch.no_grad():
            return [self._features(each) for each in pictures]

    def _features(self, picture: PictureInputs) -> SimpleNamespace:
        """What a tower makes of one picture: `pooler_output`, and `deepstack_features` where there are."""
        import torch

        tensors = {name: placed(self.model, value) for name, value in picture.tensors.items()}
        if picture.tokens == 1 and self.family.one_token_with_another:
            tensors = {name: torch.cat([value, value]) for name, value in tensors.items()}
        try:
            output = self.model.base_model.get_image_features(**tensors, return_dict=True)
        except (IndexError, RuntimeError, ValueError) as error:  # a tower is a library's: some shapes are beyond it
            if is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
                raise
            raise InputError(f"the vision tower of {self.name} does not take a picture: {pretrained.quoted(error)}") from error
        features = SimpleNamespace(pooler_output=output.pooler_output)
        if (deepstack := getattr(output, "deepstack_features", None)) is not None:
            features.deepstack_features = deepstack
        return _first(features, picture.tokens)

    def prompt(self, turns: Sequence[Turn], picture: Callable[[Slot], Any]) -> Prompt:
        slots: list[Slot] = []

        def part(slot: Slot) -> dict[str, Any]:
            slots.append(slot)
            return {"type": "image"}

        messages = chat_messages(self.profile, turns, part)
        text = self.family.layout(self.rendered(messages), self.processor)
        mark = self.processor.image_token
        stretches = text.split(mark)
        if len(stretches) != len(slots) + 1:
            raise InputError(IMAGE_MARK)
        pictures = [picture(slot) for slot in slots]
        whole = stretches[0] + "".join(each.text + rest for each, rest in zip(pictures, stretches[1:], strict=True))
        ids = self._ids(whole)
        places = [place for place, token in enumerate(ids) if token == self.image_token_id]
        if len(places) != sum(each.tokens for each in pictures):
            raise InputError(IMAGE_MARK)
        spans: list[PictureSpan] = []
        for slot, each in zip(slots, pictures, strict=True):
            shown, places = places[: each.tokens], places[each.tokens :]
            spans.append(PictureSpan(slot, shown[0], shown[-1] + 1, each.tokens))
        return Prompt(tuple(ids), tuple(spans))

    def rendered(self, messages: list[dict[str, Any]]) -> str:
        """The chat template's text of messages, ready for the assistant's answer. Raises InputError where it refuses them."""
        try:
            return str(self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template is a program of the checkpoint and can raise anything
            raise InputError(f"the chat template of {self.name} refuses the dialogue: {pretrained.quoted(error)}") from error

    def _ids(self, text: str) -> list[int]:
        tokenizer = self.tokenizer
        begun = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        return [int(each) for each in tokenizer(text, add_special_tokens=not begun)["input_ids"]]

    def positions(self, ids: Any, pictures: Callable[[], Sequence[Any]]) -> Any:
        import numpy as np
        import torch

        if self.axes is None:
            return np.arange(len(ids)) + self.family.first_position
        row = torch.from_numpy(ids)[None]
        grids = torch.cat([each.grid for each in shown]) if (shown := pictures()) else None
        kinds = (row == self.image_token_id).int()
        result, _ = self.model.base_model.get_rope_index(row, mm_token_type_ids=kinds, image_grid_thw=grids)
        return result[:, 0].numpy()

    def run(self, ids: torch.Tensor, shown: Sequence[tuple[Any, int]], **inputs: Any) -> torch.Tensor:
        whole = inputs.pop("whole", None)
        if shown:
            inputs["mm_encoder_outputs"] = {"image": _joined([features for features, _ in shown])}
        if self.family.needs_token_types and whole is not None:
            inputs["token_type_ids"] = self.family.token_types((whole == self.image_token_id).long()).to(ids.device)
        logits: torch.Tensor = self.model(input_ids=ids, **inputs, use_cache=True, logits_to_keep=1).logits[:, -1]
        return logits

    def text(self, ids: Sequence[int]) -> str:
        """Special tokens are left out, but for those that a box's text is made of."""
        hidden = set(self.tokenizer.all_special_ids) - self._shown_marks
        return str(self.tokenizer.decode([i for i in ids if i not in hidden], clean_up_tokenization_spaces=False))


def _first(features: SimpleNamespace, tokens: int) -> SimpleNamespace:
    """The features of the first picture of several copies: `tokens` of them. Raises InputError where there are fewer."""
    pooled = features.pooler_output
    if isinstance(pooled, list | tuple):
        features.pooler_output = pooled = [pooled[0]]
    count = sum(each.shape[:-1].numel() for each in pooled)
    if count != tokens:
        raise InputError(
            f"a picture has {tokens} tokens in the prompt and {count} features: the processor's settings do not fit config.json"
        )
    return features


def _joined(pictures: Sequence[SimpleNamespace]) -> SimpleNamespace:
    """The features of several pictures as the model takes them from one call of its tower."""
    import torch

    first = pictures[0]
    if len(pictures) == 1:
        return first
    if isinstance(first.pooler_output, torch.Tensor):
        joined = SimpleNamespace(pooler_output=torch.cat([each.pooler_output for each in pictures]))
    else:
        joined = SimpleNamespace(pooler_output=[part for each in pictures for part in each.pooler_output])
    if hasattr(first, "deepstack_features"):
        layers = zip(*(each.deepstack_features for each in pictures), strict=True)
        joined.deepstack_features = [
            torch.cat(list(layer)) if isinstance(layer[0], torch.Tensor) else [part for each in layer for part in each]
            for layer in layers
        ]
    return joined


_QUESTION, _ANSWER = "cos-question", "cos-answer"
"""Texts that no template writes by itself."""


def template_parts(processor: Any) -> tuple[str, str, str]:
    """What the chat template writes around an answer: (between question and answer, in front of the answer itself, behind it).

    The second is what a model must write that the prompt does not hold, a space in some templates.
    """
    turns = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("user", _QUESTION), ("assistant", _ANSWER))
    ]
    asked = str(processor.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True))
    answered = str(processor.apply_chat_template(turns, tokenize=False))
    before, _, behind = answered.rpartition(_ANSWER)
    gap = before.removeprefix(asked) if before.startswith(asked) else ""
    return asked.rpartition(_QUESTION)[2], gap, behind


def serves(folder: str) -> bool:
    """Whether the checkpoint is one for the general class: of a `model_type` that is not LLaVA-1.5's."""
    config = files.settings(Path(folder), files.CONFIG)
    return config is not None and is_other(config)


def load(
    model: str | Path,
    *,
    profile: str | Profile | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attention: str | None = None,
    budget: PixelBudget | None = None,
) -> GeneralModel:
    """Loads a checkpoint of any family for inference; the options as for `llava.load`.

    `budget`: how finely pictures are shown. Raises InputError for a checkpoint that cannot be asked through a chat template
    with two pictures, MissingError for a package, or for memory, that is not there.
    """
    where = hub.resolve(model)
    config = check(where)
    resolved = resolved_profile(where, profile)
    check_dialogue(where)
    target, kind = placement(device, dtype)
    family = families.of_config(config)
    processor = processors.processor(where)
    family.set_budget(processor.image_processor, budget or PixelBudget())
    with fits(where, target, kind):
        net = read_network(
            where, dtype=kind, device=None if target.type == "cpu" else target, attention=attention, read=pretrained.any_network
        )
    if budget is not None and budget.words:
        family.agree(net.base_model.config, processor.image_processor)
    image_token = int(getattr(net.config, "image_token_id", None) or processor.image_token_id)
    return GeneralModel(
        model=net,
        tokenizer=processor.tokenizer,
        processor=processor,
        profile=resolved,
        family=family,
        image_token_id=image_token,
        name=str(model),
        fingerprint=hub.fingerprint(where),
        unused_rows=unused_rows(processor.tokenizer, image_token, int(net.get_input_embeddings().num_embeddings)),
        fill=padding_colour(processor.image_processor) if family.pads_to_square else images.FILL,
    )
