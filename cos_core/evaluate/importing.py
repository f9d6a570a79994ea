"""Answers that another harness recorded, as answers in our format: each row finds its question by id, by place or by content.

A way of finding is taken for the whole file, and only when it holds: an id when nearly every row whose id names a question
here also asks it, with the same true answer; the place when every row stands where its question does. Else a row finds its
question by content: question, true answer, options, hint, picture and category, as far as the row has them. Questions that are
equal in all of this are paired in order and counted; without a true answer to compare they are not paired at all. A row of
VLMEvalKit's POPE that names several splits answers the question of each.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from cos_core.benchmarks._harness import LMMS, VLM
from cos_core.data import harness_files
from cos_core.data.harness_files import HarnessFile, HarnessRow
from cos_core.errors import InputError
from cos_core.evaluate.joining import Finder, contains_question, words_of
from cos_core.files import jsonl, manifest
from cos_core.files.durable import atomic_file
from cos_core.files.text import one_line
from cos_core.interfaces import Benchmark, BenchmarkData, Reporter
from cos_core.scoring import answers
from cos_core.scoring.columns import Scores
from cos_core.scoring.recorded import UNSAID
from cos_core.types import Example, Prediction

FILE = "imported.jsonl"
"""The imported answers in our format, beside the scores."""

ID_HOLDS = 0.95
"""The share of rows whose id names a question that must also ask it; a number that only counts rows meets the same question by
chance far less often."""

_MISSING = "nan"
"""What VLMEvalKit scores in the place of an answer that pandas takes for a missing value."""

_LONGEST_TRUTH = 20_000
_SUFFIXES = (answers.SHORT_ANSWER, answers.OPTION_LETTER, answers.UNANSWERABLE, "Please answer yes or no.", "Answer:")


@dataclass(slots=True)
class Import:
    """What was imported: the file, how its rows found their questions, and the harness's own scores by our id.

    `by_order`: rows told apart by their order alone; `other_truth`: rows that ask a question here and have another true answer
    than ours; `untold`: rows that several questions fit, with nothing to tell them apart; `missing`: answers that are scored
    as "nan". The latter three find no question, or count as the harness has it.
    """

    source: HarnessFile
    found_by: str = ""
    by_order: int = 0
    other_truth: int = 0
    untold: int = 0
    missing: int = 0
    verdicts: dict[str, float] = field(default_factory=dict)

    def about(self) -> dict[str, Any]:
        """The record for the manifest."""
        counts = {name: getattr(self, name) for name in ("by_order", "other_truth", "untold", "missing")}
        return {
            "harness": self.source.harness,
            "file": self.source.path.name,
            "sha256": manifest.file_digest(self.source.path),
            "dataset": self.source.dataset,
            "model": self.source.model,
            "prompts": f"{self.source.harness}'s",
            "rows": len(self.source.rows),
            "found_by": self.found_by,
            **{name: count for name, count in counts.items() if count},
        }

    def remarks(self) -> Iterator[str]:
        """What a user should know, a sentence each."""
        counted = {
            "rows with the text and the true answer of several questions, paired with them in order": self.by_order,
            "rows that ask a question of the data and have another true answer, not joined": self.other_truth,
            "rows that fit several questions alike, not joined": self.untold,
            "answers that pandas reads as missing values, scored as 'nan', as VLMEvalKit does": self.missing,
        }
        for words, count in counted.items():
            if count:
                yield f"{self.source.path.name}: {words}: {count:,}"

    def compare(self, scores: Scores, scorer: str | None) -> dict[str, Any]:
        """How many of the harness's own scores are ours, too; the ids of the first that are not. Empty where they need not be
        (ours follow another rule), or where the file has none."""
        if scorer != LMMS or not self.verdicts or not len(scores):
            return {}
        by_id = scores.by_id()
        ours = {name: by_id[name].value for name in self.verdicts if name in by_id}
        other = [name for name, value in ours.items() if not abs(value - self.verdicts[name]) <= 1e-6]
        return {"compared": len(ours), "equal": len(ours) - len(other), **({"other": other[:20]} if other else {})}

    def report(self, scores: Scores, scorer: str | None, reporter: Reporter) -> dict[str, Any]:
        """`about`, with how many of the harness's own scores are ours, too; the user is told."""
        about = self.about()
        reporter.note(
            f"{about['file']}: {about['rows']:,} answers of {about['model'] or 'a model without name'}, recorded by "
            f"{about['harness']}, questions found by {about['found_by']}"
        )
        if own := self.compare(scores, scorer):
            about["own_scores"] = own
            if others := own.get("other"):
                words = f"{own['compared'] - own['equal']:,} of {own['compared']:,} scores are not those in the file"
                reporter.warn(f"{about['file']}: {words}; the first is that of {one_line(others[0])}")
        return about


