"""The results of `cos evidence`, made of scored runs: every difference, every verdict, what each arm cost; and their files."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cos_core.evidence import verdicts
from cos_core.evidence.arms import ONE_LOOK, TITLES
from cos_core.evidence.boxes import BoxEffect
from cos_core.evidence.config import EvidenceConfig
from cos_core.evidence.differences import Differences, of_arms
from cos_core.evidence.verdicts import BLACK, BLACK_ALONE, NOISE, PLACE, ROWS, SWAP, TWICE, Contrast, Failed, Line, Row
from cos_core.evidence.words import CAVEATS, line_words, overall_words, plain_words, row_words, signed, signed_interval
from cos_core.files import durable, manifest
from cos_core.scoring import comparison, cost, facts
from cos_core.scoring.comparison import ScoredRun
from cos_core.scoring.cost import AnswerFlops, Cost
from cos_core.suite.scored import Scored
from cos_core.types import Prediction

FIGURES, TABLE, PAGE = "results.json", "table.md", "index.html"
HEAD = "# Does your zoom do anything?"


@dataclass(slots=True)
class Costs:
    """What an arm's answers took. `last_in`: tokens that the answering pass read, by question id; `box_status`: how often each
    was given; `rows`: the answers' token table (scoring/cost.py), `model`: the arithmetic of the model, or why it is not known.
    """

    last_in: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    box_status: Counter[str] = field(default_factory=Counter)
    rows: list[list[int]] = field(default_factory=list)
    model: AnswerFlops | str = ""

    def add(self, prediction: Prediction) -> None:
        """Counts one answer; a failed one took nothing that could be compared."""
        if prediction.error is not None:
            return
        read = {name: n for name, n in prediction.tokens.items() if name.endswith("_in")}
        self.last_in[prediction.example_id] = read.get("pass2_in", read.get("pass1_in", 0))
        self.seconds += prediction.seconds
        self.box_status[prediction.box_status] += 1
        self.rows += cost.token_rows(prediction)

    def mean(self, total: float) -> float:
        """The mean of one answered question, of a sum over them; nan of none."""
        return total / len(self.last_in) if self.last_in else math.nan

    @property
    def cost(self) -> Cost:
        """The means of one answered question."""
        table = np.array(self.rows, dtype=np.int64).reshape(-1, cost.COLUMNS)
        return cost.mean_cost(table, len(self.last_in), None if isinstance(self.model, str) else self.model)


@dataclass(frozen=True, slots=True)
class Examined:
    """One benchmark's arms by name, scored; `gone`: why an arm was not run."""

    name: str
    arms: Mapping[str, Scored]
    runs: Mapping[str, ScoredRun]
    costs: Mapping[str, Costs]
    gone: Mapping[str, str]

    def failed(self, arm: str) -> int:
        """Questions without an answer under an arm."""
        counts = self.arms[arm].manifest.counts if arm in self.arms else {}
        return counts.get("failed", 0) + counts.get("missing", 0)


def collected(config: EvidenceConfig, examined: Sequence[Examined]) -> dict[str, Any]:
    """Everything that the page, the table and the terminal show, as plain JSON; null for a figure that is not a number."""
    options = {"replicates": config.replicates, "seed": config.scoring.seed}
    measured = [of_arms(each.runs, _overlaps(each), **options) for each in examined]
    pairs = [(place, key, pair) for place, each in enumerate(measured) for key, (pair, *_) in each.found.items()]
    adjusted = comparison.adjusted([pair for _, _, pair in pairs])
    for (place, key, _), pair in zip(pairs, adjusted, strict=True):
        measured[place].found[key] = measured[place].found[key]._replace(comparison=pair)
    benchmarks = [_benchmark(*both, len(adjusted), config) for both in zip(examined, measured, strict=True)]
    return {
        "model": config.model,
        "margin": config.margin,
        "tests": len(adjusted),
        "benchmarks": benchmarks,
        "caveats": list(CAVEATS),
        "settings": _settings(config),
        "versions": manifest.versions(),
        "hardware": manifest.hardware(),
    }


