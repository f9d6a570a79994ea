"""What tiny checkpoints are made of: shapes, byte tokenizers, settings of towers and decoders, and the files of a processor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a checkpoint. `patch` in pixels; `grid`: tokens of a side where a family shows a fixed number of them."""

    hidden: int
    heads: int
    key_heads: int
    layers: int
    tower: int
    tower_heads: int
    tower_layers: int
    patch: int
    grid: int
    words_first: bool
    """Whether the special words stand in front of the bytes in the vocabulary."""


SHAPES = {
    "usual": Shape(64, 4, 2, 2, 32, 4, 2, patch=7, grid=4, words_first=True),
    "other": Shape(96, 6, 3, 3, 48, 6, 3, patch=6, grid=6, words_first=False),
}


@dataclass(slots=True)
class Parts:
    """What a checkpoint is made of. `cls`: name of the processor's class; `stops`: tokens that end an answer."""

    config: Any
    cls: str
    image_processor: Any
    tokenizer: Any
    template: str | None
    stops: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the processor."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Tokenizers beside the first, by their names."""


def save_processor(parts: Parts, folder: Path, layout: Literal["saved", "published"] = "saved") -> None:
    """Writes tokenizer, image processor and chat template.

    "saved": everything in processor_config.json, the template in chat_template.jinja. "published": preprocessor_config.json
    with the class name `...Fast` and, for Qwen, `min_pixels` and `max_pixels` at the top; the template in chat_template.json;
    processor_config.json only where the processor has settings of its own.
    """
    parts.tokenizer.save_pretrained(folder)
    for name, tokenizer in parts.more.items():
        tokenizer.save_pretrained(folder / name)
    image = parts.image_processor.to_dict()
    kind = type(parts.image_processor).__name__.removesuffix("Pil")
    # What every image processor's dictionary holds and no file does
    image = {key: value for key, value in image.items() if value is not None} | {"image_processor_type": kind}
    own = {"processor_class": parts.cls, **parts.options}
    if layout == "saved":
        _write(folder / "processor_config.json", {**own, "image_processor": image})
        if parts.template:
            (folder / "chat_template.jinja").write_text(parts.template, encoding="utf-8")
        return
    if kind.startswith("Qwen"):
        size = image.pop("size")
        image |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    _write(folder / "preprocessor_config.json", {**image, "image_processor_type": f"{kind}Fast", "processor_class": parts.cls})
    if parts.options:
        _write(folder / "processor_config.json", own)
    if parts.template:
        _write(folder / "chat_template.json", {"chat_template": parts.template})


def _write(path: Path, value: Any) -> None:
    path.write_text(
        json.dumps(value, indent=2, sort_keys=True, default=lambda v: getattr(v, "__dict__", str(v))) + "\n", encoding="utf-8"
    )


def byte_tokenizer(
    words: Sequence[str],
    s: Shape,
    *,
    bos: str | None,
    eos: str,
    pad: str,
    named: Mapping[str, str] | None = None,
    plain: Sequence[str] = (),
) -> Any:
    """A fast tokenizer with one token a byte. `words` are read in text as one token each; `bos`, if any, is put in front.

    `named`: attributes such as image_token. `plain`: added words that are not special, as PaliGemma's <loc0000>.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    order = [*words, *letters] if s.words_first else [*reversed(letters), *reversed(words)]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(order)}, merges=[]))
    tokenizer.add_special_tokens(list(words))
    if plain:
        tokenizer.add_tokens([AddedToken(word, normalized=False) for word in plain])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B:1", special_tokens=[(bos, order.index(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        padding_side="left",
        model_max_length=8192,
        extra_special_tokens=dict(named or {}),
    )


def text(tokens: Any, s: Shape, **more: Any) -> dict[str, Any]:
    """Settings of a Llama-like decoder."""
    return {
        "hidden_size": s.hidden,
        "intermediate_size": 2 * s.hidden,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.key_heads,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
        "vocab_size": len(tokens),
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
        **more,
    }


def tower(s: Shape, *, side: int, patch: int, **more: Any) -> dict[str, Any]:
    """Settings of a vision tower for pictures of `side` pixels."""
    return {
        "hidden_size": s.tower,
        "intermediate_size": 2 * s.tower,
        "num_hidden_layers": s.tower_layers,
        "num_attention_heads": s.tower_heads,
        "image_size": side,
        "patch_size": patch,
        "initializer_range": 0.2,
        **more,
    }


def ids(tokens: Any, **words: str) -> dict[str, int]:
    return {key: tokens.convert_tokens_to_ids(word) for key, word in words.items()}


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def vicuna_tokens(s: Shape) -> Any:
    """Llama's tokens with an image mark, as of LLaVA."""
    return byte_tokenizer(["<pad>", "<s>", "</s>", "<image>"], s, bos="<s>", eos="</s>", pad="<pad>")
