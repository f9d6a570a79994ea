"""Durable writes: files that appear whole or not at all (written beside their place, flushed, renamed), and folders that
libraries write, which are removed again when they are not whole.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cos_core.errors import CosError, InputError

_RUST = re.compile(r"([^:]+) \(os error \d+\)")


def check_output(path: Path) -> None:
    """Raises InputError when `path` is there and no file can stand in its place: a device, a pipe, a folder, links in a circle.

    A link to a file is one. What replaces its target by rename would put a file where /dev/null was.
    """
    try:
        kind = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return  # making the folder says what is wrong with it
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    if not stat.S_ISREG(kind):
        device = "it is a device or a pipe, and results appear whole, by rename; name a file"
        raise InputError(f"{path} cannot be written: {os.strerror(errno.EISDIR) if stat.S_ISDIR(kind) else device}")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write that becomes `path` in one step when the block ends well, and vanishes when it does not.

    A link is followed, so that the file it points to is replaced and not the link. Raises InputError when the folder cannot be
    written, the disk is full, or `path` is something else than a file (see `check_output`).
    """
    check_output(path)
    target = Path(os.path.realpath(path))
    scratch = target.with_name(f".{target.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            scratch.unlink()


def atomic_write(path: Path, data: bytes | str) -> None:
    """Writes the whole file, or leaves the earlier one. Raises InputError."""
    with atomic_file(path) as file:
        file.write(utf8(data) if isinstance(data, str) else data)


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Makes an output folder, and its parents, for the block; one made here that is still empty at the end is removed again.

    Raises InputError when it cannot be made.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}") from None
    try:
        yield
    finally:
        if is_new:
            # It fails where something lies in it, or another run holds its lock there.
            with suppress(OSError):
                folder.rmdir()


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable, so that a power cut does not lose a new file. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def utf8(text: str) -> bytes:
    """A text for a file: UTF-8, and lone surrogates, which it cannot hold, as `\\ud800`: inside JSON nothing is lost."""
    return text.encode("utf-8", "backslashreplace")


@contextmanager
def library_folder(folder: Path, *, alone: bool = True, then: str = "") -> Iterator[None]:
    """A folder that libraries write inside the block; it is removed when the block fails.

    Not `alone`: other processes write to it too, and it stays; the next run removes it. `then`: the end of the message. Raises
    InputError when the disk is full or refuses for another reason, which torch, safetensors and tokenizers report in different
    ways (`disk_error`).
    """
    try:
        yield
    except Exception as error:
        # tokenizers raises a plain Exception; what is not the disk's is raised again.
        reason = disk_error(error)
        if reason is None and not isinstance(error, CosError):
            raise
        if alone:
            shutil.rmtree(folder, ignore_errors=True)
        if reason is None:
            raise
        raise InputError(f"{folder} cannot be written: {reason}; free the disk and run again{then}") from None


def disk_error(error: Exception) -> str | None:
    """The disk's reason for an error of a library, None for an error of another kind."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # safetensors and tokenizers are written in Rust and quote the system.
    quoted = _RUST.search(str(error))
    if quoted is not None:
        return quoted[1].strip()
    # torch's archive writer reports a wrong position, and for a small archive a broken stream.
    broken = any(word in str(error) for word in ("inline_container", "iostream error"))
    return "torch could not write all of it, most likely for want of room" if broken else None


def flush_folder(folder: Path) -> dict[str, int]:
    """Flushes every file in a folder to the disk; returns their sizes in bytes by relative name.

    Files get the mode that the umask gives: safetensors writes through a temporary file of mode 0600.
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
