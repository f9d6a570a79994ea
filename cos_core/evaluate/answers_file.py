"""The file of answers that is scored: in our format or LLaVA's as it stands, else made of what another harness recorded."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core.data import harness_files
from cos_core.errors import InputError
from cos_core.evaluate import importing
from cos_core.evaluate.importing import Import
from cos_core.evaluate.joining import read_predictions
from cos_core.files import manifest, plug
from cos_core.files.durable import atomic_file
from cos_core.interfaces import Benchmark, BenchmarkData
from cos_core.scoring.recorded import Recorded

PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True, slots=True)
class AnswersFile:
    """`path`: the answers in our format or LLaVA's. `imported`: how they were made of a harness's file, where they were."""

    path: Path
    imported: Import | None = None

    def read(self) -> Recorded:
        """The answers; those of a harness's file that could not be read are among the unreadable."""
        recorded = read_predictions(self.path)
        if self.imported is not None:
            recorded.named = self.imported.source.path
            recorded.unreadable += self.imported.source.problems
        return recorded

    def inputs(self, out: Path | None) -> dict[str, dict[str, Any]]:
        """Their records for a manifest. Of a harness's file: `recorded` is that file, `predictions` what `keep` leaves."""
        if self.imported is None:
            return {"predictions": manifest.file_input(self.path)}
        recorded = manifest.file_input(self.imported.source.path)
        if out is None:
            return {"predictions": recorded, "recorded": recorded}
        predictions = {**manifest.file_input(self.path), "path": str((out / importing.FILE).absolute())}
        return {"predictions": predictions, "recorded": recorded}

    def keep(self, out: Path) -> None:
        """Leaves imported answers beside their scores; those of an earlier run go, unless they are what was scored.

        Raises InputError.
        """
        kept = out / importing.FILE
        if self.imported is None and kept.exists() and kept.samefile(self.path):
            return
        kept.unlink(missing_ok=True)
        if self.imported is not None:
            with self.path.open("rb") as answers, atomic_file(kept) as file:
                shutil.copyfileobj(answers, file)


@contextmanager
def opened(file: Path, benchmark: Benchmark, data: BenchmarkData) -> Iterator[AnswersFile]:
    """The answers in `file` to the questions of `data`. Raises InputError."""
    source = harness_files.read(file)
    if source is None:
        yield AnswersFile(file)
        return
    with tempfile.TemporaryDirectory(prefix="cos-eval-") as folder:
        answers = Path(folder) / importing.FILE
        yield AnswersFile(answers, importing.convert(source, benchmark, data, answers))


def find(path: Path, benchmark: str) -> Path:
    """The file of answers to a benchmark: `path`; in a folder predictions.jsonl, else the one that a harness named after it."""
    if not path.is_dir():
        return path
    own = path / PREDICTIONS
    return own if own.is_file() else file_for(path, benchmark) or own


def file_for(root: Path, benchmark: str) -> Path | None:
    """The one file in a folder that holds a harness's answers to a benchmark, by its name; None without one.

    Raises InputError when there are several.
    """
    ends = tuple(_names(plug.short(benchmark)))
    found = [path for path in sorted(root.iterdir()) if path.name.endswith(ends) and path.is_file()] if root.is_dir() else []
    if len(found) > 1:
        raise InputError(f"{root} has several files of answers to {benchmark}: {found[0].name} and {found[1].name}; name one")
    return found[0] if found else None


def _names(benchmark: str) -> Iterator[str]:
    """The ends of the names of files with answers to a benchmark."""
    for name, (of, _) in harness_files.DATASETS.items():
        if of == benchmark:
            yield from (f"_{name}{ending}" for ending in (".xlsx", ".tsv", ".csv", ".json"))
    yield from (f"_samples_{name}.jsonl" for name, (of, _) in harness_files.TASKS.items() if of == benchmark)
