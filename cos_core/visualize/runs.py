"""Finished runs as pictures need them: scores, answers, questions and where the images are, read from an eval folder.

A run that is not finished, or of which a part is gone, is read as far as it goes; `Run.remarks` says what is missing.
Nothing is scored here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from cos_core import datasets, jsonl, manifest, plug
from cos_core.comparison import ScoredRun
from cos_core.errors import CosError, InputError
from cos_core.geometry import Box
from cos_core.interfaces import BenchmarkData, Reporter
from cos_core.types import UNUSABLE_BOXES, Example, Prediction, RunManifest, Score
from cos_core.visualize import source

SCORES = "scores.jsonl"


@dataclass(frozen=True, slots=True)
class RunSources:
    """Where to look when a run does not say it, or its files have moved: `data` the benchmark's folder or a questions' file,
    `images` the root of the image paths."""

    data: Path | None = None
    images: Path | None = None


@dataclass(slots=True)
class Run:
    """One run. `scores` is empty for answers that were never scored; ids are example ids, in the data's order where known."""

    name: str
    path: Path
    manifest: RunManifest | None = None
    scores: dict[str, Score] = field(default_factory=dict)
    predictions: dict[str, Prediction] = field(default_factory=dict)
    examples: dict[str, Example] = field(default_factory=dict)
    images: Path | None = None
    benchmark: str = ""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    cuts: source.Cuts | None = None

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
        return ScoredRun(self.path, self.manifest, list(self.scores.values())) if self.manifest and self.scores else None

    def ids(self) -> list[str]:
        """Every question of the run."""
        return list(dict.fromkeys([*self.examples, *self.scores, *self.predictions]))

    def item(self, example_id: str) -> Item:
        return Item(self.predictions.get(example_id), self.scores.get(example_id), self.examples.get(example_id))


@dataclass(frozen=True, slots=True)
class Item:
    """One question in one run; any part may be missing."""

    prediction: Prediction | None
    score: Score | None
    example: Example | None

    @property
    def question(self) -> str:
        own = self.example.question if self.example else None
        return own or (self.prediction.question if self.prediction else None) or "(question not recorded)"

    @property
    def answer(self) -> str:
        if self.prediction is None:
            return "(no answer recorded)"
        if self.prediction.error:
            return f"failed: {self.prediction.error}"
        return self.prediction.answer if self.prediction.answer else "(nothing)"

    @property
    def right(self) -> bool | None:
        """Whether the answer counts, in part at least; None when it was not scored."""
        return None if self.score is None else self.score.value > 0

    @property
    def truth(self) -> str:
        if self.example is not None and self.example.answers:
            return " / ".join(dict.fromkeys(self.example.answers))
        return (self.score.expected if self.score else None) or ""

    @property
    def box(self) -> Box | None:
        return self.prediction.box if self.prediction else None

    @property
    def gold(self) -> Box | None:
        """The data's own region. A malformed one counts as none: the run's scores have said so."""
        value = self.example.meta.get("gold") if self.example else None
        try:
            return None if value is None else Box.from_json(value)
        except InputError:
            return None

    @property
    def image(self) -> str | None:
        own = self.example.image if self.example else None
        return own or (self.prediction.image if self.prediction else None)

    @property
    def kind(self) -> str:
        """The slice that a reader filters by: the question's kind, category or split, as the scores name it."""
        groups = dict(self.score.groups) if self.score else {}
        for key in ("kind", "category", "type", "split"):
            if groups.get(key):
                return str(groups[key])
        return ""

    @property
    def fallback(self) -> bool:
        """Whether a box was asked for and could not be used."""
        return self.prediction is not None and self.prediction.box_status in UNUSABLE_BOXES


def load(paths: Sequence[Path], sources: RunSources, reporter: Reporter) -> list[Run]:
    """The runs at `paths`, with names that differ; remarks go to the reporter, too.

    Raises InputError when a path holds neither scores nor predictions, or one that is empty.
    """
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise InputError("the same run is named twice")
    runs = [_load(path, name, sources) for path, name in zip(paths, _names(paths), strict=True)]
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


