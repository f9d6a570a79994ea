"""Finished runs as pictures need them: scores, answers, questions and where the images are, read from an eval folder.

A run that is not finished, or of which a part is gone, is read as far as it goes; `FinishedRun.remarks` says what is missing.
Nothing is scored here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from cos_core.data import datasets
from cos_core.dialogue.crop_content import content_of
from cos_core.errors import CosError, InputError
from cos_core.files import jsonl, manifest, plug
from cos_core.files.picture_files import Root, folder
from cos_core.interfaces import BenchmarkData, Reporter
from cos_core.scoring import columns, samples
from cos_core.scoring.box_tally import BoxTally
from cos_core.scoring.columns import ById, Following, IdColumn, Scores
from cos_core.scoring.comparison import ScoredRun
from cos_core.scoring.recorded import Recorded
from cos_core.types import UNUSABLE_BOXES, Example, Prediction, RunManifest, Score
from cos_core.visualize import source
from cos_core.visualize.run_questions import RunQuestion

SCORES = "scores.jsonl"
LATER_FIELDS = ("shown", "gate", "margin", "plain", "samples")
"""Fields of Prediction that say how its second look was decided and what it showed; unset in most runs."""


@dataclass(frozen=True, slots=True)
class RunSources:
    """Paths that replace those recorded in a run: `data` the benchmark's folder or a questions' file, `images` the root of
    the image paths, `follow_links`: whether links in `images` may lead out of it."""

    data: Path | None = None
    images: Path | None = None
    follow_links: bool = False


@dataclass(slots=True)
class Summary:
    """Counts over all answers of a run, made while they are read.

    `requested`: answers whose status is not "skipped"; `unread`: those of them without a usable box; `silent`: answers with a
    box and no record of how it was cut; `settings`: the values of policy and profile. `looks`: answers by what their second
    look was, where it was not simply the region: "black", "noise", "swap", "absent", "other", "gate open", "gate closed";
    `samples`: the most sampled answers to a question; `fields`: those of LATER_FIELDS that are set in any answer.
    """

    boxes: BoxTally = field(default_factory=BoxTally)
    answered: int = 0
    failed: int = 0
    requested: int = 0
    unread: int = 0
    silent: int = 0
    settings: dict[str, set[str]] = field(default_factory=lambda: {"policy": set(), "profile": set()})
    looks: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    fields: set[str] = field(default_factory=set)

    @property
    def mixed(self) -> bool:
        """Whether the answers differ in policy or profile."""
        return any(len(values) > 1 for values in self.settings.values())

    def add(self, prediction: Prediction, cuts: source.Cuts) -> None:
        self.boxes.add(*source.looked_at(prediction))
        self.answered += prediction.answer is not None
        self.failed += prediction.error is not None
        self.requested += prediction.box_status != "skipped"
        self.unread += prediction.box_status in UNUSABLE_BOXES
        self.silent += prediction.box is not None and cuts.of(prediction) is None
        for name, values in self.settings.items():
            values.add(str(getattr(prediction, name)))
        if prediction.shown is not None:
            self.looks[content_of(prediction.shown)] += 1
        if prediction.gate is not None:
            self.looks[f"gate {prediction.gate}"] += 1
        self.samples = max(self.samples, len(prediction.samples))
        self.fields.update(name for name in LATER_FIELDS if getattr(prediction, name) not in (None, ()))


@dataclass(slots=True)
class FinishedRun:
    """One run. `scores` is empty for answers that were never scored; ids are example ids, in the data's order where known.

    `further`: the scores of a run's samples 2, 3, ...; `remarks`: what is missing or unusual, a sentence each; `about`: the
    line below its name in a table, else its benchmark.
    """

    name: str
    path: Path
    manifest: RunManifest | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)
    further: Sequence[Scores] = ()
    predictions: Mapping[str, Prediction] = field(default_factory=dict)
    examples: Mapping[str, Example] = field(default_factory=dict)
    summary: Summary = field(default_factory=Summary)
    images: Root = None
    benchmark: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    cuts: source.Cuts | None = None
    questions: tuple[str, str, str] | None = None
    about: str = ""

    @property
    def results(self) -> Mapping[str, Any]:
        """The manifest's results; empty for a run without one."""
        return self.manifest.results if self.manifest else {}

    @property
    def finished(self) -> datetime | None:
        """When the answers were complete, as the manifest says."""
        try:
            return datetime.fromisoformat(self.manifest.finished) if self.manifest else None
        except ValueError:
            return None

    def scored(self) -> ScoredRun | None:
        """The run as comparisons take it; None for one that is not finished or not scored."""
        if self.manifest is None or not len(self.scores):
            return None
        scores = self.scores
        rows = scores.rows if isinstance(scores, ById) else list(scores.values())
        return ScoredRun(self.path, self.manifest, rows, self.further)

    def ids(self) -> IdColumn:
        """Every question of the run."""
        tables = [table for table in (self.examples, self.scores, self.predictions) if len(table)]
        first = tables[0].ids if tables and isinstance(tables[0], ById) else None
        if first is not None and first.unique() and all(isinstance(t, ById) and t.ids is first for t in tables):
            return first
        return IdColumn(list(dict.fromkeys(name for table in tables for name in table)))

    def right(self, example_id: str) -> bool | None:
        """Whether the answer counts, in part at least; None when it was not scored."""
        if isinstance(self.scores, ById) and isinstance(self.scores.rows, Scores):
            place = self.scores.ids.places().get(example_id)
            return None if place is None else self.scores.rows.value(place) > 0
        score = self.scores.get(example_id)
        return None if score is None else score.value > 0

    def item(self, example_id: str) -> RunQuestion:
        return RunQuestion(self.predictions.get(example_id), self.scores.get(example_id), self.examples.get(example_id))


