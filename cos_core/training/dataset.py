"""From examples and annotations to training samples: which question, which box, which tokens, which pictures.

A sample is one conversation: an image with its questions. Each epoch sees each sample once, with one question drawn by a pure
function of (seed, sample, epoch), so that the draw is the same on any number of workers and after a resume (the paper's "random
question-answer pair for each image"; the released code drew from an unseeded global generator, upstream §1.2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from cos_core.data.released import Square
from cos_core.dialogue.box_text import as_written
from cos_core.dialogue.cropping import crop_region
from cos_core.dialogue.encoding import IGNORE, Encoded
from cos_core.dialogue.prompts import Profile, dialogue, text_dialogue
from cos_core.errors import InputError
from cos_core.files.durable import utf8
from cos_core.files.images import open_image
from cos_core.files.picture_files import Root
from cos_core.geometry import full_box
from cos_core.interfaces import Policy
from cos_core.models.encoder import Encoder
from cos_core.models.text_tokens import USUAL_SIZE
from cos_core.training.picture_lengths import PictureLengths
from cos_core.training.sample_table import SampleTable
from cos_core.training.samples import Outline, Region, Sample, Samples
from cos_core.training.skipped import Skipped
from cos_core.types import Slot, Turn

if TYPE_CHECKING:
    from PIL.Image import Image

    from cos_core.training.region_crops import RegionCrops

_ATTEMPTS = 64
CUT_IMAGE = "longer than max_length: an image would be cut"
CUT_LABELS = "longer than max_length: nothing to learn is left"


class RefusedPictureError(InputError):
    """The model's image processor does not take a picture, or the crop of its region: families refuse extreme shapes."""


