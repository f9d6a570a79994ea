"""`cos store` as it is typed: every command on a real store, and what scripts rely on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cos_cli import main
from cos_core.geometry import Box
from cos_core.store.annotations import Store
from cos_core.types import Annotation
from cos_core.visualize.relevance_maps import read_heat

MARK = "0123456789abcdef"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (200, 100), "grey").save(tmp_path / "images" / "a.png")
    with Store.create_or_resume(tmp_path / "rois", MARK, {"model": "tiny", "rule": {"threshold": 0.5}}) as opened:
        items = [Annotation(f"a{i}", Box(0.1, 0.2, 0.5, 0.7), 1.5 + i, "p", MARK, (i,), image="a.png") for i in range(3)]
        items.append(Annotation("b", None, 0.0, "p", MARK, reason="no positive relevance"))
        opened.commit(items, {"a1": [[0.0, 1.0], [0.5, 0.25]]}, [("bad\x1b[31m", "torn")])
    return tmp_path / "rois"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main.run(["store", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_info(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", store)
    assert code == 0
    rows = dict(line.strip().split(maxsplit=1) for line in out.splitlines())
    assert (rows["schema"], rows["fingerprint"], rows["annotations"], rows["failures"], rows["heats"]) == (
        "2",
        MARK,
        "4",
        "1",
        "1",
    )
    assert rows["rule"] == '{"threshold": 0.5}'
    found = json.loads(run(capsys, "info", store, "--json")[1])
    assert found["provenance"] == {"model": "tiny", "rule": {"threshold": 0.5}}


def test_ls(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "ls", store)[1] == "a0\na1\na2\nb\n"
    assert run(capsys, "ls", store, "--prefix", "a", "--limit", 2)[1] == "a0\na1\n"
    assert run(capsys, "ls", store, "--no-region")[1] == "b\tno positive relevance\n"
    assert run(capsys, "ls", store, "--failures")[1] == "bad\\x1b[31m\ttorn\n", "ids do not steer the terminal"
    assert json.loads(run(capsys, "ls", store, "--failures", "--json")[1]) == {
        "examples": [{"example_id": "bad\x1b[31m", "reason": "torn"}]
    }
    assert run(capsys, "ls", store, "--failures", "--no-region")[0] == 2


def test_get(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "get", store, "a1")
    assert code == 0
    assert "[0.1, 0.2, 0.5, 0.7], 20.0% of the picture" in out
    assert out.splitlines()[-2:] == ["  @@", "++::"], "nothing, the maximum; a half, a quarter"
    found = json.loads(run(capsys, "get", store, "a1", "--json")[1])
    assert found["box"] == [0.1, 0.2, 0.5, 0.7]
    assert np.abs(np.array(found["heat"]) - [[0.0, 1.0], [0.5, 0.25]]).max() <= 1 / 510
    assert "none: no positive relevance" in run(capsys, "get", store, "b")[1]
    assert json.loads(run(capsys, "get", store, "bad\x1b[31m", "--json")[1])["failure"] == "torn"
    for name in ("m.json", "m.npy"):
        assert run(capsys, "get", store, "a1", "--heat", tmp_path / name)[0] == 0
        assert read_heat(tmp_path / name).tolist() == found["heat"], "as --heat of the overlay reads it"
    for arguments, said in (
        (("zz",), "neither an annotation nor a failure of 'zz'"),
        (("b", "--heat", "x.npy"), "no relevance map"),
    ):
        code, out, err = run(capsys, "get", store, *arguments)
        assert (code, out) == (3, "")
        assert said in err


def test_stats(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "stats", store)
    for words in ("labelled", "3 (60.0%)", "1: no positive relevance", "1: torn", "mean 0.2", "q50 2.5"):
        assert words in out, words
    assert json.loads(run(capsys, "stats", store, "--json")[1])["score"]["q100"] == 3.5


def test_verify(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "verify", store)
    assert (code, out) == (0, f"{store} is sound: 4 annotations, 1 heats, 1 failures\n")
    with Store.create_or_resume(store, MARK, {}) as opened:
        opened._handle.commit({"annotations": [(b"a0", b"x")], "heats": [(b"lost", b"y")]})
    code, out, err = run(capsys, "verify", store)
    assert (code, out) == (3, "")
    assert "warning: annotations: the record 'a0' is damaged" in err
    assert err.splitlines()[-1].startswith(f"cos: the store {store} has 3 faults; annotate")
    code, out, _ = run(capsys, "verify", store, "--json")
    assert (code, json.loads(out)["faults"]) == (3, 3)


def test_merge_export_import(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.create_or_resume(tmp_path / "more", MARK, {}) as opened:
        opened.put_many([Annotation("c", Box(0, 0, 1, 1), 1.0, "p", MARK, image="a.png")])
    code, out, err = run(capsys, "merge", tmp_path / "more", store, "--out", tmp_path / "all", "--json")
    assert (code, json.loads(out)["counts"]["new"]) == (0, 5)
    assert "store merge complete: 5 ok, 1 failed" in err
    assert run(capsys, "export", tmp_path / "all", "--out", tmp_path / "all.jsonl", "--failures", "--heats")[0] == 0
    assert run(capsys, "import", tmp_path / "all.jsonl", "--out", tmp_path / "back")[0] == 0
    run(capsys, "export", tmp_path / "back", "--out", tmp_path / "back.jsonl", "--failures", "--heats")
    assert (tmp_path / "back.jsonl").read_bytes() == (tmp_path / "all.jsonl").read_bytes()
    coco = ["export", tmp_path / "all", "--format", "coco", "--out", tmp_path / "c.json"]
    assert "--images" in run(capsys, *coco)[2]
    assert run(capsys, *coco, "--images", tmp_path / "images")[0] == 0
    assert len(json.loads((tmp_path / "c.json").read_text())["annotations"]) == 4
    assert run(capsys, *coco, "--images", tmp_path, "--max-failures", 3)[0] == 5


def test_a_store_is_drawn_with_its_map(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = [
        "visualize",
        "overlay",
        "--store",
        str(store),
        "--images",
        str(tmp_path / "images"),
        "--out",
        str(tmp_path / "o.png"),
    ]
    assert main.run([*drawn, "--example", "a0"]) == 0
    with Image.open(tmp_path / "o.png") as plain:
        height = plain.height
    assert main.run([*drawn, "--example", "a1"]) == 0
    with Image.open(tmp_path / "o.png") as with_map:
        assert with_map.height > height


def test_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("info", "ls", "stats", "verify"):
        code, out, err = run(capsys, command, tmp_path / "none")
        assert (code, out, err) == (3, "", f"cos: there is no store at {tmp_path / 'none'}\n")
