"""`cos evidence`: does the second look do anything, and is it the region's content that does it?

One model answers the same questions in several ways ("arms"), each of which takes one thing away from the two passes. Paired
differences between the arms fill seven rows, each with a verdict; one verdict over them says whether the model reads its crops.

    config.py       the settings of one call
    arms.py         the ways to answer
    verdicts.py     the rows, the differences in them, and the rules of every verdict
    boxes.py        what right and wrong boxes are worth, where the data says where to look
    differences.py  every difference of one benchmark's arms, with its interval
    results.py      all of it as plain JSON and Markdown: verdicts, differences, costs
    stage.py        runs the arms (suite), and has the results written as results.json, table.md and index.html
    words.py        the sentences of the verdicts
    page.py         the page made of the results
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cos_core.evidence.config import EvidenceConfig
from cos_core.interfaces import Reporter

if TYPE_CHECKING:
    from cos_core.evidence.stage import Evidence

__all__ = ["EvidenceConfig", "run"]


def run(config: EvidenceConfig, reporter: Reporter) -> Evidence:
    """Answers, compares and writes the page (see stage.run)."""
    from cos_core.evidence import stage

    return stage.run(config, reporter)
