"""Every text file that a person may save with a byte order mark is read as the one without it."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cos_cli import launcher, main
from cos_core.benchmarks._files import check_sums
from cos_core.data.released import ReleasedRegions
from cos_core.dialogue.prompts import load_profile
from cos_core.files.assets import template
from cos_core.files.jsonl import decode, read_lines
from cos_core.files.text import read_text
from cos_core.visualize import relevance_maps as heat

REGION = {"example_id": "s1#q0", "image": "a.png", "box": [0.1, 0.1, 0.5, 0.5], "score": 1.0, "rois": [0], "policy": "gold"}
TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
    "categories": [],
}
VISCOT = {"question": "q", "answer": "a", "image": "a.png", "width": 64, "height": 48, "bboxs": [[1, 1, 9, 9]]}
SAMPLE = {"id": "s1", "image": "a.png", "conversations": TALK}
SETTINGS = b'[infer]\nengine = "scripted"\nmodel = "x"\ndata = "q.jsonl"\nimages = "."\nout = "o"\n'
ASKED = {"question_id": 1, "image": "a.png", "text": "What?"}

READ: dict[str, tuple[str, bytes, Callable[[Path], Any]]] = {
    "a profile": ("p.toml", template("prompts", "paper.toml").read_bytes(), lambda p: load_profile(str(p)).inst1),
    "a hostfile": ("hosts", b"one slots=4\ntwo slots=8\n", launcher.machines),
    "lines": ("x.jsonl", b'{"a": 1}\n{"a": 2}\n', lambda p: list(read_lines(p))),
    "a list": ("x.json", b'[{"a": 1}]', lambda p: decode(p.read_bytes())),
    "released regions": ("r.json", b'{"000000_s1_q0": {"params": [1, 1, 9]}}', lambda p: len(ReleasedRegions(p))),
    "a heat map": ("h.json", b"[[0, 1], [1, 0]]", lambda p: heat.read_heat(p).tolist()),
    "any text": ("x.txt", "caf\u00e9".encode(), read_text),
}


@pytest.mark.parametrize("name", READ)
def test_a_file_means_the_same_with_a_mark(name: str, tmp_path: Path) -> None:
    file, content, read = READ[name]
    path = tmp_path / file
    path.write_bytes(content)
    plain = read(path)
    path.write_bytes(codecs.BOM_UTF8 + content)
    assert read(path) == plain


def test_sums_with_a_mark_are_compared(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    line = f"{hashlib.sha256(b'x').hexdigest()}  a\n"
    (tmp_path / "SHA256SUMS").write_bytes(codecs.BOM_UTF8 + line.encode())
    assert check_sums(tmp_path) == 1


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("infer --config c.toml", {"c.toml": SETTINGS, "q.jsonl": ASKED}),
        ("infer --engine scripted --model x --data q.jsonl --data r.json --images . --out o", {
            "q.jsonl": ASKED, "r.json": [SAMPLE]}),
        ("store import c.json --format coco --out o", {"c.json": COCO}),
        ("store import c.jsonl --format visual-cot --out o", {"c.jsonl": VISCOT | {"dataset": "d", "split": "train"}}),
        ("store import r.json --format chain-of-spot --data d.json --images . --out o", {
            "r.json": {"000000_s1_q0": {"params": [1, 1, 9]}}, "d.json": [SAMPLE]}),
        ("store import l.jsonl --out o", {"l.jsonl": REGION | {"fingerprint": "0123456789abcdef"}}),
    ],
    ids=lambda value: value.split(" --")[0] if isinstance(value, str) else "",
)  # fmt: skip
def test_a_command_reads_files_with_a_mark(
    line: str, files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 48), "red").save("a.png")
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode() + b"\n"
        Path(name).write_bytes(codecs.BOM_UTF8 + data)
    assert main.run(line.split()) == 0, capsys.readouterr().err
    assert " 0 failed" in capsys.readouterr().err