@dataclass(frozen=True, slots=True)
class TrainingItem:
    """One encoded sample: token ids, labels, and the pictures of its image slots in order of appearance, each prepared for the
    model (Encoder.picture).

    `filler`: nothing of it is learnt; it only makes a batch as large as its neighbours on other devices. `fallback`: its
    region is the whole picture because it has none of its own.
    """

    encoded: Encoded
    pictures: tuple[Any, ...]
    skipped: tuple[Skipped, ...] = ()
    id: str = ""
    filler: bool = False
    fallback: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that turns a sample into an item, equal in every worker process.

    `region_crops`: regions in place of the picture, as an annotator sees them; None: the picture, and its region after the box.
    """

    policy: Policy
    encoder: Encoder
    images: Root
    seed: int = 0
    max_length: int = 2048
    max_length_counts: Literal["positions", "text"] = "positions"
    extra_turns: bool = False
    crop_of: Literal["text", "region"] = "text"
    on_no_region: Literal["full", "skip"] = "full"
    region_crops: RegionCrops | None = None

    @property
    def profile(self) -> Profile:
        return self.encoder.profile

    def seen(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """(width, height) in pixels of a picture of `size` as the model sees it, for boxes in pixels; None for other boxes.

        Raises RefusedPictureError.
        """
        if self.profile.box_unit != "pixel":
            return None
        try:
            return self.encoder.seen(size)
        except ValueError as error:
            raise RefusedPictureError(f"a picture of {size[0]} x {size[1]} pixels: {error}") from None


def lengths_of(recipe: Recipe) -> PictureLengths:
    """What tells how many positions the pictures of a sample take."""
    return PictureLengths(recipe.encoder, recipe.images, recipe.profile.crop_from, recipe.region_crops)


def draw(seed: int, sample_id: str, epoch: int, n: int) -> int:
    """Which of `n` questions of a sample an epoch trains on: 0 to n - 1, a pure function of its arguments."""
    if n < 1:
        raise InputError(f"sample {sample_id!r} has no question to draw")
    digest = hashlib.sha256(utf8(f"{seed}\x00{epoch}\x00{sample_id}")).digest()
    return int.from_bytes(digest[:8], "big") % n


class TrainDataset:
    """The data set that the Trainer indexes.

    A key carries its epoch, `epoch * len(self) + index`, so the data set has no state of its own: worker processes and resumed
    runs agree by construction. `-key - 1` is the same sample as a filler, with nothing to learn.
    """

    def __init__(self, samples: Samples, recipe: Recipe) -> None:
        self.samples = samples
        self.recipe = recipe
        self._pictures = lengths_of(recipe)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int) -> TrainingItem:
        """The item of a key. A sample that fails is replaced by another, drawn like a question, and is listed in `skipped`.

        Raises InputError when some dozens in a row fail.
        """
        if key < 0:
            item = self[-key - 1]
            return replace(item, encoded=replace(item.encoded, labels=(IGNORE,) * len(item.encoded)), filler=True)
        epoch, index = divmod(key, len(self.samples))
        skipped: dict[int, Skipped] = {}
        for attempt in range(_ATTEMPTS):
            if index not in skipped:
                sample = self.samples[index]
                try:
                    item = make_item(sample, epoch, self.recipe)
                except InputError as error:
                    skipped[index] = Skipped(sample.id, str(error), training=True)
                else:
                    return replace(item, skipped=tuple(skipped.values()))
            index = draw(self.recipe.seed, f"{key} {attempt}", epoch, len(self.samples))
        first = next(iter(skipped.values()))
        raise InputError(f"{len(skipped)} samples in a row cannot be trained on; the first, {first.id}: {first.reason}")

    def length(self, index: int, epoch: int) -> int:
        """About how many tokens a sample has in an epoch, without decoding its image.

        Where pictures of any size take equally many, neither the image's file nor, of a table, the texts are read.
        """
        samples = self.samples
        if not self._pictures.one_size:
            sample = samples[index]
            which = question_of(sample, epoch, self.recipe)
            positions = sum(picture.positions for picture in self._pictures.of(sample, which))
            return positions + expected_text_tokens(sample.outline, which, self.recipe)
        outline = samples.outline(index) if isinstance(samples, SampleTable) else samples[index].outline
        return expected_tokens(outline, epoch, self.recipe)


def question_of(sample: Sample | Outline, epoch: int, recipe: Recipe) -> int:
    """Which of its questions a sample trains on in an epoch."""
    return sample.usable[draw(recipe.seed, sample.id, epoch, len(sample.usable))]


def make_item(sample: Sample, epoch: int, recipe: Recipe) -> TrainingItem:
    """Tokens, labels and pictures of a sample in an epoch. The image is decoded once for both views.

    A region that lies outside its picture is no region: the whole picture stands for it, or the sample is left out, as for a
    question that has none (`recipe.on_no_region`). Raises InputError when it is left out, when the image cannot be read, or
    when the length limit cuts an image or every label.
    """
    which = question_of(sample, epoch, recipe)
    picture = None if sample.image is None else open_image(recipe.images, sample.image)
    reason = None if picture is None else outside(sample.boxes[which], picture)
    if reason is not None:
        if recipe.on_no_region == "skip":
            raise InputError(reason)
        sample = with_whole_picture(sample, which)
    encoded, views = encode_sample(sample, which, picture, recipe)
    return TrainingItem(encoded, views.shown(encoded.slots), id=sample.id, fallback=which in sample.fallbacks)


def outside(region: Region | None, picture: Image) -> str | None:
    """Why a region lies outside a picture; None when it overlaps the picture, or is None."""
    if not isinstance(region, Square):
        return None
    try:
        region.box(*picture.size)
    except InputError:
        return f"its region ({place(region)}) lies outside the {picture.width}x{picture.height} picture"
    return None


def place(region: Square) -> str:
    """The numbers of a square, for a sentence."""
    return f"top {region.top:g}, left {region.left:g}, side {region.side:g}"


def with_whole_picture(sample: Sample, which: int) -> Sample:
    """The sample with the whole picture in the place of one question's region."""
    boxes = (*sample.boxes[:which], full_box("square"), *sample.boxes[which + 1 :])
    return replace(sample, boxes=boxes, fallbacks=(*sample.fallbacks, which))


@dataclass(slots=True)
class Views:
    """The pictures of one dialogue by their slots, each prepared when it is asked for, once.

    `crops`: regions that stand in the place of every picture, where an annotator is trained; `positions`: how many they take.
    """

    encoder: Encoder
    images: dict[Slot, Image] = field(default_factory=dict)
    crops: tuple[Image, ...] = ()
    positions: int = 0
    _prepared: dict[Slot, Any] = field(default_factory=dict)

    def __call__(self, slot: Slot) -> Any:
        if self.positions:
            return self.encoder.crops(self.positions)
        if slot not in self._prepared:
            try:
                self._prepared[slot] = self.encoder.picture(self.images[slot], self.encoder.variant(len(self.images)))
            except InputError as error:
                raise RefusedPictureError(str(error)) from error
        return self._prepared[slot]

    def shown(self, slots: Sequence[Slot]) -> tuple[Any, ...]:
        """What the model is shown for a dialogue with these slots."""
        return tuple(map(self.encoder.picture, self.crops)) if self.crops else tuple(map(self, slots))


