"""The samples of a run as memory-mapped arrays over the data files, one copy for all processes of a machine.

There is a row for each record (its place), each sample (its id and its examples) and each question (its region, whether it can
be used, the lengths of its texts). Texts and answers stay in the data files and are read again when a sample is used; the
records of tables and of packed files are kept beside the arrays for that. No memory of a process grows with the data.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cos_core.data.datasets import Files, RecordFiles, RecordPlace, Snapshot, Stamp, paths_of, read_records, spoken
from cos_core.data.released import ReleasedRegions, Square
from cos_core.errors import CosError, InputError
from cos_core.files.jsonl import Place, Problem, encode_line
from cos_core.geometry import Box
from cos_core.training.samples import Account, Annotations, Outline, Region, Rules, Sample, collect, key_of
from cos_core.training.skipped import SkipCounts, SkipFile, Skipped
from cos_core.types import Example

_RECORD = np.dtype(
    [
        *((name, "<i8") for name in ("first", "offset")),
        *((name, "<u4") for name in ("length", "line", "row")),
        ("renamed", "?"),
        ("file", "<u2"),
    ]
)
"""`first`: the number of the record's first example among all examples of the data; the rest as jsonl.Place and Record."""
_SAMPLE = np.dtype(
    [("example", "<i8"), ("question", "<i8"), ("id", "<i8"), ("count", "<u4"), ("id_bytes", "<u4"), ("image", "?")]
)
"""Numbers of the first example and of the first question, how many questions follow, where the id lies in the file of ids."""
_QUESTION = np.dtype(
    [
        *((name, "<f8") for name in ("a", "b", "c", "d")),
        *((name, "<u4") for name in ("question", "answer")),
        ("kind", "u1"),
        ("usable", "?"),
        ("fallback", "?"),
    ]
)
"""Four numbers of the region, which `kind` explains; lengths of question and answer in characters."""
_NO_REGION, _IN_IMAGE, _IN_SQUARE, _PIXELS = range(4)
"""Kinds of region: none; a Box by its corners, in frame "image" or "square"; a Square by top, left and side."""
_LOGS = ("skipped", "lacking", "shifted", "problems", "unusable")
_SUMMARY = "summary.json"
_KEPT = "kept.jsonl"
"""The records of data files that are no plain JSON."""
_ROWS = 16384


@dataclass(frozen=True, slots=True)
class SampleSet:
    """The samples of a run, and what was left out.

    `skipped`: questions that are left out. `region_questions`: how many questions should have a region; `lacking`: those of
    them that have none of their own; `shifted`: those whose released region names another row. `problems`: records of the data
    files that cannot be read, as the reader named them. `unusable`: entries of the released file `regions`, by their keys.
    `mixed`: some samples have a picture, some have none. `partial`: `Rules.limit` ended the reading before the end of the data.
    """

    files: tuple[Path, ...]
    samples: SampleTable
    skipped: SkipFile
    lacking: SkipFile
    shifted: SkipFile
    problems: SkipFile
    unusable: SkipFile
    region_questions: int
    mixed: bool
    partial: bool = False
    regions: Path | None = None

    def named_problems(self) -> Iterator[Problem]:
        """The records that cannot be read, as the reader of the data file named them."""
        for one in self.problems:
            yield Problem(self.where(one.file), one.line, one.id or None, one.reason)

    def where(self, file: str | None) -> Path:
        """The data file that is meant by the `file` of an example or of a question that is left out."""
        return Path(file) if file is not None else self.files[0]


