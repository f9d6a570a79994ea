"""`cos store export --format parquet` and its way back: equal to the bit, in files that pyarrow and `datasets` read."""

from __future__ import annotations

import gc
import json
import random
from pathlib import Path

import formats_world
import numpy as np
import pytest
from formats_world import MARK, annotations
from refusals import refused
from reporters import Told

from cos_core.data.datasets import read_examples
from cos_core.data.formats import parquet_files
from cos_core.data.formats.exchange import StoreExportConfig, StoreImportConfig, export, load
from cos_core.errors import InputError
from cos_core.geometry import Box
from cos_core.interfaces import SilentReporter
from cos_core.store.annotations import Store
from cos_core.types import Annotation

pq = pytest.importorskip("pyarrow.parquet", reason="the extra arrow is not installed; make setup installs it")
pa = pytest.importorskip("pyarrow", reason="the extra arrow is not installed; make setup installs it")

DATASETS_TYPES = ("string", "double", "binary", "int32", "list<element: double>", "list<element: uint32>")
"""Types that `datasets` takes from a parquet schema as they are (features.py, `generate_from_arrow_type`)."""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return formats_world.make(tmp_path)


def published(world: Path, **options: object) -> tuple[Told, dict]:
    told = Told()
    made = export(StoreExportConfig(world / "store", world / "out", "parquet", **options), told)  # type: ignore[arg-type]
    return told, made.counts


def rows_of(world: Path) -> list[dict]:
    return [row for path in parquet_files.files_of(world / "out") for row in pq.read_table(path).to_pylist()]


def test_out_and_in_is_equal_to_the_bit(world: Path) -> None:
    told, counts = published(world, heats=True)
    assert (told.warnings, counts) == ([], {"ok": 6, "failed": 0, "skipped": 0})
    found = load(StoreImportConfig(world / "out", world / "again", "parquet"), told)
    assert {k: found.counts[k] for k in ("ok", "no_region", "heats", "failed")} == {
        "ok": 5, "no_region": 1, "heats": 2, "failed": 0}  # fmt: skip
    assert annotations(world / "again") == annotations(world / "store")
    with Store.read(world / "again") as again, Store.read(world / "store") as store:
        assert again.info()["provenance"] == {"model": "tiny"}, "from the metadata, whatever lies beside the file"
        assert again.fingerprint == MARK
        for name in ("x/1#q0", "y#q0"):
            assert (again.quantised_heat(name) is None) == (store.quantised_heat(name) is None)
        first, second = store.quantised_heat("x/1#q0"), again.quantised_heat("x/1#q0")
        assert first is not None
        assert second is not None
        assert (first.cells.tolist(), first.top) == (second.cells.tolist(), second.top)


def test_boxes_that_no_float32_holds(tmp_path: Path) -> None:
    """Corners of 53 random bits, the smallest and the nearest to 1: one float32 column would change every one of them."""
    draw = random.Random(5)
    boxes: list[Box] = []
    for _ in range(400):
        (x0, x1), (y0, y1) = (sorted((draw.random(), draw.random())) for _ in "xy")
        boxes.append(Box(x0, y0, x1, y1))
    boxes += [Box(-0.0, 5e-324, 1 - 2**-53, 1.0), Box(1 / 3, 0.1, 2 / 3, 0.3)]
    items = [Annotation(f"e{i:03}", b, draw.random() * 1e-9, "p", MARK, (), None, "a.png") for i, b in enumerate(boxes)]
    assert sum(float(np.float32(v)) != v for box in boxes for v in box.corners) >= 1600
    with Store.create_or_resume(tmp_path / "store", MARK, {}) as store:
        store.put_many(items)
    published(tmp_path)
    load(StoreImportConfig(tmp_path / "out", tmp_path / "again", "parquet"), SilentReporter())
    found = annotations(tmp_path / "again")
    assert [[v.hex() for v in a.box.corners] for a in found if a.box] == [[v.hex() for v in box.corners] for box in boxes]
    assert [a.score.hex() for a in found] == [a.score.hex() for a in items]  # type: ignore[union-attr]


