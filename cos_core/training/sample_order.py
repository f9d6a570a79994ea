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
    """Samples of one device's batch, of a micro-batch over all devices, and of an optimiser step."""

    device: int
    micro: int
    optimizer: int


class SampleOrder(torch.utils.data.Sampler[int]):
    """A sampler: a permutation of `size` samples for each epoch.

    Yields keys that carry the epoch, as TrainDataset reads them. Inside a global batch the samples are sorted by length, which
    changes no gradient but saves padding; with `grouped`, whole global batches hold samples of similar length, too. The last
    micro-batch is filled up with fillers (negative keys), so that all devices have equally many batches and no sample is learnt
    twice. `length(index, epoch)` gives tokens.
    """

    def __init__(
        self, size: int, seed: int, batches: BatchSizes, length: Callable[[int, int], int] | None = None, grouped: bool = False
    ) -> None:
        self._size, self._seed, self._batches = size, seed, batches
        self._length, self._grouped = length, grouped
        self._epoch, self._ended = 0, False

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, from 0, that is iterated next."""
        self._epoch = epoch

    def end(self) -> None:
        """Iterating yields nothing from here on."""
        self._ended = True

    def __len__(self) -> int:
        return self._size + self._fillers

    @property
    def _fillers(self) -> int:
        # One device needs none: its last batch may be short.
        return -self._size % self._batches.micro if self._batches.micro > self._batches.device else 0

    def __iter__(self) -> Iterator[int]:
        if self._ended:
            return
        start = self._epoch * self._size
        keys: list[int] = []
        for index in self.indices(self._epoch):
            if len(keys) < self._fillers:
                keys.append(start + index)
            yield start + index
        # Fillers repeat the shortest work at hand; what they are does not matter.
        yield from (-keys[i % len(keys)] - 1 for i in range(self._fillers))

    def indices(self, epoch: int) -> Iterator[int]:
        """The samples of an epoch, in order, without fillers. Lengths are computed one window at a time."""
        random = np.random.default_rng((self._seed, epoch))
        order = random.permutation(self._size)
        if self._length is None:
            yield from map(int, order)
            return
        length = self._length
        size = self._batches.optimizer * (_WINDOW if self._grouped else 1)
        for low in range(0, len(order), size):
            # Longest first: a batch that does not fit into memory fails at the start of the run.
            window = sorted(order[low : low + size].tolist(), key=lambda index: (-length(index, epoch), index))
            yield from self._shuffled(window, random) if self._grouped else window

    def _shuffled(self, window: list[int], random: np.random.Generator) -> list[int]:
        """The global batches of a sorted window in random order; a short last one stays last."""
        step = self._batches.optimizer
        whole = len(window) // step
        batches = [window[i * step : (i + 1) * step] for i in random.permutation(whole)]
        return [index for batch in [*batches, window[whole * step :]] for index in batch]
