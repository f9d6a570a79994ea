"""The size of a model from its configuration: weights are counted and FLOPs measured on a model without memory.

The model is built on torch's device "meta", where tensors have shapes and no values. `FlopCounterMode` counts what the
library's own forward pass multiplies: windows, tiles, mergers and experts are then whatever the model does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from cos_core.models import families, parts, pretrained
from cos_core.models.encoder import Encoder
from cos_core.models.flops import ModelSize, PictureFlops

Pictures = Callable[[tuple[int, int]], Mapping[str, torch.Tensor]]
"""What the model takes for a picture of a size (width, height in pixels): names and tensors of `get_image_features`."""

_SHORT, _LONG = 64, 128
"""Lengths at which the language model is measured: its FLOPs are a multiple of the length and of its square."""
_SIZES = ((672, 336), (672, 672))
"""Pictures (width, height) at which the tower is measured: whole windows, and tiles without padding, of the usual families."""
_USUAL_TOKENS = 576
"""Image tokens of a picture of a model that cannot be measured."""


def built(config: Any) -> Any:
    """The model of a configuration of any family, without memory."""
    import transformers

    own = copy.deepcopy(config)
    options: dict[str, Any] = {"attn_implementation": "eager"}
    cls = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(own)]
    if cls._can_set_experts_implementation():
        # Of the ways to run experts, the one whose shapes do not depend on where each token is sent.
        options["experts_implementation"] = "batched_mm"
    with torch.device("meta"):
        return cls._from_config(own, **options).eval()


def size_of(config: Any, pictures: Pictures | None = None) -> ModelSize:
    """The size of a model; `pictures` None: one that takes pictures of one size, the tower's."""
    model = built(config)
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    language = _count(parts.language(model))
    # Of a family that does not say what its projector is, it counts as the tower's.
    projector = _count(parts.weights(model, parts.projector_names(model, families.of_config(config.to_dict()))))
    linear = [module for module in decoder.modules() if isinstance(module, torch.nn.Linear)]
    hidden = int(model.get_input_embeddings().embedding_dim)
    size = ModelSize(
        language=language,
        vision=_count(model.parameters()) - language - projector,
        projector=projector,
        layers=int(config.get_text_config().num_hidden_layers),
        hidden=hidden,
        vocabulary=int(head.weight.shape[0]),
        linear=sum(module.weight.numel() for module in linear),
        features=sum(module.in_features + module.out_features for module in linear),
        position=2.0 * language,
        square=0.0,
        picture=PictureFlops(),
        picture_tokens=0,
    )
    try:
        position, square = _language_flops(decoder, head, hidden)
        small, large = (_tower_flops(model, (pictures or _of_one_size(config))(shape)) for shape in _SIZES)
    except Exception as error:  # models are a library's, and some do what a tensor without values cannot
        guessed = PictureFlops(token=2.0 * (size.vision + projector))
        return replace(size, picture=guessed, picture_tokens=_USUAL_TOKENS, not_measured=pretrained.quoted(error))
    found = _picture_flops(small, large)
    return replace(size, position=position, square=square, picture=found, picture_tokens=small[0])


def tensors_of(encoder: Encoder, pictures: int = 2) -> Pictures:
    """What a checkpoint's image processor makes of empty pictures in a dialogue of `pictures`."""
    from PIL import Image

    variant = encoder.variant(pictures)
    return lambda size: encoder.tensors([encoder.picture(Image.new("RGB", size, encoder.fill), variant)])


def _count(weights: Iterable[Any]) -> int:
    """How many numbers weights hold, each weight once."""
    return sum({id(weight): weight.numel() for weight in weights}.values())


def _of_one_size(config: Any) -> Pictures:
    side = int(config.vision_config.image_size)
    return lambda _: {"pixel_values": torch.zeros(1, 3, side, side)}


