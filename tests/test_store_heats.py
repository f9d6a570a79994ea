"""What stands beside the boxes in a store: relevance maps, failures in batches; and files that were damaged."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from refusals import refused

from cos_core.geometry import Box
from cos_core.store import codec
from cos_core.store.annotations import Heat, Store
from cos_core.types import Annotation

ROOT = Path(__file__).parents[1]
MARK = "0123456789abcdef"


def annotation(name: str, **changes: object) -> Annotation:
    values = {"example_id": name, "box": Box(0.1, 0.2, 0.5, 0.7), "score": 2.5, "policy": "p", "fingerprint": MARK}
    return Annotation(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Store]:
    with Store.create_or_resume(tmp_path / "store", MARK, {"model": "tiny"}) as store:
        yield store


def test_a_map_by_hand(writer: Store) -> None:
    # Of 510: 0, 1 (half a level, to the even 0), 2, 3 (1.5 levels, to 2); 255 stays; the maximum is exact.
    writer.put_many([annotation("a"), annotation("b")], {"a": [[0, 1, 2], [3, 255, 510]]})
    assert writer.heat("a") == ((0, 0, 2), (4, 256, 510)), "levels are 2 apart; 127.5 goes to the even 128"
    assert writer.heat("b") is None
    assert writer.info()["heats"] == 1
    writer.put_many([annotation("c")], {"c": [[0.0, 0.0]]})
    assert writer.heat("c") == ((0.0, 0.0),)


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(
        np.float64, st.tuples(st.integers(1, 7), st.integers(1, 11)), elements=st.floats(0, 1e300, allow_subnormal=False)
    )
)
def test_the_stated_precision_and_no_drift(values: np.ndarray) -> None:
    kept = Heat.unpacked(Heat.of(values.tolist(), "a").packed())
    back = np.asarray(kept.rows())
    assert back.shape == values.shape
    assert np.abs(back - values).max() <= values.max() / 510 * (1 + 1e-9)
    assert back.max() == values.max(), "the maximum is exact"
    assert Heat.of(kept.rows(), "a").packed() == kept.packed(), "written again it is the same"


def test_a_map_of_24_by_24_is_a_few_hundred_bytes() -> None:
    y, x = np.mgrid[0:24, 0:24]
    noise = np.random.default_rng(3).uniform(0, 0.2, (24, 24))
    heat = np.exp(-((x - 7) ** 2 + (y - 15) ** 2) / 18) + noise
    assert 100 < len(Heat.of(heat.tolist(), "a").packed()) < 600


@pytest.mark.parametrize(
    "heat", [[], [[]], [1.0, 2.0], [[1.0, 2.0], [3.0]], [["a"]], [[1.0, -1e-9]], [[math.nan]], [[math.inf]]]
)
def test_maps_that_cannot_be_kept(writer: Store, heat: list) -> None:
    with refused("'a'"):
        writer.put_many([annotation("a")], {"a": heat})
    assert not writer.has("a"), "the annotation comes in the same commit or not at all"


def test_a_map_goes_with_its_annotation(writer: Store) -> None:
    writer.put_many([annotation("a")], {"a": [[1.0]]})
    writer.put_many([annotation("a", score=3.0)])
    assert writer.heat("a") is None, "the map of the replaced annotation is not kept"
    for write in (writer.put_many, writer.commit):
        with refused("'b'"):
            write([annotation("a")], {"b": [[1.0]]})
    long = "x" * 600
    writer.put_many([annotation(long)], {long: [[0.5, 0.25]]})
    assert writer.heat(long) == ((0.5, pytest.approx(0.25, abs=0.5 / 510)),)


def test_a_window_is_one_commit(writer: Store, tmp_path: Path) -> None:
    before = writer._handle._env.info()["last_txnid"]
    heats = {"a": [[1.0, 0.0]]}
    writer.commit([annotation("a"), annotation("b", box=None, reason="flat")], heats, [("c", "no picture"), ("a", "never")])
    writer.put_failures((f"d{i}", "torn") for i in range(500))
    assert writer._handle._env.info()["last_txnid"] == before + 2
    assert writer.failure("c") == "no picture"
    assert writer.failure("a") is None, "an example that has an annotation has not failed"
    assert writer.info()["failures"] == 501
    writer.put_failures([("b", "later")])
    assert writer.failure("b") is None
    writer.commit([annotation("c")])
    assert writer.failure("c") is None


def test_export_with_failures_and_maps(writer: Store, tmp_path: Path) -> None:
    writer.commit([annotation("b"), annotation("a", image="x.png")], {"b": [[0.0, 1.0, 2.0]]}, [("z", "torn"), ("0", "gone")])
    assert writer.export_jsonl(tmp_path / "all.jsonl", failures=True, heats=True) == 4
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [line["example_id"] for line in lines] == ["a", "b", "0", "z"]
    assert lines[1]["heat"] == {"cells": [[0, 128, 255]], "top": 2.0}
    assert "heat" not in lines[0]
    assert lines[3] == {"example_id": "z", "failure": "torn"}


def test_columns_are_the_annotations(writer: Store) -> None:
    items = [
        annotation(
            f"{i:05d}",
            box=None if i % 7 == 0 else Box(i / 40000, 0.0, 0.5, 1.0),
            score=i / 3,
            policy=f"p{i % 3}",
            regions_used=tuple(range(i % 4)),
            image=None if i % 5 else "é" * (i % 4),
            reason=f"r{i}é" if i % 7 == 0 else None,
        )
        for i in range(10_007)
    ]
    writer.put_many(items)
    pieces = list(writer.columns())
    assert len(pieces) == 2
    boxes = np.concatenate([p.boxes for p in pieces])
    expected = np.array([a.box.corners if a.box else (math.nan,) * 4 for a in items])
    np.testing.assert_array_equal(boxes, expected)
    assert [s for p in pieces for s in p.scores.tolist()] == [a.score for a in items]
    assert [s for p in pieces for s in p.policies] == [a.policy for a in items]
    assert [s for p in pieces for s in p.reasons] == [a.reason for a in items]


SCAN = """
import sys
from pathlib import Path
from cos_core.store.annotations import Store

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

