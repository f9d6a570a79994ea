"""Tables of questions with their pictures inside, base64 in a cell: the layout of OpenCompass (MMBench, HR-Bench)."""

from __future__ import annotations

import base64
import binascii
import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from cos_core.benchmarks import _files
from cos_core.errors import InputError

_CELL_LIMIT = 256 * 2**20
"""An 8K picture is 30 MB and more of base64."""


def rows(path: Path, fields: tuple[str, ...] = ("index", "question", "A", "B")) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, cells) of each row. Raises InputError: no table, one of `fields` is missing, an index is no number."""
    csv.field_size_limit(_CELL_LIMIT)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            for row in reader:
                cells = {key: value for key, value in row.items() if isinstance(key, str) and isinstance(value, str)}
                _files.demand(cells, fields, f"{path}:{reader.line_num}")
                if not cells["index"].isdigit():
                    raise InputError(f"{path}:{reader.line_num}: the index {cells['index'][:40]!r} is not a number")
                yield reader.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table: {error}") from None


def unpack(cell: str, target: Path, where: str) -> None:
    """Writes a cell's picture to `target` unless it is there. A short cell is none: it names the row that has the picture.

    Raises InputError, beginning with `where`.
    """
    if target.exists() or len(cell) <= 64:
        return
    try:
        target.write_bytes(base64.b64decode(cell, validate=True))
    except (OSError, binascii.Error) as error:
        raise InputError(f"{where}: the picture cannot be unpacked: {error}") from None


def blank(cell: str | None) -> bool:
    """Whether a cell says nothing: empty, or a missing value as pandas writes it."""
    return cell is None or cell.lower() in ("", "nan", "none")


def options(row: Mapping[str, str]) -> dict[str, str]:
    """Options from A on, up to the first that is missing, as LLaVA's reader takes them."""
    result: dict[str, str] = {}
    for letter in "ABCD":
        if blank(row.get(letter)):
            break
        result[letter] = row[letter]
    return result