def encode_sample(sample: Sample, which: int, picture: Image | None, recipe: Recipe) -> tuple[Encoded, Views]:
    """Tokens and labels of one question of a sample, from its decoded picture, and the pictures of the dialogue.

    Raises InputError.
    """
    views, box_text = Views(recipe.encoder), None
    if picture is not None and recipe.region_crops is not None:
        crops = recipe.region_crops.crops(picture, str(sample.image), recipe.profile.crop_from, recipe.encoder.fill)
        views = Views(recipe.encoder, crops=crops, positions=len(crops) * recipe.region_crops.positions)
    elif picture is not None:
        views.images["full"] = picture
        region = sample.boxes[which]
        if region is not None:
            box_text, views.images["roi"] = _zoom(picture, region, recipe)
    encoded = encode_text(sample, which, box_text, views, recipe)
    return cut(encoded, limit(encoded, recipe), recipe.encoder.image_token_id), views


def encode_text(sample: Sample, which: int, box_text: str | None, views: Views, recipe: Recipe) -> Encoded:
    """Tokens and labels of one question of a sample, of any length."""
    return views.encoder.encode(make_turns(sample, which, box_text, recipe), views)


def _zoom(picture: Image, region: Region, recipe: Recipe) -> tuple[str, Image]:
    """The box text of a region and its crop; `crop_of` "region" cuts the region itself, as the released code trains."""
    box = region.box(*picture.size) if isinstance(region, Square) else region
    text, written = as_written(box, picture.size, recipe.profile, recipe.seen(picture.size))
    cut_from = written if recipe.crop_of == "text" else box
    return text, crop_region(picture, cut_from, recipe.profile.crop_from, recipe.encoder.fill)


_CHARACTERS_A_TOKEN = 3.5
_FRAME_TOKENS = 70
"""System prompt, roles, instructions and box text, which every chained sample has."""


def expected_tokens(sample: Outline, epoch: int, recipe: Recipe) -> int:
    """About how many tokens `make_item` gives, from the number of characters: for sorting by length and for plans."""
    which = question_of(sample, epoch, recipe)
    pictures = 2 if sample.boxed[which] else 1
    places = expected_picture_tokens(recipe, pictures) * pictures if sample.image else 0
    return places + expected_text_tokens(sample, which, recipe)


def expected_text_tokens(sample: Outline, which: int, recipe: Recipe) -> int:
    """About how many tokens a question of a sample has without its pictures."""
    learnt = (which,) if sample.image and not recipe.extra_turns else sample.usable
    letters = sum(sum(sample.letters[i]) for i in learnt)
    letters += sample.letters[which][0] if sample.boxed[which] else 0
    return _FRAME_TOKENS + round(letters / _CHARACTERS_A_TOKEN)


def expected_picture_tokens(recipe: Recipe, pictures: int) -> int:
    """About how many positions a picture takes in a dialogue of `pictures` pictures; how many regions it has is known only when
    it is open."""
    if recipe.region_crops is not None:
        return recipe.region_crops.expected_regions * recipe.region_crops.positions
    return recipe.encoder.picture_tokens(USUAL_SIZE, pictures)


def make_turns(sample: Sample, which: int, box_text: str | None, recipe: Recipe) -> tuple[Turn, ...]:
    """The dialogue of a sample under the recipe's policy; a text-only sample keeps all its turns."""
    pairs = [(sample.questions[i].question, sample.questions[i].answers[0]) for i in sample.usable]
    if sample.image is None:
        return text_dialogue(pairs)
    question, answer = sample.questions[which].question, sample.questions[which].answers[0]
    others = [pair for i, pair in zip(sample.usable, pairs, strict=True) if i != which] if recipe.extra_turns else []
    return dialogue(
        recipe.profile,
        question,
        chain=recipe.policy.source != "none",
        box_text=box_text,
        answer=answer,
        asks=recipe.policy.asks,
        all_questions=[example.question for example in sample.questions],
        # A fixed box is given at inference too, so there is nothing to learn about it.
        learn_box=recipe.policy.source != "fixed",
        extra_turns=others,
    )


def limit(encoded: Encoded, recipe: Recipe) -> int:
    """The most positions that a sample may have.

    In the released code `max_length` counts a picture as one token, for it cuts before pictures are widened: 2048 are 3198
    positions with two pictures of 576.
    """
    if recipe.max_length_counts == "positions":
        return recipe.max_length
    return recipe.max_length + encoded.ids.count(recipe.encoder.image_token_id) - len(encoded.slots)


def cut(encoded: Encoded, max_length: int, image_token_id: int) -> Encoded:
    """The first `max_length` tokens. Raises InputError when that would cut an image's tokens, or leave nothing to learn."""
    ids, labels = encoded.ids, encoded.labels
    if len(ids) > max_length:
        if image_token_id in ids[max_length:]:
            raise InputError(CUT_IMAGE)
        ids, labels = ids[:max_length], labels[:max_length]
    # The first position predicts nothing that the loss counts.
    if all(label == IGNORE for label in labels[1:]):
        raise InputError(CUT_LABELS)
    return Encoded(ids, labels, encoded.slots)
