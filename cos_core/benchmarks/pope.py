"""POPE: is there an X in the image? Three splits of yes/no questions; the headline is the mean of the three F1.

Three data sets: "coco", "gqa" and "aokvqa". Those of GQA and A-OKVQA (`gqa_pope_seem_random.json`, objects found by SEEM) are
one list a file, COCO's are JSON Lines; either layout is read for each.

Scoring is LLaVA's `eval_pope.py` (c121f04). It departs in two points, both where that script fails: answers are joined by
question id and not by order, so a missing answer is one wrong answer instead of a shift of all that follow; and a split
without positive predictions has precision 0 instead of a division by zero.
"""

from __future__ import annotations

import codecs
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cos_core.benchmarks import _files
from cos_core.benchmarks._harness import HARNESSES, LMMS, OFFICIAL, VLM, vlm_yes_no
from cos_core.benchmarks._sliced import SlicedBenchmark, choice
from cos_core.errors import InputError
from cos_core.files.big_json import read_json_list
from cos_core.files.jsonl import open_input, read_lines
from cos_core.interfaces import BenchmarkData, Need
from cos_core.scoring import answers, columns, metrics
from cos_core.scoring.columns import Examples, Texts
from cos_core.scoring.metrics import Estimate, Verdict
from cos_core.scoring.statistics import Floats
from cos_core.types import Example, Score

CATEGORIES = ("adversarial", "popular", "random")
SETS = ("coco", "gqa", "aokvqa")
SOURCE = {
    "coco": "take coco_pope_{adversarial,popular,random}.json from AoiDragon/POPE (commit e3e3926 for LLaVA's question file) "
    "into coco/, and llava_pope_test.jsonl from LLaVA's evaluation files",
    **{
        name: f"take {name}_pope_seem_{{adversarial,popular,random}}.json from AoiDragon/POPE, output/seem/{name}, into {name}/"
        for name in ("gqa", "aokvqa")
    },
}
QUESTIONS = "llava_pope_test.jsonl"


def _names(part: str, category: str) -> tuple[str, ...]:
    """Where the labels of one split may lie below the data folder."""
    stems = (f"coco_pope_{category}",) if part == "coco" else (f"{part}_pope_seem_{category}", f"{part}_pope_{category}")
    files = [f"{stem}{ending}" for ending in (".json", ".jsonl") for stem in stems]
    return tuple(
        f"{folder}{file}"
        for file in files
        for folder in (f"{part}/", "", f"seem/{part}/", f"output/seem/{part}/", f"output/{part}/")
    )


PICTURES = {
    "coco": ("val2014", "coco/val2014"),
    "gqa": ("gqa/images", "images/gqa", "images", "gqa"),
    "aokvqa": ("val2014", "aokvqa/val2014", "coco/val2014"),
}
NEEDS = (
    *(Need(_names("coco", c), "AoiDragon/POPE, commit e3e3926, output/coco") for c in CATEGORIES),
    *(Need(_names(s, c), f"AoiDragon/POPE, output/seem/{s}", split=s, optional=True) for s in SETS[1:] for c in CATEGORIES),
    Need((QUESTIONS,), "LLaVA's evaluation files (eval.zip)", optional=True),
    Need(PICTURES["coco"], "images.cocodataset.org/zips/val2014.zip; only to run a model (coco, aokvqa)", optional=True),
    Need(PICTURES["gqa"][:-1], "images.zip of GQA; only to run a model", split="gqa", optional=True),
)
COUNTS = {"coco": 8_910, "gqa": 9_000, "aokvqa": 9_000}
_YES = re.compile(r"\byes\b", re.IGNORECASE)
_OBJECT = re.compile(r"is there an? (.+?) in the im", re.IGNORECASE)


