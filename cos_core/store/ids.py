"""The ids of a store by their beginnings, for completion: opens in milliseconds, because it reads only keys.

`annotations` has the rest; its import takes as long as numpy's.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb

_TABLE = b"annotations"
_TABLES = 8


class StoreIds:
    """The keys of a store's annotations (ids in UTF-8), in order; a context manager. Raises lmdb.Error for anything else."""

    def __init__(self, path: Path | str) -> None:
        options: dict[str, Any] = {"readonly": True, "create": False, "max_dbs": _TABLES}
        try:
            self._env = lmdb.open(os.fsencode(path), lock=True, **options)
        except lmdb.Error:
            # Without write permission this process cannot enter the reader table.
            self._env = lmdb.open(os.fsencode(path), lock=False, **options)
        self._txn = self._env.begin(self._env.open_db(_TABLE, create=False))
        self._cursor = self._txn.cursor()

    def at_or_after(self, key: bytes) -> bytes | None:
        """The first key that is not smaller than `key`."""
        there = self._cursor.set_range(key) if key else self._cursor.first()
        return bytes(self._cursor.key()) if there else None

    def before(self, key: bytes | None) -> bytes | None:
        """The last key that is smaller than `key`; of all keys when None."""
        there = self._cursor.prev() if key is not None and self._cursor.set_range(key) else self._cursor.last()
        return bytes(self._cursor.key()) if there else None

    def __enter__(self) -> StoreIds:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cursor.close()
        self._txn.abort()
        self._env.close()
