"""Answers that VLMEvalKit and lmms-eval recorded: scored as they score them, joined by id and question, and read without harm.

tests/golden/harness/make.py made the files and the expected figures with the harnesses' own code.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from refusals import refused
from reporters import Told

from cos_cli import main
from cos_core import evaluate
from cos_core.data import harness_files, sheets
from cos_core.data.harness_files import HarnessFile, HarnessRow
from cos_core.evaluate import EvalConfig, importing, paper
from cos_core.files import manifest, plug
from cos_core.interfaces import BenchmarkData
from cos_core.types import Example, RunManifest

GOLDEN = Path(__file__).parent / "golden"
FILES = GOLDEN / "harness"
EXPECTED = json.loads((FILES / "expected.json").read_text(encoding="utf-8"))
SHEETS, SAMPLES = FILES / "vlmevalkit", FILES / "lmms-eval" / "toy__model" / "20260601_120000_samples_"
VLM, LMMS = "vlmevalkit", "lmms-eval"


def data_of(benchmark: str) -> Path:
    return FILES / "data" / benchmark if (FILES / "data" / benchmark).is_dir() else GOLDEN / benchmark


def run(benchmark: str, answers: Path, scorer: str | None = None, **more: Any) -> RunManifest:
    split = more.pop("split", {"scienceqa": "test-image"}.get(benchmark))
    return evaluate.run(EvalConfig(benchmark, data_of(benchmark), answers, scorer=scorer, split=split, replicates=10, **more))


# --- scores ----------------------------------------------------------------------------------------------------------

SHEET_OF = {
    "pope": ("POPE.xlsx", "content"),
    "mme": ("MME.tsv", "category and picture"),
    "gqa": ("GQA_TestDev_Balanced.xlsx", "index"),
    "textvqa": ("TextVQA_VAL.xlsx", "index"),
    "vizwiz": ("VizWiz.xlsx", "place"),
    "mmbench": ("MMBench_DEV_EN.xlsx", "index"),
    "scienceqa": ("ScienceQA_TEST.json", "place"),
    "seed": ("SEEDBench_IMG.xlsx", "question_id"),
}


@pytest.mark.parametrize("benchmark", SHEET_OF)
def test_a_sheet_scores_as_vlmevalkit_did(benchmark: str) -> None:
    name, way = SHEET_OF[benchmark]
    finished = run(benchmark, SHEETS / f"ToyVLM_{name}", VLM, **({"split": "image"} if benchmark == "seed" else {}))
    found, expected = finished.results["metrics"], EXPECTED["VLMEvalKit"][benchmark]
    if benchmark == "pope":
        own = {split: row for split, row in expected.items() if split != "Overall"}
        assert {split: found[split] for split in own} == {split: pytest.approx(row) for split, row in own.items()}
        expected = expected["Overall"]
        assert {key: found[key] for key in expected} == pytest.approx(expected)
    elif benchmark == "mme":
        assert (found["perception"], found["cognition"]) == pytest.approx((expected["perception"], expected["reasoning"]))
        parts = {key: expected[key] for key in expected.keys() - {"perception", "reasoning"}}
        assert {key: found[key]["score"] for key in parts} == pytest.approx(parts)
    elif benchmark == "mmbench":
        assert found["accuracy"] == pytest.approx(100 * expected["Overall"], abs=0.005)
        parts = {**found["category"], **found["l2_category"]}
        assert parts == {key: pytest.approx(100 * expected[key], abs=0.005) for key in ("color", "count", "coarse", "fine")}
    else:
        scale = 100 if benchmark in ("scienceqa", "seed") else 1
        key = {"scienceqa": "image_accuracy", "seed": "image"}.get(benchmark, "accuracy")
        assert found[key] == pytest.approx(scale * expected["Overall"], abs=0.005)
    about = finished.results["recorded"]
    assert (about["harness"], about["model"], about["found_by"]) == ("VLMEvalKit", "ToyVLM", way)
    assert (finished.status, finished.counts["unknown"], finished.counts["missing"]) == ("complete", 0, 0)


SAMPLES_OF = {
    "pope": ("pope", "question_id", {}),
    "gqa": ("gqa", "place", {"exact_match": ("accuracy", 100)}),
    "textvqa": ("textvqa_val", "question_id", {"exact_match": ("accuracy", 100)}),
    "vizwiz": ("vizwiz_vqa_val", "image", {"exact_match": ("accuracy", 100)}),
    "mmbench": ("mmbench_en_dev_static", "index", {"gpt_eval_score": ("accuracy", 1)}),
    "scienceqa": ("scienceqa_img", "place", {"exact_match": ("image_accuracy", 100)}),
    "seed": (
        "seedbench",
        "question_id",
        {"seed_image": ("image", 100), "seed_video": ("video", 100), "seed_all": ("Total", 100)},
    ),
    "mme": ("mme", "question_id", {"mme_perception_score": ("perception", 1), "mme_cognition_score": ("cognition", 1)}),
}


@pytest.mark.parametrize("benchmark", SAMPLES_OF)
def test_samples_score_as_lmms_eval_did(benchmark: str) -> None:
    """MME's are in the form of releases before 0.3: one object with the samples in `logs`."""
    task, way, keys = SAMPLES_OF[benchmark]
    file = FILES / "lmms-eval" / "mme.json" if benchmark == "mme" else Path(f"{SAMPLES}{task}.jsonl")
    finished = run(benchmark, file, LMMS)
    found, expected = finished.results["metrics"], EXPECTED["lmms-eval"][benchmark]
    if keys:
        ours = {key: found[name] / scale for key, (name, scale) in keys.items()}
        assert ours == pytest.approx(expected, abs=5e-5)
    else:
        assert {key: found[key] for key in expected} == pytest.approx(expected)
    about = finished.results["recorded"]
    assert about["found_by"] == way
    assert about["model"] == ("pretrained=toy/model" if benchmark == "mme" else "toy/model")
    # MMBench's samples hold no score of their own.
    own = None if benchmark == "mmbench" else {"compared": finished.results["n"], "equal": finished.results["n"]}
    assert about.get("own_scores") == own
    assert (finished.status, finished.counts["unknown"]) == ("complete", 0)


