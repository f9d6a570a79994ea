"""`cos eval` and its parts: `run` (the name may be left out), `compare`, `report`."""

from __future__ import annotations

from cos_cli.command import Group
from cos_cli.evaluate.command import evaluate
from cos_cli.evaluate.compare import compare
from cos_cli.evaluate.report import report

group = Group("eval", "Score predictions on benchmarks, or run a model on them.", (evaluate, compare, report))
