"""`cos store export` and `cos store import`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from cos_core.data.datasets import ProblemLogger, read_examples
from cos_core.data.formats import (
    TRAINERS,
    ExportFormat,
    Format,
    card,
    chain_of_spot,
    coco,
    dialogues,
    lines,
    parquet,
    trainers,
    viscot,
)
from cos_core.data.formats.config import StoreExportConfig, StoreImportConfig
from cos_core.data.formats.frames import FileBoxes
from cos_core.data.formats.records import ImportSource, Incoming, Outgoing, Sizes
from cos_core.errors import FailuresError, InputError
from cos_core.files import filesystems, jsonl, manifest, outputs
from cos_core.files.durable import atomic_file, atomic_write
from cos_core.files.jsonl import Problem
from cos_core.files.picture_files import folder
from cos_core.interfaces import Reporter
from cos_core.store import codec
from cos_core.store.annotations import BATCH, Store
from cos_core.types import Annotation, Example, RunManifest

_OURS = {
    "jsonl": outputs.records_with("box|example_id", "example_id", "regions_used|failure"),
    "llama-factory": outputs.records_with("id", "messages", "images"),
    "ms-swift": outputs.records_with("id", "messages", "images", "objects"),
}


# --- export ---


def export(config: StoreExportConfig, reporter: Reporter) -> RunManifest:
    """Writes `config.out` and `<out>.manifest.json`, which has the store's fingerprint and provenance.

    Examples without a region have a place in jsonl and parquet and are counted as skipped elsewhere; a region whose picture
    size cannot be found is left out and counted as failed. Raises InputError for a store, data or file that cannot be used,
    FailuresError (with the file written) for more failures than allowed.
    """
    inputs = (config.store, config.data, config.images)
    if config.format == "parquet":
        outputs.check_folder(config.out, "store export", inputs, {card.FILE: lambda content: card.MARK in content})
    else:
        outputs.check_file(config.out, "store export", inputs, _OURS.get(config.format))
    begun = manifest.started("store export", config)
    problems = ProblemLogger(config.store, reporter)
    with Store.read(config.store) as store:
        info = store.info()
        job = _Export(config, store, problems, reporter)
        if config.format == "jsonl" and config.data is None:
            count = store.export_jsonl(config.out, failures=config.failures, heats=config.heats)
        elif config.format == "jsonl":
            raise InputError("jsonl holds the whole store and needs no questions' file")
        elif config.format == "parquet":
            count = _publish(job)
        elif config.format in TRAINERS:
            count = _train_file(job)
        else:
            with atomic_file(config.out) as file:
                count = _writers(job)[config.format](file)
    results = {"format": config.format, "fingerprint": info["fingerprint"], "provenance": info["provenance"], **job.results}
    finished = begun.finish({"ok": count, "failed": problems.count, "skipped": job.skipped}, results=results)
    manifest.write(manifest.path_for(config.out), finished)
    _close(problems, config.max_failures)
    return finished


@dataclass(slots=True)
class _Export:
    config: StoreExportConfig
    store: Store
    problems: ProblemLogger
    reporter: Reporter
    skipped: int = 0
    results: dict[str, Any] = field(default_factory=dict)

    def regions(self) -> Iterator[Outgoing]:
        sizes = Sizes(folder(self.config.images, self.config.follow_links))
        for annotation, example in self.pairs():
            if annotation.box is None:
                self.skipped += 1
                continue
            image = annotation.image or (example.image if example else None)
            try:
                width, height = sizes.of(image, example.meta if example else None)
            except InputError as error:
                self.problems(Problem(self.config.store, None, annotation.example_id, str(error)))
                continue
            yield Outgoing(annotation, annotation.box, width, height, example)

    def pairs(self) -> Iterator[tuple[Annotation, Example | None]]:
        """The annotations, in the order of their ids or of the data, with their questions where there is data."""
        total = self.store.info()["annotations"]
        for done, pair in enumerate(self._pairs(), 1):
            yield pair
            if done % 1000 == 0:
                self.reporter.progress("export", done, total)

    def _pairs(self) -> Iterator[tuple[Annotation, Example | None]]:
        if self.config.data is None:
            for annotation in self.store.annotations():
                yield annotation, None
            return
        for example in read_examples(self.config.data, on_problem=self.problems):
            stored = self.store.get(example.id)
            if stored is None:
                self.skipped += 1
            else:
                yield stored, example


def _writers(job: _Export) -> dict[ExportFormat, Callable[[BinaryIO], int]]:
    return {
        "chain-of-spot": lambda file: chain_of_spot.write(file, job.regions()),
        "coco": lambda file: coco.write(file, job.regions(), f"regions of {job.config.store.name}"),
        "visual-cot": lambda file: viscot.write(file, job.regions()),
    }


def _publish(job: _Export) -> int:
    """The folder of the format parquet; returns the number of rows."""
    config, store, info = job.config, job.store, job.store.info()
    info["provenance"] = parquet.published(info["provenance"])

    def left_out(name: str, reason: str) -> None:
        job.problems(Problem(config.store, None, name, reason))

    heat_of = store.quantised_heat if config.heats else None
    written = parquet.write(config.out / "data", job.pairs(), info, heat_of, left_out)
    others = {"examples that failed, left out": info["failures"], "left out, as parquet cannot hold them": written.refused}
    if config.data is not None:
        others["questions of the data without an annotation, left out"] = job.skipped
        others["annotations without a question in the data, left out"] = info["annotations"] - written.rows - written.refused
    name = Path(os.path.realpath(config.out)).name
    atomic_write(config.out / card.FILE, card.card(name, info, written, {k: v for k, v in others.items() if v}))
    return written.rows


def _train_file(job: _Export) -> int:
    """The file for a trainer, and its crops; returns the number of dialogues."""
    config = job.config
    assert config.format in TRAINERS
    profile = dialogues.settle_profile(config.format, config.profile, config.family)
    images = folder(config.images, config.follow_links)
    if config.crops is not None:
        outputs.check_folder(config.crops, "store export", (config.store, config.images), {})
        dialogues.check_crops(config.crops)
    if config.format == "llama-factory":
        trainers.read_info(config.out)
    maker = dialogues.Maker(config.format, profile, images, config.crops, config.store, job.problems)
    with atomic_file(config.out) as file:
        count = trainers.write(file, maker.dialogues(job.pairs()), maker)
    if config.format == "llama-factory":
        trainers.add_info(config.out)
    left_out = {"no annotation in the store": job.skipped, **maker.left_out}
    for reason, number in left_out.items():
        if number:
            job.reporter.note(f"{number:,} questions are left out: {reason}")
    if maker.upright:
        job.reporter.note(f"{maker.upright:,} pictures that EXIF turns were copied upright into {config.crops}")
    job.skipped += maker.left_out.total()
    job.results = {
        "left_out": {reason: number for reason, number in left_out.items() if number},
        "upright_copies": maker.upright,
        "profile": profile.to_json(),
    }
    return count


# --- import ---


def load(config: StoreImportConfig, reporter: Reporter) -> RunManifest:
    """Reads `config.source` into the store `config.out`, made or continued, and writes the store's manifest last.

    jsonl, parquet and our own COCO files bring the fingerprint of the settings that made them, jsonl's manifest and parquet's
    metadata the provenance too; what others made gets the digest of the file. A record that cannot be used is reported,
    counted, and, where its example is known, recorded as a failure; the rest goes on. Raises InputError for a file that holds
    nothing or is of another job than the store, FailuresError for more failures than allowed.
    """
    if config.questions is not None:
        is_questions = outputs.records_with("answers", "dataset", "question")
        outputs.check_file(config.questions, "store import", (config.source, config.data), is_questions)
    files = parquet.files_of(config.source) if config.format == "parquet" else (config.source,)
    read_from = manifest.files_input(files if len(files) > 1 else files[0])
    begun = manifest.started("store import", config, inputs={"source": read_from})
    problems = ProblemLogger(config.source, reporter)
    digest = begun.inputs["source"]["sha256"]
    data = coco.load(config.source) if config.format == "coco" else {}
    settings: Mapping[str, Any] = {}
    stated = lines.fingerprint(config.source) if config.format == "jsonl" else coco.fingerprint(data) if data else None
    if config.format == "parquet":
        stated, settings = parquet.stated(config.source)
    mark = stated or manifest.fingerprint({"imported": config.format, "sha256": digest})
    sizes = Sizes(folder(config.images, config.follow_links))
    source = ImportSource(config.source, mark, sizes, config.data, problems, FileBoxes(config.format))
    readers: dict[Format, Callable[[], Iterator[Incoming]]] = {
        "jsonl": lambda: lines.read(source),
        "parquet": lambda: parquet.read(source),
        "chain-of-spot": lambda: chain_of_spot.read(source),
        "coco": lambda: coco.read(data, source),
        "visual-cot": lambda: viscot.read(source),
    }
    records = _keepable(readers[config.format](), source)
    if config.data is not None and config.format != "chain-of-spot":
        records = _of_data(records, config.data, source)
    first = next(records, None)
    if first is None:
        raise InputError(f"{config.source} holds no region that can be used")
    provenance = settings or _provenance(config, mark, begun.inputs["source"])
    with ExitStack() as stack:
        store = stack.enter_context(Store.create_or_resume(config.out, mark, provenance))
        if (words := filesystems.warning(config.out)) is not None:
            reporter.warn(words)
        manifest.path_for(config.out).unlink(missing_ok=True)
        questions = stack.enter_context(atomic_file(config.questions)) if config.questions else None
        counts = _fill(store, chain([first], records), questions, reporter)
    sizes.tell(reporter)
    source.boxes.tell(config.source, reporter)
    results = {"format": config.format, "fingerprint": mark, "provenance": provenance}
    finished = begun.finish({**counts, "failed": problems.count}, results=results)
    manifest.write(manifest.path_for(config.out), finished)
    _close(problems, config.max_failures)
    return finished


def _fill(store: Store, records: Iterator[Incoming], questions: BinaryIO | None, reporter: Reporter) -> dict[str, int]:
    counts = {"ok": 0, "no_region": 0, "heats": 0}
    done = 0
    while batch := list(islice(records, BATCH)):
        annotations = [r.annotation for r in batch if r.annotation is not None]
        heats = {r.example_id: r.heat for r in batch if r.heat is not None}
        store.commit(annotations, heats, [(r.example_id, r.failure) for r in batch if r.failure is not None])
        for record in batch:
            if questions is not None and record.example is not None:
                questions.write(manifest.canonical(record.example.to_json()) + b"\n")
        boxed = sum(a.box is not None for a in annotations)
        counts["ok"] += boxed
        counts["no_region"] += len(annotations) - boxed
        counts["heats"] += len(heats)
        done += len(batch)
        reporter.progress("import", done, None)
    return counts


def _keepable(records: Iterator[Incoming], source: ImportSource) -> Iterator[Incoming]:
    """The records that the store can hold (see codec.pack); the rest become problems, so that one does not fail its batch."""
    for record in records:
        try:
            key = codec.key_of(record.example_id)
            if record.annotation is not None:
                codec.pack(record.annotation, key)
        except InputError as error:
            jsonl.report(Problem(source.path, None, record.example_id, str(error)), source.on_problem)
            continue
        yield record


def _of_data(records: Iterator[Incoming], data: Path, source: ImportSource) -> Iterator[Incoming]:
    """The records of examples in `data`; the rest become problems."""
    ids = {example.id for example in read_examples(data, text_only="keep", on_problem=source.on_problem)}
    for record in records:
        if record.example_id in ids:
            yield record
        else:
            jsonl.report(Problem(source.path, None, record.example_id, f"no such example in {data}"), source.on_problem)


def _provenance(config: StoreImportConfig, mark: str, source: Any) -> dict[str, Any]:
    """The provenance in the export's manifest, where that lies beside the file; else the file's path and digest."""
    manifest_path = manifest.path_for(config.source)
    if manifest_path.is_file():
        results = manifest.read(manifest_path).results
        if results.get("fingerprint") == mark and isinstance(results.get("provenance"), dict):
            return results["provenance"]
    return {"imported": {"format": config.format, **source}}


def _close(problems: ProblemLogger, allowed: int | None) -> None:
    problems.rest()
    if allowed is not None and problems.count > allowed:
        raise FailuresError(f"{problems.count} records of {problems.data} could not be used, more than the {allowed} allowed")
