"""MME: two yes/no questions a picture; perception (at most 2000 points, the published figure) and cognition (800).

Scoring is MME's `calculation.py`: a subtask's score is 100 times (accuracy + accuracy+), where accuracy+ is the share of
pictures with both questions right; an answer whose first four characters say neither yes nor no is wrong. That script consumes
its lines in pairs; here a picture's two questions are found by name, so the order of the answers does not matter.

An answer finds its picture as in LLaVA's `convert_answer_to_mme.py`: by the sub-task and the last part of the question id,
without its ending. LLaVA's ids are `artwork/images/10002.jpg` where the pictures stand in a folder of their own (artwork,
celebrity, landmark, posters, scene); `artwork/10002.jpg` and `artwork/10002.png` are the same picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cos_core.benchmarks import _files
from cos_core.benchmarks._harness import HARNESSES, LMMS, OFFICIAL, VLM, lmms_mme_label, vlm_yes_no
from cos_core.benchmarks._sliced import SlicedBenchmark, choice
from cos_core.errors import InputError
from cos_core.files import text
from cos_core.interfaces import BenchmarkData, Need
from cos_core.scoring import answers, metrics
from cos_core.scoring.metrics import Estimate, Verdict
from cos_core.scoring.statistics import Floats
from cos_core.types import Example, Score

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
FOLDERS = ("MME", "mme")
RELEASES = ("MME_Benchmark_release_version/MME_Benchmark", "MME_Benchmark_release_version", "MME_Benchmark")
SOURCE = "take the 14 folders of MME_Benchmark_release_version from the MME authors"
NEEDS = (
    Need(
        ("MME_Benchmark_release_version", "MME_Benchmark", PERCEPTION[0]), "the MME authors, on request; questions and pictures"
    ),
    Need(("llava_mme.jsonl",), "LLaVA's evaluation files (eval.zip)", optional=True),
)
COUNTS = {"all": 2_374}
_CLOSING = "Please answer yes or no."
_PICTURES = (".jpg", ".png", ".jpeg")
_LABELLED = re.compile(
    rf"(?P<question>.*?)(?:[ ]*\t\s*|[ ]{{2,}}|(?<={re.escape(_CLOSING)})\s*)(?P<answer>yes|no)\.?", re.IGNORECASE
)
"""A line of a question file: question, tab, Yes or No. Copies that went through an editor have spaces for the tab."""


@dataclass(frozen=True)
class Mme(SlicedBenchmark):
    """Reads the official folders (questions beside the pictures, or in questions_answers_YN/ with images/)."""

    scorer: str = OFFICIAL
    name = "mme"
    summary = "MME: perception and cognition points, accuracy and accuracy+ of 14 subtasks"
    headline = "perception"
    unit = "points"
    slices = ("category",)
    scorers = HARNESSES
    needs = NEEDS
    folders = FOLDERS
    counts = COUNTS

    def load(self, root: Path) -> BenchmarkData:
        top = _files.image_root(root, *RELEASES)
        prepared = _files.optional(root, "llava_mme.jsonl")
        question_ids = (str(row["question_id"]) for _, row in _files.rows(prepared, ("question_id",))) if prepared else ()
        names = {self.same_question(name): Path(name).name for name in question_ids}
        examples = [e for category in (*PERCEPTION, *COGNITION) for e in _category(top, category, names)]
        if not examples:
            raise InputError(f"{root} has none of MME's folders ({PERCEPTION[0]}, {PERCEPTION[1]}, ...); {SOURCE}")
        present = sorted({example.meta["category"] for example in examples})
        missing = sorted(set(PERCEPTION + COGNITION) - set(present))
        return BenchmarkData(self.name, "all", examples, top, {"missing_categories": missing} if missing else {})

    def rule(self) -> metrics.Rule:
        return _rule(self.scorer)

    def metrics(self, data: BenchmarkData, scores: Iterable[Score]) -> dict[str, Any]:
        scores = list(scores)
        groups = metrics.by_group(scores, "category")
        columns = {category: _columns(group, category).sum(axis=0).tolist() for category, group in groups.items()}
        table: dict[str, Any] = {}
        for category, (right, questions, both, pictures) in columns.items():
            neither = sum(score.extracted == "other" for score in groups[category])
            # A picture of which only the first question was taken (a limit) is no picture yet.
            accuracy, plus = right / questions, both / pictures if pictures else math.nan
            table[category] = {"acc": accuracy, "acc_plus": plus, "score": 100 * (accuracy + plus), "other": neither}
        for name, categories in (("perception", PERCEPTION), ("cognition", COGNITION)):
            table[name] = sum(table[category]["score"] for category in categories if category in table)
        return table

    def estimates(self, data: BenchmarkData, scores: Sequence[Score]) -> list[Estimate]:
        result = []
        present = metrics.by_group(scores, "category")
        for name, categories in (("perception", PERCEPTION), ("cognition", COGNITION)):
            parts = [_columns(scores, category) for category in categories if category in present]
            if parts:
                columns = np.concatenate(parts, axis=1)
                result.append(Estimate(name, columns, _points, counted=np.any(columns[:, 1::4] != 0, axis=1)))
        result += [Estimate(f"{category}.score", _columns(scores, category), _points) for category in present]
        return result

    def same_question(self, question_id: str) -> str:
        """`category/stem` of a question id or of one of our example ids (with its number), whatever stands between."""
        name, mark, number = question_id.partition("#")
        category, *_, file = f"{name}/{name}".split("/") if "/" not in name else name.split("/")
        return f"{category}/{file.split('.')[0]}{mark}{number}"

    def asked(self, prompt: str) -> str:
        """The question of a recorded prompt: without either format suffix."""
        return _bare(prompt.replace(answers.SHORT_ANSWER, ""))


def build(split: str | None = None, scorer: str | None = None) -> Mme:
    """`split`: only "all"; `scorer`: "official" (the default), "lmms-eval" or "vlmevalkit" (without its judge)."""
    choice("mme", "split", split, ("all",))
    return Mme(choice("mme", "scorer", scorer, HARNESSES))


def _category(top: Path, category: str, names: Mapping[str, str]) -> list[Example]:
    """The questions of one folder. Scoring needs no pictures: without them the name comes from LLaVA's question ids (`names`:
    `category/stem` -> file name). What begins with a period (a Mac's `._0001.txt`) is none of MME's files.
    """
    folder = top / category
    texts = _files.image_root(folder, "questions_answers_YN")
    pictures = _files.image_root(folder, "images")
    by_stem: dict[str, list[str]] = {}
    for name in _listed(pictures):
        if Path(name).suffix.lower() in _PICTURES:
            by_stem.setdefault(Path(name).stem, []).append(name)
    examples = []
    for path in (texts / name for name in _listed(texts)):
        if path.suffix.lower() != ".txt":
            continue
        candidates = sorted(by_stem.get(path.stem, ()), key=lambda name: _PICTURES.index(Path(name).suffix.lower()))
        name = candidates[0] if candidates else names.get(f"{category}/{path.stem.split('.')[0]}", f"{path.stem}.jpg")
        file = pictures / name
        examples += _pair(path, f"{category}/{file.name}", str(file.relative_to(top)), category)
    return examples


def _listed(folder: Path) -> list[str]:
    """The names in a folder in order, hidden ones left out; none of a folder that is not there. Raises InputError."""
    try:
        return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".")) if folder.is_dir() else []
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from None


def _pair(path: Path, key: str, image: str, category: str) -> list[Example]:
    lines = [line.strip() for line in text.read_text(path).splitlines() if line.strip()]
    pairs = [(match["question"], match["answer"]) for line in lines if (match := _LABELLED.fullmatch(line))]
    if len(pairs) != 2 or len(lines) != 2:
        raise InputError(f"{path} should hold two lines, each a question, a tab, and Yes or No")
    return [
        Example(
            f"{key}#{number}",
            "mme",
            image,
            f"{_bare(question)}\n{answers.SHORT_ANSWER}",
            (answer.strip().lower(),),
            meta={"category": category},
            question_id=key,
            asked=_bare(question),
        )
        for number, (question, answer) in enumerate(pairs)
    ]


def _bare(question: str) -> str:
    return question.replace(_CLOSING, "").strip()


_READERS: Mapping[str, Callable[[str], str]] = {OFFICIAL: answers.mme_label, LMMS: lmms_mme_label, VLM: vlm_yes_no}


def _rule(scorer: str) -> metrics.Rule:
    label_of = _READERS[scorer]

    def judged(example: Example, answer: str) -> Verdict:
        label = label_of(answer)
        return Verdict(float(label == example.answers[0]), label, example.answers[0], label in ("yes", "no"))

    return judged


def _columns(scores: Sequence[Score], category: str) -> Floats:
    """(questions, 4) of one subtask: right, asked, both of the picture right, pictures; the last two on its second question."""
    columns = np.zeros((len(scores), 4))
    first: dict[str, float] = {}
    for row, score in enumerate(scores):
        if score.groups["category"] != category:
            continue
        picture = score.groups[metrics.IMAGE]
        columns[row, :2] = (score.value, 1.0)
        if picture in first:
            columns[row, 2:] = (score.value * first[picture], 1.0)
        first[picture] = score.value
    return columns


def _points(sums: Floats) -> Floats:
    """Sum over subtasks of 100 (acc + acc+); sums (rows, 4 x subtasks) -> (rows,)."""
    right, questions, both, pictures = (sums[:, part::4] for part in range(4))
    result: Floats = 100 * (right / questions + both / pictures).sum(axis=1)
    return result
