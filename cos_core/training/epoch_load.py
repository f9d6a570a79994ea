"""How much of everything an epoch holds, counted on some of its samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from cos_core.models.text_tokens import USUAL_SIZE, TextTokens
from cos_core.training.dataset import Recipe, TrainDataset, expected_text_tokens, lengths_of, make_turns, question_of
from cos_core.training.picture_lengths import PictureLength, PictureLengths
from cos_core.training.sample_order import SampleOrder
from cos_core.training.samples import Sample

_COUNTED = 2_000
"""Samples that are turned into tokens to be counted; more are extrapolated."""
_SOME_BOX = "[0.250, 0.250, 0.750, 0.750]"


@dataclass(frozen=True, slots=True)
class EpochLoad:
    """The size of one epoch: sums over all samples, and the share of positions that is padding.

    `squares`: of lengths; `remarks`: what is assumed or left out, sentences without an end.
    """

    samples: int
    tokens: int
    squares: int
    image_tokens: int
    pictures: int
    padding: float
    longest: int
    remarks: tuple[str, ...] = ()


@dataclass(slots=True)
class Counter:
    """Counts samples without weights, without opening a picture beyond its header.

    `text`: counts the positions of texts, None where they are estimated from their characters. `samples`, `longer`: how many
    were counted, and were longer than the limit.
    """

    recipe: Recipe
    text: TextTokens | None
    samples: int = 0
    longer: int = 0
    _lengths: PictureLengths = field(init=False)

    def __post_init__(self) -> None:
        self._lengths = lengths_of(self.recipe)

    def count(self, sample: Sample) -> tuple[int, list[PictureLength]]:
        """(positions of a sample in the first epoch, with a fixed box in place of its own; the lengths of its pictures)."""
        which = question_of(sample, 0, self.recipe)
        pictures = self._lengths.of(sample, which)
        if self.text is None:
            words = expected_text_tokens(sample.outline, which, self.recipe)
        else:
            box = None if sample.boxes[which] is None else _SOME_BOX
            words = self.text(make_turns(sample, which, box, self.recipe))
        length = words + sum(picture.positions for picture in pictures)
        most = self.recipe.max_length
        if self.recipe.max_length_counts == "text":
            most += sum(picture.tokens for picture in pictures) - len(pictures)
        self.samples += 1
        self.longer += length > most
        return min(length, most), pictures

    @property
    def remarks(self) -> tuple[str, ...]:
        said = []
        if self.text is None:
            said.append("there is no tokenizer here, so the tokens of texts are estimated from their characters")
        if self._lengths.unread:
            width, height = USUAL_SIZE
            read = f"{self._lengths.unread} of {self._lengths.headers}"
            said.append(f"{read} pictures could not be read and count as {width} x {height} pixels")
        if self.longer:
            said.append(
                f"{self.longer} of {self.samples} samples are longer than {self.recipe.max_length} tokens and count as cut; "
                "those whose picture would be cut are left out (--max-length, or smaller pictures)"
            )
        return tuple(said)


def epoch_load(data: TrainDataset, order: SampleOrder, batch: int, counter: Counter) -> EpochLoad:
    """Counted on the first samples of the order, batches cut as training cuts them."""
    counts = [counter.count(data.samples[index]) for index in islice(order.indices(0), _COUNTED)]
    lengths = [length for length, _ in counts]
    cells = sum(max(part) * len(part) for part in _parts(lengths, batch))
    scale = len(data) / len(counts)
    load = EpochLoad(
        samples=len(data),
        tokens=round(sum(lengths) * scale),
        squares=round(sum(n * n for n in lengths) * scale),
        image_tokens=round(sum(picture.tokens for _, pictures in counts for picture in pictures) * scale),
        pictures=round(sum(len(pictures) for _, pictures in counts) * scale),
        padding=1 - sum(lengths) / cells,
        longest=max(lengths),
    )
    return replace(load, remarks=counter.remarks)


def _parts(lengths: Sequence[int], batch: int) -> list[Sequence[int]]:
    return [lengths[i : i + batch] for i in range(0, len(lengths), batch)]
