"""What a job would be, without doing it: how many questions, which pictures are missing or broken, how long, how large.

Every picture's file is looked for; a sample of them is decoded; a few windows go through the model for the time, after one that
warms up. Nothing is written but a store in a temporary folder, which tells the size of many annotations from those few.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msgspec import structs

from cos_core.annotate import annotator as regions
from cos_core.annotate import stage, work
from cos_core.annotate.annotator import Annotator, RegionResult
from cos_core.annotate.config import AnnotateConfig
from cos_core.errors import FailuresError, InputError
from cos_core.files import manifest, picture_files
from cos_core.files.images import open_image
from cos_core.files.picture_files import Root, image_path, shown
from cos_core.interfaces import Reporter
from cos_core.store.annotations import Store
from cos_core.types import Example, RunManifest

DECODED = 500
"""Pictures that are decoded, evenly over the data; all of them when there are no more."""
PROBED = 3
"""Windows that are timed, evenly over the data."""
_COPIES = 20_000
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class AnnotationPlan:
    """`missing`, `broken`: sentences, of all `pictures` and of the `decoded` ones; `seconds`, `bytes`: for the whole job."""

    questions: int
    pictures: int
    bad_records: int
    text_only: int
    missing: list[str]
    decoded: int
    broken: list[str]
    probed_questions: int
    failed_in_probe: int
    seconds_per_question: float
    seconds: float
    bytes: int

    def lines(self) -> list[str]:
        """For a person."""
        sample = "" if self.decoded == self.pictures - len(self.missing) else ", a sample,"
        bad = f", {self.bad_records} bad records" if self.bad_records else ""
        text = f", {self.text_only} samples without a picture" if self.text_only else ""
        time = f"{self.seconds / 3600:.1f} hours" if self.seconds > 5400 else f"{self.seconds / 60:.1f} minutes"
        return [
            f"{self.questions} questions on {self.pictures} pictures{bad}{text}",
            *_listed(self.missing, "every picture's file is there", "pictures cannot be found"),
            *_listed(
                self.broken,
                f"the {self.decoded} pictures decoded{sample} are whole",
                f"of {self.decoded} decoded{sample} are broken",
            ),
            f"probe: {self.probed_questions} questions, {self.seconds_per_question:.3g} s each, "
            f"{self.failed_in_probe} without a region",
            f"estimate: {time} in one process, {self.bytes / 2**20:.3g} MiB on disk",
        ]

    def to_json(self) -> dict[str, Any]:
        plain: dict[str, Any] = manifest.plain(self)
        return plain


def _listed(items: Sequence[str], none: str, some: str) -> list[str]:
    if not items:
        return [none]
    shown = [f"  {item}" for item in items[:_SHOWN]]
    if len(items) > _SHOWN:
        shown.append(f"  and {len(items) - _SHOWN} more")
    return [f"{len(items)} {some}", *shown]


@dataclass(slots=True)
class _Pictures:
    """Looks for each picture's file as the data is read. `present`: names of pictures that have one; `missing`: sentences."""

    images: Root
    missing: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)

    def look(self, example: Example) -> None:
        name = example.image or ""
        try:
            path = image_path(self.images, name)
            there = path.is_file()
        except InputError as error:
            self.missing.append(str(error))
            return
        if there:
            self.present.append(name)
        else:
            self.missing.append(f"there is no image {shown(path)}")


def run(config: AnnotateConfig, reporter: Reporter) -> RunManifest:
    """Reports the plan, and returns a manifest with it, which is not written. Raises what a job would at its start."""
    picture_files.check_folder(config.images)
    begun = manifest.started("annotate", config, seed=config.seed, inputs={"data": manifest.files_input(config.data)})
    pictures = _Pictures(config.pictures)
    survey = stage.survey_of(config, reporter, pictures.look)
    sample = _evenly(pictures.present, DECODED)
    broken = _broken(config.pictures, sample, reporter)
    seconds, outcomes, annotator = _probe(config, survey, reporter)
    each = seconds / max(1, len(outcomes))
    plan = AnnotationPlan(
        questions=survey.questions,
        pictures=survey.pictures,
        bad_records=len(survey.problems),
        text_only=survey.text_only,
        missing=pictures.missing,
        decoded=len(sample),
        broken=broken,
        probed_questions=len(outcomes),
        failed_in_probe=sum(o.roi is None for o in outcomes),
        seconds_per_question=each,
        seconds=each * survey.questions,
        bytes=_bytes(outcomes, annotator, survey.questions),
    )
    for line in plan.lines():
        reporter.note(line)
    if pictures.missing and not pictures.present:
        raise FailuresError(f"none of {survey.pictures} pictures can be found; the first: {pictures.missing[0]}")
    failed = len(survey.problems) + len(pictures.missing) + len(broken)
    counts = {"ok": survey.questions, "failed": failed, "skipped": survey.text_only}
    return begun.finish(counts, results={"plan": plan.to_json()})


def _evenly(items: Sequence[Any], most: int) -> list[Any]:
    if len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]


def _broken(images: Root, names: Sequence[str], reporter: Reporter) -> list[str]:
    broken = []
    for done, name in enumerate(names, 1):
        try:
            open_image(images, name)
        except InputError as error:
            broken.append(str(error))
        reporter.progress("pictures", done, len(names), f"{len(broken)} broken" if broken else "")
    return broken


def _probe(config: AnnotateConfig, survey: stage.Survey, reporter: Reporter) -> tuple[float, list[RegionResult], Annotator]:
    """(seconds, results) of a few windows, and the annotator."""
    annotator = regions.build(config)
    numbers = set(_evenly(range(survey.windows), PROBED))
    everything = replace(config, shard=None)
    windows = [window for number, window in enumerate(stage.windows(everything, survey.snapshot)) if number in numbers]
    worker = work.AnnotateWorker(annotator, config)
    annotator.outcomes(windows[0])  # the first call allocates and compiles
    outcomes: list[RegionResult] = []
    start = time.monotonic()
    batch = work.WindowBatch([work.WindowRequest(window) for window in windows])
    for done, results in enumerate(worker.outcomes([batch]), 1):
        outcomes += results
        reporter.progress("probe", done, len(windows))
    return time.monotonic() - start, outcomes, annotator


def _bytes(outcomes: Sequence[RegionResult], annotator: Annotator, questions: int) -> int:
    """What a store of `questions` annotations like these takes on disk: measured on a small one, page overhead included."""
    whole = [o for o in outcomes if o.roi is not None]
    if not whole:
        return 0
    copies = min(questions, _COPIES)
    repeated = [whole[i % len(whole)] for i in range(copies)]
    named = [replace(o, example=structs.replace(o.example, id=f"{i:07d}{o.example.id}")) for i, o in enumerate(repeated)]
    annotations = [work.annotation(o.example, o.roi, annotator) for o in named if o.roi is not None]
    heats = {o.example.id: o.heat for o in named if o.heat is not None}
    with (
        tempfile.TemporaryDirectory(prefix="cos-plan-") as folder,
        Store.create_or_resume(Path(folder) / "store", annotator.fingerprint, {}) as store,
    ):
        empty = int(store.info()["bytes"])
        store.put_many(annotations, heats)
        return empty + (int(store.info()["bytes"]) - empty) * questions // copies
