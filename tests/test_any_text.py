"""Any record, whatever text it holds, through every stage: answered, stored or counted as failed; no terminal is steered."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from two_passes import BOX

from cos_cli import main
from cos_cli.console import LineReporter
from cos_core.data.datasets import read_examples
from cos_core.engines.scripted import ScriptedEngine, last_user_text
from cos_core.files.jsonl import decode, encode_line, read_lines
from cos_core.infer import InferConfig
from cos_core.infer import run as infer
from cos_core.interfaces import Request
from cos_core.store.annotations import Store

ODD = "a\n\r\t\x00\x1b\x7f\x85\x9b\u2028\u202e\u2066\ud800\udfff\ufeff\U0001f600<&\"'`=,{}|\\"
FIXED = ["", "x" * 10_000, "\ud83d\ude00", "\x1b]0;t\x07", "a\ncos: done", "</script><b>", "=1+1", "<image>", "../q", "a.png"]
TEXTS = st.one_of(st.text(st.characters(), max_size=12), st.text(st.sampled_from(ODD), max_size=12), st.sampled_from(FIXED))
NUMBERS = st.one_of(st.floats(), st.integers(-(10**400), 10**400))
META = {"more": st.one_of(NUMBERS, TEXTS), "gold": st.lists(NUMBERS, max_size=4)}
RECORDS = st.lists(
    st.fixed_dictionaries(
        {
            "id": TEXTS,
            "image": st.one_of(st.just("a.png"), TEXTS),
            "question": st.one_of(st.just("what?"), TEXTS),
            "answers": st.lists(TEXTS, max_size=2),
            "dataset": TEXTS,
            "meta": st.fixed_dictionaries({"kind": TEXTS}, optional=META),
        }
    ),
    min_size=4,
    max_size=12,
)
ANNOTATE = ("annotate", "--model", "none", "--policy", "center_crop", "--max-failures", "1000")
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class Call:
    """`cos` in this process; what it said must be harmless, and no defect."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> str:
        code = main.run([str(a) for a in arguments])
        out, err = self._capsys.readouterr()
        assert code == 0, (arguments, code, err)
        for said in (out, err):
            assert not OBEYED.search(said)
            assert not any(line.startswith("cos: done") for line in said.split("\n"))
        return out


def answers(records: list[dict[str, Any]]) -> ScriptedEngine:
    """Boxes at first; then the answers are words of the records."""
    words = [record["id"] for record in records]

    def answer(request: Request) -> str:
        text = last_user_text(request)
        return BOX if "region of interest" in text else words[len(text) % len(words)]

    return ScriptedEngine(answer)


CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=6, suppress_health_check=CHECKS)
@given(records=RECORDS)
def test_any_record_through_every_stage(
    records: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    root, cos = tmp_path_factory.mktemp("any"), Call(capsys)
    (root / "images").mkdir()
    Image.new("RGB", (40, 20), "red").save(root / "images" / "a.png")
    good = {"id": "good", "image": "a.png", "question": "what?", "answers": ["red"]}
    data = root / "questions.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in [good, *records]))
    problems: list[Any] = []
    read = list(read_examples(data, on_problem=problems.append))
    assert len(read) + len(problems) == len(records) + 1
    seen = {example.id for example in read}

    cos(*ANNOTATE, "--data", data, "--images", root / "images", "--out", root / "rois")
    with Store.read(root / "rois") as store:
        assert {a.example_id for a in store.annotations()} == {e.id for e in read if e.image is not None}
        assert sum(1 for _ in store.failures()) == len(problems)
    assert cos("store", "ls", root / "rois").count("\n") == len(seen)
    listed = json.loads(cos("store", "ls", root / "rois", "--json"))["examples"]
    assert {row["example_id"] for row in listed} == seen
    cos("store", "ls", root / "rois", "--failures")
    cos("store", "export", root / "rois", "--out", root / "rois.jsonl", "--failures")
    list(read_lines(root / "rois.jsonl"))

    out = root / "answers.jsonl"
    done = infer(
        InferConfig(model="none", engine="scripted", data=data, images=root / "images", out=out, max_failures=1000),
        LineReporter(sys.stderr),
        answers(records),
    )
    assert not OBEYED.search(capsys.readouterr().err)
    predictions = [row for _, row in read_lines(out)]
    assert {row["example_id"] for row in predictions} >= seen
    assert done.counts["ok"] + done.counts["failed"] == len(records) + 1

    # The benchmark takes whole data only, with answers, and gold regions that are boxes.
    whole = {example.id for example in read if example.answers and example.gold is None}
    lines = zip(data.read_bytes().splitlines(True), [good, *records], strict=True)
    data.write_bytes(b"".join(line for line, record in lines if record["id"] in whole and record.get("answers")))
    scored = root / "scored"
    cos("eval", "scenes", "--partial-join", "--data", root, "--predictions", out, "--out", scored)
    list(read_lines(scored / "scores.jsonl"))
    cos("visualize", "report", scored, "--out", root / "page.html")
    assert "good" in (root / "page.html").read_text(encoding="utf-8")
    for form in ("coco", "label-studio", "lmms-eval", "fiftyone"):
        cos("visualize", "export", scored, "--format", form, "--out", root / f"x.{form}")


@given(record=st.dictionaries(TEXTS, st.one_of(TEXTS, st.lists(TEXTS, max_size=3))))
def test_lines_keep_every_text(record: dict[str, Any]) -> None:
    line = encode_line(record)
    assert line.count(b"\n") == 1
    # A pair of halves is the character that they make, as in every JSON reader.
    assert json.dumps(decode(line)) == json.dumps(json.loads(json.dumps(record)))


@pytest.mark.parametrize("text", [b'"\\ud800"', b'{"a\\udfff":1}', b"NaN", b"[Infinity]", b"1e999", b"1" + b"0" * 400])
def test_what_the_quick_reader_refuses_is_read_as_json_says(text: bytes) -> None:
    assert repr(decode(text)) == repr(json.loads(text))


def test_a_data_file_whose_name_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 20), "red").save(tmp_path / "images" / "a.png")
    data = tmp_path / "q\udcff\n.jsonl"
    data.write_text('{"id": "a", "image": "a.png", "question": "what?", "answers": ["red"]}\n{torn\n')
    cos = Call(capsys)
    cos(*ANNOTATE, "--data", data, "--images", tmp_path / "images", "--out", tmp_path / "s\udcff")
    assert cos("store", "ls", tmp_path / "s\udcff", "--failures").count("\n") == 1
    assert json.loads(cos("store", "get", tmp_path / "s\udcff", "a", "--json"))["example_id"] == "a"
