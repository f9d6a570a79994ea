"""Question files as they lie on people's disks: documents behind each other, other kinds of files, several files, pictures by
other keys, byte order marks, numbers that no float holds, and data that changes."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusals import refused

from cos_core.annotate import stage
from cos_core.annotate.config import AnnotateConfig
from cos_core.data.datasets import Problem, RecordFiles, Snapshot, read_examples, read_records
from cos_core.errors import CosError
from cos_core.files import big_json, json_window, jsonl, manifest
from cos_core.infer import run
from cos_core.infer.config import InferConfig
from cos_core.interfaces import Engine, Reply, Request, SilentReporter
from cos_core.training.samples import key_of
from cos_core.types import Example


def row(name: object, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\nQ{name}?"}, {"from": "gpt", "value": "x"}]
    return {"id": str(name), "image": "a.png", "conversations": turns, **more}


def line(*names: object) -> str:
    return "".join(json.dumps(row(name)) + "\n" for name in names)


def listed(*names: object, indent: int | None = None) -> str:
    return json.dumps([row(name) for name in names], indent=indent)


def pretty(*names: object) -> str:
    return "".join(json.dumps(row(name), indent=2) + "\n" for name in names)


def read(data: Any) -> tuple[list[str], list[Problem]]:
    problems: list[Problem] = []
    examples = list(read_examples(data, text_only="keep", on_problem=problems.append))
    return [str(e.sample) for e in examples], problems


# --- text behind the end of a document -------------------------------------------------------------------------------

ALL_READ: dict[str, str] = {
    "two lists": listed(1, 2) + listed(3, 4),
    "two lists on two lines": listed(1, 2) + "\n" + listed(3, 4) + "\n",
    "indented lists": listed(1, 2, indent=1) + listed(3, indent=4) + "\n\n" + listed(4),
    "a list and lines": listed(1, 2) + "\n" + line(3, 4),
    "a list and lines without a break": listed(1, 2) + line(3, 4),
    "lines and a list": line(1, 2) + listed(3, 4),
    "lines, a list, lines": line(1) + listed(2, 3, indent=1) + "\n" + line(4),
    "a list a line": "".join(listed(name) + "\n" for name in (1, 2, 3, 4)),
    "an empty list and a list": "[]" + listed(1, 2, 3, 4),
    "empty lists between": listed(1, 2) + "[]\n[ ]" + listed(3, 4) + "[]",
    "objects on several lines": pretty(1, 2, 3, 4),
    "objects on several lines behind lines": line(1, 2) + pretty(3, 4),
    "lines behind objects on several lines": pretty(1, 2) + line(3, 4),
    "objects without a break": line(1, 2, 3, 4).replace("\n", ""),
    "old line ends": line(1, 2, 3, 4).replace("\n", "\r\n"),
    "a byte order mark": "\ufeff" + listed(1, 2) + line(3, 4),
}


@pytest.mark.parametrize("chunk", [1, 7, 4 * 2**20])
@pytest.mark.parametrize("name", ALL_READ)
def test_documents_behind_each_other_are_all_read(
    name: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_window, "CHUNK", chunk)
    path = tmp_path / "data"
    path.write_bytes(ALL_READ[name].encode())
    assert read(path) == (["1", "2", "3", "4"], [])
    found = list(read_records(path))
    assert [record.place.row for record, _ in found] == [0, 1, 2, 3]
    again = RecordFiles(path, Snapshot(path).stamps)
    lines = path.read_bytes().decode().splitlines()
    for record, examples in found:
        assert again.examples(record) == examples, "the place of a record is right"
        assert record.place.line == examples[0].line
        assert "{" in lines[record.place.line - 1]


NAMED: dict[str, tuple[str, list[str], int, str]] = {
    "words behind a list": (listed(1, 2) + " end of file", ["1", "2"], 1, "found 'end of file'"),
    "words between lists": (listed(1) + "\n--\n" + listed(2), ["1", "2"], 2, "found '--'"),
    "a second bracket": (listed(1, 2) + "\n]", ["1", "2"], 2, "']' stands outside"),
    "a comma between lists": (listed(1) + ",\n" + listed(2), ["1", "2"], 1, "',' stands outside"),
    "a comma before the end": (listed(1, 2)[:-1] + ",\n]" + line(3), ["1", "2", "3"], 1, "',' stands before the end"),
    "NULs behind a list": (listed(1, 2) + "\n" + "\0" * 99, ["1", "2"], 2, "99 NUL bytes"),
    "a number behind a list": (listed(1, 2) + "\n17", ["1", "2"], 2, "found '17'"),
    "a text behind a list": (listed(1, 2) + '\n"x"\n' + line(3), ["1", "2", "3"], 2, "found '\"x\"'"),
    "a torn line behind a list": (listed(1) + '\n{"id": "2", "im\n' + line(3), ["1", "3"], 2, "not valid JSON"),
    "a torn line among lines": (line(1) + '{"id": "2", \n' + line(3), ["1", "3"], 2, "not valid JSON"),
    "a torn object at the end": (listed(1) + '\n{"id": "2", ', ["1"], 2, "not valid JSON"),
    "a list that breaks off": (listed(1, 2)[:-1], ["1", "2"], 1, "the list breaks off"),
    "a list without a comma": (listed(1)[:-1] + "\n" + listed(2)[1:], ["1"], 2, "expected ',' or ']'"),
    "a second list that is torn": (listed(1) + "\n" + listed(2)[:20], ["1"], 2, "cannot be read"),
    "NaN in a list": (listed(1)[:-1] + ',\n{"id": NaN},' + listed(2)[1:], ["1", "2"], 2, "NaN is no number"),
    "Infinity on a line": (line(1) + '{"id": -Infinity}\n' + line(2), ["1", "2"], 2, "-Infinity is no number"),
    "1e999 in a list": (listed(1)[:-1] + ',\n{"id": 1e999},' + listed(2)[1:], ["1", "2"], 2, "1e999 is beyond"),
    "1e999 on a line": (line(1) + '{"id": [-1e999]}\n' + line(2), ["1", "2"], 2, "-1e999 is beyond"),
    "10^5000 in a list": (listed(1)[:-1] + f',\n{{"id": 1{"0" * 5000}}},' + listed(2)[1:], ["1", "2"], 2, "is beyond"),
    "10^5000 on a line": (line(1) + f'{{"id": 1{"0" * 5000}}}\n' + line(2), ["1", "2"], 2, "is beyond"),
    "deep nesting in a list": (
        listed(1)[:-1] + ',\n{"id": ' + "[" * 99_999 + "]" * 99_999 + "}," + listed(2)[1:], ["1", "2"], 2, "too deeply"
    ),
    "deep nesting on a line": (line(1) + "[" * 99_999 + "]" * 99_999 + "\n" + line(2), ["1", "2"], 2, "too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_what_is_no_record_is_named_and_the_rest_goes_on(name: str, tmp_path: Path) -> None:
    content, ids, number, words = NAMED[name]
    path = tmp_path / "data"
    path.write_text(content)
    found, problems = read(path)
    assert found == ids
    assert [problem.line for problem in problems] == [number]
    assert words in problems[0].reason
    assert len(problems[0].reason) < 300
    assert problems[0].reason.isprintable()
    with refused(f"{path}:{number}: "):
        list(read_examples(path))


def test_bytes_that_are_no_text_cost_their_record_alone(tmp_path: Path) -> None:
    path = tmp_path / "data"
    for content in (listed(1, "caf\u00e9", 3, indent=1), line(1, "caf\u00e9", 3), listed(1) + "\n" + line("caf\u00e9", 3)):
        path.write_bytes(content.replace("\\u00e9", "\u00e9").encode("latin-1"))
        found, problems = read(path)
        assert (found, len(problems)) == (["1", "3"], 1)
        assert "not UTF-8" in problems[0].reason


@pytest.mark.parametrize("as_list", [True, False])
def test_a_record_beyond_the_bound_is_passed_over(as_list: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (big_json, jsonl, json_window):
        monkeypatch.setattr(module, "MAX_RECORD_BYTES", 200_000)
    monkeypatch.setattr(json_window, "CHUNK", 50_000)
    texts = ("x" * 300_000, '\\"]}' * 99_999, [["y" * 99, {"z": [1]}]] * 3000)
    rows = [row(1), *(row(n, meta=[{"long": text}]) for n, text in enumerate(texts, 2)), row(9)]
    path = tmp_path / "data"
    path.write_text(json.dumps(rows) if as_list else "\n".join(map(json.dumps, rows)))
    found, problems = read(path)
    assert found == ["1", "9"]
    assert len(problems) == 3
    assert all("longer than" in problem.reason for problem in problems)


# --- files of other kinds --------------------------------------------------------------------------------------------


def zipped(name: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(name, "x")
    return data.getvalue()


FOREIGN: dict[str, tuple[bytes, str]] = {
    "parquet": (b"PAR1\x15\x04\x15", "Parquet"),
    "arrow": (b"ARROW1\0\0", "Arrow"),
    "an arrow stream": (b"\xff\xff\xff\xff\x10\0\0\0", "Arrow"),
    "parquet in gzip": (gzip.compress(b"PAR1\x15\x04\x15"), "Parquet"),
    "xlsx": (zipped("xl/workbook.xml"), "workbook"),
    "zip": (zipped("data.json"), "unpacked"),
    "a picture that gzip packed": (gzip.compress(b"\x89PNG\r\n\x1a\n"), "picture"),
    "a damaged gzip": (gzip.compress(listed(1).encode())[:-12], "cannot be unpacked"),
    "UTF-16": (listed(1).encode("utf-16"), "iconv -f UTF-16"),
    "UTF-16 without a mark": (listed(1).encode("utf-16-le"), "UTF-16"),
    "UTF-16 from the other end": (listed(1).encode("utf-16-be"), "UTF-16"),
    "UTF-32": (listed(1).encode("utf-32"), "UTF-32"),
    "a web page": (b"<!DOCTYPE html>\n<html>404</html>", "web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a picture": (b"\x89PNG\r\n\x1a\n", "picture"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_another_kind_of_file_is_told_by_its_content(name: str, tmp_path: Path) -> None:
    content, words = FOREIGN[name]
    path = tmp_path / "data.json"
    path.write_bytes(content)
    with refused(path, words):
        read(path)


# --- pictures by other keys ------------------------------------------------------------------------------------------

NO_IMAGE = {key: value for key, value in row(1).items() if key != "image"}
KEYS: list[dict[str, Any]] = [
    {"image": "a.png"}, {"image": ["a.png"]}, {"images": ["a.png"]}, {"images": "a.png"}, {"image_path": "a.png"},
    {"imagePath": "a.png"}, {"img": "a.png"}, {"Image": "a.png"}, {"IMG": ["a.png"]}, {"image-path": "a.png"},
    {"img_path": "a.png"}, {"image": None, "images": ["a.png"]}, {"image": "a.png", "images": ["a.png"]},
    {"image": {"path": "a.png", "bytes": None}},
]  # fmt: skip
UNUSABLE: list[tuple[dict[str, Any], str]] = [
    ({}, "names no picture (`image`)"),
    ({"image": None}, "`image` is null"),
    ({"image": ""}, "`image` is empty"),
    ({"images": []}, "`images` is empty"),
    ({"img": [None]}, "`img` is empty"),
    ({"imgae": "a.png"}, "`imgae`: did you mean `image`?"),
    ({"image_pth": "a.png"}, "`image_pth`: did you mean `image_path`?"),
    ({"image": ["a.png", "b.png"]}, "names 2 pictures (a.png, b.png)"),
    ({"image": "a.png", "img": "b.png"}, "names 2 pictures"),
    ({"image": 7}, "must be one path"),
    ({"image": [["a.png"]]}, "must be one path"),
    ({"image": {"bytes": "AAAA", "path": "a.png"}}, "save them as files"),
]


@pytest.mark.parametrize("keys", KEYS, ids=str)
def test_a_picture_is_found_under_the_usual_keys(keys: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(
        json.dumps([NO_IMAGE | keys, {"question_id": 1, "text": "What?"} | keys, {"id": 2, "question": "W?"} | keys])
    )
    assert [example.image for example in read_examples(path)] == ["a.png"] * 3


@pytest.mark.parametrize(("keys", "words"), UNUSABLE, ids=lambda value: str(value)[:40])
def test_a_mark_without_a_picture_is_named(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    records = [NO_IMAGE, {"question_id": 1, "text": "<image>\nWhat?"}, {"id": 2, "question": "<image>What?"}]
    path.write_text("\n".join(json.dumps(record | keys) for record in records))
    found, problems = read(path)
    assert found == []
    assert [problem.line for problem in problems] == [1, 2, 3]
    assert all(words in problem.reason for problem in problems)


def test_near_misses_and_marks_in_answers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    answered = [{"from": "human", "value": "<image>\nQ?"}, {"from": "gpt", "value": "The <image> element."}]
    longer = [*row(1)["conversations"], *answered, {"from": "human", "value": "And?"}]
    records = [
        {"id": "1", "image": "a.png", "conversation": []},
        {"question_id": 1, "image": "a.png", "txt": "What?"},
        row(1, conversations=answered),
        row(1, conversations=longer),
        {"id": "x", "image": "a.png", "question": "Q?", "answers": ["an <image>"]},
        row(1, conversations=[{"role": "user", "content": "Q?"}]),
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    found, problems = read(path)
    assert found == [f"1~{found[0][-8:]}"], "the pairs before the one without an answer are kept"
    said = [(problem.line, problem.reason) for problem in problems]
    expected = [
        (1, "`conversation`: did you mean `conversations`?"), (2, "`txt`: did you mean `text`?"), (3, "says <image>"),
        (4, "the last question has no answer"), (4, "turn 3, an answer, says <image>"), (5, "says <image>"),
        (6, "it has `role`, `content`"),
    ]  # fmt: skip
    assert [number for number, _ in said] == [number for number, _ in expected]
    assert all(words in reason for (_, reason), (_, words) in zip(said, expected, strict=True))


# --- several files ---------------------------------------------------------------------------------------------------


def test_several_files_are_one_data_set(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "q.json", tmp_path / "b" / "q.json"
    for path, content in ((first, listed(1, 2)), (second, line(3, 1) + "oops\n" + json.dumps(row(2, image="b.png")))):
        path.parent.mkdir()
        path.write_text(content)
    problems: list[Problem] = []
    found = list(read_records((first, second), problems.append))
    assert [(str(p.path), p.line, p.reason[:30]) for p in problems] == [
        (str(second), 2, "the same sample was there befo"),
        (str(second), 3, "not valid JSON: Expecting valu"),
    ]
    names = [key_of(examples[0]) for _, examples in found]
    assert names[:3] == ["1", "2", "3"]
    assert names[3].startswith("2~")
    assert [record.place.row for record, _ in found] == [0, 1, 2, 4]
    assert [(examples[0].file, examples[0].line) for _, examples in found][2:] == [(str(second), 1), (str(second), 4)]
    again = RecordFiles((first, second), Snapshot((first, second)).stamps)
    assert all(again.examples(record) == examples for record, examples in found)
    both = manifest.files_input((first, second))
    assert both["path"] == [str(first), str(second)]
    assert both["sha256"] != manifest.files_input((second, first))["sha256"]
    assert manifest.files_input(first) == manifest.file_input(first)
    config = AnnotateConfig((first, second), tmp_path, "m", tmp_path / "out")
    keys = [stage._keys(config)(problem) for problem in problems]
    assert keys == [f"{second.parent}/q.json:2", f"{second.parent}/q.json:3"], "two files of one name"


# --- data that changes -----------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Path], Any]] = {
    "emptied": lambda path: path.write_text(""),
    "cut": lambda path: os.truncate(path, 100),
    "replaced": lambda path: (path.with_name("n").write_text(listed(7)), path.with_name("n").replace(path)),
    "grown": lambda path: path.write_text(listed(1, 2, 3)),
    "gone": lambda path: path.unlink(),
}


class Answering(Engine):
    """An engine that answers every question the same."""

    name = "answering"

    def generate(self, requests: list[Request]) -> list[Reply]:
        return [Reply("x", (1,)) for _ in requests]


@pytest.mark.parametrize("name", CHANGES)
def test_data_that_changes_while_the_model_is_loaded_is_an_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from cos_core.infer import stage as infer

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    path = tmp_path / "data.json"
    path.write_text(listed(1, 2))
    annotating = AnnotateConfig(path, tmp_path, "m", tmp_path / "store")
    survey = stage.survey_of(annotating, SilentReporter())
    assert survey.questions == 2
    around = infer.around

    def loading(*given: Any) -> Any:
        CHANGES[name](path)
        return around(*given)

    monkeypatch.setattr(infer, "around", loading)
    config = InferConfig(model="m", out=tmp_path / "out.jsonl", data=path, images=tmp_path, roi="none", engine="scripted")
    with refused(path, kind=CosError) as error:
        run(config, SilentReporter(), Answering())  # type: ignore[arg-type]
    assert error.value.exit_code == 3
    with refused(path, kind=CosError):
        list(stage.windows(annotating, survey.snapshot))


def test_every_problem_of_a_run_is_recorded(tmp_path: Path) -> None:
    from PIL import Image

    from cos_core.engines.scripted import build

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    path, out = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    path.write_text(line(1) + "".join(f"oops {n}\n" for n in range(8)))
    config = InferConfig(model="m", out=out, data=path, images=tmp_path, roi="none", engine="scripted", max_failures=8)
    done = run(config, SilentReporter(), build("m"))
    assert done.counts["failed"] == 8
    assert done.results["problems"] == {"count": 8, "file": "out.jsonl.problems.jsonl"}
    rows = [json.loads(text) for text in (tmp_path / "out.jsonl.problems.jsonl").read_text().splitlines()]
    assert [record["line"] for record in rows] == list(range(2, 10))
    assert {record["path"] for record in rows} == {str(path)}
    path.write_text(line(1))
    assert "problems" not in run(config, SilentReporter(), build("m")).results
    assert not (tmp_path / "out.jsonl.problems.jsonl").exists()


def test_examples_say_where_they_stood_and_keep_it_to_themselves(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(listed(1))
    (example,) = read_examples(path)
    assert (example.line, example.file) == (1, str(path))
    assert Example.from_json(example.to_json()) == example
    assert {"line", "file"}.isdisjoint(example.to_json())