def convert(source: HarnessFile, benchmark: Benchmark, data: BenchmarkData, into: Path) -> Import:
    """Writes the answers of a harness's file to the questions of `data` as predictions into the file `into`.

    A row without a question keeps its place in the file as its id, and joining counts it as unknown. Raises InputError for a
    file of another benchmark or split, or one without rows.
    """
    _check(source, benchmark, data)
    done = Import(source)
    places = _Joiner(data, benchmark).places(source, done)
    vlm = source.harness == harness_files.VLMEVALKIT and benchmark.scorer == VLM
    with atomic_file(into) as file:
        for row, found in zip(source.rows, places, strict=True):
            done.missing += vlm and row.missing
            text = _MISSING if vlm and row.missing else row.answer
            error = None if text is not None else f"{source.harness} recorded no answer"
            for name in [data.examples[place].id for place in found] or [f"{source.path.name}:{row.line}"]:
                if found and row.verdict is not None:
                    done.verdicts[name] = row.verdict
                question = row.question or None
                answer = Prediction(name, text, policy=UNSAID, profile=source.harness, question=question, error=error)
                file.write(jsonl.encode_line(answer.to_json()))
    return done


def _check(source: HarnessFile, benchmark: Benchmark, data: BenchmarkData) -> None:
    if not source.rows:
        why = f"; {source.problems[0]}" if source.problems else ""
        raise InputError(f"{source.path} holds no answer of {source.harness}'s{why}")
    known = source.benchmark
    if known is None:
        return
    name, splits = known
    if name != benchmark.name:
        raise InputError(
            f"{source.path} holds answers to {source.harness}'s {source.dataset}, which is {name}, not "
            f"{benchmark.name}; name {name}"
        )
    if splits and data.split not in splits:
        raise InputError(
            f"{source.path} holds answers to {source.harness}'s {source.dataset}, which is the split {' or '.join(splits)} of "
            f"{name}, not {data.split}; give --split {splits[-1]}"
        )


