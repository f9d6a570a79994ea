"""One question in one run, as pictures and exports show it: question, answer, verdict, region and picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cos_core.geometry import Box
from cos_core.scoring.metrics import usable_box
from cos_core.types import UNUSABLE_BOXES, Example, Prediction, Score

NO_IMAGE = "asked without an image"
"""The text shown for a question that has no picture."""


@dataclass(frozen=True, slots=True)
class RunQuestion:
    """One question in one run; any part may be missing."""

    prediction: Prediction | None
    score: Score | None
    example: Example | None

    @property
    def question(self) -> str:
        """The question's text, of the data or as the prediction recorded it."""
        recorded = self.example.question if self.example else None
        return recorded or (self.prediction.question if self.prediction else None) or "(question not recorded)"

    @property
    def answer(self) -> str:
        if self.prediction is None:
            return "(no answer recorded)"
        if self.prediction.error:
            return f"failed: {self.prediction.error}"
        return self.prediction.answer if self.prediction.answer else "(nothing)"

    @property
    def right(self) -> bool | None:
        """Whether the answer counts, in part at least; None when it was not scored."""
        return None if self.score is None else self.score.value > 0

    @property
    def truth(self) -> str:
        if self.example is not None and self.example.answers:
            return " / ".join(dict.fromkeys(self.example.answers))
        return (self.score.expected if self.score else None) or ""

    @property
    def box(self) -> Box | None:
        """The region that the model named; None for one that could not be read, also where a fallback region was used."""
        return usable_box(self.prediction) if self.prediction else None

    @property
    def instead(self) -> str:
        """The fallback region that replaced an unreadable one, in words; empty without a fallback."""
        if not self.fallback or self.prediction is None or self.prediction.box is None:
            return ""
        return fallback_words(self.prediction.box)

    @property
    def gold(self) -> Box | None:
        """The data's own region."""
        return self.example.gold if self.example else None

    @property
    def image(self) -> str | None:
        """The image path, of the data or as the prediction recorded it; None for a question without a picture."""
        recorded = self.example.image if self.example else None
        return recorded or (self.prediction.image if self.prediction else None)

    @property
    def kind(self) -> str:
        """The slice that a reader filters by: the question's kind, category or split, as the scores name it."""
        groups = dict(self.score.groups) if self.score else {}
        for key in ("kind", "category", "type", "split"):
            if groups.get(key):
                return str(groups[key])
        return ""

    @property
    def fallback(self) -> bool:
        """Whether the first pass was asked for a box and its box could not be used."""
        return self.prediction is not None and self.prediction.box_status in UNUSABLE_BOXES


def image_name(items: Sequence[RunQuestion]) -> str | None:
    """The image path of a question, from the first run that has one."""
    return next((item.image for item in items if item.image), None)


def gold_region(items: Sequence[RunQuestion]) -> Box | None:
    """The data's own region for a question, from the first run that has one."""
    return next((item.gold for item in items if item.gold is not None), None)


def gold_answer(items: Sequence[RunQuestion]) -> str:
    """The accepted answers to a question, from the first run that has them; empty without any."""
    return next((item.truth for item in items if item.truth), "")


def fallback_words(box: Box) -> str:
    """The name of a fallback region."""
    return "fallback: whole picture" if box.area == 1.0 else "fallback: a fixed region"
