"""`cos eval compare`: finished runs against the first of them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cos_cli.command import command
from cos_cli.console import Session, columns, emit, emit_json, reporting
from cos_cli.evaluate import effect_words
from cos_cli.evaluate.figures import WIDTH, TableFormat, interval, number
from cos_core import options
from cos_core.files.text import Lines, escaped
from cos_core.options import CHECKS, INPUT, OUTPUT, REQUIRED, SCORING, option

if TYPE_CHECKING:
    from cos_core.evaluate.compare_runs import RunComparison
    from cos_core.evaluate.effects import Told
    from cos_core.scoring.comparison import Comparison

_HEAD = ("benchmark", "A", "B", "B - A", "95 %", "p (Holm)", "verdict")
_LONGEST = 24
"""Characters of an answer that the list of flipped questions shows."""


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """Which runs are compared, and what is shown of them."""

    runs: tuple[Path, ...] = option(
        REQUIRED,
        "Folders of finished runs; the first is the reference.",
        INPUT,
        argument=True,
        metavar="RUN RUN...",
        completes="run",
    )
    despite: tuple[str, ...] = option(
        (), "Warn where this field of the protocol differs ('all': any).", CHECKS, metavar="FIELD"
    )
    format: TableFormat = option("text", "Or latex: the tables alone, with the rules of booktabs.", OUTPUT)
    flips: int = option(5, "Flipped questions to name, of each kind.", OUTPUT, low=0, high=options.BATCH)
    out: Path | None = option(None, "JSON Lines file for every flipped question.", OUTPUT, shown_default="none")
    replicates: int = option(2000, "Bootstrap samples.", SCORING, low=100, high=options.REPLICATES)
    seed: int = options.seed_option()


@command("eval compare", CompareOptions)
def compare(session: Session, config: CompareOptions) -> None:
    """Compare finished runs: paired differences with intervals and tests, and the questions that flipped.

    Runs are paired question by question; images are resampled, not questions; p-values are Holm's over all benchmarks.
    Runs that were not made alike (profile, OCR tokens, split, scorer, judge, data) are refused. A figure that is not
    defined is neither better nor worse: the verdict says so, and the command ends with code 7.

    What the crop did: the questions that a run fixed and broke, by its boxes and by question group, and MED's four
    terms. With an arm of --crop absent among the runs, what writing the box does and what its picture adds.

    \b
    Example:
      cos eval compare run/none run/model
    """
    from cos_core.errors import UndefinedError
    from cos_core.evaluate import compare_runs as comparing
    from cos_core.evaluate import effects
    from cos_core.evaluate import stage as evaluate
    from cos_core.files import outputs

    if len(config.runs) < 2:
        raise typer.BadParameter("give at least two runs")
    if config.out is not None:
        outputs.check_file(config.out, "eval compare", config.runs, outputs.records_with("benchmark|run|flip", "run", "flip"))
    with reporting(session) as reporter:
        outcome = comparing.compare(config.runs, despite=config.despite, replicates=config.replicates, seed=config.seed)
        for each in outcome.comparisons:
            if each.differs:
                reporter.warn(f"{each.benchmark}: {each.b} differs from {each.a} in {', '.join(each.differs)}")
        for words in outcome.skipped:
            reporter.note(f"not compared: {words}")
        told = effects.told(outcome, replicates=config.replicates, seed=config.seed)
    if config.out is not None:
        evaluate.write_records(outcome.flips(), config.out)
    if session.json:
        compared = [each.to_json() for each in outcome.comparisons]
        emit_json({"comparisons": compared, "skipped": outcome.skipped, **told.to_json()})
    elif config.format == "latex":
        emit(tex(outcome))
    else:
        emit(describe(outcome, list(outcome.flips(config.flips)), config.flips, told))
    undefined = [f"{each.benchmark}: {each.undefined}" for each in outcome.comparisons if each.undefined]
    if undefined:
        raise UndefinedError(
            f"no verdict on {len(undefined)} of {len(outcome.comparisons)} comparisons: {'; '.join(undefined)}"
        )


def describe(outcome: RunComparison, rows: Sequence[dict[str, Any]], flips: int, told: Told) -> Lines:
    """For each run a table with a line a benchmark, what stands behind each line, what the crop did, and the first flipped
    questions; then what the runs say together."""
    if not outcome.comparisons:
        return Lines(["nothing to compare"])
    parts: list[str] = []
    effect_of = {(each.b, each.benchmark): each for each in told.effects}
    for run in dict.fromkeys(each.b for each in outcome.comparisons):
        mine = [each for each in outcome.comparisons if each.b == run]
        parts += ["", f"A {mine[0].a}", f"B {run}", ""]
        parts.append(columns([_HEAD, *map(_line, mine)]))
        for each in mine:
            parts += [
                "",
                Lines(textwrap.wrap(escaped(_behind(each)), WIDTH)),
                *effect_words.lines(effect_of[each.b, each.benchmark]),
                *_flipped(each, rows, flips),
            ]
    return Lines([*parts[1:], *effect_words.arms(told)])


def tex(outcome: RunComparison) -> Lines:
    """The table of each run in LaTeX."""
    from cos_core.files import latex

    lines = latex.HEAD.splitlines()
    for run in dict.fromkeys(each.b for each in outcome.comparisons):
        mine = [each for each in outcome.comparisons if each.b == run]
        caption = f"A: {mine[0].a}. B: {run}. Paired differences with 95 % intervals over pictures; p-values are Holm's."
        lines += ["", *latex.table([_HEAD, *map(_line, mine)], caption, [*map(_behind, mine)]).splitlines()]
    return Lines(lines)


def _line(each: Comparison) -> tuple[str, ...]:
    result, unit = each.found, each.unit
    values = (number(result.a, unit), number(result.b, unit), number(result.difference, unit, "+"))
    return (
        *(each.benchmark, *values),
        *(interval((result.low, result.high), unit, "+"), number(each.p_holm, "p"), each.verdict),
    )


def _behind(each: Comparison) -> str:
    """The sentence under the table; p there is Holm's, here it is the test's own."""
    result, changed = each.found, bool(each.won or each.lost)
    words = [
        f"{each.benchmark}, {each.metric} ({each.unit}): B won {len(each.won)} and lost {len(each.lost)} of {each.n} questions",
        f"{result.clusters} pictures",
        *(f"{side} is the mean of {n} samples a question" for side, n in zip("AB", each.samples, strict=True) if n > 1),
        *(f"{n} questions only in {side}" for side, n in (("A", each.only_a), ("B", each.only_b)) if n),
        f"undefined: {each.undefined}" if each.undefined else f"p {each.p:.2g} before Holm ({each.test})",
    ]
    if changed and not each.undefined:
        words.append(f"a true difference of {number(result.detectable, each.unit)} would be found four times in five")
    return "; ".join(words)


def _flipped(each: Comparison, rows: Sequence[dict[str, Any]], flips: int) -> list[str]:
    parts: list[str] = []
    for kind in ("won", "lost"):
        mine = [row for row in rows if (row["run"], row["benchmark"], row["flip"]) == (each.b, each.benchmark, kind)]
        named = [
            (
                f"  {row['id']}",
                *(f"{word} {_short(row[key])}" for word, key in (("expected", "expected"), ("A", "a"), ("B", "b"))),
            )
            for row in mine[:flips]
        ]
        if named:
            count = len(each.won if kind == "won" else each.lost)
            shown = f", the first {len(named)}" if len(named) < count else ""
            parts += ["", f"{kind} by B ({count}{shown}):", columns(named)]
    return parts


def _short(text: object) -> str:
    """An answer on one line of a table; a model that rambles does not push the others off the screen."""
    words = " ".join(str(text).split())
    return words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…"
