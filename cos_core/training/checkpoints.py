"""Checkpoints to resume from: each is whole or not there, and the older one goes only when the newer is whole.

A checkpoint folder is whole when it holds `whole.json`, which is written last and names every file with its size.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cos_core import manifest
from cos_core.errors import CosError, InputError
from cos_core.jsonl import decode

WHOLE = "whole.json"


@contextmanager
def writing(folder: Path, *, alone: bool = True) -> Iterator[None]:
    """A folder that is written inside the block, by libraries too; what could not be written whole is removed again.

    Not `alone`, other processes write to it as well, and it stays: the next run removes it. Raises InputError when the disk is
    full, or refuses for another reason; torch, safetensors and tokenizers each have words of their own for that.
    """
    try:
        yield
    except Exception as error:
        # There is no narrower class that tokenizers' error has; whatever is not the disk's is raised again.
        reason = _refusal(error)
        if reason is None and not isinstance(error, CosError):
            raise
        if alone:
            shutil.rmtree(folder, ignore_errors=True)
        if reason is None:
            raise
        raise InputError(
            f"{folder} cannot be written: {reason}; free the disk and run again to go on from the last whole checkpoint"
        ) from None


_RUST = re.compile(r"([^:]+) \(os error \d+\)")


def _refusal(error: Exception) -> str | None:
    """Why the disk took no more, None for an error of another kind."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # safetensors and tokenizers are written in Rust and quote the system's words; tokenizers raises a plain Exception.
    told = _RUST.search(str(error))
    if told is not None:
        return told[1].strip()
    # torch's writer of archives notices only that it is not as far as it should be.
    return "torch could not write all of it, most likely for want of room" if "inline_container" in str(error) else None


def flush(folder: Path) -> dict[str, int]:
    """Waits until every file in a folder is on the disk; their sizes in bytes by relative name."""
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            sizes[str(path.relative_to(folder))] = path.stat().st_size
    return sizes


def mark_whole(folder: Path, processes: int) -> None:
    """Says that everything is written: flushes the files to disk, then writes the list of them."""
    files = flush(folder)
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
