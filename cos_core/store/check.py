"""`cos store verify`: whether everything in a store can be read and fits together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cos_core.errors import InputError
from cos_core.interfaces import Reporter
from cos_core.store import codec
from cos_core.store.annotations import Heat, Store

SHOWN = 10


@dataclass(slots=True)
class Checked:
    """The result of `check`: records read by table, the number of faults, and the first of them as sentences."""

    counts: dict[str, int] = field(default_factory=lambda: {"annotations": 0, "heats": 0, "failures": 0})
    faults: int = 0
    first: list[str] = field(default_factory=list)

    def fault(self, words: str) -> None:
        self.faults += 1
        if len(self.first) < SHOWN:
            self.first.append(words)

    def to_json(self) -> dict[str, Any]:
        return {**self.counts, "faults": self.faults, "first": self.first}


def check(path: Path, reporter: Reporter) -> Checked:
    """Reads every record of the store at `path`.

    A fault: a record, map or failure that cannot be decoded, a box that is none, a key that is not its id's, a map without its
    annotation, a failure beside an annotation, a table that cannot be read to its end, or a count that is not what was read.
    Raises InputError for a store that cannot be opened at all.
    """
    result = Checked()
    with Store.read(path) as store:
        info = store.info()
        if not isinstance(info.get("fingerprint"), str) or not isinstance(info.get("provenance"), dict):
            result.fault("the store does not say what made it (fingerprint, provenance)")
        total = sum(info[table] for table in result.counts)
        checks = {"annotations": _annotation, "heats": _heat, "failures": _failure}
        for table, one in checks.items():
            try:
                for key, value in store._handle.scan(table):
                    for words in one(store, key, value):
                        result.fault(f"{table}: {words}")
                    result.counts[table] += 1
                    if result.counts[table] % 5000 == 0:
                        reporter.progress("verify", sum(result.counts.values()), total)
            except InputError as error:
                result.fault(f"{table}: {error}")
            if result.counts[table] != info[table]:
                result.fault(f"{table}: {info[table]} are counted, {result.counts[table]} could be read")
        reporter.progress("verify", total, total)
    return result


def _annotation(store: Store, key: bytes, value: bytes) -> Iterator[str]:
    try:
        annotation = codec.unpack(key, value, store.fingerprint)
    except InputError as error:
        yield str(error)
        return
    yield from _key(annotation.example_id, key)


def _heat(store: Store, key: bytes, value: bytes) -> Iterator[str]:
    try:
        Heat.unpacked(value)
    except ValueError as error:
        yield f"the map {codec.shown(key)} is damaged: {error}"
    if store._handle.get("annotations", key) is None:
        yield f"the map {codec.shown(key)} has no annotation"


def _failure(store: Store, key: bytes, value: bytes) -> Iterator[str]:
    try:
        example_id, _ = codec.failure(key, value)
    except InputError as error:
        yield str(error)
        return
    yield from _key(example_id, key)
    if store._handle.get("annotations", key) is not None:
        yield f"{codec.shown(key)} has an annotation, too"


def _key(example_id: str, key: bytes) -> Iterator[str]:
    try:
        fits = codec.key_of(example_id) == key
    except InputError:
        fits = False
    if not fits:
        yield f"the key {codec.shown(key)} is not that of the id {example_id[:80]!r}"
