"""What a folder of any family is looked at for before anything is built from it.

A configuration decides how much memory a model takes; it is believed only where the weights agree. The table in front of each
weight file names every tensor with its shape (checkpoint_files.py). The model is built without memory (torch's device "meta"),
as long as it is no larger than these, and the library's own loader then puts the tables' tensors into it, likewise without
memory: so its own renaming and joining of weights holds, and what is missing or of another shape is known before a file is
read.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cos_core.errors import InputError, MissingError
from cos_core.files.text import one_line
from cos_core.models import checkpoint_files as files
from cos_core.models import pretrained
from cos_core.models.checkpoint_files import Tensor
from cos_core.models.devices import quiet_libraries
from cos_core.models.layout.check import look_over
from cos_core.models.layout.families import name_of, not_vision_language
from cos_core.models.layout.tokenizer_file import check_patterns
from cos_core.models.picture_settings import check_picture_settings
from cos_core.models.plain_settings import check_ends, check_words
from cos_core.system.extras import install

_COUNTS = re.compile(r"layer|depth|block|expert|stage|num_heads|attention_heads")
"""Names of settings that say how many modules there are."""
_MOST = 10_000
_SIZES = 2**40
"""No whole number in a config.json is larger."""
_PLAIN = frozenset({"F64", "F32", "F16", "BF16", "I64", "I32", "BOOL"})
"""Types of weights that are read, and those of the few whole numbers beside them."""
_NESTED = 16
_OTHER_FOLDERS = ("additional_chat_templates", "qformer_tokenizer")
"""Folders of a checkpoint in which transformers looks for more files."""
_SERVED = "serve it and ask it with --engine openai"


@dataclass(frozen=True, slots=True)
class GeneralFacts:
    """A checkpoint of any family: config.json, the weights in its files, and sizes of its language model.

    `rows`: of the vocabulary; `context`: positions that it was made for, where it says so.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    layers: int
    hidden: int
    rows: int
    context: int | None


def check(where: str | Path) -> dict[str, Any]:
    """config.json of a folder that `AutoModelForImageTextToText` builds from it. Raises as `facts`."""
    return dict(facts(where).config)


def facts(where: str | Path, *, weights: bool = True) -> GeneralFacts:
    """Looks at a checkpoint's files before a library does. `weights`: False where the folder may be without them.

    Raises InputError, one sentence: for a folder of something else than an image-text-to-text model of this transformers; for a
    file that is no regular file of the folder or is larger than its kind; for settings that no model has; and for weights that
    are not the ones config.json describes. Raises MissingError without torch, transformers or a package that the model needs.
    """
    return _checked(Path(where), weights, files.state(Path(where)))


@lru_cache(maxsize=8)
def _checked(folder: Path, needs_weights: bool, _state: object) -> GeneralFacts:
    """As `facts`, once for a folder that stays as it is: a run asks several times."""
    config = files.settings(folder, files.CONFIG)
    if config is None:
        raise InputError(f"{folder} is not a checkpoint: it has no config.json")
    if (sentence := not_vision_language(folder, config)) is not None:
        raise InputError(sentence)
    objects = look_over(folder)
    _look_into_others(folder)
    for section in _sections(folder / files.CONFIG, config):
        check_words(folder / files.CONFIG, section)
        _check_counts(folder / files.CONFIG, section)
    check_picture_settings(folder, objects)
    weights = files.tensors(folder) if needs_weights or files.has_weights(folder) else {}
    odd = next((tensor.dtype for tensor in weights.values() if tensor.dtype not in _PLAIN), None)
    if odd is not None:
        raise InputError(
            f"{folder} holds weights of type {one_line(odd, 20)}; cos reads float32, float16 and bfloat16: take the checkpoint "
            f"that it was made from, or {_SERVED}"
        )
    cls = _model_class(folder, config)
    built = pretrained.any_configuration(folder)
    with pretrained.reading(folder):
        text = built.get_text_config()
    rows = _built(folder, cls, built, weights) if weights else int(text.vocab_size)
    check_ends(folder / files.CONFIG, config, rows)
    for name in ("image_token_id", "image_token_index"):
        token = config.get(name)
        if token is not None and (type(token) is not int or not 0 <= token < rows):
            raise InputError(
                f"{folder / files.CONFIG}: `{name}` must be a row of the vocabulary, 0 to {rows - 1}, got "
                f"{one_line(repr(token), 60)}"
            )
    check_ends(folder / "generation_config.json", objects.get("generation_config.json", {}), rows)
    if "tokenizer.json" in objects:
        check_patterns(folder / "tokenizer.json", objects["tokenizer.json"])
    return GeneralFacts(
        config=config,
        weights=weights,
        layers=int(getattr(text, "num_hidden_layers", 0)),
        hidden=int(getattr(text, "hidden_size", 0)),
        rows=rows,
        context=getattr(text, "max_position_embeddings", None),
    )


def _look_into_others(folder: Path) -> None:
    """Raises InputError for what a loader would find in the checkpoint's own folders and must not open."""
    for name in _OTHER_FOLDERS:
        if (folder / name).is_dir():
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise InputError(f"{folder / name} is a link out of the checkpoint's folder; put the folder itself there")
            objects = files.look_over(folder / name)
            for path in (folder / name).glob("*.jinja"):
                files.regular(folder / name, path.name, files.MIB)
            if "tokenizer.json" in objects:
                check_patterns(folder / name / "tokenizer.json", objects["tokenizer.json"])


