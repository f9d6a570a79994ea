"""The questions that comparisons, reports and exports show: their shared filters."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from cos_core.errors import InputError
from cos_core.visualize.config import Selection
from cos_core.visualize.run_questions import RunQuestion
from cos_core.visualize.runs import FinishedRun


def shared_ids(runs: Sequence[FinishedRun]) -> list[str]:
    """The questions that every run has, in the first one's order. Raises InputError when there is none."""
    first, *rest = [run.ids() for run in runs]
    others = [other for other in rest if other is not first]
    ids = [i for i in first.names if all(i in other for other in others)] if others else first.names
    if not ids:
        raise InputError("the runs have no question in common: " + " and ".join(run.name for run in runs))
    return ids


def selected_ids(runs: Sequence[FinishedRun], selection: Selection) -> list[str]:
    """The ids that the runs share and the selection includes.

    Raises InputError for a filter that these runs have no data for.
    """
    if selection.flipped and len(runs) < 2:
        raise InputError("--flipped compares two runs, and there is one")
    if (selection.flipped or selection.wrong) and not all(run.scores for run in runs):
        raise InputError("--flipped and --wrong need scored runs (folders of `cos eval`)")
    ids, pattern = shared_ids(runs), selection.pattern()
    if selection.flipped:
        ids = [i for i in ids if {runs[0].right(i), runs[1].right(i)} == {True, False}]
    if selection.wrong:
        ids = [i for i in ids if runs[-1].right(i) is False]
    if selection.fallback or selection.min_area is not None or pattern:
        ids = [i for i in ids if _fits([run.item(i) for run in runs], selection, pattern)]
    return ids if selection.sample is None else drawn(ids, selection.sample, selection.seed)


def drawn(ids: Sequence[str], most: int, seed: int) -> list[str]:
    """At most `most` of `ids`, drawn at random, in their own order."""
    if len(ids) <= most:
        return list(ids)
    sample = set(random.Random(seed).sample(list(ids), most))
    return [i for i in ids if i in sample]


def _fits(items: Sequence[RunQuestion], selection: Selection, pattern: re.Pattern[str] | None) -> bool:
    if selection.fallback and not any(item.fallback for item in items):
        return False
    if selection.min_area is not None and (items[-1].box is None or items[-1].box.area < selection.min_area):
        return False
    return pattern is None or pattern.search(items[0].question) is not None
