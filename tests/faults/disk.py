"""The fault injector: at the k-th durable write of a stage, the process dies, Ctrl-C is pressed, the disk is full, or the write
is cut short.

A durable write is what a stage needs the disk for: bytes written to a file, a commit of LMDB, a flush to the disk, a new size,
a rename, a file that a library (torch, safetensors, tokenizers) writes in its own code.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import lmdb

FAULTS = ("kill", "interrupt", "full", "short")
LIBRARIES = ("torch", "safetensors", "tokenizers")
DIED = 137
_RUNNING = re.compile(r"\.\d+\.\d+\.tmp$")
"""What makes the names of two runs' scraps different."""
_TORN = 512
"""Bytes that fit on the disk of a library's file that is cut off."""


@dataclass
class Disk:
    """Counts durable writes below `root`; the one numbered `at` (from 1) goes wrong as `fault` says."""

    root: Path
    at: int = 0
    fault: str = "kill"
    count: int = 0
    steps: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def step(self, what: str, name: object, half: Callable[[], object] | None = None, spared: bool = False) -> bool:
        """True when the write to the file `name` is to be done as usual; `half` does half of it."""
        self.count += 1
        self.steps.append(what)
        self.names.append(_RUNNING.sub("", str(name)))
        if self.count < self.at or not self.at or spared:
            return True
        if self.count > self.at:
            # A full disk stays full; the process that was killed is not here.
            if self.fault == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return True
        if self.fault == "kill":
            if what in LIBRARIES:
                # The one kind of write that takes so long that a kill is likely to tear it.
                with contextlib.suppress(Exception):
                    half and half()
            os._exit(DIED)
        if self.fault == "interrupt":
            signal.raise_signal(signal.SIGINT)
            return True
        if half is not None:
            half()
        if self.fault == "short" and half is not None:
            return False
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def named(self, fd: int) -> Path | None:
        """The file behind a descriptor, when it is one of ours."""
        try:
            path = Path(f"/proc/self/fd/{fd}").readlink()
        except OSError:
            return None
        return path if path.is_relative_to(self.root) else None


class _Commits:
    """LMDB's environment with its commits under the injector: C code writes there, so the whole commit is one step."""

    def __init__(self, environment: Any, disk: Disk) -> None:
        self._environment, self._disk = environment, disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)

    @contextlib.contextmanager
    def begin(self, *arguments: Any, **options: Any) -> Any:
        if not options.get("write"):
            with self._environment.begin(*arguments, **options) as transaction:
                yield transaction
            return
        with self._environment.begin(*arguments, **options) as transaction:
            yield transaction
            try:
                self._disk.step("commit", "data.mdb")
            except OSError as error:
                raise lmdb.DiskError(str(error)) from None

    def open_db(self, *arguments: Any, **options: Any) -> Any:
        return self._environment.open_db(*arguments, **options)


def _natives() -> Iterator[tuple[Any, str, str, Callable[..., Any]]]:
    """The calls of imported libraries that write a whole file in C++ or Rust: (object, name, library, where it finds the path)."""
    if "torch" in sys.modules:
        yield sys.modules["torch"], "save", "torch", lambda _, path, *__, **___: path
    if "safetensors.torch" in sys.modules:
        yield sys.modules["safetensors.torch"], "serialize_file", "safetensors", lambda _, path, **__: path
    if "transformers.tokenization_utils_tokenizers" in sys.modules:
        backend = sys.modules["transformers.tokenization_utils_tokenizers"].TokenizersBackend
        yield backend, "_save_pretrained", "tokenizers", lambda _, save_directory, **__: Path(save_directory) / "tokenizer.json"


def _native(make: Callable[..., Any], library: str, place: Callable[..., Any], disk: Disk) -> Callable[..., Any]:
    """`make` under the injector. The system itself refuses what is too much, so that the library fails as it really does."""

    def made(*arguments: Any, **options: Any) -> Any:
        path = Path(place(*arguments, **options))

        def half() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (_TORN, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            make(*arguments, **options)

        if path.is_relative_to(disk.root):
            disk.step(library, path, half)
        return make(*arguments, **options)

    return made


@contextlib.contextmanager
def injected(disk: Disk) -> Any:
    """Puts `disk` under everything that writes."""
    write, fsync, replace, truncate, opened, env = os.write, os.fsync, os.replace, os.ftruncate, io.open, lmdb.open

    def os_write(fd: int, data: Any) -> int:
        name = disk.named(fd)
        if name is None:
            return write(fd, data)
        done = 0

        def half() -> None:
            nonlocal done
            done = write(fd, bytes(data)[: len(data) // 2])

        return write(fd, data) if disk.step("write", name, half) else done

    def os_fsync(fd: int) -> None:
        name = disk.named(fd)
        if name is None or disk.step("fsync", name):
            fsync(fd)

    def os_ftruncate(fd: int, size: int) -> None:
        name = disk.named(fd)
        if name is not None:
            # To cut something off needs no room: only an end of the process can come between.
            disk.step("truncate", name, spared=disk.fault in ("full", "short"))
        truncate(fd, size)

    def rename(source: Any, target: Any, **options: Any) -> None:
        if not Path(target).is_relative_to(disk.root) or disk.step("rename", target):
            replace(source, target, **options)

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            sent = 0

            def half() -> None:
                nonlocal sent
                sent = io.FileIO.write(self, bytes(data)[: max(1, len(data) // 2)])

            name = disk.named(self.fileno())
            return io.FileIO.write(self, data) if name is None or disk.step("write", name, half) else sent

    def open_(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        if set(mode) & set("wax") and not isinstance(file, int) and Path(file).absolute().is_relative_to(disk.root):
            binary = io.BufferedWriter(Raw(file, mode.replace("b", "").replace("t", "")))
            text = options.get("encoding") or "utf-8"
            return binary if "b" in mode else io.TextIOWrapper(binary, encoding=text, write_through=True)
        return opened(file, mode, buffering, *rest, **options)

    def lmdb_open(path: str, **options: Any) -> Any:
        return _Commits(env(path, **options), disk)

    with contextlib.ExitStack() as stack:
        for where, name, library, place in _natives():
            stack.enter_context(mock.patch.object(where, name, _native(getattr(where, name), library, place, disk)))
        for where, name, new in (
            (os, "write", os_write),
            (os, "fsync", os_fsync),
            (os, "replace", rename),
            (os, "rename", rename),
            (os, "ftruncate", os_ftruncate),
            (io, "open", open_),
            (builtins, "open", open_),
            (lmdb, "open", lmdb_open),
        ):
            stack.enter_context(mock.patch.object(where, name, new))
        yield
