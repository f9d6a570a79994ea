"""The parts of one job into one store."""

from __future__ import annotations

import heapq
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from cos_core.errors import InputError
from cos_core.files import filesystems, manifest
from cos_core.files.locks import FileLock
from cos_core.files.manifest import canonical
from cos_core.interfaces import Reporter
from cos_core.options import INPUT, OUTPUT, REQUIRED, option
from cos_core.store import codec
from cos_core.store.annotations import BATCH, LOCK_FILE, Store, is_store
from cos_core.types import RunManifest

_SHOWN = 5
_FILES_A_PART, _FILES_BESIDE = 4, 64
"""Files that are open for each part (its lock, data and reader table), and other files of the process."""


@dataclass(frozen=True, slots=True)
class MergeConfig:
    """`parts`: stores of one job, that is of one fingerprint; `out`: the store to write or to continue."""

    parts: tuple[Path, ...] = option(
        REQUIRED, "Stores of one job.", INPUT, argument=True, metavar="PART [PART...]", completes="store"
    )
    out: Path = option(REQUIRED, "Store to write or to continue.", OUTPUT)


def run(config: MergeConfig, reporter: Reporter) -> RunManifest:
    """`merge`, with the manifest of the merged store written last."""
    begun = manifest.started("store merge", config)
    new = merge(config.parts, config.out, reporter)
    with Store.read(config.out) as store:
        info = store.info()
    counts = {"ok": info["annotations"], "failed": info["failures"], "new": new}
    results = {name: info[name] for name in ("fingerprint", "provenance", "heats", "bytes")}
    finished = begun.finish(counts, results=results)
    manifest.write(manifest.path_for(config.out), finished)
    return finished


def merge(parts: Sequence[Path], out: Path, reporter: Reporter) -> int:
    """Writes everything in `parts` into `out` and returns how many annotations were new there.

    Of an example that failed in one part and has an annotation in another, the annotation is kept; of two reasons, the first in
    alphabetical order; of two provenances, too: the result does not depend on the order of the parts. Done again it changes
    nothing, killed and done again it ends the same. Raises InputError, before anything is written, for parts of different
    fingerprints and for an example with different annotations or maps in two of them; LockedError when a part or `out` is
    being written.
    """
    _check_places(parts, out)
    _check_files(len(parts))
    with ExitStack() as stack:
        for part in parts:
            # A part without write permission is merged without a lock; a live writer's LockedError is raised.
            with suppress(InputError):
                stack.enter_context(FileLock(part / LOCK_FILE, what=part))
        stores = [stack.enter_context(Store.read(part)) for part in parts]
        _check_fingerprints(stores)
        provenance = min((store.info()["provenance"] for store in stores), key=canonical)
        there = is_store(out)
        if not there:
            _check_conflicts(stores)
        target = stack.enter_context(Store.create_or_resume(out, stores[0].fingerprint, provenance))
        if there:
            _check_conflicts([*stores, target])
        if (words := filesystems.warning(out)) is not None:
            reporter.warn(words)
        return _Merger(stores, target, reporter).run()


@dataclass(slots=True)
class _Merger:
    """Writes in key order, in batches; rows that the target has are skipped."""

    stores: Sequence[Store]
    target: Store
    reporter: Reporter
    new: int = 0
    _done: int = 0
    _rows: list[tuple[bytes, bytes]] = field(default_factory=list)

    def run(self) -> int:
        total = sum(store.info()[table] for store in self.stores for table in ("annotations", "heats", "failures"))
        for table in ("annotations", "heats", "failures"):
            for key, values in _joined([*self.stores, self.target], table):
                value = min(value for _, value in values)
                if values[-1] != (len(self.stores), value):
                    self._rows.append((key, value))
                self._done += sum(place < len(self.stores) for place, _ in values)
                if len(self._rows) == BATCH:
                    self._flush(table)
                if self._done % 1000 == 0:
                    self.reporter.progress("merge", self._done, total)
            self._flush(table)
        self.reporter.progress("merge", total, total)
        return self.new

    def _flush(self, table: str) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        handle = self.target._handle
        if table == "failures":
            handle.commit({}, weak=rows)
        elif table == "heats":
            handle.commit({table: rows})
        else:
            self.new += len(rows)
            handle.commit({table: rows}, {"failures": [key for key, _ in rows]})


def _joined(stores: Sequence[Store], table: str) -> Iterator[tuple[bytes, list[tuple[int, bytes]]]]:
    """(key, [(place of the store, value)]) in key order."""

    def tagged(place: int, store: Store) -> Iterator[tuple[bytes, int, bytes]]:
        for key, value in store._handle.scan(table):
            yield key, place, value

    streams = [tagged(place, store) for place, store in enumerate(stores)]
    for key, group in groupby(heapq.merge(*streams), key=itemgetter(0)):
        yield key, [(place, value) for _, place, value in group]


def _check_places(parts: Sequence[Path], out: Path) -> None:
    if not parts:
        raise InputError("there are no parts to merge")
    places = [os.path.realpath(path) for path in parts]
    for path, place in zip(parts, places, strict=True):
        if not is_store(path):
            raise InputError(f"there is no store at {path}")
        if place == os.path.realpath(out):
            raise InputError(f"{out} is a part and the result at once; give the result a folder of its own")
        if places.count(place) > 1:
            raise InputError(f"the part {path} is named twice")


def _check_files(parts: int) -> None:
    """Raises the number of files that this process may have open, as far as it may. Raises InputError when that is too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _FILES_A_PART * (parts + 1) + _FILES_BESIDE
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        most = max(1, (hard - _FILES_BESIDE) // _FILES_A_PART - 1)
        raise InputError(
            f"{parts} parts need {needed} open files, and this process may have {hard} (ulimit -n): merge at most {most} at "
            "once, and the results with each other, or raise the limit"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _check_fingerprints(stores: Sequence[Store]) -> None:
    for store in stores[1:]:
        if store.fingerprint != stores[0].fingerprint:
            raise InputError(
                f"{stores[0].path} and {store.path} were made with different settings (fingerprints "
                f"{stores[0].fingerprint} and {store.fingerprint}); only parts of one job can be merged"
            )


def _check_conflicts(stores: Sequence[Store]) -> None:
    """Raises InputError that names the examples which two stores annotate differently."""
    shown: list[str] = []
    count = 0
    for table in ("annotations", "heats"):
        for key, values in _joined(stores, table):
            if len(values) > 1 and len({value for _, value in values}) > 1:
                count += 1
                if len(shown) < _SHOWN:
                    what = "" if table == "annotations" else "the map of "
                    first, other = values[0], next(f for f in values if f[1] != values[0][1])
                    shown.append(f"{what}{codec.shown(key)} in {stores[first[0]].path} and {stores[other[0]].path}")
    if count:
        more = f" and {count - len(shown)} more" if count > len(shown) else ""
        what = "1 example" if count == 1 else f"{count} examples"
        raise InputError(f"the parts disagree on {what}, nothing was written: {'; '.join(shown)}{more}")
