"""MM-Vet: open answers graded by a language model. Nothing is scored here; `submission` writes the file that graders take."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core.benchmarks import _files, _vqa
from cos_core.interfaces import BenchmarkData
from cos_core.types import Example, Prediction, Score


@dataclass(frozen=True)
class MmVet:
    """Reads `mm-vet.json`; questions are asked as they are, without a format suffix."""

    name: str = "mmvet"
    summary: str = "MM-Vet: open answers for a judge; reads, asks and exports, does not grade"
    headline: str = "total"
    unit: str = "percent"

    def load(self, root: Path) -> BenchmarkData:
        path = _files.require(root, "mm-vet.json", "mm-vet/mm-vet.json", source="take mm-vet.zip from yuweihao/MM-Vet")
        examples = []
        for key, row in _files.read_object(path).items():
            _files.demand(row, ("imagename", "question", "answer", "capability"), f"{path}: question {key}")
            meta = {"question_id": key.removeprefix("v1_"), "capability": list(row["capability"])}
            examples.append(Example(key, "mmvet", row["imagename"], row["question"], (row["answer"],), meta=meta))
        return BenchmarkData(self.name, "v1", examples, _files.image_root(path.parent, "images"))

    def score(self, data: BenchmarkData, predictions: Mapping[str, Prediction]) -> list[Score]:
        return []

    def metrics(self, data: BenchmarkData, scores: Iterable[Score]) -> dict[str, Any]:
        return {"server_scored": True}

    def submission(self, root: Path, data: BenchmarkData, predictions: Mapping[str, Prediction]) -> str:
        """The results file of `mm-vet_evaluator.py`: question key -> answer."""
        pairs = _vqa.complete(data, predictions)
        return json.dumps({example.id: answer for example, answer in pairs}, indent=2)


def build(split: str | None = None) -> MmVet:
    """`split`: only "v1"."""
    _vqa.chosen("mmvet", "split", split, ("v1",))
    return MmVet()
