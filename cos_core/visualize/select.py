"""Which questions are looked at: the filters that comparisons, reports and exports share."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cos_core.errors import InputError
from cos_core.visualize.runs import FinishedRun, RunQuestion


@dataclass(frozen=True, slots=True)
class Selection:
    """Filters, all of which must hold; None and False ask for nothing.

    flipped   the verdicts of the first two runs differ
    wrong     the last run's answer is wrong
    fallback  in a run, a box was asked for and could not be used
    min_area  the last run's box covers at least this share of the picture
    question  a regular expression found in the question, cases ignored
    sample    so many of them, drawn with `seed`, order kept
    """

    flipped: bool = False
    wrong: bool = False
    fallback: bool = False
    min_area: float | None = None
    question: str | None = None
    sample: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.min_area is not None and not 0.0 <= self.min_area <= 1.0:
            raise InputError(f"an area is a share of the picture, in [0, 1], got {self.min_area}")
        if self.sample is not None and self.sample < 1:
            raise InputError(f"a sample holds at least one question, got {self.sample}")
        self.pattern()

    def pattern(self) -> re.Pattern[str] | None:
        """The expression of `question`, cases ignored. Raises InputError when it is none."""
        try:
            return None if self.question is None else re.compile(self.question, re.IGNORECASE)
        except re.error as error:
            raise InputError(f"--question {self.question!r} is not a regular expression: {error}") from None

    def words(self) -> str:
        """What was asked for, in a few words; empty for everything."""
        parts = [name for name in ("flipped", "wrong", "fallback") if getattr(self, name)]
        parts += [f"area ≥ {self.min_area:g}"] if self.min_area is not None else []
        parts += [f"question ~ {self.question}"] if self.question is not None else []
        parts += [f"sample of {self.sample}, seed {self.seed}"] if self.sample is not None else []
        return ", ".join(parts)


def shared_ids(runs: Sequence[FinishedRun]) -> list[str]:
    """The questions that every run has, in the first one's order. Raises InputError when there is none."""
    first, *rest = [run.ids() for run in runs]
    others = [other for other in rest if other is not first]
    ids = [i for i in first.names if all(i in other for other in others)] if others else first.names
    if not ids:
        raise InputError("the runs have no question in common: " + " and ".join(run.name for run in runs))
    return ids


def chosen(runs: Sequence[FinishedRun], selection: Selection) -> list[str]:
    """The ids that the runs share and the selection takes. Raises InputError: a filter that these runs cannot answer."""
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
    if selection.sample is not None and selection.sample < len(ids):
        drawn = set(random.Random(selection.seed).sample(ids, selection.sample))
        ids = [i for i in ids if i in drawn]
    return ids


def _fits(items: Sequence[RunQuestion], selection: Selection, pattern: re.Pattern[str] | None) -> bool:
    if selection.fallback and not any(item.fallback for item in items):
        return False
    if selection.min_area is not None and (items[-1].box is None or items[-1].box.area < selection.min_area):
        return False
    return pattern is None or pattern.search(items[0].question) is not None
