"""Words and marks in settings files that would fetch, choose or compute something else than the checkpoint's plain weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cos_core.errors import InputError
from cos_core.files.text import one_line

_DTYPES = ("float32", "float16", "bfloat16", "float64")
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
_WORDS = {"dtype": _DTYPES, "torch_dtype": _DTYPES, "attn_implementation": _ATTENTION, "_attn_implementation": _ATTENTION}
_ELSEWHERE = ("transformers_weights", "fusion_config")
"""Settings by which `transformers` takes its weights from another file, or other layers than the type's."""


def check_words(where: Path, section: Mapping[str, Any]) -> None:
    """Raises InputError for words in a section of config.json that no library would take, or that would fetch or compute
    something else; `where`: the file."""
    how = section.get("quantization_config")
    if how is not None:
        kind = one_line(how.get("quant_method") if isinstance(how, Mapping) else how, 60)
        raise InputError(
            f"{where}: the weights are quantized ({kind}); cos reads float32, float16 and bfloat16: take the checkpoint that "
            "it was made from, or serve it and ask it with --engine openai"
        )
    for name, allowed in _WORDS.items():
        value = section.get(name)
        if value is not None and value not in allowed:
            raise InputError(f"{where}: `{name}` is {one_line(repr(value), 60)}; known are {', '.join(allowed)}")
    for name in _ELSEWHERE:
        if section.get(name) is not None:
            raise InputError(f"{where}: `{name}` is {one_line(repr(section[name]), 60)}; cos reads no such setting: remove it")


def check_ends(where: Path, section: Mapping[str, Any], rows: int) -> None:
    """Raises InputError for marks that are no tokens of the `rows` of a vocabulary. Whatever else generation settings say,
    answers here are greedy."""
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        value = section.get(name)
        each = value if isinstance(value, list) and name == "eos_token_id" else [value]
        for token in each:
            if token is not None and (type(token) is not int or not -1 <= token < rows):
                raise InputError(f"{where}: `{name}` must be a token of the vocabulary, got {one_line(repr(token), 60)}")
