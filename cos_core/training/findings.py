"""Findings of the data check, counted, and kept in a file where there are many."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core.files.durable import atomic_file
from cos_core.files.jsonl import encode_line

_NAMED = 3
_SPOOL_BYTES = 2**20


Where = tuple[Path, int | None, str | None]
"""File, line and id of a question."""


@dataclass(frozen=True, slots=True)
class DataFinding:
    """A fault or remark about a sample: place, id, reason. `kind` groups findings; `fault`: training cannot use the sample."""

    kind: str
    path: Path
    line: int | None
    id: str | None
    reason: str
    fault: bool = True

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line is not None else str(self.path)
        return f"{where}: {self.reason}" + (f" (id {self.id!r})" if self.id else "")

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "fault": self.fault,
            "path": str(self.path),
            "line": self.line,
            "id": self.id,
            "reason": self.reason,
        }


class Findings:
    """Findings, counted by kind; the first ones of each stay in memory, all are in a temporary file until they are written."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, list[DataFinding]] = defaultdict(list)
        self.faults = 0
        self.first_faults: list[DataFinding] = []
        self._all = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115 (closed with the object)

    def __len__(self) -> int:
        return self.counts.total()

    def add(self, finding: DataFinding) -> None:
        self.counts[finding.kind] += 1
        self.faults += finding.fault
        for few in (self.first[finding.kind], *([self.first_faults] if finding.fault else [])):
            if len(few) < _NAMED:
                few.append(finding)
        self._all.write(encode_line(finding.to_json()))

    def write(self, path: Path) -> None:
        """Every finding as one JSON line, in the order in which they were added."""
        self._all.seek(0)
        with atomic_file(path) as file:
            shutil.copyfileobj(self._all, file)
        self._all.seek(0, os.SEEK_END)


def plural(number: int, noun: str) -> str:
    """A number with its noun: 1 fault, 2 faults."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
