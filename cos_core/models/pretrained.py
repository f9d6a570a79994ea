"""The calls by which `transformers` reads a checkpoint's folder, in one place.

A folder is checked first (layout/check.py). What a library still raises for it, whatever its class, is a fault of the files and
becomes one sentence. Nothing else is wrapped: an error anywhere else is a defect of `cos` and keeps its traceback. No code of a
checkpoint is run, and nothing is fetched: everything is in the folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cos_core.errors import CosError, InputError
from cos_core.files.text import one_line
from cos_core.models.layout.check import check
from cos_core.system.memory import is_out_of_memory

_HERE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_OWN_WORDS = 300


@contextmanager
def reading(where: Any, *, memory: bool = False, passed: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Inside the block, what a library raises over the files in `where` becomes an InputError that quotes it in one line.

    `memory`: out-of-memory errors pass unchanged, for callers that can react (memory.py); so do the classes in `passed`.
    """
    try:
        yield
    except BaseException as error:
        if (
            isinstance(error, (CosError, *passed))
            or not (isinstance(error, Exception) or is_panic(error))
            or (memory and is_out_of_memory(error))
        ):
            raise
        raise InputError(f"cannot load the checkpoint {where}: {quoted(error)}") from error


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust gave up; its exception derives from none of Python's ordinary ones."""
    return type(error).__name__ == "PanicException"


def quoted(error: BaseException) -> str:
    """An exception of someone else's library as part of one sentence, with its kind where its words alone say little."""
    words = one_line(" ".join(str(error).split()), _OWN_WORDS).rstrip(". ")
    if isinstance(error, OSError | ValueError | RuntimeError) and words:
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def configuration(where: str) -> Any:
    """The LlavaConfig of a checked folder, which may be without weights. Raises InputError."""
    import transformers

    check(where, weights=False)
    with reading(where):
        return transformers.LlavaConfig.from_pretrained(where, **_HERE)


def any_configuration(where: str | Path) -> Any:
    """The configuration in a folder of any family, which may be without weights. Raises InputError."""
    import transformers

    with reading(where):
        return transformers.AutoConfig.from_pretrained(str(where), **_HERE)


def network(where: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The network of a checked LLaVA-1.5 folder, in eval mode, and what was read and what was missing. Raises InputError.

    What says that memory ran out is let through.
    """
    import transformers

    check(where)
    return _network(where, transformers.LlavaForConditionalGeneration, **options)


def any_network(where: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """As `network`, for a checked folder of any family; its generation settings are replaced by greedy ones."""
    import transformers

    net, info = _network(where, transformers.AutoModelForImageTextToText, **options)
    ends = net.generation_config.eos_token_id
    # Unset fields of a GenerationConfig are filled from the model's own: only another one in its place keeps, say, a repetition
    # penalty out of a greedy answer.
    net.generation_config = transformers.GenerationConfig(eos_token_id=ends, do_sample=False)
    return net, info


def _network(where: str, cls: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    with reading(where, memory=True):
        net, info = cls.from_pretrained(where, use_safetensors=True, output_loading_info=True, **_HERE, **options)
        # Settings of a file that would have the forward pass answer in another form.
        parts = [net.config, *(getattr(net.config, name, None) for name in ("text_config", "vision_config"))]
        for part in filter(None, parts):
            part.return_dict, part.use_cache, part.output_attentions, part.output_hidden_states = True, True, False, False
        return net.eval(), info


def check_complete(where: str, info: Mapping[str, Any]) -> None:
    """Raises InputError when `from_pretrained` left weights random; `info`: its loading info."""
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(f"the checkpoint {where} lacks {len(missing)} weights, first {missing[0]}")


def tokenizer(where: str) -> Any:
    """A folder's tokenizer. Raises InputError where it cannot be read or has no fast version."""
    import transformers

    with reading(where):
        result = transformers.AutoTokenizer.from_pretrained(where, **_HERE)
    if not result.is_fast:
        raise InputError(
            f"cannot load the checkpoint {where}: its tokenizer has no fast version; save it with a current transformers"
        )
    return result


def image_processor(where: str) -> Any:
    """A folder's image processor. Raises InputError."""
    import transformers

    with reading(where):
        return transformers.AutoImageProcessor.from_pretrained(where, backend="pil", **_HERE)
