"""Questions on pictures, from the files this field uses, as Examples.

Three record layouts, told apart record by record: LLaVA conversations (`{id, image?, conversations: [{from, value}]}`), LLaVA
question files (`{question_id, image?, text, category?}`) and our own Examples (`Example.to_json`), each as JSON Lines or as one
JSON list. Knows nothing of benchmarks, whose official files their adapters read. Files are streamed: memory does not grow with
them, save for one digest a record. `RecordFile` reads single records again, by the places that `read_records` gave.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from cos_core.bigjson import placed_elements
from cos_core.errors import CosError, InputError
from cos_core.geometry import Box
from cos_core.interfaces import Reporter
from cos_core.jsonl import OnProblem, Place, Problem, decode, open_input, placed_lines, report
from cos_core.types import Example

__all__ = ["OnProblem", "Problem", "Record", "RecordFile", "Teller", "by_image", "read_examples", "read_records", "tell"]

IMAGE_MARK = "<image>"
_SHOWN = 5
"""How many problems of a file are shown one by one."""
_SPEAKERS = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}


def read_examples(
    path: Path,
    *,
    text_only: Literal["keep", "skip"] = "skip",
    on_problem: OnProblem | None = None,
    on_skip: Callable[[Problem], None] | None = None,
) -> Iterator[Example]:
    """The examples of a file, in its order.

    A conversation with k questions gives k examples `<id>#q<turn>`, turn from 0, with `meta` `{"sample": id, "turn": turn,
    "index": place of the sample in the file}`; its optional `meta` list, one object a question, is merged in (`gold`, a box in
    frame "image"; `kind`; ...). `<image>` marks are taken out of the text, as LLaVA's preprocessing does. An id used again with
    other content becomes `<id>~<8 hexadecimal digits of its content>`, and `meta` keeps the file's own as `record_id`; with
    equal content it is dropped as a Problem.

    What cannot be used goes to `on_problem` with its line and the rest goes on; without `on_problem` the first raises
    InputError. A conversation that does not alternate from human to gpt is dropped whole; an empty or non-text turn costs its
    pair. Text-only samples left out by `text_only="skip"` are no problem: each goes to `on_skip` for counting.
    """
    path = Path(path)
    if text_only not in ("keep", "skip"):
        raise InputError(f"text_only is 'keep' or 'skip', got {text_only!r}")
    for record, examples in read_records(path, on_problem):
        for example in examples:
            if example.image is not None or text_only == "keep":
                yield example
            elif on_skip is not None:
                on_skip(Problem(path, record.place.line, example.id, "no image"))


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file: its place, and whether its id got an ending because another record had the id before."""

    place: Place
    renamed: bool


def read_records(path: Path, on_problem: OnProblem | None = None) -> Iterator[tuple[Record, list[Example]]]:
    """`read_examples(text_only="keep")`, record by record; a record without any example is passed over."""
    ids = _Ids()
    for place, content in _records(path, on_problem):
        examples = _examples(content, _Source(path, place.line, place.row, on_problem), ids)
        if examples:
            yield Record(place, ids.renamed), examples


class RecordFile:
    """A data file, open for reading single records again. Threads may share it, and processes after a fork.

    `stamp`: (size in bytes, time of the last change in nanoseconds) of the file that is open here.
    """

    def __init__(self, path: Path) -> None:
        """Raises InputError when the file cannot be read."""
        self.path = Path(path)
        self._file = open_input(self.path)
        self.stamp = _stamp(os.fstat(self._file.fileno()))

    def examples(self, record: Record) -> list[Example]:
        """What `read_records` gave for a record.

        Raises CosError when the file is not what it was when it was opened, or when no such record stands there. That is no
        InputError: it says nothing about a sample, and no other sample can take its place.
        """
        place = record.place
        try:
            content = os.pread(self._file.fileno(), place.length, place.offset)
            now = _stamp(os.fstat(self._file.fileno()))
        except OSError as error:
            raise CosError(f"{self.path} cannot be read any more: {error.strerror}") from None
        if now != self.stamp:
            raise CosError(f"{self.path} was changed while it was in use; leave it as it is and run again")
        source = _Source(self.path, place.line, place.row, lambda _: None)
        try:
            value = decode(content)
        except ValueError:
            value = None
        examples = _examples(value, source, _Known(record.renamed)) if isinstance(value, dict) else []
        if not examples:
            raise CosError(f"{self.path}:{place.line}: the sample that stood here cannot be read any more; run again")
        return examples

    def close(self) -> None:
        self._file.close()


