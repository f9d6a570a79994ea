"""Parts into one store, the check of a store, its statistics: real stores, real kills."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from refusals import refused

import cos_core
from cos_core.errors import LockedError
from cos_core.files import filesystems, manifest
from cos_core.geometry import Box
from cos_core.interfaces import SilentReporter
from cos_core.store import codec
from cos_core.store import merge as merging
from cos_core.store.annotations import Store
from cos_core.store.check import check
from cos_core.store.merge import MergeConfig, merge, run
from cos_core.store.statistics import MOST_REASONS, OTHERS, statistics
from cos_core.types import Annotation

MARK = "0123456789abcdef"
QUIET = SilentReporter()
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cos_core.__file__).parents[1])}


def annotation(i: int, score: float = 1.0, box: Box | None = None, **changes: object) -> Annotation:
    return Annotation(f"{i:05d}", box or Box(0.1, 0.2, 0.5, 0.7), score, "p", MARK, **changes)  # type: ignore[arg-type]


def made(path: Path, numbers: Iterable[int], failures: Iterable[tuple[str, str]] = (), mark: str = MARK) -> Path:
    """A store with the annotations `numbers`; every third has a map."""
    numbers = list(numbers)
    with Store.create_or_resume(path, mark, {"model": "tiny"}) as store:
        heats = {f"{i:05d}": [[i, 1.0], [0.5, 2.0]] for i in numbers if i % 3 == 0}
        store.commit([annotation(i) for i in numbers], heats, failures)
    return path


def exported(path: Path) -> bytes:
    with Store.read(path) as store:
        store.export_jsonl(path.parent / "export.jsonl", failures=True, heats=True)
    return (path.parent / "export.jsonl").read_bytes()


def test_the_order_of_the_parts_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "BATCH", 7)
    parts = [
        made(tmp_path / "a", range(0, 40, 2), [("00001", "torn"), ("x", "second"), ("y", "only a")]),
        made(tmp_path / "b", range(1, 40, 2), [("00002", "torn"), ("x", "first")]),
        made(tmp_path / "c", range(10, 50), []),
    ]
    results = set()
    for place, order in enumerate(permutations(parts)):
        assert merge(order, tmp_path / f"out{place}", QUIET) == 50
        results.add(exported(tmp_path / f"out{place}"))
    assert len(results) == 1
    with Store.read(tmp_path / "out0") as store:
        assert [a.example_id for a in store.annotations()] == [f"{i:05d}" for i in range(50)]
        assert list(store.failures()) == [("x", "first"), ("y", "only a")], "an annotation wins over a failure"
        assert store.info()["heats"] == 17
        assert store.heat("00003") == ((3.0, pytest.approx(1.0, abs=3 / 510)), (pytest.approx(0.5, abs=3 / 510), 2.0))
        assert store.info()["provenance"] == {"model": "tiny"}
    whole = made(tmp_path / "whole", range(50), [("x", "first"), ("y", "only a")])
    assert exported(whole) == results.pop(), "as if it had never been in parts"
    assert check(tmp_path / "out0", QUIET).faults == 0


def test_again_and_with_later_parts(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a", range(5), [("00007", "torn")]), made(tmp_path / "b", range(5, 9))
    found = run(MergeConfig((a,), tmp_path / "out"), QUIET)
    assert (found.counts["ok"], found.counts["failed"], found.counts["new"]) == (5, 1, 5)
    before = exported(tmp_path / "out")
    assert run(MergeConfig((a,), tmp_path / "out"), QUIET).counts["new"] == 0
    assert exported(tmp_path / "out") == before
    found = run(MergeConfig((b, a), tmp_path / "out"), QUIET)
    assert (found.counts["ok"], found.counts["failed"], found.counts["new"]) == (9, 0, 4)
    assert manifest.read(tmp_path / "out").stage == "store merge"


def test_conflicts_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    parts = [made(tmp_path / name, range(9)) for name in "ab"]
    with Store.create_or_resume(parts[1], MARK, {}) as store:
        store.commit([annotation(i, score=2.0) for i in range(7)])
    with refused("7 examples", "'00000'", "2 more"):
        merge(parts, tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()
    maps = [made(tmp_path / name, [3]) for name in "cd"]
    with Store.create_or_resume(maps[1], MARK, {}) as store:
        store.commit([annotation(3)], {"00003": [[0.25]]})
    with refused("1 example", "'00003'"):
        merge(maps, tmp_path / "out", QUIET)
    made(tmp_path / "out", [4])
    with Store.create_or_resume(tmp_path / "e", MARK, {}) as store:
        store.commit([annotation(4, score=9.0)])
    with refused("'00004'"):
        merge([tmp_path / "e"], tmp_path / "out", QUIET)


def test_parts_that_cannot_be_merged(tmp_path: Path) -> None:
    a = made(tmp_path / "a", range(3))
    other = tmp_path / "other"
    with Store.create_or_resume(other, "f" * 16, {}) as store:
        store.put_failures([("x", "y")])
    for parts, out, facts in (
        ([a, other], "out", (MARK, "f" * 16)),
        ([a, tmp_path / "none"], "out", (tmp_path / "none",)),
        ([a, a], "out", (a,)),
        ([a], "a", (a,)),
        ([a], "other", (other, "tiny")),
        ([], "out", ()),
    ):
        with refused(*facts):
            merge(parts, tmp_path / out, QUIET)
    with Store.create_or_resume(tmp_path / "live", MARK, {}), refused("live", kind=LockedError):
        merge([a, tmp_path / "live"], tmp_path / "out", QUIET)
    with Store.create_or_resume(tmp_path / "out", MARK, {}), refused("out", kind=LockedError):
        merge([a], tmp_path / "out", QUIET)


MERGE = """
import sys
from pathlib import Path
from cos_core.interfaces import SilentReporter
from cos_core.store import merge as merging
merging.BATCH = 50
merging.merge([Path(p) for p in sys.argv[2:]], Path(sys.argv[1]), SilentReporter())
"""


def test_a_killed_merge_is_done_again(tmp_path: Path) -> None:
    parts = [made(tmp_path / name, range(start, 4000, 2), [(f"f{start}", "torn")]) for name, start in (("a", 0), ("b", 1))]
    command = [sys.executable, "-c", MERGE, str(tmp_path / "out"), *map(str, parts)]
    dice, killed = random.Random(7), 0
    for _ in range(4):
        with subprocess.Popen(command, env=ENVIRONMENT) as process:
            while not (tmp_path / "out" / "data.mdb").exists() and process.poll() is None:
                time.sleep(0.01)
            time.sleep(dice.uniform(0.0, 0.3))
            killed += process.poll() is None
            process.send_signal(signal.SIGKILL)
    assert killed, "a kill that comes after the end shows nothing"
    assert subprocess.run(command, env=ENVIRONMENT, check=False).returncode == 0
    merge(parts, tmp_path / "whole", QUIET)
    assert exported(tmp_path / "out") == exported(tmp_path / "whole")
    assert check(tmp_path / "out", QUIET).to_json() == {
        "annotations": 4000,
        "heats": 1334,
        "failures": 2,
        "faults": 0,
        "first": [],
    }


def test_the_check_names_what_is_wrong(tmp_path: Path) -> None:
    path = made(tmp_path / "s", range(4), [("gone", "no picture")])
    with Store.create_or_resume(path, MARK, {}) as store:
        good = codec.pack(annotation(1), b"x")
        swapped = codec.HEAD.pack(0.5, 0.2, 0.1, 0.7, 1.0, 0, 0, 0, 0, 0)
        store._handle.commit(
            {
                "annotations": [(b"00001", b"short"), (b"swapped", swapped), (b"\xff\xfe", good)],
                "heats": [(b"orphan", b"\1")],
                "failures": [(b"00002", b'["late", "00002"]'), (b"odd", b'["torn", "even"]'), (b"json", b"[")],
            }
        )
    found = check(path, QUIET)
    said = "\n".join(found.first)
    assert found.faults == 8
    assert found.counts == {"annotations": 6, "heats": 3, "failures": 4}
    for words in (
        "annotations: the record '00001' is damaged",
        "annotations: the record 'swapped' is damaged: a box needs",
        r"annotations: the record '\\xff\\xfe' is damaged",
        "heats: the map 'orphan' is damaged",
        "heats: the map 'orphan' has no annotation",
        "failures: '00002' has an annotation, too",
        "failures: the key 'odd' is not that of the id 'even'",
        "failures: the failure 'json' is damaged",
    ):
        assert words in said


def test_statistics_equal_plain_numpy(tmp_path: Path) -> None:
    random_numbers = np.random.default_rng(5)
    low = random_numbers.uniform(0, 0.6, (9001, 2))
    corners = np.concatenate([low, low + random_numbers.uniform(0.05, 0.4, (9001, 2))], axis=1)
    scores = random_numbers.normal(2, 1, 9001)
    with Store.create_or_resume(tmp_path / "s", MARK, {}) as store:
        store.put_many(annotation(i, s, Box(*map(float, c))) for i, (s, c) in enumerate(zip(scores, corners, strict=True)))
        store.put_many(Annotation(f"n{i}", None, 0.0, "q", MARK, reason="flat") for i in range(11))
        store.put_failures((f"f{i:03d}", f"no image {i}") for i in range(60))
    found = statistics(tmp_path / "s", QUIET)
    side = corners[:, 2:] - corners[:, :2]
    assert found["examples"] == 9072
    assert {name: part["count"] for name, part in found["status"].items()} == {"labelled": 9001, "failed": 60, "no region": 11}
    assert found["policies"] == {"p": 9001, "q": 11}
    assert found["reasons"]["no region"] == {"flat": 11}
    assert found["reasons"]["failed"][OTHERS] == 60 - MOST_REASONS
    assert found["area"]["mean"] == pytest.approx(side.prod(axis=1).mean(), rel=1e-12)
    assert found["aspect"]["mean"] == pytest.approx(np.exp(np.log(side[:, 0] / side[:, 1]).mean()), rel=1e-12)
    offset = np.hypot(*((corners[:, :2] + corners[:, 2:]) / 2 - 0.5).T)
    assert found["centre_offset"]["mean"] == pytest.approx(offset.mean(), rel=1e-12)
    assert list(found["score"].values()) == np.quantile(scores, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1]).tolist()


def test_statistics_without_boxes(tmp_path: Path) -> None:
    with Store.create_or_resume(tmp_path / "s", MARK, {}):
        pass
    found = statistics(tmp_path / "s", QUIET)
    assert (found["examples"], found["boxes"], found["status"]) == (0, 0, {})
    assert set(found["score"].values()) == {None}


def test_network_file_systems(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    (tmp_path / "my data").mkdir()
    lines = ["/dev/sda1 / ext4 rw 0 0", f"srv:/x {tmp_path}/far nfs4 rw 0 0", f"h:/y {tmp_path}/my\\040data fuse.sshfs rw 0 0"]
    lines += [
        f"/dev/b {tmp_path}/far/near xfs rw 0 0",
        f"l {tmp_path}/l lustre rw 0 0",
        f"o {tmp_path}/o fuse.fuse-overlayfs rw 0 0",
        "odd",
        lines[0],
    ]
    mounts.write_text("\n".join(lines) + "\n")
    kinds = {
        "far/store": "nfs4",
        "far": "nfs4",
        "farther": None,
        "far/near/s": None,
        "my data/s": "fuse.sshfs",
        "l/s": "lustre",
    }
    assert {name: filesystems.network_type(tmp_path / name, mounts) for name in kinds} == kinds
    assert filesystems.network_type(tmp_path / "o", mounts) is None
    assert "network file system (lustre)" in (filesystems.warning(tmp_path / "l", mounts) or "")
    assert filesystems.warning(tmp_path, tmp_path / "no such file") is None


def test_too_many_parts_for_the_open_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from cos_core.store import merge as merging

    monkeypatch.setattr(merging.resource, "getrlimit", lambda _: (256, 256))
    with refused(300, 47):
        merging._check_files(300)
    merging._check_files(40)
