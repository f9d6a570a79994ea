"""The annotation store: what is committed stays, whatever happens to the process."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

import cos_core
from cos_core.errors import InputError, LockedError
from cos_core.geometry import Box
from cos_core.store import annotations as store_module
from cos_core.store import environment
from cos_core.store.annotations import Store
from cos_core.types import Annotation

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cos_core.__file__).parents[1])}
MARK = "0123456789abcdef"


def annotation(i: int, **changes: object) -> Annotation:
    values = {
        "example_id": f"{i:06d}#q{i % 3}",
        "box": Box(i / 1000, 0.1, 0.5 + i / 1000, 1 / 3) if i < 500 else None,
        "score": i / 7,
        "policy": "from_single_question",
        "fingerprint": MARK,
        "regions_used": tuple(range(i % 4)),
        "reason": None if i < 500 else "no positive relevance",
        "image": f"coco/{i // 3}.jpg",
    }
    return Annotation(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Store]:
    with Store.create_or_resume(tmp_path / "store", MARK, {"model": "tiny"}) as store:
        yield store


def test_what_is_put_comes_back_equal(writer: Store) -> None:
    items = [annotation(i) for i in range(600)]
    assert writer.put_many(reversed(items)) == 600
    assert list(writer.annotations()) == items, "sorted by id"
    assert writer.get(items[17].example_id) == items[17]
    assert writer.has(items[17].example_id)
    assert writer.get("other") is None
    assert not writer.has("other")
    assert writer.put_many([]) == 0


finite = st.floats(0, 1, allow_subnormal=False)
characters = st.characters(exclude_categories=["Cs"])  # no halves of characters: an id must be valid Unicode


@settings(max_examples=40, deadline=None)
@given(
    ids=st.lists(st.text(characters, min_size=1, max_size=300), min_size=1, max_size=8, unique=True),
    x=st.tuples(finite, finite).filter(lambda v: abs(v[0] - v[1]) > 1e-9),
    y=st.tuples(finite, finite).filter(lambda v: abs(v[0] - v[1]) > 1e-9),
    score=st.floats(allow_nan=False, allow_infinity=False),
    image=st.none() | st.text(),
)
def test_any_annotation_survives_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    ids: list[str],
    x: tuple[float, float],
    y: tuple[float, float],
    score: float,
    image: str | None,
) -> None:
    path = tmp_path_factory.mktemp("store")
    box = Box(min(x), min(y), max(x), max(y))
    items = [Annotation(name, box, score, "p", MARK, (1,), None, image) for name in ids]
    with Store.create_or_resume(path, MARK, {}) as store:
        store.put_many(items)
    with Store.read(path) as store:
        assert [store.get(name) for name in ids] == items
        assert sorted(store.annotations(), key=lambda a: a.example_id) == sorted(items, key=lambda a: a.example_id)


def test_ids_beyond_the_key_limit(writer: Store) -> None:
    names = ["é" * 255 + "x", "é" * 256, "x" * 511, "x" * 512, "x" * 600 + "a", "x" * 600 + "b", "東" * 400]
    items = [annotation(1, example_id=name) for name in names]
    writer.put_many(items)
    assert [writer.get(name) for name in names] == items
    assert sorted(a.example_id for a in writer.annotations()) == sorted(names)
    with pytest.raises(InputError):
        writer.put_many([annotation(1, example_id="")])


def test_half_characters_are_kept(writer: Store) -> None:
    items = [annotation(1, example_id=name) for name in ("\ud800", "a\udcff\n", "x" * 600 + "\udfff")]
    writer.put_many(items)
    writer.put_failures([("\udc80", "no \ud800")])
    assert [writer.get(item.example_id) for item in items] == items
    assert sorted(a.example_id for a in writer.annotations()) == sorted(item.example_id for item in items)
    assert list(writer.failures()) == [("\udc80", "no \ud800")]


def test_failures_are_kept_and_forgotten_when_mended(writer: Store) -> None:
    writer.put_failures([("000004#q1", "the image x.jpg is empty")])
    writer.put_failures([("b" * 700, "naïve \ud800")])
    assert writer.failure("000004#q1") == "the image x.jpg is empty"
    assert not writer.has("000004#q1"), "a rerun tries again"
    assert list(writer.failures()) == [("000004#q1", "the image x.jpg is empty"), ("b" * 700, "naïve \ud800")]
    writer.put_many([annotation(4)])
    assert writer.failure("000004#q1") is None
    assert [name for name, _ in writer.failures()] == ["b" * 700]
    assert (writer.info()["annotations"], writer.info()["failures"]) == (1, 1)


def test_the_map_grows_and_the_batch_is_replayed(writer: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BATCH", 5000)
    big = "x" * 3000
    before = writer._handle._env.info()["map_size"]
    assert writer.put_many(annotation(0, example_id=f"{i:05d}", image=big) for i in range(12_000)) == 12_000
    assert writer._handle._env.info()["map_size"] >= 2 * before
    assert writer.info()["annotations"] == 12_000
    assert sum(1 for _ in writer.annotations()) == 12_000


def test_other_settings_are_refused(tmp_path: Path, writer: Store) -> None:
    writer.put_many([annotation(1)])
    with refused("other", MARK):
        writer.put_many([annotation(2), annotation(3, fingerprint="other")])
    with refused("nan"):
        writer.put_many([annotation(4, score=float("nan"))])
    writer.close()
    with refused(tmp_path / "store", "tiny"):
        Store.create_or_resume(tmp_path / "store", "other", {})
    with Store.create_or_resume(tmp_path / "store", MARK, {"model": "never looked at"}) as again:
        assert again.info()["provenance"] == {"model": "tiny"}
        assert [a.example_id for a in again.annotations()] == ["000001#q1"]


def test_a_store_of_another_schema_is_refused(tmp_path: Path, writer: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    writer.close()
    monkeypatch.setattr(environment, "SCHEMA", 3)
    for opening in (lambda: Store.read(tmp_path / "store"), lambda: Store.create_or_resume(tmp_path / "store", MARK, {})):
        with refused("schema 2", "reads 3"):
            opening()


def test_places_that_are_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "holiday.jpg").write_text("")
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "data.mdb").write_bytes(b"garbage" * 9999)
    with lmdb.open(str(tmp_path / "foreign")) as env, env.begin(write=True) as txn:
        txn.put(b"something", b"else")
    for name in ("none", "file", "full", "garbage", "foreign"):
        with refused(name):
            Store.read(tmp_path / name)
    for name in ("file", "full", "garbage", "foreign"):
        with refused(name):
            Store.create_or_resume(tmp_path / name, MARK, {})
    with lmdb.open(str(tmp_path / "foreign")) as env, env.begin() as txn:
        assert txn.stat()["entries"] == 1, "nothing was written into it"


def test_a_store_killed_while_it_was_made_is_begun_again(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "store"), max_dbs=4) as env, env.begin(write=True) as txn:
        for name in (b"annotations", b"failures", b"heats", b"meta"):
            env.open_db(name, txn=txn)
    with refused(tmp_path / "store"):
        Store.read(tmp_path / "store")
    with Store.create_or_resume(tmp_path / "store", MARK, {}) as store:
        assert store.put_many([annotation(1)]) == 1


def test_a_store_without_a_usable_reader_table_is_read(tmp_path: Path, writer: Store) -> None:
    writer.put_many([annotation(1)])
    writer.close()
    (tmp_path / "store" / "lock.mdb").unlink()
    (tmp_path / "store" / "lock.mdb").mkdir()  # stands for a folder that we may not write to
    with Store.read(tmp_path / "store") as store:
        assert list(store.annotations()) == [annotation(1)]


SECOND_WRITER = """
import sys
from pathlib import Path
from cos_core.store import codec, environment
from cos_core.store.annotations import Store
Store.create_or_resume(Path(sys.argv[1]), "0123456789abcdef", {})
"""


def test_one_writer(tmp_path: Path, writer: Store) -> None:
    with pytest.raises(LockedError):
        Store.create_or_resume(tmp_path / "store", MARK, {})
    command = [sys.executable, "-c", SECOND_WRITER, str(tmp_path / "store")]
    other = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert "LockedError" in other.stderr
    writer.close()
    writer.close()
    with refused(writer.path):
        writer.put_many([annotation(1)])
    with Store.read(tmp_path / "store") as reader:
        with refused(reader.path):
            reader.put_failures([("x", "y")])
        with refused(tmp_path / "store"):
            Store.create_or_resume(tmp_path / "store", MARK, {})
    Store.create_or_resume(tmp_path / "store", MARK, {}).close()


def test_readers_of_one_process_share_and_see_new_commits(tmp_path: Path, writer: Store) -> None:
    first, second = Store.read(tmp_path / "store"), Store.read(tmp_path / "store")
    writer.put_many(annotation(i) for i in range(10))
    assert first.info()["annotations"] == second.info()["annotations"] == 10
    first.close()
    assert second.get("000003#q0") == annotation(3)
    writer.close()
    assert second.has("000003#q0")
    second.close()


READER = """
import sys
from pathlib import Path
from cos_core.store import codec, environment
from cos_core.store.annotations import Store
with Store.read(Path(sys.argv[1])) as store:
    print("open", flush=True)
    for line in sys.stdin:
        print(sum(1 for _ in store.annotations()), store.has(line.strip()), flush=True)
