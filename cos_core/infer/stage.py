"""The two passes of Chain-of-Spot (CoS Eq. 2-3): ask where to look, cut that region out, answer with both pictures.

    box text = generate(image, Inst.1(question))                                        Eq. 2
    answer   = generate(image, Inst.1(question), box text, crop, Inst.2(question))      Eq. 3

Everything that goes wrong for one question becomes a Prediction with `error`; everything that goes wrong with a box becomes its
`box_status`. Predictions are appended durably in the order of the data, so a killed run continues where it stopped.
Imports no torch itself: the engine does when it is built.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from cos_core.data.datasets import paths_of
from cos_core.errors import InputError
from cos_core.files import failures, manifest, outputs, picture_files
from cos_core.files.images import open_image
from cos_core.files.jsonl import DurableWriter, decode, placed_lines
from cos_core.infer.passes import Setting, TwoPass
from cos_core.infer.questions import Questions, problems_file, questions
from cos_core.infer.settings import InferConfig, build_engine, finder, model_fingerprint, setting, tell_served
from cos_core.infer.work import around, portions, start
from cos_core.interfaces import Engine, Reporter, Runner
from cos_core.models import llava
from cos_core.runners.local import Local
from cos_core.types import BOX_STATUSES, UNUSABLE_BOXES, Example, Prediction, RunManifest

__all__ = [
    "InferConfig",
    "answer_one",
    "build_engine",
    "check_out",
    "finder",
    "questions",
    "run",
    "setting",
    "start",
    "tell_served",
]


def run(config: InferConfig, reporter: Reporter, engine: Engine | None = None, workers: Runner | None = None) -> RunManifest:
    """Answers every question of `config.data` into the JSON Lines file `config.out`, and writes its manifest last.

    Questions that `out` already holds are not asked again, but those that failed for a reason outside them
    (Prediction.transient), or, with `retry_failed`, all that failed; the finished file has the order of the data.
    `engine`, or the `workers` that `start` gave, answer instead of what the config names. Counts are those of the whole
    file; bad lines of the data count as failed and are named in `<out>.problems.jsonl`, samples without a picture as skipped.
    Raises InputError for settings or data that cannot be used, CosError when the data changes while the model is loaded,
    LockedError when another run writes `out`, FailuresError once more than `max_failures` items have failed, or when the run as
    a whole failed (see failures.py); what was finished stays.
    """
    if config.out is None or (config.data is None and not (config.images and config.question)):
        raise InputError("a run needs a file of questions (data) and a file for the answers (out)")
    check_out(config.out, config)
    picture_files.check_folder(config.images)
    # Before a model is loaded: what is wrong with the data is told at once.
    asked = questions(config, reporter)
    if workers is not None:
        return _run(config, asked, reporter, workers)
    with start(config, reporter) if engine is None else around(engine, config) as runner:
        return _run(config, asked, reporter, runner)


def check_out(out: Path, config: InferConfig) -> None:
    """Raises InputError when `out` is there and holds something else than predictions, or is what the run reads."""
    model = Path(config.model) if isinstance(config.model, str | Path) else None
    data = paths_of(config.data) if config.data is not None else ()
    outputs.check_file(out, "infer", (*data, config.images, config.image, model), outputs.records_with(*_OURS))


_OURS = ("example_id|answer", "answer", "box_status|fingerprint")


def _run(config: InferConfig, asked: Questions, reporter: Reporter, runner: Runner) -> RunManifest:
    out = Path(config.out or "")
    if config.scale.chosen(list) == "ray":
        # What "auto" means is for the machines to say that run the model.
        config = replace(config, dtype=runner.about["dtype"] or config.dtype)
    made = setting(config)
    if asked.snapshot is not None:
        asked.snapshot.check()
    inputs = {
        "data": manifest.files_input(config.data) if config.data else {"path": str(config.images)},
        "model": {"path": str(config.model), "fingerprint": model_fingerprint(config)},
    }
    if asked.snapshot is not None:
        asked.snapshot.check()
    begun = manifest.started("infer", config, seed=config.seed, inputs=inputs, settings_fingerprint=made.fingerprint)
    _remark(config, reporter)
    tally = _Tally(failed=len(asked.problems), skipped=asked.text_only)
    with DurableWriter(out, batch=config.batch_size, check=Prediction.from_json) as writer:
        _write_problems(out, asked)
        kept = _Kept.of(out, made, asked.examples)
        done, again = kept.settle(writer, tally, retry_all=config.retry_failed)
        todo = [example for example in asked.examples if example.id not in done]
        before = len(asked.examples) - len(todo)
        kept.tell(reporter, again, before, len(asked.examples))
        reporter.progress("infer", before, len(asked.examples))
        if todo:
            # The old manifest speaks of a finished file, which this one no longer is.
            manifest.path_for(out).unlink(missing_ok=True)
        if todo and not tally.exceeds(config.max_failures):
            work = portions(config, todo, asked.siblings, here=isinstance(runner, Local))
            # Closed at once when the loop is left: workers are not to go on with what nobody will write.
            with closing(runner.map(work)) as answers:
                for number, predictions in enumerate(answers):
                    if number == 0:
                        _note_settings(out, made)
                    for prediction in predictions:
                        writer.append(prediction.to_json())
                        tally.add(_Line.of(0, 0, prediction))
                    before += len(predictions)
                    reporter.progress("infer", before, len(asked.examples), tally.words())
                    if tally.exceeds(config.max_failures):
                        break
        if done and todo:
            kept.order(writer)
    listed = f"all of them: grep -v '\"error\":null' {shlex.quote(str(out))}"
    failed = failures.verdict(
        tally.ok + tally.skipped, tally.failed, config.max_failures, tally.reasons, of="questions", listed=listed
    )
    results: dict[str, Any] = {"settings": made.settings}
    if asked.problems:
        results["problems"] = {"count": len(asked.problems), "file": problems_file(out).name}
    finished = begun.finish(tally.counts(), status="complete" if failed is None else "failed", results=results)
    manifest.write(manifest.path_for(out), finished)
    _settings_file(out).unlink(missing_ok=True)
    if failed is not None:
        raise failed
    if tally.failed and (words := tally.reasons.most()):
        reporter.warn(f"{tally.failed} questions failed; {words}; {listed}")
    return finished


def _write_problems(out: Path, asked: Questions) -> None:
    """Names each record of the data that cannot be used in a file beside the answers; without any there is no such file."""
    path = problems_file(out)
    if not asked.problems:
        path.unlink(missing_ok=True)
        return
    with manifest.atomic_file(path) as file:
        for one in asked.problems:
            row = {"path": str(one.path), "line": one.line, "id": one.example_id, "reason": one.reason}
            file.write(manifest.canonical(row) + b"\n")


def answer_one(
    config: InferConfig, reporter: Reporter, engine: Engine | None = None, listen: Callable[[str], None] | None = None
) -> Prediction:
    """Answers `config.question` about `config.image`; writes nothing. `listen` hears the answer as it comes.

    Raises InputError when the picture cannot be used or the model gave no answer; a question left unanswered because of its box
    (`on_bad_box="skip"`) comes back with `error`.
    """
    if config.image is None or not config.question:
        raise InputError("one answer needs an image and a question")
    made = setting(config)
    _remark(config, reporter)
    picture = open_image(None, str(config.image))
    if engine is None:
        tell_served(config, reporter)
        if config.engine == "hf":
            reporter.note(f"loading {config.model} ...")
    engine = engine or build_engine(config)
    chain = TwoPass(engine, made, listen=listen, finder=finder(config, engine))
    example = Example(id=config.image.name, dataset="single", image=str(config.image), question=config.question)
    prediction = chain.predict([(example, picture)])[0]
    if prediction.error is not None and not _was_skipped(prediction):
        raise InputError(prediction.error)
    if prediction.box_status in UNUSABLE_BOXES and config.on_bad_box != "skip":
        reporter.warn(f"the first pass named no usable region ({prediction.box_status}); looked at: {config.on_bad_box}")
    return prediction


def _remark(config: InferConfig, reporter: Reporter) -> None:
    """Says which number format is taken where the GPU lacks the usual one; workers elsewhere are not asked."""
    if config.engine != "hf" or config.scale.chosen(list) == "ray":
        return
    if (words := llava.dtype_remark(config.device, config.dtype)) is not None:
        (reporter.note if config.dtype == "auto" else reporter.warn)(words)


@dataclass(slots=True)
class _Tally:
    """Counts over everything that the output holds."""

    ok: int = 0
    failed: int = 0
    skipped: int = 0
    boxes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(BOX_STATUSES, 0))
    reasons: failures.FailureReasons = field(default_factory=failures.FailureReasons)

    def add(self, line: _Line) -> None:
        self.boxes[line.box_status] += 1
        if line.error is None:
            self.ok += 1
        elif line.skipped:
            self.skipped += 1
        else:
            self.failed += 1
            self.reasons.add(line.error)

    def exceeds(self, allowed: int | None) -> bool:
        return allowed is not None and self.failed > allowed

    def counts(self) -> dict[str, int]:
        boxes = {f"box_{status}": number for status, number in self.boxes.items()}
        return {"ok": self.ok, "failed": self.failed, "skipped": self.skipped, **boxes}

    def words(self) -> str:
        return f"{self.failed} failed" if self.failed else ""


def _was_skipped(prediction: Prediction) -> bool:
    """Left unanswered because its box was unusable and the settings said so."""
    return prediction.error is not None and prediction.box is None and prediction.box_status in UNUSABLE_BOXES


@dataclass(frozen=True, slots=True)
class _Line:
    """What counts of a prediction that the output holds, and where it stands: offset and length in bytes. There may be a
    million of them; `answer` is a hash."""

    offset: int
    length: int
    example_id: str
    box_status: str
    error: str | None
    skipped: bool
    transient: bool
    answer: int

    @classmethod
    def of(cls, offset: int, length: int, found: Prediction) -> _Line:
        skipped, answer = _was_skipped(found), hash(found.answer)
        return cls(offset, length, found.example_id, found.box_status, found.error, skipped, found.transient, answer)

    def is_retried(self, everything: bool) -> bool:
        return self.error is not None and not self.skipped and (everything or self.transient)


@dataclass(slots=True)
class _Kept:
    """What a former run left in the output, line by line; `rank`: the place of each question in the data."""

    path: Path
    lines: list[_Line]
    rank: Mapping[str, int]
    doubled: list[str] = field(default_factory=list)
    """Questions that stand there twice, with different answers."""

    @classmethod
    def of(cls, path: Path, made: Setting, examples: Sequence[Example]) -> _Kept:
        """Reads the output. Raises InputError when it was written with other settings or for another question of an id."""
        questions = {example.id: example.question for example in examples}
        kept = cls(path, [], {example.id: place for place, example in enumerate(examples)})
        for line, prediction in _stored(path):
            if prediction.fingerprint != made.fingerprint:
                raise InputError(
                    f"{path} holds predictions made with other settings ({_other_settings(path, prediction, made)}); "
                    f"give another output file, or remove it"
                )
            if questions.get(prediction.example_id, prediction.question) != prediction.question:
                raise InputError(f"{path} holds an answer to another question with the id {prediction.example_id!r}")
            kept.lines.append(line)
        return kept

    def settle(self, writer: DurableWriter, tally: _Tally, *, retry_all: bool) -> tuple[set[str], int]:
        """(ids that need no further asking, how many failures are asked again); the others' lines leave the file.

        Of a question that stands there twice, the first answer counts, before any failure.
        """
        best: dict[str, _Line] = {}
        for line in self.lines:
            known = best.get(line.example_id)
            if known is None or (known.error is not None and line.error is None):
                best[line.example_id] = line
            if known is not None and known.error is None and line.error is None and known.answer != line.answer:
                self.doubled.append(line.example_id)
        gone = {name for name, line in best.items() if line.is_retried(retry_all)}
        for name, line in best.items():
            if name not in gone:
                tally.add(line)
        kept = [line for line in self.lines if not line.is_retried(retry_all)]
        if len(kept) < len(self.lines):
            self.lines = kept
            writer.keep((line.offset, line.length) for line in kept)
        return set(best) - gone, len(gone)

    def tell(self, reporter: Reporter, again: int, before: int, total: int) -> None:
        if before and before < total:
            reporter.note(f"{before} of {total} questions are answered already")
        if again:
            reporter.note(f"{again} questions that failed before are asked again")
        if self.doubled:
            names = ", ".join(map(repr, self.doubled[:3])) + (", ..." if len(self.doubled) > 3 else "")
            reporter.warn(
                f"{self.path} holds {len(self.doubled)} questions twice with different answers: {names}; the first counts"
            )
        final = sum(line.error is not None and not line.skipped for line in self.lines)
        if final:
            reporter.note(f"{final} failures stay as they are; --retry-failed asks them again")

    def order(self, writer: DurableWriter) -> None:
        """Puts the finished file into the order of the data, where lines were asked again; others keep their places."""
        lines = [line for line, _ in _stored(self.path)]
        known = [line for line in lines if line.example_id in self.rank]
        if all(self.rank[a.example_id] <= self.rank[b.example_id] for a, b in pairwise(known)):
            return
        ordered = iter(sorted(known, key=lambda line: self.rank[line.example_id]))
        writer.keep((line.offset, line.length) for line in (next(ordered) if o.example_id in self.rank else o for o in lines))


def _stored(path: Path) -> Iterator[tuple[_Line, Prediction]]:
    for place, record in placed_lines(path):
        try:
            found = Prediction.from_json(record)
            yield _Line.of(place.offset, place.length, found), found
        except InputError as error:
            raise InputError(f"{path}:{place.line}: not a prediction: {error}; give another output file") from None


def _other_settings(path: Path, prediction: Prediction, made: Setting) -> str:
    """In what the settings of an answer differ from those of now, as far as the files beside the answers say it."""
    marks = f"{prediction.fingerprint or 'no fingerprint'}, now {made.fingerprint}"
    before = manifest.beside(path, prediction.fingerprint)
    if before is None:
        noted = _noted_settings(path, prediction.fingerprint)
        return "; ".join(manifest.differences(noted, made.settings)) or marks if noted else marks
    if "settings" not in before.results:
        return f"{marks}; cos {before.versions.get('cos', '')} wrote it, and did not record all of them"
    return "; ".join(manifest.differences(before.results["settings"], made.settings)) or marks


def _settings_file(out: Path) -> Path:
    """Where the settings of a run stand until its manifest does: a run that was killed can say what it was told, too."""
    return out.with_name(f"{out.name}.settings.json")


def _note_settings(out: Path, made: Setting) -> None:
    record = {"fingerprint": made.fingerprint, "settings": made.settings}
    manifest.atomic_write(_settings_file(out), manifest.canonical(record) + b"\n")


def _noted_settings(out: Path, fingerprint: str) -> Mapping[str, Any]:
    """The settings behind a fingerprint; none where the file is of another run or cannot be read."""
    try:
        record = decode(_settings_file(out).read_bytes())
        return dict(record["settings"]) if record["fingerprint"] == fingerprint else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
