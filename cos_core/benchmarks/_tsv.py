"""Tables of questions with their pictures inside, base64 in a cell: the layout of OpenCompass (MMBench, HR-Bench)."""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from msgspec import structs

from cos_core.benchmarks import _files
from cos_core.data.sheets import MISSING
from cos_core.errors import InputError
from cos_core.files import manifest
from cos_core.files.durable import atomic_write
from cos_core.files.jsonl import decode, open_input
from cos_core.types import Example

_CELL_LIMIT = 256 * 2**20
"""An 8K picture is 30 MB and more of base64."""


_INDEX = re.compile(r"[0-9]{1,18}")


FIELDS = ("index", "question", "A", "B")
ExampleOfRow = Callable[[Mapping[str, str], str], Example]


def rows(path: Path, fields: Sequence[str] = FIELDS) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, cells) of each row. Raises InputError: no table, one of `fields` is missing, an index is no number."""
    csv.field_size_limit(_CELL_LIMIT)
    try:
        with open_input(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            for row in reader:
                cells = {key: value for key, value in row.items() if isinstance(key, str) and isinstance(value, str)}
                _files.demand(cells, fields, f"{path}:{reader.line_num}")
                if _INDEX.fullmatch(cells["index"]) is None:
                    raise InputError(f"{path}:{reader.line_num}: the index {cells['index'][:40]!r} is not a number")
                yield reader.line_num, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table: {error}") from None


# --- pictures ---

_ROW = re.compile(r"[0-9]{1,18}(?:\.0*)?")
_LITERAL = re.compile(r"""b?(['"])(.*)\1""", re.DOTALL)
_NO_LETTERS = re.compile(r"\s|\\[rnt]")
"""White space in base64, as it is and as Python writes it."""
_SHOWN_OF_BAD = 1024


def picture_of(cell: str) -> bytes:
    """The file in a cell: base64 with or without line breaks and padding, of either alphabet, as a data: URI, in quotes, or as
    a list of one. Raises ValueError with the reason."""
    text = cell.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1].strip().removesuffix(",")
    if (literal := _LITERAL.fullmatch(text)) is not None:
        text = literal[2]
    if text[:5].lower() == "data:":
        about, comma, text = text.partition(",")
        if not comma or not about.lower().endswith(";base64"):
            raise ValueError("it is a data: URI without base64")
        text = unquote(text)
    letters = _NO_LETTERS.sub("", text).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        content = base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("it is not base64 of one file") from None
    if not content:
        raise ValueError("it is empty")
    return content


def _row_named(cell: str) -> str | None:
    """The index that a cell names instead of holding a picture."""
    text = cell.strip()
    return str(int(text.partition(".")[0])) if _ROW.fullmatch(text) else None


class Pictures:
    """The picture that each row of a table shows, and the name under which it is unpacked.

    A cell holds a picture, or the index of the row that does (that row may name another one). `stem`: the name under which the
    picture of an index is kept; a row that holds another picture than the first row of the same name gets its own index.
    """

    def __init__(self, stem: Callable[[str], str]) -> None:
        self._stem = stem
        self._first: dict[str, bytes] = {}
        self._own: dict[str, str] = {}
        self._named: dict[str, str] = {}
        self._ends: dict[str, tuple[str, ...]] = {}

    def add(self, row: Mapping[str, str]) -> None:
        """Records the next row's cell."""
        index, cell = row["index"], row.get("image", "")
        if (other := _row_named(cell)) is not None:
            self._named[str(int(index))] = other
            return
        stem = self._stem(index)
        if cell.strip() and self._first.setdefault(stem, mark := _mark(cell)) != mark:
            stem = index
        self._own[str(int(index))] = stem

    def file(self, index: str) -> str:
        """The name of the picture that a row shows, whatever its cell names; its own index where there is none.

        For a row that names another one, call it after all rows were added.
        """
        kind, *rows = self._end(str(int(index)))
        return f"{self._own[rows[0]] if kind == 'own' else index}.jpg"

    def problems(self) -> list[str]:
        """Messages about rows whose cells lead to no picture: they name each other, or a row that is not there."""
        ends = Counter(self._end(index) for index in self._named)
        return [_lost(kind, rows, count) for (kind, *rows), count in ends.items() if kind != "own"]

    def _end(self, start: str) -> tuple[str, ...]:
        """Where the cells lead from a row: ("own", the row that holds the picture), ("gone", a row), or ("circle", rows)."""
        path: dict[str, int] = {}
        at = start
        while at in self._named and at not in self._ends and at not in path:
            path[at] = len(path)
            at = self._named[at]
        if at in path:
            end: tuple[str, ...] = ("circle", *list(path)[path[at] :])
        else:
            end = self._ends.get(at, ("own" if at in self._own else "gone", at))
        self._ends.update(dict.fromkeys(path, end))
        return end


def examples(path: Path, fields: Sequence[str], stem: Callable[[str], str], example: ExampleOfRow) -> list[Example]:
    """The questions of a table, each with the file name of its picture. `example`: (cells, place of the row) -> Example."""
    pictures, result = Pictures(stem), []
    for line, row in rows(path, fields):
        pictures.add(row)
        result.append(example(row, f"{path}:{line}"))
    return [structs.replace(example, image=pictures.file(example.id)) for example in result]


def _lost(kind: str, rows: list[str], count: int) -> str:
    if kind == "gone":
        return f"{count} rows show the picture of row {rows[0]}, which is not in the table"
    return f"{count} rows show no picture: their image cells name each other in a circle ({', '.join(rows[:5])})"


def unpack(path: Path, folder: Path, stem: Callable[[str], str]) -> list[str]:
    """Writes the pictures of a table into `folder`, where the files there differ; returns messages about problems.

    Each appears whole, by rename. What was written is noted beside the folder, with digests of the cells and the files' times,
    so that a picture that was cut short, changed, or comes from another table is written anew, and nothing else is. A cell that
    is no picture costs its own question: its text takes the picture's place, which no reader opens. Raises InputError for a
    table or folder that cannot be used.
    """
    pictures, notes = Pictures(stem), folder.with_name(f".{folder.name}.unpacked.json")
    before, unpacked, problems = _read_notes(notes), dict[str, list[object]](), list[str]()
    for line, row in rows(path):
        pictures.add(row)
        cell = row.get("image", "")
        if not cell.strip() or _row_named(cell) is not None or (name := pictures.file(row["index"])) in unpacked:
            continue
        mark, target = _mark(cell).hex(), folder / name
        if (state := _state(target)) is None or before.get(name) != [mark, *state]:
            try:
                data = picture_of(cell)
            except ValueError as error:
                problems.append(f"{path}:{line}: the picture of row {row['index']} cannot be unpacked: {error}")
                data = cell.encode("utf-8", "replace")[:_SHOWN_OF_BAD]
            if state is None or state[0] != len(data) or target.read_bytes() != data:
                atomic_write(target, data)
        unpacked[name] = [mark, *(_state(target) or ())]
    if unpacked != before:
        # In a folder that others prepared, read-only, everything is compared each time.
        with suppress(InputError):
            atomic_write(notes, manifest.canonical(unpacked))
    return [*problems, *(f"{path}: {words}" for words in pictures.problems())]


def _mark(cell: str) -> bytes:
    return hashlib.blake2b(cell.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _state(path: Path) -> tuple[int, int] | None:
    """(bytes, time of the last change in ns) of a file; None without one. Raises InputError."""
    try:
        info = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return info.st_size, info.st_mtime_ns


def _read_notes(path: Path) -> dict[str, list[object]]:
    """The notes that `unpack` wrote; empty where they cannot be read."""
    with suppress(OSError, ValueError):
        notes = decode(path.read_bytes())
        if isinstance(notes, dict):
            return notes
    return {}


# --- options ---

LETTERS = "ABCD"


def blank(cell: str | None) -> bool:
    """Whether a cell is empty to LLaVA's reader, and to VLMEvalKit's: a missing value as pandas reads it, or "none" or "nan" in
    any case."""
    return cell is None or cell in MISSING or cell.lower() in ("nan", "none")


def first_options(row: Mapping[str, str]) -> dict[str, str]:
    """Options from A on, up to the first that is blank: those that LLaVA's reader shows (model_vqa_mmbench.py, get_options)."""
    result: dict[str, str] = {}
    for letter in LETTERS:
        if blank(row.get(letter)):
            break
        result[letter] = row[letter]
    return result


def all_options(row: Mapping[str, str], least: str = "") -> dict[str, str]:
    """Every option that is not blank, and the option `least` even if blank."""
    cells = ((letter, row.get(letter, "")) for letter in LETTERS)
    return {letter: cell for letter, cell in cells if letter == least or not blank(cell)}