def _overlaps(each: Examined) -> dict[str, float]:
    """IoU of the model's boxes with the data's own regions, by question id."""
    model = each.runs.get(TWICE.b)
    return {} if model is None else dict(facts.overlaps(model.path))


def _settings(config: EvidenceConfig) -> dict[str, Any]:
    answering = config.answering
    return {
        "model": config.model,
        "engine": answering.engine,
        "benchmarks": ", ".join(config.names),
        "split": config.scoring.split or "the benchmark's usual one",
        "limit": config.scoring.limit or "none",
        "box decode": answering.box_decode,
        "on a bad box": answering.on_bad_box,
        "temperature": answering.temperature,
        "blurred arms: scale of the whole picture": config.blur,
        "margin in points": config.margin,
        "bootstrap samples": config.replicates,
        "seed": config.scoring.seed,
    }


# --- one benchmark ---


def _benchmark(
    each: Examined,
    measured: Differences,
    tests: int,
    config: EvidenceConfig,
) -> dict[str, Any]:
    def line(contrast: Contrast) -> Line:
        pair, interval, failed = measured.found.get(contrast, (None, None, Failed()))
        return Line(contrast, pair, _gone(each, contrast), failed, tests, interval)

    content = [line(contrast) for contrast in (BLACK, NOISE, SWAP)]
    bounded = verdicts.bounded(content, config.margin)
    verdict = verdicts.overall(line(TWICE).verdict, [side.verdict for side in content], bounded)
    headline = next(iter(each.arms.values())).manifest.results.get("headline", {})
    protocol = (each.runs.get(TWICE.b) or next(iter(each.runs.values()))).protocol
    return {
        "benchmark": next(iter(each.runs.values())).benchmark,
        "verdict": verdict,
        "words": overall_words(verdict, line(TWICE), content, config.margin) + plain_words(line(BLACK_ALONE)),
        "metric": headline.get("metric"),
        "unit": headline.get("unit"),
        "rows": [_row(row, [line(contrast) for contrast in row.contrasts], each) for row in ROWS],
        "boxes": _groups(measured.boxes),
        "arms": [_arm(name, each) for name in TITLES if name in each.arms],
        "gone": dict(each.gone),
        "protocol": {key: value for key, value in protocol.items() if value is not None}
        | {"box_decode": config.answering.box_decode, "on_bad_box": config.answering.on_bad_box},
    }


def _gone(each: Examined, contrast: Contrast) -> str:
    if contrast == PLACE:
        return "the data names no regions, or all of the model's boxes are alike right or wrong"
    arm = next((name for name in (contrast.b, contrast.a) if name not in each.runs), None)
    if arm is None:
        return "its answers are scored by a server"
    return each.gone.get(arm, f"the arm {arm!r} was not run")


def _row(row: Row, lines: Sequence[Line], each: Examined) -> dict[str, Any]:
    answer = verdicts.row_answer(row, lines)
    return {
        "key": row.key,
        "question": row.question,
        "source": row.source,
        "verdict": answer,
        "words": row_words(answer, lines[: row.decide]),
        "lines": [_line(line, each) for line in lines],
    }


def _line(line: Line, each: Examined) -> dict[str, Any]:
    pair, contrast = line.comparison, line.contrast
    record: dict[str, Any] = {**contrast._asdict(), "verdict": line.verdict, "words": line_words(line)}
    if pair is None:
        return {**record, "verdict": "not run"}
    tokens = [each.costs[arm].cost.sent for arm in (contrast.b, contrast.a) if arm in each.costs]
    figures = {
        "metric": pair.metric,
        "unit": pair.unit,
        "value_b": pair.found.b,
        "value_a": pair.found.a,
        "difference": pair.found.difference,
        "low": line.ends.low,
        "high": line.ends.high,
        "p": pair.p,
        "p_holm": pair.p_holm,
        "test": pair.test,
        "n": pair.n,
        "pictures": pair.found.clusters,
        "fixed": list(pair.won),
        "broken": list(pair.lost),
        "failed": line.failed._asdict(),
        "seen": line.seen,
        "more_tokens_in": tokens[0] - tokens[1] if len(tokens) == 2 else math.nan,
    }
    return {**record, **{key: _finite(value) for key, value in figures.items()}}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _groups(effect: BoxEffect | None) -> list[dict[str, Any]]:
    if effect is None:
        return []
    return [{"boxes": name, **group._asdict()} for name, group in (("right", effect.right), ("wrong", effect.wrong))]


