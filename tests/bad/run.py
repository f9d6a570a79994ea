"""Runs a command line in this process and keeps its output, its error, what it wrote, and every file it touched."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import typer

from bad.world import Case, World
from cos_cli import main

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.utime"}
_BEYOND = {"socket.connect", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"}


@dataclass
class Touched:
    """Paths opened for reading, paths written or changed, and programs started or places connected to."""

    read: set[Path] = field(default_factory=set)
    written: set[Path] = field(default_factory=set)
    beyond: list[str] = field(default_factory=list)

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, int) or path is None:
                return
            writes = any(m in mode for m in "wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            (self.written if writes else self.read).add(_real(path))
        elif event in _CHANGES:
            self.written.update(_real(p) for p in arguments[:2] if isinstance(p, str | bytes | os.PathLike))
        elif event in _BEYOND:
            self.beyond.append(f"{event} {arguments[0]}")


_watching: Touched | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching is not None and (event == "open" or event in _CHANGES or event in _BEYOND):
        _watching.note(event, arguments)


def _real(path: Any) -> Path:
    return Path(os.path.realpath(os.fsdecode(path)))


_installed: list[bool] = []


@contextlib.contextmanager
def watched() -> Iterator[Touched]:
    """What this process touches meanwhile. An audit hook cannot be taken out again, so there is one for all."""
    global _watching
    if not _installed:
        sys.addaudithook(_hook)
        _installed.append(True)
    _watching = touched = Touched()
    try:
        yield touched
    finally:
        _watching = None


@dataclass
class Outcome:
    """`error`: the type of the exception that ended the command, "" for none; `kept`: the files that were not there before."""

    code: int
    error: str
    out: str
    err: str
    touched: Touched
    kept: list[str]
    arguments: list[str]

    def strayed(self, folder: Path) -> list[str]:
        """What was written outside the case's own folder, save where the command line said so, and programs and places."""
        given = tuple(Path(a) for a in self.arguments if a.startswith("/proc/"))
        paths = {p for p in self.touched.written if not p.is_relative_to(folder) and str(p) != os.devnull}
        # A merge keeps writers out of its parts while it reads them, and a reader of a store is known to its writers.
        locks = {p for p in paths if p.name in ("writer.lock", "lock.mdb")}
        paths -= {p for p in locks if str(p.parent) in map(os.path.realpath, self.arguments)}
        paths -= {p for p in paths if any(p.is_relative_to(g) or g.is_relative_to(p) for g in given)}
        return sorted(map(str, paths)) + self.touched.beyond

    def peeped(self, world: World, folder: Path) -> list[str]:
        """What was read beside the world and the case: the secret, and other cases' folders."""
        root = world.root.parent
        alien = [p for p in self.touched.read if p.is_relative_to(root) and not p.is_relative_to(folder)]
        return sorted(str(p) for p in alien if p.is_relative_to(world.secret) or not p.is_relative_to(world.root))


@cache
def _commands() -> Any:
    return typer.main.get_command(main.app)


def run(arguments: list[str]) -> int:
    """`main.run`, with Typer's tree of commands made once instead of for every call: most of a short call's time."""
    return _run(arguments)[0]


def _run(arguments: list[str]) -> tuple[int, str]:
    """(exit code, type of the exception that ended the command)."""
    commands, raised = _commands(), []

    def app(**options: Any) -> Any:
        try:
            return commands(**options)
        except Exception as error:
            raised.append(type(error).__name__)
            raise

    with mock.patch.object(main, "app", app):
        code = main.run(arguments)
    return code, "".join(raised)


def warm(world: World) -> None:
    """Loads a model once: what torch and transformers do when they are imported is no case's doing."""
    words = ["infer", "--model", "miniature", "--image", str(world.images / "a.png"), "--question", "q?"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if code := run(words):
            raise AssertionError(f"the miniature does not answer: exit code {code}")


def call(case: Case, world: World, folder: Path) -> Outcome:
    """Runs the case in `folder`, which becomes the working directory. PATH is empty: no program of the machine is needed."""
    arguments = [str(a) for a in case.arguments(world, folder)]
    before = {p for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()}
    scratch = folder / "tmp"
    scratch.mkdir()
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, {"PATH": "", "TERM": "dumb", "COLUMNS": "200", "NO_COLOR": "1"}),
        mock.patch.object(tempfile, "tempdir", str(scratch)),
        mock.patch.object(sys, "dont_write_bytecode", True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        watched() as touched,
    ):
        code, error = _run(arguments)
    left = {p for p in folder.rglob("*") if p.is_file()} - before
    kept = sorted(str(p.relative_to(folder)) for p in left)
    return Outcome(code, error, out.getvalue(), err.getvalue(), touched, kept, arguments)
