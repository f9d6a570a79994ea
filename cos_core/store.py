"""The annotation store: one LMDB directory that a job fills, loses nothing of when killed, and many processes read.

Named databases: `annotations` (id -> value), `failures` (id -> reason), `meta` (schema, fingerprint, provenance). Keys are the
ids in UTF-8, so iteration is in code point order; an id beyond LMDB's 511 bytes is cut and ends in a digest. A value is a
compact JSON array (see `_pack`); what equals the store's own fingerprint is not repeated in every record.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar

import lmdb

from cos_core.errors import InputError
from cos_core.geometry import Box
from cos_core.locks import FileLock
from cos_core.manifest import atomic_file, canonical, plain
from cos_core.types import Annotation

SCHEMA = 1
BATCH = 4096
"""Annotations committed together by one `put_many`; a commit waits for the disk."""
_MAX_KEY = 511
_START_BYTES = 2**24
_PAGE = 1000
_READERS = 1024
_LOCK_FILE = "writer.lock"
_TABLES = ("annotations", "failures", "meta")
_T = TypeVar("_T")


class Store:
    """Open with `Store.create_or_resume` (the one writer) or `Store.read`; close it, or use it as a context manager.

    Reading never blocks and is never blocked, also while the job writes. An open store may be carried through a fork: the child
    opens its own handle; a writer's child can only read. In one process, a path has one handle, shared by all its readers.
    """

    def __init__(self, path: Path, *, lock: FileLock | None, handle: _Handle) -> None:
        self.path = path
        self._lock = lock
        self._handle = handle
        self._closed = False
        self.fingerprint: str = handle.meta["fingerprint"]

    @classmethod
    def create_or_resume(cls, path: Path, fingerprint: str, provenance: Mapping[str, Any]) -> Store:
        """The store at `path` for writing, made when it is not there.

        `fingerprint` hashes the settings that make the annotations; `provenance` (JSON) says what they were and is kept from
        the first opening. Raises InputError for a store of another fingerprint or schema, or a folder with other things in it;
        LockedError when another live process writes it.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            foreign = not (path / "data.mdb").exists() and any(p.name != _LOCK_FILE for p in path.iterdir())
        except OSError as error:
            raise InputError(f"the store {path} cannot be made: {error.strerror}") from None
        if foreign:
            raise InputError(f"{path} holds other files and no store; choose a new folder")
        lock = FileLock(path / _LOCK_FILE, what=path)
        lock.acquire()
        try:
            handle = _Handle.share(path, write=True)
            try:
                handle.start(fingerprint, provenance)
                return cls(path, lock=lock, handle=handle)
            except BaseException:
                handle.release()
                raise
        except BaseException:
            lock.release()
            raise

    @classmethod
    def read(cls, path: Path) -> Store:
        """The store at `path`, read-only. Raises InputError when there is none, or it is broken or of another schema."""
        path = Path(path)
        if not (path / "data.mdb").is_file():
            raise InputError(f"there is no store at {path}")
        handle = _Handle.share(path, write=False)
        try:
            handle.check_schema()
            return cls(path, lock=None, handle=handle)
        except BaseException:
            handle.release()
            raise

    def put_many(self, annotations: Iterable[Annotation]) -> int:
        """Writes the annotations and returns their number; all of them are on the disk when it returns.

        Committed in batches as they come, so a killed job keeps the finished ones; an id written again is replaced, and a
        failure recorded for it before is forgotten. Raises InputError for an annotation of another fingerprint, a score that
        is not finite, or a full disk.
        """
        self._need_writer()
        source = iter(annotations)
        count = 0
        while batch := list(islice(source, BATCH)):
            rows = [(_key(a.example_id), self._pack(a)) for a in batch]
            self._handle.commit({"annotations": rows}, forget=[key for key, _ in rows])
            count += len(rows)
        return count

    def put_failure(self, example_id: str, reason: str) -> None:
        """Records why an example has no annotation, at once on the disk; `has` stays False, so that a rerun tries again."""
        self._need_writer()
        self._handle.commit({"failures": [(_key(example_id), json.dumps([reason, example_id]).encode())]})

    def has(self, example_id: str) -> bool:
        """Whether the example has an annotation (a failure is none)."""
        return self._handle.get("annotations", _key(example_id)) is not None

    def get(self, example_id: str) -> Annotation | None:
        """The example's annotation, or None."""
        value = self._handle.get("annotations", _key(example_id))
        return None if value is None else self._unpack(example_id, value)

    def failure(self, example_id: str) -> str | None:
        """Why the example failed, or None."""
        value = self._handle.get("failures", _key(example_id))
        return None if value is None else str(json.loads(value)[0])

    def annotations(self) -> Iterator[Annotation]:
        """All annotations, sorted by id; memory stays bounded, and a writer is not held up meanwhile."""
        for key, value in self._handle.scan("annotations"):
            yield self._unpack(key.decode("utf-8", "replace"), value)

    def failures(self) -> Iterator[tuple[str, str]]:
        """(example id, reason), sorted by id."""
        for _, value in self._handle.scan("failures"):
            reason, example_id = json.loads(value)
            yield example_id, reason

    def info(self) -> dict[str, Any]:
        """Schema, fingerprint, provenance, time of creation (UTC), counts, and the bytes that the file takes on disk."""
        counts = {name: self._handle.count(name) for name in ("annotations", "failures")}
        return {**self._handle.meta, **counts, "bytes": (self.path / "data.mdb").stat().st_blocks * 512}

    def export_jsonl(self, path: Path) -> int:
        """Writes every annotation as one line of JSON, sorted by id, keys sorted: equal stores give equal bytes.

        Returns the number of lines. Failures and times are left out. Raises InputError when `path` cannot be written.
        """
        count = 0
        with atomic_file(path) as file:
            for annotation in self.annotations():
                line = json.dumps(annotation.to_json(), sort_keys=True, separators=(",", ":"))
                file.write(line.encode() + b"\n")
                count += 1
        return count

    def close(self) -> None:
        """Gives handle and lock back; harmless when repeated."""
        if not self._closed:
            self._closed = True
            self._handle.release()
            if self._lock is not None:
                self._lock.release()

    def _need_writer(self) -> None:
        if self._closed or self._lock is None or not self._lock.held:
            raise InputError(f"the store {self.path} is not open for writing")

    def _pack(self, annotation: Annotation) -> bytes:
        """`[box, score, policy, regions_used, image, reason, id]`, the empty end cut off; `id` only of a cut key."""
        if annotation.fingerprint != self.fingerprint:
            raise InputError(
                f"the annotation {annotation.example_id!r} has fingerprint {annotation.fingerprint!r}, "
                f"the store {self.path} {self.fingerprint!r}; settings are never mixed"
            )
        if not math.isfinite(annotation.score):
            raise InputError(f"the annotation {annotation.example_id!r} has score {annotation.score}")
        box = annotation.box
        row: list[Any] = [
            None if box is None else box.corners,
            annotation.score,
            annotation.policy,
            annotation.regions_used,
            annotation.image,
            annotation.reason,
            annotation.example_id if _is_cut(annotation.example_id) else None,
        ]
        while row[-1] in (None, ()):
            row.pop()
        # In ASCII, so that half a character in a path or a reason can be kept too.
        return json.dumps(row, separators=(",", ":")).encode()

    def _unpack(self, example_id: str, value: bytes) -> Annotation:
        row = json.loads(value)
        row += [None] * (7 - len(row))
        box, score, policy, used, image, reason, full_id = row
        return Annotation(
            full_id or example_id,
            None if box is None else Box(*box),
            score,
            policy,
            self.fingerprint,
            tuple(used or ()),
            reason,
            image,
        )

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Handle:
    """One LMDB environment of this process, counted: LMDB forbids opening a path twice in a process.

    Every call is one short transaction under a lock, so that the map may grow in between and no reader holds back free pages.
    """

    _shared: ClassVar[dict[str, _Handle]] = {}
    _table_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: Path, key: str, write: bool) -> None:
        self.path, self._key, self.writable = path, key, write
        self._users = 0
        self.meta: dict[str, Any] = {}
        self._open()

    @classmethod
    def share(cls, path: Path, write: bool) -> _Handle:
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
        new = not (self.path / "data.mdb").exists()
        size = _START_BYTES if new else 0  # 0: as large as the last writer left it
        settings: dict[str, Any] = {"map_size": size, "max_dbs": len(_TABLES), "max_readers": _READERS}
        try:
            if self.writable:
                self._env = lmdb.open(str(self.path), **settings)
                self._env.reader_check()  # frees the slots of killed readers
            else:
                self._env = _open_reader(self.path, settings)
        except lmdb.Error as error:
            raise InputError(f"the store {self.path} cannot be opened: {error}") from None
        try:
            self._dbs = self._open_tables()
            about = self._fetch("meta", b"about")
        except lmdb.Error:
            self._env.close()
            raise InputError(f"{self.path} is an LMDB database, but not an annotation store of cos") from None
        self.meta = json.loads(about) if about else {}

    def _open_tables(self) -> dict[str, Any]:
        if not self.writable:
            return {name: self._env.open_db(name.encode(), create=False) for name in _TABLES}
        # All in one transaction: a job killed here leaves every table or none.
        with self._env.begin(write=True) as txn:
            new = txn.stat()["entries"] == 0
            return {name: self._env.open_db(name.encode(), txn=txn, create=new) for name in _TABLES}

    def _living(self) -> None:
        """After a fork, gives the child a read-only handle of its own: LMDB's may not be used on both sides."""
        if self._pid != os.getpid():
            self._env.close()
            self.writable = False
            self._open()

    def start(self, fingerprint: str, provenance: Mapping[str, Any]) -> None:
        """Stamps a new store; checks that an old one is of the same settings. Raises InputError."""
        if self.meta:
            self.check_schema()
            if self.meta["fingerprint"] != fingerprint:
                raise InputError(
                    f"the store {self.path} was made with other settings (fingerprint {self.meta['fingerprint']}, "
                    f"now {fingerprint}); choose a new folder or the same settings"
                )
            return
        created = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"schema": SCHEMA, "fingerprint": fingerprint, "provenance": plain(provenance), "created": created}
        self.commit({"meta": [(b"about", canonical(about))]})
        self.meta = about

    def check_schema(self) -> None:
        """Raises InputError for a store that was never started or is of another schema."""
        if not self.meta:
            raise InputError(f"the store at {self.path} was never begun; annotate into it first")
        if self.meta.get("schema") != SCHEMA:
            raise InputError(f"the store {self.path} has schema {self.meta.get('schema')}, this version of cos reads {SCHEMA}")

    def commit(self, rows: Mapping[str, list[tuple[bytes, bytes]]], forget: Iterable[bytes] = ()) -> None:
        """Writes rows by table and forgets failures, all or nothing, on the disk; doubles a map that is too small."""
        keys = list(forget)
        self._living()
        while True:
            try:
                with self._guard, self._env.begin(write=True) as txn:
                    for name, pairs in rows.items():
                        with txn.cursor(self._dbs[name]) as cursor:
                            cursor.putmulti(pairs, overwrite=True)
                    if keys and txn.stat(self._dbs["failures"])["entries"]:
                        for key in keys:
                            txn.delete(key, db=self._dbs["failures"])
                return
            except lmdb.MapFullError:
                with self._guard:
                    self._env.set_mapsize(self._env.info()["map_size"] * 2)
            except lmdb.Error as error:
                raise InputError(f"the store {self.path} cannot be written: {error}; what was committed is kept") from None

    def get(self, table: str, key: bytes) -> bytes | None:
        self._living()
        return self._retried(lambda: self._fetch(table, key))

    def count(self, table: str) -> int:
        self._living()
        return self._retried(lambda: self._entries(table))

    def scan(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) in key order, read page by page; rows written behind the last page read are not seen."""
        after = b""
        while True:
            self._living()
            rows = self._retried(partial(self._page, table, after))
            yield from rows
            if len(rows) < _PAGE:
                return
            after = rows[-1][0]

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

    def _page(self, table: str, after: bytes) -> list[tuple[bytes, bytes]]:
        with self._env.begin(self._dbs[table]) as txn, txn.cursor() as cursor:
            if not (cursor.set_range(after) if after else cursor.first()):
                return []
            if cursor.key() == after and not cursor.next():
                return []
            return list(islice(cursor.iternext(), _PAGE))


def _open_reader(path: Path, settings: Mapping[str, Any]) -> lmdb.Environment:
    options: dict[str, Any] = {**settings, "readonly": True, "create": False}
    try:
        # With a place in the reader table (no waiting), a live writer cannot reuse pages under us.
        return lmdb.open(str(path), lock=True, **options)
    except lmdb.InvalidError:
        raise
    except lmdb.Error:
        # A folder we may not write to has no reader table for us; nobody else's writer is expected there either.
        return lmdb.open(str(path), lock=False, **options)


def _key(example_id: str) -> bytes:
    """The id in UTF-8; beyond LMDB's limit its beginning, 0xff (never in UTF-8) and a digest. Raises InputError."""
    try:
        key = example_id.encode()
    except UnicodeEncodeError:
        raise InputError(f"the example id {example_id!r} is not valid Unicode") from None
    if not key:
        raise InputError("an example needs an id")
    if len(key) > _MAX_KEY:
        digest = hashlib.sha256(key).hexdigest().encode()
        key = key[: _MAX_KEY - len(digest) - 1] + b"\xff" + digest
    return key


def _is_cut(example_id: str) -> bool:
    return len(example_id) * 4 > _MAX_KEY and len(example_id.encode()) > _MAX_KEY
