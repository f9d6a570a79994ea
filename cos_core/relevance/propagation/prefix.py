"""The cache of a model whose sequences continue a prefix that a sweep has recorded: it says how long the prefix is."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class RecordedLayer(CacheLayerMixin):
    """A layer of `recorded_cache`.

    It gives back the keys and values that it is given: what stands before them is put there by the attention (tape.py), and a
    layer may be called any number of times.
    """

    is_sliding = False

    def __init__(self, start: int) -> None:
        super().__init__()
        self._start = start
        self.is_initialized: bool = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is held."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All columns, in layers with a window, too: the mask hides what lies outside of it."""
        return self._start + query_length, 0

    def get_seq_length(self) -> int:
        return self._start

    def get_max_length(self) -> int:
        return -1


def recorded_cache(layers: int, start: int) -> Cache:
    """For a prefix of `start` positions."""
    return Cache(layers=[RecordedLayer(start) for _ in range(layers)])
