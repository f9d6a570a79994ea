"""The check of the training data before a model is loaded or a GPU is taken.

Records and the joining of regions are checked for every sample; pictures, tokens and labels for some or for all (`check =
"full"`), by the functions that training uses. A fault is a sample that training cannot use; a remark is about one that it can
use. Each finding names the file and line of its sample.
"""

from __future__ import annotations

import heapq
import os
import shutil
import tempfile
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from cos_core.data.released import Square
from cos_core.errors import InputError
from cos_core.files.durable import atomic_file
from cos_core.files.images import open_image
from cos_core.files.jsonl import encode_line
from cos_core.files.picture_files import Root, image_path
from cos_core.geometry import Box, SquarePad
from cos_core.interfaces import Reporter
from cos_core.training.dataset import Recipe, draw, encode_sample, limit, outside, place
from cos_core.training.sample_table import SampleSet, SampleTable
from cos_core.training.samples import OTHER_IMAGE, Sample

SAMPLE = 256
"""Samples whose pictures and tokens are checked when not all are."""
TOO_FEW = "too few regions"
OUTSIDE = "region outside the picture"
_NAMED = 3
_AT_ONCE = 1024
_SPOOL_BYTES = 2**20
_FRAME_BOXES = 20
_FRAME_ASPECT = 1.2


@dataclass(frozen=True, slots=True)
class DataFinding:
    """A fault or remark about a sample: place, id, reason. `kind` groups findings; `fault`: training cannot use the sample."""

    kind: str
    path: Path
    line: int | None
    id: str | None
    reason: str
    fault: bool = True

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line is not None else str(self.path)
        return f"{where}: {self.reason}" + (f" (id {self.id!r})" if self.id else "")

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "fault": self.fault,
            "path": str(self.path),
            "line": self.line,
            "id": self.id,
            "reason": self.reason,
        }


class Findings:
    """Findings, counted by kind; the first ones of each stay in memory, all are in a temporary file until they are written."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, list[DataFinding]] = defaultdict(list)
        self.faults = 0
        self.first_faults: list[DataFinding] = []
        self._all = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115 (closed with the object)

    def __len__(self) -> int:
        return self.counts.total()

    def add(self, finding: DataFinding) -> None:
        self.counts[finding.kind] += 1
        self.faults += finding.fault
        for few in (self.first[finding.kind], *([self.first_faults] if finding.fault else [])):
            if len(few) < _NAMED:
                few.append(finding)
        self._all.write(encode_line(finding.to_json()))

    def write(self, path: Path) -> None:
        """Every finding as one JSON line, in the order in which they were added."""
        self._all.seek(0)
        with atomic_file(path) as file:
            shutil.copyfileobj(self._all, file)
        self._all.seek(0, os.SEEK_END)


@dataclass(slots=True)
class Report:
    """The result of a check. `samples`: how many there are; `checked`: how many were encoded; `tokens`: their lengths."""

    samples: int = 0
    checked: int = 0
    findings: Findings = field(default_factory=Findings)
    tokens: array[int] = field(default_factory=lambda: array("l"))
    supervised: array[int] = field(default_factory=lambda: array("l"))

    def lines(self) -> Iterator[tuple[bool, str]]:
        """The report for a person: counts, the first offenders of each kind, token counts; each with whether it is a fault."""
        findings = self.findings
        for kind, few in sorted(findings.first.items(), key=lambda entry: (not entry[1][0].fault, -findings.counts[entry[0]])):
            count = findings.counts[kind]
            fault = few[0].fault
            yield fault, f"{kind}: {plural(count, 'fault' if fault else 'remark')}"
            for finding in few:
                yield fault, f"  {finding}"
            if count > len(few):
                yield fault, f"  and {count - len(few)} more"
        if self.tokens:
            lengths = sorted(self.tokens)
            yield (
                False,
                f"tokens a sample: {sum(lengths) / len(lengths):.0f} on average, {lengths[len(lengths) // 2]} in the middle, "
                f"{lengths[-1]} at most; {sum(self.supervised) / len(self.supervised):.0f} of them learnt",
            )
        faults = plural(findings.faults, "fault") if findings.faults else "no faults"
        yield False, f"checked {self.checked} of {plural(self.samples, 'sample')} closely: {faults}"


def plural(number: int, noun: str) -> str:
    """A number with its noun: 1 fault, 2 faults."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class CheckInput:
    """What is checked: the samples with their regions, what was left out and why, and the recipe.

    `max_no_region`: share of the questions about pictures that may be without a region of their own.
    """

    data: SampleSet
    recipe: Recipe
    max_no_region: float

    @property
    def samples(self) -> SampleTable:
        return self.data.samples

    def finding(self, kind: str, sample: Sample, reason: str, which: int = 0, fault: bool = True) -> DataFinding:
        """One about a question of a sample."""
        question = sample.questions[which]
        return DataFinding(kind, self.data.where(question.file), question.line, question.id, reason, fault)


