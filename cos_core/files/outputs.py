"""Checks of output paths: a new name, or a file that the same command wrote before; never an input or another file.

A file of the command is recognised by the manifest beside it (`manifest.path_for`) that names the stage, by `MARK` in pictures
and pages, or by the shape of its first record. Links are followed: two names of one file are one file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from cos_core.errors import InputError
from cos_core.files import manifest
from cos_core.files.durable import check_output
from cos_core.files.jsonl import decode
from cos_core.files.locks import identity

MARK = "cos-toolkit"
"""The text that every picture and page written by cos contains."""
_ENDS = 2**16
"""Bytes that are read at both ends of a file."""

_MARKED = (b"\x89PNG", b"RIFF", b"%PDF", b"\xff\xd8", b"<!doctype html", b"<?xml")
"""First bytes of the file formats that contain MARK."""

IsOurs = Callable[[bytes], bool]
"""Whether a file with these first bytes is one that the command writes."""


def check_file(out: Path, stage: str, inputs: Iterable[Path | None], ours: IsOurs | None = None) -> None:
    """Raises InputError when writing `out` would destroy something: an input of the command, or a file that `stage` did not
    write. `ours`: recognises such a file by its content, where that is possible."""
    check_output(out)
    _refuse_inputs(out, inputs)
    content = _ends(out)
    if content and not _is_ours(content, ours) and _stage_beside(out) != stage:
        raise InputError(f"{out} is there already and was not written by cos {stage}; name another file, or move it away")


def check_folder(out: Path, stage: str, inputs: Iterable[Path | None], files: Mapping[str, IsOurs]) -> None:
    """Raises InputError for a folder that is an input, holds another stage's output, or has one of `files` (name -> check)
    from another program."""
    _refuse_inputs(out, inputs)
    if _stage_beside(out) not in (None, stage):
        raise InputError(f"{out} holds what cos {_stage_beside(out)} wrote; name another folder")
    for name, ours in files.items():
        if (content := _ends(out / name)) and not _is_ours(content, ours):
            raise InputError(f"{out / name} was not written by cos {stage}; name another folder, or move the file away")


def _is_ours(content: bytes, ours: IsOurs | None) -> bool:
    return (ours is not None and ours(content)) or (MARK.encode() in content and content.startswith(_MARKED))


def records_with(*keys: str) -> IsOurs:
    """The check that a JSON Lines file begins with a record that has these keys (`a|b`: one of them), or with a torn one."""

    def ours(head: bytes) -> bool:
        line, end, _ = head.partition(b"\n")
        try:
            record = decode(line)
        except ValueError:
            # Torn at its first record, by a kill or a full disk.
            return not end and line.strip(b"\0")[:2] in (b'{"', b"{", b"") and _first_key(line) in (*keys[0].split("|"), "")
        return isinstance(record, dict) and all(any(k in record for k in key.split("|")) for key in keys)

    return ours


def _first_key(line: bytes) -> str:
    key, closed, _ = line.strip(b"\0")[2:].partition(b'"')
    return key.decode("utf-8", "replace") if closed else ""


def beginning(*starts: bytes) -> IsOurs:
    """The check that a file begins with one of these bytes."""
    return lambda head: head.startswith(starts)


def _refuse_inputs(out: Path, inputs: Iterable[Path | None]) -> None:
    mine = identity(out)
    for path in inputs:
        if path is not None and mine is not None and identity(Path(path)) == mine:
            also = "" if str(path) == str(out) else f" ({path})"
            raise InputError(f"{out} is an input of this command{also} and would be overwritten; name another output")


def _ends(path: Path) -> bytes:
    """The first and last bytes of a file; b"" for none."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(_ENDS)
            size = file.seek(0, 2)
            file.seek(max(len(head), size - _ENDS))
            return head + file.read()
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise InputError(f"{path} cannot be read, so it is not overwritten: {error.strerror}") from None


def _stage_beside(out: Path) -> str | None:
    try:
        return manifest.read(manifest.path_for(out)).stage
    except InputError:
        return None
