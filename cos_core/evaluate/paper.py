"""The paper's Tables 1, 2, 3(a) and 3(b) compared with finished runs: both figures, the difference, its interval, a verdict.

A cell's verdict weighs the interval of our figure against the effect that the table claims there (the gain over its
reference row): narrower than that and holding the paper's figure, it is reproduced; narrower and not holding it, it is not;
wider, it is underpowered. A figure that is not a number is undefined. The paper's figures, given without errors, are taken as
exact.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cos_core.errors import InputError
from cos_core.evaluate import compare_runs as compare
from cos_core.evaluate.counted import remark_lines
from cos_core.files import csv_writer, outputs, pages
from cos_core.files.durable import atomic_write
from cos_core.scoring import comparison, statistics
from cos_core.scoring.comparison import Comparison, ScoredRun

REPRODUCED, NOT, UNDERPOWERED, ELSEWHERE, ABSENT = "reproduced", "not reproduced", "underpowered", "not comparable", "not run"
UNDEFINED = "undefined"
"""The verdict on a figure, or an interval, that is not a number."""


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a table: the benchmark, the metric's path, its factor to the paper's unit, and the split that it is of."""

    title: str
    benchmark: str
    metric: str
    scale: float = 1.0
    split: str | None = None


VQA = (
    Column("VQAv2", "vqav2", "accuracy", split="test-dev"),
    Column("GQA", "gqa", "accuracy"),
    Column("VizWiz", "vizwiz", "accuracy", split="test"),
    Column("SQA-IMG", "scienceqa", "image_accuracy"),
    Column("TextVQA", "textvqa", "accuracy"),
    Column("OKVQA", "okvqa", "accuracy"),
)
MULTIMODAL = (
    Column("SEED", "seed", "Total", split="all"),
    Column("SEED-I", "seed", "image", split="all"),
    Column("MME", "mme", "perception"),
    Column("MMB", "mmbench", "accuracy", split="en"),
    Column("POPE", "pope", "mean_f1", 100.0),
    Column("MM-Vet", "mmvet", "total"),
)
ABLATION = (VQA[1], VQA[0])

