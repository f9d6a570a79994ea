"""Stage `eval`: recorded predictions to scores. stage.py is the run; importing this package runs nothing."""

from __future__ import annotations

from cos_core.evaluate.config import EvalConfig
from cos_core.interfaces import Benchmark, BenchmarkData, Reporter
from cos_core.types import RunManifest

__all__ = ["EvalConfig", "run"]


def run(
    config: EvalConfig, reporter: Reporter | None = None, loaded: tuple[Benchmark, BenchmarkData] | None = None
) -> RunManifest:
    """Scores a predictions file (see stage.run)."""
    from cos_core.evaluate import stage

    return stage.run(config, reporter, loaded)