@dataclass(frozen=True)
class Pope(SlicedBenchmark):
    """Reads the labels of one data set (`coco/coco_pope_*.json`, `gqa/gqa_pope_seem_*.json`, ...), with LLaVA's question file
    where it is there; images in `val2014/` (GQA's in `images/`).

    The harnesses' scorers pool the three splits: `headline` is then the F1 over all questions.
    """

    split: str = "coco"
    scorer: str = OFFICIAL
    name = "pope"
    summary = "POPE on COCO, GQA or A-OKVQA: object hallucination, yes/no, mean F1 of three splits"
    headline: str = "mean_f1"
    unit: str = "fraction"
    scorers = HARNESSES
    needs = NEEDS
    slices = ("category",)
    counts = COUNTS

    def load(self, root: Path) -> BenchmarkData:
        labels = {category: _Labels(root, self.split, category) for category in CATEGORIES}
        # The question file in the data folder itself is of COCO.
        questions = _files.optional(root, f"{self.split}/{QUESTIONS}", *([QUESTIONS] if self.split == "coco" else []))
        examples = _matched(questions, labels) if questions else _plain(labels)
        protocol = {"labels": {category: len(rows) for category, rows in labels.items()}}
        return BenchmarkData(self.name, self.split, examples, _files.image_root(root, *PICTURES[self.split]), protocol)

    def rule(self) -> metrics.Rule:
        return _rule(self.scorer)

    def metrics(self, data: BenchmarkData, scores: Iterable[Score]) -> dict[str, Any]:
        scores = columns.reusable(scores)
        if self.scorer != OFFICIAL:
            return _POOLED[self.scorer](scores)
        groups = metrics.by_group(scores, "category")
        result: dict[str, Any] = {category: _confusion(groups[category]) for category in CATEGORIES if category in groups}
        return {**result, "mean_f1": sum(table["f1"] for table in result.values()) / len(result)}

    def asked(self, prompt: str) -> str:
        """The question of a recorded prompt: question ids begin anew in each split."""
        return prompt.split("\n")[0].replace(answers.SHORT_ANSWER, "")

    def estimates(self, data: BenchmarkData, scores: Sequence[Score]) -> list[Estimate]:
        if self.scorer != OFFICIAL:
            scale = 100.0 if self.unit == "percent" else 1.0
            return [Estimate(self.headline, _pooled_columns(scores, self.scorer), _mean_f1, scale)]
        table = _f1_columns(scores)
        result = [Estimate("mean_f1", table, _mean_f1)]
        for place, category in enumerate(CATEGORIES):
            result.append(Estimate(f"{category}.f1", table[:, 3 * place : 3 * place + 3], _mean_f1))
            result.append(metrics.mean_estimate(f"{category}.accuracy", scores, metrics.in_group("category", category)))
        return result


def build(split: str | None = None, scorer: str | None = None) -> Pope:
    """`split`: "coco" (the default), "gqa" or "aokvqa"; `scorer`: "official" (the default), "lmms-eval" or "vlmevalkit"
    (without its judge)."""
    split = choice("pope", "split", split, SETS)
    scorer = choice("pope", "scorer", scorer, HARNESSES)
    if scorer == LMMS:
        return Pope(split, scorer, headline="pope_f1_score")
    return Pope(split, scorer, headline="Overall", unit="percent") if scorer == VLM else Pope(split)