def examine(source: CheckInput, *, full: bool, reporter: Reporter) -> Report:
    """Checks `source`; `full` decodes and encodes every question of every sample, else one question of SAMPLE samples."""
    report = Report(samples=len(source.samples))
    findings = report.findings
    for finding in _join_findings(source):
        findings.add(finding)
    indices = _indices(source, full)
    report.checked = len(indices)
    done = 0
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        # In parts: the pool would queue millions of samples at once.
        for low in range(0, len(indices), _AT_ONCE):
            part = indices[low : low + _AT_ONCE]
            for sample_findings, counted in pool.map(lambda index: _examine(source.samples[index], source, full), part):
                for finding in sample_findings:
                    findings.add(finding)
                report.tokens.extend(tokens for tokens, _ in counted)
                report.supervised.extend(learnt for _, learnt in counted)
                done += 1
                reporter.progress("check", done, len(indices), plural(findings.faults, "fault") if findings.faults else "")
    for finding in (*_too_few(source, report), *_frame_finding(source, indices)):
        findings.add(finding)
    return report


def _join_findings(source: CheckInput) -> Iterator[DataFinding]:
    """Records that cannot be read, questions left without a region, regions of another picture or of another sample's row."""
    data = source.data
    for problem in data.named_problems():
        fault = "was there before" not in problem.reason
        yield DataFinding(
            "record" if fault else "repeated", problem.path, problem.line, problem.example_id, problem.reason, fault
        )
    for kind, unused in (("no region", data.lacking), ("left out", data.skipped)):
        for skipped in unused:
            foreign = skipped.reason == OTHER_IMAGE
            if not (skipped.lacking and kind == "left out"):
                what = "region of another image" if foreign else kind
                yield DataFinding(what, data.where(skipped.file), skipped.line, skipped.id, skipped.reason, fault=foreign)
    for skipped in data.unusable:
        yield DataFinding("unusable region", data.regions or data.files[0], None, skipped.id, skipped.reason)
    for skipped in data.shifted:
        yield DataFinding("row of another sample", data.where(skipped.file), skipped.line, skipped.id, skipped.reason)


def _too_few(source: CheckInput, report: Report) -> Iterator[DataFinding]:
    """A finding when the share of questions without a region is too large: the store is probably that of other questions.

    A region outside its picture counts as none; their share is taken over the pictures that were opened.
    """
    data, allowed = source.data, source.max_no_region
    let_pass = f"more than the {allowed:.3g} of them that max_no_region lets pass"
    if too_few(data, allowed):
        reason = (
            f"{len(data.lacking)} of {data.region_questions} questions about pictures have no region, {let_pass} "
            f"({data.lacking.reasons}); is this the store of these questions?"
        )
        yield DataFinding(TOO_FEW, data.files[0], None, None, reason)
    outside = report.findings.counts[OUTSIDE]
    looked = outside + len(report.tokens)
    if outside > allowed * looked:
        reason = f"{outside} of {looked} regions looked at lie outside their pictures, {let_pass}; are these the pictures?"
        yield DataFinding(TOO_FEW, data.files[0], None, None, reason)


def too_few(data: SampleSet, allowed: float) -> bool:
    """Whether more than the share `allowed` of the questions about pictures have no region."""
    return len(data.lacking) > allowed * data.region_questions


def _indices(source: CheckInput, full: bool) -> Sequence[int]:
    """The samples whose pictures and tokens are checked, by number."""
    samples, every = source.samples, range(len(source.samples))
    if full or len(every) <= SAMPLE:
        return every
    # By a hash of the id: the same samples every time, from all over the file.
    return heapq.nsmallest(SAMPLE, every, key=lambda index: draw(source.recipe.seed, samples.id(index), -1, 2**63))


