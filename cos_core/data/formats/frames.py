"""Whether the boxes of a file that is imported are in the frame that its format says: the place where wrong frames come in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cos_core.data.formats import Format
from cos_core.dialogue import box_conventions as conventions
from cos_core.dialogue.box_conventions import Convention
from cos_core.dialogue.box_frames import FEWEST, judge
from cos_core.dialogue.box_sample import BoxSample
from cos_core.interfaces import Reporter

_CLAIMED: Mapping[Format, Convention] = {
    "jsonl": conventions.IMAGE,
    "parquet": conventions.IMAGE,
    "coco": conventions.in_order(conventions.PIXELS, "x0y0wh"),
    "visual-cot": conventions.PIXELS,
    "chain-of-spot": conventions.PIXELS,
}
_FACTORS = (*conventions.SMALLER, *conventions.LARGER)


@dataclass(slots=True)
class FileBoxes:
    """Boxes of a file by their numbers, those that leave their pictures included."""

    format: Format
    _sample: BoxSample[str] = field(default_factory=BoxSample)

    def wants(self) -> bool:
        """Whether the next box is to be added; each call is a box."""
        return self._sample.wants()

    def add(self, numbers: tuple[float, float, float, float], size: tuple[int, int], image: str | None, name: str) -> None:
        """`numbers`: as the format has them; `size`: of the pixels that it measures in; `name`: of the record."""
        self._sample.add(numbers, (size, size), image or name, name)

    def tell(self, path: Path, reporter: Reporter) -> None:
        """Warns when the boxes look as if they were in another frame."""
        boxes, claimed = self._sample.boxes(), _CLAIMED[self.format]
        if len(boxes) < FEWEST:
            return
        verdict = judge(boxes, claimed, (*conventions.UNRESIZED, *conventions.copies(claimed, _FACTORS)))
        # What fits nowhere has become a problem record by record.
        if verdict is not None and verdict.likely is not None:
            first = self._sample.origins[int(verdict.against.argmax())]
            reporter.warn(f"{path}: boxes {verdict.said(claimed)}; the first: {first}")
