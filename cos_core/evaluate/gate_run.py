"""What `cos eval` says of a run that was answered under a gate: its cost, and from a full run the curve over every gate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cos_core.evaluate.config import EvalConfig
from cos_core.files import csv_writer
from cos_core.files.durable import atomic_write
from cos_core.interfaces import Benchmark, BenchmarkData, JudgedBenchmark
from cos_core.scoring import cost, gate_curve
from cos_core.scoring.columns import Scores
from cos_core.scoring.cost import AnswerFlops
from cos_core.scoring.gate_curve import CURVE, KINDS, TABLE, FullRun, Resampling
from cos_core.scoring.mixture import Mixture
from cos_core.types import Prediction, Score

HEAD = ("curve", "gate", "looks", "value", "chance", "sent", "written", "flops")
"""The columns of TABLE."""


@dataclass(frozen=True, slots=True)
class GateResults:
    """`results`: for the manifest; `points`: those of each curve, by its kind."""

    results: Mapping[str, Any]
    points: Mapping[str, Sequence[Mapping[str, Any]]]

    def write(self, out: Path) -> None:
        """CURVE and TABLE in a folder. Raises InputError."""
        curves = self.results.get("curves", {})
        whole = {**self.results, "curves": {kind: {**curves[kind], "points": list(self.points[kind])} for kind in curves}}
        atomic_write(out / CURVE, json.dumps(whole, allow_nan=False).encode())
        rows = ([kind, *(point[name] for name in HEAD[1:])] for kind in self.points for point in self.points[kind])
        csv_writer.write(out / TABLE, HEAD, rows)


class _Plain(Mapping[str, Prediction]):
    """The predictions of a full run as those of one pass: what a gate that never opens leaves."""

    def __init__(self, predictions: Mapping[str, Prediction]) -> None:
        self._predictions = predictions

    def __getitem__(self, example_id: str) -> Prediction:
        found = self._predictions[example_id]
        kept = {"answer": found.plain, "error": None if found.plain is not None else found.error}
        return msgspec.structs.replace(found, **kept, box=None, box_text=None, box_status="skipped")

    def __iter__(self) -> Iterator[str]:
        return iter(self._predictions)

    def __len__(self) -> int:
        return len(self._predictions)


def results(
    config: EvalConfig,
    benchmark: Benchmark,
    data: BenchmarkData,
    predictions: Mapping[str, Prediction],
    scores: Scores,
    answered: Mapping[str, Any],
) -> GateResults | None:
    """What is told of a run under a gate; None for one without. `answered`: the results of the manifest of `cos infer`.

    `cost` and `looks` are the run's own: tokens and FLOPs a question, and the share of second looks. A full run (every question
    with its plain answer and both passes) has `curves`; `not_drawn` says why one has none.
    """
    if not _gated(predictions):
        return None
    model = cost.recorded_flops(answered)
    flops = model if isinstance(model, AnswerFlops) else None
    rows = [predictions.get(example.id) for example in data.examples]
    table = np.array([[0] * cost.COLUMNS if row is None else cost.token_rows(row)[0] for row in rows], dtype=np.int64)
    found: dict[str, Any] = {
        "benchmark": data.name,
        "metric": benchmark.headline,
        "unit": benchmark.unit,
        "n": len(rows),
        "looks": sum(row is not None and row.gate == "open" for row in rows) / len(rows),
        "cost": cost.mean_cost(table, len(rows), flops).to_json(),
        "without_tokens": sum(row is not None and row.answer is not None and not row.tokens for row in rows),
    }
    if isinstance(model, str):
        found["flops_unknown"] = model
    if (why := _not_drawn(benchmark, rows, scores)) is not None:
        return GateResults({**found, "not_drawn": why}, {})
    plain = Scores.of(benchmark.score(data, _Plain(predictions)), scores.ids)
    run = FullRun(
        mixture=Mixture(benchmark, data, plain, scores),
        margins=_floats([None if row is None or row.plain is None else row.margin for row in rows]),
        areas=_floats([None if row is None or row.gate is None else row.box.area if row.box else 0.0 for row in rows]),
        tokens=table,
        per_picture=_per_picture(answered),
    )
    failed = sum(row is not None and row.plain is None for row in rows)
    return _told({**found, "plain_failed": failed}, run, flops, Resampling(config.replicates, config.seed))


def _told(found: Mapping[str, Any], run: FullRun, flops: AnswerFlops | None, how: Resampling) -> GateResults:
    """The ends, and one curve after the other: each takes memory by its settings and pictures."""
    ends = gate_curve.ends(run, flops)
    curves: dict[str, Any] = {}
    points: dict[str, Sequence[Mapping[str, Any]]] = {}
    for kind in KINDS:
        if (curve := gate_curve.curve(kind, run, ends, flops)) is not None:
            curves[kind] = gate_curve.summary(curve, ends, how)
            points[kind] = [point.to_json() for point in curve.points]
    named = {point.gate: point.to_json() for point in (ends.never, ends.always, ends.oracle)}
    gained = gate_curve.differences(run.mixture, ends.sums[1:], ends.sums[0], how)[0]
    return GateResults({**found, **named, "gained": gained.to_json(), "curves": curves}, points)


def _gated(predictions: Mapping[str, Prediction]) -> bool:
    """Whether a run had a gate, as its first answer says."""
    answered = (prediction for prediction in predictions.values() if prediction.answer is not None)
    return (first := next(answered, None)) is not None and first.gate is not None


def _not_drawn(benchmark: Benchmark, rows: Sequence[Prediction | None], scores: Sequence[Score]) -> str | None:
    """Why there is no curve; None where it can be drawn."""
    if any(row is not None and row.answer is not None and (row.plain is None or row.gate != "open") for row in rows):
        return "not every question has the answers of one pass and of two; a run under --gate all has"
    if isinstance(benchmark, JudgedBenchmark):
        return "answers of one pass have no grade of the judge"
    return None if len(scores) else "this split is scored by a server"


def _per_picture(answered: Mapping[str, Any]) -> bool:
    """Whether a picture's questions share one first pass, as the settings of the run say."""
    settings = answered.get("settings")
    policy = settings.get("policy") if isinstance(settings, Mapping) else None
    return isinstance(policy, Mapping) and policy.get("source") == "model" and policy.get("asks") != "single"


def _floats(values: Sequence[float | None]) -> gate_curve.Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
