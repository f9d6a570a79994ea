"""Questions on pictures, from the files this field uses, as Examples.

A file holds records (records.py says which) as JSON Lines, as JSON lists, in any mixture of them, or in another layout
(layouts.py). Several files, read in order, are one data set. Knows nothing of benchmarks, whose official files their adapters
read. Files are streamed: memory does not grow with them, save for one digest a record. `RecordFiles` reads single records
again, by the places that `read_records` gave.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from cos_core.data import arrow_files, vqa
from cos_core.data.layouts import ANNOTATIONS, ARROW, DataFile, Layout, Reading, is_seekable, layout_of
from cos_core.data.records import IdRegistry, Known, RecordSource, check_kind, examples_of
from cos_core.errors import CosError, InputError
from cos_core.files.data_files import columns_of, with_columns
from cos_core.files.jsonl import OnProblem, Place, Problem, decode, open_input, report
from cos_core.interfaces import Reporter
from cos_core.options import Files
from cos_core.types import Example

__all__ = [
    "Files",
    "OnProblem",
    "Problem",
    "ProblemLogger",
    "RecordFiles",
    "RecordPlace",
    "Snapshot",
    "by_image",
    "paths_of",
    "read_examples",
    "read_records",
    "spoken",
    "tell",
]

_SHOWN = 5
"""How many problems of a data set are reported one by one."""


def paths_of(data: Files) -> tuple[Path, ...]:
    """The files of a data set, in order."""
    return data if isinstance(data, tuple) else (Path(data),)


def spoken(data: Files) -> str:
    """The files of a data set, for a sentence."""
    first, *more = paths_of(data)
    return f"{first} and {len(more)} more" if len(more) > 1 else " and ".join(map(str, (first, *more)))


def read_examples(
    data: Files,
    *,
    columns: str | None = None,
    text_only: Literal["keep", "skip"] = "skip",
    on_problem: OnProblem | None = None,
    on_skip: Callable[[Problem], None] | None = None,
) -> Iterator[Example]:
    """The examples of a file, or of several, in their order. `columns`: which keys are read as what (data_files.columns_of).

    A conversation with k questions gives k examples `<id>#q<turn>`, turn from 0, with `sample`, `turn` and `index`;
    its optional list `meta`, one object a question, gives the other fields and the slices (types.split_meta). `<image>` marks
    are taken out of questions, as LLaVA's preprocessing does. An id used again
    with other content becomes `<id>~<8 hexadecimal digits of its content>`, and keeps the file's own as `record_id`;
    with equal content it is dropped as a Problem.

    What cannot be used goes to `on_problem` with its line and the rest goes on; without `on_problem` the first raises
    InputError. A conversation that does not alternate from human to gpt is dropped whole; an empty or non-text turn costs its
    pair, and so does an answer with an image mark; a last question without an answer costs itself. Dropped whole is a sample
    that has an image mark and names no picture, or names several. Text-only samples left out by `text_only="skip"` are no
    problem: each goes to `on_skip` for counting.
    """
    if text_only not in ("keep", "skip"):
        raise InputError(f"text_only is 'keep' or 'skip', got {text_only!r}")
    for record, examples in read_records(data, on_problem, columns):
        for example in examples:
            if example.image is not None or text_only == "keep":
                yield example
            elif on_skip is not None:
                on_skip(Problem(paths_of(data)[record.file], record.place.line, example.id, "no image"))


@dataclass(frozen=True, slots=True)
class RecordPlace:
    """One record of a data set: its place (the row counts over all files), whether its id got an ending because another record
    had the id before, and the number of its file."""

    place: Place
    renamed: bool
    file: int = 0


Keep = Callable[[Mapping[str, Any]], tuple[int, int]]
"""Writes a record down; returns (offset, length) of it as JSON."""


def read_records(
    data: Files,
    on_problem: OnProblem | None = None,
    columns: str | None = None,
    keep: Keep | None = None,
    pictures: arrow_files.Pictures | None = None,
) -> Iterator[tuple[RecordPlace, list[Example]]]:
    """`read_examples(text_only="keep")`, record by record; a record without any example is passed over.

    `keep` is given each record that `RecordFiles` cannot read again at its place, and says where it is kept. `pictures` takes
    those that stand in a table themselves; without it their file is refused. Raises InputError for a file that holds no records
    at all, but an archive or text in another encoding.
    """
    ids, wanted = IdRegistry(), columns_of(columns)
    layouts = [layout_of(path) for path in paths_of(data)]
    reading, row = Reading(on_problem, _answers(paths_of(data), layouts, on_problem)), 0
    for number, path in enumerate(paths_of(data)):
        records, file = DataFile(path, row, reading, layouts[number]), str(path)
        kept = keep is not None and not _stays(path, columns)
        for place, content in records:
            source = RecordSource(path, place.line, place.row, on_problem, file)
            if place.row == row and records.layout is not None:
                _check_head(path, records.layout, content, wanted)
            try:
                record = with_columns(content, wanted)
            except InputError as error:
                source.problem(str(error))
                continue
            if records.layout is ARROW:
                try:
                    record = arrow_files.with_paths(record, pictures or arrow_files.refuse_pictures(path))
                except arrow_files.UnusablePictureError as error:
                    source.problem(str(error))
                    continue
            if examples := examples_of(record, source, ids):
                if kept and keep is not None:
                    place = Place(place.line, place.row, *keep(record))
                yield RecordPlace(place, ids.renamed, number), examples
        row = records.row
    if reading.answers is not None and (left := reading.answers.left()):
        report(Problem(reading.answers.paths[0], None, None, f"{left} answers belong to no question of the data"), on_problem)


def _answers(paths: Sequence[Path], layouts: Sequence[Layout | None], on_problem: OnProblem | None) -> vqa.Answers | None:
    """The answers of VQA's annotation files. Raises InputError where no file has their questions."""
    answers = [path for path, layout in zip(paths, layouts, strict=True) if layout is ANNOTATIONS]
    if not answers:
        return None
    if len(answers) == len(paths):
        raise InputError(
            f"{answers[0]} holds the answers of VQA questions; give the file of the questions, too: --data ... --data ..."
        )
    return vqa.Answers(answers, on_problem)


