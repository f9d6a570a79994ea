"""Pairs of files as VQA publishes them: `{"questions": [{question_id, image_id, question}], data_subtype, ...}` and
`{"annotations": [{question_id, answers: [{answer}], multiple_choice_answer}], ...}` (Goyal et al., 2017, arXiv 1612.00837).

Both are streamed. Answers are joined by `question_id`; where the two files have one order, as the official ones do, no more
than one answer is kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from cos_core.data.records import IMAGE_KEYS
from cos_core.errors import InputError
from cos_core.files.data_files import open_data
from cos_core.files.json_window import UnusableError, Window
from cos_core.files.jsonl import OnProblem, Problem, kind_of, report, why

QUESTIONS, ANNOTATIONS = "questions", "annotations"


def list_of(path: Path, start: bytes) -> str | None:
    """Which of the two lists the file holds; None for any other file. `start`: its first bytes, unpacked."""
    marks = (f'"{name}"'.encode() for name in (QUESTIONS, ANNOTATIONS))
    if not start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") or not any(mark in start for mark in marks):
        return None
    with open_data(path) as file:
        window = Window(file)
        try:
            name, _ = _to_list(window)
            first = _first(window) if name else None
        except ValueError:
            return None
    return name if isinstance(first, dict) and "question_id" in first else None


def _to_list(window: Window) -> tuple[str | None, dict[str, Any]]:
    """Goes to the first list of questions or annotations of an object: its key, and the texts under the keys before it."""
    texts: dict[str, Any] = {}
    window.skip_space()
    window.expect("{", "no object")
    while True:
        window.skip_space()
        if window.peek() != '"':
            return None, texts
        name = window.value()
        window.skip_space()
        window.expect(":", "expected a key and ':'")
        window.skip_space()
        if name in (QUESTIONS, ANNOTATIONS) and window.peek() == "[":
            return name, texts
        value = window.value(finite=False)
        if isinstance(value, str):
            texts[name] = value
        window.skip_space()
        if window.peek() == ",":
            window.take(1)


def _first(window: Window) -> Any:
    window.take(1)
    window.skip_space()
    return window.value()


def _elements(path: Path, on_problem: OnProblem | None) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
    """(line, object, texts before the list) of each element of the file's list."""
    with open_data(path) as file:
        window = Window(file)
        try:
            _, texts = _to_list(window)
            window.take(1)
            window.skip_space()
            while window.peek() != "]":
                line = window.line
                try:
                    value = window.value()
                except UnusableError as error:
                    report(Problem(path, line, None, str(error)), on_problem)
                else:
                    if isinstance(value, dict):
                        yield line, value, texts
                    else:
                        report(Problem(path, line, None, f"expected a JSON object, found {kind_of(value)}"), on_problem)
                window.skip_space()
                if window.peek() == ",":
                    window.take(1)
                    window.skip_space()
                elif window.peek() != "]":
                    raise ValueError("expected ',' or ']'")
        except ValueError as error:
            reason = f"not valid JSON ({why(error)}); what stands after it cannot be read"
            report(Problem(path, window.line, None, reason), on_problem)


class Answers:
    """The answers of a data set's annotation files, by question. They are read as far as questions ask for them."""

    def __init__(self, paths: Sequence[Path], on_problem: OnProblem | None) -> None:
        self.paths = tuple(paths)
        self._rest = chain.from_iterable(_elements(path, on_problem) for path in paths)
        self._passed: dict[str, dict[str, Any]] = {}

    def of(self, question: object) -> dict[str, Any] | None:
        """The annotation of a question, once; None when there is none."""
        name = str(question)
        if name in self._passed:
            return self._passed.pop(name)
        for _, annotation, _ in self._rest:
            if str(annotation.get("question_id")) == name:
                return annotation
            self._passed[str(annotation.get("question_id"))] = annotation
        return None

    def left(self) -> int:
        """How many annotations no question has asked for."""
        return len(self._passed) + sum(1 for _ in self._rest)


def rows(path: Path, answers: Answers | None, on_problem: OnProblem | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, record) of each question of a file, with its answers, the one that most people gave first."""
    for line, question, texts in _elements(path, on_problem):
        annotation = answers.of(question.get("question_id")) if answers is not None else None
        try:
            yield line, _record(question, annotation or {}, texts)
        except InputError as error:
            report(Problem(path, line, str(question.get("question_id")), str(error)), on_problem)


def _record(question: dict[str, Any], annotation: dict[str, Any], texts: dict[str, Any]) -> dict[str, Any]:
    record = {**question}
    if not any(key in record for key in IMAGE_KEYS):
        record["image"] = _picture(record.get("image_id"), texts.get("data_subtype"))
    slices = {name: annotation[name] for name in ("question_type", "answer_type") if isinstance(annotation.get(name), str)}
    if slices and "meta" not in record:
        record["meta"] = slices
    given = annotation.get("answers")
    listed = given if isinstance(given, list) else []
    texts_of = [each.get("answer") if isinstance(each, dict) else each for each in listed]
    said = dict.fromkeys(each for each in (annotation.get("multiple_choice_answer"), *texts_of) if isinstance(each, str))
    return {**record, "answers": list(said)} if said else record


def _picture(image_id: object, subset: str | None) -> str:
    """The picture's file: a text as it is, a number as COCO names it. Raises InputError where that needs `data_subtype`."""
    if isinstance(image_id, str) and image_id:
        return image_id
    if isinstance(image_id, bool) or not isinstance(image_id, int):
        raise InputError("the question names no picture (`image_id`)")
    if subset is None:
        raise InputError("`image_id` is a number, and no `data_subtype` before the list says of which pictures of COCO")
    return f"COCO_{subset.replace('test-dev', 'test')}_{image_id:012d}.jpg"
