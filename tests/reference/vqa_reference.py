"""VQA accuracy the plain way: the procedure of GT-Vision-Lab/VQA step by step, one answer after the other, nothing remembered.

`vqa.py` (5e7e7df) reads annotations and questions, the questions again with the results, and makes its indices of both;
`vqaEval.py` (a013f00) normalises all ten answers and the prediction of every question in place, each of 21 marks with a search
of its own, compares every annotator with the other nine, and keeps a table by question, one by question type, one by answer
type. Left out: the progress bar and the questions' header, which is copied there.

    python tests/reference/vqa_reference.py ANNOTATIONS QUESTIONS RESULTS

prints {"overall", "perQuestionType", "perAnswerType"}. RESULTS is what the script reads: one list of {question_id, answer}.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from cos_core.scoring.answers import CONTRACTIONS

MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
COMMA, PERIOD = re.compile(r"(\d)(\,)(\d)"), re.compile(r"(?!<=\d)(\.)(?!\d)")
ARTICLES = ["a", "an", "the"]
PLACES = 2


def numbers() -> dict[str, str]:
    """The number words; the script adds every other word that it meets."""
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    return {"none": "0", **{word: str(value) for value, word in enumerate(words)}}


def without_marks(text: str) -> str:
    result = text
    for mark in MARKS:
        if (mark + " " in text or " " + mark in text) or re.search(COMMA, text) is not None:
            result = result.replace(mark, "")
        else:
            result = result.replace(mark, " ")
    return PERIOD.sub("", result, re.UNICODE)


def in_plain_words(text: str, known: dict[str, str]) -> str:
    words = []
    for word in text.lower().split():
        word = known.setdefault(word, word)
        if word not in ARTICLES:
            words.append(word)
    for place, word in enumerate(words):
        if word in CONTRACTIONS:
            words[place] = CONTRACTIONS[word]
    return " ".join(words)


def on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def index(annotations: list[dict[str, Any]], questions: list[dict[str, Any]]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """(by picture, by question), as `createIndex` makes them; a third one, of the questions, is made and dropped here."""
    by_image: dict[Any, list[Any]] = {row["image_id"]: [] for row in annotations}
    by_question: dict[Any, Any] = {row["question_id"]: [] for row in annotations}
    asked: dict[Any, Any] = {row["question_id"]: [] for row in annotations}
    for row in annotations:
        by_image[row["image_id"]] += [row]
        by_question[row["question_id"]] = row
    for row in questions:
        asked[row["question_id"]] = row
    return by_image, by_question


def accuracy(truth: dict[str, Any], said: str, known: dict[str, str]) -> float:
    """One question; the annotation's answers are normalised where they stand."""
    given = truth["answers"]
    for row in given:
        row["answer"] = on_one_line(row["answer"])
    said = on_one_line(said)
    if len({row["answer"] for row in given}) > 1:
        for row in given:
            row["answer"] = in_plain_words(without_marks(row["answer"]), known)
        said = in_plain_words(without_marks(said), known)
    each = []
    for row in given:
        others = [other for other in given if other != row]
        matching = [other for other in others if other["answer"] == said]
        each.append(min(1, float(len(matching)) / 3))
    return float(sum(each)) / len(each)


def evaluate(annotations_file: str, questions_file: str, results_file: str) -> dict[str, Any]:
    """The tables that `VQAEval.evaluate` leaves."""
    with open(annotations_file) as annotations, open(questions_file) as questions:  # noqa: PTH123
        dataset, asked = json.load(annotations), json.load(questions)
    _, truth = index(dataset["annotations"], asked["questions"])
    with open(questions_file) as questions, open(results_file) as results:  # noqa: PTH123
        asked_again, rows = json.load(questions), json.load(results)
    if {row["question_id"] for row in rows} != set(truth):
        raise ValueError("the results do not belong to the annotations")
    for row in rows:
        label = truth[row["question_id"]]
        row.update(image_id=label["image_id"], question_type=label["question_type"], answer_type=label["answer_type"])
    _, said = index(rows, asked_again["questions"])
    known = numbers()
    every: list[float] = []
    by_question: dict[Any, float] = {}
    groups: dict[str, dict[str, list[float]]] = {"question_type": {}, "answer_type": {}}
    tables: dict[str, dict[str, dict[Any, float]]] = {"question_type": {}, "answer_type": {}}
    for key in [row["question_id"] for row in dataset["annotations"]]:
        value = accuracy(truth[key], said[key]["answer"], known)
        every.append(value)
        by_question[key] = round(100 * value, PLACES)
        for kind in ("question_type", "answer_type"):
            groups[kind].setdefault(truth[key][kind], []).append(value)
            tables[kind].setdefault(truth[key][kind], {})[key] = round(100 * value, PLACES)

    def percent(values: list[float]) -> float:
        return round(100 * float(sum(values)) / len(values), PLACES)

    return {
        "overall": percent(every),
        "perQuestionType": {name: percent(values) for name, values in groups["question_type"].items()},
        "perAnswerType": {name: percent(values) for name, values in groups["answer_type"].items()},
        "evalQA": by_question,
    }


if __name__ == "__main__":
    tables = evaluate(*sys.argv[1:])
    print(json.dumps({key: value for key, value in tables.items() if key != "evalQA"}))
