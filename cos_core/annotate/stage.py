"""One annotation job in one process.

Pictures go through in windows of `batch_images`, cut from the data file in its order. A window's annotations are committed
together, and a window of which nothing is stored yet is always computed whole: so a job that was killed and started again
computes the same batches as one that was not, and ends with the same bytes. Shards take whole windows: however many there are,
the batches stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from cos_core import filesystems, manifest, roi
from cos_core.annotate import annotator as finding
from cos_core.annotate.annotator import Annotator, Outcome
from cos_core.annotate.config import AnnotateConfig
from cos_core.datasets import Problem, by_image, read_examples, tell
from cos_core.errors import FailuresError, InputError
from cos_core.interfaces import Reporter
from cos_core.store import Store
from cos_core.types import Annotation, Example, RunManifest

Window = list[list[Example]]
"""The questions of some pictures, picture by picture."""


@dataclass(slots=True)
class Tally:
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


def run(config: AnnotateConfig, reporter: Reporter, beside: Path | None = None) -> RunManifest:
    """See annotate.run. What the store `beside` holds already counts as done."""
    survey = survey_of(config, reporter)
    annotator = finding.build(config)
    for note in (*annotator.notes, filesystems.warning(config.out)):
        if note is not None:
            reporter.warn(note)
    inputs = {"data": manifest.file_input(config.data), "model": {"path": str(config.model)}}
    begun = manifest.started("annotate", config, seed=config.seed, inputs=inputs, settings_fingerprint=annotator.fingerprint)
    tally = Tally(errors=len(survey.problems), skipped=survey.text_only)
    with (
        Store.create_or_resume(config.out, annotator.fingerprint, annotator.settings) as store,
        nullcontext() if beside is None else Store.read(beside) as done_before,
    ):
        if done_before is not None and done_before.fingerprint != annotator.fingerprint:
            raise other_settings(beside or config.out, done_before.fingerprint, annotator.fingerprint)
        manifest.path_for(config.out).unlink(missing_ok=True)
        store.put_failures((problem.key, str(problem)) for problem in survey.problems)
        job = _Job(annotator, store, done_before, tally, config)
        done = 0
        for window in windows(config):
            if stops(tally.failed, config):
                break
            job.do(window)
            done += sum(map(len, window))
            reporter.progress("annotate", done, survey.questions, f"{tally.ok} regions, {tally.failed} failed")
        stopped = stops(tally.failed, config)
        status: Literal["complete", "failed"] = "failed" if stopped else "complete"
        finished = begun.finish(tally.counts(), status, {"rule": manifest.plain(annotator.rule)})
        manifest.write(manifest.path_for(config.out), finished)
    if stopped:
        raise too_many(tally.failed, config)
    return finished


def stops(failed: int, config: AnnotateConfig) -> bool:
    return config.max_failures is not None and failed > config.max_failures


def too_many(failed: int, config: AnnotateConfig) -> FailuresError:
    return FailuresError(
        f"{failed} questions have no region, more than the {config.max_failures} allowed; "
        f"`cos store ls {config.out} --failures` lists the reasons"
    )


def other_settings(path: Path, theirs: str, ours: str) -> InputError:
    return InputError(
        f"the store {path} was made with other settings (fingerprint {theirs}, now {ours}); "
        "choose a new folder or the same settings"
    )


# --- what to do ---


@dataclass(frozen=True, slots=True)
class Survey:
    """What the data holds: questions of this shard; bad records and text-only samples are told by the first shard alone."""

    questions: int
    pictures: int
    windows: int
    problems: list[Problem] = field(default_factory=list)
    text_only: int = 0


def survey_of(config: AnnotateConfig, reporter: Reporter, each: Callable[[Example], None] | None = None) -> Survey:
    """Reads the data once, so that bad records are told before the model is loaded and progress knows its end.

    `each` sees the first question of every picture. Raises InputError for data without a question about a picture.
    """
    problems: list[Problem] = []
    text_only: list[Problem] = []
    questions = pictures = number = 0
    found = False
    for number, window in enumerate(_windows(config, problems, text_only), 1):
        found = True
        if config.shard is not None and not config.shard.has(number - 1):
            continue
        pictures += len(window)
        questions += sum(map(len, window))
        if each is not None:
            for group in window:
                each(group[0])
    if not found:
        tell(config.data, problems, len(text_only), reporter)
        raise InputError(f"{config.data} holds no question about a picture")
    if config.shard is not None and config.shard.index > 1:
        return Survey(questions, pictures, number)
    tell(config.data, problems, len(text_only), reporter)
    return Survey(questions, pictures, number, problems, len(text_only))


def windows(config: AnnotateConfig) -> Iterator[Window]:
    """The windows of this shard, in the order of the data."""
    for number, window in enumerate(_windows(config, [], [])):
        if config.shard is None or config.shard.has(number):
            yield window


def _windows(config: AnnotateConfig, problems: list[Problem], text_only: list[Problem]) -> Iterator[Window]:
    groups = _groups(config, problems, text_only)
    while window := list(islice(groups, config.batch_images)):
        yield window


def _groups(config: AnnotateConfig, problems: list[Problem], text_only: list[Problem]) -> Iterator[list[Example]]:
    """The questions of one image after another, up to the limit."""
    seen = 0
    for group in by_image(read_examples(config.data, on_problem=problems.append, on_skip=text_only.append)):
        yield group
        seen += len(group)
        if config.limit is not None and seen >= config.limit:
            return


# --- doing it ---


@dataclass(frozen=True, slots=True)
class _Job:
    annotator: Annotator
    store: Store
    beside: Store | None
    tally: Tally
    config: AnnotateConfig

    def do(self, window: Window) -> None:
        """Annotates what the stores lack of a window, commits it, and counts all of it."""
        known = {e.id: found for group in window for e in group if (found := self._known(e.id)) is not None}
        # Nothing stored: the whole window as it is. Else it was finished before, and only what failed then is left.
        todo = [group for group in window if any(e.id not in known for e in group)]
        outcomes = [o for o in self.annotator.outcomes(todo) if o.example.id not in known] if todo else []
        new = [annotation(o.example, o.roi, self.annotator) for o in outcomes if o.roi is not None]
        failed = [(o.example.id, self._sentence(o)) for o in outcomes if o.roi is None]
        self.store.commit(new, {o.example.id: o.heat for o in outcomes if o.heat is not None}, failed)
        self.tally.errors += len(failed)
        self.tally.new += len(new)
        for found in (*known.values(), *new):
            if found.box is None:
                self.tally.no_region += 1
            else:
                self.tally.ok += 1

    def _known(self, example_id: str) -> Annotation | None:
        found = self.store.get(example_id)
        if found is None and self.beside is not None:
            return self.beside.get(example_id)
        return found

    def _sentence(self, outcome: Outcome) -> str:
        """Why there is no region, and where the question stands."""
        line = outcome.example.line
        where = f"{self.config.data}:{line}" if line is not None else str(self.config.data)
        return f"{where}: {outcome.failure or 'unknown'}"


def annotation(example: Example, found: roi.Roi, annotator: Annotator) -> Annotation:
    """The record of a region that was found."""
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
