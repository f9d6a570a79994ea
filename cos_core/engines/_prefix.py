"""Keys and values: a buffer for the rows that are being answered, and a store of prefixes that later rows can continue.

The second pass's prompt continues the first pass's, and every question on a picture begins with that picture: what was computed
for one row is copied into the next instead of computed again (what vLLM and SGLang call prefix caching).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""(keys, values) of each layer, (heads, positions, width)."""


class BufferLayer(DynamicLayer):
    """One layer of a batch's keys and values, written into memory that is taken once instead of anew for every token."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.is_initialized: bool = False
        self.capacity = capacity
        self.used = 0

    def _room(self, like: torch.Tensor, more: int) -> None:
        rows, heads, _, width = like.shape
        if not self.is_initialized:
            self.dtype, self.device = like.dtype, like.device
            self.capacity = max(self.capacity, more)
            self.keys = like.new_empty(rows, heads, self.capacity, width)
            self.values = like.new_empty(rows, heads, self.capacity, width)
            self.is_initialized = True
        elif self.used + more > self.capacity:
            grown = self.used + more + 32
            for name in ("keys", "values"):
                old = getattr(self, name)
                new = old.new_empty(old.shape[0], old.shape[1], grown, old.shape[3])
                new[:, :, : self.used] = old[:, :, : self.used]
                setattr(self, name, new)
            self.capacity = grown

    def start(
        self, rows: Sequence[tuple[int, Sequence[tuple[torch.Tensor, torch.Tensor]]]], like: torch.Tensor, length: int
    ) -> None:
        """Makes room for `length` positions, and fills what is stored: for each row (its positions, the segments in front).

        Rows stand at the right. `like`: an empty (rows, heads, 0, width) of the right type and place.
        """
        self._room(like, length)
        for i, (positions, stored) in enumerate(rows):
            at = length - positions
            # What is masked is multiplied by zero, and zero times an uninitialised NaN is a NaN.
            self.keys[i, :, :at] = 0
            self.values[i, :, :at] = 0
            for keys, values in stored:
                end = at + keys.shape[1]
                self.keys[i, :, at:end] = keys
                self.values[i, :, at:end] = values
                at = end
        self.used = length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends (rows, heads, new, width) and returns everything so far, as views."""
        new = key_states.shape[2]
        self._room(key_states, new)
        end = self.used + new
        self.keys[:, :, self.used : end] = key_states
        self.values[:, :, self.used : end] = value_states
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.used

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.keys, self.values = self.keys[indices], self.values[indices]


class PartLayer(DynamicLayer):
    """Rows [first, last) of a started buffer, seen from column `left` on, while the end of each is computed.

    `fresh`: how many of its last positions each row computes; what stands in front of them is stored already.
    """

    def __init__(self, whole: BufferLayer, first: int, last: int, left: int, fresh: Sequence[int]) -> None:
        super().__init__()
        self.keys = whole.keys[first:last, :, left : whole.used]
        self.values = whole.values[first:last, :, left : whole.used]
        self._fresh = fresh
        self._stored = self.keys.shape[2] - max(fresh)
        # PaliGemma's mask looks at this to tell a prompt from what follows it.
        self.is_initialized: bool = self._stored > 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes each row's own part of (rows, heads, max(fresh), width); what pads it in front would hide what is stored."""
        for i, new in enumerate(self._fresh):
            self.keys[i, :, -new:] = key_states[i, :, -new:]
            self.values[i, :, -new:] = value_states[i, :, -new:]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self._stored


def buffer(layers: int, capacity: int) -> Cache:
    """An empty cache of `layers` layers with room for `capacity` positions."""
    return Cache(layers=[BufferLayer(capacity) for _ in range(layers)])


@dataclass(eq=False, slots=True, weakref_slot=True)
class Prefix:
    """Keys and values of positions [start, len(keys)) of one token sequence; those before lie in `parent`."""

    keys: np.ndarray
    layers: Layers
    start: int = 0
    parent: Prefix | None = None
    pictures: frozenset[int] = frozenset()
    children: int = 0
    used: int = 0

    @property
    def bytes(self) -> int:
        return sum(k.nbytes + v.nbytes for k, v in self.layers)

    def segments(self, layer: int, length: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The first `length` positions in one layer, in order, as views."""
        segments: list[tuple[torch.Tensor, torch.Tensor]] = []
        node: Prefix | None = self
        while node is not None and length:
            if length > node.start:
                keys, values = node.layers[layer]
                segments.append((keys[:, : length - node.start], values[:, : length - node.start]))
                length = node.start
            node = node.parent
        return segments[::-1]


@dataclass(slots=True)
class Match:
    """The longest stored beginning of a sequence: `length` positions of `prefix` (None: nothing is stored)."""

    prefix: Prefix | None = None
    length: int = 0


@dataclass(slots=True)
class PrefixStore:
    """Prefixes of the last sequences, the least recently used dropped first.

    A sequence is known by its keys: token ids, and one negative number a picture at the positions it takes. `limit` and `held`
    are bytes; what a running batch has copied out of the store is its own.
    """

    limit: int
    held: int = 0
    _entries: list[Prefix] = field(default_factory=list)
    _clock: int = 0

    def match(self, keys: np.ndarray) -> Match:
        """The longest beginning of `keys`, short of its last position: that one's logits must be computed."""
        best, wanted = Match(), keys[:-1]
        for entry in tuple(self._entries):
            at = best.length
            # A longer one agrees in the position after the best one's end: most need no look at the rest.
            if at >= min(len(entry.keys), len(wanted)) or entry.keys[at] != wanted[at]:
                continue
            common = common_length(entry.keys, wanted)
            # Of equally long ones the shortest sequence: a child of it copies no more than it needs.
            if common > best.length:
                best = Match(entry, common)
        if best.prefix is not None:
            self._touch(best.prefix)
        return best

    def add(self, keys: np.ndarray, base: Match, layers: Layers, pictures: Iterable[int]) -> None:
        """Keeps positions [base.length, len(keys)) as a continuation of `base`, if they fit and `base` is still kept."""
        entry = Prefix(keys, layers, base.length, base.prefix if base.length else None, frozenset(pictures))
        if entry.bytes > self.limit or (entry.parent is not None and entry.parent not in self._entries):
            # A continuation would keep a prefix alive that was dropped and is no longer counted.
            return
        self._touch(entry)
        if entry.parent is not None:
            entry.parent.children += 1
        self._entries.append(entry)
        self.held += entry.bytes
        self.shrink(self.limit, spare=entry)

    def shrink(self, limit: int, spare: Prefix | None = None) -> None:
        """Drops prefixes that none continues, oldest first, until at most `limit` bytes are held."""
        while self.held > limit:
            leaves = [e for e in self._entries if not e.children and e is not spare]
            if not leaves:
                return
            self._drop(min(leaves, key=lambda e: e.used))

    def forget(self, picture: int) -> None:
        """Drops every prefix that shows the picture."""
        # A continuation shows all that its parent shows: leaves are dropped first.
        for entry in sorted((e for e in self._entries if picture in e.pictures), key=lambda e: -len(e.keys)):
            self._drop(entry)

    def clear(self) -> None:
        self._entries.clear()
        self.held = 0

    def _drop(self, entry: Prefix) -> None:
        if entry not in self._entries:
            return
        self._entries.remove(entry)
        self.held -= entry.bytes
        if entry.parent is not None:
            entry.parent.children -= 1

    def _touch(self, entry: Prefix) -> None:
        self._clock += 1
        node: Prefix | None = entry
        while node is not None:
            node.used = self._clock
            node = node.parent


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """How many positions two sequences have in common from the front."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
