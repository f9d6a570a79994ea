"""The LMDB environment under a Store: one handle a path and process, short transactions, a map that grows by itself."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import lmdb

from cos_core.errors import InputError
from cos_core.files.locks import identity, is_held, replaced
from cos_core.files.manifest import canonical, differences, plain

_DIFFERENCES_NAMED = 4
SCHEMA = 2
TABLES = ("annotations", "failures", "heats", "meta")
DATA, LOCK, WRITER = "data.mdb", "lock.mdb", "writer.lock"
PAGE = 1000
"""Records read in one transaction of a scan."""
_START_BYTES = 2**24
_READERS = 1024
_LOCK_BYTES = 2**17
"""Room for the table of so many readers."""
_NEARLY_FULL = 2**20
_MAPPED = 2**24
"""Bytes of values after which a scan gives the file's mapped pages back."""
_T = TypeVar("_T")
Rows = Sequence[tuple[bytes, bytes]]


class Handle:
    """One LMDB environment of this process, counted: LMDB forbids opening a path twice in a process.

    Every call is one short transaction under a lock, so that the map may grow in between and no reader holds back free pages.
    """

    _shared: ClassVar[dict[str, Handle]] = {}
    _table_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: Path, key: str, write: bool) -> None:
        self.path, self._key, self.writable = path, key, write
        self._users = 0
        self.meta: dict[str, Any] = {}
        self._open()

    @classmethod
    def share(cls, path: Path, write: bool) -> Handle:
        """This process's handle of `path`. Raises InputError: no store, broken, another schema, or open for reading already."""
        key = os.path.realpath(path)
        with cls._table_lock:
            handle = cls._shared.get(key)
            if handle is None:
                handle = cls._shared[key] = cls(path, key, write)
            elif write and not (handle.writable and handle._pid == os.getpid()):
                raise InputError(f"the store {path} is open for reading in this process; close it before writing")
            handle._users += 1
            return handle

    def release(self) -> None:
        with self._table_lock:
            self._users -= 1
            if self._users == 0:
                del self._shared[self._key]
                self._env.close()

    def _open(self) -> None:
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._connect()

    def _connect(self) -> None:
        new = not (self.path / DATA).exists()
        size = _START_BYTES if new else 0  # 0: as large as the last writer left it
        settings: dict[str, Any] = {"map_size": size, "max_dbs": len(TABLES), "max_readers": _READERS}
        try:
            if self.writable:
                if not _lock_is_whole(self.path):
                    raise InputError(f"the store {self.path} cannot be written: the disk is full")
                self._env = lmdb.open(os.fsencode(self.path), mode=0o666, **settings)
                self._env.reader_check()  # frees the slots of killed readers
            else:
                self._env = _open_reader(self.path, settings)
        except lmdb.Error as error:
            raise InputError(f"the store {self.path} cannot be opened: {error}") from None
        self._file = identity(self.path / DATA)
        try:
            self._refuse_a_cut_file()
            self._dbs = self._open_tables()
        except lmdb.DiskError as error:
            self._env.close()
            why = "the disk is full" if _is_full(self.path) else str(error)
            raise InputError(f"the store {self.path} cannot be written: {why}; the same command begins it anew") from None
        except lmdb.Error:
            self._env.close()
            raise InputError(f"{self.path} is an LMDB database, but not an annotation store of cos") from None
        except InputError:
            self._env.close()
            raise

    def _open_tables(self) -> dict[str, Any]:
        if self.writable:
            # All in one transaction: a job killed here leaves every table or none.
            with self._env.begin(write=True) as txn:
                if txn.stat()["entries"] == 0:
                    return {name: self._env.open_db(name.encode(), txn=txn) for name in TABLES}
        elif self._env.stat()["entries"] == 0:
            return {}  # killed before that
        meta = self._env.open_db(b"meta", create=False)
        with self._env.begin(meta) as txn:
            about = txn.get(b"about")
        self.meta = self._read(about) if about else {}
        if self.meta and self.meta.get("schema") != SCHEMA:
            raise InputError(
                f"the store {self.path} has schema {self.meta.get('schema')}, this version of cos reads {SCHEMA}; "
                "annotate into a new folder, or use the version that made it"
            )
        return {name: self._env.open_db(name.encode(), create=False) for name in TABLES}

    def _read(self, about: bytes) -> dict[str, Any]:
        """The store's record of schema, fingerprint and provenance. Raises InputError for a damaged one."""
        try:
            meta = json.loads(about)
        except ValueError:
            meta = None
        if not isinstance(meta, dict) or not isinstance(meta.get("fingerprint"), str) or "schema" not in meta:
            raise InputError(f"the store {self.path} is damaged: it does not say its schema and fingerprint; annotate again")
        return meta

    def _refuse_a_cut_file(self) -> None:
        """Raises InputError for a file whose end was lost: reading its mapped pages there would end the process (SIGBUS).

        LMDB may leave pages at the end unwritten that nothing refers to, so a short file is tried, in a child.
        """
        pages = self._env.info()["last_pgno"] + 1
        if (self.path / DATA).stat().st_size >= pages * self._env.stat()["psize"]:
            return
        child = os.fork()
        if child == 0:
            code = 1
            try:
                # The signal ends the child without a core file and without a handler of the parent's.
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                signal.signal(signal.SIGBUS, signal.SIG_DFL)
                code = 0 if _readable(self._env) else 1
            finally:
                os._exit(code)
        if os.waitpid(child, 0)[1] != 0:
            raise InputError(f"the store {self.path} is damaged: the end of {DATA} is missing; restore it or annotate again")

    def _living(self) -> None:
        """After a fork, gives the child a read-only handle of its own: LMDB's may not be used on both sides."""
        if self._pid != os.getpid():
            self._env.close()
            self.writable = False
            self._open()

    def start(self, fingerprint: str, provenance: Mapping[str, Any]) -> None:
        """Records the settings in a new store. Raises InputError when an old store has other settings."""
        if self.meta:
            if self.meta["fingerprint"] != fingerprint:
                changes = differences(self.meta.get("provenance", {}), plain(provenance))
                more = [f"and {len(changes) - _DIFFERENCES_NAMED} more"] if len(changes) > _DIFFERENCES_NAMED else []
                marks = [f"fingerprint {self.meta['fingerprint']}, now {fingerprint}"]
                named = "; ".join([*changes[:_DIFFERENCES_NAMED], *more] or marks)
                raise InputError(
                    f"the store {self.path} was made with other settings ({named}); choose a new folder or the same settings"
                )
            return
        created = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"schema": SCHEMA, "fingerprint": fingerprint, "provenance": plain(provenance), "created": created}
        self.commit({"meta": [(b"about", canonical(about))]})
        self.meta = about

    def commit(self, rows: Mapping[str, Rows], forget: Mapping[str, Sequence[bytes]] | None = None, weak: Rows = ()) -> None:
        """Writes rows by table, deletes keys by table, and writes the failures `weak` of ids without an annotation.

        All or nothing, on the disk when it returns; doubles a map that is too small. Raises InputError for a full disk.
        """
        self._living()
        while True:
            try:
                with self._guard, self._env.begin(write=True) as txn:
                    self._write(txn, rows, forget or {}, weak)
                if identity(self.path / DATA) != self._file:
                    raise replaced(f"the store {self.path}")
                return
            except lmdb.MapFullError:
                with self._guard:
                    self._env.set_mapsize(self._env.info()["map_size"] * 2)
            except lmdb.Error as error:
                why = "the disk is full" if _is_full(self.path) else str(error)
                raise InputError(
                    f"the store {self.path} cannot be written: {why}; what was committed is kept, the same command continues"
                ) from None

    def _write(
        self, txn: lmdb.Transaction, rows: Mapping[str, Rows], forget: Mapping[str, Sequence[bytes]], weak: Rows
    ) -> None:
        for name, keys in forget.items():
            if txn.stat(self._dbs[name])["entries"]:
                for key in keys:
                    txn.delete(key, db=self._dbs[name])
        for name, pairs in rows.items():
            with txn.cursor(self._dbs[name]) as cursor:
                cursor.putmulti(pairs, overwrite=True)
        for key, value in weak:
            if txn.get(key, db=self._dbs["annotations"]) is None:
                txn.put(key, value, db=self._dbs["failures"])

    def get(self, table: str, key: bytes) -> bytes | None:
        self._living()
        return self._retried(lambda: self._fetch(table, key))

    def count(self, table: str) -> int:
        self._living()
        return self._retried(lambda: self._entries(table))

    def scan(self, table: str, start: bytes = b"", page: int = PAGE) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) in key order from `start` on; rows written before the last page read are not returned."""
        for rows in self.pages(table, start, page):
            yield from rows

    def pages(self, table: str, start: bytes = b"", page: int = PAGE) -> Iterator[list[tuple[bytes, bytes]]]:
        """`scan` in lists of at most `page` rows, each read in one transaction."""
        at, past, size = start, False, 0
        while True:
            self._living()
            rows = self._retried(partial(self._page, table, at, past, page))
            size += sum(len(value) for _, value in rows)
            if size > _MAPPED and not self.writable:
                size = 0
                with self._guard:
                    # Or the system would count every page that was read as this process's memory, up to the whole file.
                    self._env.close()
                    self._connect()
            if rows:
                yield rows
            if len(rows) < page:
                return
            at, past = rows[-1][0], True

    def _retried(self, read: Callable[[], _T]) -> _T:
        while True:
            try:
                with self._guard:
                    return read()
            except lmdb.MapResizedError:
                # Another process has grown the map; take over its size.
                with self._guard:
                    self._env.set_mapsize(0)
            except lmdb.Error as error:
                raise InputError(f"the store {self.path} cannot be read: {error}") from None

    def _fetch(self, table: str, key: bytes) -> bytes | None:
        with self._env.begin(self._dbs[table]) as txn:
            return txn.get(key)

    def _entries(self, table: str) -> int:
        with self._env.begin() as txn:
            return int(txn.stat(self._dbs[table])["entries"])

    def _page(self, table: str, at: bytes, past: bool, page: int) -> list[tuple[bytes, bytes]]:
        with self._env.begin(self._dbs[table]) as txn, txn.cursor() as cursor:
            if not (cursor.set_range(at) if at else cursor.first()):
                return []
            if past and cursor.key() == at and not cursor.next():
                return []
            return list(islice(cursor.iternext(), page))


def _open_reader(path: Path, settings: Mapping[str, Any]) -> lmdb.Environment:
    options: dict[str, Any] = {**settings, "readonly": True, "create": False}
    if not _lock_is_whole(path):
        # There is no disk space for the reader table; without a live writer it is not needed.
        if is_held(path / WRITER):
            raise InputError(f"the store {path} is being written and cannot be read beside that: the disk is full")
        return lmdb.open(os.fsencode(path), lock=False, **options)
    try:
        # With a place in the reader table (no waiting), a live writer cannot reuse pages under us.
        return lmdb.open(os.fsencode(path), lock=True, **options)
    except lmdb.InvalidError:
        raise
    except lmdb.Error:
        # A folder without write permission has no reader table for this process, and as a rule no writer.
        return lmdb.open(os.fsencode(path), lock=False, **options)


def _lock_is_whole(path: Path) -> bool:
    """Whether LMDB's table of readers has its space on the disk; makes it, with write permission as the folder has.

    LMDB writes it through mapped pages: on a full disk, touching one that has no room kills the process (SIGBUS). True, too,
    where we may not write and LMDB says so itself.
    """
    try:
        fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    try:
        status = os.fstat(fd)
        # One that is there keeps its size: others may have mapped it.
        size = status.st_size or _LOCK_BYTES
        if status.st_blocks * 512 < size:
            os.posix_fallocate(fd, 0, size)
        with suppress(OSError):
            shared = path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if shared and status.st_uid == os.geteuid():
                os.fchmod(fd, status.st_mode | shared | (shared << 1))
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    finally:
        os.close(fd)
    return True


def _is_full(path: Path) -> bool:
    """Whether less than 1 MiB is free: LMDB reports a write on a full disk as an input/output error."""
    try:
        disk = os.statvfs(path)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < _NEARLY_FULL


def _readable(env: lmdb.Environment) -> bool:
    """Touches every page in use. A page beyond the file's end kills the process that touches it."""
    try:
        with env.begin() as txn, txn.cursor() as names:
            for name in list(names.iternext(values=False)):
                table = env.open_db(name, txn=txn, create=False)
                with txn.cursor(table) as cursor:
                    for _, value in cursor.iternext():
                        bytes(value)
    except lmdb.Error:
        return False
    return True