class SampleTable(Sequence[Sample]):
    """The samples of a data set. Equal, sample by sample, to the list of what `collect` yields."""

    def __init__(self, folder: Path, data: Files, stamps: Sequence[Stamp], columns: str | None = None) -> None:
        """`folder`: as `build` filled it; `stamps`: those of the data files when they were read; `columns` as for `build`.

        Raises CosError when a data file was changed since, or cannot be read.
        """
        self._origin = folder, data, stamps, columns
        self._files = RecordFiles(data, stamps, folder / _KEPT, columns)
        self._records = _mapped(folder / "records", _RECORD)
        self._samples = _mapped(folder / "samples", _SAMPLE)
        self._questions = _mapped(folder / "questions", _QUESTION)
        self._ids = _mapped(folder / "ids", np.dtype("u1"))

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        """Sample `index`, its texts read from the data file. Raises CosError when that was changed."""
        example, question, start, count, size, _ = self._row(index)
        key = self._id(start, size)
        questions = self._examples(example, count)
        if key_of(questions[0]) != key:
            raise CosError(f"{spoken(self._origin[1])} does not hold the sample {key!r} where it stood; run again")
        rows = self._questions[question : question + count].tolist()
        return Sample(
            key,
            tuple(questions),
            tuple(_region(row[:4], row[6]) for row in rows),
            tuple(i for i, row in enumerate(rows) if row[7]),
            tuple(i for i, row in enumerate(rows) if row[8]),
        )

    def outline(self, index: int) -> Outline:
        """`self[index].outline`, without reading the data file."""
        _, question, start, count, size, image = self._row(index)
        rows = self._questions[question : question + count].tolist()
        return Outline(
            self._id(start, size),
            image,
            tuple(i for i, row in enumerate(rows) if row[7]),
            tuple(row[6] != _NO_REGION for row in rows),
            tuple(row[4:6] for row in rows),
        )

    def id(self, index: int) -> str:
        """`self[index].id`, without reading the data file."""
        _, _, start, _, size, _ = self._row(index)
        return self._id(start, size)

    def _row(self, index: int) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._samples[index].item()
        return row

    def _id(self, start: int, size: int) -> str:
        return self._ids[start : start + size].tobytes().decode()

    def _examples(self, first: int, count: int) -> list[Example]:
        """Examples `first` to `first + count - 1` of the data file; they may stand in several records."""
        number = bisect_right(self._records["first"], first) - 1
        skip = first - int(self._records[number]["first"])
        examples: list[Example] = []
        while len(examples) < skip + count:
            _, offset, length, line, row, renamed, file = self._records[number].item()
            examples += self._files.examples(RecordPlace(Place(line, row, offset, length), renamed, file))
            number += 1
        return examples[skip : skip + count]

    def __reduce__(self) -> tuple[Any, ...]:
        # A data loading process that is not forked maps the files anew.
        return SampleTable, self._origin


def _mapped(path: Path, row: np.dtype[Any]) -> np.ndarray:
    if not path.stat().st_size:
        return np.empty(0, row)
    # As a plain array: each look into a memmap would make another one.
    return np.asarray(np.memmap(path, row, mode="r"))


def _region(numbers: tuple[float, float, float, float], kind: int) -> Region | None:
    if kind == _NO_REGION:
        return None
    if kind == _PIXELS:
        return Square(*numbers[:3])
    return Box(*numbers, "image" if kind == _IN_IMAGE else "square")


def _numbers(region: Region | None) -> tuple[float, float, float, float, int]:
    if region is None:
        return 0.0, 0.0, 0.0, 0.0, _NO_REGION
    if isinstance(region, Square):
        return region.top, region.left, region.side, 0.0, _PIXELS
    return *region.corners, _IN_IMAGE if region.frame == "image" else _IN_SQUARE


def build(
    folder: Path,
    data: Files,
    rules: Rules,
    annotations: Annotations | ReleasedRegions | None,
    columns: str | None = None,
) -> None:
    """Fills `folder` with the samples of `data`, which is read once, from its beginning to its end or to `rules.limit`.

    `columns`: which keys are read as what (data_files.columns_of).

    Raises InputError when a data file or a region cannot be read or the disk is full, CosError when a file changes while it is
    read.
    """
    try:
        snapshot = Snapshot(data)
        with _Writer(folder) as writer:
            logs = writer.logs
            if isinstance(annotations, ReleasedRegions):
                for key, reason in annotations.bad.items():
                    logs["unusable"].append(Skipped(key, reason))
            account = Account(logs["skipped"], logs["lacking"], logs["shifted"])
            for example, sample in collect(writer.examples(data, columns), rules, annotations, account):
                writer.add(example, sample)
        snapshot.check()
        summary = {
            "data": [str(path) for path in paths_of(data)],
            "stamps": snapshot.stamps,
            "columns": columns,
            "regions": str(annotations.path) if isinstance(annotations, ReleasedRegions) else None,
            "region_questions": account.region_questions,
            "mixed": writer.mixed,
            "partial": account.partial,
            "logs": {name: asdict(log.reasons) for name, log in logs.items()},
        }
        (folder / _SUMMARY).write_text(json.dumps(summary))
    except OSError as error:
        raise InputError(
            f"the samples of {spoken(data)} cannot be put into {folder}: {error.strerror}; TMPDIR names another place"
        ) from None


