"""The data doctor: proves a data set before a model is loaded or a GPU is taken.

Records and the joining of regions are checked for every sample; pictures, tokens and labels for a sample of them or for all
(`check = "full"`), through the very functions that training uses. A fault is what training could not use; a remark is what it
can, but a person should know. Each is named with the file and line of its sample.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from cos_core.errors import InputError
from cos_core.geometry import Box, SquarePad
from cos_core.images import image_path, open_image
from cos_core.interfaces import Reporter
from cos_core.jsonl import open_input, read_json_list, read_lines
from cos_core.released import Square
from cos_core.training.data import Recipe, draw, encode_sample
from cos_core.training.samples import OTHER_IMAGE, Data, Sample

SAMPLE = 256
"""Samples whose pictures and tokens are checked when not all are."""
_NAMED = 3
_FRAME_BOXES = 20
_FRAME_ASPECT = 1.2


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found: where, of which sample, what; `kind` groups them, `fault` when training cannot use it."""

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


@dataclass(slots=True)
class Report:
    """What the doctor saw. `tokens`: lengths of the checked samples; `samples`: all there are, `checked`: looked at closely."""

    samples: int = 0
    checked: int = 0
    findings: list[Finding] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    supervised: list[int] = field(default_factory=list)

    @property
    def faults(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.fault]

    def lines(self) -> Iterator[str]:
        """The report for a person: counts, the first offenders of each kind, token counts."""
        by_kind: dict[str, list[Finding]] = defaultdict(list)
        for finding in self.findings:
            by_kind[finding.kind].append(finding)
        for kind, found in sorted(by_kind.items(), key=lambda entry: (not entry[1][0].fault, -len(entry[1]))):
            yield f"{'fault' if found[0].fault else 'remark'}: {kind}: {len(found)}"
            for finding in found[:_NAMED]:
                yield f"  {finding}"
            if len(found) > _NAMED:
                yield f"  and {len(found) - _NAMED} more"
        if self.tokens:
            lengths = sorted(self.tokens)
            yield (
                f"tokens a sample: {sum(lengths) / len(lengths):.0f} on average, {lengths[len(lengths) // 2]} in the middle, "
                f"{lengths[-1]} at most; {sum(self.supervised) / len(self.supervised):.0f} of them learnt"
            )
        yield f"checked {self.checked} of {self.samples} samples closely: {len(self.faults)} faults"


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined: the samples with their boxes, what was left out and why, and where everything came from.

    `max_no_region`: share of the questions about pictures that may be without a region of their own.
    """

    data: Path
    found: Data
    recipe: Recipe
    max_no_region: float

    @property
    def samples(self) -> list[Sample]:
        return self.found.samples


def examine(patient: Patient, *, full: bool, reporter: Reporter) -> Report:
    """All findings; `full` decodes and encodes every question of every sample, else one question of SAMPLE samples."""
    report = Report(samples=len(patient.samples))
    lines = _lines_of(patient.data)
    for problem in patient.found.problems:
        fault = "was there before" not in problem.reason
        report.findings.append(
            Finding("record" if fault else "repeated", problem.path, problem.line, problem.example_id, problem.reason, fault)
        )
    places = _Places(patient.data, lines)
    report.findings += _joined(patient, places)
    chosen = _chosen(patient, full)
    report.checked = len(chosen)
    workers = min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        for done, (findings, counted) in enumerate(pool.map(lambda s: _closely(s, patient, places, full), chosen), 1):
            report.findings += findings
            report.tokens += [tokens for tokens, _ in counted]
            report.supervised += [learnt for _, learnt in counted]
            reporter.progress("check", done, len(chosen), f"{len(report.faults)} faults")
    report.findings += _frame(patient, places, chosen)
    return report


@dataclass(frozen=True, slots=True)
class _Places:
    """Line of each record of the data file, by its place in the file."""

    path: Path
    lines: Sequence[int]

    def line(self, index: object) -> int | None:
        return self.lines[index] if isinstance(index, int) and 0 <= index < len(self.lines) else None

    def finding(self, kind: str, sample: Sample, reason: str, which: int = 0, fault: bool = True) -> Finding:
        question = sample.questions[which]
        return Finding(kind, self.path, self.line(question.meta.get("index")), question.id, reason, fault)


def _lines_of(path: Path) -> list[int]:
    """The line on which each record begins, as datasets.py counts records."""
    with open_input(path) as file:
        is_list = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    if not is_list:
        return [line for line, _ in read_lines(path, lambda _: None)]
    lines: dict[int, int] = {}
    for line, index, _ in read_json_list(path, lambda _: None):
        lines[index] = line
    return [lines.get(index, 0) for index in range(max(lines, default=-1) + 1)]


def _joined(patient: Patient, places: _Places) -> Iterator[Finding]:
    """Questions left without a region, regions of another picture, row numbers that are another sample's."""
    for kind, unused in (("no region", patient.found.lacking), ("left out", patient.found.skipped)):
        named = set() if kind == "no region" else {skipped.id for skipped in patient.found.lacking}
        for skipped in unused:
            foreign = skipped.reason == OTHER_IMAGE
            what = "region of another image" if foreign else kind
            if skipped.id not in named:
                yield Finding(what, patient.data, places.line(skipped.index), skipped.id, skipped.reason, fault=foreign)
    yield from _too_few(patient)
    regions = patient.found.regions
    if regions is None:
        return
    for key, reason in regions.bad.items():
        yield Finding("unusable region", regions.path, None, key, reason)
    for sample in patient.samples:
        for i, question in enumerate(sample.questions):
            shifted = regions.shifted(question)
            if shifted is not None:
                reason = f"the region {shifted.key!r} was made for row {shifted.row}, but the sample is row {shifted.actual}"
                yield places.finding("row of another sample", sample, reason, i)


