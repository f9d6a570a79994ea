"""One annotation job: this process reads the questions and writes the store; workers, wherever they run, find the regions.

Pictures go to the workers in windows of `batch_images`, cut from the data file in its order. A window's annotations are
committed together, and a window of which nothing is stored yet is always computed whole: so a job that was killed and started
again computes the same batches as one that was not, and ends with the same bytes. Shards take whole windows: however many
there are, the batches stay the same.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from cos_core import runners
from cos_core.annotate.config import AnnotateConfig
from cos_core.annotate.work import AnnotateJob, WindowBatch, WindowRequest, WindowResult
from cos_core.data.datasets import Problem, Snapshot, by_image, paths_of, read_examples, spoken, tell
from cos_core.errors import FailuresError, InputError
from cos_core.files import failures, filesystems, manifest, picture_files
from cos_core.files.plug import load
from cos_core.interfaces import Reporter
from cos_core.store.annotations import BATCH, Store
from cos_core.types import Annotation, Example, RunManifest

PORTION = 4
"""Windows that go to a worker together."""
SHARE = 0.1
"""Of the time, what commits may take: each waits for the disk, so quick windows share one."""

Window = list[list[Example]]
"""The questions of some pictures, picture by picture."""


@dataclass(slots=True)
class AnnotationCounts:
    """`ok`, `no_region`: stored now or before; `new`: stored now; `failed` includes `no_region` and bad records of the data."""

    ok: int = 0
    no_region: int = 0
    errors: int = 0
    skipped: int = 0
    new: int = 0
    reasons: failures.FailureReasons = field(default_factory=failures.FailureReasons)

    @property
    def failed(self) -> int:
        return self.errors + self.no_region

    def add(self, annotation: Annotation) -> None:
        if annotation.box is None:
            self.no_region += 1
            self.reasons.add(annotation.reason or "")
        else:
            self.ok += 1

    def counts(self) -> dict[str, int]:
        counts = {"ok": self.ok, "no_region": self.no_region, "skipped": self.skipped, "new": self.new}
        return {**counts, "failed": self.failed}

    def words(self) -> str:
        """For a line of progress."""
        return f"{self.ok} regions, {self.failed} failed"


def run(config: AnnotateConfig, reporter: Reporter) -> RunManifest:
    """See annotate.run."""
    picture_files.check_folder(config.images)
    survey = survey_of(config, reporter)
    inputs = {"data": manifest.files_input(config.data), "model": {"path": str(config.model)}}
    pictures = (group[0].image or "" for window in windows(config, survey.snapshot) for group in window)
    job = AnnotateJob(config, picture_files.first_existing(config.pictures, pictures))
    needs_model = load("policies", config.policy).source == "model"
    with runners.build(config.scale, job, config.device, reporter, config.model if needs_model else None) as runner:
        about = runner.about
        for note in (*about["notes"], filesystems.warning(config.out)):
            if note is not None:
                reporter.warn(note)
        mark = about["fingerprint"]
        begun = manifest.started("annotate", config, seed=config.seed, inputs=inputs, settings_fingerprint=mark)
        tally = AnnotationCounts(errors=len(survey.problems), skipped=survey.text_only)
        for problem in survey.problems:
            tally.reasons.add(str(problem))
        with Store.create_or_resume(config.out, mark, about["settings"]) as store:
            manifest.path_for(config.out).unlink(missing_ok=True)
            key = _keys(config)
            store.put_failures((key(problem), str(problem)) for problem in survey.problems)
            questions = _Questions(config, survey.snapshot, store, tally)
            ledger = _Ledger(store, tally)
            with closing(runner.map(questions.portions())) as results:
                for result in results:
                    ledger.add(result)
                    if stops(tally.failed, config):
                        break
                    if ledger.commit(when_due=True):
                        reporter.progress("annotate", questions.known + ledger.done, survey.questions, tally.words())
            shown_all = not ledger.commit() and ledger.done > 0
            if not (stops(tally.failed, config) or shown_all):
                reporter.progress("annotate", survey.questions, survey.questions, tally.words())
            failed = verdict(tally, config)
            status: Literal["complete", "failed"] = "complete" if failed is None else "failed"
            finished = begun.finish(tally.counts(), status, {"rule": about["rule"]})
            manifest.write(manifest.path_for(config.out), finished)
    if failed is not None:
        raise failed
    if tally.errors > len(survey.problems) and (words := tally.reasons.most()):
        reporter.warn(f"{tally.errors} questions failed; {words}; {_listed(config)}")
    return finished


def stops(failed: int, config: AnnotateConfig) -> bool:
    return config.max_failures is not None and failed > config.max_failures


def verdict(tally: AnnotationCounts, config: AnnotateConfig) -> FailuresError | None:
    """Why the run failed as a whole, if it did. A question without a region is answered: it counts against a limit, and when
    there is no region at all, but not as one of many that failed."""
    of, listed = "questions", _listed(config)
    if stops(tally.failed, config) or not tally.ok:
        return failures.verdict(
            tally.ok, tally.failed, config.max_failures, tally.reasons, of=of, listed=listed, how="have no region"
        )
    return failures.verdict(tally.ok + tally.no_region, tally.errors, config.max_failures, tally.reasons, of=of, listed=listed)


def _listed(config: AnnotateConfig) -> str:
    return f"`cos store ls {shlex.quote(str(config.out))} --failures` lists the reasons"


# --- what to do ---


@dataclass(frozen=True, slots=True)
class Survey:
    """What the data holds: questions of this shard; bad records and text-only samples are reported by the first shard alone.

    `snapshot`: the data as it was read.
    """

    questions: int
    pictures: int
    windows: int
    snapshot: Snapshot
    problems: list[Problem] = field(default_factory=list)
    text_only: int = 0


def survey_of(config: AnnotateConfig, reporter: Reporter, each: Callable[[Example], None] | None = None) -> Survey:
    """Reads the data once, so that bad records are reported before the model is loaded and the progress has a total.

    `each` sees the first question of every picture. Raises InputError for data without a question about a picture.
    """
    snapshot = Snapshot(config.data)
    problems: list[Problem] = []
    text_only: list[Problem] = []
    questions = pictures = number = 0
    for number, window in enumerate(_windows(config, problems, text_only), 1):
        if config.shard is not None and not config.shard.has(number - 1):
            continue
        pictures += len(window)
        questions += sum(map(len, window))
        if each is not None:
            for group in window:
                each(group[0])
    snapshot.check()
    if not number:
        tell(config.data, problems, len(text_only), reporter)
        raise InputError(f"{spoken(config.data)} holds no question about a picture")
    if config.shard is not None and config.shard.index > 1:
        return Survey(questions, pictures, number, snapshot)
    tell(config.data, problems, len(text_only), reporter, f"`cos store ls {config.out} --failures` lists all of them")
    return Survey(questions, pictures, number, snapshot, problems, len(text_only))


def windows(config: AnnotateConfig, snapshot: Snapshot) -> Iterator[Window]:
    """The windows of this shard, in the order of the data. Raises CosError when the data is not what `snapshot` saw."""
    snapshot.check()
    for number, window in enumerate(_windows(config, [], [])):
        if config.shard is None or config.shard.has(number):
            yield window
    snapshot.check()


def _keys(config: AnnotateConfig) -> Callable[[Problem], str]:
    """Under what a problem is recorded: its own key, with the whole path where two files have one name."""
    names = [path.name for path in paths_of(config.data)]
    return lambda problem: problem.key if names.count(problem.path.name) < 2 else f"{problem.path.parent}/{problem.key}"


def _windows(config: AnnotateConfig, problems: list[Problem], text_only: list[Problem]) -> Iterator[Window]:
    groups = _groups(config, problems, text_only)
    while window := list(islice(groups, config.batch_images)):
        yield window


def _groups(config: AnnotateConfig, problems: list[Problem], text_only: list[Problem]) -> Iterator[list[Example]]:
    """The questions of one image after another, up to the limit."""
    questions = 0
    for group in by_image(
        read_examples(config.data, columns=config.columns, on_problem=problems.append, on_skip=text_only.append)
    ):
        yield group
        questions += len(group)
        if config.limit is not None and questions >= config.limit:
            return


# --- doing it ---


@dataclass(slots=True)
class _Questions:
    """What the store lacks, window by window; counts what it has."""

    config: AnnotateConfig
    snapshot: Snapshot
    store: Store
    tally: AnnotationCounts
    known: int = 0
    """Questions that were stored before and have been passed."""

    def portions(self) -> Iterator[WindowBatch]:
        """In the order of the data; read only as far as the runner asks."""
        requests = self._requests()
        while batch := list(islice(requests, PORTION)):
            files = None
            if self.config.scale.ship_images:
                names = dict.fromkeys(group[0].image or "" for request in batch for group in request.groups)
                files = picture_files.shipped(self.config.pictures, names)
            yield WindowBatch(batch, files)

    def _requests(self) -> Iterator[WindowRequest]:
        resumed = self.store.info()["annotations"] > 0
        for window in windows(self.config, self.snapshot):
            known = {e.id: a for group in window for e in group if (a := self.store.get(e.id)) is not None} if resumed else {}
            for annotation in known.values():
                self.tally.add(annotation)
            self.known += len(known)
            if not known:
                yield WindowRequest(window)
            elif todo := [group for group in window if any(e.id not in known for e in group)]:
                # It was finished before, and only what failed then is left.
                yield WindowRequest(todo, frozenset(e.id for group in todo for e in group if e.id not in known))


@dataclass(slots=True)
class _Ledger:
    """Results on their way into the store: whole windows, several in one commit where they come quickly."""

    store: Store
    tally: AnnotationCounts
    done: int = 0
    """Questions whose results are on the disk."""
    _waiting: list[WindowResult] = field(default_factory=list)
    _size: int = 0
    _cost: float = 0.0
    _last: float = field(default_factory=time.monotonic)

    def add(self, result: WindowResult) -> None:
        self._waiting.append(result)
        self._size += len(result.annotations) + len(result.failures)
        self.tally.errors += len(result.failures)
        for _, reason in result.failures:
            self.tally.reasons.add(reason)
        self.tally.new += len(result.annotations)
        for annotation in result.annotations:
            self.tally.add(annotation)

    def commit(self, when_due: bool = False) -> bool:
        """Writes what waits, and says whether there was anything to write now."""
        start = time.monotonic()
        early = when_due and self._size < BATCH and start - self._last < self._cost / SHARE
        if not self._waiting or early:
            return False
        self.store.commit(
            [annotation for result in self._waiting for annotation in result.annotations],
            {name: heat for result in self._waiting for name, heat in result.heats.items()},
            [failure for result in self._waiting for failure in result.failures],
        )
        self._last = time.monotonic()
        self._cost = self._last - start
        self.done += self._size
        self._waiting, self._size = [], 0
        return True
