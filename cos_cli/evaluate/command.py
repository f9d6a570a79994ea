"""`cos eval`: scores of recorded predictions, or of a model that is run first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from cos_cli.command import command
from cos_cli.console import Session, emit, emit_json, reporting
from cos_core.files import plug
from cos_core.options import INPUT, option

if TYPE_CHECKING:
    from cos_core.suite import SuiteConfig
    from cos_core.suite.stage import SuiteResult


@dataclass(frozen=True, slots=True)
class ListOptions:
    """What `cos eval` shows instead of a score."""

    list_benchmarks: bool = option(
        False, "List the benchmarks, what they need and, with --data, what is missing.", INPUT, flag="--list"
    )


@command("eval run", "cos_core.suite:SuiteConfig", ListOptions, usual=True)
def evaluate(session: Session, config: SuiteConfig, instead: ListOptions) -> None:
    """Score predictions on benchmarks, or run a model on them.

    Also: 'cos eval compare' (finished runs, with tests), 'cos eval report' (the paper's tables).

    \b
    Examples:
      cos eval pope --data pope --predictions answers.jsonl
      cos eval pope mme gqa --data benchmarks --model miniature --roi none,model --out run
    """
    if instead.list_benchmarks:
        from cos_cli.evaluate import listing

        listing.show(config.benchmarks or plug.available("benchmarks"), config.data, session.json)
        return
    _check_usage(config)
    from cos_core.suite import run

    with reporting(session) as reporter:
        result = run(config, reporter)
    _draw(result)
    _show(config, result, session.json)
    result.conclude()


def _check_usage(config: SuiteConfig) -> None:
    """Raises typer.BadParameter (exit code 2) for a call that cannot be meant, InputError for a benchmark that is none."""
    if not config.benchmarks:
        raise typer.BadParameter("name a benchmark; cos eval --list shows them")
    for name in config.benchmarks:
        plug.load("benchmarks", name)  # an unknown name is an error before any work
    if config.data is None:
        raise typer.BadParameter("--data names the folder with the benchmark's files")
    recorded, model = config.predictions is not None, config.model is not None
    if (recorded and model) or not (recorded or model or config.out is not None):
        raise typer.BadParameter("give either --predictions or --model")
    if model and config.out is None:
        raise typer.BadParameter("with --model, --out names the folder for predictions and scores")
    if config.submissions and (config.out is None or config.scoring.limit is not None):
        raise typer.BadParameter("--submissions writes whole files into --out: give --out, and no --limit")


def _draw(result: SuiteResult) -> None:
    """Plots the gate's curves beside the scores of each run that has them."""
    folders = [run.folder for run in result.runs if run.folder and "curves" in run.manifest.results.get("gate", {})]
    if folders:
        from cos_core.visualize import gate_section

        for folder in folders:
            gate_section.draw(folder)


def _show(config: SuiteConfig, result: SuiteResult, json: bool) -> None:
    from cos_cli.evaluate.tables import overview, table

    runs, part = result.runs, config.part
    if json:
        one = runs[0].to_json() if len(runs) == 1 else {"runs": [each.to_json() for each in runs]}
        shown = {"part": part.number, "of": part.of} if part and part.number else {}
        named = {"fallen": result.missed.worse, "undefined": result.missed.undefined}
        emit_json({**one, **shown, **{name: words for name, words in named.items() if words}})
    elif len(runs) == 1:
        emit(table(runs[0].manifest))
    elif runs:
        emit(overview(runs))
