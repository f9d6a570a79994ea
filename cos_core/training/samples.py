"""From examples and regions to samples: one conversation about a picture each, with the region of every question.

A question that has no region is not an accident but part of every real data set: relevance finds none, or the annotator never
saw it. It is trained on the whole picture and counted, or left out, as asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from cos_core.errors import InputError
from cos_core.geometry import Box, full_box
from cos_core.interfaces import Policy
from cos_core.jsonl import Problem
from cos_core.released import ReleasedRegions, Square
from cos_core.types import Annotation, Example

NO_ANSWER = "no answer to learn"
NO_ANNOTATION = "no annotation in the store"
OTHER_IMAGE = "its region in the store was made on another image"

Region = Box | Square
"""A box in either frame, or a square in pixels that becomes a box once the picture's size is known."""


class Annotations(Protocol):
    """What is asked of a store."""

    def get(self, example_id: str) -> Annotation | None: ...

    def failure(self, example_id: str) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Skipped:
    """One question, or one whole sample, that is not trained on, and why; `training`: found only when its turn came.

    `index`: the sample's place in the data file, where that is known.
    """

    id: str
    reason: str
    training: bool = False
    index: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "reason": self.reason, "training": self.training}


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


@dataclass(frozen=True, slots=True)
class Data:
    """Samples with their boxes, every question that is left out, and every one without a region of its own.

    `asked`: questions about a picture that should have a region; `problems`: records that could not be read, as the data reader
    named them; `regions`: the released file, where used.
    """

    samples: list[Sample]
    skipped: list[Skipped]
    lacking: list[Skipped]
    asked: int
    problems: Sequence[Problem] = ()
    regions: ReleasedRegions | None = None


def collect(
    examples: Iterable[Example],
    policy: Policy,
    annotations: Annotations | ReleasedRegions | None,
    seed: int,
    on_no_region: Literal["full", "skip"] = "full",
) -> Data:
    """What can be trained on.

    `annotations` (a Store) is asked when the model writes the box; it may be None for other policies. A question for which it
    has no region is trained on the whole picture, with the box [0, 0, 1, 1] of the padded square, as the released code does in
    silence (upstream §1.6); `on_no_region` "skip" leaves it out. A question without an answer, or with another picture's
    region, is left out; a sample without any question left is left out whole. Text-only samples need no box.
    """
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    lacking: list[Skipped] = []
    asked = 0
    for key, questions in _grouped(examples):
        boxes: list[Region | None] = []
        usable: list[int] = []
        fallbacks: list[int] = []
        for i, example in enumerate(questions):
            found = _Found() if example.image is None else _box(example, policy, annotations, seed)
            asked += example.image is not None and policy.source == "model"
            box, reason = found.box, found.reason
            if found.lacking:
                lacking.append(Skipped(example.id, str(reason), index=example.meta.get("index")))
                if on_no_region == "full":
                    box, reason = full_box("square"), None
                    fallbacks.append(i)
            if not example.answers or not example.answers[0]:
                reason = NO_ANSWER
            boxes.append(box)
            if reason is None:
                usable.append(i)
            else:
                skipped.append(Skipped(example.id, reason, index=example.meta.get("index")))
        if usable:
            samples.append(Sample(key, tuple(questions), tuple(boxes), tuple(usable), tuple(fallbacks)))
    return Data(samples, skipped, lacking, asked)


def _grouped(examples: Iterable[Example]) -> Iterator[tuple[str, list[Example]]]:
    """Consecutive examples of one conversation (`meta["sample"]`), else of one image; text without either stands alone."""
    group: list[Example] = []
    current: str | None = None
    for example in examples:
        key = str(example.meta.get("sample") or example.image or example.id)
        if group and (key != current or example.image != group[0].image):
            yield str(current), group
            group = []
        current = key
        group.append(example)
    if group:
        yield str(current), group


@dataclass(frozen=True, slots=True)
class _Found:
    """A box, or why there is none; `lacking`: none was found for the question, which is no one's mistake."""

    box: Region | None = None
    reason: str | None = None
    lacking: bool = False


def _box(example: Example, policy: Policy, annotations: Annotations | ReleasedRegions | None, seed: int) -> _Found:
    """Neither box nor reason when the policy has no chain."""
    if policy.source == "none":
        return _Found()
    if policy.source in ("fixed", "gold"):
        try:
            return _Found(policy.fixed_box(example, seed))
        except InputError as error:
            return _Found(reason=str(error))
    if annotations is None:
        raise InputError(f"the policy {policy.name!r} needs annotations")
    if isinstance(annotations, ReleasedRegions):
        entry = annotations.find(example)
        return _Found(reason=NO_ANNOTATION, lacking=True) if entry is None else _Found(entry[2])
    found = annotations.get(example.id)
    if found is None:
        failure = annotations.failure(example.id)
        return _Found(reason=NO_ANNOTATION if failure is None else f"annotating failed: {failure}", lacking=True)
    if found.image is not None and found.image != example.image:
        return _Found(reason=OTHER_IMAGE)
    if found.box is None:
        return _Found(reason=found.reason or NO_ANNOTATION, lacking=True)
    return _Found(found.box)