def _check_head(path: Path, layout: Layout, record: dict[str, Any], columns: Mapping[str, str]) -> None:
    """Raises InputError for a table that lacks a column, which all of its rows would."""
    try:
        check_kind(with_columns(record, columns))
    except InputError as error:
        raise InputError(f"{path}, read as a {layout.name}: {error}") from None


def _stays(path: Path, columns: str | None) -> bool:
    """Whether the records of a file are read again where they stand in it."""
    return not columns and is_seekable(path)


class Snapshot:
    """A data set as it was when this was made, by each file's size and time of last change."""

    def __init__(self, data: Files, stamps: Sequence[Stamp] | None = None) -> None:
        """`stamps`: as they were before. Raises InputError when a file cannot be read."""
        self.data = data
        self.stamps = tuple(map(stamp, paths_of(data))) if stamps is None else tuple(stamps)

    def check(self) -> None:
        """Raises CosError when a file is gone, or is not what it was: the records read would not be of one data set."""
        for path, before in zip(paths_of(self.data), self.stamps, strict=True):
            try:
                now = stamp(path)
            except InputError as error:
                raise CosError(f"{error}; it was there when it was first read: leave it as it is and run again") from None
            if now != before:
                raise _changed(path)


def _changed(path: Path) -> CosError:
    return CosError(f"{path} has changed since it was first read; leave it as it is and run again")


class RecordFiles:
    """A data set's files, open for reading single records again. Threads may share them, and processes after a fork."""

    def __init__(self, data: Files, stamps: Sequence[Stamp], kept: Path | None = None, columns: str | None = None) -> None:
        """`kept`: the file that holds what `read_records` gave to `keep`; `columns` as there.

        Raises InputError when a file cannot be read, CosError when it is not what it was at the time of `stamps`.
        """
        self.paths = paths_of(data)
        self._stamps = tuple(stamps)
        self._files = [open_input(path) for path in self.paths]
        self._kept = open_input(kept) if kept is not None else None
        stay = [kept is None or _stays(path, columns) for path in self.paths]
        self._records: list[Any] = [file if each else self._kept for file, each in zip(self._files, stay, strict=True)]
        for number in range(len(self.paths)):
            self._check(number)

    def examples(self, record: RecordPlace) -> list[Example]:
        """What `read_records` gave for a record.

        Raises CosError when the file is not what it was when it was opened, or when no such record stands there. That is no
        InputError: the sample is not at fault, and no other sample may replace it.
        """
        place, path = record.place, self.paths[record.file]
        try:
            content = os.pread(self._records[record.file].fileno(), place.length, place.offset)
            self._check(record.file)
        except OSError as error:
            raise CosError(f"{path} cannot be read any more: {error.strerror}") from None
        source = RecordSource(path, place.line, place.row, lambda _: None, str(path))
        try:
            value = decode(content)
        except ValueError:
            value = None
        examples = examples_of(value, source, Known(record.renamed)) if isinstance(value, dict) else []
        if not examples:
            raise CosError(f"{path}:{place.line}: the sample that stood here cannot be read any more; run again")
        return examples

    def _check(self, number: int) -> None:
        if _stamp(os.fstat(self._files[number].fileno())) != self._stamps[number]:
            raise _changed(self.paths[number])

    def close(self) -> None:
        for file in (*self._files, self._kept):
            if file is not None:
                file.close()


Stamp = tuple[int, int]
"""(size in bytes, time of the last change in nanoseconds)."""


def stamp(path: Path) -> Stamp:
    """(size in bytes, time of the last change in nanoseconds) of a file, by which a change of it is noticed.

    Raises InputError when it cannot be read.
    """
    with open_input(path) as file:
        return _stamp(os.fstat(file.fileno()))


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns


def by_image(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Consecutive examples on one image as lists, order kept; text-only examples are grouped by their sample."""
    for _, group in groupby(examples, key=lambda e: (e.image, None if e.image is not None else e.sample or e.id)):
        yield list(group)


@dataclass(slots=True)
class ProblemLogger:
    """Counts the problems of a data set and warns of the first few; an OnProblem callback."""

    data: Files
    reporter: Reporter
    count: int = 0

    def __call__(self, problem: Problem) -> None:
        self.count += 1
        if self.count <= _SHOWN:
            self.reporter.warn(str(problem))

    def rest(self, where: str | None = None) -> None:
        """Warns how many more there were. `where`: where all are listed, as a clause."""
        if self.count > _SHOWN:
            self.reporter.warn(f"{self.count - _SHOWN} more problems in {spoken(self.data)}" + (f"; {where}" if where else ""))


def tell(data: Files, problems: Sequence[Problem], text_only: int, reporter: Reporter, where: str | None = None) -> None:
    """Reports what of a data set cannot be used: problems as ProblemLogger does, samples without a picture as a number.

    `where`: where all problems are named, as a clause.
    """
    logger = ProblemLogger(data, reporter)
    for problem in problems:
        logger(problem)
    logger.rest(where)
    if text_only:
        reporter.note(f"{text_only} samples without a picture are skipped")