def _language_flops(decoder: Any, head: Any, hidden: int) -> tuple[float, float]:
    """FLOPs a position and a squared length."""

    def flops(length: int) -> int:
        embedded = torch.empty(1, length, hidden, device="meta")
        # A mask of four axes is believed as it is; the library would look into another one's values.
        mask = torch.zeros(1, 1, length, length, device="meta")
        # On the CPU: some ways to stretch positions look at the largest one.
        places = torch.arange(length)[None]
        with _counted(decoder) as count:
            states = decoder(inputs_embeds=embedded, attention_mask=mask, position_ids=places, use_cache=False)
            head(states.last_hidden_state)
        return count()

    return _fitted((_SHORT, flops(_SHORT)), (_LONG, flops(_LONG)))


def _picture_flops(small: tuple[int, int], large: tuple[int, int]) -> PictureFlops:
    """From (image tokens, FLOPs) of two pictures."""
    if small == large:
        return PictureFlops(each=float(small[1]))
    linear, square = _fitted(small, large) if small[0] != large[0] else (-1.0, 0.0)
    if min(linear, square) < 0:
        # Tokens and patches do not grow alike: a picture's padding is left out, or its features are shrunk.
        linear, square = (small[1] + large[1]) / (small[0] + large[0]), 0.0
    return PictureFlops(token=linear, square=square)


def _tower_flops(model: Any, inputs: Mapping[str, torch.Tensor]) -> tuple[int, int]:
    """(image tokens, FLOPs) of one picture."""
    encode = model.base_model.get_image_features
    with _counted(model.base_model) as count:
        features = encode(**inputs, return_dict=True).pooler_output
    return sum(part.shape[:-1].numel() for part in features), count()


def _fitted(first: tuple[int, int], second: tuple[int, int]) -> tuple[float, float]:
    """(a, b) of flops = a n + b n^2 through two points (n, flops)."""
    (n, low), (m, high) = first, second
    square = (high / m - low / n) / (m - n)
    return low / n - square * n, square


class _ShapesOnly(TorchDispatchMode):
    """Whole numbers and what depends on no weight are computed; whatever meets a tensor without values becomes one.

    Towers read the places of windows and pictures from such numbers, which a tensor on "meta" cannot tell.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        empty = [leaf.is_meta for leaf in tree_flatten((args, options))[0] if isinstance(leaf, torch.Tensor)]
        if func is torch.ops.aten._to_copy.default and not empty[0] and not args[0].is_floating_point():
            options = {**options, "device": None}
        elif any(empty) and not all(empty):
            args, options = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, options))
        return func(*args, **options)


@contextmanager
def _counted(model: Any) -> Iterator[Callable[[], int]]:
    """Inside the block the FLOPs of what `model` computes are counted; the function gives their sum.

    Layers of equal shapes are run once: called again with equal shapes, a layer gives the tensors of its first call, which have
    no values, and its FLOPs are added. A model of 64 layers takes little longer than one of two.
    """
    counter = FlopCounterMode(display=False)
    known: dict[Any, tuple[Any, int]] = {}
    saved = 0

    def total() -> int:
        return int(counter.get_total_flops()) + saved

    def once(layer: Any) -> Callable[..., Any]:
        forward = layer.forward
        shapes = tuple(tuple(weight.shape) for weight in layer.parameters())

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal saved
            key = (type(layer), shapes, _signature((args, kwargs)))
            if key in known:
                output, flops = known[key]
                saved += flops
            else:
                before = total()
                output = forward(*args, **kwargs)
                known[key] = output, total() - before
            return output

        return call

    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    layers = [layer for each in lists if len(each) > 1 for layer in each]
    for layer in layers:
        layer.forward = once(layer)
    try:
        with torch.no_grad(), counter, _ShapesOnly():
            yield total
    finally:
        for layer in layers:
            del layer.forward


def _signature(inputs: Any) -> tuple[Any, ...]:
    """What decides how much a layer multiplies: shapes, and the values of whole numbers."""
    leaves, structure = tree_flatten(inputs)
    return str(structure), *(_leaf(leaf) for leaf in leaves)


def _leaf(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf if isinstance(leaf, int | float | str | None) else id(leaf)
    values = None if leaf.is_meta or leaf.is_floating_point() else leaf.numpy().tobytes()
    return tuple(leaf.shape), leaf.dtype, values
