"""Recorded answers find their questions; whatever does not fit is kept, by kind, with line and id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cos_core import jsonl, metrics
from cos_core.errors import InputError
from cos_core.interfaces import Benchmark, BenchmarkData
from cos_core.types import Prediction

NAMED = 20
"""Of each kind of problem, so many are named in the manifest; problems.jsonl names all."""


@dataclass(slots=True)
class Recorded:
    """A predictions file as read: (line, prediction) in order, and the lines that could not be read."""

    path: Path
    rows: list[tuple[int, Prediction]] = field(default_factory=list)
    unreadable: list[jsonl.Problem] = field(default_factory=list)


@dataclass(slots=True)
class Joined:
    """Predictions by example id, the last of each, and what did not fit: kind -> (line or None, id) pairs."""

    predictions: dict[str, Prediction] = field(default_factory=dict)
    problems: dict[str, list[tuple[int | None, str]]] = field(default_factory=dict)

    def add(self, kind: str, line: int | None, example_id: str) -> None:
        self.problems.setdefault(kind, []).append((line, example_id))

    def named(self) -> dict[str, list[str]]:
        """The first ids of each kind."""
        return {kind: [example_id for _, example_id in found[:NAMED]] for kind, found in self.problems.items() if found}


def read_predictions(path: Path) -> Recorded:
    """Reads our predictions or LLaVA's answers, told apart line by line. A line that is neither is kept as a problem.

    Raises InputError when the file cannot be opened or holds no answer at all.
    """
    recorded = Recorded(path)
    for line, row in jsonl.read_lines(path, recorded.unreadable.append):
        try:
            recorded.rows.append((line, _prediction(row)))
        except InputError as error:
            recorded.unreadable.append(jsonl.Problem(path, line, None, str(error)))
    if not recorded.rows:
        why = f"; {recorded.unreadable[0]}" if recorded.unreadable else ", it is empty"
        raise InputError(f"{path} holds no prediction{why}")
    return recorded


def _prediction(row: Mapping[str, Any]) -> Prediction:
    if "example_id" in row:
        return Prediction.from_json(row)
    if "question_id" not in row or not isinstance(row.get("text"), str):
        raise InputError("a prediction has example_id and answer, or question_id and text (LLaVA's answers format)")
    prompt = row.get("prompt")
    question = prompt if isinstance(prompt, str) else None
    return Prediction(str(row["question_id"]), row["text"], policy=metrics.UNSAID, profile=metrics.UNSAID, question=question)


def join(data: BenchmarkData, recorded: Recorded, benchmark: Benchmark | None = None) -> Joined:
    """Gives every prediction its example: by id, or by official question id and, where that repeats, by the question asked.

    The last of several answers to one question counts, as in the official scripts that join by id; a failure never replaces
    an answer, and an answer after a failure is a repair, not counted as doubled. A prediction whose prompt asks another
    question than the example is "unknown".
    Raises InputError when no prediction belongs to the data.
    """
    asked = getattr(benchmark, "asked", None) or (lambda prompt: prompt)
    by_id = {example.id: example for example in data.examples}
    by_question: dict[str, list[Any]] = {}
    for example in data.examples:
        by_question.setdefault(str(example.meta.get("question_id", example.id)), []).append(example)
    place = {example.id: number for number, example in enumerate(data.examples)}
    joined, before = Joined(), -1
    for line, prediction in recorded.rows:
        own = by_id.get(prediction.example_id)
        candidates = [own] if own is not None else by_question.get(prediction.example_id, [])
        if len(candidates) > 1:
            said = _words(asked(prediction.question or "") or "")
            candidates = [example for example in candidates if _words(example.meta.get("asked", example.question)) == said]
            # The same question twice on one image: answers go to them in turn.
            candidates = [example for example in candidates if example.id not in joined.predictions][:1] or candidates[-1:]
        if not candidates or not _asks(prediction, candidates[0]):
            joined.add("unknown", line, prediction.example_id)
            continue
        example_id = candidates[0].id
        earlier = joined.predictions.get(example_id)
        if earlier is not None and earlier.answer is not None:
            joined.add("doubled", line, example_id)
            if prediction.answer is None:
                continue
        elif place[example_id] < before:
            joined.add("reordered", line, example_id)
        before = place[example_id]
        joined.predictions[example_id] = prediction
    _add_gaps(joined, data, recorded)
    return joined


def _add_gaps(joined: Joined, data: BenchmarkData, recorded: Recorded) -> None:
    if not joined.predictions:
        raise InputError(
            f"none of the {len(recorded.rows)} predictions in {recorded.path} belongs to {data.name} {data.split}; "
            f"the first is {recorded.rows[0][1].example_id!r}, the data's first question {data.examples[0].id!r}"
        )
    for example in data.examples:
        prediction = joined.predictions.get(example.id)
        if prediction is None:
            joined.add("missing", None, example.id)
        elif prediction.answer is None:
            joined.add("failed", None, example.id)
    for problem in recorded.unreadable:
        joined.add("unreadable", problem.line, str(problem))


def _asks(prediction: Prediction, example: Any) -> bool:
    """Whether the recorded prompt, if any, holds the example's question; guards against another version of the data."""
    if prediction.question is None:
        return True
    asked = example.meta.get("asked", example.question)
    return asked in prediction.question or _words(asked) in _words(prediction.question)


def _words(text: str) -> str:
    return " ".join(text.lower().split())
