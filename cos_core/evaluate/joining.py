"""Joins recorded predictions with their questions; predictions that do not fit are listed by kind, with line and id."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from cos_core.errors import InputError
from cos_core.evaluate import second_pass
from cos_core.evaluate.second_pass import SecondPass
from cos_core.files.text import one_line
from cos_core.interfaces import Benchmark, BenchmarkData
from cos_core.scoring import columns, metrics
from cos_core.scoring.columns import IdColumn, Texts
from cos_core.scoring.recorded import Recorded
from cos_core.types import STEERING, BoxStatus, Prediction

_SHORT = 40
"""The longest answer, in characters, that is kept in memory."""

NAMED = 20
"""How many ids of each kind of problem the manifest names; problems.jsonl names all."""

WRONG_JOIN = 0.2
"""From this share of unknown predictions on, with as many questions missing, files are taken not to belong together.

Both at once mean that ids are spelt otherwise: the answers are there and do not find their questions. Files of two versions of
one benchmark differ in a few per cent of their questions (POPE's random split by 3 %, and one-sidedly); a spelling that differs
in one sub-task of many takes more than a fifth of the questions before it moves a score by more than models differ.
"""


PICTURE_MARK = "<image>"
"""The mark of a picture in recorded prompts (LLaVA's of ScienceQA)."""


class _Kind(NamedTuple):
    """What many predictions share."""

    profile: str
    policy: str
    box_status: BoxStatus
    second_pass: SecondPass


class Answers(Mapping[str, Prediction]):
    """Recorded predictions by example id; each is read from the file on access.

    `marked`: whether the prompt of any holds the mark of a picture.
    """

    def __init__(self, ids: IdColumn, recorded: Recorded) -> None:
        self.ids, self.recorded, self.marked = ids, recorded, False
        self._rows = array("q", [-1]) * len(ids)
        self._answered = bytearray(len(ids))
        self._samples = array("I", [0]) * len(ids)
        self._kind_of = array("I", [0]) * len(ids)
        self._kinds: dict[_Kind, int] = {}
        self._short_answers: list[str | None] = [None] * len(ids)
        self._shared = Texts().shared
        self._kind_list: list[_Kind] = []

    def put(self, place: int, row: int, prediction: Prediction) -> None:
        """Sets the answer to the question at `place`: `prediction`, read from row `row` of the file."""
        self._rows[place] = row
        self._answered[place] = prediction.answer is not None
        self._samples[place] = len(prediction.samples)
        kind = _Kind(prediction.profile, prediction.policy, prediction.box_status, second_pass.of(prediction))
        self._kind_of[place] = self._kinds.setdefault(kind, len(self._kinds))
        short = prediction.answer is not None and len(prediction.answer) <= _SHORT
        self._short_answers[place] = self._shared(prediction.answer) if short else None
        self.marked = self.marked or PICTURE_MARK in (prediction.question or "")

    def copy(self, place: int, other: int) -> None:
        """Gives the question at `place` the answer of the one at `other`."""
        columns: tuple[Any, ...] = (self._rows, self._answered, self._samples, self._kind_of, self._short_answers)
        for column in columns:
            column[place] = column[other]

    def cut(self, limit: int) -> None:
        """Drops the answers to all questions but the first `limit`."""
        for place in range(limit, len(self._rows)):
            self._rows[place] = -1

    def has_prediction(self, place: int) -> bool:
        """Whether the question at `place` has a prediction, a failure included."""
        return self._rows[place] >= 0

    def answered(self, place: int) -> bool:
        """Whether the prediction at `place` has an answer, and is no failure."""
        return self._rows[place] >= 0 and bool(self._answered[place])

    def rows(self) -> Iterator[tuple[int, int]]:
        """(place, row in the file) of each prediction."""
        return ((place, row) for place, row in enumerate(self._rows) if row >= 0)

    def samples(self) -> int:
        """How many answers each answered question has: 1, but for a run of several samples.

        Raises InputError when that is not the same for all of them.
        """
        first: dict[int, int] = {}
        for place, _ in self.rows():
            if self._answered[place]:
                first.setdefault(max(1, self._samples[place]), place)
        if len(first) > 1:
            (few, one), (many, other) = list(first.items())[:2]
            raise InputError(
                f"{self.recorded.named}: answers to {self.ids.names[one]!r}: {few}, to {self.ids.names[other]!r}: {many}; "
                "every question needs as many samples"
            )
        return next(iter(first), 1)

    def profiles_and_policies(self) -> list[tuple[str, str]]:
        """(profile, policy) of the predictions, each pair once."""
        return list(dict.fromkeys((kind.profile, kind.policy) for kind in self._used_kinds()))

    def second_passes(self) -> list[SecondPass]:
        """What the predictions say of their second passes, each kind once."""
        return list(dict.fromkeys(kind.second_pass for kind in self._used_kinds()))

    def _used_kinds(self) -> Iterator[_Kind]:
        used = {kind for kind, row in zip(self._kind_of, self._rows, strict=True) if row >= 0}
        return (kind for kind, number in self._kinds.items() if number in used)

    def for_scoring(self, example_id: str) -> metrics.AnsweredPrediction | None:
        """The part of a prediction that scoring needs. Short answers come from memory, without another read of the file."""
        place = self.ids.places().get(example_id)
        if place is None or self._rows[place] < 0:
            return None
        short = self._short_answers[place]
        if short is None:
            return self.read(self._rows[place])
        if len(self._kind_list) < len(self._kinds):
            self._kind_list = list(self._kinds)
        kind = self._kind_list[self._kind_of[place]]
        return metrics.ShortAnswer(short, kind.policy, kind.box_status)

    def __getitem__(self, example_id: str) -> Prediction:
        row = self._rows[self.ids.places()[example_id]]
        if row < 0:
            raise KeyError(example_id)
        return self.read(row)

    def get(self, example_id: str, default: Any = None) -> Any:
        place = self.ids.places().get(example_id)
        return default if place is None or self._rows[place] < 0 else self.read(self._rows[place])

    def read(self, row: int) -> Prediction:
        """The prediction in a row of the file."""
        prediction: Prediction = self.recorded[row]
        return prediction

    def __contains__(self, example_id: object) -> bool:
        place = self.ids.places().get(example_id)  # type: ignore[call-overload]
        return place is not None and self._rows[place] >= 0

    def __iter__(self) -> Iterator[str]:
        return (name for name, row in zip(self.ids.names, self._rows, strict=True) if row >= 0)

    def __len__(self) -> int:
        return sum(row >= 0 for row in self._rows)


@dataclass(slots=True)
class Joined:
    """Predictions by example id, the last of each. `problems`: kind -> (line or None, id) of those that did not fit.

    `other_prompts`: of the unknown ones, those with the id of a question and the prompt of another (id, prompt, question).
    `reordered`: how many answers stand before an earlier question's; that changes nothing, so it is no problem.
    """

    predictions: Answers
    problems: dict[str, list[tuple[int | None, str]]] = field(default_factory=dict)
    other_prompts: list[tuple[str, str, str]] = field(default_factory=list)
    reordered: int = 0

    def add(self, kind: str, line: int | None, example_id: str) -> None:
        self.problems.setdefault(kind, []).append((line, example_id))

    def first_ids(self) -> dict[str, list[str]]:
        """The first ids of each kind."""
        return {kind: [example_id for _, example_id in pairs[:NAMED]] for kind, pairs in self.problems.items() if pairs}


def read_predictions(path: Path) -> Recorded:
    """The predictions of a file: our format, LLaVA's answers or its SEED-Bench upload, recognised line by line.

    A line in none of these formats becomes a problem.
    Raises InputError when the file cannot be opened.
    """
    return Recorded(path)


def join(data: BenchmarkData, recorded: Recorded, benchmark: Benchmark | None = None, *, limit: int | None = None) -> Joined:
    """Assigns every prediction to an example: by id, or by official question id and, where that repeats, by the question.

    The last of several answers to one question counts, as in the official scripts that join by id; a failure never replaces
    an answer, and an answer after a failure is a repair, not counted as doubled. A prediction whose prompt asks another
    question than the example is "unknown". The order of the file plays no part. A benchmark that has `same_question` (id ->
    id) says which official ids are spellings of one. An example with `repeats` is a row that the official files hold
    twice: without an answer of its own it has the one of the example named there.
    `limit`: only the data's first questions count, and answers to later ones are passed over.
    Raises InputError when the file holds no answer at all, or none that belongs to the data.
    """
    finder = Finder(data, benchmark)
    joined, before, first = Joined(Answers(finder.ids, recorded)), -1, None
    answers = joined.predictions
    for line, prediction in recorded.walk():
        first = first or prediction.example_id
        candidates = finder.candidates(prediction)
        place = finder.match(prediction, candidates, answers)
        if place is None:
            joined.add("unknown", line, prediction.example_id)
            if candidates:
                joined.other_prompts.append(
                    (prediction.example_id, prediction.question or "", finder.question_at(candidates[0]))
                )
            continue
        if answers.answered(place):
            joined.add("doubled", line, finder.ids.names[place])
            if prediction.answer is None:
                continue
        elif place < before:
            joined.reordered += 1
        before = place
        answers.put(place, len(recorded) - 1, prediction)
    if first is None:
        why = f"; {recorded.unreadable[0]}" if recorded.unreadable else ", it is empty"
        raise InputError(f"{recorded.named} holds no prediction{why}")
    for place, other in finder.repeats():
        if answers.has_prediction(other) and not answers.has_prediction(place):
            answers.copy(place, other)
    _add_gaps(joined, data, recorded, first, limit)
    return joined


class Finder:
    """Finds the question that a prediction answers. Indexes that only some files need are made on first use."""

    def __init__(self, data: BenchmarkData, benchmark: Benchmark | None) -> None:
        self.examples, self.ids = data.examples, columns.ids_of(data.examples)
        self._benchmark = benchmark
        names = data.examples.steering if isinstance(data.examples, columns.Examples) else STEERING
        self._may_repeat = "repeats" in names
        self._official = "question_id" in names or self._may_repeat
        self._by_official_id: dict[str, int | list[int]] | None = None

    @cached_property
    def _places_by_spelling(self) -> dict[str, int]:
        """The places of ids by their one spelling (Benchmark.same_question), where that is not the id itself."""
        spellings = ((self._same(name), place) for place, name in enumerate(self.ids.names))
        return {name: place for name, place in spellings if name != self.ids.names[place]}

    def _same(self, question_id: str) -> str:
        return question_id if self._benchmark is None else self._benchmark.same_question(question_id)

    def candidates(self, prediction: Prediction) -> Sequence[int]:
        """The places of the questions that the prediction's id may mean."""
        place = self.ids.places().get(prediction.example_id)
        if place is None:
            spelling = self._same(prediction.example_id)
            place = self._places_by_spelling.get(spelling, self.ids.places().get(spelling))
        if place is not None:
            return (place,)
        if self._by_official_id is None:
            self._by_official_id = self._places_by_official_id()
        places = self._by_official_id.get(spelling, ())
        return (places,) if isinstance(places, int) else places

    def _places_by_official_id(self) -> dict[str, int | list[int]]:
        by_id: dict[str, int | list[int]] = {}
        for place, name in enumerate(self.ids.names):
            official: str | int = name
            if self._official:
                example = self.examples[place]
                if example.repeats is not None:
                    continue
                official = name if example.question_id is None else example.question_id
            key = self._same(str(official))
            earlier = by_id.setdefault(key, place)
            if isinstance(earlier, list):
                earlier.append(place)
            elif earlier != place:
                by_id[key] = [earlier, place]
        return by_id

    def match(self, prediction: Prediction, candidates: Sequence[int], answers: Answers) -> int | None:
        """The place of the question that the prediction answers; None when its prompt holds another question, or no id fits."""
        if len(candidates) > 1:
            prompt = prediction.question or ""
            question = prompt if self._benchmark is None else self._benchmark.asked(prompt)
            words = words_of(question or "")
            candidates = [place for place in candidates if words_of(self.question_at(place)) == words]
            # The same question twice on one image: the answers are assigned in order.
            candidates = [place for place in candidates if not answers.has_prediction(place)][:1] or candidates[-1:]
        if not candidates or (
            prediction.question is not None and not contains_question(prediction.question, self.question_at(candidates[0]))
        ):
            return None
        return candidates[0]

    def question_at(self, place: int) -> str:
        """The question's text at `place`, without a format suffix where the benchmark gives one."""
        if isinstance(self.examples, columns.Examples):
            return self.examples.question(place)
        example = self.examples[place]
        return example.question if example.asked is None else example.asked

    def repeats(self) -> Iterator[tuple[int, int]]:
        """(place, place of the question that it repeats)."""
        for place, example in enumerate(self.examples if self._may_repeat else ()):
            other = self.ids.places().get(example.repeats) if example.repeats is not None else None
            if other is not None:
                yield place, other


def _add_gaps(joined: Joined, data: BenchmarkData, recorded: Recorded, first: str, limit: int | None) -> None:
    answers = joined.predictions
    if not len(answers):
        raise InputError(
            f"none of the {len(recorded)} predictions in {recorded.named} belongs to {data.name} {data.split}; "
            + _side_by_side(joined, first, data.examples[0].id)
        )
    names = answers.ids.names[:limit]
    if limit is not None:
        answers.cut(limit)
        within = set(names)
        for kind, pairs in joined.problems.items():
            joined.problems[kind] = [pair for pair in pairs if kind == "unknown" or pair[1] in within]
    for place, name in enumerate(names):
        if not answers.has_prediction(place):
            joined.add("missing", None, name)
        elif not answers.answered(place):
            joined.add("failed", None, name)
    for problem in recorded.unreadable:
        joined.add("unreadable", problem.line, str(problem))


def check(joined: Joined, data: BenchmarkData, recorded: Recorded, limit: int | None = None) -> str | None:
    """A message when files probably do not belong together; None otherwise.

    That is so when at least WRONG_JOIN of the predictions are unknown and as many questions are missing.

    "As many": at least four for five unknown ids, as a few may be unknown for another reason.
    """
    unknown, missing = joined.problems.get("unknown", []), joined.problems.get("missing", [])
    ids = min(
        len({example_id for _, example_id in unknown}), len(data.examples) if limit is None else min(limit, len(data.examples))
    )
    if not unknown or len(unknown) < WRONG_JOIN * len(recorded) or 5 * len(missing) < 4 * ids:
        return None
    return (
        f"{recorded.named}: {len(unknown):,} of {len(recorded):,} predictions belong to no question of {data.name} "
        f"{data.split}, and {len(missing):,} questions have none: the files do not belong together, or their ids are spelt "
        f"otherwise; {_side_by_side(joined, unknown[0][1], missing[0][1])}"
    )


def _side_by_side(joined: Joined, unknown: str, missing: str) -> str:
    """Two ids beside each other, or two questions where the ids are the same."""
    if joined.other_prompts:
        example_id, prompt, question = joined.other_prompts[0]
        if not prompt:
            return f"several questions have the id {example_id!r}, and the prediction has no prompt that says which"
        texts = f"the prompt {one_line(prompt, 80)!r}, the data's question is {one_line(question, 80)!r}"
        return (
            f"{len(joined.other_prompts):,} have the id of a question and ask another: the first, {example_id!r}, has {texts}"
        )
    return f"the first such prediction is {one_line(unknown, 80)!r}, the first question without one {one_line(missing, 80)!r}"


def contains_question(prompt: str, question: str) -> bool:
    """Whether the recorded prompt holds the example's question; guards against another version of the data."""
    return question in prompt or words_of(question) in words_of(prompt)


def words_of(text: str) -> str:
    """A text in lower case with single spaces, for comparing."""
    return " ".join(text.lower().split())