def _examine(sample: Sample, source: CheckInput, full: bool) -> tuple[list[DataFinding], list[tuple[int, int]]]:
    """Findings about one sample's picture, boxes and tokens, and (tokens, learnt tokens) of each question that was encoded."""
    recipe = source.recipe
    findings: list[DataFinding] = []
    picture = None
    if sample.image is not None:
        try:
            picture = open_image(recipe.images, sample.image)
        except InputError as error:
            return [source.finding("image", sample, str(error))], []
        reason = _misnamed(recipe.images, sample.image)
        if reason:
            findings.append(source.finding("extension", sample, reason, fault=False))
    counted = []
    for i in sample.usable if full else sample.usable[:1]:
        marks = _marks(sample, i, recipe)
        if marks:
            reason = f"its text holds {', '.join(map(repr, marks))}, which the dialogue uses: the model learns it as such"
            findings.append(source.finding("mark of the dialogue", sample, reason, i, fault=False))
        region = sample.boxes[i]
        reason = None if picture is None else outside(region, picture)
        if reason is not None:
            treated = "the whole picture is trained" if recipe.on_no_region == "full" else "the question is left out"
            findings.append(source.finding(OUTSIDE, sample, f"{reason}; {treated}", i, fault=False))
            continue
        if isinstance(region, Square) and picture is not None and not region.inside(*picture.size):
            reason = f"its region ({place(region)}) does not lie in the {picture.width}x{picture.height} picture"
            findings.append(source.finding("box outside the picture", sample, reason, i))
            continue
        try:
            encoded, _ = encode_sample(sample, i, picture, recipe)
        except InputError as error:
            findings.append(source.finding("tokens", sample, str(error), i))
            continue
        learnt = sum(label >= 0 for label in encoded.labels)
        counted.append((len(encoded), learnt))
        if len(encoded) == limit(encoded, recipe):
            reason = f"cut to max_length {recipe.max_length}: the end is not learnt"
            findings.append(source.finding("cut", sample, reason, i, fault=False))
    return findings, counted


def _marks(sample: Sample, which: int, recipe: Recipe) -> list[str]:
    """Special tokens and role names in a question and its answer, which the model takes for the dialogue's: `</s>`, `USER:`."""
    question = sample.questions[which]
    texts = (question.question, *question.answers[:1])
    roles = (recipe.profile.user.strip(), recipe.profile.assistant.strip())
    marks = dict.fromkeys([*recipe.tokenizer.all_special_tokens, *roles])
    return [mark for mark in marks if mark and any(mark in text for text in texts)]


def _misnamed(root: Root, relative: str) -> str | None:
    """What is wrong with a file's extension, or None. Reading goes by the content, but other tools go by the name."""
    path = image_path(root, relative)
    with Image.open(path) as image:
        actual = "JPEG" if image.format == "MPO" else image.format
    named = Image.registered_extensions().get(path.suffix.lower())
    named = "JPEG" if named == "MPO" else named
    return None if named == actual else f"{relative} is a {actual} picture, whatever its name says"


def _frame_finding(source: CheckInput, indices: Sequence[int]) -> list[DataFinding]:
    """Boxes that claim frame "image", but look as if measured in the padded square (or the other way round).

    In the padded square of a picture that is not square, every box stays inside the picture's band on the short axis. Boxes
    in the picture's frame do so only by accident; the share in the same band of the long axis measures how often.
    """
    short, long = Counter[bool](), Counter[bool]()
    first: Sample | None = None
    for sample in map(source.samples.__getitem__, indices):
        size = _size(source.recipe.images, sample.image)
        if size is None or max(size) / min(size) < _FRAME_ASPECT:
            continue
        pad = SquarePad(*size)
        margin = max(pad.offset) / pad.side
        for i in sample.usable:
            region = sample.boxes[i]
            box = _fractions(region, size) if isinstance(region, Square) else region
            if not isinstance(box, Box) or box.frame != "image":
                continue
            spans = ((box.x0, box.x1), (box.y0, box.y1))
            wide = size[0] > size[1]
            for count, (low, high) in ((short, spans[wide]), (long, spans[not wide])):
                count[margin - 0.005 <= low and high <= 1 - margin + 0.005] += 1
            first = first or sample
    total = short.total()
    if first is None or total < _FRAME_BOXES:
        return []
    inside, control = short[True] / total, long[True] / total
    if inside < 0.98 or control > 0.9:
        return []
    reason = (
        f"boxes look measured in the padded square, not in the picture: {short[True]} of {total} keep off the margins that "
        f"padding would take on the short side, only {long[True]} do on the long side"
    )
    return [source.finding("frame", first, reason)]


def _fractions(square: Square, size: tuple[int, int]) -> Box | None:
    try:
        return square.box(*size)
    except InputError:
        return None


def _size(root: Root, relative: str | None) -> tuple[int, int] | None:
    """Width and height from the file's header; None when it cannot be read (which is reported elsewhere)."""
    if relative is None:
        return None
    try:
        with Image.open(image_path(root, relative)) as image:
            return image.size
    except (InputError, OSError, ValueError, SyntaxError):
        return None
