"""What the VQA-accuracy benchmarks share: the choice of scorer, percentages, and LLaVA's question texts.

Scorers: "official" is vqaEval.py on the answers as they are; "m4c" is LLaVA's TextVQA scorer; "llava" is what a test server
makes of LLaVA's submissions, the official scorer on predictions that went through the m4c processor first; "vizwiz" is the
rule of that challenge (vizwiz.py); "lmms-eval" and "vlmevalkit" are what these harnesses do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from cos_core.benchmarks import _files
from cos_core.benchmarks._harness import LMMS, VLM
from cos_core.errors import InputError
from cos_core.files.big_json import read_listed
from cos_core.interfaces import BenchmarkData
from cos_core.scoring import answers, columns, metrics
from cos_core.scoring.columns import Examples
from cos_core.scoring.metrics import Estimate, Verdict
from cos_core.types import Example, Prediction, Score

SCORERS = ("llava", "official", "m4c", LMMS)


def chosen(benchmark: str, kind: str, value: str | None, known: Sequence[str]) -> str:
    """The split or scorer asked for, else the first known. Raises InputError for an unknown one."""
    if value is not None and value not in known:
        harness = {LMMS: "lmms-eval", VLM: "VLMEvalKit"}.get(value)
        why = f"{harness} has no scorer of its own for {benchmark}; " if harness and kind == "scorer" else ""
        raise InputError(f"{why}{benchmark} has the {kind}s {', '.join(known)}, not {value!r}")
    return value or known[0]


def rule(scorer: str, lmms: answers.VqaRule = "m4c") -> metrics.Rule:
    """VQA accuracy under `scorer`; `extracted` is the prediction as it was compared, `expected` the commonest answer.

    `lmms`: what lmms-eval does for this benchmark.
    """
    always: dict[str, answers.VqaRule] = {"m4c": "m4c", LMMS: lmms, VLM: "vlmevalkit"}

    def judged(example: Example, answer: str) -> Verdict:
        if scorer in always:
            shown = answers.vqa_normalised(answer, always[scorer])
            return Verdict(answers.vqa_accuracy(answer, example.answers, always[scorer]), shown, _commonest(example))
        if scorer == "vizwiz":
            said = answers.vqa_official(answer)
            return Verdict(min(1.0, example.answers.count(said) / 3), said, _commonest(example))
        if scorer == "llava":
            answer = answers.vqa_m4c(answer)
        return Verdict(answers.vqa_accuracy(answer, example.answers), answer, _commonest(example))

    return judged


def _commonest(example: Example) -> str:
    return max(dict.fromkeys(example.answers), key=example.answers.count)


@dataclass(frozen=True)
class VqaScores:
    """Scoring by VQA accuracy in percent, overall and by the groups named in `slices` (with intervals for the first).

    The splits in `unlabelled` are scored by a server.
    """

    name: str
    split: str
    scorer: str
    summary: str
    slices: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    scorers: tuple[str, ...] = SCORERS
    lmms: answers.VqaRule = "m4c"
    headline: str = "accuracy"
    unit: str = "percent"
    needs: tuple[_files.Need, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    load: Callable[[Path], BenchmarkData] = field(kw_only=True)
    submission: Callable[[Path, BenchmarkData, Mapping[str, Prediction]], str] | None = None

    def score(self, data: BenchmarkData, predictions: Mapping[str, Prediction]) -> Sequence[Score]:
        if self.split in self.unlabelled:
            return []
        slices = self.slices
        return metrics.judge(
            data.examples, predictions, rule(self.scorer, self.lmms), lambda e: {key: e.meta[key] for key in slices}
        )

    def metrics(self, data: BenchmarkData, scores: Iterable[Score]) -> dict[str, Any]:
        if self.split in self.unlabelled:
            return {"server_scored": True}
        return percentages(columns.held(scores), self.slices)

    def estimates(self, data: BenchmarkData, scores: Sequence[Score]) -> list[Estimate]:
        return percentage_estimates(scores, self.slices[:1])

    def protocol(self, predictions: Mapping[str, Prediction]) -> dict[str, Any]:
        return {"scorer": self.scorer}


def percentages(scores: Sequence[Score], slices: Iterable[str] = ()) -> dict[str, Any]:
    """`accuracy`, and for each slice its groups' accuracies, in percent with two decimals; `samples`."""
    table: dict[str, Any] = {"samples": len(scores), "accuracy": metrics.percent(scores)}
    for key in slices:
        groups = metrics.by_group(scores, key)
        table[key] = {name: metrics.percent(groups[name]) for name in sorted(groups)}
    return table


