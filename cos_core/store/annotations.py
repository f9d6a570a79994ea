"""The annotation store: one LMDB directory. One process writes it, a killed job loses no commit, and many processes read it.

Named databases: `annotations` (id -> record), `heats` (id -> relevance map), `failures` (id -> reason), `meta` (schema,
fingerprint, provenance). Keys are the ids in UTF-8, so iteration is in code point order; an id beyond LMDB's 511 bytes is cut
and ends in a digest. `codec` encodes the records, `environment` wraps LMDB, `merge` joins the parts of a job, `check` verifies
every record.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cos_core.errors import InputError
from cos_core.files.durable import atomic_file
from cos_core.files.locks import FileLock
from cos_core.store import codec
from cos_core.store.codec import Heat
from cos_core.store.environment import DATA, LOCK, SCHEMA, WRITER, Handle
from cos_core.types import Annotation

__all__ = ["BATCH", "SCHEMA", "Columns", "Heat", "Store", "is_store"]

BATCH = 4096
"""Annotations committed together by one `put_many`; a commit waits for the disk."""
LOCK_FILE = WRITER
_COLUMN_PAGE = 8192
HeatRows = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Columns:
    """Some annotations of a store, in the order of their ids, without an object for each.

    `boxes`: (n, 4) x0, y0, x1, y1 in frame "image", NaN where there is none; `scores`: (n,); `policies`, `reasons`: n texts.
    """

    boxes: np.ndarray
    scores: np.ndarray
    policies: list[str]
    reasons: list[str | None]


def is_store(path: Path) -> bool:
    """Whether `path` is an annotation store (an LMDB directory)."""
    return path.is_dir() and (path / DATA).is_file()


class Store:
    """Open with `Store.create_or_resume` (the one writer) or `Store.read`; close it, or use it as a context manager.

    Reading never blocks and is never blocked, also while the job writes. An open store may be carried through a fork: the child
    opens its own handle; a writer's child can only read. In one process, a path has one handle, shared by all its readers.
    """

    def __init__(self, path: Path, *, lock: FileLock | None, handle: Handle) -> None:
        self.path = path
        self._lock = lock
        self._handle = handle
        self._closed = False
        self.fingerprint: str = handle.meta["fingerprint"]

    @classmethod
    def create_or_resume(cls, path: Path, fingerprint: str, provenance: Mapping[str, Any]) -> Store:
        """The store at `path` for writing, made when it is not there.

        `fingerprint` hashes the settings that make the annotations; `provenance` (JSON) lists them and is stored when the store
        is made. Raises InputError for a store of another fingerprint or schema, or a folder with other things in it;
        LockedError when another live process writes it.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            foreign = not (path / DATA).exists() and any(p.name not in (LOCK_FILE, LOCK) for p in path.iterdir())
        except OSError as error:
            raise InputError(f"the store {path} cannot be made: {error.strerror}") from None
        if foreign:
            raise InputError(f"{path} holds other files and no store; choose a new folder")
        lock = FileLock(path / LOCK_FILE, what=path)
        lock.acquire()
        try:
            handle = Handle.share(path, write=True)
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
        if not is_store(path):
            raise InputError(f"there is no store at {path}")
        handle = Handle.share(path, write=False)
        if handle.meta:
            return cls(path, lock=None, handle=handle)
        handle.release()
        raise InputError(f"the store at {path} was never begun; annotate into it first")

    @classmethod
    def is_begun(cls, path: Path) -> bool:
        """Whether the store at `path` has its settings; a store whose job was killed before that is empty.

        Raises InputError when it cannot be read.
        """
        if (Path(path) / DATA).stat().st_size == 0:
            return False
        handle = Handle.share(Path(path), write=False)
        begun = bool(handle.meta)
        handle.release()
        return begun

    # --- writing ---

    def put_many(self, annotations: Iterable[Annotation], heats: Mapping[str, HeatRows] | None = None) -> int:
        """Writes the annotations and returns their number, after all are on the disk.

        Committed in batches as they come, so a killed job keeps the finished ones; see `commit` for the rest.
        """
        self._need_writer()
        source = iter(annotations)
        left = dict(heats or {})
        count = 0
        while batch := list(islice(source, BATCH)):
            self.commit(batch, {a.example_id: left.pop(a.example_id) for a in batch if a.example_id in left} if left else None)
            count += len(batch)
        _refuse_orphans(left)
        return count

    def put_failures(self, failures: Iterable[tuple[str, str]]) -> None:
        """Records why examples have no annotation, (id, reason), in one commit; see `commit`."""
        self.commit((), failures=failures)

    def commit(
        self,
        annotations: Iterable[Annotation] = (),
        heats: Mapping[str, HeatRows] | None = None,
        failures: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Annotations, their maps and failures, all or nothing, on the disk when it returns.

        `heats`: (rows, columns) maps over the square frame by example id, non-negative, kept in 256 levels (see Heat.of). An id
        written again is replaced, its map too, and its failure forgotten; a failure of an example that has an annotation is
        dropped, and `has` stays False after one, so that a rerun tries again. Raises InputError for an annotation of another
        fingerprint, a score that is not finite, a map without its annotation, or a full disk.
        """
        self._need_writer()
        rows = [(key := codec.key_of(a.example_id), codec.pack(self._checked(a), key)) for a in annotations]
        left = dict(heats or {})
        keys = [key for key, _ in rows]
        maps: list[tuple[bytes, bytes]] = []
        if left:
            packed = {codec.key_of(name): Heat.of(heat, name).packed() for name, heat in left.items()}
            maps = [(key, packed.pop(key)) for key in dict.fromkeys(keys) if key in packed]
            _refuse_orphans([name for name in left if codec.key_of(name) in packed])
        weak = [(codec.key_of(name), _failure(name, reason)) for name, reason in failures]
        # In key order, neighbours share their way down the tree.
        rows.sort(key=lambda row: row[0])
        self._handle.commit({"annotations": rows, "heats": maps}, {"failures": keys, "heats": keys}, weak)

    def _checked(self, annotation: Annotation) -> Annotation:
        """The annotation. Raises InputError when its fingerprint is not the store's."""
        if annotation.fingerprint != self.fingerprint:
            raise InputError(
                f"the annotation {annotation.example_id!r} has fingerprint {annotation.fingerprint!r}, "
                f"the store {self.path} {self.fingerprint!r}; settings are never mixed"
            )
        return annotation

    # --- reading ---

    def has(self, example_id: str) -> bool:
        """Whether the example has an annotation (a failure is none)."""
        return self._handle.get("annotations", codec.key_of(example_id)) is not None

    def get(self, example_id: str) -> Annotation | None:
        """The example's annotation, or None. Raises InputError for a damaged record."""
        key = codec.key_of(example_id)
        value = self._handle.get("annotations", key)
        return None if value is None else codec.unpack(key, value, self.fingerprint)

    def heat(self, example_id: str) -> tuple[tuple[float, ...], ...] | None:
        """The example's relevance map over the square frame, (rows, columns), or None: each cell to 1/510 of the maximum."""
        heat = self.quantised_heat(example_id)
        return None if heat is None else heat.rows()

    def quantised_heat(self, example_id: str) -> Heat | None:
        """The map as it is stored: levels 0 to 255 and the maximum. Raises InputError for a damaged one."""
        key = codec.key_of(example_id)
        value = self._handle.get("heats", key)
        if value is None:
            return None
        try:
            return Heat.unpacked(value)
        except ValueError as error:
            raise InputError(f"the relevance map {codec.shown(key)} of {self.path} is damaged: {error}") from None

    def failure(self, example_id: str) -> str | None:
        """Why the example failed, or None."""
        key = codec.key_of(example_id)
        value = self._handle.get("failures", key)
        return None if value is None else codec.failure(key, value)[1]

    def annotations(self, prefix: str = "") -> Iterator[Annotation]:
        """All annotations whose id begins with `prefix`, sorted by id; memory stays bounded, and a writer is not blocked."""
        for key, value in self._scan("annotations", prefix):
            yield codec.unpack(key, value, self.fingerprint)

    def failures(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """(example id, reason), sorted by id."""
        for key, value in self._scan("failures", prefix):
            yield codec.failure(key, value)

    def columns(self) -> Iterator[Columns]:
        """All annotations in pieces, as arrays: for statistics of millions. The same values as `annotations`."""
        for rows in self._handle.pages("annotations", page=_COLUMN_PAGE):
            yield _columns([value for _, value in rows])

    def _scan(self, table: str, prefix: str) -> Iterator[tuple[bytes, bytes]]:
        start = prefix.encode("utf-8", "surrogatepass")[: codec.MAX_KEY]
        for key, value in self._handle.scan(table, start):
            if not key.startswith(start):
                return
            yield key, value

    def info(self) -> dict[str, Any]:
        """Schema, fingerprint, provenance, time of creation (UTC), counts, and the bytes that the file takes on disk."""
        counts = {name: self._handle.count(name) for name in ("annotations", "failures", "heats")}
        return {**self._handle.meta, **counts, "bytes": (self.path / DATA).stat().st_blocks * 512}

    def export_jsonl(self, path: Path, *, failures: bool = False, heats: bool = False) -> int:
        """Writes every annotation as one line of JSON, sorted by id, keys sorted: equal stores give equal bytes.

        `heats` adds each map as it is stored, `{"cells": [[0..255]], "top": maximum}`; `failures` adds the lines
        `{"example_id", "failure"}` at the end. Times are left out. Returns the number of lines. Raises InputError when `path`
        cannot be written.
        """
        count = 0
        with atomic_file(path) as file:

            def line(record: Mapping[str, Any]) -> None:
                nonlocal count
                file.write(json.dumps(record, sort_keys=True, separators=(",", ":")).encode() + b"\n")
                count += 1

            for annotation in self.annotations():
                record = annotation.to_json()
                if heats and (heat := self.quantised_heat(annotation.example_id)) is not None:
                    record["heat"] = {"cells": heat.cells.tolist(), "top": heat.top}
                line(record)
            if failures:
                for example_id, reason in self.failures():
                    line({"example_id": example_id, "failure": reason})
        return count

    def close(self) -> None:
        """Releases handle and lock; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._handle.release()
            if self._lock is not None:
                self._lock.release()

    def _need_writer(self) -> None:
        if self._closed or self._lock is None or not self._lock.held:
            raise InputError(f"the store {self.path} is not open for writing")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _failure(example_id: str, reason: str) -> bytes:
    # In ASCII, so that half a character in a path can be kept too.
    return json.dumps([reason, example_id]).encode()


def _refuse_orphans(names: Iterable[str]) -> None:
    for name in names:
        raise InputError(f"the relevance map of {name!r} comes without its annotation")


def _columns(values: list[bytes]) -> Columns:
    fixed = np.frombuffer(b"".join([value[: codec.HEAD.size] for value in values]), dtype=codec.HEAD_DTYPE)
    policies: list[str] = []
    reasons: list[str | None] = []
    starts = codec.HEAD.size + 4 * fixed["used"].astype(np.int64)
    ends = starts + fixed["policy"]
    for value, start, end, image, reason in zip(
        values, starts.tolist(), ends.tolist(), fixed["image"].tolist(), fixed["reason"].tolist(), strict=True
    ):
        policies.append(value[start:end].decode("utf-8", "surrogatepass"))
        if reason:
            end += max(0, image - 1)
            reasons.append(value[end : end + reason - 1].decode("utf-8", "surrogatepass"))
        else:
            reasons.append(None)
    return Columns(fixed["box"].astype(np.float64), fixed["score"].astype(np.float64), policies, reasons)
