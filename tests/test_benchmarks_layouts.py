"""Real files as they lie on people's disks: golden scores in their layouts, and the ways in which copies of them differ."""

from __future__ import annotations

import codecs
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from official_files import GOLDEN, SHORT, config, dump, dump_lines, mme_layout, results, said
from refusals import refused

from cos_cli import main
from cos_core.benchmarks import gqa
from cos_core.evaluate import stage as evaluate
from cos_core.files import manifest, plug

sys.path.insert(0, str(Path(__file__).parent / "reference"))
import official_scorers  # the official rules, written without cos_core

# --- golden scores ---------------------------------------------------------------------------------------------------


def recorded(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def approx(table: dict[str, Any]) -> dict[str, Any]:
    return {key: approx(value) if isinstance(value, dict) else pytest.approx(value, abs=1e-9) for key, value in table.items()}


@pytest.mark.parametrize("spelling", ["LLaVA's", "without images/", "with another ending"])
def test_mme_in_either_spelling(tmp_path: Path, spelling: str) -> None:
    """The official converter takes the first and the last part of an id, and drops the ending."""
    folder = GOLDEN / "mme"
    expected = json.loads((folder / "expected.json").read_text())
    assert official_scorers.mme(folder) == expected
    rows = recorded(folder / "predictions.jsonl")
    assert sum("/images/" in row["question_id"] for row in rows) == 24
    change = {"without images/": ("/images/", "/"), "with another ending": (".jpg", ".JPEG")}.get(spelling, ("", ""))
    changed = [{**row, "question_id": row["question_id"].replace(*change)} for row in rows]
    found = results("mme", folder, dump_lines(tmp_path / "answers.jsonl", changed))
    assert found["problems"] == {}
    for name, value in expected.items():
        table = found["metrics"][name]
        assert ({key: table[key] for key in value} if isinstance(value, dict) else table) == approx({name: value})[name]


def test_mme_without_llavas_file_and_with_the_example_ids_of_another_copy(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "mme" / "MME_Benchmark_release_version", tmp_path / "MME_Benchmark")
    _, data = evaluate.load("mme", tmp_path)
    ours = [{"example_id": e.id.replace(".jpg", ".png"), "answer": e.answers[0], "policy": "none"} for e in data.examples]
    assert results("mme", tmp_path, ours)["metrics"]["perception"] == 1000.0


def test_seed_counts_a_doubled_id_twice(tmp_path: Path) -> None:
    folder = GOLDEN / "seed_doubled"
    expected = json.loads((folder / "expected.json").read_text())
    assert official_scorers.seed(folder) == expected
    found = results("seed", folder, folder / "predictions.jsonl")
    assert found["metrics"] == expected["metrics"]
    assert (found["n"], found["problems"]) == (10, {})
    evaluate.submission(config("seed", folder, folder / "predictions.jsonl"), tmp_path / "upload.jsonl")
    assert [{**row, "question_id": str(row["question_id"])} for row in expected["upload"]] == recorded(
        tmp_path / "upload.jsonl"
    )
    twice = [*recorded(folder / "predictions.jsonl"), said(49914, "wrong")]
    changed = results("seed", folder, dump_lines(tmp_path / "answers.jsonl", twice))
    assert changed["metrics"]["image"] == expected["metrics"]["image"] - 25.0, "the id's last answer is that of both rows"


@pytest.mark.parametrize("name", ["vqav2", "vizwiz", "mmbench"])
def test_other_doubled_ids_are_refused(tmp_path: Path, name: str) -> None:
    """Their official scripts keep one row an id, or take answers by order: what counts would be a guess."""
    ten = [{"answer": "a"}] * 10
    asked = [{"question_id": 1, "image_id": 1, "question": "?"}] * 2
    dump(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": asked})
    dump(tmp_path / "v2_mscoco_val2014_annotations.json", {"annotations": [{"question_id": 1, "answers": ten}]})
    dump(tmp_path / "val.json", [{"image": "x.jpg", "question": "?", "answers": ten}] * 2)
    (tmp_path / "mmbench_dev_20230712.tsv").write_text("index\tquestion\tA\tB\tanswer\n" + "1\t?\ta\tb\tA\n" * 2)
    with refused(tmp_path, "1 "):
        evaluate.load(name, tmp_path)


@pytest.mark.parametrize("part", ["gqa", "aokvqa"])
@pytest.mark.parametrize("layout", ["one list", "JSON Lines", "LLaVA's"])
def test_pope_on_its_other_pictures(tmp_path: Path, part: str, layout: str) -> None:
    folder = GOLDEN / "pope_sets"
    expected = json.loads((folder / part / "expected.json").read_text())
    assert official_scorers.pope(folder, part) == expected
    shutil.copytree(folder / part, tmp_path / part)
    rows = recorded(folder / part / "predictions.jsonl")
    asked = []
    for category in ("adversarial", "popular", "random"):
        path = tmp_path / part / f"{part}_pope_seem_{category}.json"
        labels = json.loads(path.read_text())
        if layout != "one list":
            dump_lines(path, labels)
        asked += [{**row, "question_id": len(asked) + k, "category": category} for k, row in enumerate(labels)]
    if layout == "LLaVA's":
        dump_lines(tmp_path / part / "llava_pope_test.jsonl", [{**q, "text": f"{q['text']}\n{SHORT}"} for q in asked])
        rows = [{**row, "question_id": q["question_id"]} for row, q in zip(rows, asked, strict=True)]
    found = results("pope", tmp_path, rows, split=part)
    assert found["problems"] == {}
    assert found["metrics"] == approx(expected)
    assert found["protocol"]["split"] == part


def test_vizwiz_by_its_own_rule() -> None:
    folder = GOLDEN / "vizwiz"
    expected = json.loads((folder / "expected.json").read_text())
    assert official_scorers.vizwiz(folder) == expected
    found = results("vizwiz", folder, folder / "predictions.jsonl")["metrics"]
    assert {"overall": found["accuracy"], **found["answer_type"]} == expected
    assert results("vizwiz", folder, folder / "predictions.jsonl", scorer="m4c")["metrics"]["accuracy"] != expected["overall"]


@pytest.mark.parametrize(
    ("operations", "steps"),
    [
        ([("select", "cat (1)"), ("exist", "?")], 1),
        ([("select", "cat (1)"), ("relate", "near,o (2)"), ("query", "name")], 2),
        ([("select", "cat (1)"), ("choose name", "cat|dog")], 1),
        ([("select", "cat (1)"), ("query", "color"), ("verify rel", "x")], 3),
        ([("select", "coexistence (1)"), ("query", "hposition")], 1),  # a substring is enough, as there
        ([], 0),
    ],
)
def test_gqa_steps(operations: list[tuple[str, str]], steps: int) -> None:
    program = [{"operation": name, "argument": argument, "dependencies": []} for name, argument in operations]
    assert gqa._steps(program) == official_scorers.gqa_steps(program) == steps


# --- copies of the files ---------------------------------------------------------------------------------------------

ASKED = "Is there a dog? Please answer yes or no.\tYes\nIs there a cat?  Please answer yes or no.\tNo\n"
COPIES = {
    "CRLF": ASKED.replace("\n", "\r\n").encode(),
    "CR": ASKED.replace("\n", "\r").encode(),
    "byte order mark": codecs.BOM_UTF8 + ASKED.encode(),
    "byte order mark and CRLF": codecs.BOM_UTF8 + ASKED.replace("\n", "\r\n").encode(),
    "blank lines": f"\n  \n{ASKED}\n\n".encode(),
    "spaces for the tab": ASKED.replace("\t", "    ").encode(),
    "one space for the tab": ASKED.replace("\t", " ").encode(),
    "nothing for the tab": ASKED.replace("\t", "").encode(),
    "spaces about the tab": ASKED.replace("\t", " \t ").encode(),
    "two tabs": ASKED.replace("\t", "\t\t").encode(),
    "trailing spaces": ASKED.replace("\n", " \t\n").encode(),
    "no last line end": ASKED.rstrip().encode(),
    "periods": ASKED.replace("\tYes", "\tYes.").encode(),
    "other case": ASKED.replace("\tYes", "\tYES").replace("\tNo", "\tno").encode(),
}


@pytest.mark.parametrize("copy", COPIES)
def test_mme_question_files_as_editors_leave_them(tmp_path: Path, copy: str) -> None:
    folder = tmp_path / "existence"
    folder.mkdir()
    (folder / "0001.txt").write_bytes(COPIES[copy])
    (folder / "._0001.txt").write_bytes(b"\x00\x05\x16\x07\xff\xfe")
    (folder / ".DS_Store").write_bytes(b"\x00")
    (folder / "0001.JPG").touch()
    answers = [
        said("existence/0001.jpg", text, f"{asked}\n{SHORT}")
        for text, asked in (("Yes", "Is there a dog?"), ("No", "Is there a cat?"))
    ]
    found = results("mme", tmp_path, answers)
    assert (found["metrics"]["perception"], found["n"], found["problems"]) == (200.0, 2, {})
    _, data = evaluate.load("mme", tmp_path)
    assert {example.image for example in data.examples} == {"existence/0001.JPG"}


@pytest.mark.parametrize(
    "body",
    [
        "这里有狗吗？\tYes\n这里有猫吗？\tNo\n".encode("gbk"),
        ASKED.encode("utf-16"),
        b"Is there a dog? Please answer yes or no.\nIs there a cat? Please answer yes or no.\n",
        b"Is there a dog?\tYes\n",
        (ASKED + "And a third?\tYes\n").encode(),
        b"Is there a dog?\tmaybe\nIs there a cat?\tNo\n",
        b"",
    ],
)
def test_mme_question_files_that_cannot_be_told(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "existence").mkdir()
    (tmp_path / "existence" / "0001.txt").write_bytes(body)
    with refused(tmp_path / "existence" / "0001.txt"):
        evaluate.load("mme", tmp_path)


def test_byte_order_marks_and_pointers(tmp_path: Path) -> None:
    """Each kind of annotation file with a mark in front, and with a Git LFS pointer in its place."""
    asked = {"questions": [{"question_id": 1, "image_id": 1, "question": "Who?"}]}
    labels = {"annotations": [{"question_id": 1, "answers": [{"answer": "me"}] * 10}]}
    prefixes = {"vqav2": "v2_", "okvqa": ""}
    files: dict[str, dict[str, Any]] = {
        name: {f"{mark}OpenEnded_mscoco_val2014_questions.json": asked, f"{mark}mscoco_val2014_annotations.json": labels}
        for name, mark in prefixes.items()
    }
    files["vizwiz"] = {"val.json": [{"image": "1", "question": "Who?", "answers": [{"answer": "me"}] * 10}]}
    files["seed"] = {"SEED-Bench.json": json.loads((GOLDEN / "seed_doubled" / "SEED-Bench.json").read_text())}
    for name, bodies in files.items():
        (tmp_path / name).mkdir()
        for file, body in bodies.items():
            (tmp_path / name / file).write_bytes(codecs.BOM_UTF8 + json.dumps(body).encode())
        assert evaluate.load(name, tmp_path / name)[1].examples
        (tmp_path / name / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        with refused(tmp_path / name / file, "git lfs pull"):
            evaluate.load(name, tmp_path / name)


LLAVA = {"mme": "MME", "seed": "seed_bench", "gqa": "gqa/data", "mmvet": "mm-vet", "pope": "pope"}


def test_llavas_own_folder_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(GOLDEN / "mme", tmp_path / "MME")
    shutil.copytree(GOLDEN / "seed_doubled", tmp_path / "seed_bench")
    shutil.copytree(GOLDEN / "pope", tmp_path / "pope")
    types = {"structural": "query", "semantic": "attr"}
    rows = {"1": {"question": "What?", "answer": "left", "imageId": "n", "types": types}}
    dump(tmp_path / "gqa" / "data" / "testdev_balanced_questions.json", rows)
    dump(
        tmp_path / "mm-vet" / "mm-vet.json", {"v1_0": {"imagename": "a", "question": "?", "answer": "b", "capability": ["ocr"]}}
    )
    assert main.run(["eval", *LLAVA, "--list", "--data", str(tmp_path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {name for name, about in listed.items() if all(n["found"] for n in about["needs"] if not n["optional"])} == set(
        LLAVA
    )
    answers = GOLDEN / "mme" / "predictions.jsonl"
    assert main.run(["eval", "mme", "--data", str(tmp_path), "--predictions", str(answers), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["perception"] == 512.5


# --- what stands beside a score --------------------------------------------------------------------------------------


def test_unread_answers_stand_beside_every_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One answer that names nothing and one without its picture each, in the terminal, the manifest and JSON."""
    (tmp_path / "mme").mkdir()
    (tmp_path / "mmbench").mkdir()
    (tmp_path / "vstar").mkdir()
    mme = mme_layout(tmp_path / "mme")
    mme[0]["text"] = "maybe"
    (tmp_path / "mmbench" / "mmbench_dev_20230712.tsv").write_text(
        "index\tquestion\tA\tB\tanswer\n1\t?\tcat\tdog\tA\n2\t?\tcat\tdog\tB\n"
    )
    dump_lines(tmp_path / "vstar" / "test_questions.jsonl", [
        {"question_id": n, "image": "a.jpg", "text": "Which?\n(A) red\n(B) blue", "label": "A", "category": "c"} for n in (1, 2)
    ])  # fmt: skip
    science = recorded(GOLDEN / "scienceqa" / "predictions.jsonl")
    shown = next(row for row in science if "<image>" in row["prompt"])
    blind = [{**row, "prompt": row["prompt"].replace("<image>", "")} if row is shown else row for row in science]
    seed = [
        {**row, "text": row["text"] if n else "E"}
        for n, row in enumerate(recorded(GOLDEN / "seed_doubled" / "predictions.jsonl"))
    ]
    for row in seed:
        row["text"] = row["text"] if row["text"] in "ABCD" else "A" if row["text"] != "E" else "E"
    cases: dict[str, tuple[Path, list[dict[str, Any]]]] = {
        "mme": (tmp_path / "mme", mme),
        "mmbench": (tmp_path / "mmbench", [said(1, "the horse"), said(2, "B")]),
        "vstar": (tmp_path / "vstar", [said(1, "A"), said(2, "a horse of course")]),
        "seed": (GOLDEN / "seed_doubled", seed),
        "scienceqa": (GOLDEN / "scienceqa", blind),
    }
    for name, (data, rows) in cases.items():
        answers, out = dump_lines(tmp_path / f"{name}.jsonl", rows), tmp_path / f"{name}.out"
        assert main.run(["eval", name, "--data", str(data), "--predictions", str(answers), "--out", str(out), "-q"]) == 0
        said_here = capsys.readouterr().out
        found = manifest.read(out).results["beside"]
        unread = found.pop("unread")
        assert f"neither yes nor no (they count as the official rule has it): {unread:,}" in said_here
        noted = sum(json.loads(line)["note"] == "unread" for line in (out / "scores.jsonl").read_text().splitlines())
        assert noted == unread
        assert unread == {"mme": 3, "mmbench": 1, "vstar": 1, "seed": 1}.get(name, unread)
        assert found == ({"without_picture": 1} if name == "scienceqa" else {})


@pytest.mark.parametrize("scorer", plug.load("benchmarks", "pope").scorers)  # type: ignore[attr-defined]
def test_pope_answers_that_say_neither(tmp_path: Path, scorer: str) -> None:
    texts = ["Yes", "no", "Perhaps", "", "yesterday", "It is not there"]
    for category in ("adversarial", "popular", "random"):
        rows = [{"question_id": n, "image": "x", "text": f"Is there a t{n} in the image?", "label": "yes"} for n in range(6)]
        dump_lines(tmp_path / f"coco_pope_{category}.json", rows)
    answers = [{"example_id": f"random-{n}", "answer": text} for n, text in enumerate(texts)]
    expected = {"official": 3}.get(scorer, 4)  # "not" is a no to the official script alone
    assert results("pope", tmp_path, answers, scorer=scorer)["beside"] == {"unread": expected}
