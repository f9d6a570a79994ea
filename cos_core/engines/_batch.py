"""What a batch is made of, and what bounds it: rows, jobs, the state of a running batch, memory and end marks."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from cos_core import llava as loader
from cos_core.encoding import Encoded
from cos_core.engines._constrain import TokenGrammar
from cos_core.engines._prefix import Match
from cos_core.interfaces import Request

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")


@dataclass(slots=True)
class Row:
    """A token sequence to run: its pictures in order, and how much of it is stored already.

    `keys`: the ids with a negative number a picture in its positions, so that equal keys mean equal keys and values.
    """

    ids: np.ndarray
    keys: np.ndarray
    images: tuple[Image, ...]
    numbers: tuple[int, ...]
    match: Match

    @property
    def fresh(self) -> int:
        """How many positions are not stored."""
        return len(self.ids) - self.match.length

    def shown(self, size: int) -> list[tuple[Image, int]]:
        """Pictures that are not stored whole, each with how many of its `size` positions are."""
        starts = np.flatnonzero(self.keys < 0)[::size]
        begun = [(image, max(0, self.match.length - int(start))) for image, start in zip(self.images, starts, strict=True)]
        return [(image, stored) for image, stored in begun if stored < size]


@dataclass(slots=True)
class Job:
    """A request made ready, and what has been generated for it."""

    place: int
    request: Request
    encoded: Encoded
    row: Row
    grammar: TokenGrammar | None
    given: int = 0
    """How many of `ids` the grammar had forced before the model was asked: they stand at the end of `row`."""
    ids: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    steps: int = 0
    cached: int = 0
    heard: int = 0
    done: bool = False

    @property
    def columns(self) -> int:
        """Positions that answering takes at most; rows of a grammar wait for each other's forced tokens."""
        return len(self.row.ids) + self.request.max_new_tokens * (2 if self.grammar else 1)


@dataclass(slots=True)
class State:
    """A batch under way: keys and values, which columns count, the last position and the last logits of each row."""

    cache: Any
    mask: torch.Tensor
    positions: torch.Tensor
    logits: torch.Tensor


def segments(row: Row, layer: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What is stored of the row in one layer, in order."""
    match = row.match
    return match.prefix.segments(layer, match.length) if match.prefix is not None and match.length else []


def chunks(rows: Sequence[Row], tokens: int) -> list[tuple[int, int]]:
    """Cuts rows, sorted by what they compute, into runs [first, last) of at most `tokens` positions, or of one row."""
    widths = [row.fresh for row in rows]
    cuts = [0]
    for i, width in enumerate(widths):
        first = cuts[-1]
        if i > first and ((i + 1 - first) * width > tokens or width > 1.25 * widths[first] + 16):
            cuts.append(i)
    return list(itertools.pairwise([*cuts, len(rows)]))


def by_length(items: Sequence[T], length: Callable[[T], int]) -> list[list[T]]:
    """Items in batches of like length, so that little padding is computed."""
    batches: list[list[T]] = []
    for item in sorted(items, key=length):
        if not batches or length(item) > 1.5 * length(batches[-1][0]) + 32:
            batches.append([])
        batches[-1].append(item)
    return batches


def key_heads(config: Any) -> tuple[int, int]:
    """How many heads the keys have, and the width of one."""
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    return heads, int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def token_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of keys and values that one position takes in all layers."""
    heads, width = key_heads(config)
    return 2 * int(config.num_hidden_layers) * heads * width * dtype.itemsize


def free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(0.7 * torch.cuda.mem_get_info(device)[0])
    return max(2**28, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)


def stop_ids(llava: loader.Llava) -> frozenset[int]:
    """The ids that end an answer: the tokenizer's and the model's end tokens, and the profile's end mark if it is one token."""
    configured = llava.model.generation_config.eos_token_id
    ids = {llava.tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    mark = llava.tokenizer(llava.profile.turn_end, add_special_tokens=False)["input_ids"] if llava.profile.turn_end else []
    if len(mark) == 1:
        ids.add(mark[0])
    return frozenset(int(i) for i in ids if i is not None)


def is_out_of_memory(error: BaseException) -> bool:
    """torch raises OutOfMemoryError on a GPU and a bare RuntimeError with these words when a CPU allocation fails."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
