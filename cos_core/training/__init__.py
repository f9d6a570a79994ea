"""Stage `train`: Chain-of-Spot fine-tuning of a LLaVA-1.5-layout checkpoint (CoS §3.3, §4.1).

Importing this package imports neither torch nor transformers; `run` does, when it is called.
"""

from __future__ import annotations

from cos_core.interfaces import Reporter
from cos_core.training.config import TrainConfig
from cos_core.types import RunManifest

__all__ = ["TrainConfig", "run"]


def run(config: TrainConfig, reporter: Reporter) -> RunManifest:
    """Trains as `config` says and returns the manifest written beside the final checkpoint (see training/stage.py).

    With `check_only` or `dry_run` nothing is trained; the manifest then holds the report or the bill (see training/plan.py).
    """
    if config.check_only or config.dry_run:
        from cos_core.training import plan

        return plan.run(config, reporter)
    from cos_core.training import stage

    return stage.run(config, reporter)
