"""A finding of the doctor."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "note", "warning", "missing"]
"""ok; note: worth knowing; warning: will hurt; missing: the task cannot be done."""
TASKS = ("annotate", "train", "infer", "eval", "visualize")


@dataclass(frozen=True, slots=True)
class MachineFinding:
    """The result of one check: its name, its level, the result `said` in words, and advice (None when nothing is to do)."""

    check: str
    level: Level
    said: str
    todo: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
