"""`cos eval compare`: finished runs against the first of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cos_cli import options
from cos_cli.console import Session, columns, emit, emit_json, reporting

if TYPE_CHECKING:
    from cos_core.evaluate.compare import Outcome


def compare(
    ctx: typer.Context,
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs; the first is the reference.", metavar="RUN RUN...")
    ],
    despite: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="Warn where this field of the protocol differs ('all': any)."),
    ] = None,
    flips: Annotated[int, typer.Option(min=0, help="Flipped questions to name, of each kind.")] = 5,
    out: Annotated[Path | None, typer.Option(help="JSON Lines file for every flipped question.", show_default="none")] = None,
    replicates: Annotated[int, typer.Option(min=100, help="Bootstrap samples.")] = 2000,
    seed: options.Seed = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Compare finished runs: paired differences with intervals and tests, and the questions that flipped.

    Runs are paired question by question; images are resampled, not questions; p-values are Holm's over all benchmarks.
    Runs that were not made alike (profile, OCR tokens, split, scorer, judge, data) are refused.

    \b
    Example:
      cos eval compare run/none run/model
    """
    from cos_core import evaluate
    from cos_core.evaluate import compare as comparing

    if len(runs) < 2:
        raise typer.BadParameter("give at least two runs")
    with reporting(ctx.ensure_object(Session)) as reporter:
        outcome = comparing.compare(runs, despite=despite or (), replicates=replicates, seed=seed)
        for each in outcome.comparisons:
            if each.differs:
                reporter.warn(f"{each.benchmark}: {each.b} differs from {each.a} in {', '.join(each.differs)}")
        for words in outcome.skipped:
            reporter.note(f"not compared: {words}")
    rows = changed(outcome) if out is not None or not json else []
    if out is not None:
        evaluate.write_records(rows, out)
    if json:
        emit_json({"comparisons": [each.to_json() for each in outcome.comparisons], "skipped": outcome.skipped})
    else:
        emit(describe(outcome, rows, flips))


def changed(outcome: Outcome) -> list[dict[str, Any]]:
    """Every flipped question of every comparison."""
    from cos_core.evaluate import compare as comparing

    rows = []
    for each in outcome.comparisons:
        sides = [comparing.runs_below(Path(path))[each.benchmark].scores for path in (each.a, each.b)]
        rows += comparing.flipped(each, *({score.example_id: score for score in side} for side in sides))
    return rows


def describe(outcome: Outcome, rows: Sequence[dict[str, Any]], flips: int) -> str:
    """A line a benchmark, then the first flipped questions."""
    table: list[tuple[str, ...]] = [
        ("run", "benchmark", "metric", "A", "B", "difference", "95 %", "p", "p (Holm)", "detectable", "won/lost", "verdict")
    ]
    for each in outcome.comparisons:
        found = each.found
        digits = 4 if each.unit == "fraction" else 2
        numbers = (f"{found.a:.{digits}f}", f"{found.b:.{digits}f}", f"{found.difference:+.{digits}f}")
        interval = f"{found.low:+.{digits}f} to {found.high:+.{digits}f}"
        tests = (f"{each.p:.3g}", f"{each.p_holm:.3g}", f"{found.detectable:.{digits}f}", f"{len(each.won)}/{len(each.lost)}")
        table.append((each.b, each.benchmark, each.metric, *numbers, interval, *tests, each.verdict))
    lines = [columns(table)] if outcome.comparisons else ["nothing to compare"]
    for each in outcome.comparisons:
        for kind in ("won", "lost"):
            mine = [row for row in rows if (row["run"], row["benchmark"], row["flip"]) == (each.b, each.benchmark, kind)]
            named = [
                (f"  {row['id']}", f"expected {row['expected']}", f"A {row['a']}", f"B {row['b']}") for row in mine[:flips]
            ]
            if named:
                lines.append(f"{each.benchmark}, {kind} by {each.b} ({len(mine)}):\n{columns(named)}")
    return "\n".join(lines)
