"""The paper's Tables 1, 2, 3(a) and 3(b) compared with finished runs: both figures, the difference, its interval, a verdict.

A cell's verdict weighs the interval of our figure against the effect that the table claims there (the gain over its
reference row): narrower than that and holding the paper's figure, it is reproduced; narrower and not holding it, it is not;
wider, it is underpowered. A figure that is not a number is undefined. The paper's figures, given without errors, are taken as
exact.

A peer's row (another model) claims no gain, and its figures were not measured by the paper's authors: what is compared is the
protocol. An interval that does not hold the paper's figure differs. One that holds it agrees when it is narrower than the
smallest gain that Chain-of-Spot claims in the column (an error of that size would show), else it is underpowered. A cell that
the paper leaves empty has no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cos_core.benchmarks._harness import HARNESSES
from cos_core.errors import InputError
from cos_core.evaluate import compare_runs as compare
from cos_core.evaluate.counted import remark_lines
from cos_core.evaluate.paper_tables import ROWS, TABLES, Column, PaperRow, PaperTable
from cos_core.interfaces import Reporter
from cos_core.scoring import comparison, statistics
from cos_core.scoring.comparison import Comparison, ScoredRun

REPRODUCED, NOT, UNDERPOWERED, ELSEWHERE, ABSENT = "reproduced", "not reproduced", "underpowered", "not comparable", "not run"
AGREES, DIFFERS = "agrees", "differs"
"""The verdicts on a peer's figure."""
UNDEFINED = "undefined"
"""The verdict on a figure, or an interval, that is not a number."""
EMPTY = "empty in the paper"
"""In the place of a verdict where the paper has no figure."""


@dataclass(frozen=True, slots=True)
class PaperCell:
    """One figure of ours and the paper's, in the paper's unit. `difference`: ours minus the paper's, with its 95 % interval.

    `name`: what a run of the row is given under; `language`: its language model, where the table says; `paper` None where the
    paper's cell is empty.
    `gain`, `paper_gain`: over the table's reference row, ours paired by question; `gain_verdict` is about that.
    """

    table: str
    name: str
    row: str
    language: str
    column: str
    paper: float | None
    ours: float | None = None
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    verdict: str = ABSENT
    paper_gain: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    gain_verdict: str | None = None
    note: str = ""


def report(
    runs: Mapping[str, Path], *, replicates: int = statistics.REPLICATES, reporter: Reporter | None = None
) -> list[PaperCell]:
    """Every cell of the four tables. `runs`: a row's name (ROWS) -> the folder of its run; `reporter` is warned of scores that
    have no cell there.

    Raises InputError for an unknown row, a folder without finished runs, or two runs of one gain that were not made alike.
    """
    unknown = [name for name in runs if name not in ROWS]
    if unknown:
        raise InputError(f"the paper's tables have no row {unknown[0]!r}; there are: {', '.join(ROWS)}")
    finished = {name: compare.runs_below(path) for name, path in runs.items()}
    for name, benchmarks in finished.items():
        columns = {column.benchmark for table in TABLES if _named(table, name) for column in table.columns}
        if reporter is not None and (others := sorted(set(benchmarks) - columns)):
            reporter.warn(f"{name}: the paper's tables have no figure of {', '.join(others)} in this row")
    cells = []
    for table in TABLES:
        for row in table.rows:
            for place, column in enumerate(table.columns):
                claim, gain = _claims(table, row, place)
                cell = PaperCell(
                    table.title, row.name, row.title, row.language, column.title, row.figures[place], paper_gain=gain
                )
                cell = replace(cell, verdict=EMPTY) if cell.paper is None else cell
                run = finished.get(row.name, {}).get(column.benchmark)
                reference = finished.get(row.reference, {}).get(column.benchmark) if row.reference else None
                cells.append(cell if run is None else _filled(cell, column, run, reference, claim, row.peer, replicates))
    return cells


def _named(table: PaperTable, name: str) -> PaperRow | None:
    return next((row for row in table.rows if row.name == name), None)


def _claims(table: PaperTable, row: PaperRow, place: int) -> tuple[float, float | None]:
    """The effect that a figure must resolve, and the paper's gain of the row, in the column at `place`.

    The effect is the gain; for a row that others gain on, the smallest of theirs; for a peer, the smallest of the column.
    """
    gains = {
        other.name: figure - base
        for other in table.rows
        if other.reference and (reference := _named(table, other.reference))
        and (figure := other.figures[place]) is not None
        and (base := reference.figures[place]) is not None
    }  # fmt: skip
    if row.reference:
        return gains[row.name], gains[row.name]
    on = [name for name in gains if row.peer or next(r for r in table.rows if r.name == name).reference == row.name]
    return min((abs(gains[name]) for name in on), default=0.0), None