def test_the_harness_and_another_rule() -> None:
    """The official rule reads the answers as they stand: "None" is no missing value, and no score of theirs is compared."""
    finished = run("gqa", Path(f"{SAMPLES}gqa.jsonl"))
    assert "own_scores" not in finished.results["recorded"]
    assert finished.results["protocol"]["profile"] == "lmms-eval"
    sheet = SHEETS / "ToyVLM_TextVQA_VAL.xlsx"
    assert run("textvqa", sheet, VLM).results["recorded"]["missing"] == 5
    assert "missing" not in run("textvqa", sheet).results["recorded"]
    assert run("textvqa", sheet).results["protocol"]["ocr_tokens"] == "no"


def test_the_manifest_says_whose_answers_they_are_and_keeps_them(tmp_path: Path) -> None:
    file, out = SHEETS / "ToyVLM_GQA_TestDev_Balanced.xlsx", tmp_path / "out"
    for _ in range(2):  # the same command again
        assert (
            main.run(["eval", "gqa", "--data", str(data_of("gqa")), "--predictions", str(file), "--out", str(out), "-q"]) == 0
        )
    finished = manifest.read(out)
    about = finished.results["recorded"]
    assert (about["file"], about["dataset"], about["prompts"]) == (file.name, "GQA_TestDev_Balanced", "VLMEvalKit's")
    assert about["sha256"] == finished.inputs["recorded"]["sha256"] == manifest.file_digest(file)
    kept = out / "imported.jsonl"
    assert finished.inputs["predictions"] == manifest.file_input(kept)
    # What is kept is in our format and scores the same.
    again = run("gqa", kept)
    assert again.results["metrics"] == finished.results["metrics"]
    assert "recorded" not in again.results
    cells = {cell.name: cell for cell in paper.report({"monkey": out}) if cell.ours is not None}
    assert "VLMEvalKit" in cells["monkey"].note


def test_scoring_kept_answers_anew_leaves_them(tmp_path: Path) -> None:
    first = run("gqa", SHEETS / "ToyVLM_GQA_TestDev_Balanced.xlsx", out=tmp_path / "run")
    again = run("gqa", tmp_path / "run" / "imported.jsonl", out=tmp_path / "run")
    assert (tmp_path / "run" / "imported.jsonl").is_file()
    assert again.results["metrics"] == first.results["metrics"]


