"""Files that appear whole or not at all: written beside their place, flushed to the disk, renamed."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cos_core.errors import InputError


def check_output(path: Path) -> None:
    """Raises InputError when `path` is there and no file can stand in its place: a device, a pipe, a folder, links in a circle.

    A link to a file is one. What replaces its target by rename would put a file where /dev/null was.
    """
    try:
        kind = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return  # whoever makes the folder says what is wrong with it
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
    """Writes the whole file or leaves what stood there. Raises InputError."""
    with atomic_file(path) as file:
        file.write(utf8(data) if isinstance(data, str) else data)


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