"""


def test_another_process_reads_while_the_map_grows(tmp_path: Path, writer: Store) -> None:
    command = [sys.executable, "-c", READER, str(tmp_path / "store")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        for step in range(1, 5):
            writer.put_many(annotation(0, example_id=f"{step}-{i:04d}", image="x" * 5000) for i in range(2000))
            process.stdin.write(f"{step}-1999\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{2000 * step} True\n"
        assert writer._handle._env.info()["map_size"] > 2**24
        process.stdin.close()


def test_a_forked_worker_reads_on(tmp_path: Path, writer: Store) -> None:
    writer.put_many(annotation(i) for i in range(3000 // 6))
    writer.close()
    with Store.read(tmp_path / "store") as reader:
        assert reader.has("000003#q0")
        results = []
        for _ in range(3):
            child = os.fork()
            if child == 0:
                good = reader.get("000003#q0") == annotation(3) and sum(1 for _ in reader.annotations()) == 500
                os._exit(0 if good else 1)
            results.append(child)
        assert [os.waitpid(child, 0)[1] for child in results] == [0, 0, 0]
        assert reader.get("000003#q0") == annotation(3)


def test_threads_share_a_store(writer: Store) -> None:
    writer.put_many(annotation(i) for i in range(300))
    wrong: list[int] = []

    def look() -> None:
        for i in itertools.islice(itertools.cycle(range(300)), 2000):
            if writer.get(annotation(i).example_id) != annotation(i):
                wrong.append(i)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    writer.put_many(annotation(0, example_id=f"x{i}", image="x" * 4000) for i in range(6000))
    for thread in threads:
        thread.join()
    assert not wrong


def test_export_is_canonical(tmp_path: Path) -> None:
    orders = [range(60), reversed(range(60))]
    for name, order in zip("ab", orders, strict=True):
        with Store.create_or_resume(tmp_path / name, MARK, {"run": name}) as store:
            for i in order:
                store.put_many([annotation(i)])
            store.put_failures([("zz", "broken")])
            assert store.export_jsonl(tmp_path / f"{name}.jsonl") == 60
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [Annotation.from_json(json.loads(line)) for line in lines] == [annotation(i) for i in range(60)]


ANNOTATE = """
import sys
from pathlib import Path
from cos_core.geometry import Box
from cos_core.store import codec, environment
from cos_core.store.annotations import Store
from cos_core.types import Annotation
path, count = Path(sys.argv[1]), int(sys.argv[2])
with Store.create_or_resume(path, "0123456789abcdef", {}) as store:
    names = [f"{i:06d}#q{i % 3}" for i in range(count)]
    todo = [name for name in names if not store.has(name)]
    print("todo", len(todo), flush=True)
    for at in range(0, len(todo), 7):
        batch = todo[at:at + 7]
        store.put_many(
            Annotation(n, Box(int(n[:6]) / 1e6, 0.25, 0.75, 0.875), int(n[:6]) / 3, "p", store.fingerprint, (1, 2), None, "x")
            for n in batch
        )
        print("done", at + len(batch), flush=True)
    store.export_jsonl(path.with_suffix(".jsonl"))
