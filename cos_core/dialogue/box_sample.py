"""Boxes as they come, thinned evenly to a bounded number, for the statistics of box_frames.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from cos_core.dialogue.box_conventions import Boxes, Floats

MOST = 4096
Origin = TypeVar("Origin")


@dataclass(slots=True)
class BoxSample(Generic[Origin]):
    """`origins[i]`: where box i comes from, for a message. `offered`: how many boxes came; each of `step` is kept."""

    origins: list[Origin] = field(default_factory=list)
    offered: int = 0
    step: int = 1
    _rows: list[tuple[float, ...]] = field(default_factory=list)
    _known: set[tuple[object, ...]] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._rows)

    def wants(self) -> bool:
        """Whether the next box will be kept; each call is a box."""
        self.offered += 1
        return self.offered % self.step == 0

    def add(
        self,
        numbers: tuple[float, float, float, float],
        sizes: tuple[tuple[int, int], tuple[int, int]],
        picture: str,
        origin: Origin,
        reference: tuple[float, float, float, float] | None = None,
    ) -> None:
        """Keeps a box that is wanted; one that was there before on the same picture counts once.

        `sizes`: (width, height) of its picture, and of that picture as the model sees it. `reference`: another box of the same
        object, in fractions of the picture.
        """
        if (key := (numbers, picture)) in self._known:
            return
        self._known.add(key)
        self._rows.append((*numbers, *sizes[0], *sizes[1], *(reference or (np.nan,) * 4)))
        self.origins.append(origin)
        if len(self._rows) == MOST:
            self.step *= 2
            del self._rows[::2], self.origins[::2]
            self._known.clear()

    def boxes(self) -> Boxes:
        rows = self._table()
        return Boxes(rows[:, :4], rows[:, 4:8])

    def referenced(self) -> tuple[Boxes, Floats]:
        """The boxes that have a reference, and those references (n, 4)."""
        rows = self._table()
        rows = rows[~np.isnan(rows[:, 8])]
        return Boxes(rows[:, :4], rows[:, 4:8]), rows[:, 8:]

    def _table(self) -> Floats:
        return np.array(self._rows, float).reshape(-1, 12)
