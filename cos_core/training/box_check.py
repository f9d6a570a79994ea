"""Whether the boxes of the training data are in the frames that they claim: regions, and boxes in questions and answers.

Collected sample by sample, judged at the end by the statistics of dialogue/box_frames.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from cos_core.data.released import Square
from cos_core.dialogue import box_conventions as conventions
from cos_core.dialogue.box_frames import FEWEST, Verdict, agreeing, judge, swapped
from cos_core.dialogue.box_sample import BoxSample
from cos_core.dialogue.prompts import BoxStyle, Profile
from cos_core.dialogue.text_boxes import boxes_in
from cos_core.errors import InputError
from cos_core.geometry import Box, Frame
from cos_core.models import families
from cos_core.training.findings import DataFinding, Where
from cos_core.training.samples import Sample

FRAME = "frame"
TEXT_FRAME = "frame of boxes in texts"
ORDER = "order of corners"
_FEW = 3
"""Boxes in the words of another family that are named: fewer may be quotations."""
_OF_REGIONS = {
    "image": (
        conventions.IMAGE,
        (conventions.SQUARE, conventions.SEEN_SHARES, *conventions.copies(conventions.IMAGE, conventions.SMALLER)),
    ),
    "square": (conventions.SQUARE, (conventions.IMAGE,)),
}
_SWAPPED = conventions.in_order(conventions.IMAGE, "y0x0y1x1")

Written = tuple[tuple[BoxStyle, ...], bool]
"""Whose writing boxes in texts are in, and whether their numbers are whole."""


@dataclass(slots=True)
class BoxCheck:
    """`profile`: of the model that is trained; `owner`: its family's name.

    `regions`: whether the samples' regions were measured, by an annotator or in the data set; a policy's fixed part of every
    picture is not.
    """

    profile: Profile
    owner: str
    regions: bool
    _by_frame: dict[Frame, BoxSample[Where]] = field(default_factory=lambda: defaultdict(BoxSample))
    _by_writing: dict[Written, BoxSample[Where]] = field(default_factory=lambda: defaultdict(BoxSample))

    def add(
        self, sample: Sample, where: Callable[[int], Where], size: tuple[int, int], seen: tuple[int, int] | None = None
    ) -> None:
        """The boxes of a sample with a picture of `size` (width, height in pixels), which the model sees in the size `seen`."""
        sizes = (size, seen or size)
        styles = family_styles()
        for i in sample.usable:
            if self.regions and i not in sample.fallbacks:
                self._add_region(sample, i, where, sizes)
            question = sample.questions[i]
            for text in (question.question, *question.answers[:1]):
                for found in boxes_in(text, styles):
                    kept = self._by_writing[found.styles, found.whole]
                    if kept.wants():
                        kept.add(found.numbers, sizes, str(sample.image), where(i))

    def _add_region(
        self, sample: Sample, which: int, where: Callable[[int], Where], sizes: tuple[tuple[int, int], tuple[int, int]]
    ) -> None:
        region, gold = sample.boxes[which], sample.questions[which].gold
        box = fractions(region, sizes[0]) if isinstance(region, Square) else region
        if box is not None and (kept := self._by_frame[box.frame]).wants():
            known = gold.corners if gold is not None and gold != box else None
            kept.add(box.corners, sizes, str(sample.image), where(which), known)

    def findings(self) -> Iterator[DataFinding]:
        for frame, sample in self._by_frame.items():
            claimed, others = _OF_REGIONS[frame]
            boxes = sample.boxes()
            verdict = judge(boxes, claimed, others) if len(boxes) >= FEWEST else None
            if verdict is None:
                known, gold = sample.referenced()
                verdict = agreeing(known, gold, claimed, (*others, _SWAPPED)) if len(known) else None
            if verdict is not None:
                yield _finding(FRAME, sample, verdict, f"boxes {verdict.said(claimed)}")
            elif swapped(boxes, claimed):
                yield _swapped(sample, "boxes")
        for (styles, whole), sample in self._by_writing.items():
            yield from self._of_texts(styles, whole, sample)

    def _of_texts(self, styles: Sequence[BoxStyle], whole: bool, sample: BoxSample[Where]) -> Iterator[DataFinding]:
        trained = conventions.of_style(self.profile.boxes)
        named = [conventions.of_style(style) for style in styles]
        # Who writes in the words of a family means what it does, unless the numbers say otherwise.
        own = trained if not named or trained.name in [each.name for each in named] else named[0]
        boxes = sample.boxes()
        if len(boxes) < _FEW:
            return
        resized = bool((boxes.pictures[:, :2] != boxes.pictures[:, 2:]).any())
        verdict = judge(boxes, own, conventions.IN_TEXT if resized else conventions.UNRESIZED)
        likely = own if verdict is None else verdict.likely
        if likely is not None and likely.name == trained.name and not (verdict and verdict.part):
            if swapped(boxes, trained):
                yield _swapped(sample, "boxes in texts")
            return
        if likely is None and not named:
            return  # four numbers in brackets that are no boxes
        if verdict is None:
            verdict = Verdict(own, np.ones(len(boxes), bool))
            seem = f"look like {own.name}, in the words of {_writers(styles)}"
        else:
            seem = verdict.said(own)
        writes = f"; {self.owner or 'this model'} with the profile {self.profile.name!r} writes {trained.name}"
        yield _finding(TEXT_FRAME, sample, verdict, f"boxes in texts {seem}{writes}")


def _finding(kind: str, sample: BoxSample[Where], verdict: Verdict, reason: str) -> DataFinding:
    """At the first box that speaks against its claim; a fault where more than a few boxes are concerned."""
    where = sample.origins[int(verdict.against.argmax())]
    many = (int(verdict.against.sum()) if verdict.part else len(verdict.against)) >= FEWEST
    return DataFinding(kind if many else f"{kind} of a few", *where, reason, fault=many)


def _swapped(sample: BoxSample[Where], which: str) -> DataFinding:
    reason = f"{which} may have x and y swapped: they are the wider, the wider their pictures are"
    return DataFinding(ORDER, *sample.origins[0], reason, fault=False)


def fractions(square: Square, size: tuple[int, int]) -> Box | None:
    """The part of a square on its picture; None where it lies outside."""
    try:
        return square.box(*size)
    except InputError:
        return None


def family_styles() -> tuple[BoxStyle, ...]:
    """How the families that cos knows write boxes."""
    return tuple(dict.fromkeys(families.of_type(name).boxes for name in families.names()))


def _writers(styles: Sequence[BoxStyle]) -> str:
    """The names of the families that write in one of these styles."""
    known = (families.of_type(name) for name in families.names())
    return " or ".join(family.name for family in known if family.boxes in styles)