Figures = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A row: the name a run is given under, the title, the paper's figures, and the row that its gain is over."""

    name: str
    title: str
    figures: Figures
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class PaperTable:
    """One table of the paper."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[PaperRow]


def _both(figures: Mapping[str, Figures]) -> tuple[PaperRow, ...]:
    """Rows of both sizes, without and with Chain-of-Spot."""
    return tuple(
        PaperRow(f"{kind}-{size}", f"LLaVA-1.5 {size.upper()}{' + CoS' if kind == 'cos' else ''}", figures[f"{kind}-{size}"],
            f"base-{size}" if kind == "cos" else None)
        for size in ("7b", "13b") for kind in ("base", "cos")
    )  # fmt: skip


TABLES = (
    PaperTable("Table 1: visual question answering", VQA, _both({
        "base-7b": (78.5, 62.0, 50.0, 66.8, 58.2, 57.9), "cos-7b": (80.7, 63.7, 50.8, 68.2, 60.9, 58.4),
        "base-13b": (80.0, 63.3, 53.6, 71.6, 61.3, 60.9), "cos-13b": (81.8, 64.8, 58.0, 71.9, 62.4, 62.9),
    })),
    PaperTable("Table 2: multimodal benchmarks", MULTIMODAL, _both({
        "base-7b": (58.6, 66.1, 1510.7, 64.3, 85.9, 30.5), "cos-7b": (59.7, 67.1, 1501.1, 64.4, 86.4, 30.8),
        "base-13b": (61.6, 68.2, 1531.3, 67.7, 85.9, 35.4), "cos-13b": (62.3, 69.6, 1546.1, 68.2, 86.1, 37.6),
    })),
    PaperTable("Table 3(a): how the region is found (13B)", ABLATION, (
        PaperRow("none", "without Chain-of-Spot", (63.9, 80.2)),
        PaperRow("center_crop", "centre crop", (64.0, 80.4), "none"),
        PaperRow("from_image", "from image", (64.1, 80.6), "none"),
        PaperRow("from_questions", "from questions", (64.3, 81.1), "none"),
        PaperRow("from_single_question", "from single question", (64.8, 81.8), "none"),
    )),
    PaperTable("Table 3(b): training (13B)", ABLATION, (
        PaperRow("low-rate", "lower learning rate", (64.1, 81.2), "one-epoch"),
        PaperRow("one-epoch", "learning rate 2e-5, one epoch", (64.8, 81.8)),
        PaperRow("two-epochs", "two epochs", (64.9, 81.2), "one-epoch"),
        PaperRow("three-epochs", "three epochs", (64.4, 80.9), "one-epoch"),
    )),
)  # fmt: skip
"""Learning rates and epochs of Table 3(b) are named by their order in the table."""

ROWS = tuple(dict.fromkeys(row.name for table in TABLES for row in table.rows))


@dataclass(frozen=True, slots=True)
class PaperCell:
    """One figure of ours and the paper's, in the paper's unit. `difference`: ours minus the paper's, with its 95 % interval.

    `gain`, `paper_gain`: over the table's reference row, ours paired by question; `gain_verdict` is about that.
    """

    table: str
    row: str
    column: str
    paper: float
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


def report(runs: Mapping[str, Path], *, replicates: int = statistics.REPLICATES) -> list[PaperCell]:
    """Every cell of the four tables. `runs`: a row's name (ROWS) -> the folder of its run.

    Raises InputError for an unknown row, a folder without finished runs, or two runs of one gain that were not made alike.
    """
    unknown = [name for name in runs if name not in ROWS]
    if unknown:
        raise InputError(f"the paper's tables have no row {unknown[0]!r}; there are: {', '.join(ROWS)}")
    finished = {name: compare.runs_below(path) for name, path in runs.items()}
    cells = []
    for table in TABLES:
        figures = {row.name: row.figures for row in table.rows}
        for row in table.rows:
            for place, column in enumerate(table.columns):
                reference = row.reference and (finished.get(row.reference, {}).get(column.benchmark))
                claim = row.figures[place] - figures[row.reference][place] if row.reference else _claim(table, row, place)
                cell = PaperCell(
                    table.title, row.title, column.title, row.figures[place], paper_gain=claim if row.reference else None
                )
                run = finished.get(row.name, {}).get(column.benchmark)
                cells.append(cell if run is None else _filled(cell, column, run, reference or None, claim, replicates))
    return cells


def _claim(table: PaperTable, row: PaperRow, place: int) -> float:
    """The smallest gain that the table claims over a reference row: the difference that a figure of it must resolve."""
    gains = [abs(other.figures[place] - row.figures[place]) for other in table.rows if other.reference == row.name]
    return min(gains, default=0.0)


def _filled(
    cell: PaperCell, column: Column, run: ScoredRun, reference: ScoredRun | None, claim: float, replicates: int
) -> PaperCell:
    split = run.protocol.get("split")
    not_comparable = column.split not in (None, split)
    note = f"ours is of split {split}, the paper's of {column.split}" if not_comparable else ""
    if limit := run.protocol.get("limit"):
        not_comparable, note = True, f"ours is of the first {limit} questions only"
    metrics: Any = run.manifest.results.get("metrics", {})
    if metrics.get("server_scored"):
        return _replaced(cell, verdict=ELSEWHERE, note="scored by a server")
    for key in column.metric.split("."):
        metrics = metrics.get(key) if isinstance(metrics, Mapping) else None
    if not isinstance(metrics, int | float) or not math.isfinite(metrics):
        return _replaced(cell, verdict=UNDEFINED, note=f"{column.metric} is {'missing' if metrics is None else 'not a number'}")
    ours = column.scale * metrics
    # Without an interval (a single picture) the figure's error is unknown.
    low, high = run.manifest.results.get("intervals", {}).get(column.metric, (None, None))
    verdict = UNDEFINED
    if low is not None and high is not None:
        low, high = column.scale * low, column.scale * high
        verdict = weigh(low, high, cell.paper, claim)
    else:
        note = note or "the run gives no interval"
    cell = _replaced(cell, ours=ours, low=low, high=high, difference=ours - cell.paper, verdict=verdict, note=note)
    if reference is not None and run.scores and reference.scores:
        comparison.fair(reference, run)
        if column.metric == run.manifest.results.get("headline", {}).get("metric"):
            cell = _with_gain(
                cell, column.scale, comparison.pair(reference, run, names=("reference", "run"), replicates=replicates)
            )
    if remarks := remark_lines(run.manifest.results.get("beside", {})):
        cell = _replaced(cell, note="; ".join(filter(None, [cell.note, *remarks])))
    elsewhere = {"verdict": ELSEWHERE, **({"gain_verdict": ELSEWHERE} if cell.gain_verdict else {})}
    return _replaced(cell, **elsewhere) if not_comparable else cell


def _with_gain(cell: PaperCell, scale: float, pair: Comparison) -> PaperCell:
    if pair.undefined:
        return _replaced(cell, gain_verdict=UNDEFINED, note=f"{cell.note}; gain: {pair.undefined}".removeprefix("; "))
    gain, low, high = (scale * value for value in (pair.found.difference, pair.found.low, pair.found.high))
    claim = cell.paper_gain or 0.0
    ends = {"gain_low": low, "gain_high": high} if math.isfinite(low) and math.isfinite(high) else {}
    return _replaced(cell, gain=gain, gain_verdict=weigh(low, high, claim, claim), **ends)


def weigh(low: float, high: float, paper: float, claim: float) -> str:
    """The verdict on an interval of ours: see the module's text. `claim`: the effect that matters, in the same unit.

    An infinite interval is underpowered; a figure that is not a number makes the verdict undefined.
    """
    if any(math.isnan(value) for value in (low, high, paper, claim)):
        return UNDEFINED
    if (high - low) / 2 > abs(claim):
        return UNDERPOWERED
    return REPRODUCED if low <= paper <= high else NOT


def _replaced(cell: PaperCell, **changes: Any) -> PaperCell:
    return PaperCell(**{**asdict(cell), **changes})


# --- formats ---------------------------------------------------------------------------------------------------------

_HEAD = ("row", "column", "paper", "ours", "95 %", "difference", "verdict", "gain: paper", "gain: ours", "95 %", "gain verdict")


def _lines(cell: PaperCell) -> tuple[str, ...]:
    def number(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{value:{sign}.1f}"

    def interval(low: float | None, high: float | None, sign: str = "") -> str:
        return "" if low is None else f"{number(low, sign)} to {number(high, sign)}"

    verdict = f"{cell.verdict} ({cell.note})" if cell.note else cell.verdict
    first = (cell.row, cell.column, number(cell.paper), number(cell.ours), interval(cell.low, cell.high))
    gain = (number(cell.paper_gain, "+"), number(cell.gain, "+"), interval(cell.gain_low, cell.gain_high, "+"))
    return (*first, number(cell.difference, "+"), verdict, *gain, cell.gain_verdict or "")


def _by_table(cells: Sequence[PaperCell]) -> dict[str, list[PaperCell]]:
    result: dict[str, list[PaperCell]] = {}
    for cell in cells:
        result.setdefault(cell.table, []).append(cell)
    return result


def markdown(cells: Sequence[PaperCell]) -> str:
    """Every table of the paper as a Markdown table."""
    parts = []
    for title, group in _by_table(cells).items():
        rows = [_HEAD, tuple("---" for _ in _HEAD), *map(_lines, group)]
        parts.append(f"## {title}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows))
    return "\n\n".join(parts) + "\n"


def page(cells: Sequence[PaperCell]) -> str:
    """One self-contained HTML page."""
    parts = []
    for title, group in _by_table(cells).items():
        head = "".join(f"<th>{pages.text(name)}</th>" for name in _HEAD)
        body = "".join("<tr>" + "".join(f"<td>{pages.text(text)}</td>" for text in _lines(cell)) + "</tr>\n" for cell in group)
        parts.append(f"<h2>{pages.text(title)}</h2>\n<table>\n<tr>{head}</tr>\n{body}</table>\n")
    head = pages.head("The paper's tables", _STYLE)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n{head}</head>\n<body>\n'
        f"<h1>The paper's tables, run again</h1>\n{''.join(parts)}</body>\n</html>\n"
    )


OURS = {
    "paper.md": outputs.beginning(b"## Table", b"\n"),
    "paper.csv": outputs.beginning(b"table,", b"\n"),
    "paper.json": outputs.beginning(b'{\n  "cells"'),
    "paper.html": lambda head: False,
}
"""Tests for the first bytes of the files that `write` writes; a page is recognised by its own mark."""

_STYLE = """
:root{color-scheme:light dark}
body{font:15px system-ui,sans-serif;margin:2rem;line-height:1.4}
table{border-collapse:collapse;margin-bottom:2rem}
td,th{padding:.2rem .6rem;text-align:left}
tr:nth-child(odd){background:#8881}
"""


def write(cells: Sequence[PaperCell], out: Path) -> list[Path]:
    """paper.md, paper.csv, paper.json and paper.html below `out`. Raises InputError."""
    texts = {
        "paper.md": markdown(cells),
        "paper.json": json.dumps({"cells": [asdict(cell) for cell in cells]}, indent=2) + "\n",
        "paper.html": page(cells),
    }
    for name, text in texts.items():
        atomic_write(out / name, text)
    head = [column.name for column in fields(PaperCell)]
    csv_writer.write(out / "paper.csv", head, ([getattr(cell, name) for name in head] for cell in cells))
    return [out / name for name in ("paper.md", "paper.csv", "paper.json", "paper.html")]
