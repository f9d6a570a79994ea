"""Recorded answers by the million in little memory: the offset of each in its file, and the answer itself on access.

A file is read once from end to end; later a record is read again at its place, which must still hold it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from cos_core.errors import InputError
from cos_core.files import jsonl
from cos_core.files.jsonl import OnProblem, Problem
from cos_core.geometry import Box
from cos_core.types import BoxStatus, Prediction, Sample

UNSAID = "unknown"
"""The profile and policy of answers whose format has none (LLaVA's)."""


class _SampleRow(msgspec.Struct, gc=False):
    """One of a line's `samples`."""

    answer: str | None
    box: tuple[float, float, float, float] | None = None
    box_text: str | None = None
    box_status: BoxStatus = "skipped"
    tokens: dict[str, int] = {}
    shown: str | None = None


class _Row(msgspec.Struct, gc=False):
    """A line in either format, as it is nearly always written; whatever else is read by way of a dictionary."""

    example_id: str | msgspec.UnsetType = msgspec.UNSET
    answer: str | msgspec.UnsetType | None = msgspec.UNSET
    box: tuple[float, float, float, float] | None = None
    box_text: str | None = None
    box_status: str = "skipped"
    policy: str = "none"
    profile: str = "paper"
    question: str | None = None
    image: str | None = None
    tokens: dict[str, int] = {}
    seconds: int | float = 0.0
    fingerprint: str = ""
    error: str | None = None
    transient: bool = False
    shown: str | None = None
    plain: str | None = None
    margin: float | int | None = None
    gate: Literal["open", "closed"] | None = None
    samples: tuple[_SampleRow, ...] = ()
    question_id: str | int | msgspec.UnsetType = msgspec.UNSET
    text: str | msgspec.UnsetType = msgspec.UNSET
    prompt: str | None = None


_quick: Callable[[bytes], _Row] = msgspec.json.Decoder(_Row).decode


def prediction(record: Mapping[str, Any]) -> Prediction:
    """A record in our format or LLaVA's (`question_id`, `text`, `prompt`; SEED-Bench's upload has `prediction`).

    Raises InputError for any other.
    """
    if "example_id" in record:
        return Prediction.from_json(record)
    text = record.get("text", record.get("prediction"))
    if "question_id" not in record or not isinstance(text, str):
        raise InputError("a prediction has example_id and answer, or question_id and text (LLaVA's answers format)")
    prompt = record.get("prompt")
    question = prompt if isinstance(prompt, str) else None
    return Prediction(str(record["question_id"]), text, policy=UNSAID, profile=UNSAID, question=question)


def _quick_prediction(line: bytes) -> Prediction | None:
    """The prediction of a well-formed line; None for one that needs the slow parser."""
    try:
        row = _quick(line)
        if type(row.example_id) is str and row.answer is not msgspec.UNSET:
            box = None if row.box is None else Box(*row.box)
            details = (row.box_text, row.box_status, row.policy, row.profile, row.question, row.image, row.tokens, row.seconds)
            more = (row.transient, row.shown, row.plain, row.margin, row.gate, _samples(row))
            return Prediction(row.example_id, row.answer, box, *details, row.fingerprint, row.error, *more)  # type: ignore[arg-type]
    except (msgspec.MsgspecError, ValueError, RecursionError, InputError):
        return None
    if row.example_id is msgspec.UNSET and row.question_id is not msgspec.UNSET and type(row.text) is str:
        return Prediction(str(row.question_id), row.text, policy=UNSAID, profile=UNSAID, question=row.prompt)
    return None


def _samples(row: _Row) -> tuple[Sample, ...]:
    """Raises InputError for a box that is none."""
    return tuple(
        [
            Sample(s.answer, None if s.box is None else Box(*s.box), s.box_text, s.box_status, s.tokens, s.shown)
            for s in row.samples
        ]
    )


def read(path: Path, on_problem: OnProblem | None = None, ours: bool = False) -> Iterator[tuple[int, int, Prediction]]:
    """(line, offset, prediction) of each line; one without goes to `on_problem`, else raises InputError.

    `ours`: LLaVA's format is a problem, too.
    """
    for number, start, _, line in jsonl.raw_lines(path, on_problem):
        parsed = _quick_prediction(line)
        if parsed is None or (ours and parsed.profile == UNSAID):
            record = jsonl.object_of(path, number, line, on_problem)
            if record is None:
                continue
            try:
                parsed = Prediction.from_json(record) if ours else prediction(record)
            except InputError as error:
                jsonl.report(Problem(path, number, None, str(error)), on_problem)
                continue
        yield number, start, parsed


class Recorded(Sequence[Prediction]):
    """The predictions of a file: `walk` reads them in order; after that each is read by its row.

    `unreadable`: the lines without a prediction, complete after `walk`; `named`: the file that messages name, where the
    predictions were made of another one. Raises InputError when a file changes while it is read.
    """

    def __init__(self, path: Path, on_problem: OnProblem | None = None, ours: bool = False) -> None:
        self.path = self.named = path
        self.unreadable: list[Problem] = []
        self._ours = ours
        self._on_problem = on_problem or self.unreadable.append
        self._starts = array("q")
        self._file = jsonl.open_input(path)
        self._size = self._file.seek(0, 2)
        self._last: tuple[int, Prediction] | None = None

    def walk(self) -> Iterator[tuple[int, Prediction]]:
        """(line, prediction) of each, in order; the row of each is `len(self) - 1` at that moment."""
        self._starts = array("q")
        for line, start, parsed in read(self.path, self._on_problem, self._ours):
            self._starts.append(start)
            yield line, parsed

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[place] for place in range(*row.indices(len(self)))]
        if self._last is not None and self._last[0] == row:
            return self._last[1]
        try:
            self._file.seek(self._starts[row])
            line = self._file.readline()
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}") from None
        if self._starts[row] == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        parsed = _quick_prediction(line)
        if parsed is None:
            try:
                parsed = prediction(jsonl.decode(line))
            except (ValueError, InputError, TypeError):
                raise InputError(f"{self.path} has changed while it was read") from None
        self._last = (row, parsed)
        return parsed
