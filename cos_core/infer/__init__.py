"""Stage `infer`: the two passes of Chain-of-Spot (CoS Eq. 2-3). See stage.py; imports no torch."""

from __future__ import annotations

from cos_core.infer.config import AnsweringOptions, InferConfig
from cos_core.interfaces import Engine, Reporter, Runner
from cos_core.types import RunManifest

__all__ = ["AnsweringOptions", "InferConfig", "run"]


def run(config: InferConfig, reporter: Reporter, engine: Engine | None = None, workers: Runner | None = None) -> RunManifest:
    """Answers every question of `config.data` into `config.out` (see stage.run)."""
    from cos_core.infer import stage

    return stage.run(config, reporter, engine, workers)
