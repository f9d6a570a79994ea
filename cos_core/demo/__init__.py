"""`cos demo`: the paper in small, end to end, on two CPU cores.

Scenes are drawn and annotated. The rows of CoS Table 3a are trained from one checkpoint with the same number of steps, and
answer the same held-out questions; controls stand beside them. This package runs the stages; what happens in each is in its own
package.

    config.py   what is compared, how much work it is, and where each part of a run lies
    steps.py    one function a step, and which steps each waits for
    stage.py    runs the steps in worker processes; a killed demo that is started again continues
    results.py  the table, the paired differences, the labels against gold
    story.py    the page: a report of the runs with the demo's story on top
"""

from __future__ import annotations

from typing import Any

from cos_core.demo.config import DemoConfig
from cos_core.interfaces import Reporter

__all__ = ["DemoConfig", "run"]


def run(config: DemoConfig, reporter: Reporter) -> dict[str, Any]:
    """Runs the whole demo; returns its results (see stage.run)."""
    from cos_core.demo import stage

    return stage.run(config, reporter)
