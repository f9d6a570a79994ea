"""`cos data check` says what a file is read as; `cos data convert` writes it in another layout, with the same questions."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from refusals import refused

from cos_cli.main import run as command
from cos_core.data import convert
from cos_core.data.convert import DataConvertConfig
from cos_core.data.datasets import read_examples
from cos_core.data.survey import DataCheckConfig, survey
from cos_core.interfaces import SilentReporter
from cos_core.types import Example

RECORDS: list[dict[str, Any]] = [
    {"id": "a", "image": "a.png", "question": 'Is it "red", or\nnot?', "answers": ["[yes]", "no, è"],
     "meta": {"kind": "k", "gold": [0, 0, 0.5, 1]}},
    {"id": "b", "image": "b.png", "question": "Which?", "answer": "1", "choices": ["1", "2"], "seen": 3},
    {"id": "c", "question": "Without a picture?"},
    {"id": "d", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nOne?"}, {"from": "gpt", "value": "1"},
                                                    {"from": "human", "value": "Two?"}, {"from": "gpt", "value": "2"}]},
    {"id": "e", "image": "../c.png", "question": ""},
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in RECORDS))
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "pictures" / "a.png")
    return path


def read(path: Path) -> list[Example]:
    return list(read_examples(path, text_only="keep", on_problem=lambda _: None))


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_what_is_converted_gives_equal_examples(ending: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / f"out.{ending}"
    done = convert.run(DataConvertConfig(data, out), SilentReporter())
    assert (done.questions, done.problems) == (5, 1)
    assert read(out) == read(data)
    assert [each.id for each in read(out)] == ["a", "b", "c", "d#q0", "d#q1"]
    again = tmp_path / "again.jsonl"
    convert.run(DataConvertConfig(out, again), SilentReporter())
    assert read(again) == read(data)


def test_conversations_say_what_they_leave_out(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    done = convert.run(DataConvertConfig(data, out, format="llava"), SilentReporter())
    assert (done.questions, done.left_out, done.answers_left_out) == (4, 1, 1)
    found = read(out)
    assert [(e.id, e.image, e.question, e.answers) for e in found] == [
        ("a#q0", "a.png", 'Is it "red", or\nnot?', ("[yes]",)),
        ("b#q0", "b.png", "Which?", ("1",)),
        ("d#q0", "a.png", "One?", ("1",)),
        ("d#q1", "a.png", "Two?", ("2",)),
    ]
    assert found[0].gold == read(data)[0].gold


def test_pictures_inside_a_table_become_files(tmp_path: Path) -> None:
    contents = []
    for kind, colour in (("PNG", "red"), ("JPEG", "blue"), ("WEBP", "lime")):
        file = io.BytesIO()
        Image.new("RGB", (5, 3), colour).save(file, kind)
        contents.append(file.getvalue())
    pictures = [{"bytes": each, "path": "../../x.png"} for each in (*contents, contents[0], b"no picture")]
    parquet.write_table(pyarrow.table({"image": pictures, "question": [f"{k}?" for k in range(5)]}), tmp_path / "d.parquet")
    config = DataConvertConfig(tmp_path / "d.parquet", tmp_path / "out.jsonl", pictures=tmp_path / "pictures")
    done = convert.run(config, SilentReporter())
    assert (done.questions, done.problems, done.pictures) == (4, 1, 3)
    named = [tmp_path / "pictures" / str(each.image) for each in read(tmp_path / "out.jsonl")]
    assert [path.read_bytes() for path in named] == [*contents, contents[0]]
    assert [path.suffix for path in named[:3]] == [".png", ".jpg", ".webp"]
    with refused("--pictures"):
        convert.run(DataConvertConfig(tmp_path / "d.parquet", tmp_path / "none.jsonl"), SilentReporter())
    assert not (tmp_path / "none.jsonl").exists()


def test_a_survey_counts_what_is_there_and_what_is_missing(data: Path, tmp_path: Path) -> None:
    found = survey(DataCheckConfig(data, images=tmp_path / "pictures"))
    assert (found.records, found.questions, found.pictures, found.problems) == (4, 5, 2, 1)
    assert (found.without_picture, found.without_answer) == (1, 1)
    assert (found.missing, found.first_missing) == (1, "b.png")
    assert found.unused == ["seen"]
    assert found.layouts == {str(data): "JSON records"}
    assert found.first == read(data)[0].to_json()


def test_the_commands(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "d.csv"
    table.write_text("q,pic,extra\nWhat?,a.png,1\nNo picture?,,2\n")
    assert command(["data", "check", str(table), "--columns", "question=q,image=pic"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("table of texts", "extra", "What?", "a.png", "without an answer"))
    assert command(["data", "check", str(table)]) == 3
    assert "--columns question=q" in capsys.readouterr().err
    assert command(["data", "check", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["questions"] == 5
    out = tmp_path / "o.csv"
    assert command(["data", "convert", str(table), "--columns", "question=q,image=pic", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["questions"] == 2
    assert command(["data", "convert", str(data), "--out", str(data)]) == 3
    assert command(["data", "convert", str(data), "--out", str(table)]) == 3
    assert len(read(data)) == 5