"""


@pytest.mark.parametrize("after", [7, 140, 301])
def test_a_killed_job_loses_nothing_and_the_rerun_does_the_rest(after: int, tmp_path: Path) -> None:
    count = 600
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run([sys.executable, "-c", ANNOTATE, str(whole), str(count)], env=ENVIRONMENT, check=True, capture_output=True)
    command = [sys.executable, "-c", ANNOTATE, str(broken), str(count)]
    committed = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            word, number = line.split()
            if word == "done":
                committed = int(number)
            if committed >= after:
                break
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with Store.read(broken) as store:
        kept = store.info()["annotations"]
    assert committed <= kept < count
    rerun = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert rerun.stdout.splitlines()[0] == f"todo {count - kept}"
    assert broken.with_suffix(".jsonl").read_bytes() == whole.with_suffix(".jsonl").read_bytes()


FULL = """
import resource, signal, sys
from pathlib import Path
from cos_core.errors import InputError
from cos_core.store import codec, environment
from cos_core.store.annotations import Store
from cos_core.types import Annotation
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Store.create_or_resume(Path(sys.argv[1]), "f", {}) as store:
    store.put_many(Annotation(f"a{i}", None, 0.0, "p", "f", (), "x" * 500) for i in range(100))
    size = (Path(sys.argv[1]) / "data.mdb").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        store.put_many(Annotation(f"b{i}", None, 0.0, "p", "f", (), "x" * 500) for i in range(100_000))
    except InputError as error:
        print(error)