with Store.read(Path(sys.argv[1])) as store, Store.read(Path(sys.argv[1])) as other:
    before, count = peak(), 0
    for annotation in store.annotations():
        count += 1
        if count % 10_000 == 0:
            assert other.get(annotation.example_id) == annotation
    print(count, peak() - before)
"""


def test_a_scan_does_not_hold_the_whole_file(writer: Store, tmp_path: Path) -> None:
    writer.put_many(annotation(f"{i:06d}", image="x" * 1500) for i in range(80_000))
    writer.close()
    command = [sys.executable, "-c", SCAN, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    count, kilobytes = map(int, done.stdout.split())
    assert count == 80_000
    assert (tmp_path / "store" / "data.mdb").stat().st_size > 240e6
    assert kilobytes < 90_000, "the file is several times as large"


def test_ids_by_their_beginning(writer: Store) -> None:
    writer.commit([annotation(n) for n in ("a1", "a2", "b1", "é1")], failures=[("a3", "x"), ("c", "y")])
    assert [a.example_id for a in writer.annotations("a")] == ["a1", "a2"]
    assert [a.example_id for a in writer.annotations("é")] == ["é1"]
    assert [n for n, _ in writer.failures("a")] == ["a3"]
    assert list(writer.annotations("zz")) == []


def test_records_that_cannot_be_kept(writer: Store) -> None:
    for bad in ({"regions_used": (-1,)}, {"regions_used": (2**32,)}, {"policy": "p" * 70_000}):
        with refused("'a'"):
            writer.put_many([annotation("a", **bad)])


@pytest.mark.parametrize("damage", [b"", b"\0" * 20, b"\xff" * 80, b"{}"])
def test_a_damaged_record_is_named(writer: Store, damage: bytes) -> None:
    writer.put_many([annotation("good"), annotation("bad")], {"bad": [[1.0]]})
    writer._handle.commit({"annotations": [(b"bad", damage)], "heats": [(b"bad", damage)]})
    with refused("'bad'"):
        writer.get("bad")
    with refused("'bad'"):
        writer.heat("bad")
    assert writer.get("good") == annotation("good")


def test_a_longer_or_shorter_record_is_damaged(writer: Store) -> None:
    value = codec.pack(annotation("a", image="x.png"), b"a")
    assert codec.unpack(b"a", value, MARK) == annotation("a", image="x.png")
    for wrong in (value[:-1], value + b"x"):
        with refused("'a'"):
            codec.unpack(b"a", wrong, MARK)


def test_damaged_maps_and_failures_are_named() -> None:
    cells = np.arange(15, dtype=np.uint8).reshape(3, 5)
    value = Heat(cells, 2.0).packed()
    assert Heat.unpacked(value).cells.tolist() == cells.tolist()
    head = struct.Struct("<2Id")  # rows, columns, maximum; then the cells, compressed
    body = value[head.size :]
    for wrong, *numbers in (
        (value[: head.size - 1],),
        (head.pack(3, 4, 2.0) + body, 13, 3, 4),  # one more than there should be is read, and no more
        (head.pack(3, 7, 2.0) + body, 15, 3, 7),
        (head.pack(0, 5, 2.0) + body,),
        (head.pack(3, 5, float("nan")) + body,),
        (head.pack(3, 5, 2.0) + b"no zlib",),
    ):
        with refused(*numbers, kind=ValueError):
            Heat.unpacked(wrong)
    assert codec.failure(b"a", b'["torn","a"]') == ("a", "torn")
    for broken in (b"\xff", b'["torn"]', b'["torn",1]', b"7"):
        with refused("'a'"):
            codec.failure(b"a", broken)


def test_a_store_of_the_first_schema_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "old"), max_dbs=3) as env, env.begin(write=True) as txn:
        for name in (b"annotations", b"failures", b"meta"):
            table = env.open_db(name, txn=txn)
            if name == b"meta":
                txn.put(b"about", json.dumps({"schema": 1, "fingerprint": MARK, "provenance": {}}).encode(), db=table)
    for opening in (Store.read, lambda path: Store.create_or_resume(path, MARK, {})):
        with refused("schema 1", "reads 2"):
            opening(tmp_path / "old")


def test_a_file_that_lost_its_end_does_not_end_the_process(tmp_path: Path, writer: Store) -> None:
    writer.put_many(annotation(f"{i:05d}", image="x" * 200) for i in range(3000))
    writer.close()
    data = tmp_path / "store" / "data.mdb"
    os.truncate(data, data.stat().st_size // 2)
    for opening in (Store.read, lambda path: Store.create_or_resume(path, MARK, {})):
        with refused("data.mdb"):
            opening(tmp_path / "store")
