"""Arms: one model's ways to answer that are compared with each other, and run together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cos_core.infer.config import InferConfig


@dataclass(frozen=True, slots=True)
class Arm:
    """`name`: the arm's folder and its row in a table; `settings`: fields of InferConfig that it sets."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def of(self, config: InferConfig) -> InferConfig:
        """The settings of this arm's run. Raises InputError for settings that do not go together."""
        return replace(config, **self.settings)
