"""Parquet and Arrow tables as records, some rows at a time: no memory grows with the file.

Nothing of a file is run: pyarrow rebuilds no pickled types. Pictures inside a table
(`{"bytes": ..., "path": ...}`, as the library `datasets` writes them, or bytes alone) go through `Pictures`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cos_core.data.records import picture_keys
from cos_core.errors import InputError
from cos_core.files.jsonl import open_input
from cos_core.files.text import one_line
from cos_core.system.arrow import pyarrow

PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
"""First bytes: a Parquet file, an Arrow file (feather), an Arrow stream (as `save_to_disk` writes)."""

Pictures = Callable[[bytes], str]
"""The content of a picture file -> the path that stands for it. Raises UnusablePictureError for content that is none, and
InputError where pictures are not unpacked."""


_ROWS = 64
"""Rows that are turned into records at a time; pictures may stand in them."""


class UnusablePictureError(ValueError):
    """The bytes in a row are no picture."""


def refuse_pictures(path: Path) -> Pictures:
    """`Pictures` of a reader that opens pictures as files."""

    def refuse(_content: bytes) -> str:
        raise InputError(
            f"{path} holds the pictures themselves; this writes them out: "
            f"cos data convert {one_line(path.name, 80)} --out questions.jsonl --pictures pictures"
        )

    return refuse


def is_table(start: bytes) -> bool:
    """Whether a file that begins with `start` is a Parquet or Arrow table."""
    return start.startswith((PARQUET, ARROW_FILE, ARROW_STREAM))


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row from 1, record) of each row, with values as pyarrow gives them (`with_paths` makes them plain).

    Raises InputError for a damaged table, MissingError without pyarrow.
    """
    number = 0
    for batch in _batches(path):
        for start in range(0, batch.num_rows, _ROWS):
            with _damage(path):
                values = batch.slice(start, _ROWS).to_pylist()
            for value in values:
                number += 1
                yield number, value


def with_paths(record: Mapping[str, Any], pictures: Pictures) -> dict[str, Any]:
    """A row as JSON has it: pictures by their paths; other bytes, NaN and infinite numbers as null; times as text."""
    named = picture_keys(tuple(record))
    return {key: _plain(value, pictures if key in named else None) for key, value in record.items()}


def _batches(path: Path) -> Iterator[Any]:
    arrow = pyarrow(path)
    with open_input(path) as file:
        start = file.read(len(ARROW_FILE))
    with _damage(path):
        if start.startswith(PARQUET):
            with arrow.parquet.ParquetFile(path, pre_buffer=False, memory_map=True) as table:
                yield from _each(path, table.iter_batches(batch_size=_ROWS))
            return
        with arrow.memory_map(str(path)) as source:
            if start.startswith(ARROW_FILE):
                opened = arrow.ipc.open_file(source)
                yield from _each(path, (opened.get_batch(k) for k in range(opened.num_record_batches)))
            else:
                yield from _each(path, iter(arrow.ipc.open_stream(source)))


def _each(path: Path, batches: Iterator[Any]) -> Iterator[Any]:
    """The batches, checked: offsets that lead out of a column are damage, too."""
    while True:
        with _damage(path):
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)
        yield batch


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What pyarrow raises on a damaged file as InputError."""
    try:
        yield
    except (pyarrow().ArrowException, OSError, ValueError, OverflowError) as error:
        words = one_line(str(error).partition("\n")[0], 120)
        raise InputError(f"{path} cannot be read as a Parquet or Arrow table: {words}") from None


def _plain(value: Any, pictures: Pictures | None) -> Any:
    """A value as JSON has it; bytes are a picture where `pictures` is given, else null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return pictures(value) if pictures is not None else None
    if isinstance(value, list):
        return [_plain(each, pictures) for each in value]
    if isinstance(value, dict):
        if pictures is not None and isinstance(value.get("bytes"), bytes):
            return pictures(value["bytes"])
        return {str(key): _plain(each, pictures) for key, each in value.items()}
    return str(value)
