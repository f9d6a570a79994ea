"""The weights of a vision-language model of any family by part: language model and projector; the rest is the tower's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cos_core.models.families import Family


def language(model: Any) -> Iterator[Any]:
    """The weights of the decoder with its embeddings, and of the output embeddings."""
    yield from model.get_decoder().parameters()
    yield from model.get_output_embeddings().parameters()


def projector_names(model: Any, family: Family) -> list[str]:
    """Where the modules stand that turn the tower's features into tokens, each a module of its own; none where that is not
    known of the family."""
    import torch

    base = next(name for name, module in model.named_modules() if module is model.base_model)
    found = []
    for part in family.projector:
        name = f"{base}.{part}"
        module = model.get_submodule(name)
        listed = isinstance(module, torch.nn.ModuleList)
        found += [f"{name}.{number}" for number in range(len(module))] if listed else [name]
    return found


def weights(model: Any, names: Sequence[str]) -> Iterator[Any]:
    """The weights of the modules at `names`."""
    for name in names:
        yield from model.get_submodule(name).parameters()