def test_what_the_files_say(world: Path) -> None:
    _, counts = published(world, heats=True, data=world / "data.json")
    assert counts["ok"] == 6
    (path,) = parquet_files.files_of(world / "out")
    assert path == world / "out" / "data" / "train-00000-of-00001.parquet"
    schema = pq.read_schema(path)
    assert {str(field.type) for field in schema} <= set(DATASETS_TYPES)
    assert schema.names == ["id", "question", "answer", "image", "box", "score", "policy", "regions_used", "reason",
                            "fingerprint", "heat", "heat_rows", "heat_columns", "heat_top"]  # fmt: skip
    kept = json.loads(schema.metadata[b"cos"])
    assert (kept["frame"], kept["unit"], kept["fingerprint"], kept["settings"]) == (
        "image", "fraction", MARK, {"model": "tiny"})  # fmt: skip
    rows = rows_of(world)
    examples = {e.id: e for e in read_examples(world / "data.json")}
    assert [(r["question"], r["answer"]) for r in rows] == [
        (examples[r["id"]].question, examples[r["id"]].answers[0]) for r in rows
    ]
    first, last = rows[0], rows[-1]
    assert (first["box"], first["image"], first["regions_used"]) == ([0.1, 0.2, 0.437, 0.9], "coco/a.png", [0, 3])
    assert (last["box"], last["reason"]) == (None, "flat")
    assert (first["heat"], first["heat_rows"], first["heat_columns"], first["heat_top"]) == (
        bytes([36, 255, 0, 73]), 2, 2, 0.7)  # fmt: skip
    assert last["heat"] == b"\0"


def test_the_card_counts_and_says_what_made_it(world: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with the extra docs; make setup installs it")
    published(world)
    text = (world / "out" / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["configs"] == [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}]
    assert "license" not in header
    assert header["size_categories"] == ["n<1K"]
    for line in ("| rows | 6 |", "| with a box | 5 |", "| examples that failed, left out | 1 |", "| model | tiny |"):
        assert line in text
    assert MARK in text
    published(world)
    (world / "out" / "README.md").write_text("# mine\n")
    with refused(world / "out" / "README.md"):
        published(world)


def test_paths_of_the_machine_are_not_published(tmp_path: Path) -> None:
    made_with = {"model": "/home/me/llava-7b", "imported": {"path": ["/a/b.json"], "format": "a/b"}, "layers": 3}
    with Store.create_or_resume(tmp_path / "store", MARK, made_with) as store:
        store.put_many([Annotation("a", Box(0, 0, 1, 1), 1.0, "p", MARK, (), None, "a.png")])
    published(tmp_path)
    (path,) = parquet_files.files_of(tmp_path / "out")
    assert json.loads(pq.read_schema(path).metadata[b"cos"])["settings"] == {
        "model": "llava-7b", "imported": {"path": ["b.json"], "format": "a/b"}, "layers": 3}  # fmt: skip
    assert "/home" not in (tmp_path / "out" / "README.md").read_text()


def test_several_files_and_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_files, "SHARD_ROWS", 40)
    monkeypatch.setattr(parquet_files, "GROUP_ROWS", 16)
    items = [Annotation(f"e{i:03}", Box(0, 0, 1 / (i + 1), 1), i, "p", MARK, (), None, "a.png") for i in range(100)]
    with Store.create_or_resume(tmp_path / "store", MARK, {}) as store:
        store.put_many(items)
    published(tmp_path)
    files = parquet_files.files_of(tmp_path / "out")
    assert [p.name for p in files] == [f"train-{i:05d}-of-00003.parquet" for i in range(3)]
    assert [pq.ParquetFile(p).num_row_groups for p in files] == [3, 3, 2]
    load(StoreImportConfig(tmp_path / "out", tmp_path / "again", "parquet"), SilentReporter())
    assert annotations(tmp_path / "again") == annotations(tmp_path / "store")
    monkeypatch.setattr(parquet_files, "SHARD_ROWS", 1000)
    published(tmp_path)
    assert len(parquet_files.files_of(tmp_path / "out")) == 1, "earlier files are gone"
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == ["README.md", "data", "manifest.json"]