def test_a_folder_of_a_harness_serves_several_benchmarks(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("gqa", "mmbench"):
        shutil.copytree(data_of(name), data / name)
    answers = ["--predictions", str(SHEETS), "--scorer", VLM]
    call = ["eval", "gqa", "mmbench", "--data", str(data), *answers, "--out", str(tmp_path / "out")]
    assert main.run([*call, "-q"]) == 0
    assert manifest.read(tmp_path / "out" / "mmbench").results["metrics"]["accuracy"] == 25.0
    two = tmp_path / "two"
    two.mkdir()
    for name in ("A", "B"):
        shutil.copy(SHEETS / "ToyVLM_POPE.xlsx", two / f"{name}_POPE.xlsx")
    assert main.run(["eval", "pope", "--data", str(data_of("pope")), "--predictions", str(two)]) == 3


# --- joining ---------------------------------------------------------------------------------------------------------


def tsv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    return path


GQA_QUESTIONS = json.loads((FILES / "data/gqa/testdev_balanced_questions.json").read_text(encoding="utf-8"))


def gqa_rows(**changes: Any) -> list[dict[str, Any]]:
    return [
        {"index": key, "question": row["question"], "answer": row["answer"], "prediction": row["answer"], **changes}
        for key, row in GQA_QUESTIONS.items()
    ]


def test_rows_that_count_only_are_joined_by_content(tmp_path: Path) -> None:
    """In another order, with numbers for ids: "What color is it?" stands fourteen times, and is paired in order."""
    rows = [{**row, "index": number} for number, row in enumerate(reversed(gqa_rows()))]
    finished = run("gqa", tsv(tmp_path / "X_GQA_TestDev_Balanced.tsv", rows))
    assert finished.results["recorded"]["found_by"] == "content"
    assert finished.results["recorded"]["by_order"] == 27
    assert (finished.results["metrics"]["accuracy"], finished.status) == (100.0, "complete")
    # Without the true answers nothing tells them apart, and they are not guessed.
    untold = [{key: cell for key, cell in row.items() if key != "answer"} for row in rows]
    reporter = Told()
    config = EvalConfig(
        "gqa", data_of("gqa"), tsv(tmp_path / "Y_GQA_TestDev_Balanced.tsv", untold), replicates=10, partial_join=True
    )
    finished = evaluate.run(config, reporter)
    assert finished.results["recorded"]["untold"] == 27
    assert (finished.counts["ok"], finished.counts["unknown"], finished.counts["missing"]) == (13, 27, 27)
    with refused("27"):
        evaluate.run(EvalConfig("gqa", data_of("gqa"), tmp_path / "Y_GQA_TestDev_Balanced.tsv", replicates=10))


def test_lists_of_true_answers_are_read_once_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """One question asked of many pictures, as in VizWiz: rows in another order, told apart by ten answers each."""
    count, read, calls = 50, importing.ast.literal_eval, []
    monkeypatch.setattr(importing.ast, "literal_eval", lambda text: calls.append(text) or read(text))
    answers = [tuple(f"{number}-{each}" for each in range(10)) for number in range(count)]
    examples = [Example(f"e{number}", "vizwiz", f"{number}.jpg", "What is this?", answers[number]) for number in range(count)]
    data = BenchmarkData("vizwiz", "val", examples, Path())
    rows = [
        HarnessRow(2 + row, row, "What is this?", "x", truth=str(list(reversed(answers[place]))))
        for row, place in enumerate(reversed(range(count)))
    ]
    source = HarnessFile(Path("x"), harness_files.VLMEVALKIT, rows=rows)
    found = importing._Joiner(data, plug.load("benchmarks", "vizwiz")).places(source, importing.Import(source))
    assert found == [(place,) for place in reversed(range(count))]
    assert len(calls) <= 2 * count


def test_a_wrong_join_is_an_error_and_not_a_score(tmp_path: Path) -> None:
    other = tsv(tmp_path / "X_GQA_TestDev_Balanced.tsv", gqa_rows(question="Who is it?"))
    with refused("none of the 40", other):
        run("gqa", other)
    # Right ids and questions, other true answers: another version of the data.
    with refused("none of the 40"):
        run("gqa", tsv(tmp_path / "Y_GQA_TestDev_Balanced.tsv", gqa_rows(answer="zebra")))
    some = gqa_rows()
    some[3]["answer"] = "zebra"
    finished = run("gqa", tsv(tmp_path / "Z_GQA_TestDev_Balanced.tsv", some))
    assert (finished.counts["unknown"], finished.counts["missing"], finished.status) == (1, 1, "partial")


@pytest.mark.parametrize(
    ("benchmark", "name", "words"),
    [
        ("gqa", "ToyVLM_POPE.xlsx", ("POPE", "pope", "not gqa")),
        ("mmbench", "ToyVLM_MMBench_DEV_EN_V11.xlsx", ("_V11", "MMBench_DEV_EN")),
        ("mmbench", "ToyVLM_MMBench_DEV_EN_openai_result.xlsx", ("_openai_result", "ToyVLM_MMBench_DEV_EN.xlsx")),
        ("mmbench", "ToyVLM_MMBench_DEV_CN.xlsx", ("cn", "--split cn")),
        ("mmbench", "ToyVLM_MMBench_DEV_EN.pkl", ("xlsx",)),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, benchmark: str, name: str, words: tuple[str, ...]) -> None:
    shutil.copy(SHEETS / "ToyVLM_MMBench_DEV_EN.xlsx", tmp_path / name)
    with refused(*words):
        run(benchmark, tmp_path / name)


@pytest.mark.parametrize("ending", ["xlsx", "tsv", "csv", "json"])
def test_a_sheet_without_a_column_is_refused_and_the_nearest_is_named(tmp_path: Path, ending: str) -> None:
    rows = [{("Prediction" if name == "prediction" else name): cell for name, cell in row.items()} for row in gqa_rows()]
    file = tmp_path / f"X_GQA_TestDev_Balanced.{ending}"
    if ending == "xlsx":
        book = openpyxl.Workbook()
        for cells in (list(rows[0]), *(list(row.values()) for row in rows)):
            book.active.append(cells)
        book.save(file)
    elif ending == "json":
        file.write_text(json.dumps(rows), encoding="utf-8")
    else:
        separator = "\t" if ending == "tsv" else ","
        file.write_text("\n".join(separator.join(map(str, row)) for row in (rows[0], *(row.values() for row in rows))))
    with refused(file, "'prediction'", "'Prediction'"):
        run("gqa", file)


@pytest.mark.parametrize("cell", ['"red', '"red" car'], ids=["never-closed", "goes-on"])
def test_a_quote_that_is_not_closed_takes_no_rows_with_it(tmp_path: Path, cell: str) -> None:
    lines = ["index,question,answer,prediction", *(",".join(map(str, row.values())) for row in gqa_rows())]
    lines[3] = lines[3].rpartition(",")[0] + f",{cell}"
    file = tmp_path / "X_GQA_TestDev_Balanced.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with refused(f"{file}:4"):
        run("gqa", file)


def test_a_failed_answer_is_a_failure(tmp_path: Path) -> None:
    rows = gqa_rows()
    rows[0]["prediction"] = "Failed to obtain answer via API."
    finished = run("gqa", tsv(tmp_path / "X_GQA_TestDev_Balanced.tsv", rows), VLM)
    assert (finished.counts["failed"], finished.status, finished.results["metrics"]["accuracy"]) == (1, "partial", 97.5)


def test_samples_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    lines = Path(f"{SAMPLES}gqa.jsonl").read_text(encoding="utf-8").splitlines()
    several = {**json.loads(lines[0]), "filtered_resps": ["red", "blue"]}
    wrong = {**json.loads(lines[1]), "exact_match": 0.5}
    file = tmp_path / "20260601_120000_samples_gqa.jsonl"
    file.write_text("\n".join([json.dumps(several), json.dumps(wrong), *lines[2:], "{"]) + "\n", encoding="utf-8")
    finished = run("gqa", file, LMMS)
    assert (finished.counts["unreadable"], finished.counts["missing"], finished.counts["ok"]) == (2, 1, 39)
    own = finished.results["recorded"]["own_scores"]
    assert (own["compared"], own["equal"], own["other"]) == (39, 38, ["200000001"])
    assert finished.results["recorded"]["model"] == tmp_path.name


def test_other_files_are_read_as_ever(tmp_path: Path) -> None:
    assert harness_files.read(GOLDEN / "pope" / "predictions.jsonl") is None
    assert harness_files.read(GOLDEN / "seed" / "expected_upload.jsonl") is None
    for text in ("", "{}\n", "[]", "a,b\n1,2\n", '{\n "logs": 3}', "index,question\n1,x\n"):
        file = tmp_path / "x.json"
        file.write_text(text)
        assert harness_files.read(file) is None


# --- workbooks -------------------------------------------------------------------------------------------------------


def workbook(path: Path, **parts: bytes) -> Path:
    """A sheet with a row, parts of it replaced or added."""
    book, file = openpyxl.Workbook(), io.BytesIO()
    for row in (("index", "question", "prediction"), (1, "Which?", "cat")):
        book.active.append(row)
    book.save(file)
    with zipfile.ZipFile(file) as before, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as after:
        for name in before.namelist():
            if name not in parts:
                after.writestr(name, before.read(name))
        for name, content in parts.items():
            after.writestr(name, content)
    return path


SHEET = "xl/worksheets/sheet1.xml"
HEAD = b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
LAUGHS = b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>' + HEAD + b"</sheetData></worksheet>"


def test_cells_are_texts_and_formulas_are_not_run(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (("index", "question", "prediction"), (1, "Which?", 5.0), (2, None, "=1+1"), (3, "x", 2.5)):
        book.active.append(row)
    book.save(tmp_path / "x.xlsx")
    assert list(sheets.read(tmp_path / "x.xlsx")) == [
        (2, {"index": "1", "question": "Which?", "prediction": "5"}),
        (3, {"index": "2"}),
        (4, {"index": "3", "question": "x", "prediction": "2.5"}),
    ]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({SHEET: LAUGHS}, ("document type",)),
        ({SHEET: b"<!--" + b" " * 2**21 + b"-->" + LAUGHS}, ("document type",)),
        ({SHEET: LAUGHS.decode().encode("utf-16")}, ("UTF-8",)),
        ({SHEET: b'<?xml version="1.0" encoding="cp500"?>' + LAUGHS.decode().encode("cp500")}, ("UTF-8",)),
        ({"xl/media/a.png": LAUGHS}, ("document type",)),
        ({"xl/media/image1.png": bytes(sheets.MAX_BYTES)}, ("MiB", "tsv")),
        ({SHEET: HEAD + b"<row>"}, ("cannot be read as a workbook",)),
        ({SHEET: b""}, ("cannot be read as a workbook",)),
        ({"[Content_Types].xml": b"<x/>"}, ("cannot be read as a workbook",)),
    ],
    ids=["entities", "entities-far-in", "utf-16", "ebcdic", "entities-elsewhere", "bomb", "torn", "empty", "no-types"],
)
def test_a_workbook_that_does_harm_is_refused(tmp_path: Path, parts: dict[str, bytes], words: tuple[str, ...]) -> None:
    with refused(*words):
        list(sheets.read(workbook(tmp_path / "x.xlsx", **parts)))


def test_a_workbook_with_far_too_many_cells_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "MAX_CELLS", 50_000)
    rows = b"".join(b'<row r="%d"><c r="XFD%d"><v>1</v></c></row>' % (n, n) for n in range(1, 20))
    with refused("cells", "tsv"):
        list(sheets.read(workbook(tmp_path / "x.xlsx", **{SHEET: HEAD + rows + b"</sheetData></worksheet>"})))
    monkeypatch.setattr(sheets, "MAX_TAGS", 30)
    with refused("marks", "tsv"):
        list(sheets.read(workbook(tmp_path / "y.xlsx")))


