"""`cos annotate`: the region of interest of every question, into a store (CoS §3.2).

Pictures go through in windows of `batch_images`, cut from the data file in its order. A window's annotations are committed
together, and a window of which nothing is stored yet is always computed whole: so a job that was killed and started again
computes the same batches as one that was not, and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cos_core import manifest, plug, roi
from cos_core.datasets import Problem, by_image, read_examples
from cos_core.errors import FailuresError, InputError
from cos_core.geometry import Box, SquarePad
from cos_core.images import open_image
from cos_core.interfaces import Backbone, Detector, Policy, Relevance, Reporter
from cos_core.store import Store
from cos_core.types import Annotation, Example, Regions, RunManifest

if TYPE_CHECKING:
    from PIL.Image import Image

TargetKind = Literal["log-odds", "logit", "logprob", "argmax"]
NO_ANSWER = "no answer to explain"
NO_GOLD = "the data set names no gold region"
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class AnnotateConfig:
    """Settings of one job.

    `data`, `images`: questions and the folder their image paths start from; `out`: the store. `model`: the checkpoint that the
    `backbone` runs; `detector` (None: the backbone's own choice) proposes regions to it, built with `detector_options`.
    `policy`: a row of CoS Table 3a or a control ("random" takes a random candidate of the detector, so that its sizes are those
    of real labels). `target`, `last_layers`: relevance.SweepSettings; `region_tokens`: the `tokens` of backbone "regions".
    `threshold`, `region`, `extend`: see roi.RoiRule, None leaves it to the backbone. `limit`: stop after the image with which
    this many questions are reached; `max_failures`: stop once more questions than this have no region.
    """

    data: Path
    images: Path
    model: str
    out: Path
    backbone: str = "regions"
    detector: str | None = None
    detector_options: Mapping[str, Any] = field(default_factory=dict)
    policy: str = "from_single_question"
    target: TargetKind = "log-odds"
    last_layers: int | None = None
    threshold: float | None = None
    region: roi.RegionKind | None = None
    extend: float | None = None
    seed: int = 0
    batch_images: int = 8
    limit: int | None = None
    max_failures: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    region_tokens: int | None = None

    def __post_init__(self) -> None:
        _rule(self, roi.RoiRule())
        for name, least in (("batch_images", 1), ("limit", 1), ("max_failures", 0), ("region_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        if self.detector_options and self.detector is None:
            raise InputError("detector options need a detector")
        if self.region_tokens is not None and self.backbone != "regions":
            raise InputError(f"region_tokens belongs to the backbone 'regions', not to {self.backbone!r}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one example: its region (perhaps none, with a reason), or a failure to be tried again."""

    example: Example
    roi: roi.Roi | None
    failure: str | None = None


@dataclass(slots=True)
class _Tally:
    """`ok`, `no_region`: stored now or before; `new`: stored now; `failed` includes `no_region` and bad records of the data."""

    ok: int = 0
    no_region: int = 0
    errors: int = 0
    skipped: int = 0
    new: int = 0

    @property
    def failed(self) -> int:
        return self.errors + self.no_region

    def counts(self) -> dict[str, int]:
        own = {"ok": self.ok, "no_region": self.no_region, "skipped": self.skipped, "new": self.new}
        return {**own, "failed": self.failed}

    def exceeds(self, allowed: int | None) -> bool:
        return allowed is not None and self.failed > allowed


def run(config: AnnotateConfig, reporter: Reporter) -> RunManifest:
    """Annotates every question of `config.data` that `config.out` has no annotation for, and writes the manifest last.

    Failures (a picture or an answer that cannot be used) are recorded in the store with their reason and tried again by the
    next run; a picture on which the answer has no relevance gives an annotation without a box. Counts are of the whole data.
    Raises InputError for settings, data or a store that cannot be used, LockedError when another run writes the store,
    FailuresError once more than `max_failures` questions have no region; what was finished stays.
    """
    survey = _survey(config, reporter)
    annotator = _annotator(config)
    inputs = {"data": manifest.file_input(config.data), "model": {"path": str(config.model)}}
    begun = manifest.started("annotate", config, seed=config.seed, inputs=inputs, settings_fingerprint=annotator.fingerprint)
    tally = _Tally(errors=survey.problems, skipped=survey.text_only)
    with Store.create_or_resume(config.out, annotator.fingerprint, annotator.settings) as store:
        manifest.path_for(config.out).unlink(missing_ok=True)
        done = 0
        for window in _windows(config):
            if tally.exceeds(config.max_failures):
                break
            _do_window(window, annotator, store, tally)
            done += sum(map(len, window))
            reporter.progress("annotate", done, survey.questions, f"{tally.ok} regions, {tally.failed} failed")
        stopped = tally.exceeds(config.max_failures)
        status: Literal["complete", "failed"] = "failed" if stopped else "complete"
        finished = begun.finish(tally.counts(), status, {"rule": manifest.plain(annotator.rule)})
        manifest.write(manifest.path_for(config.out), finished)
    if stopped:
        raise FailuresError(
            f"{tally.failed} questions have no region, more than the {config.max_failures} allowed; "
            f"the reasons stand in the store {config.out}"
        )
    return finished


# --- what to do ---


@dataclass(frozen=True, slots=True)
class _Survey:
    questions: int
    problems: int
    text_only: int


def _survey(config: AnnotateConfig, reporter: Reporter) -> _Survey:
    """Reads the data once, so that bad records are told before the model is loaded and progress knows its end."""
    problems: list[Problem] = []
    text_only: list[Problem] = []
    questions = sum(map(len, _groups(config, problems, text_only)))
    for problem in problems[:_SHOWN]:
        reporter.warn(str(problem))
    if len(problems) > _SHOWN:
        reporter.warn(f"{len(problems) - _SHOWN} more problems in {config.data}")
    if text_only:
        reporter.note(f"{len(text_only)} samples without a picture are skipped")
    if not questions:
        raise InputError(f"{config.data} holds no question about a picture")
    return _Survey(questions, len(problems), len(text_only))


def _groups(config: AnnotateConfig, problems: list[Problem], text_only: list[Problem]) -> Iterator[list[Example]]:
    """The questions of one image after another, up to the limit."""
    seen = 0
    for group in by_image(read_examples(config.data, on_problem=problems.append, on_skip=text_only.append)):
        yield group
        seen += len(group)
        if config.limit is not None and seen >= config.limit:
            return


def _windows(config: AnnotateConfig) -> Iterator[list[list[Example]]]:
    groups = _groups(config, [], [])
    while window := list(islice(groups, config.batch_images)):
        yield window


def _do_window(window: Sequence[list[Example]], annotator: Annotator, store: Store, tally: _Tally) -> None:
    """Annotates what the store lacks of a window, commits it, and counts all of it."""
    known = {e.id: found for group in window for e in group if (found := store.get(e.id)) is not None}
    # Nothing stored: the whole window as it is. Else it was finished before, and only what failed then is left.
    todo = [group for group in window if any(e.id not in known for e in group)]
    outcomes = [o for o in annotator.outcomes(todo) if o.example.id not in known] if todo else []
    new = [_annotation(o.example, o.roi, annotator) for o in outcomes if o.roi is not None]
    store.put_many(new)
    for outcome in outcomes:
        if outcome.roi is None:
            store.put_failure(outcome.example.id, outcome.failure or "unknown")
            tally.errors += 1
    tally.new += len(new)
    for annotation in (*known.values(), *new):
        if annotation.box is None:
            tally.no_region += 1
        else:
            tally.ok += 1


def _annotation(example: Example, found: roi.Roi, annotator: Annotator) -> Annotation:
    return Annotation(
        example.id,
        found.box,
        found.score,
        annotator.policy.name,
        annotator.fingerprint,
        found.used,
        found.reason,
        example.image,
    )


# --- how a region is found ---


@dataclass(frozen=True, slots=True)
class Annotator:
    """Finds regions as one policy of CoS Table 3a does. `settings`: all that decides them, `fingerprint` its hash."""

    policy: Policy
    rule: roi.RoiRule
    images: Path
    seed: int
    needs_answer: bool
    settings: dict[str, Any]
    fingerprint: str
    backbone: Backbone | None = None
    candidates: Any = field(default=None, repr=False)

    def outcomes(self, groups: Sequence[Sequence[Example]]) -> list[Outcome]:
        """One outcome an example, in order."""
        if self.policy.source == "model":
            return self._by_relevance(groups)
        return [outcome for group in groups for outcome in self._given(group)]

    def _given(self, group: Sequence[Example]) -> list[Outcome]:
        """Policies that need no model: the data set's own region, a fixed one, or (control) a random candidate."""
        if self.policy.source == "gold":
            boxes = [example.meta.get("gold") for example in group]
            found = [None if b is None else roi.Roi(Box.from_json(b)) for b in boxes]
            return [Outcome(e, b, None if b else NO_GOLD) for e, b in zip(group, found, strict=True)]
        if self.candidates is None:
            return [Outcome(e, roi.Roi(self.policy.fixed_box(e, self.seed))) for e in group]
        image = self._open(group)
        if isinstance(image, str):
            return [Outcome(e, None, image) for e in group]
        regions: Regions = self.candidates.detect(image, group[0].image or "")
        return [Outcome(e, self._random(e, regions)) for e in group]

    def _random(self, example: Example, regions: Regions) -> roi.Roi:
        if not regions.boxes:
            return roi.Roi(None, reason=roi.NO_RELEVANCE)
        digest = hashlib.sha256(f"{self.seed}:{example.id}".encode()).digest()
        index = int.from_bytes(digest[:8], "big") % len(regions.boxes)
        return roi.Roi(regions.boxes[index].extended(self.rule.extend), 0.0, (index,))

    def _by_relevance(self, groups: Sequence[Sequence[Example]]) -> list[Outcome]:
        failures: dict[str, str] = {}
        work: list[tuple[Image, list[Example]]] = []
        owners: list[Sequence[Example]] = []
        for group in groups:
            asked, unusable = self._asked(group)
            failures.update(unusable)
            image = self._open(group) if asked else NO_ANSWER
            if isinstance(image, str):
                failures.update({e.id: failures.get(e.id, image) for e in group})
            else:
                work.append((image, asked))
                owners.append(group)
        found: dict[str, roi.Roi] = {}
        answers = self.backbone.relevance(work) if work and self.backbone else []
        for (image, asked), group, relevances in zip(work, owners, answers, strict=True):
            pad = SquarePad(*image.size)
            if self.policy.asks == "single":
                found.update({e.id: self._choose(r, pad) for e, r in zip(asked, relevances, strict=True)})
            else:
                shared = self._choose(merged(relevances), pad)
                found.update({e.id: shared for e in group})
        return [Outcome(e, found.get(e.id), failures.get(e.id)) for group in groups for e in group]

    def _asked(self, group: Sequence[Example]) -> tuple[list[Example], dict[str, str]]:
        """What the backbone is asked about a group's image, and which examples fail for want of an answer."""
        if self.policy.asks == "image":
            return [replace(group[0], question="", answers=())], {}
        usable = [e for e in group if not self.needs_answer or (e.answers and e.answers[0].strip())]
        if self.policy.asks == "all" and usable:
            return usable, {}
        ids = {e.id for e in usable}
        return usable, {e.id: NO_ANSWER for e in group if e.id not in ids}

    def _open(self, group: Sequence[Example]) -> Image | str:
        """The group's picture, or why it cannot be used."""
        try:
            return open_image(self.images, group[0].image or "")
        except InputError as error:
            return str(error)

    def _choose(self, relevance: Relevance, pad: SquarePad) -> roi.Roi:
        if relevance.regions is not None:
            return roi.from_regions(relevance.regions, self.rule)
        if relevance.heat is None:
            raise InputError("the backbone gave neither regions nor a heat map")
        return roi.from_heat(relevance.heat, pad, self.rule)


def merged(relevances: Sequence[Relevance]) -> Relevance:
    """One Relevance for several questions on an image: each scaled to a maximum of 1, then summed (policy from_questions)."""
    if len(relevances) == 1:
        return relevances[0]
    regions = relevances[0].regions
    if regions is not None:
        scores = roi.combined([r.regions.scores for r in relevances if r.regions is not None and r.regions.scores is not None])
        return Relevance(replace(regions, scores=scores))
    maps = [r.heat for r in relevances if r.heat is not None]
    columns = len(maps[0][0])
    flat = roi.combined([[value for line in heat for value in line] for heat in maps])
    return Relevance(heat=tuple(flat[i : i + columns] for i in range(0, len(flat), columns)))


def _rule(config: AnnotateConfig, default: roi.RoiRule) -> roi.RoiRule:
    """The default with what the user set instead. Raises InputError for values out of range."""
    asked: dict[str, Any] = {"region": config.region, "threshold": config.threshold, "extend": config.extend}
    return replace(default, **{k: v for k, v in asked.items() if v is not None})


def _detector(config: AnnotateConfig) -> Detector | None:
    if config.detector is None:
        return None
    detector: Detector = plug.load("detectors", config.detector, **config.detector_options)
    return detector


def _annotator(config: AnnotateConfig) -> Annotator:
    """Loads what the policy needs. Raises InputError for names that are not there, MissingError without torch."""
    policy: Policy = plug.load("policies", config.policy)
    if policy.source == "none":
        raise InputError(f"the policy {config.policy!r} looks at no region, so there is nothing to annotate")
    settings: dict[str, Any] = {"policy": policy.name}
    rule = _rule(config, roi.RoiRule("top1"))
    backbone: Any = None
    candidates: Any = None
    if policy.source == "model":
        options = {"target": config.target, "last_layers": config.last_layers}
        where = {"model": config.model, "device": config.device, "dtype": config.dtype}
        own = {} if config.region_tokens is None else {"tokens": config.region_tokens}
        detector = _detector(config)
        backbone = plug.load("backbones", config.backbone, detector=detector, **options, **where, **own)
        rule = _rule(config, getattr(backbone, "roi", roi.RoiRule("top1")))
        settings |= {"backbone": config.backbone, "backbone_settings": backbone.fingerprint, **options}
        settings |= {"model": config.model, "detector": detector and plug.described(detector), "rule": rule}
    elif policy.name == "random":
        candidates = _detector(config) or plug.load("detectors", "grid")
        settings |= {"detector": plug.described(candidates), "seed": config.seed, "extend": rule.extend}
    elif policy.source == "fixed":
        settings |= {"seed": config.seed}
    needs_answer = config.target != "argmax"
    plain: dict[str, Any] = manifest.plain(settings)
    # The model's name is told, but a moved folder is the same model: the backbone's fingerprint knows its weights.
    mark = manifest.fingerprint({name: value for name, value in plain.items() if name != "model"})
    return Annotator(policy, rule, config.images, config.seed, needs_answer, plain, mark, backbone, candidates)