def _sections(where: Path, value: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """A section of config.json and all that are nested in it. Raises InputError where they are nested too deeply."""
    if depth > _NESTED:
        raise InputError(f"{where} is nested too deeply for settings of a model")
    if isinstance(value, Mapping):
        yield value
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for part in parts:
        if isinstance(part, Mapping | list):
            yield from _sections(where, part, depth + 1)


def _check_counts(where: Path, section: Mapping[str, Any]) -> None:
    """Raises InputError for counts that no model has: libraries make lists of their length before a weight is asked for."""
    for name, value in section.items():
        for number in value if isinstance(value, list) else [value]:
            if type(number) is not int:
                continue
            if abs(number) > _SIZES or (_COUNTS.search(name) and number > _MOST):
                raise InputError(f"{where}: `{one_line(name, 60)}` is {one_line(number, 60)}, which no model has")


def _transformers() -> Any:
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise MissingError(f"running a model needs the extra 'model': {install('model')} ({error})") from None
    quiet_libraries()
    return transformers


def _model_class(folder: Path, config: Mapping[str, Any]) -> Any:
    """The class of `transformers` for a config.json's type. Raises InputError where there is none."""
    transformers = _transformers()
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    kind, version = str(config["model_type"]), transformers.__version__
    holds = f"{folder} holds {name_of(kind)}" + (f" ({one_line(kind, 60)})" if name_of(kind) != one_line(kind, 60) else "")
    if kind not in CONFIG_MAPPING_NAMES:
        if "auto_map" in config:
            raise InputError(
                f"{holds}, whose code lies in the checkpoint (`auto_map`), and transformers {version} has none of its own; cos "
                f"runs no code of a checkpoint: {_SERVED}"
            )
        raise InputError(f"{holds}, a type that transformers {version} does not know; a later one may, or {_SERVED}")
    name = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(kind)
    if name is None:
        raise InputError(
            f"{holds}, which is no image-text-to-text model of transformers {version}: cos needs a vision-language model "
            f"(docs/models.md); if it sees pictures, {_SERVED}"
        )
    return getattr(transformers, name)


class _TooLargeError(Exception):
    """A model that is being built is larger than its files."""


@contextmanager
def _at_most(numbers: int, parameters: int) -> Iterator[None]:
    """Inside the block this thread builds modules of at most `numbers` weights in `parameters` tensors; then _TooLargeError."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    thread, left = threading.get_ident(), [numbers, parameters]

    def count(_module: Any, _name: str, parameter: Any) -> None:
        if parameter is not None and threading.get_ident() == thread:
            left[0] -= parameter.numel()
            left[1] -= 1
            if min(left) < 0:
                raise _TooLargeError

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _built(folder: Path, cls: Any, config: Any, weights: Mapping[str, Tensor]) -> int:
    """Builds the model without memory, gives it the files' tensors likewise; returns the rows of its vocabulary.

    Raises InputError where they do not fit one another, MissingError where it needs a package that is not here.
    """
    import torch

    if find_spec("accelerate") is None:
        raise MissingError(f"checking a model before it is loaded needs the package 'accelerate': {install('model')}")
    held = sum(tensor.count for tensor in weights.values())
    empty = {name: torch.empty(tensor.shape, device="meta") for name, tensor in weights.items()}
    options = {"device_map": {"": "meta"}, "dtype": torch.float32, "ignore_mismatched_sizes": True, "output_loading_info": True}
    larger = InputError(
        f"cannot load the checkpoint {folder}: config.json describes a larger model than its files, which hold {held:,} "
        "numbers; are they those of its language model or of its tower alone, or of another model?"
    )
    try:
        # Built twice as large at most: tied weights are made apart, and each tensor is put in once more.
        with pretrained.reading(folder, passed=(_TooLargeError, ImportError)), _at_most(4 * held, 8 * len(weights) + _MOST):
            net, info = cls.from_pretrained(None, config=config, state_dict=empty, **options)
            buffers = sum(buffer.numel() for buffer in net.buffers())
            embedding = net.get_input_embeddings()
    except _TooLargeError:
        raise larger from None
    except ImportError as error:
        raise MissingError(f"the model in {folder} needs a package that is not here: {pretrained.quoted(error)}") from None
    if buffers > held + _SIZES // 2**14:
        raise larger
    for name, found, asked in sorted(info["mismatched_keys"], key=lambda entry: str(entry[0])):
        raise InputError(
            f"cannot load the checkpoint {folder}: the weight {one_line(name)} has shape {list(found)}, and config.json asks "
            f"for {list(asked)}"
        )
    pretrained.check_complete(str(folder), info)
    _no_further_layers(folder, set(net.state_dict()), info["unexpected_keys"])
    return int(embedding.num_embeddings)


def _no_further_layers(folder: Path, names: set[str], unexpected: Any) -> None:
    """Raises InputError where the files hold layers that config.json does not have: they would be left out in silence."""
    kinds = {_without_numbers(name) for name in names}
    for name in sorted(map(str, unexpected)):
        if re.search(r"\.\d+\.", name) and _without_numbers(name) in kinds:
            raise InputError(
                f"cannot load the checkpoint {folder}: it holds {one_line(name)}, and config.json has fewer layers; take the "
                "config.json that came with the weights"
            )


def _without_numbers(name: str) -> str:
    return re.sub(r"\.\d+\.", ".#.", name)