"""


def test_a_full_disk_keeps_what_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert "store" in done.stdout, done.stderr
    with Store.create_or_resume(path, "f", {}) as store:
        assert sum(store.has(f"a{i}") for i in range(100)) == 100
        store.put_many([Annotation("later", None, 0.0, "p", "f", (), "reason")])
        assert store.has("later")


@pytest.mark.parametrize(
    "left",
    [
        {},
        {"writer.lock": b""},
        {"writer.lock": b"99999\n"},
        {"lock.mdb": b""},
        {"lock.mdb": bytes(2**17)},
        {"lock.mdb": bytes(2**17), "data.mdb": b""},
    ],
)
def test_a_store_killed_at_any_step_of_its_making_goes_on(tmp_path: Path, left: dict[str, bytes]) -> None:
    path = tmp_path / "store"
    path.mkdir()
    for name, content in left.items():
        (path / name).write_bytes(content)
    with Store.create_or_resume(path, "f" * 16, {}) as store:
        assert store.info()["annotations"] == 0


def test_a_store_that_is_replaced_while_it_is_written_is_noticed(tmp_path: Path) -> None:
    with Store.create_or_resume(tmp_path / "store", "f" * 16, {}) as store:
        store.put_failures([("a", "why")])
        (tmp_path / "store").rename(tmp_path / "away")
        with refused(tmp_path / "store"):
            store.put_failures([("b", "why")])
