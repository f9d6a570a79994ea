"""Folders of files that libraries write (weights, tokenizers): whole and on the disk, or gone with a sentence that says why."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cos_core.errors import CosError, InputError


@contextmanager
def writing(folder: Path, *, alone: bool = True, then: str = "") -> Iterator[None]:
    """A folder that is written inside the block, by libraries too; what could not be written whole is removed again.

    Not `alone`, other processes write to it as well, and it stays: the next run removes it. `then`: what to do about it, for
    the sentence. Raises InputError when the disk is full, or refuses for another reason; torch, safetensors and tokenizers each
    have words of their own for that.
    """
    try:
        yield
    except Exception as error:
        # There is no narrower class that tokenizers' error has; whatever is not the disk's is raised again.
        reason = refusal(error)
        if reason is None and not isinstance(error, CosError):
            raise
        if alone:
            shutil.rmtree(folder, ignore_errors=True)
        if reason is None:
            raise
        raise InputError(f"{folder} cannot be written: {reason}; free the disk and run again{then}") from None


_RUST = re.compile(r"([^:]+) \(os error \d+\)")


def refusal(error: Exception) -> str | None:
    """Why the disk took no more, None for an error of another kind."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # safetensors and tokenizers are written in Rust and quote the system's words; tokenizers raises a plain Exception.
    told = _RUST.search(str(error))
    if told is not None:
        return told[1].strip()
    # torch's writer of archives notices only that it is not as far as it should be, of a short one that its stream is broken.
    broken = any(word in str(error) for word in ("inline_container", "iostream error"))
    return "torch could not write all of it, most likely for want of room" if broken else None


def flush(folder: Path) -> dict[str, int]:
    """Waits until every file in a folder is on the disk; their sizes in bytes by relative name.

    Files get the mode that the umask gives: safetensors writes through a temporary file, which nobody else may read.
    """
    sizes = {}
    probe = folder / ".mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600 != mode:
                    os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            sizes[str(path.relative_to(folder))] = path.stat().st_size
    return sizes
