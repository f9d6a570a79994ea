"""`cos eval`: benchmarks and arms of one model in one call. Composes the stages `infer` and `evaluate`, neither of which knows
the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cos_core.interfaces import Reporter
from cos_core.suite.config import SuiteConfig

if TYPE_CHECKING:
    from cos_core.suite.stage import SuiteResult

__all__ = ["SuiteConfig", "run"]


def run(config: SuiteConfig, reporter: Reporter) -> SuiteResult:
    """Answers and scores (see stage.run)."""
    from cos_core.suite import stage

    return stage.run(config, reporter)