def _arm(name: str, each: Examined) -> dict[str, Any]:
    scored, costs = each.arms[name], each.costs[name]
    spent = costs.cost
    headline = scored.manifest.results.get("headline", {})
    figures = {
        "tokens_in": spent.sent,
        "tokens_out": spent.written,
        "flops": spent.flops,
        "seconds": costs.mean(costs.seconds),
    }
    return {
        "arm": name,
        "title": TITLES[name],
        **{key: headline.get(key) for key in ("value", "low", "high")},
        "n": scored.manifest.counts.get("total", scored.manifest.results.get("n")),
        "failed": each.failed(name),
        **{key: _finite(value) for key, value in figures.items()},
        "as_many_tokens": None if name in (TWICE.b, *ONE_LOOK) else _as_many(costs, each.costs.get(TWICE.b)),
        "box_status": dict(costs.box_status),
        "folder": str(scored.folder),
    }


def _as_many(costs: Costs, model: Costs | None) -> list[int] | None:
    """[questions whose answering pass read as many tokens as under `model`, questions that both answered]."""
    if model is None:
        return None
    both = [name for name in costs.last_in if name in model.last_in]
    return [sum(costs.last_in[name] == model.last_in[name] for name in both), len(both)]


# --- files ---


def write(out: Path, found: Mapping[str, Any]) -> None:
    """Writes results.json and table.md."""
    durable.atomic_write(out / FIGURES, json.dumps(found, indent=2) + "\n")
    durable.atomic_write(out / TABLE, "\n".join(markdown(found)) + "\n")


def markdown(found: Mapping[str, Any]) -> Iterator[str]:
    """The verdicts, every difference and every arm as Markdown."""
    yield HEAD
    for each in found["benchmarks"]:
        yield from ("", f"## {each['benchmark']}: {each['verdict']}", "", each["words"])
        line_head = ("question", "arms", "difference", "95 %", "p (Holm)", "seen from", "fixed/broken", "questions", "verdict")
        yield from ("", _cells(line_head), _cells(["---"] * len(line_head)))
        for row in each["rows"]:
            for number, line in enumerate(row["lines"]):
                yield _cells([row["question"] if number == 0 else "", f"{line['b']} - {line['a']}", *_figures(line)])
        arm_head = ("arm", "score", "95 %", "questions", "failed", "tokens in", "tokens out", "GFLOPs", "seconds")
        yield from ("", _cells(arm_head), _cells(["---"] * len(arm_head)))
        for arm in each["arms"]:
            ends = "" if arm["low"] is None else f"{arm['low']:.4g} to {arm['high']:.4g}"
            scales = {"tokens_in": 1.0, "tokens_out": 1.0, "flops": 1e-9, "seconds": 1.0}
            costs = ["" if arm[key] is None else f"{arm[key] * scale:.4g}" for key, scale in scales.items()]
            value = "" if arm["value"] is None else f"{arm['value']:.4g}"
            yield _cells([arm["arm"], value, ends, str(arm["n"]), str(arm["failed"]), *costs])
    yield ""
    yield from (f"- {words}" for words in found["caveats"])


def _figures(line: Mapping[str, Any]) -> list[str]:
    if line.get("difference") is None:
        return ["", "", "", "", "", str(line.get("n", "")), line["words"]]
    unit, seen = line["unit"], line["seen"]
    return [
        signed(line["difference"], unit),
        signed_interval(line["low"], line["high"], unit),
        "" if line["p_holm"] is None else f"{line['p_holm']:.2g}",
        "" if seen is None else signed(seen, unit).lstrip("+"),
        f"{len(line['fixed'])}/{len(line['broken'])}",
        str(line["n"]),
        line["words"],
    ]


def _cells(values: Sequence[str]) -> str:
    return f"| {' | '.join(value.replace('|', chr(92) + '|') for value in values)} |"