def _load(path: Path, name: str, sources: RunSources) -> Run:
    if not path.exists():
        raise InputError(f"{path}: no such run")
    run = Run(name, path)
    folder = path if path.is_dir() else path.parent
    _read_manifest(run, folder)
    if path.is_dir() and (path / SCORES).is_file():
        run.scores = {s.example_id: s for s in _records(path / SCORES, Score, run.remarks)}
    answers = _predictions_file(run)
    if answers is not None:
        run.predictions = {p.example_id: p for p in source.read_predictions(answers, _noted(run.remarks))}
        run.cuts = source.Cuts(answers)
        silent = sum(p.box is not None and run.cuts.of(p) is None for p in run.predictions.values())
        if silent:
            run.remarks.append(f"{silent} of its answers do not say how their regions were cut; from the picture is assumed")
    if not run.scores and not run.predictions:
        raise InputError(f"{path} holds neither scores nor predictions: is it a folder of `cos eval` or `cos infer`?")
    if not run.predictions:
        run.remarks.append("its predictions are gone; cards show scores only")
    if not run.scores and path.is_dir():
        run.remarks.append("its answers are not scored yet (cos eval does that)")
    _read_questions(run, sources)
    _rename(run)
    return run


def _read_manifest(run: Run, folder: Path) -> None:
    file = folder / manifest.FILE
    if not file.is_file() or not run.path.is_dir():
        if run.path.is_dir():
            run.remarks.append("it has no manifest: it is not finished, or was stopped; shown as far as it goes")
        return
    try:
        found = manifest.read(file)
    except InputError as error:
        run.remarks.append(str(error))
        return
    run.manifest = found
    run.benchmark = str(found.results.get("benchmark", ""))
    run.protocol = dict(found.results.get("protocol", {}))
    missing = found.counts.get("missing", 0)
    if missing:
        run.remarks.append(f"{missing} of its questions have no answer; they count as wrong")


def _predictions_file(run: Run) -> Path | None:
    """The answers: beside the scores, or where the manifest says they lie, as they were when they were scored."""
    own = run.path / source.PREDICTIONS if run.path.is_dir() else run.path
    if own.is_file():
        return own
    recorded = (run.manifest.inputs if run.manifest else {}).get("predictions", {})
    for place in (Path(str(recorded.get("path", ""))), run.path / Path(str(recorded.get("path", "?"))).name):
        if recorded and place.is_file():
            if manifest.file_digest(place) != recorded.get("sha256"):
                run.remarks.append(f"{place} has changed since it was scored")
            return place
    return None


def _read_questions(run: Run, sources: RunSources) -> None:
    config = dict(run.manifest.config) if run.manifest else {}
    inputs = run.manifest.inputs if run.manifest else {}
    # The recorded input is absolute; the setting is as it was typed, which may have been in another folder.
    recorded = inputs.get("data", {}).get("path") or config.get("data")
    several = tuple(Path(str(each)) for each in recorded) if isinstance(recorded, list) else None
    data = sources.data or several or (Path(str(recorded)) if recorded else None)
    name = str(config.get("benchmark") or "")
    run.images = sources.images or (Path(str(config["images"])) if config.get("images") else None)
    if data is None:
        return
    try:
        if name:
            options = {key: config[key] for key in ("split", "scorer") if config.get(key)}
            loaded: BenchmarkData = plug.load("benchmarks", name, **options).load(data)
            run.examples = {e.id: e for e in loaded.examples}
            run.images = run.images or loaded.image_root
        else:
            run.examples = {e.id: e for e in datasets.read_examples(data, text_only="keep")}
    except (CosError, OSError) as error:
        run.remarks.append(f"its questions cannot be read ({error}); cards show what the predictions recorded")


def _rename(run: Run) -> None:
    """Gives answers that carry an official question id (LLaVA's format) the id of their example, where that is unique."""
    known = set(run.examples)
    if not known or known & set(run.predictions):
        return
    by_question: dict[str, list[str]] = {}
    for example in run.examples.values():
        by_question.setdefault(str(example.meta.get("question_id", example.id)), []).append(example.id)
    renamed = {}
    for example_id, prediction in run.predictions.items():
        candidates = by_question.get(example_id, [])
        renamed[candidates[0] if len(candidates) == 1 else example_id] = prediction
    run.predictions = renamed


def _records(path: Path, kind: type[Score], remarks: list[str]) -> Iterable[Score]:
    for line, row in jsonl.read_lines(path, _noted(remarks)):
        try:
            yield kind.from_json(row)
        except InputError as error:
            remarks.append(f"{path.name}:{line}: {error}")


def _noted(remarks: list[str]) -> jsonl.OnProblem:
    return lambda problem: remarks.append(str(problem))
