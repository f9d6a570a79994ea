"""Annotation stores: folders that are none, databases of others, and damage within."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb

from bad.world import Arguments, Case, World, put

Command = Callable[[Path, World, Path], list[Any]]


def _info(store: Path, world: World, folder: Path) -> list[Any]:
    return ["store", "info", store]


def _stats(store: Path, world: World, folder: Path) -> list[Any]:
    return ["visualize", "stats", store, "--out", folder / "boxes"]


def _export(store: Path, world: World, folder: Path) -> list[Any]:
    return ["store", "export", store, "--out", folder / "out.jsonl", "--failures", "--heats"]


def _verify(store: Path, world: World, folder: Path) -> list[Any]:
    return ["store", "verify", store]


def _merge(store: Path, world: World, folder: Path) -> list[Any]:
    return ["store", "merge", world.store, store, "--out", folder / "merged"]


def _annotate(store: Path, world: World, folder: Path) -> list[Any]:
    own = ["annotate", "--policy", "center_crop", "--model", "m", "--data", world.data, "--images", world.images]
    return [*own, "--out", store]


def _with(change: Callable[[Path, World], object], command: Command) -> Arguments:
    def arguments(world: World, folder: Path) -> list[Any]:
        change(folder / "store", world)
        return command(folder / "store", world, folder)

    return arguments


def _copied(damage: Callable[[Path], object]) -> Callable[[Path, World], object]:
    def change(store: Path, world: World) -> None:
        shutil.copytree(world.store, store)
        damage(store)

    return change


def _table(name: bytes, key: bytes, value: bytes) -> Callable[[Path, World], object]:
    """Writes a record behind the back of the store."""

    def damage(store: Path) -> None:
        with lmdb.open(str(store), max_dbs=4) as env:
            table = env.open_db(name)
            with env.begin(table, write=True) as txn:
                txn.put(key, value)

    return _copied(damage)


def _foreign(store: Path, world: World) -> None:
    with lmdb.open(str(store)) as env, env.begin(write=True) as txn:
        txn.put(b"mine", b"keep")


def _flip(store: Path) -> None:
    data = bytearray((store / "data.mdb").read_bytes())
    data[:8192] = bytes(8192)
    (store / "data.mdb").write_bytes(data)


def _meta(**changes: Any) -> Callable[[Path, World], object]:
    about = {"schema": 2, "fingerprint": "f", "provenance": {}, "created": "", **changes}
    return _table(b"meta", b"about", json.dumps(about).encode())


SHAPES: list[tuple[str, Callable[[Path, World], object], str]] = [
    ("missing", lambda s, w: None, "store"),
    ("a file", lambda s, w: put(s, "x"), "store"),
    ("an empty folder", lambda s, w: s.mkdir(), "store"),
    ("a link to itself", lambda s, w: s.symlink_to(s), "store"),
    ("a database that is a folder", lambda s, w: (s / "data.mdb").mkdir(parents=True), "store"),
    ("an empty database", lambda s, w: put(s / "data.mdb", b""), "store"),
    ("a database of noise", lambda s, w: put(s / "data.mdb", b"noise" * 5000), "store"),
    ("a database of zeros", lambda s, w: put(s / "data.mdb", bytes(65536)), "store"),
    ("another program's database", _foreign, "store"),
    ("its first pages lost", _copied(_flip), "store"),
    ("its end lost", _copied(lambda s: os.truncate(s / "data.mdb", 3 * 4096)), "store"),
    ("an older schema", _meta(schema=1), "schema 1"),
    ("a schema from the future", _meta(schema=99), "schema 99"),
    ("settings that are no JSON", _table(b"meta", b"about", b"{oops"), "store"),
    ("settings that are a list", _table(b"meta", b"about", b"[1]"), "store"),
    ("settings without fingerprint", _table(b"meta", b"about", b'{"schema": 2}'), "store"),
    ("2 GB of nothing", lambda s, w: os.truncate(put(s / "data.mdb", b""), 2**31), "store"),
]  # fmt: skip

DAMAGE: list[tuple[str, Callable[[Path, World], object], str]] = [
    ("an empty record", _table(b"annotations", b"good#q0", b""), "good#q0"),
    ("a record cut off", _table(b"annotations", b"good#q0", b"\x01\x02\x03"), "good#q0"),
    ("a record of noise", _table(b"annotations", b"good#q0", b"\xff" * 97), "good#q0"),
    ("a map of noise", _table(b"heats", b"good#q0", b"\xff" * 11), "good#q0"),
    ("an empty map", _table(b"heats", b"good#q0", b""), "good#q0"),
    ("a failure that is no JSON", _table(b"failures", b"third#q0", b"{oops"), "third#q0"),
    ("a failure of one part", _table(b"failures", b"third#q0", b'["x"]'), "third#q0"),
    ("a key that is not UTF-8", _table(b"annotations", b"\xff\xfe", b"x"), ""),
]  # fmt: skip

CASES = [Case("store", name, 3, fact, _with(change, _info), "store") for name, change, fact in SHAPES]
CASES += [Case("store drawn", name, 3, fact, _with(change, _stats), "store") for name, change, fact in SHAPES[5:11]]
CASES += [Case("store merged", name, 3, fact, _with(change, _merge), "store") for name, change, fact in SHAPES[:17]]
CASES += [Case("store record verified", name, 3, fact, _with(change, _verify), "store") for name, change, fact in DAMAGE]
CASES += [Case("store record exported", name, 3, fact, _with(change, _export), "") for name, change, fact in DAMAGE]
CASES += [
    Case("store continued", "of other settings", 3, "settings", _with(lambda s, w: shutil.copytree(w.store, s), _annotate), "store"),
    Case("store continued", "a folder of other things", 3, "store", _with(lambda s, w: put(s / "mine.txt", "x"), _annotate), "store"),
    Case("store continued", "a file", 3, "store", _with(lambda s, w: put(s, "x"), _annotate), "store"),
    Case("store continued", "below a file", 3, "store", _with(lambda s, w: put(s, "x"), lambda s, w, f: _annotate(s / "in", w, f)), "store"),
    Case("store continued", "in /proc", 3, "store", _with(lambda s, w: None, lambda s, w, f: _annotate(Path("/proc/cos"), w, f)), "/proc/cos"),
    Case("store continued", "a link to nothing", 3, "store", _with(lambda s, w: s.symlink_to("gone/x"), _annotate), "store"),
]  # fmt: skip
