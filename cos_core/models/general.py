"""Any vision-language model of `transformers` with a chat template and room for two pictures.

The checkpoint's chat template writes the dialogue, its processor says which tokens stand for a picture, its vision tower is run
once a picture (`get_image_features`), and the whole model is run on ids, explicit positions and these features
(`mm_encoder_outputs`): position ids of more axes, features that enter several layers, and masks that look both ways inside a
picture are the model's own. What differs from family to family stands in families/.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from cos_core.dialogue.prompts import Profile
from cos_core.errors import InputError
from cos_core.files import images
from cos_core.models import checkpoint_files as files
from cos_core.models import families, hub, pretrained
from cos_core.models import processor as processors
from cos_core.models.devices import fits, placed, placement
from cos_core.models.families import Family, PixelBudget
from cos_core.models.general_check import check
from cos_core.models.general_encoder import GeneralEncoder, PictureInputs
from cos_core.models.general_probe import check_dialogue
from cos_core.models.layout.families import is_other
from cos_core.models.llava import read_network
from cos_core.models.loaded import LoadedModel
from cos_core.models.pixels import padding_colour
from cos_core.models.vocabulary import unused_rows
from cos_core.models.wording import resolved_profile
from cos_core.system.memory import is_out_of_memory

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class GeneralModel(LoadedModel):
    """A loaded model of any family with its encoder."""

    model: Any
    encoder: GeneralEncoder
    name: str
    fingerprint: str
    unused_rows: tuple[int, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    axes: int | None = None
    _shown_marks: frozenset[int] = field(default_factory=frozenset)
    """Special tokens that are part of a box's text."""

    def __post_init__(self) -> None:
        self.axes = 3 if hasattr(self.model.base_model, "get_rope_index") else None
        configured = self.model.generation_config.eos_token_id
        ends = configured if isinstance(configured, list) else [configured]
        self.stop_ids = self.encoder.end_ids | {int(i) for i in ends if i is not None}
        tokenizer = self.tokenizer
        special = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        self._shown_marks = frozenset(number for token, number in special if token in self.profile.box_text)

    @property
    def family(self) -> Family:
        return self.encoder.family

    @property
    def processor(self) -> Any:
        return self.encoder.processor

    @property
    def rows(self) -> int:
        return int(self.model.get_input_embeddings().num_embeddings)

    @property
    def continues(self) -> bool:
        return not self.family.not_continuable

    @property
    def refuses_shapes(self) -> bool:
        return not self.family.pads_to_square

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

    def pooled(self, features: SimpleNamespace, pool: Callable[[torch.Tensor], torch.Tensor]) -> SimpleNamespace:
        """Features that enter several layers (deepstack) are pooled alike."""
        import torch

        def each(part: Any) -> Any:
            listed = isinstance(part, list | tuple)
            result = pool((torch.cat(list(part)) if listed else part).flatten(0, -2))
            return [result] if listed else result

        result = SimpleNamespace(pooler_output=each(features.pooler_output))
        if hasattr(features, "deepstack_features"):
            result.deepstack_features = [each(layer) for layer in features.deepstack_features]
        return result

    def joined(self, features: Sequence[SimpleNamespace]) -> SimpleNamespace:
        return _joined(features)

    def rendered(self, messages: list[dict[str, Any]]) -> str:
        return self.encoder.rendered(messages)

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

    def forward(self, ids: torch.Tensor, shown: Sequence[tuple[Any, int]], **inputs: Any) -> torch.Tensor:
        whole, replied = inputs.pop("whole", None), inputs.pop("replied", None)
        if shown:
            inputs["mm_encoder_outputs"] = {"image": _joined([features for features, _ in shown])}
        if self.family.needs_token_types and whole is not None:
            types = self.family.token_types((whole == self.image_token_id).long(), replied)
            inputs["token_type_ids"] = types.to(ids.device)
        logits: torch.Tensor = self.model(input_ids=ids, **inputs).logits
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
    check(where)
    encoder = encoder_of(where, profile=profile, budget=budget, name=str(model))
    target, kind = placement(device, dtype)
    with fits(where, target, kind):
        net = read_network(
            where, dtype=kind, device=None if target.type == "cpu" else target, attention=attention, read=pretrained.any_network
        )
    return equipped(net, where, encoder, budget)


def encoder_of(
    where: str, *, profile: str | Profile | None = None, budget: PixelBudget | None = None, name: str | None = None
) -> GeneralEncoder:
    """The encoder of a checkpoint's folder, which may be without weights. Raises InputError as `load` does for its files."""
    check_dialogue(where, weights=False)
    config = pretrained.any_configuration(where)
    family = families.of_config(config.to_dict())
    processor = processors.processor(where)
    family.set_budget(processor.image_processor, budget or PixelBudget())
    return GeneralEncoder(
        config=config,
        processor=processor,
        profile=resolved_profile(where, profile),
        family=family,
        image_token_id=int(getattr(config, "image_token_id", None) or processor.image_token_id),
        name=name or where,
        fill=padding_colour(processor.image_processor) if family.pads_to_square else images.FILL,
    )


def equipped(net: Any, where: str, encoder: GeneralEncoder, budget: PixelBudget | None = None) -> GeneralModel:
    """A network with its checkpoint folder's encoder."""
    if budget is not None and budget.words:
        encoder.family.agree(net.base_model.config, encoder.processor.image_processor)
    encoder.config = net.config
    return GeneralModel(
        model=net,
        encoder=encoder,
        name=encoder.name,
        fingerprint=hub.fingerprint(where),
        unused_rows=unused_rows(encoder.tokenizer, encoder.image_token_id, int(net.get_input_embeddings().num_embeddings)),
    )
