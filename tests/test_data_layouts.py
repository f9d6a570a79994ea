"""Own data as it lies on people's disks: each layout gives the questions that stand in it, bad rows are named by file and row,
and a row that is read again is the one that was read first."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import ipc, parquet
from refusals import refused

from cos_core import options
from cos_core.annotate.config import AnnotateConfig
from cos_core.annotate.stage import survey_of
from cos_core.data.datasets import Files, Problem, RecordFiles, Snapshot, read_examples, read_records
from cos_core.errors import InputError, MissingError
from cos_core.files.data_files import columns_of
from cos_core.files.plug import load
from cos_core.infer.config import InferConfig
from cos_core.infer.questions import questions
from cos_core.interfaces import SilentReporter
from cos_core.training import sample_table
from cos_core.training.samples import Rules
from cos_core.types import Example

Told = tuple[str | None, str, tuple[str, ...]]
"""(picture, question, answers)."""
TWO: list[Told] = [("a.png", "What, now?", ("cat",)), ("b/b.png", 'Say "yes"', ("yes",))]


def told(example: Example) -> Told:
    return example.image, example.question, example.answers


def read(data: Files, columns: str | None = None) -> tuple[list[Example], list[Problem]]:
    problems: list[Problem] = []
    return list(read_examples(data, columns=columns, text_only="keep", on_problem=problems.append)), problems


def lines(*records: Any) -> str:
    return "".join(json.dumps(each) + "\n" for each in records)


FLAT = [{"image": picture, "question": question, "answer": answers[0]} for picture, question, answers in TWO]


def text(name: str, content: str | bytes) -> Callable[[Path], Files]:
    def write(folder: Path) -> Files:
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def talk(question: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def parts(question: str, picture: str) -> list[dict[str, Any]]:
    return [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]


def vqa(name: str = "image_id", order: int = 1) -> Callable[[Path], Files]:
    """The two files of VQA, with pictures under `name`; the answers in the order of the questions times `order`."""

    def write(folder: Path) -> Files:
        files = folder / "q.json", folder / "a.json"
        asked = [{name: picture, "question": question, "question_id": k} for k, (picture, question, _) in enumerate(TWO)]
        given = [
            {"question_id": k, "answers": [{"answer": each} for each in answers], "multiple_choice_answer": answers[0]}
            for k, (_, _, answers) in enumerate(TWO)
        ]
        files[0].write_text(json.dumps({"info": {"year": 2017}, "questions": asked}))
        files[1].write_text(json.dumps({"annotations": given[::order], "info": {}}))
        return files

    return write


def columns_of_two(pictures: Any = None) -> pyarrow.Table:
    named, asked, given = zip(*TWO, strict=True)
    listed = pyarrow.array([list(each) for each in given])
    return pyarrow.table({"image": pictures or list(named), "question": list(asked), "answers": listed})


def table(kind: str, pictures: Any = None) -> Callable[[Path], Files]:
    def write(folder: Path) -> Files:
        content, path = columns_of_two(pictures), folder / f"d.{kind}"
        if kind == "parquet":
            parquet.write_table(content, path, row_group_size=1)
            return path
        with (ipc.new_stream if kind == "stream" else ipc.new_file)(path, content.schema) as writer:
            writer.write_table(content, max_chunksize=1)
        return path

    return write


def saved(folder: Path) -> Files:
    """A folder as `Dataset.save_to_disk` leaves it."""
    (folder / "saved").mkdir()
    Path(str(table("stream")(folder))).rename(folder / "saved" / "data-00000-of-00001.arrow")
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "0", "_split": None}
    (folder / "saved" / "state.json").write_text(json.dumps(state))
    return options.files_of([folder / "saved"])


PICTURES = [{"bytes": None, "path": picture} for picture, _, _ in TWO]
CSV = 'image,question,answer\na.png,"What, now?",cat\nb/b.png,"Say ""yes""",yes\n'
LAYOUTS: dict[str, tuple[Callable[[Path], Files], str | None]] = {
    "csv": (text("d.csv", CSV), None),
    "csv by another name": (text("d.json", CSV), None),
    "csv from Windows": (text("d.csv", b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode()), None),
    "csv in gzip": (text("d.csv.gz", gzip.compress(CSV.encode())), None),
    "tsv": (
        text("d.tsv", 'image\tquestion\tanswers\na.png\tWhat, now?\t"[""cat""]"\nb/b.png\t"Say ""yes"""\t[\'yes\']\n'),
        None,
    ),
    "semicolons": (
        text("d.csv", 'q;pic;a\n"What, now?";a.png;cat\n"Say ""yes""";b/b.png;yes\n'),
        "question=q,image=pic,answer=a",
    ),
    "flat records": (text("d.jsonl", lines(*FLAT)), None),
    "flat records in gzip": (text("d.jsonl.gz", gzip.compress(lines(*FLAT).encode())), None),
    "a list in gzip": (text("d.json.gz", gzip.compress(json.dumps(FLAT).encode())), None),
    "query and response": (
        text("d.jsonl", lines(*({"query": q, "response": a[0], "images": [i]} for i, q, a in TWO))),
        "question=query,answer=response",
    ),
    "messages": (
        text("d.jsonl", lines(*({"messages": talk(f"<image>{q}", a[0]), "images": [i]} for i, q, a in TWO))),
        None,
    ),
    "messages after a system's": (
        text(
            "d.json",
            json.dumps(
                [{"messages": [{"role": "system", "content": "Be kind."}, *talk(q, a[0])], "image": i} for i, q, a in TWO]
            ),
        ),
        None,
    ),
    "messages in parts": (
        text("d.jsonl", lines(*({"messages": talk(parts(q, i), [{"type": "text", "text": a[0]}])} for i, q, a in TWO))),
        None,
    ),
    "conversations without ids": (
        text(
            "d.jsonl",
            lines(
                *(
                    {"images": [i], "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a[0]}]}
                    for i, q, a in TWO
                )
            ),
        ),
        None,
    ),
    "VQA": (vqa(), None),
    "VQA in another order": (vqa(order=-1), None),
    "VQA with names of pictures": (vqa("image"), None),
    "Parquet": (table("parquet"), None),
    "Parquet with pictures by path": (table("parquet", PICTURES), None),
    "an Arrow file": (table("feather"), None),
    "an Arrow stream": (table("stream", PICTURES), None),
    "a folder of datasets": (saved, None),
    "question_id and lists of answers": (
        text("d.json", json.dumps([{**each, "question_id": k, "answer": [each["answer"]]} for k, each in enumerate(FLAT)])),
        None,
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_its_questions(name: str, tmp_path: Path) -> None:
    write, columns = LAYOUTS[name]
    data = write(tmp_path)
    examples, problems = read(data, columns)
    assert not problems
    assert [told(each) for each in examples] == TWO
    assert [each.index for each in examples if each.index is not None] in ([], [0, 1])
    assert len({each.id for each in examples}) == 2


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_record_is_read_again_where_it_stood(name: str, tmp_path: Path) -> None:
    write, columns = LAYOUTS[name]
    data, kept = write(tmp_path), tmp_path / "kept"
    with kept.open("wb") as file:

        def keep(record: Any) -> tuple[int, int]:
            offset = file.tell()
            return offset, file.write(json.dumps(record).encode())

        first = list(read_records(data, None, columns, keep))
    files = RecordFiles(data, Snapshot(data).stamps, kept, columns)
    assert [files.examples(place) for place, _ in reversed(first)] == [examples for _, examples in reversed(first)]
    assert [[each.line for each in files.examples(place)] for place, _ in first] == [[e.line for e in es] for _, es in first]
    files.close()


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_stage_reads_a_layout(name: str, tmp_path: Path) -> None:
    write, columns = LAYOUTS[name]
    data, out = write(tmp_path), tmp_path / "out"
    expected, _ = read(data, columns)
    first = []
    survey = survey_of(AnnotateConfig(data, tmp_path, "m", out, columns=columns), SilentReporter(), first.append)
    assert (survey.questions, survey.pictures, len(survey.problems), first) == (2, 2, 0, expected)
    asked = questions(InferConfig(model="m", data=data, images=tmp_path, out=out, columns=columns), SilentReporter())
    assert (asked.examples, asked.problems) == (expected, [])
    (tmp_path / "table").mkdir()
    sample_table.build(tmp_path / "table", data, Rules(load("policies", "center_crop"), 0), None, columns)
    samples = sample_table.opened(tmp_path / "table").samples
    assert [told(sample.questions[0]) for sample in samples] == TWO


def test_an_id_by_content_does_not_depend_on_the_place(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.csv"
    one.write_text(lines(*FLAT))
    two.write_text('row,image,question,answer\n7,b/b.png,"Say ""yes""",yes\n')
    assert read(one)[0][1].id == read(two)[0][0].id
    examples, problems = read((one, two))
    assert len({each.id for each in examples}) == 3, "another record with the same content keeps both"
    assert not problems
    one.write_text(lines(FLAT[0], FLAT[0]))
    examples, problems = read(one)
    assert len(examples) == 1
    assert [each.line for each in problems] == [2]


def test_vqa_as_it_is_published(tmp_path: Path) -> None:
    asked, given = tmp_path / "q.json", tmp_path / "a.json.gz"
    questions = [{"image_id": 42, "question": f"{k}?", "question_id": 420 + k} for k in range(3)]
    about = {"task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": "test-dev2015"}
    asked.write_text(json.dumps({**about, "questions": [*questions, 7]}, indent=1))
    people = [{"answer": each, "answer_confidence": "yes", "answer_id": k} for k, each in enumerate(("no", "yes", "yes"))]
    yes = {"answers": people, "multiple_choice_answer": "yes", "question_type": "is", "answer_type": "yes/no"}
    numbered = [{**yes, "question_id": number} for number in (420, 999, 422)]
    given.write_bytes(gzip.compress(json.dumps({"annotations": numbered}).encode()))
    examples, problems = read((given, asked))
    picture = "COCO_test2015_000000000042.jpg"
    assert [told(e) for e in examples] == [(picture, "0?", ("yes", "no")), (picture, "1?", ()), (picture, "2?", ("yes", "no"))]
    assert [e.id for e in examples] == ["420", "421", "422"]
    assert examples[0].meta == {"question_type": "is", "answer_type": "yes/no"}
    assert [(each.path, each.line) for each in problems] == [(asked, 21), (given, None)]
    assert "1 answers" in problems[1].reason
    assert [told(e)[2] for e in read(asked)[0]] == [(), (), ()]
    with refused(given, "questions"):
        read(given)
    asked.write_text(json.dumps({"questions": questions}))
    assert [("data_subtype" in each.reason, each.line) for each in read(asked)[1]] == [(True, 1)] * 3


def test_pictures_inside_a_table_are_refused_with_the_command_that_writes_them(tmp_path: Path) -> None:
    inside = [{"bytes": b"\x89PNG", "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    for pictures in (inside, [b"\x89PNG", b""]):
        data = table("parquet", pictures)(tmp_path)
        with refused(data, "cos data convert d.parquet", "--pictures"):
            read(data)


def test_odd_values_of_a_table_are_plain(tmp_path: Path) -> None:
    values = {
        "question": ["a?", None, "c?"], "image": ["a.png", "b.png", "c.png"], "answer": [1, 2, 3], "seen": [b"x", b"", None],
        "score": [float("nan"), 1.0, 2.0], "when": pyarrow.array([0, 1, 2], pyarrow.timestamp("s")), "id": [7, 8, 9],
        "meta": [{"kind": "k", "share": float("inf")}] * 3,
    }  # fmt: skip
    parquet.write_table(pyarrow.table(values), tmp_path / "d.parquet")
    examples, problems = read(tmp_path / "d.parquet")
    assert [(e.id, e.answers, e.line, e.meta) for e in examples] == [
        ("7", ("1",), 1, {"kind": "k", "share": None}),
        ("9", ("3",), 3, {"kind": "k", "share": None}),
    ]
    assert [each.line for each in problems] == [2]


@pytest.mark.parametrize("kind", ["parquet", "feather", "stream"])
def test_a_damaged_table_is_one_sentence(kind: str, tmp_path: Path) -> None:
    path = Path(str(table(kind)(tmp_path)))
    whole = path.read_bytes()
    for cut in range(8, len(whole), max(1, len(whole) // 12)):
        path.write_bytes(whole[:cut])
        # A stream that breaks off between two batches is whole: rows before the cut stand.
        context = suppress(InputError) if kind == "stream" else refused(path)
        with context:
            read(path)


def test_a_table_without_pyarrow_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = table("parquet")(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with refused(data, "pip install", "arrow", kind=MissingError):
        read(data)


def test_rows_of_a_table_are_read_in_bounded_memory(tmp_path: Path) -> None:
    count = 8_000
    content = pyarrow.table({"image": ["a.png"] * count, "question": [f"{k}? " + "x" * 200 for k in range(count)]})
    parquet.write_table(content, tmp_path / "d.parquet", row_group_size=400)
    size = content.nbytes
    del content
    before, most = pyarrow.total_allocated_bytes(), 0
    for number, _ in enumerate(read_examples(tmp_path / "d.parquet")):
        if number % 100 == 0:
            most = max(most, pyarrow.total_allocated_bytes() - before)
    assert number == count - 1
    assert most < size / 5


BAD_ROWS = """image,question,answer
a.png,first,1
b.png,"two
lines",2
c.png,too few
d.png,too,many,cells
e.png,,no question
,text only,x
f.png,last,3
"""


def test_bad_rows_are_named_by_their_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(BAD_ROWS.encode() + b'g.png,\xff,4\nh.png,"never closed,5\ni.png,lost,6\n')
    examples, problems = read(path)
    assert [(each.image, each.line, each.file) for each in examples] == [
        ("a.png", 2, str(path)),
        ("b.png", 3, str(path)),
        (None, 8, str(path)),
        ("f.png", 9, str(path)),
    ]
    assert [each.line for each in problems] == [5, 6, 7, 10, 11]
    assert all(str(each).startswith(f"{path}:{each.line}: ") for each in problems)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lines({"query": "q", "image": "a.png"}), "--columns question=query"),
        (lines({"qestion": "q", "image": "a.png"}), "did you mean `question`"),
        (lines({"question": "q", "choices": ["a", "b"], "answer": 1}), "beside `choices`"),
        (lines({"question": "q", "image": "i" * 5000}), "5,000 characters"),
        ("image,question,question\na,b,c\n", "two columns"),
        ("image,qestion\na,b\n", "did you mean `question`"),
        (lines({"messages": talk("q", [{"type": "audio"}]), "image": "a.png"}), "'audio'"),
        (lines({"messages": talk("<image><image>q", "a"), "images": ["a.png", "b.png"]}), "names 2 pictures"),
        (lines({"messages": talk("q", "a")[::-1]}), "'assistant'"),
    ],
)
def test_what_cannot_be_used_is_said(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.write_text(content)
    with refused(path, words):
        list(read_examples(path))


def test_columns_that_are_misspelt(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("picture,words\na.png,What?\n")
    assert [told(each) for each in read(path, "question=words")[0]] == [("a.png", "What?", ())]
    with refused(path, "no `wordz`", "did you mean `words`"):
        list(read_examples(path, columns="question=wordz"))
    assert columns_of(" question = a b ,answer=c") == {"question": "a b", "answer": "c"}
    for wrong, words in (("question", "question=COLUMN"), ("qestion=a", "'question'"), ("image=a,image=b", "twice")):
        with refused(words):
            columns_of(wrong)


def test_globs_and_several_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.csv"):
        (tmp_path / name).write_text("")
    data = options.files_of([tmp_path / "*.jsonl", tmp_path / "c.csv"])
    assert data == (tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.csv")
    odd = tmp_path / "what[1].json"
    odd.write_text("")
    assert options.files_of([odd]) == odd
    with refused("*.tsv"):
        options.files_of([tmp_path / "*.tsv"])
    with refused("twice"):
        options.files_of([tmp_path / "*.jsonl", tmp_path / "a.jsonl"])


def test_a_folder_of_datasets_is_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        files = [{"filename": f"data-0000{k}-of-00002.arrow"} for k in range(2)]
        (folder / split / "state.json").write_text(json.dumps({"_data_files": files}))
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert options.files_of([folder / "test"]) == tuple(folder / "test" / each["filename"] for each in files)
    with refused(folder, "splits test, train"):
        options.files_of([folder])
    (folder / "test" / "state.json").write_text('{"_data_files": [{"filename": "../../secret"}]}')
    with refused("names no files beside it"):
        options.files_of([folder / "test"])


def test_own_questions_in_a_table_are_scored(tmp_path: Path) -> None:
    data = text("d.csv", CSV)(tmp_path)
    assert [told(each) for each in load("benchmarks", "scenes").load(data).examples] == TWO
