"""The order in which samples are seen: a pure function of seed, epoch and the global batch, whatever the number of devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

_WINDOW = 16
"""Global batches that length grouping sorts together."""


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """How an epoch is cut up: `batch` samples a device, `together` a micro-step over all devices, `step` an optimiser step."""

    batch: int
    together: int
    step: int


class Order(torch.utils.data.Sampler[int]):
    """A permutation of `size` samples for each epoch.

    Yields keys that carry the epoch, as TrainData reads them. Inside a global batch the samples stand by length, which changes
    no gradient but saves padding; with `grouped`, whole global batches are made of samples of like length, too. The last
    micro-step is filled up with fillers (negative keys), so that all devices have equally many batches and nothing is learnt
    twice. `length(index, epoch)` gives tokens; the epoch is set from the Trainer's own state when one begins, resumed or not.
    """

    def __init__(
        self, size: int, seed: int, cut: BatchSizes, length: Callable[[int, int], int] | None = None, grouped: bool = False
    ) -> None:
        self._size, self._seed, self._cut = size, seed, cut
        self._length, self._grouped = length, grouped
        self.epoch = 0

    def __len__(self) -> int:
        return self._size + self._fillers

    @property
    def _fillers(self) -> int:
        # One device needs none: its last batch may be short.
        return -self._size % self._cut.together if self._cut.together > self._cut.batch else 0

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self._size
        keys: list[int] = []
        for index in self.indices(self.epoch):
            if len(keys) < self._fillers:
                keys.append(start + index)
            yield start + index
        # Fillers repeat the shortest work at hand; what they are does not matter.
        yield from (-keys[i % len(keys)] - 1 for i in range(self._fillers))

    def indices(self, epoch: int) -> Iterator[int]:
        """The samples of an epoch, in order, without fillers; lengths are asked for a window at a time."""
        random = np.random.default_rng((self._seed, epoch))
        order = random.permutation(self._size)
        if self._length is None:
            yield from map(int, order)
            return
        length = self._length
        size = self._cut.step * (_WINDOW if self._grouped else 1)
        for low in range(0, len(order), size):
            # Longest first: a batch that does not fit into memory fails at once, not in the middle of the night.
            window = sorted(order[low : low + size].tolist(), key=lambda index: (-length(index, epoch), index))
            yield from self._shuffled(window, random) if self._grouped else window

    def _shuffled(self, window: list[int], random: np.random.Generator) -> list[int]:
        """The global batches of a sorted window in random order; a short last one stays last."""
        step = self._cut.step
        whole = len(window) // step
        batches = [window[i * step : (i + 1) * step] for i in random.permutation(whole)]
        return [index for batch in [*batches, window[whole * step :]] for index in batch]
