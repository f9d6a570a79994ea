"""The official rules of four benchmarks the plain way, from their files alone: nothing of cos_core is used.

    python tests/reference/official_scorers.py mme|seed|pope|vizwiz FOLDER [SET]

prints the figures of FOLDER/predictions.jsonl (POPE: of FOLDER/SET/predictions.jsonl). Sources: LLaVA's
`convert_answer_to_mme.py` and MME's `calculation.py`; LLaVA's `convert_seed_for_submission.py` and `eval_pope.py`; the rule of
VizWiz's evaluation tool, min(1, n/3) over all ten answers with the prediction normalised as in `vqaEval.py`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def mme(folder: Path) -> dict[str, Any]:
    """Truth by (category, text file, question); answers find theirs by the first and the last part of their id."""
    truth = {}
    release = folder / "MME_Benchmark_release_version"
    for category in release.iterdir():
        texts = category / "questions_answers_YN"
        for file in (texts if texts.exists() else category).glob("*.txt"):
            for line in file.read_text(encoding="utf-8").splitlines():
                question, answer = line.strip().split("\t")
                truth[category.name, file.name, question] = answer
    pictures: dict[str, dict[str, list[bool]]] = {}
    for row in lines(folder / "predictions.jsonl"):
        parts = row["question_id"].split("/")
        category, file = parts[0], parts[-1].split(".")[0] + ".txt"
        asked = row["prompt"].replace("Answer the question using a single word or phrase.", "").strip()
        question = f"{asked} Please answer yes or no."
        if (category, file, question) not in truth:
            question = f"{asked}  Please answer yes or no."
        said, label = row["text"].lower(), "other"
        if said in ("yes", "no"):
            label = said
        elif "yes" in said[:4]:
            label = "yes"
        elif "no" in said[:4]:
            label = "no"
        right = label == truth[category, file, question].lower()
        pictures.setdefault(category, {}).setdefault(file, []).append(right)
    table: dict[str, Any] = {}
    for category, answers in pictures.items():
        flat = [right for pair in answers.values() for right in pair]
        accuracy, plus = sum(flat) / len(flat), sum(all(pair) for pair in answers.values()) / len(answers)
        table[category] = {"acc": accuracy, "acc_plus": plus, "score": 100 * accuracy + 100 * plus}
    cognition = {"commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"}
    table["perception"] = sum(row["score"] for name, row in table.items() if name not in cognition)
    table["cognition"] = sum(row["score"] for name, row in table.items() if name in cognition)
    return table


def seed(folder: Path) -> dict[str, Any]:
    """Every row of the file has the answer of its id, so an id that stands twice counts twice."""
    data = json.loads((folder / "SEED-Bench.json").read_text(encoding="utf-8"))
    said = {row["question_id"]: row["text"] for row in lines(folder / "predictions.jsonl")}
    names = {number: name for name, number in data["question_type"].items()}
    groups: dict[str, list[bool]] = {"Total": []}
    upload = []
    for row in data["questions"]:
        text = said[row["question_id"]]
        for name in ("Total", names[row["question_type_id"]], row["data_type"]):
            groups.setdefault(name, []).append(text == row["answer"])
        upload.append({"question_id": row["question_id"], "prediction": text})
    return {"metrics": {name: round(100 * sum(hits) / len(hits), 2) for name, hits in groups.items()}, "upload": upload}


def pope(folder: Path, part: str) -> dict[str, Any]:
    """Answers and labels in the order of the files, split by split."""
    said = lines(folder / part / "predictions.jsonl")
    table: dict[str, Any] = {}
    for split in ("adversarial", "popular", "random"):
        labels = [row["label"] for row in json.loads((folder / part / f"{part}_pope_seem_{split}.json").read_text())]
        answers, said = said[: len(labels)], said[len(labels) :]
        tp = fp = tn = fn = 0
        for row, label in zip(answers, labels, strict=True):
            words = row["text"].split(".")[0].replace(",", "").split(" ")
            yes = not ("No" in words or "not" in words or "no" in words)
            tp, fp = tp + (yes and label == "yes"), fp + (yes and label == "no")
            tn, fn = tn + (not yes and label == "no"), fn + (not yes and label == "yes")
        precision, recall = tp / (tp + fp), tp / (tp + fn)
        f1 = 2 * precision * recall / (precision + recall)
        total = tp + fp + tn + fn
        rates = {
            "accuracy": (tp + tn) / total,
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "yes_ratio": (tp + fp) / total,
        }
        table[split] = {"tp": tp, "fp": fp, "tn": tn, "fn": fn, **rates}
    table["mean_f1"] = sum(table[split]["f1"] for split in ("adversarial", "popular", "random")) / 3
    return table


MARKS = ';/[]"{}()=+\\_-><@`,?!'
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def vizwiz(folder: Path) -> dict[str, Any]:
    said = {row["question_id"]: row["text"] for row in lines(folder / "predictions.jsonl")}
    points: dict[str, list[float]] = {"overall": []}
    for row in json.loads((folder / "val.json").read_text(encoding="utf-8")):
        text = said[row["image"]].replace("\n", " ").replace("\t", " ").strip()
        cleaned = text
        for mark in MARKS:
            alone = mark + " " in text or " " + mark in text or re.search(r"(\d)(\,)(\d)", text) is not None
            cleaned = cleaned.replace(mark, "" if alone else " ")
        cleaned = re.sub(r"\.(?!\d)", "", cleaned)
        numbers = {"none": "0", **{word: str(value) for value, word in enumerate(WORDS)}}
        words = [numbers.get(word, word) for word in cleaned.lower().split()]
        answer = " ".join(word for word in words if word not in ("a", "an", "the"))
        score = min(1.0, sum(given["answer"] == answer for given in row["answers"]) / 3)
        points["overall"].append(score)
        points.setdefault(row["answer_type"], []).append(score)
    return {name: round(100 * sum(group) / len(group), 2) for name, group in points.items()}


def gqa_steps(operations: list[dict[str, str]]) -> int:
    """`getStepsNum` of GQA's eval.py."""
    steps = 0
    for each in operations:
        text = "{}: {}".format(each["operation"], each["argument"])
        if "exist" not in text and "query: name" not in text and "choose name" not in text:
            steps += 1
    return steps


if __name__ == "__main__":
    rule = {"mme": mme, "seed": seed, "pope": pope, "vizwiz": vizwiz}[sys.argv[1]]
    print(json.dumps(rule(Path(sys.argv[2]), *sys.argv[3:]), indent=2))  # type: ignore[operator]
