"""Common parts of the VQA-accuracy benchmarks: their scorers, the official layout, and LLaVA's question texts.

Scorers: "official" is vqaEval.py on the answers as they are; "m4c" is LLaVA's TextVQA scorer; "llava" is a test server's
scoring of LLaVA's submissions: the official scorer on predictions that went through the m4c processor first; "vizwiz" is the
rule of that challenge (vizwiz.py); "lmms-eval" and "vlmevalkit" are what these harnesses do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from cos_core.benchmarks import _files
from cos_core.benchmarks._harness import LMMS, VLM
from cos_core.benchmarks._sliced import SlicedBenchmark, percentage_estimates
from cos_core.errors import InputError
from cos_core.files.big_json import read_listed
from cos_core.interfaces import BenchmarkData
from cos_core.scoring import answers, metrics
from cos_core.scoring.columns import Examples
from cos_core.scoring.metrics import Estimate, Verdict
from cos_core.types import Example, Prediction, Score

SCORERS = ("llava", "official", "m4c", LMMS)


def rule(scorer: str, lmms: answers.VqaRule = "m4c") -> metrics.Rule:
    """VQA accuracy under `scorer`; `extracted` is the prediction as it was compared, `expected` the commonest answer.

    `lmms`: lmms-eval's rule for this benchmark.
    """
    always: dict[str, answers.VqaRule] = {"m4c": "m4c", LMMS: lmms, VLM: "vlmevalkit"}

    def judged(example: Example, answer: str) -> Verdict:
        if scorer in always:
            normalised = answers.vqa_normalised(answer, always[scorer])
            return Verdict(answers.vqa_accuracy(answer, example.answers, always[scorer]), normalised, _commonest(example))
        if scorer == "vizwiz":
            normalised = answers.vqa_official(answer)
            return Verdict(min(1.0, example.answers.count(normalised) / 3), normalised, _commonest(example))
        if scorer == "llava":
            answer = answers.vqa_m4c(answer)
        return Verdict(answers.vqa_accuracy(answer, example.answers), answer, _commonest(example))

    return judged


def _commonest(example: Example) -> str:
    return max(dict.fromkeys(example.answers), key=example.answers.count)


@dataclass(frozen=True)
class VqaBenchmark(SlicedBenchmark):
    """Scoring by VQA accuracy in percent, overall and by the groups in `slices` (with intervals for the first)."""

    split: str
    scorer: str
    scorers: Sequence[str] = SCORERS
    unlabelled: ClassVar[tuple[str, ...]] = ()
    """The splits that a server scores."""
    lmms: ClassVar[answers.VqaRule] = "m4c"
    """lmms-eval's rule for this benchmark."""

    def rule(self) -> metrics.Rule:
        return rule(self.scorer, self.lmms)

    def score(self, data: BenchmarkData, predictions: Mapping[str, Prediction]) -> Sequence[Score]:
        return [] if self.split in self.unlabelled else super().score(data, predictions)

    def metrics(self, data: BenchmarkData, scores: Iterable[Score]) -> dict[str, Any]:
        return {"server_scored": True} if self.split in self.unlabelled else super().metrics(data, scores)

    def estimates(self, data: BenchmarkData, scores: Sequence[Score]) -> Sequence[Estimate] | None:
        return percentage_estimates(scores, self.slices[:1])


def ten(value: object, where: str) -> tuple[str, ...]:
    """The ten answers of a question. Raises InputError when they are not ten texts."""
    if not isinstance(value, list) or len(value) != 10 or not all(isinstance(answer, str) for answer in value):
        raise InputError(f"{where}: expected ten answers")
    return tuple(value)


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
        texts = tuple([answer.answer for answer in label.answers])
        if len(texts) != 10:
            raise InputError(f"{annotations}: question {row.question_id}: expected ten answers, found {len(texts)}")
        meta = {"answer_type": label.answer_type, "question_type": label.question_type}
        image = f"COCO_val2014_{row.image_id:012d}.jpg"
        examples.append(
            Example(str(row.question_id), dataset, image, row.question + suffix, texts, meta=meta, asked=row.question)
        )
    return examples


_LABELS = ("annotations", _Label, "question_id")


def _labelled(questions: Path, annotations: Path) -> Iterator[tuple[_Question, _Label]]:
    """Each question with its annotation. Annotations in another order than the questions wait in memory."""
    labels = read_listed(annotations, *_LABELS)
    waiting: dict[int | str, _Label] = {}
    again: dict[int | str, _Label] = {}
    for row in read_listed(questions, "questions", _Question, "question_id"):
        label = waiting.get(row.question_id)
        while label is None:
            candidate = next(labels, None)
            if candidate is None:
                # All are read again: the question may stand twice, which is refused later.
                again = again or {label.question_id: label for label in read_listed(annotations, *_LABELS)}
                label = again.get(row.question_id)
                if label is None:
                    raise InputError(
                        f"{annotations} has no annotation of question {row.question_id}; the files do not belong together"
                    )
            elif candidate.question_id == row.question_id:
                label = candidate
            else:
                waiting[candidate.question_id] = candidate
        yield row, label
    for _ in labels:
        """The rest is read so that errors in it are raised."""


def asked_texts(path: Path | None) -> dict[str, dict[str, Any]]:
    """Rows of LLaVA's ready-made question file by question id; empty without one."""
    rows = _files.rows(path, ("question_id", "image", "text")) if path else []
    return {str(row["question_id"]): row for _, row in rows}