def opened(folder: Path) -> SampleSet:
    """What `build` left in `folder`. Raises CosError when the data file was changed since."""
    summary = json.loads((folder / _SUMMARY).read_text())
    logs: dict[str, Any] = {name: SkipFile(folder / name, SkipCounts(**summary["logs"][name])) for name in _LOGS}
    files, regions = tuple(map(Path, summary["data"])), summary["regions"] and Path(summary["regions"])
    stamps = [(size, changed) for size, changed in summary["stamps"]]
    samples = SampleTable(folder, files, stamps, summary["columns"])
    facts = {name: summary[name] for name in ("region_questions", "mixed", "partial")}
    return SampleSet(files, samples, regions=regions, **facts, **logs)


class _Writer:
    """The files of a table while they are written."""

    def __init__(self, folder: Path) -> None:
        self._rows = {name: _Rows(folder / name, row) for name, row in _ROW_TYPES.items()}
        self._ids = (folder / "ids").open("wb")
        self._kept = (folder / _KEPT).open("wb")
        self._id_bytes = self._questions = self._examples = 0
        self._pictures: set[bool] = set()
        self.logs = {name: SkipFile(folder / name) for name in _LOGS}

    @property
    def mixed(self) -> bool:
        return len(self._pictures) == 2

    def examples(self, data: Files, columns: str | None) -> Iterator[Example]:
        """All examples of the data; each record is noted as it is passed."""
        problems = self.logs["problems"]

        def on_problem(problem: Problem) -> None:
            problems.append(Skipped(problem.example_id or "", problem.reason, line=problem.line, file=str(problem.path)))

        for record, examples in read_records(data, on_problem, columns, self._keep):
            place = record.place
            where = (place.offset, place.length, place.line, place.row, record.renamed, record.file)
            self._rows["records"].add((self._examples, *where))
            self._examples += len(examples)
            yield from examples

    def _keep(self, record: Mapping[str, Any]) -> tuple[int, int]:
        offset = self._kept.tell()
        return offset, self._kept.write(encode_line(record))

    def add(self, example: int, sample: Sample) -> None:
        key, image = sample.id.encode(), sample.image is not None
        self._rows["samples"].add((example, self._questions, self._id_bytes, len(sample.questions), len(key), image))
        self._ids.write(key)
        self._id_bytes += len(key)
        self._questions += len(sample.questions)
        self._pictures.add(image)
        for i, (region, letters) in enumerate(zip(sample.boxes, sample.outline.letters, strict=True)):
            *numbers, kind = _numbers(region)
            self._rows["questions"].add((*numbers, *letters, kind, i in sample.usable, i in sample.fallbacks))

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_error: object) -> None:
        for rows in self._rows.values():
            rows.close()
        self._ids.close()
        self._kept.close()
        for log in self.logs.values():
            log.close()


_ROW_TYPES = {"records": _RECORD, "samples": _SAMPLE, "questions": _QUESTION}


class _Rows:
    """One array, written some thousand rows at a time."""

    def __init__(self, path: Path, row: np.dtype[Any]) -> None:
        self._file, self._row = path.open("wb"), row
        self._waiting: list[tuple[Any, ...]] = []

    def add(self, row: tuple[Any, ...]) -> None:
        self._waiting.append(row)
        if len(self._waiting) == _ROWS:
            self._flush()

    def _flush(self) -> None:
        self._file.write(np.array(self._waiting, self._row).tobytes())
        self._waiting.clear()

    def close(self) -> None:
        self._flush()
        self._file.close()