class _Labels:
    """The labels of one split, in the order of their file."""

    def __init__(self, root: Path, part: str, category: str) -> None:
        self.path = _files.require(root, *_names(part, category), source=SOURCE[part])
        self.lines = array("q")
        self.images: list[str] = []
        self.texts: list[str] = []
        self.labels: list[str] = []
        self.ids: list[Any] = []
        shared = Texts().shared
        for line, row in _rows(self.path):
            _files.demand(row, ("question_id", "image", "text", "label"), f"{self.path}:{line}")
            if not isinstance(row["image"], str) or not isinstance(row["text"], str):
                raise InputError(f"{self.path}:{line}: image and text must be texts")
            label = str(row["label"]).strip().lower()
            if label not in ("yes", "no"):
                raise InputError(f"{self.path}:{line}: the label must be yes or no, found {label!r}")
            self.lines.append(line)
            self.images.append(shared(row["image"], "image"))
            self.texts.append(shared(row["text"], "text"))
            self.labels.append(shared(label))
            self.ids.append(row["question_id"])

    def __len__(self) -> int:
        return len(self.lines)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of each element of one JSON list, or of each line."""
    with open_input(path) as file:
        start = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"["):
        return ((line, row) for line, _, row in read_json_list(path))
    return read_lines(path)


def _matched(questions: Path, labels: Mapping[str, _Labels]) -> Examples:
    """LLaVA's questions with their labels. The two files are paired by order, as the official script pairs them, so they must
    be of one version: every pair is checked for picture and object."""
    examples, counts = Examples(), dict.fromkeys(CATEGORIES, 0)
    mismatches: dict[str, tuple[int, int]] = {}
    for line, row in read_lines(questions):
        _files.demand(row, ("question_id", "image", "text", "category"), f"{questions}:{line}")
        category = row["category"]
        if category not in counts:
            raise InputError(f"{questions}:{line}: unknown category {category!r}")
        rows, place = labels[category], counts[category]
        counts[category] += 1
        if place < len(rows):
            text, label = rows.texts[place], rows.labels[place]
            same = text == row["text"].partition("\n")[0] or _object(row["text"]) == _object(text)
            if row["image"] != rows.images[place] or not same:
                mismatches.setdefault(category, (rows.lines[place], line))
            examples.append(_example(str(row["question_id"]), row, category, label))
    for category, count in counts.items():
        path, rows = labels[category].path, labels[category]
        if count != len(rows):
            raise InputError(
                f"{path} has {len(rows)} labels and {questions} {count} {category} questions: they are of different "
                "versions (LLaVA's goes with POPE commit e3e3926, whose random file has 2,910 lines; later ones have 3,000)"
            )
        if category in mismatches:
            label_line, line = mismatches[category]
            raise InputError(
                f"{path}:{label_line} and {questions}:{line} ask different questions; the files are of different versions"
            )
    return examples


def _plain(labels: Mapping[str, _Labels]) -> Examples:
    examples = Examples()
    for category, rows in labels.items():
        for image, text, label, question_id in zip(rows.images, rows.texts, rows.labels, rows.ids, strict=True):
            row = {"question_id": question_id, "image": image, "text": f"{text}\n{answers.SHORT_ANSWER}"}
            examples.append(_example(f"{category}-{question_id}", row, category, label))
    return examples


def _example(example_id: str, row: Mapping[str, Any], category: str, label: str) -> Example:
    official, question = str(row["question_id"]), row["text"].split("\n")[0]
    meta = {"category": category}
    return Example(example_id, "pope", row["image"], row["text"], (label,), meta=meta, question_id=official, asked=question)


def _object(text: str) -> str:
    """The object in a question; versions of the files differ in the spelling of the rest ("imange")."""
    match = _OBJECT.search(text)
    return match.group(1).lower() if match else text.split("\n")[0]


_READERS: Mapping[str, Callable[[str], str]] = {
    OFFICIAL: lambda answer: "yes" if answers.pope_yes(answer) else "no",
    LMMS: lambda answer: answer.lower().strip(),
    VLM: vlm_yes_no,
}


def _rule(scorer: str) -> metrics.Rule:
    label_of = _READERS[scorer]

    def judged(example: Example, answer: str) -> Verdict:
        label, expected = label_of(answer), example.answers[0]
        # The official script takes every answer but "no" for "yes", an empty one too.
        readable = label in ("yes", "no") and (scorer != OFFICIAL or label == "no" or _YES.search(answer) is not None)
        return Verdict(float(label == expected), label, expected, readable)

    return judged


def _confusion(scores: Sequence[Score]) -> dict[str, Any]:
    """Counts and rates of one split; an unanswered question counts as the wrong answer."""
    table = Counter(zip(_are(scores, "expected", "yes").tolist(), _right(scores).tolist(), strict=True))
    tp, fn = table[True, True], table[True, False]
    tn, fp = table[False, True], table[False, False]
    f1, precision, recall = _f1(tp, fp, fn)
    return {
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
        "accuracy": (tp + tn) / len(scores),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "yes_ratio": (tp + fp) / len(scores),
    }


def _are(scores: Sequence[Score], name: str, text: str) -> NDArray[np.bool_]:
    return np.array([value == text for value in columns.text_column(scores, name)], dtype=np.bool_)


def _right(scores: Sequence[Score]) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = columns.value_array(scores) == 1.0
    return right


def _pooled_columns(scores: Sequence[Score], scorer: str) -> Floats:
    """(questions, 3): true positive, false positive, false negative. To lmms-eval only a "no" is a false negative: an answer
    that is neither yes nor no costs it no recall."""
    positive, yes = _are(scores, "expected", "yes"), _are(scores, "extracted", "yes")
    missed = _are(scores, "extracted", "no") if scorer == LMMS else ~yes
    return np.stack([positive & yes, ~positive & yes, positive & missed], axis=1).astype(np.float64)


def _rates(scores: Sequence[Score], scorer: str) -> tuple[float, float, float]:
    """(F1, precision, recall) over all questions, under a harness's scorer."""
    return _f1(*_pooled_columns(scores, scorer).sum(axis=0).tolist())