def picture_root(runs: Sequence[FinishedRun]) -> Root:
    """The root of the image paths, from the first run that has one."""
    return next((run.images for run in runs if run.images is not None), None)


def load(
    paths: Sequence[Path], sources: RunSources, reporter: Reporter, names: Sequence[str] | None = None
) -> list[FinishedRun]:
    """The runs at `paths`, with `names` or the shortest ends of the paths that differ; remarks go to the reporter, too.

    Raises InputError when a path holds neither scores nor predictions, or one that is empty.
    """
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise InputError("the same run is named twice")
    runs: list[FinishedRun] = []
    for path, name in zip(paths, names or _names(paths), strict=True):
        runs.append(_load(path, name, sources, runs))
    for run in runs:
        for remark in run.remarks:
            reporter.warn(f"{run.name}: {remark}")
    return runs


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [Path(os.path.realpath(path)).parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _load(path: Path, name: str, sources: RunSources, others: Sequence[FinishedRun]) -> FinishedRun:
    """The run at `path`. `others`: runs loaded before; tables of the same questions are shared with them."""
    if not path.exists():
        raise InputError(f"{path}: no such run")
    run = FinishedRun(name, path)
    folder = path if path.is_dir() else path.parent
    _read_manifest(run, folder)
    if path.is_dir() and (path / SCORES).is_file():
        scores = columns.read_scores(path / SCORES, _noted(run.remarks), _known(others))
        run.scores = scores.by_id()
        try:
            run.further = samples.read_further(path, run.results, scores)
        except InputError as error:
            run.remarks.append(f"only its first sample is shown and compared: {error}")
    answers = _predictions_file(run)
    if answers is not None:
        _read_answers(run, answers, _known([run, *others]))
    if not run.scores and not run.predictions:
        raise InputError(f"{path} holds neither scores nor predictions: is it a folder of `cos eval` or `cos infer`?")
    if not run.predictions:
        run.remarks.append("its predictions are gone; cards show scores only")
    if not run.scores and path.is_dir():
        run.remarks.append("its answers are not scored yet (cos eval does that)")
    _read_questions(run, sources, others)
    _rename(run)
    return run


def _known(runs: Sequence[FinishedRun]) -> IdColumn | None:
    """The ids of the first table that a run has."""
    tables = (table for run in runs for table in (run.scores, run.predictions, run.examples))
    return next((table.ids for table in tables if isinstance(table, ById) and len(table.ids)), None)


def _read_answers(run: FinishedRun, answers: Path, known: IdColumn | None) -> None:
    rows, names = Recorded(answers, _noted(run.remarks)), Following(known)
    run.cuts = source.Cuts(answers)
    for _, prediction in rows.walk():
        names.add(prediction.example_id)
        run.summary.add(prediction, run.cuts)
    run.predictions = ById(names.ids(), rows)
    if len(run.predictions) < len(rows):
        # Of several answers to one question the last counts.
        run.summary = Summary()
        for prediction in run.predictions.values():
            run.summary.add(prediction, run.cuts)
    if run.summary.silent:
        run.remarks.append(
            f"{run.summary.silent} of its answers do not say how their regions were cut; from the picture is assumed"
        )


def _read_manifest(run: FinishedRun, folder: Path) -> None:
    if not run.path.is_dir():
        run.images = _picture_folder(run.path)
        return
    file = folder / manifest.FILE
    if not file.is_file():
        run.remarks.append("it has no manifest: it is not finished, or was stopped; shown as far as it goes")
        return
    try:
        record = manifest.read(file)
    except InputError as error:
        run.remarks.append(str(error))
        return
    run.manifest = record
    run.benchmark = str(record.results.get("benchmark", ""))
    run.protocol = dict(record.results.get("protocol", {}))
    missing = record.counts.get("missing", 0)
    if missing:
        run.remarks.append(f"{missing} of its questions have no answer; they count as wrong")


def _picture_folder(answers: Path) -> Path | None:
    """The picture folder that the manifest beside an answers' file names; None without a manifest or a folder in it."""
    try:
        config = manifest.read(manifest.path_for(answers)).config
    except InputError:
        return None
    named = config.get("images")
    if not named:
        return None
    places = (Path(str(named)), answers.parent / str(named))
    return next((place for place in places if place.is_dir()), places[0])


def _predictions_file(run: FinishedRun) -> Path | None:
    """The run's predictions file: beside the scores, else the recorded one; a remark says when that has changed since."""
    file = run.path / source.PREDICTIONS if run.path.is_dir() else run.path
    if file.is_file():
        return file
    recorded = (run.manifest.inputs if run.manifest else {}).get("predictions", {})
    for place in (Path(str(recorded.get("path", ""))), run.path / Path(str(recorded.get("path", "?"))).name):
        if recorded and place.is_file():
            if manifest.file_digest(place) != recorded.get("sha256"):
                run.remarks.append(f"{place} has changed since it was scored")
            return place
    return None


def _read_questions(run: FinishedRun, sources: RunSources, others: Sequence[FinishedRun]) -> None:
    config = dict(run.manifest.config) if run.manifest else {}
    inputs = run.manifest.inputs if run.manifest else {}
    # The recorded input is absolute; the setting is as it was typed, which may have been in another folder.
    recorded = inputs.get("data", {}).get("path") or config.get("data")
    several = tuple(Path(str(each)) for each in recorded) if isinstance(recorded, list) else None
    data = sources.data or several or (Path(str(recorded)) if recorded else None)
    name = str(config.get("benchmark") or "")
    images = sources.images or (Path(str(config["images"])) if run.images is None and config.get("images") else None)
    run.images = run.images if images is None else folder(images, sources.follow_links)
    if data is None:
        return
    options = {key: config[key] for key in ("split", "scorer") if config.get(key)}
    run.questions = (str(data), name, str(options))
    same = next((other for other in others if other.questions == run.questions and len(other.examples)), None)
    if same is not None:
        run.examples, run.images = same.examples, run.images or same.images
        return
    try:
        if name:
            loaded: BenchmarkData = plug.load("benchmarks", name, **options).load(data)
            examples = loaded.examples
            run.images = run.images or folder(loaded.image_root, sources.follow_links)
        else:
            examples = columns.Examples(datasets.read_examples(data, columns=config.get("columns"), text_only="keep"))
        ids, known = columns.ids_of(examples), _known([run, *others])
        run.examples = ById(known if known is not None and known.names == ids.names else ids, examples)
    except (CosError, OSError) as error:
        run.remarks.append(f"its questions cannot be read ({error}); cards show what the predictions recorded")


def _rename(run: FinishedRun) -> None:
    """Gives answers that carry an official question id (LLaVA's format) the id of their example, where that is unique."""
    if not len(run.examples) or any(name in run.examples for name in run.predictions):
        return
    by_question: dict[str, list[str]] = {}
    for example in run.examples.values():
        by_question.setdefault(str(example.id if example.question_id is None else example.question_id), []).append(example.id)
    renamed = {}
    for example_id in run.predictions:
        candidates = by_question.get(example_id, [])
        renamed[example_id] = candidates[0] if len(candidates) == 1 else example_id
    if isinstance(run.predictions, ById):
        names = [renamed[name] for name in run.predictions.ids.names]
        run.predictions = ById(IdColumn(names), run.predictions.rows)


def _noted(remarks: list[str]) -> jsonl.OnProblem:
    return lambda problem: remarks.append(str(problem))
