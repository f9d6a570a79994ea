"""GQA (testdev balanced): compositional questions with one-word answers, exact match.

Predictions are cleaned as in LLaVA's `convert_gqa_for_eval.py` (c121f04): trailing periods off, lower case, nothing else; then
compared as GQA's `eval.py` does. Its consistency, validity, plausibility and grounding need files that version 1.2 does not
have: none of them is computed here. `distribution` is its chi-square (lower is better), divided by 100 as there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core.benchmarks import _files, _vqa
from cos_core.benchmarks._harness import HARNESSES, LMMS, OFFICIAL, VLM, lmms_words
from cos_core.benchmarks._sliced import SlicedBenchmark, choice, complete, percentage_estimates, percentages
from cos_core.interfaces import BenchmarkData, Need
from cos_core.scoring import answers, metrics
from cos_core.scoring.metrics import Estimate, Verdict
from cos_core.types import Example, Prediction, Score

SOURCE = "GQA 1.2, cs.stanford.edu/people/dorarad/gqa"
QUESTIONS = tuple(
    f"{folder}testdev_balanced_questions.json"
    for folder in ("", "questions/", "questions1.2/", "data/", "data/questions/", "data/questions1.2/")
)
NEEDS = (
    Need(QUESTIONS, SOURCE),
    Need(("llava_gqa_testdev_balanced.jsonl",), "LLaVA's evaluation files (eval.zip)", optional=True),
    Need(("images", "data/images"), "images.zip of GQA; only to run a model", optional=True),
)
COUNTS = {"testdev-balanced": 12_578}
SLICES = ("structural", "semantic", "length", "steps")
_NO_STEP = ("exist", "query: name", "choose name")
"""Operations of a program that do not count as steps of reasoning."""


@dataclass(frozen=True)
class Gqa(SlicedBenchmark):
    """Questions that are not balanced are left out, as in the official accuracy."""

    scorer: str = OFFICIAL
    name = "gqa"
    summary = "GQA testdev balanced: exact match, with binary and open questions apart"
    slices = ("kind", "group", *SLICES)
    scorers = HARNESSES
    needs = NEEDS
    counts = COUNTS

    def load(self, root: Path) -> BenchmarkData:
        path = _files.require(root, *QUESTIONS, source=f"take it from {SOURCE}")
        prepared = _vqa.asked_texts(_files.optional(root, "llava_gqa_testdev_balanced.jsonl"))
        rows = _files.read_object(path).items()
        examples = [_example(key, row, f"{path}: question {key}", prepared) for key, row in rows if _balanced(row)]
        return BenchmarkData(self.name, "testdev-balanced", examples, _files.image_root(root, "images", "data/images"))

    def rule(self) -> metrics.Rule:
        return _rule(self.scorer)

    def metrics(self, data: BenchmarkData, scores: Iterable[Score]) -> dict[str, Any]:
        scores = list(scores)
        kinds = metrics.by_group(scores, "kind")
        table = {**percentages(scores, SLICES), **{kind: metrics.percent(group) for kind, group in sorted(kinds.items())}}
        chi_square = _distribution(scores)
        return table if chi_square is None else {**table, "distribution": round(chi_square / 100, 2)}

    def estimates(self, data: BenchmarkData, scores: Sequence[Score]) -> list[Estimate]:
        kinds = sorted(metrics.by_group(scores, "kind"))
        by_kind = [metrics.mean_estimate(kind, scores, metrics.in_group("kind", kind), scale=100.0) for kind in kinds]
        return [*percentage_estimates(scores, ("structural", "semantic")), *by_kind]

    def submission(self, root: Path, data: BenchmarkData, predictions: Mapping[str, Prediction]) -> str:
        """The predictions file that GQA's `eval.py` reads."""
        pairs = complete(data, predictions)
        return json.dumps([{"questionId": example.id, "prediction": _cleaned(answer)} for example, answer in pairs])


def build(split: str | None = None, scorer: str | None = None) -> Gqa:
    """`split`: only "testdev-balanced"; `scorer`: "official" (the default), "lmms-eval" or "vlmevalkit"."""
    choice("gqa", "split", split, ("testdev-balanced",))
    return Gqa(choice("gqa", "scorer", scorer, HARNESSES))


def _balanced(row: Any) -> bool:
    return not isinstance(row, dict) or bool(row.get("isBalanced", True))


def _example(key: str, row: Any, where: str, prepared: Mapping[str, dict[str, Any]]) -> Example:
    _files.demand(row, ("question", "answer", "imageId", "types"), where)
    _files.demand(row["types"], ("structural", "semantic"), f"{where}: types")
    prompt = {"image": f"{row['imageId']}.jpg", "text": f"{row['question']}\n{answers.SHORT_ANSWER}"} | prepared.get(key, {})
    structural = row["types"]["structural"]
    meta = {
        "kind": "open" if structural == "query" else "binary",
        "structural": structural,
        "semantic": row["types"]["semantic"],
        "group": str((row.get("groups") or {}).get("global") or ""),
        "length": f"{len(row['question'].split()):02d}",
        "steps": str(_steps(row.get("semantic"))),
    }
    return Example(key, "gqa", prompt["image"], prompt["text"], (row["answer"],), meta=meta, asked=row["question"])


def _steps(operations: Any) -> int:
    """`getStepsNum` of eval.py: operations, those left out whose `operation: argument` holds one of _NO_STEP."""
    operations = operations if isinstance(operations, list) else []
    words = [f"{o.get('operation')}: {o.get('argument')}" if isinstance(o, dict) else "" for o in operations]
    return sum(not any(part in word for part in _NO_STEP) for word in words)


def _cleaned(answer: str) -> str:
    return answer.rstrip(".").lower()


def _distribution(scores: Sequence[Score]) -> float | None:
    """chiSquare of GQA's `eval.py`: in each global group the squared distance of the predicted answers' counts from the true,
    divided by the true; groups weighted by their questions. Answers that are never true do not count. None without groups.
    """
    groups: dict[str, tuple[Counter[str], Counter[str]]] = {}
    for score in scores:
        if score.groups.get("group"):
            truth, predicted = groups.setdefault(score.groups["group"], (Counter(), Counter()))
            truth[score.expected or ""] += 1
            predicted[score.extracted or ""] += 1
    total = weight = 0.0
    for truth, predicted in groups.values():
        size = truth.total()
        total += size * sum((truth[answer] - predicted[answer]) ** 2 / truth[answer] for answer in truth)
        weight += size
    return total / weight if weight else None


_CLEANERS: Mapping[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    OFFICIAL: (_cleaned, str),
    LMMS: (lambda answer: lmms_words(answer.strip()), lmms_words),
    VLM: (lambda answer: answer.strip().lower(), lambda truth: truth.strip().lower()),
}
"""Normalisation of the prediction and of the true answer before they are compared, by scorer."""


def _rule(scorer: str) -> metrics.Rule:
    clean_answer, clean_truth = _CLEANERS[scorer]

    def judged(example: Example, answer: str) -> Verdict:
        cleaned = clean_answer(answer)
        return Verdict(float(cleaned == clean_truth(example.answers[0])), cleaned, example.answers[0])

    return judged
