"""The check of the training data before a model is loaded or a GPU is taken.

Records and the joining of regions are checked for every sample; pictures, tokens and labels for some or for all (`check =
"full"`), by the functions that training uses. A fault is a sample that training cannot use; a remark is about one that it can
use. Each finding names the file and line of its sample.
"""

from __future__ import annotations

import heapq
import os
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from PIL import Image

from cos_core.data.released import Square
from cos_core.errors import InputError
from cos_core.files.images import open_image
from cos_core.files.picture_files import Root, image_path
from cos_core.interfaces import Reporter
from cos_core.training import budget_check
from cos_core.training.box_check import BoxCheck, fractions
from cos_core.training.budget_check import PictureTokens, Shown
from cos_core.training.dataset import CUT_IMAGE, Recipe, RefusedPictureError, draw, encode_sample, limit, outside, place
from cos_core.training.findings import DataFinding, Findings, Where, plural
from cos_core.training.sample_table import SampleSet, SampleTable
from cos_core.training.samples import OTHER_IMAGE, Sample

SAMPLE = 256
"""Samples whose pictures and tokens are checked when not all are."""
TOO_FEW = "too few regions"
OUTSIDE = "region outside the picture"
REFUSED = "refused picture"
SMALL = "regions below one image token"
_AT_ONCE = 1024


@dataclass(slots=True)
class Report:
    """The result of a check. `samples`: how many there are; `checked`: how many were encoded; `tokens`: their lengths; `small`:
    the first question whose region is small (see Shown)."""

    samples: int = 0
    checked: int = 0
    findings: Findings = field(default_factory=Findings)
    tokens: array[int] = field(default_factory=lambda: array("l"))
    supervised: array[int] = field(default_factory=lambda: array("l"))
    pictures: PictureTokens = field(default_factory=PictureTokens)
    small: Where | None = None

    def add(self, looked: Looked) -> None:
        for finding in looked.findings:
            self.findings.add(finding)
        self.tokens.extend(tokens for tokens, _ in looked.counted)
        self.supervised.extend(learnt for _, learnt in looked.counted)
        for shown in looked.shown:
            self.pictures.add(shown)
        self.small = self.small or looked.small

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
        if self.pictures.full:
            yield False, str(self.pictures)
        faults = plural(findings.faults, "fault") if findings.faults else "no faults"
        yield False, f"checked {self.checked} of {plural(self.samples, 'sample')} closely: {faults}"


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

    def where(self, sample: Sample, which: int) -> Where:
        """Where a question of a sample stands."""
        question = sample.questions[which]
        return self.data.where(question.file), question.line, question.id

    def finding(self, kind: str, sample: Sample, reason: str, which: int = 0, fault: bool = True) -> DataFinding:
        """One about a question of a sample."""
        return DataFinding(kind, *self.where(sample, which), reason, fault)


def examine(source: CheckInput, *, full: bool, reporter: Reporter) -> Report:
    """Checks `source`; `full` decodes and encodes every question of every sample, else one question of SAMPLE samples."""
    encoder, policy = source.recipe.encoder, source.recipe.policy
    report = Report(len(source.samples), pictures=PictureTokens(budget_check.budget_said(encoder)))
    findings, family = report.findings, budget_check.family_of(encoder)
    for finding in _join_findings(source):
        findings.add(finding)
    boxes = BoxCheck(encoder.profile, family.name, policy.source in ("model", "gold"))
    indices = _indices(source, full)
    report.checked = len(indices)
    look = partial(_look, source=source, full=full, way_out=budget_check.way_out(family))
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        # In parts: the pool would queue millions of samples at once.
        for low in range(0, len(indices), _AT_ONCE):
            part = indices[low : low + _AT_ONCE]
            for done, looked in enumerate(pool.map(lambda index: look(source.samples[index]), part), low + 1):
                report.add(looked)
                if looked.size is not None:
                    boxes.add(looked.sample, partial(source.where, looked.sample), looked.size, looked.seen)
                reporter.progress("check", done, len(indices), plural(findings.faults, "fault") if findings.faults else "")
    for finding in (*_too_few(source, report), *boxes.findings(), *_too_small(report)):
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


def _too_small(report: Report) -> Iterator[DataFinding]:
    if report.small is not None:
        yield DataFinding(SMALL, *report.small, report.pictures.too_small(), fault=False)


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