LONG = b"x" * 2**17


@pytest.mark.parametrize(
    "mark",
    [b'<a b="%s"/>' % LONG, b'<a b="%s"/>' % LONG.replace(b"xx", b"x>"), b"<a b='%s" % LONG, b"<!--%s-->" % LONG,
     b"<!--%s-->" % LONG.replace(b"xx", b"<x"), b"<?a %s?>" % LONG.replace(b"xx", b"<>"), b"<a %s/>" % (b'b="" ' * 2**14)],
    ids=["value", "value-with-ends", "open", "comment", "comment-with-tags", "instruction", "attributes"],
)  # fmt: skip
def test_a_workbook_with_a_mark_that_takes_forever_is_refused(tmp_path: Path, mark: bytes) -> None:
    with refused("mark", "tsv"):
        list(sheets.read(workbook(tmp_path / "x.xlsx", **{SHEET: HEAD + mark + b"</sheetData></worksheet>"})))


def test_long_cells_are_no_marks(tmp_path: Path) -> None:
    for name, text in (("x", LONG), ("y", LONG.replace(b"xx", b'">')), ("z", b"<![CDATA[%s]]>" % LONG)):
        row = b'<row r="1"><c r="A1" t="inlineStr"><is><t>index</t></is></c></row>'
        row += b'<row r="2"><c r="A2" t="inlineStr"><is><t>%s</t></is></c></row>' % text
        file = workbook(tmp_path / f"{name}.xlsx", **{SHEET: HEAD + row + b"</sheetData></worksheet>"})
        assert [len(cells["index"]) for _, cells in sheets.read(file)] == [2**17]


def test_one_text_in_very_many_cells_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "MAX_TEXT", 1000)
    book = openpyxl.Workbook()
    for number in range(30):
        book.active.append((number, "x" * 50))
    book.save(tmp_path / "x.xlsx")
    with refused("characters", "tsv"):
        list(sheets.read(tmp_path / "x.xlsx"))


def test_a_file_that_only_begins_as_a_workbook(tmp_path: Path) -> None:
    for name, content in (("x.xlsx", sheets.ZIP + b"rest"), ("y.xlsx", (SHEETS / "ToyVLM_POPE.xlsx").read_bytes()[:3000])):
        (tmp_path / name).write_bytes(content)
        with refused("cannot be read as a workbook"):
            list(sheets.read(tmp_path / name))