def _too_few(patient: Patient) -> Iterator[Finding]:
    """Some questions without a region are to be expected; when many are, the store is hardly that of the data."""
    missing, asked = len(patient.found.lacking), patient.found.asked
    if missing > patient.max_no_region * asked:
        reason = (
            f"{missing} of {asked} questions about pictures have no region, more than the {patient.max_no_region:.3g} of them "
            f"that max_no_region lets pass; is this the store of these questions?"
        )
        yield Finding("too few regions", patient.data, None, None, reason)


def _chosen(patient: Patient, full: bool) -> list[Sample]:
    if full or len(patient.samples) <= SAMPLE:
        return list(patient.samples)
    # By a hash of the id: the same samples every time, from all over the file.
    return sorted(patient.samples, key=lambda s: draw(patient.recipe.seed, s.id, -1, 2**63))[:SAMPLE]


def _closely(sample: Sample, patient: Patient, places: _Places, full: bool) -> tuple[list[Finding], list[tuple[int, int]]]:
    """Findings about one sample's picture, boxes and tokens, and (tokens, learnt tokens) of each question looked at."""
    recipe = patient.recipe
    findings: list[Finding] = []
    picture = None
    if sample.image is not None:
        try:
            picture = open_image(recipe.images, sample.image)
        except InputError as error:
            return [places.finding("image", sample, str(error))], []
        reason = _misnamed(recipe.images, sample.image)
        if reason:
            findings.append(places.finding("extension", sample, reason, fault=False))
    counted = []
    for i in sample.usable if full else sample.usable[:1]:
        region = sample.boxes[i]
        if isinstance(region, Square) and picture is not None and not region.inside(*picture.size):
            at = f"top {region.top:g}, left {region.left:g}, side {region.side:g}"
            reason = f"its region ({at}) does not lie in the {picture.width}x{picture.height} picture"
            findings.append(places.finding("box outside the picture", sample, reason, i))
            continue
        try:
            encoded, _ = encode_sample(sample, i, picture, recipe)
        except InputError as error:
            findings.append(places.finding("tokens", sample, str(error), i))
            continue
        learnt = sum(label >= 0 for label in encoded.labels)
        counted.append((len(encoded), learnt))
        if len(encoded) == recipe.max_length:
            reason = f"cut to max_length {recipe.max_length}: the end is not learnt"
            findings.append(places.finding("cut", sample, reason, i, fault=False))
    return findings, counted


def _misnamed(root: Path, relative: str) -> str | None:
    """What is wrong with a file's extension, or None: the content decides, but other tools go by the name."""
    path = image_path(root, relative)
    with Image.open(path) as image:
        actual = "JPEG" if image.format == "MPO" else image.format
    named = Image.registered_extensions().get(path.suffix.lower())
    named = "JPEG" if named == "MPO" else named
    return None if named == actual else f"{relative} is a {actual} picture, whatever its name says"


def _frame(patient: Patient, places: _Places, chosen: Sequence[Sample]) -> list[Finding]:
    """Boxes that claim frame "image", but look as if measured in the padded square (or the other way round).

    In the padded square of a picture that is not square, every box stays inside the picture's band on the short axis. Boxes
    that truly speak of the picture do so only by accident; the same band on the long axis says how often.
    """
    short, long = Counter[bool](), Counter[bool]()
    first: Sample | None = None
    for sample in chosen:
        size = _size(patient.recipe.images, sample.image)
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
    return [places.finding("frame", first, reason)]


def _fractions(square: Square, size: tuple[int, int]) -> Box | None:
    try:
        return square.box(*size)
    except InputError:
        return None


def _size(root: Path, relative: str | None) -> tuple[int, int] | None:
    """Width and height from the file's header; None when it cannot be read (which is reported elsewhere)."""
    if relative is None:
        return None
    try:
        with Image.open(image_path(root, relative)) as image:
            return image.size
    except (InputError, OSError, ValueError, SyntaxError):
        return None


def write(report: Report, path: Path) -> None:
    """Every finding as one JSON line."""
    from cos_core import manifest

    lines = [json.dumps(finding.to_json(), ensure_ascii=False) for finding in report.findings]
    manifest.atomic_write(path, "".join(line + "\n" for line in lines))