class _Joiner:
    """Finds the questions that rows answer."""

    def __init__(self, data: BenchmarkData, benchmark: Benchmark) -> None:
        self._examples: Sequence[Example] = data.examples
        self._benchmark = benchmark
        self._finder = Finder(data, benchmark)
        self._sorted_truths: dict[int, list[str]] = {}
        self._categories = {example.meta.get("category") for example in data.examples}

    def places(self, source: HarnessFile, done: Import) -> list[tuple[int, ...]]:
        """The places of the questions that each row answers, in order; () for one that answers none."""
        for kind in dict.fromkeys(kind for row in source.rows for kind in row.ids):
            places = self._by_id(source.rows, kind)
            if places is not None:
                done.found_by = kind
                return places
        if all(0 <= row.place < len(self._examples) and self._fits(row, row.place) for row in source.rows):
            done.found_by = "place"
            return [(row.place,) for row in source.rows]
        done.found_by = "content"
        taken: Counter[tuple[int, ...]] = Counter()
        return [self._by_content(row, taken, done) for row in source.rows]

    # --- by id or place

    def _by_id(self, rows: Sequence[HarnessRow], kind: str) -> list[tuple[int, ...]] | None:
        """The places by one kind of id; None when it does not hold."""
        named = fitting = 0
        taken: set[int] = set()
        result: list[tuple[int, ...]] = []
        for row in rows:
            candidates = self._finder.candidates(Prediction(row.ids[kind], "")) if kind in row.ids else ()
            fits = [place for place in candidates if self._fits(row, place)]
            named += bool(candidates)
            fitting += bool(fits)
            place = next((place for place in fits if place not in taken), fits[-1] if fits else None)
            taken.update(() if place is None else (place,))
            result.append(() if place is None else (place,))
        return (
            result if fitting and fitting >= ID_HOLDS * named and 2 * fitting >= min(len(rows), len(self._examples)) else None
        )

    def _fits(self, row: HarnessRow, place: int) -> bool:
        """Whether a row asks the question at a place, and has no other true answer."""
        return contains_question(row.question, self._finder.question_at(place)) and self._same_truth(row, place) is not False

    def _same_truth(self, row: HarnessRow, place: int) -> bool | None:
        """Whether a row's true answer is that of the question at a place; None where they cannot be compared."""
        truth = self._examples[place].answers
        if row.truth is None or not truth:
            return None
        if len(truth) == 1:
            return _plain(row.truth) == _plain(truth[0])
        theirs = _list_of(row.truth)
        return None if theirs is None else theirs == self._sorted_truth(place)

    def _sorted_truth(self, place: int) -> list[str]:
        if place not in self._sorted_truths:
            self._sorted_truths[place] = sorted(map(_plain, self._examples[place].answers))
        return self._sorted_truths[place]

    # --- by content

    @cached_property
    def _by_text(self) -> dict[str, list[int]]:
        result: dict[str, list[int]] = {}
        for place, example in enumerate(self._examples):
            if example.repeats is None:
                for text in dict.fromkeys((words_of(self._finder.question_at(place)), _bare(example.question))):
                    result.setdefault(text, []).append(place)
        return result

    def _candidates(self, row: HarnessRow) -> list[int]:
        """The places of the questions with a row's text: the longest part of it that is one."""
        texts = (row.question, _bare(row.question), row.question.split("\n")[0], self._benchmark.asked(row.question) or "")
        for text in dict.fromkeys(map(words_of, texts)):
            if places := self._by_text.get(text):
                return places
        return []

    def _by_content(self, row: HarnessRow, taken: Counter[tuple[int, ...]], done: Import) -> tuple[int, ...]:
        asked = self._candidates(row)
        fitting = [place for place in asked if self._same_truth(row, place) is not False]
        done.other_truth += bool(asked) and not fitting
        fitting = self._told_apart(row, fitting)
        categories = [category for category in row.categories if category in self._categories]
        if not categories:
            return self._next(row, fitting, taken, done)
        parts = [[p for p in fitting if self._examples[p].meta.get("category") == category] for category in categories]
        before = done.by_order, done.untold
        found = [self._next(row, part, taken, done) for part in parts if part]
        # A row for several categories is one row.
        done.by_order, done.untold = (min(now, was + 1) for now, was in zip((done.by_order, done.untold), before, strict=True))
        return tuple(place for places in found for place in places)

    def _told_apart(self, row: HarnessRow, places: list[int]) -> list[int]:
        """Those of several places whose options, hint and picture are the row's."""
        tests = []
        if row.options:
            mine = [words_of(option) for option in row.options]
            tests.append(lambda example: [words_of(choice) for choice in example.choices] == mine)
        if row.hint:
            tests.append(lambda example: contains_question(example.question, row.hint))
        if row.picture:
            tests.append(lambda example: Path(example.image or "").stem == Path(row.picture).stem)
        for test in tests:
            if len(places) > 1:
                places = [place for place in places if test(self._examples[place])] or places
        return places

    def _next(self, row: HarnessRow, places: list[int], taken: Counter[tuple[int, ...]], done: Import) -> tuple[int, ...]:
        """The next of the places that were not told apart."""
        if len(places) < 2:
            return tuple(places)
        if self._same_truth(row, places[0]) is None:
            done.untold += 1
            return ()
        done.by_order += 1
        turn = taken[key := tuple(places)]
        taken[key] += 1
        return (places[min(turn, len(places) - 1)],)


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".")


# A row's list is compared with that of every question with the row's text, hundreds of them in VizWiz.
@lru_cache(maxsize=1)
def _list_of(text: str) -> list[str] | None:
    """The texts of a list as Python writes it, sorted, as `_plain` has them; None for anything else. Nothing is evaluated."""
    if not text.startswith("[") or len(text) > _LONGEST_TRUTH:
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return sorted(_plain(str(each)) for each in value) if isinstance(value, list) else None


def _bare(question: str) -> str:
    """The words of a prompt without the format suffixes of the harnesses."""
    text = question.rstrip()
    for suffix in (*_SUFFIXES, *_SUFFIXES):
        text = text.removesuffix(suffix).rstrip()
    return words_of(text)
