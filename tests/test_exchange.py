"""`cos store export` and `import` on what cannot be used: bad lines, other jobs, lost pictures, full disks, the own store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import formats_world
import pytest
from formats_world import ENVIRONMENT, annotations
from reporters import Told

from cos_core.data.datasets import read_examples
from cos_core.data.formats import FORMATS
from cos_core.data.formats.exchange import StoreExportConfig, StoreImportConfig, export, load
from cos_core.errors import InputError
from cos_core.files import manifest
from cos_core.interfaces import SilentReporter
from cos_core.store.annotations import Store


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return formats_world.make(tmp_path)


def test_bad_lines_cost_themselves_only(world: Path) -> None:
    export(StoreExportConfig(world / "store", world / "file", "jsonl", failures=True, heats=True), SilentReporter())
    good = (world / "file").read_text().splitlines()
    first = json.loads(good[0])
    changes: list[dict] = [
        {"box": [0.5, 0, 0.1, 1]},
        {"score": "high"},
        {"score": 1e999},
        {"heat": {"cells": [[256]], "top": 1.0}},
        {"heat": {"cells": [[1]], "top": -1}},
        {"image": 5},
        {"example_id": ""},
        {"regions_used": [-1]},
        {"regions_used": ["a"]},
    ]
    bad = ["{", "7", "{}", '{"example_id": "z", "failure": 5}', *(json.dumps({**first, **change}) for change in changes)]
    (world / "mixed").write_text("\n".join([*bad, *good]) + "\n")
    told = Told()
    found = load(StoreImportConfig(world / "mixed", world / "m", "jsonl"), told)
    assert found.counts["failed"] == len(bad)
    assert annotations(world / "m") == annotations(world / "store")
    assert f"{world / 'mixed'}:1: not valid JSON" in told.warnings[0]
    assert told.warnings[-1] == f"{len(bad) - 5} more problems in {world / 'mixed'}"


def test_bad_lines_of_visual_cot_say_why(world: Path) -> None:
    meta = {"question": "q", "answer": "a", "image": "coco/a.png", "width": 97, "height": 61, "bboxs": [[1, 2, 30, 40]],
            "dataset": "d", "split": "train"}  # fmt: skip
    talk = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "this"}]
    marked = ["coco/a.png", "coco/a.png###[1, 2, 30, 40]"]
    turned = {"question_id": 7, "image": marked, "conversations": talk, "dataset": "d", "split": "train"}
    cases = [
        ({**meta, "bboxs": [[1, 2, 30]]}, "a box is [left, top, right, bottom] in pixels"),
        ({**meta, "bboxs": [[1, 2, "30", 40]]}, "a box is [left, top, right, bottom] in pixels"),
        ({**meta, "question": ""}, "`question` must be a text"),
        ({**meta, "score": True}, "`score` must be a number"),
        ({"question": "q"}, "neither metadata (`bboxs`) nor a converted sample"),
        ({**turned, "image": ["coco/a.png"]}, "`image` must be a list that ends with"),
        ({**turned, "image": [*marked[:1], "coco/a.png###[1, 2, 3O, 40]"]}, "is not four numbers"),
        ({**turned, "conversations": talk[:1]}, "`conversations` must be a list of turns"),
        ({**turned, "conversations": [{"value": "<image>"}, talk[1]]}, "the first turn is empty"),
        ({**turned, "dataset": 1}, "`dataset` must be a text"),
    ]
    for line, words in cases:
        (world / "v.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (meta, line)))
        told = Told()
        config = StoreImportConfig(
            world / "v.jsonl", world / f"v{cases.index((line, words))}", "visual-cot", images=world / "images"
        )
        found = load(config, told)
        assert (found.counts["ok"], found.counts["failed"]) == (1, 1), line
        assert told.warnings[0].startswith(f"{world / 'v.jsonl'}:2: "), told.warnings
        assert words in told.warnings[0]


def test_files_of_another_job_or_none(world: Path) -> None:
    export(StoreExportConfig(world / "store", world / "file", "jsonl"), SilentReporter())
    line = json.loads((world / "file").read_text().splitlines()[0])
    (world / "two").write_text((world / "file").read_text() + json.dumps({**line, "fingerprint": "other"}) + "\n")
    with pytest.raises(InputError, match=r"two:7: fingerprint 'other', before it '0123456789abcdef'"):
        load(StoreImportConfig(world / "two", world / "t", "jsonl"), SilentReporter())
    with Store.create_or_resume(world / "theirs", "f" * 16, {}):
        pass
    with pytest.raises(InputError, match="was made with other settings"):
        load(StoreImportConfig(world / "file", world / "theirs", "jsonl"), SilentReporter())
    (world / "empty").write_text("")
    (world / "list").write_text("[]")
    for name, form, said in (
        ("empty", "jsonl", "holds no region"),
        ("list", "coco", "is not a COCO file"),
        ("empty", "coco", "not valid JSON"),
    ):
        with pytest.raises(InputError, match=said):
            load(StoreImportConfig(world / name, world / "e", form), SilentReporter())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot be read"):
        load(StoreImportConfig(world / "none", world / "e", "jsonl"), SilentReporter())
    assert not (world / "e").exists(), "nothing is made for a file that holds nothing"


def test_unknown_ids_are_told(world: Path) -> None:
    export(StoreExportConfig(world / "store", world / "file", "jsonl"), SilentReporter())
    (world / "few.json").write_text(json.dumps(json.loads((world / "data.json").read_text())[:2]))
    told = Told()
    found = load(StoreImportConfig(world / "file", world / "few", "jsonl", data=world / "few.json"), told)
    assert (found.counts["ok"], found.counts["failed"]) == (2, 4)
    assert "no such example in" in told.warnings[0]


def test_pictures_that_are_gone(world: Path) -> None:
    (world / "images" / "coco" / "b.jpg").unlink()
    told = Told()
    found = export(StoreExportConfig(world / "store", world / "f", "coco", images=world / "images"), told)
    assert (found.counts["ok"], found.counts["failed"]) == (4, 1)
    assert "there is no image" in told.warnings[0]
    sized = [{**e.to_json(), "meta": {**e.meta, "width": 53, "height": 83}} for e in read_examples(world / "data.json")]
    (world / "sized.jsonl").write_text("".join(json.dumps(e) + "\n" for e in sized))
    found = export(StoreExportConfig(world / "store", world / "f", "coco", data=world / "sized.jsonl"), told)
    assert found.counts["ok"] == 5, "sizes that the data states need no pictures"


@pytest.mark.parametrize("form", FORMATS)
def test_needs_are_said_at_once(form: str, world: Path) -> None:
    wants = {"jsonl": None, "parquet": None, "chain-of-spot": "--data", "coco": "--images", "visual-cot": "--data"}[form]
    if wants is not None:
        with pytest.raises(InputError, match=wants):
            StoreExportConfig(world / "store", world / "f", form)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"{form}x"):
        StoreExportConfig(world / "store", world / "f", form + "x")  # type: ignore[arg-type]


def test_an_export_never_replaces_the_store(world: Path) -> None:
    (world / "link").symlink_to("store/data.mdb")
    for out in (world / "store", world / "store" / "data.mdb", world / "link"):
        with pytest.raises(InputError, match="lies in the store itself"):
            StoreExportConfig(world / "store", out, "jsonl")
    (world / "self").symlink_to("self")
    with pytest.raises(InputError, match="self cannot be written: Too many levels of symbolic links"):
        export(StoreExportConfig(world / "store", world / "self", "jsonl"), Told())
    assert (world / "self").is_symlink()


FULL = """
import resource, signal, sys
from pathlib import Path
from cos_core.errors import InputError
from cos_core.data.formats.exchange import StoreImportConfig, load
from cos_core.interfaces import SilentReporter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    load(StoreImportConfig(Path(sys.argv[1]), Path(sys.argv[2]), "jsonl"), SilentReporter())
except InputError as error:
    print(error)