def stamp(path: Path) -> tuple[int, int]:
    """(size in bytes, time of the last change in nanoseconds) of a file, by which a change of it is noticed.

    Raises InputError when it cannot be read.
    """
    with open_input(path) as file:
        return _stamp(os.fstat(file.fileno()))


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def by_image(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Consecutive examples on one image as lists, order kept; text-only examples are grouped by their sample."""
    for _, group in groupby(examples, key=lambda e: (e.image, None if e.image is not None else e.meta.get("sample", e.id))):
        yield list(group)


@dataclass(slots=True)
class Teller:
    """Takes the problems of a file (an OnProblem): tells a person the first few as they come, and counts them."""

    path: Path
    reporter: Reporter
    count: int = 0

    def __call__(self, problem: Problem) -> None:
        self.count += 1
        if self.count <= _SHOWN:
            self.reporter.warn(str(problem))

    def rest(self) -> None:
        """Tells how many more there were."""
        if self.count > _SHOWN:
            self.reporter.warn(f"{self.count - _SHOWN} more problems in {self.path}")


def tell(path: Path, problems: Sequence[Problem], text_only: int, reporter: Reporter) -> None:
    """Tells a person what of a data file cannot be used: problems as a Teller does, samples without a picture as a number."""
    teller = Teller(path, reporter)
    for problem in problems:
        teller(problem)
    teller.rest()
    if text_only:
        reporter.note(f"{text_only} samples without a picture are skipped")


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a record came from, and who hears of its problems."""

    path: Path
    line: int
    index: int
    on_problem: OnProblem | None
    example_id: str | None = None

    def problem(self, reason: str) -> None:
        report(Problem(self.path, self.line, self.example_id, reason), self.on_problem)


@dataclass(slots=True)
class _Ids:
    """The ids given out so far, and a digest of each record, to tell repeats from namesakes.

    `renamed`: whether the last record got an ending to its id.
    """

    seen: set[str] = field(default_factory=set)
    digests: set[bytes] = field(default_factory=set)
    renamed: bool = False

    def unique(self, name: str, record: Mapping[str, Any]) -> str | None:
        """`name`, or `name~digest` when other content has it already; None when this very record was there before."""
        digest = _digest(record)
        if digest in self.digests:
            return None
        self.digests.add(digest)
        self.renamed = name in self.seen
        if self.renamed:
            name = _renamed(name, digest)
        self.seen.add(name)
        return name


@dataclass(frozen=True, slots=True)
class _Known:
    """The id of one record that was read before."""

    renamed: bool

    def unique(self, name: str, record: Mapping[str, Any]) -> str | None:
        return _renamed(name, _digest(record)) if self.renamed else name


def _digest(record: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).digest()[:16]


def _renamed(name: str, digest: bytes) -> str:
    return f"{name}~{digest.hex()[:8]}"


def _records(path: Path, on_problem: OnProblem | None) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Each record of a JSON list or a JSON Lines file."""
    with open_input(path) as file:
        start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        report(Problem(path, None, None, "the file is empty"), on_problem)
    elif start.startswith(b"["):
        yield from placed_elements(path, on_problem)
    else:
        yield from placed_lines(path, on_problem)


def _examples(record: dict[str, Any], source: _Source, ids: _Ids | _Known) -> list[Example]:
    try:
        if "conversations" in record:
            name, read = _name(record, "id"), _conversation
        elif "question_id" in record and "text" in record:
            name, read = _name(record, "question_id"), _question
        elif "id" in record and "question" in record:
            name, read = _name(record, "id"), _own
        else:
            raise InputError("neither a conversation, nor a question (question_id, text), nor an example (id, question)")
        source = replace(source, example_id=name)
        unique = ids.unique(name, record)
        if unique is None:
            raise InputError("the same sample was there before; dropped")
        return read(record, unique, source)
    except InputError as error:
        source.problem(str(error))
        return []


def _conversation(record: dict[str, Any], name: str, source: _Source) -> list[Example]:
    turns = record["conversations"]
    if not isinstance(turns, list) or not turns:
        raise InputError("`conversations` must be a list of turns")
    for place, turn in enumerate(turns):
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            raise InputError(f"turn {place} lacks `from` or `value`")
        if _SPEAKERS.get(str(turn["from"])) != place % 2:
            expected = ("human", "gpt")[place % 2]
            raise InputError(f"turn {place} is from {str(turn['from'])[:40]!r}, expected {expected!r}")
    if len(turns) % 2:
        raise InputError(f"an odd number of turns ({len(turns)}): the last question has no answer")
    metas = _metas(record.get("meta"), len(turns) // 2)
    image, dataset = _image(record), _dataset(record, source)
    renamed = {"record_id": record["id"]} if str(record["id"]) != name else {}
    found = []
    for k, meta in enumerate(metas):
        try:
            question = _text(turns[2 * k]["value"], f"turn {2 * k}")
            answer = _text(turns[2 * k + 1]["value"], f"turn {2 * k + 1}")
        except InputError as error:
            source.problem(f"{error}; this question is left out")
            continue
        place_meta = {"sample": name, "turn": k, "index": source.index, **renamed, **meta}
        found.append(Example(f"{name}#q{k}", dataset, image, question, (answer,), meta=place_meta, line=source.line))
    return found


def _question(record: dict[str, Any], name: str, source: _Source) -> list[Example]:
    meta = {"sample": name, "question_id": record["question_id"], "index": source.index}
    if "category" in record:
        meta["category"] = record["category"]
    question = _text(record["text"], "`text`")
    return [Example(name, _dataset(record, source), _image(record), question, meta=meta, line=source.line)]


def _own(record: dict[str, Any], name: str, source: _Source) -> list[Example]:
    answers, choices = (_texts(record, key) for key in ("answers", "choices"))
    (meta,) = _metas([record.get("meta", {})], 1)
    question = _text(record["question"], "`question`")
    return [Example(name, _dataset(record, source), _image(record), question, answers, choices, meta, source.line)]


def _name(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError(f"`{key}` must be a text or a whole number" if key in record else f"the sample lacks `{key}`")
    _check_unicode(str(value), f"`{key}`")
    return str(value)


def _dataset(record: Mapping[str, Any], source: _Source) -> str:
    value = record.get("dataset")
    return value if isinstance(value, str) and value else source.path.stem


def _image(record: Mapping[str, Any]) -> str | None:
    image = record.get("image")
    if image is None:
        return None
    if not isinstance(image, str) or not image:
        raise InputError("`image` must be one path")
    _check_unicode(image, "`image`")
    return image


def _text(value: object, where: str) -> str:
    """The text of a turn without image marks. Raises InputError when it is no text or nothing is left of it."""
    if not isinstance(value, str):
        raise InputError(f"{where} is not a text")
    _check_unicode(value, where)
    if IMAGE_MARK in value:
        # Again and again: taking one mark out can join the pieces of another.
        while IMAGE_MARK in value:
            value = value.replace(IMAGE_MARK, "")
        value = value.strip()
    if not value.strip():
        raise InputError(f"{where} is empty")
    return value


def _texts(record: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = record.get(key) or ()
    if not isinstance(values, list | tuple):
        raise InputError(f"`{key}` must be a list of texts")
    return tuple(_text(value, f"`{key}`") for value in values)


def _metas(metas: object, count: int) -> list[dict[str, Any]]:
    """One checked object a question; no `meta` at all gives empty ones."""
    if metas is None:
        return [{} for _ in range(count)]
    if not isinstance(metas, list) or len(metas) != count:
        raise InputError(f"`meta` must be a list with one object a question ({count})")
    for meta in metas:
        if not isinstance(meta, dict):
            raise InputError("`meta` must hold objects")
        gold = meta.get("gold")
        if gold is not None and Box.from_json(gold).frame != "image":
            raise InputError("`gold` must be a box in frame 'image'")
    return [dict(meta) for meta in metas]


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where} holds half a Unicode character (a lone surrogate)") from None
