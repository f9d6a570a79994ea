"""The dialogue of `cos train` for the trainers of others: two pictures, the whole one and the region, cut beforehand.

The wording is a profile's whose roles a chat template writes, for the trainers apply that template; the region is cut from the
box that the text names, as `cos train` cuts it. Every question is a dialogue of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from cos_core.data.formats import TrainerFormat
from cos_core.dialogue.box_text import as_written
from cos_core.dialogue.cropping import crop_region
from cos_core.dialogue.messages import Message, chat_messages
from cos_core.dialogue.prompts import Profile, dialogue, load_profile
from cos_core.errors import InputError
from cos_core.files.images import FILL, open_image, read_header
from cos_core.files.jsonl import OnProblem, Problem
from cos_core.files.picture_files import Root, image_path
from cos_core.geometry import Box
from cos_core.models import families
from cos_core.types import Annotation, Example, Turn

IMAGE_MARK = "<image>"
BOX_MARK = "<bbox>"
"""What ms-swift replaces by a box, written as the model that is trained writes it."""
_MARKS = re.compile(r"<(?:image|video|audio|bbox|ref-object)>")
TURNED = "EXIF turns the picture, which ms-swift does not; with --crops an upright copy is made"
_A_FOLDER = 1000
_OURS = re.compile(r"\d{5}")


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One question with its region. `turns`: see prompts.dialogue; `pictures`: the files of its image slots, in their order.

    `size`: (width, height) in pixels of the upright picture; `box`: in fractions of it.
    """

    example: Example
    annotation: Annotation
    box: Box
    size: tuple[int, int]
    turns: tuple[Turn, ...]
    pictures: tuple[str, ...]

    @property
    def answer(self) -> str:
        return self.example.answers[0]

    @property
    def pixels(self) -> list[float]:
        """Left, top, right, bottom in pixels of the upright picture, to a millionth."""
        return [round(v * side, 6) for v, side in zip(self.box.corners, (*self.size, *self.size), strict=True)]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a dialogue shows: the picture's file and its size as shown, whether EXIF turns it, the box's text, and the pictures
    that are to be written: the crop, and the whole picture where that is turned."""

    path: str
    size: tuple[int, int]
    turned: bool
    text: str
    crop: Image.Image | None = None
    upright: Image.Image | None = None


@dataclass(slots=True)
class Maker:
    """Makes dialogues and cuts crops.

    `crops`: the folder of the crops, None for the first turn alone, without a second picture. `left_out`: how many pairs have
    no dialogue, by reason; `upright`: pictures of which an upright copy was made, as EXIF turns them and most trainers do not.
    """

    format: TrainerFormat
    profile: Profile
    images: Root
    crops: Path | None
    store: Path
    on_problem: OnProblem
    left_out: Counter[str] = field(default_factory=Counter)
    upright: int = 0
    count: int = 0

    def dialogues(self, pairs: Iterable[tuple[Annotation, Example | None]]) -> Iterator[Dialogue]:
        """The dialogues of pairs that have one; a picture that cannot be read goes to `on_problem`."""
        for annotation, example in pairs:
            reason = self._unfit(annotation, example)
            if reason is not None:
                self.left_out[reason] += 1
                continue
            assert example is not None
            assert annotation.box is not None
            try:
                seen = self._seen(example, annotation.box)
            except InputError as error:
                self.on_problem(Problem(self.store, None, example.id, str(error)))
                continue
            if seen.turned and self.crops is None:
                self.left_out[TURNED] += 1
                continue
            yield Dialogue(example, annotation, annotation.box, seen.size, *self._finished(example, seen))
            self.count += 1

    def messages(self, turns: tuple[Turn, ...]) -> list[Message]:
        """The turns as chat messages whose content is a list of parts."""
        return chat_messages(self.profile, turns, lambda _slot: {"type": "image"})

    def flat(self, turns: tuple[Turn, ...]) -> list[dict[str, str]]:
        """The turns as chat messages whose content is one text, with IMAGE_MARK for a picture."""
        return [{"role": each["role"], "content": "".join(map(_part, each["content"]))} for each in self.messages(turns)]

    def _unfit(self, annotation: Annotation, example: Example | None) -> str | None:
        if annotation.box is None:
            return "no region"
        if example is None or example.image is None:
            return "no picture"
        if annotation.image not in (None, example.image):
            return "its region in the store was made on another image"
        if not example.answers or not example.answers[0]:
            return "no answer to learn"
        if _MARKS.search(example.question) or _MARKS.search(example.answers[0]):
            return "the text holds a mark that the trainer replaces (<image>, <bbox>, ...)"
        return None

    def _seen(self, example: Example, box: Box) -> _Seen:
        name = str(example.image)
        header = read_header(self.images, name)
        path, turned = str(image_path(self.images, name)), header.orientation != 1
        if self.crops is None:
            return _Seen(path, header.size, turned, BOX_MARK)
        picture = open_image(self.images, name)
        text, area = (BOX_MARK, box) if self.format == "ms-swift" else as_written(box, picture.size, self.profile)
        crop = crop_region(picture, area, self.profile.crop_from, FILL)
        return _Seen(path, picture.size, turned, text, crop, picture if turned else None)

    def _finished(self, example: Example, seen: _Seen) -> tuple[tuple[Turn, ...], tuple[str, ...]]:
        """The turns and the files of their pictures; those that are not there yet are written. Raises InputError."""
        turns = dialogue(self.profile, example.question, box_text=seen.text, answer=example.answers[0])
        if seen.crop is None:
            return turns[:2], (seen.path,)
        self.upright += seen.upright is not None
        whole = seen.path if seen.upright is None else self._saved(seen.upright, "-whole")
        return turns, (whole, self._saved(seen.crop, ""))

    def _saved(self, picture: Image.Image, end: str) -> str:
        """The absolute path of a picture that is written into the folder of the crops, without loss."""
        assert self.crops is not None
        path = (self.crops / f"{self.count // _A_FOLDER:05d}" / f"{self.count:08d}{end}.png").absolute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
        return str(path)


def prompt(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns without the last answer."""
    return turns[:-1]


def settle_profile(format: TrainerFormat, name: str | None, family: str | None) -> Profile:
    """The profile of an export. Raises InputError for one that writes roles itself, and for boxes that need a model's pictures.

    `name`: a profile, by default "chat"; `family`: whose writing of a box holds, by default fractions of the picture.
    """
    profile = load_profile(name or "chat")
    if profile.roles != "template":
        raise InputError(
            f"the profile {profile.name!r} writes roles itself, but {format} applies the checkpoint's chat template; "
            "take 'chat' or another whose roles are the template's"
        )
    profile = profile.with_boxes(families.of_type(family).boxes if family else families.DEFAULT_BOXES)
    if profile.box_unit == "pixel" and format != "ms-swift":
        raise InputError(
            f"boxes of {family or profile.name!r} are in pixels of the picture as the model sees it, whose size {format} sets; "
            "take ms-swift, which writes them itself, or leave out --family for fractions"
        )
    return profile


def check_crops(folder: Path) -> None:
    """Raises InputError for a folder that holds something else than crops."""
    try:
        others = [p.name for p in folder.iterdir() if not (p.is_dir() and _OURS.fullmatch(p.name))] if folder.exists() else []
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from None
    if others:
        raise InputError(f"{folder} holds {min(others)!r}, which is no crop; name another folder (--crops)")


def _part(part: dict[str, Any]) -> str:
    return IMAGE_MARK if part["type"] == "image" else str(part["text"])
