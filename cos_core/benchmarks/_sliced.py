"""The common shape of a benchmark: one rule a question, accuracy in percent, overall and by slices."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cos_core.benchmarks._harness import LMMS, VLM
from cos_core.errors import InputError
from cos_core.interfaces import Benchmark, BenchmarkData
from cos_core.scoring import columns, metrics
from cos_core.scoring.metrics import Estimate
from cos_core.types import Example, Prediction, Score


class SlicedBenchmark(Benchmark):
    """Each question is scored by `rule`; `slices` are the keys of `Example.meta` that name a score's groups."""

    unit = "percent"
    slices: tuple[str, ...] = ()

    @abstractmethod
    def rule(self) -> metrics.Rule:
        """The rule that scores one answer, under the benchmark's scorer."""

    def groups(self, example: Example) -> Mapping[str, str]:
        """The group of a question in each slice."""
        return {key: example.meta[key] for key in self.slices}

    def score(self, data: BenchmarkData, predictions: Mapping[str, Prediction]) -> Sequence[Score]:
        return metrics.judge(data.examples, predictions, self.rule(), self.groups)

    def metrics(self, data: BenchmarkData, scores: Iterable[Score]) -> dict[str, Any]:
        return percentages(columns.reusable(scores), self.slices)

    def estimates(self, data: BenchmarkData, scores: Sequence[Score]) -> Sequence[Estimate] | None:
        return percentage_estimates(scores, self.slices)

    def protocol(self, predictions: Mapping[str, Prediction]) -> Mapping[str, Any]:
        return {"scorer": self.scorer} if self.scorers else {}


def percentages(scores: Sequence[Score], slices: Iterable[str] = ()) -> dict[str, Any]:
    """`accuracy`, and for each slice its groups' accuracies, in percent with two decimals; `samples`."""
    table: dict[str, Any] = {"samples": len(scores), "accuracy": metrics.percent(scores)}
    for key in slices:
        groups = metrics.by_group(scores, key)
        table[key] = {name: metrics.percent(groups[name]) for name in sorted(groups)}
    return table


def percentage_estimates(scores: Sequence[Score], slices: Iterable[str] = ()) -> list[Estimate]:
    """The estimates behind `percentages`."""
    result = [metrics.mean_estimate("accuracy", scores, scale=100.0)]
    for key in slices:
        for name in sorted(metrics.by_group(scores, key)):
            result.append(metrics.mean_estimate(f"{key}.{name}", scores, metrics.in_group(key, name), scale=100.0))
    return result


def choice(benchmark: str, kind: str, value: str | None, names: Sequence[str]) -> str:
    """`value`, or the first of `names` for None. Raises InputError for a value not in `names`. `kind`: "split" or "scorer"."""
    if value is not None and value not in names:
        harness = {LMMS: "lmms-eval", VLM: "VLMEvalKit"}.get(value)
        why = f"{harness} has no scorer of its own for {benchmark}; " if harness and kind == "scorer" else ""
        raise InputError(f"{why}{benchmark} has the {kind}s {', '.join(names)}, not {value!r}")
    return value or names[0]


def complete(data: BenchmarkData, predictions: Mapping[str, Prediction]) -> list[tuple[Example, str]]:
    """Each example with its answer, in order. Raises InputError when one is missing: a server scores it as wrong."""
    pairs = [(example, predictions.get(example.id)) for example in data.examples]
    gaps = [example.id for example, prediction in pairs if prediction is None or prediction.answer is None]
    if gaps:
        raise InputError(f"a {data.name} submission needs every answer; {len(gaps)} are missing, the first is {gaps[0]!r}")
    return [(example, prediction.answer or "") for example, prediction in pairs if prediction is not None]
