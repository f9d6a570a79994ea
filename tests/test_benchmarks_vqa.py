"""Answers in words, official layouts scored by hand: VQAv2, OK-VQA, VizWiz, GQA."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from official_files import SHORT, config, dump, dump_lines, results, said
from reference import vqa_reference
from refusals import refused

from cos_core.benchmarks import gqa
from cos_core.evaluate import stage as evaluate
from cos_core.types import Prediction

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
    with refused(tmp_path / annotations, f"question {labels[0]['question_id']}"):
        results("vqav2", tmp_path, answers)
    labels[0]["answers"] = labels[0]["answers"][:9]
    dump(tmp_path / annotations, {"annotations": labels})
    with refused(tmp_path / annotations, f"question {labels[0]['question_id']}", "found 9"):
        results("vqav2", tmp_path, answers)
    dump(tmp_path / annotations, {"annotations": [3]})
    with refused(tmp_path / annotations, "$.annotations[0]"):
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
    with refused("vqav2", "1 "):
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
    done = results("vizwiz", tmp_path, answers, scorer="m4c")
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
    assert not evaluate.submission(config("vizwiz", tmp_path, answers), tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


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