def test_files_of_others(tmp_path: Path) -> None:
    good = {"example_id": "a", "box": [0.1, 0.2, 0.3, 0.4]}
    bad = [
        {"example_id": "b", "box": [0.1, 0.2, 0.3]},
        {"example_id": "c", "box": [0.5, 0, 0.1, 1]},
        {"example_id": None, "box": None},
    ]
    pq.write_table(pa.Table.from_pylist([good, *bad]), tmp_path / "theirs.parquet")
    told = Told()
    found = load(StoreImportConfig(tmp_path / "theirs.parquet", tmp_path / "s", "parquet"), told)
    assert (found.counts["ok"], found.counts["failed"]) == (1, 3)
    for place, said in zip((2, 3, 4), told.warnings, strict=True):
        assert f"theirs.parquet:{place}: " in said
    (record,) = annotations(tmp_path / "s")
    assert (record.box, record.policy) == (Box(0.1, 0.2, 0.3, 0.4), "imported")
    pq.write_table(pa.table({"question": ["q"]}), tmp_path / "none.parquet")
    with refused(tmp_path / "none.parquet", "`box`", "question"):
        load(StoreImportConfig(tmp_path / "none.parquet", tmp_path / "t", "parquet"), SilentReporter())
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "theirs.parquet").read_bytes()[:-20])
    with refused(tmp_path / "torn.parquet"):
        load(StoreImportConfig(tmp_path / "torn.parquet", tmp_path / "t", "parquet"), SilentReporter())
    other = pa.schema([("id", pa.string()), ("box", pa.list_(pa.float64()))], {b"cos": b'{"frame": "square"}'})
    pq.write_table(pa.Table.from_pylist([{"id": "a", "box": [0, 0, 1, 1]}], schema=other), tmp_path / "square.parquet")
    with refused(tmp_path / "square.parquet", "'square'"):
        load(StoreImportConfig(tmp_path / "square.parquet", tmp_path / "t", "parquet"), SilentReporter())


def test_what_parquet_cannot_hold_is_counted(tmp_path: Path) -> None:
    items = [
        Annotation(name, Box(0, 0, 1, 1), 1.0, "p", MARK, (), None, image) for name, image in (("a", "\udcff"), ("b", "b"))
    ]
    with Store.create_or_resume(tmp_path / "store", MARK, {}) as store:
        store.put_many(items)
    told, counts = published(tmp_path)
    assert counts == {"ok": 1, "failed": 1, "skipped": 0}
    assert "`image`" in told.warnings[0]
    (tmp_path / "out" / "data" / "notes.txt").write_text("mine")
    with refused(tmp_path / "out" / "data", "notes.txt"):
        published(tmp_path)
    assert (tmp_path / "out" / "data" / "notes.txt").read_text() == "mine"


def test_a_failed_export_leaves_the_earlier_one(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    schema = pa.schema([("id", pa.string())])
    with parquet_files.shards(tmp_path / "data", schema) as out:
        out.add({"id": "first"})
    with refused("torn"), parquet_files.shards(tmp_path / "data", schema) as out:
        for number in range(2 * parquet_files.GROUP_ROWS):
            out.add({"id": str(number)})
        raise InputError("torn")
    gc.collect()
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    (path,) = parquet_files.files_of(tmp_path)
    assert pq.read_table(path).to_pylist() == [{"id": "first"}]
    assert list(recwarn) == [], "nothing is written to a file that is closed"
