"""What the tests of the benchmarks share: files in official layouts, recorded answers, and their results."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

from cos_core import evaluate
from cos_core.evaluate import EvalConfig

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
