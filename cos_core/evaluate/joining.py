"""Recorded answers find their questions; whatever does not fit is kept, by kind, with line and id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cos_core import jsonl, metrics
from cos_core.errors import InputError
from cos_core.interfaces import Benchmark, BenchmarkData
from cos_core.text import one_line
from cos_core.types import Prediction

NAMED = 20
"""Of each kind of problem, so many are named in the manifest; problems.jsonl names all."""

WRONG_JOIN = 0.2
"""From this share of unknown predictions on, with as many questions missing, files are taken not to belong together.

Both at once mean that ids are spelt otherwise: the answers are there and do not find their questions. Files of two versions of
one benchmark differ in a few per cent of their questions (POPE's random split by 3 %, and one-sidedly); a spelling that differs
in one sub-task of many takes more than a fifth of the questions before it moves a score by more than models differ.
"""


@dataclass(slots=True)
class Recorded:
    """A predictions file as read: (line, prediction) in order, and the lines that could not be read."""

    path: Path
    rows: list[tuple[int, Prediction]] = field(default_factory=list)
    unreadable: list[jsonl.Problem] = field(default_factory=list)


@dataclass(slots=True)
class Joined:
    """Predictions by example id, the last of each, and what did not fit: kind -> (line or None, id) pairs.

    `other_prompts`: of the unknown ones, those with the id of a question and the prompt of another (id, prompt, question).
    `reordered`: how many answers stand before an earlier question's; that changes nothing, so it is no problem.
    """

    predictions: dict[str, Prediction] = field(default_factory=dict)
    problems: dict[str, list[tuple[int | None, str]]] = field(default_factory=dict)
    other_prompts: list[tuple[str, str, str]] = field(default_factory=list)
    reordered: int = 0

    def add(self, kind: str, line: int | None, example_id: str) -> None:
        self.problems.setdefault(kind, []).append((line, example_id))

    def named(self) -> dict[str, list[str]]:
        """The first ids of each kind."""
        return {kind: [example_id for _, example_id in found[:NAMED]] for kind, found in self.problems.items() if found}


def read_predictions(path: Path) -> Recorded:
    """Reads our predictions, LLaVA's answers or its SEED-Bench upload, told apart line by line.

    A line that is none of them is kept as a problem.
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
    text = row.get("text", row.get("prediction"))
    if "question_id" not in row or not isinstance(text, str):
        raise InputError("a prediction has example_id and answer, or question_id and text (LLaVA's answers format)")
    prompt = row.get("prompt")
    question = prompt if isinstance(prompt, str) else None
    return Prediction(str(row["question_id"]), text, policy=metrics.UNSAID, profile=metrics.UNSAID, question=question)


def join(data: BenchmarkData, recorded: Recorded, benchmark: Benchmark | None = None, *, limit: int | None = None) -> Joined:
    """Gives every prediction its example: by id, or by official question id and, where that repeats, by the question asked.

    The last of several answers to one question counts, as in the official scripts that join by id; a failure never replaces
    an answer, and an answer after a failure is a repair, not counted as doubled. A prediction whose prompt asks another
    question than the example is "unknown". The order of the file plays no part. A benchmark that has `same_question` (id ->
    id) says which official ids are spellings of one. An example with `meta["repeats"]` is a row that the official files hold
    twice: without an answer of its own it has the one of the example named there.
    `limit`: only the data's first questions count, and answers to later ones are passed over.
    Raises InputError when no prediction belongs to the data.
    """
    asked = getattr(benchmark, "asked", None) or (lambda prompt: prompt)
    respelt = getattr(benchmark, "same_question", None)
    same = respelt or (lambda question_id: question_id)
    by_id = {example.id: example for example in data.examples}
    by_spelling = {same(example.id): example for example in data.examples} if respelt else by_id
    by_question: dict[str, list[Any]] = {}
    for example in data.examples:
        if "repeats" not in example.meta:
            by_question.setdefault(same(str(example.meta.get("question_id", example.id))), []).append(example)
    place = {example.id: number for number, example in enumerate(data.examples)}
    joined, before = Joined(), -1
    for line, prediction in recorded.rows:
        own = by_id.get(prediction.example_id) or by_spelling.get(same(prediction.example_id))
        named = [own] if own is not None else by_question.get(same(prediction.example_id), [])
        candidates = named
        if len(candidates) > 1:
            said = _words(asked(prediction.question or "") or "")
            candidates = [example for example in candidates if _words(example.meta.get("asked", example.question)) == said]
            # The same question twice on one image: answers go to them in turn.
            candidates = [example for example in candidates if example.id not in joined.predictions][:1] or candidates[-1:]
        if not candidates or not _asks(prediction, candidates[0]):
            joined.add("unknown", line, prediction.example_id)
            if named:
                question = named[0].meta.get("asked", named[0].question)
                joined.other_prompts.append((prediction.example_id, prediction.question or "", question))
            continue
        example_id = candidates[0].id
        earlier = joined.predictions.get(example_id)
        if earlier is not None and earlier.answer is not None:
            joined.add("doubled", line, example_id)
            if prediction.answer is None:
                continue
        elif place[example_id] < before:
            joined.reordered += 1
        before = place[example_id]
        joined.predictions[example_id] = prediction
    for example in data.examples:
        same_row = joined.predictions.get(example.meta["repeats"]) if "repeats" in example.meta else None
        if same_row is not None:
            joined.predictions.setdefault(example.id, same_row)
    _add_gaps(joined, data, recorded, limit)
    return joined


def _add_gaps(joined: Joined, data: BenchmarkData, recorded: Recorded, limit: int | None) -> None:
    if not joined.predictions:
        raise InputError(
            f"none of the {len(recorded.rows)} predictions in {recorded.path} belongs to {data.name} {data.split}; "
            + _side_by_side(joined, recorded.rows[0][1].example_id, data.examples[0].id)
        )
    examples = data.examples[:limit]
    if limit is not None:
        within = {example.id for example in examples}
        joined.predictions = {key: said for key, said in joined.predictions.items() if key in within}
        for kind, found in joined.problems.items():
            joined.problems[kind] = [pair for pair in found if kind == "unknown" or pair[1] in within]
    for example in examples:
        prediction = joined.predictions.get(example.id)
        if prediction is None:
            joined.add("missing", None, example.id)
        elif prediction.answer is None:
            joined.add("failed", None, example.id)
    for problem in recorded.unreadable:
        joined.add("unreadable", problem.line, str(problem))


def check(joined: Joined, data: BenchmarkData, recorded: Recorded, limit: int | None = None) -> str | None:
    """What speaks for a wrong join, in words: WRONG_JOIN of the predictions or more are unknown and as many questions missing.

    "As many": at least four for five unknown ids, as a few may be unknown for another reason. None when nothing does.
    """
    unknown, missing = joined.problems.get("unknown", []), joined.problems.get("missing", [])
    ids = min(len({example_id for _, example_id in unknown}), len(data.examples[:limit]))
    if not unknown or len(unknown) < WRONG_JOIN * len(recorded.rows) or 5 * len(missing) < 4 * ids:
        return None
    return (
        f"{recorded.path}: {len(unknown):,} of {len(recorded.rows):,} predictions belong to no question of {data.name} "
        f"{data.split}, and {len(missing):,} questions have none: the files do not belong together, or their ids are spelt "
        f"otherwise; {_side_by_side(joined, unknown[0][1], missing[0][1])}"
    )


def _side_by_side(joined: Joined, unknown: str, missing: str) -> str:
    """Two ids beside each other, or two questions where the ids are the same."""
    if joined.other_prompts:
        example_id, prompt, question = joined.other_prompts[0]
        shown = f"the prompt {one_line(prompt, 80)!r}, the data's question is {one_line(question, 80)!r}"
        return (
            f"{len(joined.other_prompts):,} have the id of a question and ask another: the first, {example_id!r}, has {shown}"
        )
    return f"the first such prediction is {one_line(unknown, 80)!r}, the first question without one {one_line(missing, 80)!r}"


def _asks(prediction: Prediction, example: Any) -> bool:
    """Whether the recorded prompt, if any, holds the example's question; guards against another version of the data."""
    if prediction.question is None:
        return True
    asked = example.meta.get("asked", example.question)
    return asked in prediction.question or _words(asked) in _words(prediction.question)


def _words(text: str) -> str:
    return " ".join(text.lower().split())
