"""One question in one run, as pictures and exports show it: question, answer, verdict, region and picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cos_core.dialogue.crop_content import replacement_words
from cos_core.files.text import one_line
from cos_core.geometry import Box
from cos_core.scoring.metrics import usable_box
from cos_core.types import UNUSABLE_BOXES, Example, Prediction, Sample, Score

NO_IMAGE = "asked without an image"
"""The text shown for a question that has no picture."""
NOTHING = "(nothing)"
"""The text shown for an answer without a character."""
MOST_ANSWERS = 12
"""Different sampled answers of a question that are listed; the others are counted."""
MOST_BOXES = 64
"""Boxes of sampled answers that are drawn for a question."""
_ANSWER_CHARACTERS = 120


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
        return self.prediction.answer if self.prediction.answer else NOTHING

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
        """The fallback region that was looked at instead of an unreadable one, in words; empty without a fallback."""
        if not self.fallback or self.prediction is None or self.prediction.box is None or not second_look(self.prediction):
            return ""
        return fallback_words(self.prediction.box)

    @property
    def seen_otherwise(self) -> str:
        """Why the model did not see what its box holds, in words; empty where it did, and where no box was named."""
        if self.prediction is None or self.prediction.box is None:
            return ""
        if not second_look(self.prediction):
            return "not looked at"
        return "" if self.prediction.shown is None else second_picture_words(self.prediction.shown)

    @property
    def further_boxes(self) -> tuple[Box, ...]:
        """The boxes of its sampled answers that are not `box`, each once, at most MOST_BOXES."""
        samples = self.prediction.samples if self.prediction else ()
        usable = [each.box for each in samples if each.box is not None and each.box_status not in UNUSABLE_BOXES]
        return tuple(dict.fromkeys(box for box in usable if box != self.box))[:MOST_BOXES]

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


def second_look(prediction: Prediction) -> bool:
    """Whether its answer is that of a second pass, as far as a gate decides."""
    return prediction.gate != "closed"


def second_picture_words(shown: str) -> str:
    """`Prediction.shown` as a caption: "shown instead: black"; "no second picture"."""
    words = replacement_words(shown)
    return words if shown == "absent" else f"shown instead: {words}"


def seen_words(settings: Mapping[str, Any]) -> str:
    """What the settings of a run of `cos infer` say the model saw of the whole picture; empty for all of it."""
    scale = settings.get("global_scale")
    return f"seen as if it had {scale:g} times its sides" if isinstance(scale, int | float) and scale < 1 else ""


def gate_words(prediction: Prediction) -> str:
    """What the gate decided, and the plain answer's margin where it is known; empty for an answer without a gate."""
    if prediction.gate is None:
        return ""
    margin = "" if prediction.margin is None else f"; margin {prediction.margin:g}"
    decided = "open, the second look decided" if second_look(prediction) else "closed, the plain answer stands"
    return f"{decided}{margin}"


def agreement(samples: Sequence[Sample]) -> str:
    """How many of the sampled answers are the same: "3 of 5 agree"."""
    most = _answers(samples)[0][1]
    return f"{most} of {len(samples)} agree" if most > 1 or len(samples) == 1 else f"no two of {len(samples)} agree"


def sample_words(samples: Sequence[Sample]) -> str:
    """The agreement, and each different answer with its number, most frequent first."""
    answers = _answers(samples)
    listed = [(one_line(answer, _ANSWER_CHARACTERS), count) for answer, count in answers[:MOST_ANSWERS]]
    words = ", ".join(answer if len(answers) == 1 else f"{answer} ({count})" for answer, count in listed)
    further = f", and {len(answers) - MOST_ANSWERS} others" if len(answers) > MOST_ANSWERS else ""
    return f"{agreement(samples)}: {words}{further}"


def _answers(samples: Sequence[Sample]) -> list[tuple[str, int]]:
    return Counter((each.answer or "").strip() or NOTHING for each in samples).most_common()
