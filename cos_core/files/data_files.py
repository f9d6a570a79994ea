"""The files of a data set, as a command line names them: globs and folders of the library `datasets` become files, gzip is
unpacked while it is read; and which of their columns are meant."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from glob import glob
from io import BufferedReader
from pathlib import Path
from typing import Any

from cos_core.errors import InputError
from cos_core.files.jsonl import open_input
from cos_core.files.plug import nearest
from cos_core.files.text import one_line

GZIP = b"\x1f\x8b"
"""The first bytes of a file that gzip packed."""

COLUMNS = (
    *("question", "answer", "answers", "choices", "image", "id", "question_id"),
    *("conversations", "messages", "text", "dataset", "meta"),
)
"""What a column of a data file can be read as."""

_WILD = frozenset("*?[")


def expanded(paths: Sequence[Path]) -> list[Path]:
    """`paths` with each glob replaced by the files that it fits, sorted, and each folder that `datasets` saved by its files.

    Raises InputError for a glob that fits nothing and for a folder of several splits.
    """
    return [file for path in paths for file in _files(path)]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return _saved(path)
    if _WILD.isdisjoint(str(path)) or path.exists():
        return [path]
    named = glob(str(path), recursive=True)  # noqa: PTH207
    files = sorted(Path(each) for each in named if Path(each).is_file())
    if not files:
        raise InputError(f"no file is called {path}")
    return files


def _saved(folder: Path) -> list[Path]:
    """The Arrow files of a folder that `Dataset.save_to_disk` wrote, in their order; any other folder as it is."""
    splits = sorted(each.parent.name for each in folder.glob("*/state.json"))
    if (folder / "dataset_dict.json").is_file() and splits:
        raise InputError(f"{folder} holds the splits {', '.join(map(one_line, splits))}; name one: {folder / splits[0]}")
    if not (folder / "state.json").is_file():
        return [folder]
    try:
        with open_input(folder / "state.json") as file:
            names = [each["filename"] for each in json.loads(file.read(_STATE))["_data_files"]]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{folder / 'state.json'} does not list the files of a data set") from None
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise InputError(f"{folder / 'state.json'} names no files beside it")
    return [folder / name for name in names]


_STATE = 2**22


def open_data(path: Path) -> BufferedReader:
    """`open_input` of a data file, unpacked where gzip packed it. Raises InputError there and for a damaged packed file."""
    file = open_input(path)
    if file.peek(len(GZIP))[: len(GZIP)] != GZIP:
        return file
    return BufferedReader(_Unpacked(path, file), 2**16)


def is_packed(path: Path) -> bool:
    """Whether gzip packed the file. Raises InputError when it cannot be read."""
    with open_input(path) as file:
        return file.read(len(GZIP)) == GZIP


class _Unpacked(io.RawIOBase):
    """The content of a gzip file; seeking is slow."""

    def __init__(self, path: Path, file: BufferedReader) -> None:
        self._path, self._packed, self._file = path, file, gzip.GzipFile(fileobj=file)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            content = self._file.read(len(buffer))
        except (EOFError, zlib.error, OSError) as error:
            raise InputError(f"{self._path} is packed with gzip and cannot be unpacked: {one_line(str(error), 120)}") from None
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
            self._packed.close()
        super().close()


def columns_text(text: str) -> str:
    """A value of --columns, checked by `columns_of`."""
    columns_of(text)
    return text


def columns_of(text: str | None) -> dict[str, str]:
    """`question=q,answer=a` as {"question": "q", "answer": "a"}: what is read -> the column's name in the file.

    Raises InputError for text of another form and for what no column is read as.
    """
    columns: dict[str, str] = {}
    for part in text.split(",") if text else ():
        name, mark, column = (each.strip() for each in part.partition("="))
        if not (name and mark and column):
            raise InputError(f"--columns is question=COLUMN,answer=COLUMN,..., got {one_line(part, 60)!r}")
        if name not in COLUMNS:
            raise InputError(f"--columns: nothing is read as {one_line(name, 40)!r}{nearest(name, list(COLUMNS))}")
        if name in columns:
            raise InputError(f"--columns names {name!r} twice")
        columns[name] = column
    return columns


def with_columns(record: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A record with its keys named as `columns` (`columns_of`) says. Raises InputError for a key that it lacks."""
    if not columns:
        return record
    for column in columns.values():
        if column not in record:
            close = get_close_matches(column, [key for key in record if len(key) < _KEY], 1)
            there = f"did you mean `{one_line(close[0], 40)}`?" if close else f"it has {_keys(record)}"
            raise InputError(f"the record has no `{one_line(column, 40)}` (--columns); {there}")
    kept = {key: value for key, value in record.items() if key not in columns and key not in columns.values()}
    return {**kept, **{name: record[column] for name, column in columns.items()}}


_KEY = 40
_SHOWN = 8


def _keys(record: dict[str, Any]) -> str:
    names = [f"`{one_line(key, _KEY)}`" for key in list(record)[:_SHOWN]]
    return ", ".join(names) + (", ..." if len(record) > _SHOWN else "") if names else "no keys"
