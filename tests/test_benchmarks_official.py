"""Benchmarks in their official layouts, small and scored by hand; golden numbers where the official script gave them."""

from __future__ import annotations

import base64
import csv
import json
import random
import shutil
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from PIL import Image
from reference import vqa_reference
from two_passes import Recorder

from cos_core import evaluate, plug
from cos_core.benchmarks import gqa
from cos_core.engines.scripted import last_user_text
from cos_core.errors import InputError
from cos_core.evaluate import EvalConfig
from cos_core.infer.passes import Setting, TwoPass
from cos_core.prompts import load_profile
from cos_core.types import Prediction

LETTER = "Answer with the option's letter from the given choices directly."
GOLDEN = Path(__file__).parent / "golden"
SHORT = "Answer the question using a single word or phrase."


def dump(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def dump_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config(benchmark: str, data: Path, answers: Path | list[dict[str, Any]], **more: Any) -> EvalConfig:
    if isinstance(answers, list):
        answers = dump_lines(data / "answers.jsonl", answers)
    return EvalConfig(benchmark, data, answers, replicates=200, **more)


def results(benchmark: str, data: Path, answers: Path | list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return evaluate.run(config(benchmark, data, answers, **more)).to_json()["results"]


def said(key: object, text: str, prompt: str | None = None) -> dict[str, Any]:
    return {"question_id": key, "text": text} | ({"prompt": prompt} if prompt is not None else {})


# --- golden ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["scienceqa", "seed", "textvqa"])
def test_every_golden_number(name: str) -> None:
    found = results(name, GOLDEN / name, GOLDEN / name / "predictions.jsonl")
    expected = json.loads((GOLDEN / name / "expected.json").read_text())
    assert {key: found["metrics"].get(key) for key in expected} == expected


def test_seed_upload_file(tmp_path: Path) -> None:
    upload = tmp_path / "upload.jsonl"
    evaluate.submission(config("seed", GOLDEN / "seed", GOLDEN / "seed" / "predictions.jsonl"), upload)
    assert upload.read_text() == (GOLDEN / "seed" / "expected_upload.jsonl").read_text()


def test_seed_split_and_missing_answers(tmp_path: Path) -> None:
    answers = [json.loads(line) for line in (GOLDEN / "seed" / "predictions.jsonl").read_text().splitlines()]
    (tmp_path / "SEED-Bench.json").write_text((GOLDEN / "seed" / "SEED-Bench.json").read_text())
    assert results("seed", tmp_path, answers, split="image")["metrics"]["Total"] == 35.43
    with pytest.raises(InputError, match="1 are missing, the first is '100000'"):
        evaluate.submission(config("seed", tmp_path, answers[1:]), tmp_path / "upload.jsonl")
    assert not (tmp_path / "upload.jsonl").exists()


def test_scienceqa_without_marked_prompts_goes_by_the_problems_picture(tmp_path: Path) -> None:
    answers = [json.loads(line) for line in (GOLDEN / "scienceqa" / "predictions.jsonl").read_text().splitlines()]
    for name in ("problems.json", "pid_splits.json"):
        (tmp_path / name).write_text((GOLDEN / "scienceqa" / name).read_text())
    ours = [{"example_id": row["question_id"], "answer": row["text"], "policy": "none"} for row in answers]
    found = results("scienceqa", tmp_path, ours)["metrics"]
    assert found["accuracy"] == 40.0
    assert found["image_total"] == 32  # the one without an answer is in it now
    assert found["image_accuracy"] == 31.25
    assert results("scienceqa", tmp_path, ours, split="test-image")["metrics"]["accuracy"] == 31.25


def test_textvqa_protocol_and_prompts() -> None:
    found = results("textvqa", GOLDEN / "textvqa", GOLDEN / "textvqa" / "predictions.jsonl")
    assert found["protocol"]["ocr_tokens"] == "mixed"
    assert found["protocol"]["scorer"] == "m4c"


# --- VQA layouts -----------------------------------------------------------------------------------------------------

RED = ["red"] * 10
VQA: list[tuple[list[str], str, int, int, int]] = [  # ten answers, prediction, points under "llava", "official", "m4c"
    (RED, "red", 100, 100, 100),
    (RED, "Red", 100, 0, 100),
    (RED, "red.", 100, 0, 100),
    (["two"] * 10, "2", 0, 0, 100),
    (["two"] * 10, "two", 0, 100, 100),  # the processed prediction is "2": the price of processing one side only
    (["two"] * 9 + ["3"], "2", 100, 100, 100),
    (["red"] + ["blue"] * 9, "red", 30, 30, 30),
    (["red"] * 2 + ["blue"] * 8, "Red", 60, 60, 60),
    (["red"] * 3 + ["blue"] * 7, "red!", 90, 90, 90),
    (["red"] * 4 + ["blue"] * 6, "the red", 100, 100, 100),
    (["girl's"] * 10, "girl's", 0, 100, 100),  # processed: "girl 's"
    (["a,b"] * 9 + ["c"], "a,b", 0, 100, 100),  # official "b", processed "ab"
    (["no"] * 10, "", 0, 0, 0),
    (["dont"] * 9 + ["x"], "don't", 100, 100, 100),
]


def vqa_layout(root: Path, questions: str, annotations: str) -> list[dict[str, Any]]:
    rows = [{"question_id": 100 + i, "image_id": 7 + i // 2, "question": f"What is {i}?"} for i in range(len(VQA))]
    labels = [
        {
            "question_id": 100 + i,
            "image_id": 7 + i // 2,
            "question_type": "what is" if i % 3 else "how many",
            "answer_type": ("yes/no", "number", "other")[i % 3],
            "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": n + 1} for n, a in enumerate(case[0])],
        }
        for i, case in enumerate(VQA)
    ]
    dump(root / questions, {"questions": rows})
    dump(root / annotations, {"annotations": labels[::-1]})  # joined by id, not by place
    return [said(100 + i, case[1], f"What is {i}?\n{SHORT}") for i, case in enumerate(VQA)]


@pytest.mark.parametrize(("column", "scorer"), [(0, "llava"), (1, "official"), (2, "m4c")])
def test_vqa_scorers_by_hand(tmp_path: Path, column: int, scorer: str) -> None:
    for name, files in (
        ("vqav2", ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json")),
        ("okvqa", ("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json")),
    ):
        answers = vqa_layout(tmp_path / name, *files)
        done = results(name, tmp_path / name, answers, scorer=scorer)
        points = [case[2:][column] for case in VQA]
        assert done["metrics"]["accuracy"] == round(sum(points) / len(points), 2)
        many = points[::3]
        assert done["metrics"]["question_type"]["how many"] == round(sum(many) / len(many), 2)
        assert done["protocol"]["scorer"] == scorer
    assert done["statistics"]["images"] == 7


def test_vqav2_equals_the_plain_procedure(tmp_path: Path) -> None:
    """Every table, and every question's score, of 401 questions made of what trips normalisers, against tests/reference."""
    draw = random.Random(5)
    odd = [
        "a,b",
        "1,000",
        "5.",
        "3.5",
        "U.S.A",
        "t-shirt",
        "it's",
        "dont",
        "The",
        "none",
        "ten",
        "red\tcar",
        " red ",
        "RED",
        "?",
    ]
    words = [*odd, "yes", "no", "red car", "ping-pong - ball", "10%", "", "somebody'd", "one, two", "...", "a\nb"]
    questions, notes, rows = [], [], []
    for i in range(401):
        common = draw.choice(words)
        texts = [common if draw.random() < 0.6 else draw.choice(words) for _ in range(10)] if i % 3 else [common] * 10
        questions.append({"question_id": i, "image_id": i // 3, "question": f"What is {i}?"})
        answers = [{"answer": text, "answer_confidence": "yes", "answer_id": n + 1} for n, text in enumerate(texts)]
        kinds = {"question_type": f"what {i % 7}", "answer_type": ("other", "number")[i % 2]}
        notes.append({"question_id": i, "image_id": i // 3, "answers": answers, **kinds})
        rows.append({"question_id": i, "answer": draw.choice([common, draw.choice(words), f"{common}."])})
    files = [tmp_path / name for name in ("v2_mscoco_val2014_annotations.json", "v2_OpenEnded_mscoco_val2014_questions.json")]
    dump(files[0], {"annotations": notes})
    dump(files[1], {"questions": questions})
    dump(tmp_path / "results.json", rows)
    expected = vqa_reference.evaluate(*map(str, files), str(tmp_path / "results.json"))
    texts = [said(row["question_id"], row["answer"]) for row in rows]
    found = results("vqav2", tmp_path, texts, scorer="official", out=tmp_path / "out")["metrics"]
    assert found["accuracy"] == expected["overall"]
    assert found["question_type"] == expected["perQuestionType"]
    assert found["answer_type"] == expected["perAnswerType"]
    each = {int(score.example_id): round(100 * score.value, 2) for score in evaluate.read_scores(tmp_path / "out")}
    assert each == expected["evalQA"]
    assert len(set(each.values())) == 5


def test_vqav2_takes_the_default_scorer_of_a_submission(tmp_path: Path) -> None:
    answers = vqa_layout(tmp_path, "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json")
    assert results("vqav2", tmp_path, answers) == results("vqav2", tmp_path, answers, scorer="llava")


def test_vqa_layouts_that_do_not_fit(tmp_path: Path) -> None:
    questions, annotations = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
    answers = vqa_layout(tmp_path, questions, annotations)
    labels = json.loads((tmp_path / annotations).read_text())["annotations"]
    dump(tmp_path / annotations, {"annotations": labels[1:]})
    with pytest.raises(InputError, match="do not belong together"):
        results("vqav2", tmp_path, answers)
    labels[0]["answers"] = labels[0]["answers"][:9]
    dump(tmp_path / annotations, {"annotations": labels})
    with pytest.raises(InputError, match="expected ten answers"):
        results("vqav2", tmp_path, answers)
    dump(tmp_path / annotations, {"annotations": [3]})
    with pytest.raises(InputError, match=r"official layout: Expected object, got int - at \$\.annotations\[0\]"):
        results("vqav2", tmp_path, answers)


def test_vqav2_test_dev_is_submitted_not_scored(tmp_path: Path) -> None:
    everything: list[dict[str, Any]] = [
        {"question_id": i, "image": f"{i}.jpg", "text": f"What is {i}?\n{SHORT}"} for i in range(20)
    ]
    dump_lines(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", everything)
    dump_lines(tmp_path / "llava_vqav2_mscoco_test-dev2015.jsonl", everything[4:16])
    answers = [said(i, f"The Girl's {i}.", everything[i]["text"]) for i in range(15, 3, -1)]
    done = evaluate.run(config("vqav2", tmp_path, answers, split="test-dev"))
    assert done.results["metrics"] == {"server_scored": True}
    assert done.results["headline"]["value"] is None
    assert (done.counts["total"], done.counts["ok"]) == (12, 12)
    evaluate.submission(config("vqav2", tmp_path, answers, split="test-dev"), tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())
    assert [row["question_id"] for row in rows] == list(range(20))
    assert [row["answer"] for row in rows] == [""] * 4 + [f"girl 's {i}" for i in range(4, 16)] + [""] * 4
    with pytest.raises(InputError, match="submission needs every answer"):
        evaluate.submission(config("vqav2", tmp_path, answers[1:], split="test-dev"), tmp_path / "other.json")


def test_vizwiz(tmp_path: Path) -> None:
    rows = [
        {
            "image": f"VizWiz_val_{i:08d}.jpg",
            "question": f"What is {i}?",
            "answers": [{"answer": a, "answer_confidence": "yes"} for a in case[0]],
            "answer_type": "unanswerable" if i == 12 else "other",
            "answerable": 1,
        }
        for i, case in enumerate(VQA)
    ]
    rows[12]["answers"] = [{"answer": "unanswerable", "answer_confidence": "yes"}] * 10
    dump(tmp_path / "val.json", rows)
    answers = [said(row["image"], case[1]) for row, case in zip(rows, VQA, strict=True)]
    answers[12]["text"] = "Unanswerable"  # as LLaVA's prompt tells the model to write it
    points = [case[4] for case in VQA]
    points[12] = 100
    done = results("vizwiz", tmp_path, answers)
    assert done["metrics"]["accuracy"] == round(sum(points) / len(points), 2)
    assert done["metrics"]["answer_type"]["unanswerable"] == 100.0
    assert results("vizwiz", tmp_path, answers, scorer="official")["metrics"]["answer_type"]["unanswerable"] == 0.0


def test_vizwiz_submission(tmp_path: Path) -> None:
    rows = [{"image": f"VizWiz_test_{i:08d}.jpg", "question": f"What is {i}?"} for i in range(12)]
    dump(tmp_path / "test.json", rows)
    answers = [said(row["image"], "Two Dogs.") for row in rows]
    evaluate.submission(config("vizwiz", tmp_path, answers, split="test"), tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == [{"image": row["image"], "answer": "2 dogs"} for row in rows]
    dump(tmp_path / "val.json", [{**rows[0], "answers": [{"answer": "x"}] * 10}])
    with pytest.raises(InputError, match="scored here; it has no submission"):
        evaluate.submission(config("vizwiz", tmp_path, answers), tmp_path / "out.json")


# --- GQA -------------------------------------------------------------------------------------------------------------

GQA = [  # structural type, answer, prediction, right
    ("query", "left", "left", True),
    ("query", "left", "Left.", True),
    ("query", "left", "left...", True),
    ("query", "left", " left", False),  # nothing is stripped in front
    ("query", "left", "left ", False),
    ("query", "left", "left!", False),
    ("query", "t-shirt", "T-Shirt", True),
    ("query", "t-shirt", "t shirt", False),
    ("verify", "yes", "Yes", True),
    ("verify", "no", "no, it is not", False),
    ("choose", "red", "RED.", True),
    ("logical", "yes", "no", False),
    ("compare", "cat", "", False),
]


def test_gqa_distribution(tmp_path: Path) -> None:
    """Two groups. "colour", three questions, true red red blue, said red blue Blue.: (2-1)^2/2 + (1-2)^2/1 = 1.5. "room", one,
    true attic, said hall: 1. In all (3 * 1.5 + 1 * 1) / 4 = 1.375, which GQA prints divided by 100."""
    truth = [("red", "colour"), ("red", "colour"), ("blue", "colour"), ("attic", "room"), ("yes", None)]
    types = {"structural": "query", "semantic": "attr"}
    rows = {
        str(i): {"question": "?", "answer": answer, "imageId": "n", "types": types, "groups": {"global": group}}
        for i, (answer, group) in enumerate(truth)
    }
    dump(tmp_path / "testdev_balanced_questions.json", rows)
    texts = ["red", "blue", "Blue.", "hall", "no"]
    table = results("gqa", tmp_path, [said(str(i), text) for i, text in enumerate(texts)])["metrics"]
    assert (table["accuracy"], table["distribution"]) == (40.0, 0.01)
    _, data = evaluate.load("gqa", tmp_path)
    scores = evaluate.load("gqa", tmp_path)[0].score(data, {str(i): Prediction(str(i), t) for i, t in enumerate(texts)})
    assert gqa._distribution(scores) == 1.375


def test_gqa(tmp_path: Path) -> None:
    data = {
        f"2{i:07d}": {
            "question": f"What is number {i}?",
            "answer": answer,
            "imageId": f"n{i // 2}",
            "isBalanced": True,
            "types": {"structural": structural, "semantic": "attr", "detailed": "x"},
            "semantic": [{}] * (1 + i % 2),
        }
        for i, (structural, answer, _, _) in enumerate(GQA)
    }
    unbalanced = {**next(iter(data.values())), "isBalanced": False}
    dump(tmp_path / "testdev_balanced_questions.json", {**data, "999": unbalanced})
    answers = [said(key, case[2], f"{row['question']}\n{SHORT}") for (key, row), case in zip(data.items(), GQA, strict=True)]
    done = results("gqa", tmp_path, answers)
    assert done["n"] == 13
    table = done["metrics"]
    right = [case[3] for case in GQA]
    assert table["accuracy"] == round(100 * sum(right) / 13, 2)
    assert (table["open"], table["binary"]) == (50.0, 40.0)
    assert table["structural"] == {"choose": 100.0, "compare": 0.0, "logical": 0.0, "query": 50.0, "verify": 50.0}
    assert table["steps"] == {"1": round(100 * sum(right[::2]) / 7, 2), "2": round(100 * sum(right[1::2]) / 6, 2)}
    evaluate.submission(config("gqa", tmp_path, answers), tmp_path / "predictions.json")
    assert json.loads((tmp_path / "predictions.json").read_text())[1] == {"questionId": "20000001", "prediction": "left"}


# --- MME -------------------------------------------------------------------------------------------------------------

MME = {  # subtask -> pictures of two answers each; right answers are Yes, No
    "existence": [("Yes", "No"), ("yes.", "no, none"), ("Yes", "Yes")],
    "OCR": [("I say yes", "No"), ("", "no")],
    "code_reasoning": [("Yes", "No"), ("No", "Yes")],
}


def mme_layout(root: Path) -> list[dict[str, Any]]:
    answers = []
    for category, pictures in MME.items():
        nested = category == "OCR"  # some subtasks keep pictures and questions in folders of their own
        texts = root / category / "questions_answers_YN" if nested else root / category
        texts.mkdir(parents=True)
        if nested:
            (root / category / "images").mkdir()
        for number, pair in enumerate(pictures):
            ending = ".png" if category == "code_reasoning" else ".jpg"
            (root / category / ("images" if nested else "") / f"{number:04d}{ending}").touch()
            questions = [f"Is this {what} {number}?" for what in ("a", "not a")]
            body = f"{questions[0]}  Please answer yes or no.\tYes\n{questions[1]} Please answer yes or no.\tNo\n"
            (texts / f"{number:04d}.txt").write_text(body)
            key = f"{category}/{number:04d}{ending}"
            answers += [said(key, text, f"{asked}\n{SHORT}") for text, asked in zip(pair, questions, strict=True)]
    return answers


def test_mme(tmp_path: Path) -> None:
    answers = mme_layout(tmp_path)
    done = results("mme", tmp_path, answers)
    table = done["metrics"]
    assert table["existence"] == pytest.approx({"acc": 5 / 6, "acc_plus": 2 / 3, "score": 150.0, "other": 0})
    assert table["OCR"] == pytest.approx({"acc": 0.5, "acc_plus": 0.0, "score": 50.0, "other": 2})
    assert table["code_reasoning"] == pytest.approx({"acc": 0.5, "acc_plus": 0.5, "score": 100.0, "other": 0})
    assert (table["perception"], table["cognition"]) == (pytest.approx(200.0), pytest.approx(100.0))
    assert done["headline"]["unit"] == "points"
    assert done["headline"]["low"] <= 200 <= done["headline"]["high"]
    assert len(done["protocol"]["missing_categories"]) == 11
    assert results("mme", tmp_path, answers[::-1])["metrics"] == table  # pairs are found by name, not by order


def test_mme_without_pictures_takes_names_from_llavas_file(tmp_path: Path) -> None:
    answers = mme_layout(tmp_path)
    expected = results("mme", tmp_path, answers)["metrics"]
    for picture in [*tmp_path.rglob("*.png"), *tmp_path.rglob("*.jpg")]:
        picture.unlink()
    dump_lines(tmp_path / "llava_mme.jsonl", [{"question_id": row["question_id"]} for row in answers])
    assert results("mme", tmp_path, answers)["metrics"] == expected


def test_mme_broken_text_file(tmp_path: Path) -> None:
    mme_layout(tmp_path)
    (tmp_path / "existence" / "0001.txt").write_text("Is it?\tYes\n")
    with pytest.raises(InputError, match=r"0001\.txt should hold two lines"):
        results("mme", tmp_path, [said("existence/0000.jpg", "Yes")])


# --- MMBench ---------------------------------------------------------------------------------------------------------

MMBENCH = [  # index, options, answer, prediction, right
    (1, "cat|dog", "A", "A", True),
    (1_000_001, "dog|cat", "B", "B. cat", True),
    (2, "one|two|three", "B", "B", True),
    (1_000_002, "three|one|two", "C", "C", True),
    (2_000_002, "two|three|one", "A", "B", False),  # one rotation wrong: the question is wrong
    (3, "red|blue|nan|green", "B", "(B)", True),  # options end at the first that is missing
    (4, "red|blue", "A", "the red one", True),
    (5, "red|blue", "A", "A or B", False),
    (6, "red|blue", "A", "red and blue", False),
    (7, "red|blue", "B", "", False),
    (8, "red|blue", "B", "Z", False),
    (9, "red|blue", "A", "a", False),
]


def mmbench_layout(path: Path, picture: bytes = b"", labels: bool = True) -> list[dict[str, Any]]:
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(columns)
        for index, options, answer, _, _ in MMBENCH:
            cells = [*options.split("|"), "", "", ""][:4]
            category = "colour" if "red" in options else "count"
            image = base64.b64encode(picture).decode() if index < 10**6 else str(index % 10**6)
            hint = "A hint." if index == 3 else ""
            question = f"Which of {index % 10**6}?"
            writer.writerow([index, question, hint, *cells, answer if labels else "", category, image, "perception"])
    return [said(index, text) for index, _, _, text, _ in MMBENCH]


def test_mmbench_counts_circles(tmp_path: Path) -> None:
    answers = mmbench_layout(tmp_path / "mmbench_dev_20230712.tsv")
    done = results("mmbench", tmp_path, answers)
    table = done["metrics"]
    assert (table["questions"], table["samples"]) == (9, 12)
    assert table["accuracy"] == round(100 * 3 / 9, 2)  # questions 1, 3 and 4
    assert table["category"] == {"colour": round(100 * 2 / 7, 2), "count": 50.0}
    assert table["one_round"] == round(100 * 4 / 9, 2)
    low, high = done["intervals"]["accuracy"]
    assert low < 100 * 3 / 9 < high
    _, data = evaluate.load("mmbench", tmp_path)
    third = next(example for example in data.examples if example.id == "3")
    assert third.question == "A hint.\nWhich of 3?\nA. red\nB. blue"
    assert third.meta["suffix"] == f"\n{LETTER}"
    assert data.examples[1].image == "1.jpg"


@pytest.mark.parametrize("name", ["mmbench", "scienceqa"])
def test_the_request_for_a_letter_stands_where_the_released_evaluation_put_it(name: str, tmp_path: Path) -> None:
    """Upstream 3.4: behind the closing quote of the second instruction only; the paper's profile keeps it in both quotes."""
    mmbench_layout(tmp_path / "mmbench_dev_20230712.tsv")
    _, data = evaluate.load(name, tmp_path if name == "mmbench" else GOLDEN / "scienceqa")
    example = data.examples[0]
    seen: dict[str, list[str]] = {}
    for profile in ("repo-2024", "paper"):
        engine = Recorder()
        setting = Setting(plug.load("policies", "from_single_question"), load_profile(profile))
        TwoPass(engine, setting).predict([(example, Image.new("RGB", (9, 8)))])
        seen[profile] = [last_user_text(request) for request in engine.seen]
    released, paper = seen["repo-2024"], seen["paper"]
    asked = example.question
    assert released[0] == f'<image>\nTo answer the question: "{asked}", what is the region of interest in the image?'
    assert released[1].endswith(f'<image>\n. Answer the question: "{asked}"\n{LETTER}')
    assert paper[0] == f'<image>\nTo answer the question: "{asked}\n{LETTER}", where is the region of interest in the image?'
    assert paper[1].endswith(f'"{asked}\n{LETTER}"')


def test_mmbench_sheet(tmp_path: Path) -> None:
    answers = mmbench_layout(tmp_path / "mmbench_dev_20230712.tsv")
    answers[0]["text"] = "=A\x07"
    upload = tmp_path / "upload.xlsx"
    evaluate.submission(config("mmbench", tmp_path, answers), upload)
    rows = list(openpyxl.load_workbook(upload)["Sheet1"].iter_rows(values_only=True))
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert len(rows) == 13
    assert rows[1][0] == 1
    assert rows[1][6] == "=A", "text, not a formula; control characters cannot stand in a sheet"
    with pytest.raises(InputError, match="1 are missing"):
        evaluate.submission(config("mmbench", tmp_path, answers[1:]), tmp_path / "other.xlsx")


def test_mmbench_without_labels_and_in_chinese(tmp_path: Path) -> None:
    answers = mmbench_layout(tmp_path / "mmbench_dev_cn_20231003.tsv", labels=False)
    assert results("mmbench", tmp_path, answers, split="cn")["metrics"] == {"server_scored": True}
    _, data = evaluate.load("mmbench", tmp_path, "cn")
    assert data.examples[0].meta["suffix"] == "\n请直接回答选项字母。"


def test_mmbench_unpacks_its_pictures(tmp_path: Path) -> None:
    mmbench_layout(tmp_path / "mmbench_dev_20230712.tsv", picture=bytes(range(256)))
    benchmark, data = evaluate.load("mmbench", tmp_path)
    benchmark.unpack(tmp_path)  # type: ignore[attr-defined]
    assert all((data.image_root / (example.image or "")).read_bytes() == bytes(range(256)) for example in data.examples)


def test_mmbench_broken_rows(tmp_path: Path) -> None:
    path = tmp_path / "mmbench_dev_20230712.tsv"
    path.write_text("index\tquestion\tA\tB\tanswer\n1\tWhich?\tx\ty\tC\n")
    with pytest.raises(InputError, match=r"tsv:2: the answer 'C' is not one of the options A, B"):
        evaluate.load("mmbench", tmp_path)
    path.write_text("index\tquestion\tA\n1\tWhich?\tx\n")
    with pytest.raises(InputError, match=r"tsv:2: no field 'B'"):
        evaluate.load("mmbench", tmp_path)
    path.write_text("index\tquestion\tA\tB\none\tWhich?\tx\ty\n")
    with pytest.raises(InputError, match=r"tsv:2: the index 'one' is not a number"):
        evaluate.load("mmbench", tmp_path)


# --- LLaVA's ready-made question files -------------------------------------------------------------------------------


def test_prepared_gqa_questions(tmp_path: Path) -> None:
    types = {"structural": "verify", "semantic": "obj"}
    rows = {f"2{i}": {"question": f"Is it {i}?", "answer": "yes", "imageId": f"n{i}", "types": types} for i in range(3)}
    dump(tmp_path / "testdev_balanced_questions.json", rows)
    images = {key: f"{row['imageId']}.jpg" for key, row in rows.items()}
    prepared = [
        {"question_id": key, "image": image, "text": f"Is it {key[1:]}?\nIn one word."} for key, image in images.items()
    ]
    prompts = check_prepared("gqa", tmp_path, "llava_gqa_testdev_balanced.jsonl", prepared, "yes")
    assert prompts == [row["text"] for row in prepared]


def test_prepared_seed_questions(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "seed" / "SEED-Bench.json", tmp_path)
    _, data = evaluate.load("seed", tmp_path)
    prepared = [{"question_id": e.id, "image": f"x/{e.id}.jpg", "text": f"Now: {e.question}"} for e in data.examples]
    prompts = check_prepared("seed", tmp_path, "llava-seed-bench.jsonl", prepared, "A")
    assert prompts == [row["text"] for row in prepared]
    assert [e.image for e in evaluate.load("seed", tmp_path)[1].examples] == [row["image"] for row in prepared]


def test_prepared_textvqa_questions(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "textvqa" / "TextVQA_0.5.1_val.json", tmp_path)
    _, data = evaluate.load("textvqa", tmp_path)
    below = f"Reference OCR token: A, B\n{SHORT}"
    prepared = [
        {"question_id": e.meta["question_id"], "image": e.image, "text": f"{e.meta['asked']}\n{below}"} for e in data.examples
    ]
    prompts = check_prepared("textvqa", tmp_path, "llava_textvqa_val_v051_ocr.jsonl", prepared, "x")
    assert prompts == [row["text"] for row in prepared]
    found = results("textvqa", tmp_path, [said(row["question_id"], "x", row["text"]) for row in prepared])
    assert found["protocol"]["ocr_tokens"] == "yes"
    assert all("OCR" not in e.question for e in evaluate.load("textvqa", tmp_path, "val-plain")[1].examples)


def test_prepared_vizwiz_questions(tmp_path: Path) -> None:
    names = [f"VizWiz_test_{i:08d}.jpg" for i in range(12)]
    prepared = [{"question_id": name, "image": name, "text": f"What {name}?\n{SHORT}"} for name in names]
    dump_lines(tmp_path / "llava_test.jsonl", prepared)
    answers = [said(row["question_id"], "A cat.", row["text"]) for row in prepared]
    evaluate.submission(config("vizwiz", tmp_path, answers, split="test"), tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == [{"image": row["image"], "answer": "cat"} for row in prepared]


def test_prepared_scienceqa_questions(tmp_path: Path) -> None:
    for name in ("problems.json", "pid_splits.json"):
        shutil.copy(GOLDEN / "scienceqa" / name, tmp_path)
    _, data = evaluate.load("scienceqa", tmp_path)
    turns = {
        e.id: [{"from": "human", "value": f"<image>\nText of {e.id}"}, {"from": "gpt", "value": "A"}] for e in data.examples
    }
    dump(tmp_path / "llava_test_CQM-A.json", [{"id": key, "conversations": talk} for key, talk in turns.items()])
    asked = evaluate.load("scienceqa", tmp_path)[1].examples
    assert [(e.id, e.question) for e in asked] == [(e.id, f"Text of {e.id}") for e in data.examples]
    # Apart from the question: the profile says where it stands.
    assert {e.meta["suffix"] for e in asked} == {f"\n{LETTER}"}


def check_prepared(name: str, root: Path, file: str, prepared: list[dict[str, Any]], text: str) -> list[str]:
    """The prompts once LLaVA's file is there; its answers and answers by our ids score the same with and without it."""
    before = evaluate.load(name, root)[1].examples
    ours = [{"example_id": e.id, "answer": text} for e in before]
    expected = results(name, root, ours)["metrics"]
    dump_lines(root / file, prepared)
    theirs = [said(row["question_id"], text, row["text"]) for row in prepared]
    assert results(name, root, ours)["metrics"] == results(name, root, theirs)["metrics"] == expected
    return [e.question for e in evaluate.load(name, root)[1].examples]


# --- MM-Vet ----------------------------------------------------------------------------------------------------------


def test_mmvet_reads_and_exports(tmp_path: Path) -> None:
    rows = {
        f"v1_{i}": {"imagename": f"v1_{i}.png", "question": f"What is {i}?", "answer": "a<AND>b", "capability": ["ocr", "math"]}
        for i in range(12)
    }
    dump(tmp_path / "mm-vet.json", rows)
    answers = [said(i, f"answer {i}", f"What is {i}?") for i in range(12)]
    done = evaluate.run(config("mmvet", tmp_path, answers))
    assert done.results["metrics"] == {"server_scored": True}
    assert done.counts["ok"] == 12
    evaluate.submission(config("mmvet", tmp_path, answers), tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == json.dumps({f"v1_{i}": f"answer {i}" for i in range(12)}, indent=2)