"""


def test_a_full_disk_keeps_what_was_imported_and_the_rest_follows(world: Path) -> None:
    one = annotations(world / "store")[0].to_json()
    with (world / "big").open("w") as file:
        for i in range(9000):
            file.write(json.dumps({**one, "example_id": f"{i:05d}", "image": "x" * 100}) + "\n")
    command = [sys.executable, "-c", FULL, str(world / "big"), str(world / "full")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert "cannot be written" in done.stdout, done.stderr
    assert not manifest.path_for(world / "full").exists(), "not finished"
    with Store.read(world / "full") as store:
        assert store.info()["annotations"] == 4096, "the first batch"
    load(StoreImportConfig(world / "big", world / "full", "jsonl"), SilentReporter())
    assert len(annotations(world / "full")) == 9000


SMALL = """
set -e
mount -t tmpfs -o size=2m tmpfs "$1"
"$2" -m cos_cli store import "$3" --out "$1/s" || echo "code $?"
"$2" -m cos_cli store verify "$1/s"
mount -o remount,size=64m "$1"
"$2" -m cos_cli store import "$3" --out "$1/s" --quiet
"$2" -m cos_cli store verify "$1/s"
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full(world: Path) -> None:
    (world / "disk").mkdir()
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*inside, 'mount -t tmpfs tmpfs "$0"', str(world / "disk")], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets nobody but root mount a small disk")
    one = annotations(world / "store")[0].to_json()
    with (world / "big").open("w") as file:
        file.writelines(json.dumps({**one, "example_id": f"{i:05d}", "image": "x" * 100}) + "\n" for i in range(14_000))
    command = [*inside, SMALL, "sh", str(world / "disk"), sys.executable, str(world / "big")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot be written: the disk is full; what was committed is kept, the same command continues" in done.stderr
    assert done.stdout.splitlines() == [
        "code 3",
        f"{world / 'disk' / 's'} is sound: 8,192 annotations, 0 heats, 0 failures",
        f"{world / 'disk' / 's'} is sound: 14,000 annotations, 0 heats, 0 failures",
    ]
