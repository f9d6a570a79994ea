"""What of a vision-language model of any family is trained: whether its parts are known, and where they stand."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from cos_core.errors import InputError
from cos_core.models import parts
from cos_core.models.families import Family


def check(model: Any, family: Family) -> None:
    """Raises InputError for a model whose vision tower and language model cannot be told apart."""
    base = model.base_model
    name = family.name or "this family"
    if all(each.kind is not each.VAR_KEYWORD for each in inspect.signature(model.forward).parameters.values()):
        raise InputError(
            f"the forward pass of {name} is not told how many tokens a step learns, so that the loss of a step cannot be their "
            "mean; take a model of another family"
        )
    known = getattr(base, "get_image_features", None) is not None and base.get_encoder(modality="image") is not base
    if not known or model.get_output_embeddings() is None or decoder_name(model) == "":
        raise InputError(
            f"cos does not find the vision tower and the language model of {name}, and trains only the latter; take a model of "
            "another family"
        )


def decoder_name(model: Any) -> str:
    """Where the decoder stands in the model: "model.language_model"."""
    decoder = model.get_decoder()
    return next(name for name, module in model.named_modules() if module is decoder)


def linear_layers(model: Any) -> list[str]:
    """How the decoder's linear layers are called, each name once, in the order of a block: "q_proj", "k_proj", ..."""
    import torch

    layers = (name for name, module in model.get_decoder().named_modules() if isinstance(module, torch.nn.Linear))
    return list(dict.fromkeys(name.rpartition(".")[2] for name in layers))


def projector_names(model: Any, family: Family) -> list[str]:
    """As models.parts.projector_names. Raises InputError where that is not known."""
    found = parts.projector_names(model, family)
    if not found:
        raise InputError(
            f"cos does not know what of {family.name or 'this family'} is its projector, so that it cannot be trained; leave "
            "--train-projector out"
        )
    return found


def beside_the_decoder(model: Any) -> list[str]:
    """Where everything stands that is not in the decoder, as few names as possible: "model.vision_tower", "lm_head", ..."""
    return list(_beside(model, "", decoder_name(model)))


def _beside(module: Any, name: str, decoder: str) -> Iterator[str]:
    for own, child in module.named_children():
        path = f"{name}.{own}" if name else own
        if path == decoder:
            continue
        if decoder.startswith(path + "."):
            yield from _beside(child, path, decoder)
        else:
            yield path
