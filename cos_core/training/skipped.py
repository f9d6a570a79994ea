"""Samples and questions that are not trained on, each with its reason: counted in memory, listed in a file.

Most of a file of millions can lack a region. Memory grows only with the number of different reasons, of which 200 are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from cos_core.errors import InputError

_DISTINCT = 200
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Skipped:
    """One question, record or whole sample that is not trained on, and why; `training`: seen only while training.

    `line`, `file`: where its record begins, from 1, and in which data file, where that is known. `lacking`: a question that is
    named among those without a region as well.
    """

    id: str
    reason: str
    training: bool = False
    line: int | None = None
    lacking: bool = False
    file: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As `skipped.jsonl` has it."""
        return {"id": self.id, "reason": self.reason, "training": self.training}


@dataclass(slots=True)
class SkipCounts:
    """How many there are of each reason, and the id of the first. At most 200 different reasons are counted separately."""

    total: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, skipped: Iterable[Skipped]) -> SkipCounts:
        reasons = cls()
        for each in skipped:
            reasons.add(each)
        return reasons

    def add(self, skipped: Skipped) -> None:
        self.total += 1
        reason = skipped.reason
        if reason in self.counts:
            self.counts[reason] += 1
        elif len(self.counts) < _DISTINCT:
            self.counts[reason], self.first[reason] = 1, skipped.id

    def __str__(self) -> str:
        """One line: how many for which reason, the commonest first, with one offender each."""
        ranked = sorted(self.counts, key=lambda reason: -self.counts[reason])
        parts = [f"{self.counts[reason]} x {reason} (first: {self.first[reason]})" for reason in ranked[:_NAMED]]
        uncounted = self.total - sum(self.counts.values())
        more = len(ranked) - _NAMED
        if uncounted:
            parts[-1] += f" and more than {more} further reasons"
        elif more > 0:
            parts[-1] += f" and {more} further reasons"
        return "; ".join(parts)


class SkipFile:
    """A file of Skipped: appended to once, then iterated in the same order any number of times."""

    def __init__(self, path: Path, reasons: SkipCounts | None = None) -> None:
        """`reasons`: the counts of a file that is already written, from `counted`; without them a new file is begun."""
        self.path = path
        self.reasons = reasons or SkipCounts()
        self._file: BinaryIO | None = path.open("wb") if reasons is None else None

    def append(self, skipped: Skipped) -> None:
        """Raises OSError when the disk is full."""
        if self._file is None:
            raise InputError(f"{self.path} is already closed for writing")
        self.reasons.add(skipped)
        row = [skipped.id, skipped.reason, skipped.training, skipped.line, skipped.lacking, skipped.file]
        # In ASCII, so that half a character in a reason can be kept, too.
        self._file.write(json.dumps(row).encode() + b"\n")

    def close(self) -> None:
        """Ends the writing. Raises OSError when the disk is full."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __len__(self) -> int:
        return self.reasons.total

    def __iter__(self) -> Iterator[Skipped]:
        if not len(self):
            return
        with self.path.open("rb") as file:
            for line in file:
                yield Skipped(*json.loads(line))
