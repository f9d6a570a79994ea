"""One benchmark of a suite, scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core.types import RunManifest


@dataclass(frozen=True, slots=True)
class Scored:
    """One benchmark under one arm: its manifest and where it lies; `upload` is the file for the server that scores it."""

    benchmark: str
    arm: str | None
    manifest: RunManifest
    folder: Path | None
    upload: Path | None = None

    def to_json(self) -> dict[str, Any]:
        results = {**self.manifest.results, "status": self.manifest.status, "counts": self.manifest.counts}
        where = {"arm": self.arm, "folder": str(self.folder) if self.folder else None}
        return {
            **results,
            "fingerprint": self.manifest.fingerprint,
            **where,
            **({"upload": str(self.upload)} if self.upload else {}),
        }


def flat(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """`{"a": {"b": 1}}` as ("a.b", 1)."""
    for key, value in results.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
