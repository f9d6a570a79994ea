"""Checkpoints to resume from: each is whole or not there, and the older one goes only when the newer is whole.

A checkpoint folder is whole when it holds `whole.json`, which is written last and names every file with its size.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from cos_core import folders, manifest
from cos_core.jsonl import decode

WHOLE = "whole.json"
THEN = " to go on from the last whole checkpoint"
"""What to do when one could not be written: the end of the sentence."""


def mark_whole(folder: Path, processes: int) -> None:
    """Says that everything is written: flushes the files to disk, then writes the list of them."""
    files = folders.flush(folder)
    files.pop(WHOLE, None)
    record = {"step": step_of(folder), "processes": processes, "files": files}
    manifest.atomic_write(folder / WHOLE, json.dumps(record, indent=1) + "\n")


def last_whole(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`, None when there is none."""
    return max((path for path in folder.glob("checkpoint-*") if record_of(path) is not None), key=step_of, default=None)


def record_of(checkpoint: Path) -> dict[str, Any] | None:
    """What `mark_whole` wrote, None for a checkpoint that is not whole: unmarked, or with a file missing or of another size."""
    try:
        record = decode((checkpoint / WHOLE).read_bytes())
        whole = all((checkpoint / name).stat().st_size == size for name, size in record["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(record) if whole else None


def prune(folder: Path, keep: Path | None) -> None:
    """Removes every checkpoint but `keep`, the oldest first."""
    for path in sorted((path for path in folder.glob("checkpoint-*") if path != keep), key=step_of):
        shutil.rmtree(path)


def step_of(checkpoint: Path) -> int:
    """The optimiser step that a checkpoint's name holds."""
    return int(checkpoint.name.rpartition("-")[2])