def _f1(tp: float, fp: float, fn: float) -> tuple[float, float, float]:
    """(F1, precision, recall) from counts; 0 where there is nothing to divide by."""
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0, precision, recall


def _as_lmms(scores: Sequence[Score]) -> dict[str, Any]:
    """lmms-eval's five metrics, over all questions; its yes ratio is that of the labels, whatever was answered."""
    f1, precision, recall = _rates(scores, LMMS)
    return {
        "pope_accuracy": metrics.mean(scores),
        "pope_precision": precision,
        "pope_recall": recall,
        "pope_f1_score": f1,
        "pope_yes_ratio": int(_are(scores, "expected", "yes").sum()) / len(scores),
    }


def _as_vlm(scores: Sequence[Score]) -> dict[str, Any]:
    """VLMEvalKit's table in percent: `Overall` is the F1 over all questions, then each split's own row."""

    def row(part: Sequence[Score]) -> dict[str, float]:
        f1, precision, recall = (100 * rate for rate in _rates(part, VLM))
        return {"Overall": f1, "acc": 100 * metrics.mean(part), "precision": precision, "recall": recall}

    return {**row(scores), **{category: row(part) for category, part in metrics.by_group(scores, "category").items()}}


_POOLED: Mapping[str, Callable[[Sequence[Score]], dict[str, Any]]] = {LMMS: _as_lmms, VLM: _as_vlm}


def _f1_columns(scores: Sequence[Score]) -> Floats:
    """(questions, 3 x splits): true positive, false positive, false negative, split by split."""
    positive, right = _are(scores, "expected", "yes"), _right(scores)
    table = np.zeros((len(scores), 3 * len(CATEGORIES)))
    for place, category in enumerate(CATEGORIES):
        in_category = np.array([name == category for name in columns.group(scores, "category")], dtype=bool)
        for part, rows in enumerate((positive & right, ~positive & ~right, positive & ~right)):
            table[:, 3 * place + part] = in_category & rows
    return table


def _mean_f1(sums: Floats) -> Floats:
    """Mean over splits of F1 = 2 TP / (2 TP + FP + FN); sums (rows, 3 x splits) -> (rows,)."""
    tp, fp, fn = (sums[:, part::3] for part in range(3))
    result: Floats = (2 * tp / (2 * tp + fp + fn)).mean(axis=1)
    return result
