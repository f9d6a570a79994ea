"""What a checkpoint's files say, checked before anything is built from them.

A configuration decides how much memory a model takes. It is believed only where the weights agree: the table in front of each
weight file names every tensor with its shape (checkpoint_files.py), so that nothing is built that is larger than the files.
Needs neither torch nor transformers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cos_core.errors import InputError
from cos_core.files.text import one_line
from cos_core.models import checkpoint_files as files
from cos_core.models.checkpoint_files import Tensor
from cos_core.models.layout import families
from cos_core.models.layout.tokenizer_file import check_patterns
from cos_core.models.layout.weights import hub_name
from cos_core.models.plain_settings import check_ends, check_words

TEXT_MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""Language models with Llama's names of weights."""
_TEXT = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
_ALONE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}
_TOWER = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
"""What `transformers` takes for a size that is left out: of Llama, of a `vision_config`, and where there is none at all."""
_MOST = 2**31 - 1
_WRAPPERS = {
    "base_model.model.": "peft's wrapper (save it after merge_and_unload)",
    "module.": "torch's wrapper for several GPUs (save model.module)",
    "_orig_mod.": "torch.compile's wrapper (save the model that was compiled)",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """The sizes of a LLaVA-1.5 checkpoint, as its config.json gives them, defaults included; `weights` by the hub's names."""

    layers: int
    hidden: int
    vocabulary: int
    heads: int
    image_side: int
    patch: int
    image_token_id: int
    weights: Mapping[str, Tensor]

    @property
    def image_tokens(self) -> int:
        """Patches of one picture."""
        return (self.image_side // self.patch) ** 2


def check(folder: str | Path, *, weights: bool = True) -> Facts:
    """Looks at a checkpoint's files before a library does.

    Raises InputError, one sentence: for another model's folder; for a file that is no regular file of the folder or is larger
    than its kind; for settings that no model has; and for weights that are not the ones config.json describes.
    `weights`: False for whoever reads the tokenizer and the settings alone, whose folder may have no weights.
    """
    return _checked(Path(folder), weights, files.state(Path(folder)))


@lru_cache(maxsize=8)
def _checked(folder: Path, needs_weights: bool, _state: object) -> Facts:
    """As `check`, once for a folder that stays as it is: a run asks several times."""
    config = llava_config(folder)
    objects = look_over(folder)
    facts = sizes(folder, config, needs_weights)
    _plain_settings(folder, config)
    check_ends(folder / files.CONFIG, config.get("text_config") or {}, facts.vocabulary)
    check_ends(folder / "generation_config.json", objects.get("generation_config.json", {}), facts.vocabulary)
    _pictures(folder, objects, facts)
    if "tokenizer.json" in objects:
        check_patterns(folder / "tokenizer.json", objects["tokenizer.json"])
    return facts


def look_over(folder: Path) -> dict[str, Mapping[str, Any]]:
    """As files.look_over, for a folder that is no adapter's beside a model. Raises InputError."""
    objects = files.look_over(folder)
    if "adapter_config.json" in objects and files.has_weights(folder):
        raise InputError(f"{folder} holds an adapter beside a model; move adapter_config.json out, or merge the two first")
    return objects


def llava_config(folder: Path) -> dict[str, Any]:
    """config.json of a LLaVA-1.5 checkpoint. Raises InputError when there is none, or another model's."""
    config = files.settings(folder, files.CONFIG)
    if config is None:
        raise InputError(f"{folder} is not a checkpoint: it has no config.json")
    if not families.is_llava(config):
        raise InputError(families.refusal(folder, config))
    return config


def sizes(folder: Path, config: Mapping[str, Any], needs_weights: bool = True) -> Facts:
    """The sizes in config.json, each one a size, and the weights of exactly these sizes. Raises InputError otherwise."""
    where = folder / files.CONFIG
    text, vision = _section(where, config, "text_config"), _section(where, config, "vision_config")
    kind, tower = text.get("model_type", "llama"), vision.get("model_type", "clip_vision_model")
    if kind not in TEXT_MODELS:
        raise InputError(f"{where}: the language model {one_line(kind)!r} is none that cos runs: {', '.join(TEXT_MODELS)}")
    if tower != "clip_vision_model":
        raise InputError(f"{where}: the vision tower {one_line(tower)!r} is not CLIP's (clip_vision_model)")
    language = {name: _whole(where, text, name, usual) for name, usual in _TEXT.items()}
    usual = _ALONE if isinstance(config.get("vision_config"), Mapping) else _TOWER
    eye = {name: _whole(where, vision, name, default) for name, default in usual.items()}
    for sides, part in ((language, "text_config"), (eye, "vision_config")):
        if sides["hidden_size"] % sides["num_attention_heads"] and (sides is eye or text.get("head_dim") is None):
            raise InputError(f"{where}: {part}.hidden_size is not a multiple of its num_attention_heads")
    if eye["patch_size"] > eye["image_size"]:
        raise InputError(f"{where}: `patch_size` of the vision tower is larger than its `image_size`")
    layer_count = _feature_layers(where, config, eye["num_hidden_layers"])
    shapes = dict(_shapes(where, text, language, vision, eye, layer_count))
    named: dict[str, Tensor] = {}
    if needs_weights or files.has_weights(folder):
        named = {hub_name(name): tensor for name, tensor in files.tensors(folder).items()}
        _compare(folder, shapes, named, {"language_model.model.": language, "vision_tower.vision_model.": eye})
    return Facts(
        layers=language["num_hidden_layers"],
        hidden=language["hidden_size"],
        vocabulary=language["vocab_size"],
        heads=language["num_attention_heads"],
        image_side=eye["image_size"],
        patch=eye["patch_size"],
        image_token_id=_image_token(where, config, language["vocab_size"]),
        weights=named,
    )


def _section(where: Path, config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = config.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise InputError(f"{where}: `{name}` must be an object of settings; this is not in the transformers layout of LLaVA")
    return value or {}


def _whole(where: Path, section: Mapping[str, Any], name: str, usual: int) -> int:
    value = section.get(name, usual)
    if type(value) is not int or not 1 <= value <= _MOST:
        raise InputError(f"{where}: `{name}` must be a whole number from 1 on, got {one_line(repr(value), 60)}")
    return int(value)


def _feature_layers(where: Path, config: Mapping[str, Any], layers: int) -> int:
    """How many layers' features the projector reads side by side."""
    selected = config.get("vision_feature_layer", -2)
    numbers = selected if isinstance(selected, list) else [selected]
    if not numbers or not all(type(layer) is int and -layers - 1 <= layer <= layers for layer in numbers):
        raise InputError(
            f"{where}: `vision_feature_layer` must be one of the vision tower's {layers} layers, "
            f"got {one_line(repr(selected), 60)}"
        )
    return len(numbers)


def _image_token(where: Path, config: Mapping[str, Any], rows: int) -> int:
    value = config.get("image_token_id", config.get("image_token_index", 32000))
    if type(value) is not int or not 0 <= value < rows:
        raise InputError(
            f"{where}: `image_token_id` must be a row of the vocabulary, 0 to {rows - 1}, got {one_line(repr(value), 60)}"
        )
    return int(value)


def _shapes(
    where: Path,
    text: Mapping[str, Any],
    language: Mapping[str, int],
    vision: Mapping[str, Any],
    eye: Mapping[str, int],
    read: int,
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every large weight of the model that config.json describes, by the hub's names. What is small follows from these."""
    wide, inner, heads = language["hidden_size"], language["intermediate_size"], language["num_attention_heads"]
    keys = heads if text.get("num_key_value_heads") is None else _whole(where, text, "num_key_value_heads", heads)
    side = wide // heads if text.get("head_dim") is None else _whole(where, text, "head_dim", wide)
    if heads % keys:
        raise InputError(f"{where}: `num_attention_heads` is not a multiple of `num_key_value_heads`")
    model = "language_model.model."
    yield f"{model}embed_tokens.weight", (language["vocab_size"], wide)
    yield "language_model.lm_head.weight", (language["vocab_size"], wide)
    yield f"{model}norm.weight", (wide,)
    for layer in range(_layers(where, language, "text_config")):
        at = f"{model}layers.{layer}."
        yield f"{at}input_layernorm.weight", (wide,)
        yield f"{at}post_attention_layernorm.weight", (wide,)
        yield f"{at}self_attn.q_proj.weight", (heads * side, wide)
        yield f"{at}self_attn.k_proj.weight", (keys * side, wide)
        yield f"{at}self_attn.v_proj.weight", (keys * side, wide)
        yield f"{at}self_attn.o_proj.weight", (wide, heads * side)
        yield f"{at}mlp.gate_proj.weight", (inner, wide)
        yield f"{at}mlp.up_proj.weight", (inner, wide)
        yield f"{at}mlp.down_proj.weight", (wide, inner)
    yield from _tower_shapes(where, vision, eye)
    yield "multi_modal_projector.linear_1.weight", (wide, eye["hidden_size"] * read)
    yield "multi_modal_projector.linear_2.weight", (wide, wide)


def _tower_shapes(where: Path, vision: Mapping[str, Any], eye: Mapping[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    model, wide, inner, patch = "vision_tower.vision_model.", eye["hidden_size"], eye["intermediate_size"], eye["patch_size"]
    channels = _whole(where, vision, "num_channels", 3)
    if channels != 3:
        raise InputError(f"{where}: pictures have 3 channels, and `num_channels` of the vision tower is {channels}")
    yield f"{model}embeddings.class_embedding", (wide,)
    yield f"{model}embeddings.patch_embedding.weight", (wide, channels, patch, patch)
    yield f"{model}embeddings.position_embedding.weight", ((eye["image_size"] // patch) ** 2 + 1, wide)
    for layer in range(_layers(where, eye, "vision_config")):
        at = f"{model}encoder.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{at}self_attn.{name}.weight", (wide, wide)
        yield f"{at}mlp.fc1.weight", (inner, wide)
        yield f"{at}mlp.fc2.weight", (wide, inner)


def _layers(where: Path, sizes: Mapping[str, int], part: str) -> int:
    layers = sizes["num_hidden_layers"]
    if layers > 10_000:
        raise InputError(f"{where}: {part}.num_hidden_layers is {layers}, which no model has")
    return layers


def _compare(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], parts: Mapping[str, Mapping[str, int]]
) -> None:
    """Raises InputError where the files hold other weights than config.json describes."""
    for name, shape in shapes.items():
        if name in tensors and tensors[name].shape != shape:
            advice = (
                "; if its vocabulary was padded, set `vocab_size` to that number of rows"
                if "embed" in name or "head" in name
                else ""
            )
            raise InputError(
                f"cannot load the checkpoint {folder}: the weight {name} has shape {list(tensors[name].shape)}, "
                f"and config.json asks for {list(shape)}{advice if 'position' not in name else ''}"
            )
    # Without a head of its own the model's output is its embedding, if it says so; what loads it says if it does not.
    missing = [name for name in shapes if name not in tensors and name != "language_model.lm_head.weight"]
    if missing:
        raise InputError(f"the checkpoint {folder} lacks {len(missing)} weights, first {missing[0]}{_wrapped(tensors)}")
    for prefix, sides in parts.items():
        known = sides["num_hidden_layers"]
        for name in tensors:
            number = _layer_of(name, prefix)
            if number is not None and number >= known:
                raise InputError(
                    f"cannot load the checkpoint {folder}: it holds {one_line(name)}, and config.json speaks of {known} layers"
                )


def _wrapped(tensors: Mapping[str, Tensor]) -> str:
    first = next(iter(tensors), "")
    wrapper = next((words for prefix, words in _WRAPPERS.items() if first.startswith(prefix)), None)
    return f": its names, as {one_line(first)}, are those of {wrapper}" if wrapper else ""


def _layer_of(name: str, prefix: str) -> int | None:
    """The number of the layer that a weight belongs to."""
    if not name.startswith(prefix):
        return None
    _, dot, rest = name.removeprefix(prefix).partition("layers.")
    number = rest.partition(".")[0]
    return int(number) if dot and number.isascii() and number.isdigit() and len(number) < 10 else None


def _plain_settings(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises InputError for words in config.json that no library would take, or that would fetch or compute something else."""
    where = folder / files.CONFIG
    text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
    for section in (config, text, vision):
        check_words(where, section)
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise InputError(f"{where}: `vision_feature_select_strategy` is {one_line(repr(strategy), 60)}, not default or full")
    _whole(where, text, "max_position_embeddings", 2048)
    for section, name in ((text, "hidden_act"), (vision, "hidden_act"), (config, "projector_hidden_act")):
        if not isinstance(section.get(name, ""), str):
            raise InputError(f"{where}: `{name}` must name a function, got {one_line(repr(section[name]), 60)}")


def _pictures(folder: Path, objects: Mapping[str, Mapping[str, Any]], facts: Facts) -> None:
    """Raises InputError for a processor whose pictures are not the vision tower's, or would be of any size."""
    nested = objects.get("processor_config.json", {}).get("image_processor")
    settings, name = (
        (nested, "processor_config.json") if isinstance(nested, Mapping) else (objects.get("preprocessor_config.json"), "")
    )
    if settings is None:
        return  # a run's checkpoints have none; pixels.check_pictures names what is missing
    where = folder / (name or "preprocessor_config.json")
    cuts = settings.get("do_center_crop", True) and settings.get("crop_size") is not None
    for key in ("size", "crop_size"):
        value = settings.get(key)
        for side in value.values() if isinstance(value, Mapping) else [value]:
            last = key == "crop_size" or not cuts
            if side is None or (key == "crop_size" and not cuts):
                continue
            if type(side) is not int or side < 1 or (side > 4 * facts.image_side or (last and side != facts.image_side)):
                raise InputError(
                    f"{where}: pictures of `{key}` {one_line(repr(side), 60)} are not the {facts.image_side} pixels "
                    "of the vision tower"
                )
    for key in ("image_mean", "image_std"):
        value = settings.get(key)
        if value is not None and not (isinstance(value, list) and len(value) == 3 and all(map(is_share, value))):
            raise InputError(f"{where}: `{key}` must be three numbers from 0 to 1, got {one_line(repr(value), 60)}")
    if 0 in (settings.get("image_std") or ()):
        raise InputError(f"{where}: `image_std` must not be 0")
    factor = settings.get("rescale_factor", 1.0)
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not math.isfinite(factor):
        raise InputError(f"{where}: `rescale_factor` must be a number, got {one_line(repr(factor), 60)}")


def is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
