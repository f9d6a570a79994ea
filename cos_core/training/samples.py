"""From examples and regions to samples: one conversation about a picture each, with the region of every question.

Every real data set has questions without a region: relevance finds none, or the annotator did not process the question. Such a
question is trained on the whole picture and counted, or left out (`on_no_region`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from cos_core.data.released import ReleasedRegions, Shifted, Square, shifted_from
from cos_core.errors import InputError
from cos_core.geometry import Box, full_box
from cos_core.interfaces import Policy
from cos_core.training.skipped import Skipped
from cos_core.types import Annotation, Example

NO_ANSWER = "no answer to learn"
NO_ANNOTATION = "no annotation in the store"
OTHER_IMAGE = "its region in the store was made on another image"

Region = Box | Square
"""A box in either frame, or a square in pixels that becomes a box once the picture's size is known."""


class Annotations(Protocol):
    """The methods of a store that are used here."""

    def get(self, example_id: str) -> Annotation | None: ...

    def failure(self, example_id: str) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Outline:
    """A sample without its texts.

    `image`: whether it has one. Of each question: `boxed`, whether it has a region; `letters`, how many characters its question
    and its answer have.
    """

    id: str
    image: bool
    usable: tuple[int, ...]
    boxed: tuple[bool, ...]
    letters: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation. `boxes[i]` is the region of `questions[i]` (any frame; all None without a chain or an image).

    `fallbacks`: the questions that have no region of their own, for which the whole picture stands.
    """

    id: str
    questions: tuple[Example, ...]
    boxes: tuple[Region | None, ...]
    usable: tuple[int, ...]
    fallbacks: tuple[int, ...] = ()

    @property
    def image(self) -> str | None:
        return self.questions[0].image

    @property
    def outline(self) -> Outline:
        letters = tuple((len(q.question), len(q.answers[0]) if q.answers else 0) for q in self.questions)
        return Outline(self.id, self.image is not None, self.usable, tuple(box is not None for box in self.boxes), letters)


class Samples(Protocol):
    """Samples by number, from 0: a list, or the table over a data file (table.py)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class Log(Protocol):
    """A list, or a SkipFile."""

    def append(self, skipped: Skipped, /) -> None: ...


@dataclass(slots=True)
class Account:
    """Collects the questions that are left out (`skipped`), that have no region of their own (`lacking`), and whose region was
    made for another row of the data file (`shifted`).

    `region_questions`: how many questions about a picture should have a region. `partial`: `Rules.limit` left samples out;
    they are counted nowhere.
    """

    skipped: Log
    lacking: Log
    shifted: Log
    region_questions: int = 0
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """Settings that decide which samples there are.

    `on_no_region`: a question without a region is trained on the whole picture, with the box [0, 0, 1, 1] of the padded square,
    as the released code does in silence (upstream §1.6), or left out ("skip"). `limit`: only the samples that begin among the
    first so many questions, each whole; `cos annotate` with the same limit annotates all questions of these.
    """

    policy: Policy
    seed: int
    on_no_region: Literal["full", "skip"] = "full"
    limit: int | None = None


def collect(
    examples: Iterable[Example], rules: Rules, annotations: Annotations | ReleasedRegions | None, account: Account
) -> Iterator[tuple[int, Sample]]:
    """Each sample that can be trained on, with the index of its first question among the examples, from 0.

    `annotations` is read when the model writes the box; it may be None for other policies. A question without an
    answer, or with another picture's region, is left out; a sample without any question left is left out whole. Text-only
    samples need no box.
    """
    end = 0
    for key, questions in _grouped(examples):
        start, end = end, end + len(questions)
        if rules.limit is not None and start >= rules.limit:
            account.partial = True
            return
        boxes: list[Region | None] = []
        usable: list[int] = []
        fallbacks: list[int] = []
        shifted: list[Skipped] = []
        for i, example in enumerate(questions):
            result = _RegionResult() if example.image is None else _box(example, rules, annotations)
            if result.shifted is not None:
                shifted.append(_skipped(example, str(result.shifted)))
            account.region_questions += example.image is not None and rules.policy.source == "model"
            box, reason = result.box, result.reason
            if result.lacking:
                account.lacking.append(_skipped(example, str(reason)))
                if rules.on_no_region == "full":
                    box, reason = full_box("square"), None
                    fallbacks.append(i)
            if not example.answers or not example.answers[0]:
                reason = NO_ANSWER
            boxes.append(box)
            if reason is None:
                usable.append(i)
            else:
                account.skipped.append(_skipped(example, reason, result.lacking))
        if usable:
            for skipped in shifted:
                account.shifted.append(skipped)
            yield start, Sample(key, tuple(questions), tuple(boxes), tuple(usable), tuple(fallbacks))


def _skipped(example: Example, reason: str, lacking: bool = False) -> Skipped:
    return Skipped(example.id, reason, line=example.line, lacking=lacking, file=example.file)


def _grouped(examples: Iterable[Example]) -> Iterator[tuple[str, list[Example]]]:
    """Consecutive examples of one conversation (`Example.sample`), else of one image; text without either stands alone."""
    group: list[Example] = []
    current: str | None = None
    for example in examples:
        key = key_of(example)
        if group and (key != current or example.image != group[0].image):
            yield str(current), group
            group = []
        current = key
        group.append(example)
    if group:
        yield str(current), group


def key_of(example: Example) -> str:
    """The id of the sample that an example belongs to."""
    return example.sample or example.image or example.id


@dataclass(frozen=True, slots=True)
class _RegionResult:
    """A box, or the reason why there is none; `lacking`: the question has no region, which is no fault of the data.

    `shifted`: the released region's key says the row of another sample.
    """

    box: Region | None = None
    reason: str | None = None
    lacking: bool = False
    shifted: Shifted | None = None


def _box(example: Example, rules: Rules, annotations: Annotations | ReleasedRegions | None) -> _RegionResult:
    """Neither box nor reason when the policy has no chain."""
    policy = rules.policy
    if policy.source == "none":
        return _RegionResult()
    if policy.source in ("fixed", "gold"):
        try:
            return _RegionResult(policy.fixed_box(example, rules.seed))
        except InputError as error:
            return _RegionResult(reason=str(error))
    if annotations is None:
        raise InputError(f"the policy {policy.name!r} needs annotations")
    if isinstance(annotations, ReleasedRegions):
        entry = annotations.find(example)
        if entry is None:
            return _RegionResult(reason=NO_ANNOTATION, lacking=True)
        key, row, square = entry
        return _RegionResult(square, shifted=shifted_from(example, key, row))
    annotation = annotations.get(example.id)
    if annotation is None:
        failure = annotations.failure(example.id)
        return _RegionResult(reason=NO_ANNOTATION if failure is None else f"annotating failed: {failure}", lacking=True)
    if annotation.image is not None and annotation.image != example.image:
        return _RegionResult(reason=OTHER_IMAGE)
    if annotation.box is None:
        return _RegionResult(reason=annotation.reason or NO_ANNOTATION, lacking=True)
    return _RegionResult(annotation.box)