def percentage_estimates(scores: Sequence[Score], slices: Iterable[str] = ()) -> list[Estimate]:
    """The estimates behind `percentages`."""
    result = [metrics.mean_estimate("accuracy", scores, scale=100.0)]
    for key in slices:
        for name in sorted(metrics.by_group(scores, key)):
            result.append(metrics.mean_estimate(f"{key}.{name}", scores, metrics.in_group(key, name), scale=100.0))
    return result


def ten(found: object, where: str) -> tuple[str, ...]:
    """The ten answers of a question. Raises InputError when they are not ten texts."""
    if not isinstance(found, list) or len(found) != 10 or not all(isinstance(answer, str) for answer in found):
        raise InputError(f"{where}: expected ten answers")
    return tuple(found)


class _Answer(msgspec.Struct, gc=False):
    answer: str


class _Label(msgspec.Struct):
    question_id: int | str
    answers: list[_Answer]
    answer_type: str = "other"
    question_type: str = "none of the above"


class _Question(msgspec.Struct):
    question_id: int | str
    image_id: int
    question: str


def official_examples(questions: Path, annotations: Path, dataset: str) -> Examples:
    """Examples of the VQA layout: questions and annotations joined by question id. Raises InputError when they do not fit."""
    suffix = f"\n{answers.SHORT_ANSWER}"
    examples = Examples()
    for row, label in _labelled(questions, annotations):
        said = tuple([answer.answer for answer in label.answers])
        if len(said) != 10:
            raise InputError(f"{annotations}: question {row.question_id}: expected ten answers, found {len(said)}")
        meta = {"asked": row.question, "answer_type": label.answer_type, "question_type": label.question_type}
        image = f"COCO_val2014_{row.image_id:012d}.jpg"
        examples.append(Example(str(row.question_id), dataset, image, row.question + suffix, said, meta=meta))
    return examples


_LABELS = ("annotations", _Label, "question_id")


def _labelled(questions: Path, annotations: Path) -> Iterator[tuple[_Question, _Label]]:
    """Each question with its annotation. Both files have one order as a rule; what comes before its turn waits for it."""
    labels = read_listed(annotations, *_LABELS)
    waiting: dict[int | str, _Label] = {}
    again: dict[int | str, _Label] = {}
    for row in read_listed(questions, "questions", _Question, "question_id"):
        label = waiting.get(row.question_id)
        while label is None:
            each = next(labels, None)
            if each is None:
                # All are read again: the question may stand twice, which is for others to refuse.
                again = again or {label.question_id: label for label in read_listed(annotations, *_LABELS)}
                label = again.get(row.question_id)
                if label is None:
                    raise InputError(
                        f"{annotations} has no annotation of question {row.question_id}; the files do not belong together"
                    )
            elif each.question_id == row.question_id:
                label = each
            else:
                waiting[each.question_id] = each
        yield row, label
    for _ in labels:
        """The rest is read so that what is wrong with it is said."""


def asked_texts(path: Path | None) -> dict[str, dict[str, Any]]:
    """Rows of LLaVA's ready-made question file by question id; empty without one."""
    rows = _files.rows(path, ("question_id", "image", "text")) if path else []
    return {str(row["question_id"]): row for _, row in rows}


def complete(data: BenchmarkData, predictions: Mapping[str, Prediction]) -> list[tuple[Example, str]]:
    """Each example with its answer, in order. Raises InputError when one is missing: a server scores it as wrong."""
    pairs = [(example, predictions.get(example.id)) for example in data.examples]
    gaps = [example.id for example, prediction in pairs if prediction is None or prediction.answer is None]
    if gaps:
        raise InputError(f"a {data.name} submission needs every answer; {len(gaps)} are missing, the first is {gaps[0]!r}")
    return [(example, prediction.answer or "") for example, prediction in pairs if prediction is not None]
