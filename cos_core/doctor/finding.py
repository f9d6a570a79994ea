"""A finding of the doctor."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "note", "warning", "missing"]
"""ok; note: worth knowing; warning: will hurt; missing: the task cannot be done."""
TASKS = ("annotate", "train", "infer", "eval", "visualize")


@dataclass(frozen=True, slots=True)
class MachineFinding:
    """One line: what was looked at, how it stands, and what to do about it (None when there is nothing to do)."""

    check: str
    level: Level
    said: str
    todo: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
