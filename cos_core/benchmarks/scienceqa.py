"""ScienceQA: options by letter. The published figure (ScienceQA-IMG) is the accuracy over questions with a picture.

Scoring is LLaVA's `eval_science_qa.py` (c121f04), quirks included: a question counts as one with a picture when its *recorded
prompt* holds `<image>`, so one without an answer leaves the image accuracy's denominator. For predictions whose prompts have no
such marks (ours), the problem's own picture decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core.benchmarks import _files
from cos_core.benchmarks._harness import (
    HARNESSES,
    LMMS,
    OFFICIAL,
    VLM,
    Reader,
    lmms_science_letter,
    option_rule,
    vlm_option_letter,
)
from cos_core.benchmarks._sliced import SlicedBenchmark, choice
from cos_core.errors import InputError
from cos_core.files.big_json import read_json_list
from cos_core.interfaces import BenchmarkData, Need
from cos_core.scoring import answers, metrics
from cos_core.scoring.metrics import Estimate
from cos_core.types import Example, Prediction, Score

SOURCE = "take problems.json and pid_splits.json from lupantech/ScienceQA"
NEEDS = (
    Need(("problems.json",), "lupantech/ScienceQA, data/scienceqa"),
    Need(("pid_splits.json",), "lupantech/ScienceQA, data/scienceqa"),
    Need(("llava_test_CQM-A.json",), "LLaVA's evaluation files (eval.zip)", optional=True),
    Need(("images/test", "test"), "test.zip of ScienceQA's pictures; only to run a model", optional=True),
)
COUNTS = {"test": 4_241, "test-image": 2_017}
PICTURES = "-image"
_MARK = "<image>"


@dataclass(frozen=True)
class ScienceQa(SlicedBenchmark):
    """`split`: a key of pid_splits.json, with "-image" for its questions with a picture only."""

    split: str
    scorer: str = OFFICIAL
    name = "scienceqa"
    summary = "ScienceQA test: option letters; image accuracy is the published figure"
    headline = "image_accuracy"
    scorers = HARNESSES
    needs = NEEDS
    counts = COUNTS

    def load(self, root: Path) -> BenchmarkData:
        part = self.split.removesuffix(PICTURES)
        splits = _files.read_object(_files.require(root, "pid_splits.json", source=SOURCE))
        path = _files.require(root, "problems.json", source=SOURCE)
        problems = _files.read_object(path)
        if part not in splits:
            raise InputError(f"pid_splits.json has the splits {', '.join(splits)}, not {part!r}")
        texts = _texts(_files.optional(root, f"llava_{part}_CQM-A.json"))
        examples = [_example(str(pid), problems.get(str(pid)), path, texts) for pid in splits[part]]
        if self.split.endswith(PICTURES):
            examples = [example for example in examples if example.image is not None]
        return BenchmarkData(self.name, self.split, examples, _files.image_root(root, f"images/{part}", part))

    def rule(self) -> metrics.Rule:
        return option_rule(_READERS[self.scorer], lambda letter: letter or "FAILED")

    def score(self, data: BenchmarkData, predictions: Mapping[str, Prediction]) -> Sequence[Score]:
        has_marks = any(_MARK in (prediction.question or "") for prediction in predictions.values())

        def modality(example: Example) -> Mapping[str, str]:
            prediction = predictions.get(example.id)
            prompt = (prediction.question if prediction else None) or ""
            has_picture = _MARK in prompt if has_marks else example.image is not None
            return {"modality": "image" if has_picture else "text", "subject": example.meta["subject"]}

        return metrics.judge(data.examples, predictions, self.rule(), modality)

    def metrics(self, data: BenchmarkData, scores: Iterable[Score]) -> dict[str, Any]:
        scores = list(scores)
        pictures = metrics.by_group(scores, "modality").get("image", [])
        return {
            "total": len(scores),
            "correct": sum(score.value == 1.0 for score in scores),
            "accuracy": metrics.percent(scores),
            "image_total": len(pictures),
            "image_accuracy": metrics.percent(pictures),
            # The official script lists them in its result file, too.
            "per_question": {score.example_id: [score.extracted or "FAILED", score.value == 1.0] for score in scores},
        }

    def estimates(self, data: BenchmarkData, scores: Sequence[Score]) -> list[Estimate]:
        pictures = metrics.in_group("modality", "image")
        return [
            metrics.mean_estimate("accuracy", scores, scale=100.0),
            metrics.mean_estimate("image_accuracy", scores, pictures, scale=100.0),
        ]


def build(split: str | None = None, scorer: str | None = None) -> ScienceQa:
    """`split`: "test" (the default), "test-image", "val", ...; `scorer`: "official" (LLaVA's, the default), "lmms-eval" or
    "vlmevalkit" (without its judge)."""
    if split is not None and not split.replace("-", "").isalnum():
        raise InputError(f"scienceqa has splits like 'test' and 'test-image', not {split!r}")
    return ScienceQa(split or "test", choice("scienceqa", "scorer", scorer, HARNESSES))


def _texts(path: Path | None) -> dict[str, str]:
    """LLaVA's prepared question texts by problem id, without the image mark."""
    texts = {}
    for line, _, row in read_json_list(path) if path else ():
        _files.demand(row, ("id", "conversations"), f"{path}:{line}")
        turns = row["conversations"]
        if not isinstance(turns, list) or not turns or not isinstance(turns[0], dict) or "value" not in turns[0]:
            raise InputError(f"{path}:{line}: the sample has no question")
        texts[str(row["id"])] = str(turns[0]["value"]).replace(_MARK, "").strip()
    return texts


def _example(pid: str, problem: Any, path: Path, texts: Mapping[str, str]) -> Example:
    _files.demand(problem, ("question", "choices", "answer"), f"{path}: problem {pid}")
    choices = tuple(problem["choices"])
    if not 0 <= problem["answer"] < min(len(choices), len(answers.LETTERS)):
        raise InputError(f"{path}: problem {pid}: the answer {problem['answer']} is not one of its {len(choices)} choices")
    body = texts.get(pid) or _body(problem, choices)
    return Example(
        pid,
        "scienceqa",
        f"{pid}/{problem['image']}" if problem.get("image") else None,
        body,
        (answers.LETTERS[problem["answer"]],),
        choices,
        {"subject": str(problem.get("subject", ""))},
        asked=problem["question"],
        suffix=f"\n{answers.OPTION_LETTER}",
    )


def _body(problem: Mapping[str, Any], choices: Sequence[str]) -> str:
    context = [f"Context: {problem['hint']}"] if problem.get("hint") else []
    options = [f"{letter}. {choice}" for letter, choice in zip(answers.LETTERS, choices, strict=False)]
    return "\n".join([*context, problem["question"], *options])


_READERS: Mapping[str, Reader] = {
    OFFICIAL: lambda answer, options: answers.scienceqa_letter(answer),
    LMMS: lambda answer, options: lmms_science_letter(answer),
    VLM: vlm_option_letter,
}
