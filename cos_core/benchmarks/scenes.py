"""Exact match on a folder of our own: drawn scenes of the demo, or any questions with answers in LLaVA's conversation format.

`questions.jsonl` (or .json) holds conversations or Example lines (datasets.read_examples); per question `meta` may have `kind`,
`gold` and `targets` (types.Example; metrics.region_score). The score is ours: 1 when
the answer equals one of the accepted answers after answers.plain, else 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cos_core.benchmarks import _files
from cos_core.benchmarks._sliced import SlicedBenchmark
from cos_core.data import datasets
from cos_core.errors import InputError
from cos_core.interfaces import BenchmarkData
from cos_core.scoring import answers, metrics
from cos_core.scoring.metrics import Estimate, Verdict
from cos_core.types import Example, Score

FILES = ("questions.jsonl", "questions.json")


@dataclass(frozen=True)
class Scenes(SlicedBenchmark):
    """`split` "val" reads val.jsonl (or .json) instead of questions.jsonl."""

    split: str | None = None
    name: str = "scenes"
    summary = "exact match per question kind, with region statistics, on questions.jsonl of a folder"
    unit = "fraction"

    def load(self, root: Path) -> BenchmarkData:
        names = FILES if self.split is None else (f"{self.split}.jsonl", f"{self.split}.json")
        file = root if root.is_file() else _files.require(root, *names, source="`cos demo` makes such a folder")
        examples = [_labelled(example, file) for example in datasets.read_examples(file)]
        return BenchmarkData(self.name, self.split or file.stem, examples, _files.image_root(file.parent, "images"))

    def rule(self) -> metrics.Rule:
        return _rule

    def groups(self, example: Example) -> Mapping[str, str]:
        return {"kind": str(example.meta.get("kind", "any"))}

    def metrics(self, data: BenchmarkData, scores: Iterable[Score]) -> dict[str, Any]:
        scores = list(scores)
        kinds = metrics.by_group(scores, "kind")
        return {
            "accuracy": metrics.mean(scores),
            "kinds": {kind: {"accuracy": metrics.mean(group), "n": len(group)} for kind, group in sorted(kinds.items())},
        }

    def estimates(self, data: BenchmarkData, scores: Sequence[Score]) -> list[Estimate]:
        kinds = sorted(metrics.by_group(scores, "kind"))
        by_kind = [metrics.mean_estimate(f"kinds.{k}.accuracy", scores, metrics.in_group("kind", k)) for k in kinds]
        return [metrics.mean_estimate("accuracy", scores), *by_kind]


def build(split: str | None = None) -> Scenes:
    """`split`: another file of the folder, by its name without the ending."""
    if split is not None and (not split or Path(split).name != split):
        raise InputError(f"a split of scenes is the name of a file in its folder, not {split!r}")
    return Scenes(split)


def _labelled(example: Example, file: Path) -> Example:
    if not example.answers:
        raise InputError(f"{file}: the question {example.id!r} has no answer to score against")
    return example


def _rule(example: Example, answer: str) -> Verdict:
    normalised = answers.plain(answer)
    accepted = [answers.plain(expected) for expected in example.answers]
    return Verdict(float(normalised in accepted), normalised, accepted[0])
