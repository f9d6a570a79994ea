"""The model that a run without training is about: its size, and how samples become tokens, with or without its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cos_core.interfaces import Policy
from cos_core.models import checkpoint_files as files
from cos_core.models import shapes
from cos_core.models.flops import ModelSize
from cos_core.models.text_tokens import text_tokens
from cos_core.training import inputs
from cos_core.training.config import TrainConfig
from cos_core.training.dataset import Recipe
from cos_core.training.epoch_load import Counter


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """`metadata`: of a checkpoint that can be trained from here, None where only its settings are known; `remarks`: what is
    assumed of it, sentences without an end."""

    recipe: Recipe
    size: ModelSize
    counter: Counter
    metadata: inputs.CheckpointMetadata | None = None
    remarks: tuple[str, ...] = ()

    @property
    def texts(self) -> bool:
        """Whether it turns texts into tokens."""
        return self.counter.text is not None


def checkpoint(config: TrainConfig) -> inputs.StartCheckpoint:
    """As inputs.start_checkpoint, of what may be a config.json alone; nothing is downloaded for a hub id that ships with cos.

    Raises InputError and MissingError as it does.
    """
    folder, _ = shapes.settings_of(config.model)
    return inputs.checkpoint_in(config, str(folder), weights=False, texts=shapes.has_tokenizer(folder))


def planned(config: TrainConfig, policy: Policy, start: inputs.StartCheckpoint) -> PlannedModel:
    """The model in a checkpoint's folder, which may be without weights and without a tokenizer. Raises InputError where it
    cannot be read."""
    if not shapes.has_tokenizer(start.folder):
        return _from_settings(config, policy, start)
    metadata = inputs.checkpoint_metadata(config, policy, start)
    counter = Counter(metadata.recipe, text_tokens(metadata.recipe.encoder))
    whole = files.has_weights(Path(start.folder))
    return PlannedModel(metadata.recipe, metadata.size, counter, metadata if whole else None, _remarks(metadata.size))


def _from_settings(config: TrainConfig, policy: Policy, start: inputs.StartCheckpoint) -> PlannedModel:
    """The model of a folder that has a config.json and no tokenizer."""
    from cos_core.models.model_size import size_of, tensors_of

    encoder = shapes.encoder(Path(start.folder), start.profile, config.pixel_budget)
    size = size_of(encoder.config, tensors_of(encoder, 1 if config.rule == "none" else 2))
    encoder.usual = size.picture_tokens
    recipe = inputs.recipe(config, policy, encoder)
    known = Path(start.folder) == shapes.shipped(config.model)
    remarks = (f"{config.model} is not on this machine; its published settings ship with cos",) if known else ()
    return PlannedModel(recipe, size, Counter(recipe, None), remarks=(*remarks, *_remarks(size)))


def _remarks(size: ModelSize) -> tuple[str, ...]:
    if not size.not_measured:
        return ()
    return (f"the arithmetic of this model could not be measured and is guessed from its weights ({size.not_measured})",)