def _filled(
    cell: PaperCell, column: Column, run: ScoredRun, reference: ScoredRun | None, claim: float, peer: bool, replicates: int
) -> PaperCell:
    elsewhere = _not_comparable(column, run)
    notes = [elsewhere] if elsewhere else []
    if recorded := run.manifest.results.get("recorded"):
        notes.append(f"answers recorded by {recorded['harness']} (model {recorded['model'] or 'not named'}), to its prompts")
    if (scorer := run.protocol.get("scorer")) in HARNESSES[1:]:
        notes.append(f"scored by {scorer}'s rule")
    metrics: Any = run.manifest.results.get("metrics", {})
    if metrics.get("server_scored"):
        return replace(cell, verdict=ELSEWHERE, note="scored by a server")
    for key in column.metric.split("."):
        metrics = metrics.get(key) if isinstance(metrics, Mapping) else None
    if not isinstance(metrics, int | float) or not math.isfinite(metrics):
        why = f"{column.metric} is {'missing' if metrics is None else 'not a number'}"
        if metrics is None and (scorer := run.protocol.get("scorer")):
            why += f" (scorer {scorer})"
        return replace(cell, verdict=UNDEFINED, note="; ".join([*notes, why]))
    ours = column.scale * metrics
    cell = replace(cell, ours=ours)
    # Without an interval (a single picture) the figure's error is unknown.
    low, high = run.manifest.results.get("intervals", {}).get(column.metric, (None, None))
    if low is not None and high is not None:
        cell = replace(cell, low=column.scale * low, high=column.scale * high)
    else:
        notes.append("the run gives no interval")
    if cell.paper is not None:
        verdict = UNDEFINED
        if cell.low is not None and cell.high is not None:
            verdict = (weigh_peer if peer else weigh)(cell.low, cell.high, cell.paper, claim)
        cell = replace(cell, difference=ours - cell.paper, verdict=verdict)
    if reference is not None and run.scores and reference.scores:
        comparison.fair(reference, run)
        if column.metric == run.manifest.results.get("headline", {}).get("metric"):
            pair = comparison.pair(reference, run, names=("reference", "run"), replicates=replicates)
            cell = _with_gain(cell, column.scale, pair)
    notes += [cell.note, *remark_lines(run.manifest.results.get("beside", {}))]
    cell = replace(cell, note="; ".join(filter(None, notes)))
    if not elsewhere or cell.paper is None:
        return cell
    return replace(cell, verdict=ELSEWHERE, gain_verdict=ELSEWHERE if cell.gain_verdict else None)


def _not_comparable(column: Column, run: ScoredRun) -> str:
    """Why a run's figure is of other questions than the paper's; empty when it is not."""
    if limit := run.protocol.get("limit"):
        return f"ours is of the first {limit} questions only"
    split = run.protocol.get("split")
    return f"ours is of split {split}, the paper's of {column.split}" if column.split not in (None, split) else ""


def _with_gain(cell: PaperCell, scale: float, pair: Comparison) -> PaperCell:
    if pair.undefined:
        return replace(cell, gain_verdict=UNDEFINED, note=f"gain: {pair.undefined}")
    gain, low, high = (scale * value for value in (pair.found.difference, pair.found.low, pair.found.high))
    claim = cell.paper_gain or 0.0
    cell = replace(cell, gain=gain, gain_verdict=weigh(low, high, claim, claim))
    return replace(cell, gain_low=low, gain_high=high) if math.isfinite(low) and math.isfinite(high) else cell


def weigh(low: float, high: float, paper: float, claim: float) -> str:
    """The verdict on an interval of ours: see the module's text. `claim`: the effect that matters, in the same unit.

    An infinite interval is underpowered; a figure that is not a number makes the verdict undefined.
    """
    if any(math.isnan(value) for value in (low, high, paper, claim)):
        return UNDEFINED
    if (high - low) / 2 > abs(claim):
        return UNDERPOWERED
    return REPRODUCED if low <= paper <= high else NOT


def weigh_peer(low: float, high: float, paper: float, claim: float) -> str:
    """The verdict on a peer's interval; `claim`: the smallest gain that the paper claims in the column."""
    verdict = weigh(low, high, paper, claim)
    if verdict != UNDEFINED and not low <= paper <= high:
        return DIFFERS
    return AGREES if verdict == REPRODUCED else verdict
