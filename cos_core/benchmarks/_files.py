"""Reads the official files of benchmarks below a data root; a missing or wrong file raises InputError with one sentence."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cos_core.errors import InputError
from cos_core.files.jsonl import decode, open_input, read_lines
from cos_core.files.text import read_text
from cos_core.interfaces import Benchmark, Need

SUMS = "SHA256SUMS"


def other_version(need: Need, root: Path) -> str | None:
    """A message for a file that is not the published version, None otherwise. Raises InputError when it cannot be read."""
    path = need.path(root)
    if need.md5 is None or path is None:
        return None
    digest = _digest(path, "md5")
    return None if digest == need.md5 else f"{path} has the MD5 {digest}, the published file {need.md5}: another version"


def _digest(path: Path, method: str) -> str:
    try:
        with path.open("rb") as data:
            return hashlib.file_digest(data, method).hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def check_sums(root: Path) -> int:
    """Compares the files with SHA256SUMS (as `sha256sum` writes it) where the data folder has one; returns how many it names.

    Raises InputError for a file that is missing or differs, or a line that is none.
    """
    path = root / SUMS
    if not path.is_file():
        return 0
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    for number, line in enumerate(lines, 1):
        digest, _, name = line.partition(" ")
        file = root / name.strip().removeprefix("*")
        if len(digest) != 64 or not name.strip():
            raise InputError(f"{path}:{number}: expected a SHA-256 and a file name")
        actual = _digest(file, "sha256")
        if actual != digest.lower():
            raise InputError(f"{file} is not the file that {path}:{number} names: its SHA-256 is {actual}")
    return len(lines)


_POINTER = b"version https://git-lfs.github.com/spec/"


def optional(root: Path, *names: str) -> Path | None:
    """The first of `names` (paths below `root`) that is a file, or None.

    Raises InputError when that holds the address of a file instead of the file, as a clone without Git LFS leaves it.
    """
    path = next((root / name for name in names if (root / name).is_file()), None)
    if path is not None and _begins(path, _POINTER):
        raise InputError(f"{path} is a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'")
    return path


def _begins(path: Path, mark: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(mark)) == mark
    except OSError:
        return False  # reading the file raises the error


def home(data: Path, name: str, benchmark: Benchmark) -> Path:
    """The folder of one benchmark's files: the one of its name below `data`, else `data` itself.

    `benchmark.folders`: other names of that folder (LLaVA's `playground/data/eval` has `MME`, `seed_bench`, `mm-vet`).
    """
    names = dict.fromkeys((name, *benchmark.folders))
    return next((data / folder for folder in names if (data / folder).is_dir()), data)


def require(root: Path, *names: str, source: str) -> Path:
    """The first of `names` that is a file. Raises InputError with the names and `source`, where to get them."""
    path = optional(root, *names)
    if path is None:
        missing = f"the folder {root} does not exist" if not root.is_dir() else f"{root} has no {' or '.join(names)}"
        raise InputError(f"{missing}; {source}")
    return path


def image_root(root: Path, *names: str) -> Path:
    """The first folder of `names` below `root`, else `root` itself."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file. Raises InputError."""
    try:
        data = decode(_whole(path))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} should hold one JSON object, found a {type(data).__name__}")
    return data


def _whole(path: Path) -> bytes:
    """The bytes of a text file, without its byte order mark. Raises InputError."""
    with open_input(path) as file:
        try:
            return file.read().removeprefix(codecs.BOM_UTF8)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from None


def rows(path: Path, fields: Iterable[str]) -> list[tuple[int, dict[str, Any]]]:
    """(line, object) of each line of a JSON Lines file. Raises InputError for a line that lacks one of `fields`."""
    result = list(read_lines(path))
    for line, row in result:
        demand(row, fields, f"{path}:{line}")
    return result


def demand(row: object, fields: Iterable[str], where: str) -> None:
    """Raises InputError, beginning with `where`, when `row` is not an object or lacks one of `fields`."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, found a {type(row).__name__}")
    missing = [name for name in fields if name not in row]
    if missing:
        raise InputError(f"{where}: no field {missing[0]!r}")


def listed(path: Path, key: str) -> list[Any]:
    """The list under `key` of a JSON object file. Raises InputError."""
    data = read_object(path)
    if not isinstance(data.get(key), list):
        raise InputError(f"{path} has no list {key!r}")
    return list(data[key])