@dataclass(slots=True)
class Looked:
    """What the check saw of one sample.

    `counted`: (tokens, learnt tokens) of each question that was encoded; `shown`: how its picture is shown. `size`: (width,
    height) in pixels of the sample's picture, `seen`: the same as the model sees it; None without one that the model takes.
    `small`: the first question whose region is small (see Shown).
    """

    sample: Sample
    findings: list[DataFinding] = field(default_factory=list)
    counted: list[tuple[int, int]] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    size: tuple[int, int] | None = None
    seen: tuple[int, int] | None = None
    small: Where | None = None


def _look(sample: Sample, source: CheckInput, full: bool, way_out: str) -> Looked:
    """Examines one sample's picture, boxes and tokens. `way_out`: what helps against samples that are too long."""
    recipe = source.recipe
    looked = Looked(sample)
    picture = None
    if sample.image is not None:
        try:
            picture = open_image(recipe.images, sample.image)
        except InputError as error:
            looked.findings.append(source.finding("image", sample, str(error)))
            return looked
        reason = _misnamed(recipe.images, sample.image)
        if reason:
            looked.findings.append(source.finding("extension", sample, reason, fault=False))
        # Who refuses a picture here refuses it below, where it becomes a finding.
        with suppress(ValueError):
            looked.size, looked.seen = picture.size, recipe.encoder.seen(picture.size)
    for i in sample.usable if full else sample.usable[:1]:
        _look_at_question(looked, i, picture, source, way_out)
    return looked


def _look_at_question(looked: Looked, which: int, picture: Image.Image | None, source: CheckInput, way_out: str) -> None:
    sample, recipe = looked.sample, source.recipe

    def add(kind: str, reason: str, fault: bool = True) -> None:
        looked.findings.append(source.finding(kind, sample, reason, which, fault))

    marks = _marks(sample, which, recipe)
    if marks:
        names = ", ".join(map(repr, marks))
        add("mark of the dialogue", f"its text holds {names}, which the dialogue uses: the model learns it as such", False)
    region = sample.boxes[which]
    reason = None if picture is None else outside(region, picture)
    if reason is not None:
        treated = "the whole picture is trained" if recipe.on_no_region == "full" else "the question is left out"
        add(OUTSIDE, f"{reason}; {treated}", False)
        return
    if isinstance(region, Square) and picture is not None and not region.inside(*picture.size):
        reason = f"its region ({place(region)}) does not lie in the {picture.width}x{picture.height} picture"
        add("box outside the picture", reason)
        return
    try:
        encoded, views = encode_sample(sample, which, picture, recipe)
    except InputError as error:
        if isinstance(error, RefusedPictureError) or str(error) != CUT_IMAGE:
            add(REFUSED if isinstance(error, RefusedPictureError) else "tokens", str(error))
            return
        add("tokens", f"{error}; {way_out}")
        if picture is not None and recipe.region_crops is None:
            looked.shown.append(budget_check.shown(recipe.encoder, picture.size, 1 if region is None else 2))
        return
    looked.counted.append((len(encoded), sum(label >= 0 for label in encoded.labels)))
    if len(encoded) == limit(encoded, recipe):
        add("cut", f"cut to max_length {recipe.max_length}: the end is not learnt; {way_out}", False)
    if picture is not None and views.images:
        box = fractions(region, picture.size) if isinstance(region, Square) else region
        crop = views.images["roi"].size if "roi" in views.images and which not in sample.fallbacks else None
        looked.shown.append(budget_check.shown(recipe.encoder, picture.size, len(views.images), crop, box))
        if looked.small is None and looked.shown[-1].small:
            looked.small = source.where(sample, which)


def _marks(sample: Sample, which: int, recipe: Recipe) -> list[str]:
    """Special tokens and role names in a question and its answer, which the model takes for the dialogue's: `</s>`, `USER:`."""
    question = sample.questions[which]
    texts = (question.question, *question.answers[:1])
    roles = (recipe.profile.user.strip(), recipe.profile.assistant.strip())
    marks = dict.fromkeys([*recipe.encoder.tokenizer.all_special_tokens, *roles])
    return [mark for mark in marks if mark and any(mark in text for text in texts)]


def _misnamed(root: Root, relative: str) -> str | None:
    """What is wrong with a file's extension, or None. Reading goes by the content, but other tools go by the name."""
    path = image_path(root, relative)
    with Image.open(path) as image:
        actual = "JPEG" if image.format == "MPO" else image.format
    named = Image.registered_extensions().get(path.suffix.lower())
    named = "JPEG" if named == "MPO" else named
    return None if named == actual else f"{relative} is a {actual} picture, whatever its name says"
