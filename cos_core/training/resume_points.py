"""Checkpoints to resume from: each is whole or not there, and the older one goes only when the newer is whole.

A checkpoint folder is whole when it holds `whole.json`, which is written last and names every file with its size.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cos_core.files.durable import atomic_write, sync_folder
from cos_core.files.jsonl import decode

WHOLE = "whole.json"
THEN = " to go on from the last whole checkpoint"
"""What to do when one could not be written: the end of the sentence."""


_RANK = re.compile(r"rng_state_(\d+)\.pth|.*zero_pp_rank_(\d+)_mp_rank_\d+_(?:model|optim)_states\.pt")
"""Files of one process: the Trainer's random states, DeepSpeed's parts of weights and optimiser."""


def owner(name: str, processes: int) -> int:
    """The rank of the process that flushes a file of a checkpoint to the disk: the rank in its name, else 0."""
    match = _RANK.fullmatch(Path(name).name)
    rank = int(match[1] or match[2]) if match else 0
    return rank if rank < processes else 0


def flush(folder: Path, rank: int, processes: int) -> dict[str, int]:
    """Flushes this process's files to the disk; returns their sizes by name. All processes together flush all files."""
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != WHOLE and owner(path.name, processes) == rank:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                sizes[str(path.relative_to(folder))] = os.fstat(file.fileno()).st_size
    return sizes


def mark_whole(folder: Path, files: Sequence[Mapping[str, int]]) -> None:
    """Writes the list of all files, which makes the checkpoint count, from the results of `flush` in all processes."""
    record = {
        "step": step_of(folder),
        "processes": len(files),
        "files": {name: n for sizes in files for name, n in sizes.items()},
    }
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(path)
    atomic_write(folder / WHOLE, json.dumps(record, indent=1) + "\n")


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
