"""What a folder of any family is looked at for before anything is built from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cos_core.errors import InputError
from cos_core.models import checkpoint_files as files


def check(where: str) -> dict[str, Any]:
    """config.json of a folder that `AutoModelForImageTextToText` can build. Raises InputError."""
    config = files.settings(Path(where), files.CONFIG)
    if config is None:
        raise InputError(f"{where} is not a checkpoint: it has no config.json")
    return config
