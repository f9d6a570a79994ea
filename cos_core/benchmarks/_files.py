"""Reads the official files of benchmarks: finds them under the data root and says in one sentence what is missing or wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cos_core.errors import InputError
from cos_core.jsonl import read_lines


def optional(root: Path, *names: str) -> Path | None:
    """The first of `names` (paths below `root`) that is a file, or None."""
    return next((root / name for name in names if (root / name).is_file()), None)


def require(root: Path, *names: str, source: str) -> Path:
    """The first of `names` that is a file. Raises InputError that names them and says where they come from."""
    found = optional(root, *names)
    if found is None:
        missing = f"the folder {root} does not exist" if not root.is_dir() else f"{root} has no {' or '.join(names)}"
        raise InputError(f"{missing}; {source}")
    return found


def image_root(root: Path, *names: str) -> Path:
    """The first folder of `names` below `root`, else `root` itself."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def read_object(path: Path) -> dict[str, Any]:
    """The one JSON object that a file holds. Raises InputError."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path} should hold one JSON object, found a {type(data).__name__}")
    return data


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
