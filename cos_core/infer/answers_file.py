"""The file of answers of a run: what a former run left in it, which of that counts, and what stands beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from cos_core.data.datasets import Problem
from cos_core.errors import InputError
from cos_core.files import failures, manifest
from cos_core.files.durable import atomic_file, atomic_write
from cos_core.files.durable_writer import DurableWriter
from cos_core.files.jsonl import decode, placed_lines
from cos_core.infer.questions import problems_file
from cos_core.infer.steps import Setting
from cos_core.interfaces import Reporter
from cos_core.types import BOX_STATUSES, UNUSABLE_BOXES, Example, Prediction

_NAMED = 3


def was_skipped(prediction: Prediction) -> bool:
    """Whether it was left unanswered because its box was unusable and the settings ask for that."""
    return prediction.error is not None and prediction.box is None and prediction.box_status in UNUSABLE_BOXES


@dataclass(frozen=True, slots=True)
class AnswerLine:
    """What counts of a prediction in the file, and its place: offset and length in bytes. There may be a million of them.

    `answer` is a hash.
    """

    offset: int
    length: int
    example_id: str
    box_status: str
    error: str | None
    skipped: bool
    transient: bool
    answer: int

    @classmethod
    def of(cls, prediction: Prediction, offset: int = 0, length: int = 0) -> AnswerLine:
        return cls(
            offset,
            length,
            prediction.example_id,
            prediction.box_status,
            prediction.error,
            was_skipped(prediction),
            prediction.transient,
            hash(prediction.answer),
        )

    def is_retried(self, everything: bool) -> bool:
        """Whether the question is asked again; `everything`: also after failures that are final."""
        return self.error is not None and not self.skipped and (everything or self.transient)


@dataclass(slots=True)
class AnswerCounts:
    """Counts over everything that the file holds; `failed` and `skipped` include records of the data that were not asked."""

    ok: int = 0
    failed: int = 0
    skipped: int = 0
    boxes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(BOX_STATUSES, 0))
    reasons: failures.FailureReasons = field(default_factory=failures.FailureReasons)

    def add(self, line: AnswerLine) -> None:
        self.boxes[line.box_status] += 1
        if line.error is None:
            self.ok += 1
        elif line.skipped:
            self.skipped += 1
        else:
            self.failed += 1
            self.reasons.add(line.error)

    def exceeds(self, max_failures: int | None) -> bool:
        return max_failures is not None and self.failed > max_failures

    def to_json(self) -> dict[str, int]:
        """For a manifest."""
        boxes = {f"box_{status}": number for status, number in self.boxes.items()}
        return {"ok": self.ok, "failed": self.failed, "skipped": self.skipped, **boxes}


@dataclass(slots=True)
class FormerAnswers:
    """What a former run left in the file, line by line; `rank`: the place of each question in the data."""

    path: Path
    lines: list[AnswerLine]
    rank: Mapping[str, int]
    conflicting: list[str] = field(default_factory=list)
    """Ids of questions that stand there twice, with different answers."""
    asked_again: int = 0

    @classmethod
    def read(cls, path: Path, setting: Setting, examples: Sequence[Example]) -> FormerAnswers:
        """Raises InputError when the file was written with other settings or for another question of an id."""
        questions = {example.id: example.question for example in examples}
        former = cls(path, [], {example.id: place for place, example in enumerate(examples)})
        for line, prediction in _stored(path):
            if prediction.fingerprint != setting.fingerprint:
                raise InputError(
                    f"{path} holds predictions made with other settings ({_differences(path, prediction, setting)}); "
                    f"give another output file, or remove it"
                )
            if questions.get(prediction.example_id, prediction.question) != prediction.question:
                raise InputError(f"{path} holds an answer to another question with the id {prediction.example_id!r}")
            former.lines.append(line)
        return former

    def settle(self, writer: DurableWriter, counts: AnswerCounts, *, retry_all: bool) -> set[str]:
        """Removes the failures that are asked again from the file, counts the rest, and returns the ids of the answered.

        Of a question that stands there twice, the first answer counts, before any failure.
        """
        best: dict[str, AnswerLine] = {}
        for line in self.lines:
            known = best.get(line.example_id)
            if known is None or (known.error is not None and line.error is None):
                best[line.example_id] = line
            if known is not None and known.error is None and line.error is None and known.answer != line.answer:
                self.conflicting.append(line.example_id)
        final = {name: line for name, line in best.items() if not line.is_retried(retry_all)}
        self.asked_again = len(best) - len(final)
        for line in final.values():
            counts.add(line)
        remaining = [line for line in self.lines if not line.is_retried(retry_all)]
        if len(remaining) < len(self.lines):
            self.lines = remaining
            writer.keep((line.offset, line.length) for line in remaining)
        return set(final)

    def report(self, reporter: Reporter, answered: int, total: int) -> None:
        """Notes for the user; `answered` of `total` questions need no asking."""
        if answered and answered < total:
            reporter.note(f"{answered} of {total} questions are answered already")
        if self.asked_again:
            reporter.note(f"{self.asked_again} questions that failed before are asked again")
        if self.conflicting:
            names = ", ".join(map(repr, self.conflicting[:_NAMED])) + (", ..." if len(self.conflicting) > _NAMED else "")
            reporter.warn(
                f"{self.path} holds {len(self.conflicting)} questions twice with different answers: {names}; the first counts"
            )
        final = sum(line.error is not None and not line.skipped for line in self.lines)
        if final:
            reporter.note(f"{final} failures stay as they are; --retry-failed asks them again")

    def restore_order(self, writer: DurableWriter) -> None:
        """Puts the finished file into the order of the data, where lines were asked again; others keep their places."""
        lines = [line for line, _ in _stored(self.path)]
        known = [line for line in lines if line.example_id in self.rank]
        if all(self.rank[a.example_id] <= self.rank[b.example_id] for a, b in pairwise(known)):
            return
        ordered = iter(sorted(known, key=lambda line: self.rank[line.example_id]))
        places = (next(ordered) if line.example_id in self.rank else line for line in lines)
        writer.keep((line.offset, line.length) for line in places)


def _stored(path: Path) -> Iterator[tuple[AnswerLine, Prediction]]:
    for place, record in placed_lines(path):
        try:
            prediction = Prediction.from_json(record)
        except InputError as error:
            raise InputError(f"{path}:{place.line}: not a prediction: {error}; give another output file") from None
        yield AnswerLine.of(prediction, place.offset, place.length), prediction


def _differences(path: Path, prediction: Prediction, setting: Setting) -> str:
    """In what the settings of an answer differ from those of now, as far as the files beside the answers say it."""
    marks = f"{prediction.fingerprint or 'no fingerprint'}, now {setting.fingerprint}"
    before = manifest.beside(path, prediction.fingerprint)
    if before is None:
        settings = _former_settings(path, prediction.fingerprint)
        return "; ".join(manifest.differences(settings, setting.settings)) or marks if settings else marks
    if "settings" not in before.results:
        return f"{marks}; cos {before.versions.get('cos', '')} wrote it, and did not record all of them"
    return "; ".join(manifest.differences(before.results["settings"], setting.settings)) or marks


# --- what stands beside it ---


def write_problems(out: Path, problems: Sequence[Problem]) -> None:
    """Names each record of the data that cannot be used, a line each; without any there is no such file."""
    path = problems_file(out)
    if not problems:
        path.unlink(missing_ok=True)
        return
    with atomic_file(path) as file:
        for one in problems:
            row = {"path": str(one.path), "line": one.line, "id": one.example_id, "reason": one.reason}
            file.write(manifest.canonical(row) + b"\n")


def settings_file(out: Path) -> Path:
    """Where the settings of a run stand until its manifest does, so that they are known of a run that was killed, too."""
    return out.with_name(f"{out.name}.settings.json")


def write_settings(out: Path, setting: Setting) -> None:
    record = {"fingerprint": setting.fingerprint, "settings": setting.settings}
    atomic_write(settings_file(out), manifest.canonical(record) + b"\n")


def _former_settings(out: Path, fingerprint: str) -> Mapping[str, Any]:
    """The settings behind a fingerprint; none where the file is of another run or cannot be read."""
    try:
        record = decode(settings_file(out).read_bytes())
        return dict(record["settings"]) if record["fingerprint"] == fingerprint else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
