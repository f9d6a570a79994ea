"""MM-Vet: open answers graded by a language model, or exported for graders who have one.

The prompt is that of `mm-vet_evaluator.py` (7d717c2); the scores are 100 times the mean grade, in all, for each capability and
for each set of capabilities, with one decimal. An unanswered question has grade 0; the official script stops there.

Replies are read in one of two ways (`scorer`). "official", as that script does: what stands before the first space is a number
in [0, 1]; after five replies without one the grade is 0, like a wrong answer's. "forms", the default: also the other forms in
which judges write one grade without doubt (see `judge_grade`); an answer whose replies hold none adds 0 to the score, is
counted beside it as not read, and is asked for again by the next run.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core.benchmarks import _files
from cos_core.benchmarks._sliced import choice, complete
from cos_core.errors import InputError
from cos_core.files import assets
from cos_core.interfaces import BenchmarkData, JudgedBenchmark, Need
from cos_core.scoring import metrics
from cos_core.scoring.metrics import Estimate, Verdict
from cos_core.types import Example, Prediction, Score

SOURCE = "mm-vet.zip of yuweihao/MM-Vet"
NEEDS = (
    Need(("mm-vet.json", "mm-vet/mm-vet.json"), SOURCE),
    Need(("images", "mm-vet/images"), f"{SOURCE}; only to run a model", optional=True),
)
COUNTS = {"v1": 218}
SCORERS = ("forms", "official")

_GRADE = re.compile(
    r"""[\s"'`*_]*
    (?P<label>(?:the\s+)?(?:final\s+)?(?:score|grade|rating|correctness)\s*(?:is|[:=])?[\s"'`*_]*)?
    (?P<grade>[0-9]{1,9}(?:\.[0-9]{0,17})?|\.[0-9]{1,17})
    (?P<whole>\s*(?:/|out\s+of)\s*1(?:\.0{0,9})?(?![0-9.]*[0-9]))?
    (?P<rest>.*)""",
    re.I | re.S | re.X,
)
_MORE = re.compile(r"[0-9]|\bpercent\b")


@dataclass(frozen=True)
class MmVet(JudgedBenchmark):
    """Reads `mm-vet.json`; questions are asked as they are, without a format suffix."""

    name = "mmvet"
    summary = "MM-Vet: open answers for a judge; graded through an endpoint, or exported"
    headline = "total"
    unit = "percent"
    reading: str = SCORERS[0]
    scorers = SCORERS
    needs = NEEDS
    folders = ("mm-vet", "MM-Vet", "mmvet")
    counts = COUNTS

    def load(self, root: Path) -> BenchmarkData:
        path = _files.require(root, "mm-vet.json", "mm-vet/mm-vet.json", source=f"take {SOURCE}")
        examples = []
        for key, row in _files.read_object(path).items():
            _files.demand(row, ("imagename", "question", "answer", "capability"), f"{path}: question {key}")
            meta, official = {"capability": list(row["capability"])}, key.removeprefix("v1_")
            texts = row["imagename"], row["question"], (row["answer"],)
            examples.append(Example(key, "mmvet", *texts, meta=meta, question_id=official))
        return BenchmarkData(self.name, "v1", examples, _files.image_root(path.parent, "images"))

    def score(self, data: BenchmarkData, predictions: Mapping[str, Prediction]) -> Sequence[Score]:
        return []

    def judge_prompt(self) -> str:
        """The text before every sample: the instruction and seven graded examples."""
        return assets.template("judge", "mmvet.txt").read_text(encoding="utf-8")

    def judge_sample(self, example: Example, answer: str) -> str:
        """The row that the judge completes."""
        truth = example.answers[0].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        return " | ".join([example.question, truth, answer, ""])

    @property
    def unread_grade(self) -> float | None:
        """The grade after the last reply without one; None where it stays unread."""
        return 0.0 if self.reading == "official" else None

    def judge_grade(self, reply: str, cut: bool = False) -> float | None:
        """The grade in a reply, in [0, 1]; None when there is none. `cut`: the reply was cut off at its longest.

        "forms": one number at the start, or behind `Score:`, `Grade:` and the like; with `/1` or `out of 1`, a full stop,
        quotes or asterisks about it; no further number may follow. Where a reply ends with `0.`, or with a label and a whole
        number, it must not have been cut off there: the full reply may have been 0.8.
        """
        if self.reading == "official":
            return _official(reply)
        match = _GRADE.match(reply)
        if match is None:
            return None
        rest = match["rest"]
        if rest[:1].isalnum() or rest[:1] in ("/", "%", "-", "\N{EN DASH}", "_") or _MORE.search(rest):
            return None
        half = match["grade"].endswith(".") or (match["label"] is not None and "." not in match["grade"])
        if cut and half and match["whole"] is None and not rest:
            return None
        grade = float(match["grade"])
        return grade if 0.0 <= grade <= 1.0 else None

    def judged(
        self, data: BenchmarkData, predictions: Mapping[str, Prediction], grades: Mapping[str, Sequence[float]]
    ) -> Sequence[Score]:
        """One score a question, the mean of its grades; `extracted` lists them. `grades`: by example id, equally many each; one
        that could not be read (nan) counts 0."""

        def rule(example: Example, answer: str) -> Verdict:
            of_answer = grades.get(example.id, ())
            mean = sum(0.0 if math.isnan(grade) else grade for grade in of_answer) / len(of_answer) if of_answer else 0.0
            is_read = not of_answer or not all(map(math.isnan, of_answer))
            return Verdict(mean, " ".join(f"{grade:g}" for grade in of_answer) or None, example.answers[0], is_read)

        return metrics.judge(
            data.examples, predictions, rule, lambda e: {"capabilities": "_".join(sorted(e.meta["capability"]))}
        )

    def metrics(self, data: BenchmarkData, scores: Iterable[Score]) -> dict[str, Any]:
        scores = list(scores)
        if not scores:
            return {"server_scored": True}
        if not any(score.extracted and score.note is None for score in scores):
            # Not one grade was read: the metrics are undefined.
            return {"total": None, "std": None, "runs": [], "capabilities": {}, "integrations": {}}
        sets = metrics.by_group(scores, "capabilities")
        single = sorted({capability for name in sets for capability in name.split("_")})
        parts = {name: [s for s in scores if name in s.groups["capabilities"].split("_")] for name in single}
        runs = _run_totals(scores)
        spread = (sum((total - sum(runs) / len(runs)) ** 2 for total in runs) / len(runs)) ** 0.5
        return {
            "total": _points(scores),
            "std": round(spread, 1),
            "runs": [round(total, 1) for total in runs],
            "capabilities": {name: _points(group) for name, group in parts.items()},
            "integrations": {name: _points(group) for name, group in sorted(sets.items())},
        }

    def estimates(self, data: BenchmarkData, scores: Sequence[Score]) -> list[Estimate]:
        is_read = any(score.extracted and score.note is None for score in scores)
        return [metrics.mean_estimate("total", scores, scale=100.0)] if is_read else []

    def submission(self, root: Path, data: BenchmarkData, predictions: Mapping[str, Prediction]) -> str:
        """The results file of `mm-vet_evaluator.py`: question key -> answer."""
        pairs = complete(data, predictions)
        return json.dumps({example.id: answer for example, answer in pairs}, indent=2)


def _points(scores: Sequence[Score]) -> float:
    return round(100 * metrics.mean(scores), 1)


def _run_totals(scores: Sequence[Score]) -> list[float]:
    """The total of each judge run; an unanswered question adds nothing to any."""
    texts = [(score.extracted or "").split() for score in scores]
    grades = [[0.0 if grade == "nan" else float(grade) for grade in of_answer] for of_answer in texts]
    runs = max((len(of_answer) for of_answer in grades), default=0) or 1
    return [100 * sum(of_answer[run] for of_answer in grades if run < len(of_answer)) / len(scores) for run in range(runs)]


def _official(reply: str) -> float | None:
    """As mm-vet_evaluator.py reads it."""
    try:
        grade = float(reply.split(" ")[0].strip())
    except ValueError:
        return None
    return grade if 0.0 <= grade <= 1.0 else None


def build(split: str | None = None, scorer: str | None = None) -> MmVet:
    """`split`: only "v1"; `scorer`: how a judge's reply is read, "forms" (the default) or "official"."""
    choice("mmvet", "split", split, ("v1",))
    if scorer not in (None, *SCORERS):
        raise InputError(
            f"mmvet's grades are a judge's, and its prompt is the official one, not {scorer!r}'s; harnesses differ most in the "
            "judge, which --judge-model names (lmms-eval asks gpt-4o-2024-11-20, VLMEvalKit gpt-4-turbo); "
            f"--scorer says how its replies are read: {' or '.join(SCORERS)}"
        )
    return MmVet(reading=scorer or SCORERS[0])
