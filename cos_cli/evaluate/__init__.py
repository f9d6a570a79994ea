"""`cos eval` and its parts: `run` (the name may be left out), `compare`, `report`.

This is where stages are composed: `infer` writes predictions, `evaluate` scores the file; neither knows the other.
"""

from __future__ import annotations

import typer

from cos_cli.evaluate.command import evaluate
from cos_cli.evaluate.compare import compare
from cos_cli.evaluate.group import DEFAULT, WithDefault
from cos_cli.evaluate.report import report

__all__ = ["app", "evaluate"]

app = typer.Typer(cls=WithDefault, rich_markup_mode=None, help="Score predictions on benchmarks, or run a model on them.")
app.command(DEFAULT)(evaluate)
app.command("compare")(compare)
app.command("report")(report)
