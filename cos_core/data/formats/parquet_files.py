"""Parquet files that are written in pieces: row groups of bounded memory, several files where there is much."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from cos_core.errors import InputError
from cos_core.files.durable import sync_folder
from cos_core.system.arrow import pyarrow

GROUP_ROWS = 16_384
GROUP_BYTES = 32 * 2**20
"""A row group ends at so many rows, or at so many bytes of maps and pictures in it."""
SHARD_ROWS = 1_000_000
SHARD_BYTES = 400 * 2**20
"""A file ends at so many rows or bytes; the hub asks for files below 500 MB."""


class Rows:
    """Rows of one table, written to a file as they come: a row group whenever GROUP_ROWS or GROUP_BYTES are reached.

    `schema`: a pyarrow schema, whose metadata the file gets. `texts`: columns whose values repeat, kept once a row group.
    """

    def __init__(self, file: BinaryIO, schema: Any, texts: Sequence[str] = ()) -> None:
        self._arrow = pyarrow()
        self._schema = schema
        self._writer = self._arrow.parquet.ParquetWriter(
            file, schema, compression="zstd", use_dictionary=list(texts), write_statistics=False
        )
        self._rows: list[Mapping[str, Any]] = []
        self._heavy = 0
        self.count = 0

    def add(self, row: Mapping[str, Any], heavy: int = 0) -> None:
        """Adds a row; `heavy`: the bytes of its maps and pictures."""
        self._rows.append(row)
        self._heavy += heavy
        self.count += 1
        if len(self._rows) >= GROUP_ROWS or self._heavy >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Writes what is left, and the file's end."""
        if self._rows:
            self._flush()
        self._writer.close()

    def abandon(self) -> None:
        """Leaves the file without its end; pyarrow's writer would write that when it is collected, to a file that is closed."""
        self._writer.is_open = False

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self.abandon()

    def _flush(self) -> None:
        columns = [self._arrow.array([row.get(f.name) for row in self._rows], f.type) for f in self._schema]
        self._writer.write_table(self._arrow.Table.from_arrays(columns, schema=self._schema), row_group_size=len(self._rows))
        self._rows, self._heavy = [], 0


class Shards:
    """Files `train-00000-of-00004.parquet` ... of one table, in a folder; see `shards`."""

    def __init__(self, folder: Path, schema: Any, texts: Sequence[str]) -> None:
        self._folder = folder
        self._schema = schema
        self._texts = texts
        self._file: BinaryIO | None = None
        self._rows: Rows | None = None
        self.files = 0
        self.count = 0

    def add(self, row: Mapping[str, Any], heavy: int = 0) -> None:
        """See Rows.add."""
        if self._file and self._rows and (self._rows.count >= SHARD_ROWS or self._file.tell() >= SHARD_BYTES):
            self.close()
        if self._rows is None:
            self._file = (self._folder / f"{self.files}.parquet").open("xb")
            self._rows = Rows(self._file, self._schema, self._texts)
            self.files += 1
        self._rows.add(row, heavy)
        self.count += 1

    def abandon(self) -> None:
        """Leaves the file that is being written without its end."""
        if self._rows is not None and self._file is not None:
            self._rows.abandon()
            self._file.close()

    def close(self) -> None:
        """Ends the file that is being written."""
        if self._rows is not None and self._file is not None:
            self._rows.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._rows = self._file = None


@contextmanager
def shards(folder: Path, schema: Any, texts: Sequence[str] = ()) -> Iterator[Shards]:
    """Files of one table, written beside `folder` and put in its place when the block ends well.

    `folder` is replaced whole; it may hold parquet files only. At least one file is written. Raises InputError for a folder
    with something else in it, and when the disk refuses.
    """
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    made = Shards(scratch, schema, texts)
    try:
        if folder.exists() and (others := sorted(p.name for p in folder.iterdir() if p.suffix != ".parquet")):
            raise InputError(f"{folder} holds {others[0]!r}, which is no parquet file; name another folder")
        scratch.mkdir(parents=True)
        yield made
        if not made.files:
            with (scratch / "0.parquet").open("xb") as file:
                Rows(file, schema, texts).close()
            made.files = 1
        made.close()
        for number in range(made.files):
            (scratch / f"{number}.parquet").rename(scratch / f"train-{number:05d}-of-{made.files:05d}.parquet")
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from None
    finally:
        made.abandon()
        shutil.rmtree(scratch, ignore_errors=True)


def files_of(path: Path) -> tuple[Path, ...]:
    """The parquet files of an export: `path` itself, or those in the folder `path` or its `data`, by name.

    Raises InputError for a folder without any.
    """
    if not path.is_dir():
        return (path,)
    for folder in (path / "data", path):
        if found := tuple(sorted(folder.glob("*.parquet"))):
            return found
    raise InputError(f"{path} holds no parquet file, nor does its folder data")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A pyarrow ParquetFile. Raises InputError for a file that is none, inside the block, too."""
    arrow = pyarrow()
    try:
        with arrow.parquet.ParquetFile(path, memory_map=False) as file:
            yield file
    except (arrow.ArrowException, OSError) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as parquet: {words}") from None
