"""A dialogue as the messages of OpenAI's chat protocol, so that a server computes what the engine `hf` computes.

What the server's chat template adds is left to it: the roles, the assistant's end mark, and the line break behind a picture
where the wording has one behind every picture (LLaVA's own templates put it there, and so do those that `cos` writes).
Sent are the profile's system message without the space at its end, the parts of each turn in their order, and the pictures.
Those of LLaVA-1.5 are padded to a square under the checkpoint's own colour: a CLIP processor would cut the longer sides off.
Where the side that the model sees is known, the square is resized to it here: a server's image library rounds differently
(torchvision's pixels are one level off Pillow's), and a picture that has its size already is left alone. Pictures of other
families are sent as models/vision_input.py shows them.
"""

from __future__ import annotations

import base64
import io
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cos_core.dialogue.messages import Message, chat_messages
from cos_core.dialogue.prompts import Profile
from cos_core.errors import InputError
from cos_core.files.images import FILL, square_pad
from cos_core.models import vision_input
from cos_core.models.checkpoint_info import BICUBIC, fill_of, side_of
from cos_core.models.families import PixelBudget
from cos_core.models.pixels import square_resized
from cos_core.models.vision_input import LLAVA_15, VisionInput
from cos_core.models.wording import assumed_profile, resolved_profile
from cos_core.types import Slot, Turn

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class ServedDialogue:
    """What must be known of a served checkpoint to send it a dialogue: its wording, and how it is shown pictures.

    `vision`: for every family but LLaVA-1.5. For that: `fill`, the RGB colour (0-255) that pads its pictures to squares, and
    `side` in pixels to which it resizes them, bicubic as Pillow does it (None: left to the server).
    """

    profile: Profile
    fill: tuple[int, int, int] = FILL
    side: int | None = None
    vision: VisionInput | None = None
    _urls: dict[int, str] = field(default_factory=dict, compare=False, repr=False)
    """The pictures at hand as they are sent: data URLs by the picture's identity, while the caller holds the picture."""

    def messages(self, turns: Sequence[Turn], images: Mapping[str, Image]) -> list[Message]:
        """The messages of a dialogue; `images`: its pictures by slot, of any size.

        A system message comes first, save where the profile has none. Raises InputError for a picture that `images` lacks.
        """

        def picture(slot: Slot) -> Message:
            if slot not in images:
                raise InputError(f"the dialogue shows a picture {slot!r} that the request does not hold")
            return {"type": "image_url", "image_url": {"url": self._url(images[slot])}}

        return chat_messages(self.profile, turns, picture)

    def _url(self, image: Image) -> str:
        url = self._urls.get(id(image))
        if url is None:
            url = data_url(self._shown(image))
            # Both passes, and all questions of a picture, show it: it is written as PNG once.
            if id(image) not in self._urls:
                weakref.finalize(image, self._urls.pop, id(image), None)
            self._urls[id(image)] = url
        return url

    def _shown(self, image: Image) -> Image:
        if self.vision is not None:
            return self.vision.shown(image)
        return square_pad(image, self.fill) if self.side is None else square_resized(image, self.side, BICUBIC, self.fill)


def of_folder(
    folder: str | Path, named_profile: str | Profile | None = None, budget: PixelBudget | None = None
) -> ServedDialogue:
    """Wording and vision input of a checkpoint in the `transformers` layout; `named_profile` replaces its own profile.

    Reads no weights and imports no torch. Raises InputError for a profile or an image processor that cannot be read, and for a
    pixel budget that the family does not have or that resizing here does not bring about.
    """
    profile, vision = resolved_profile(folder, named_profile), vision_input.of_folder(folder, budget)
    vision_input.check_resizable(vision, budget)
    return ServedDialogue(profile, vision=vision) if vision else ServedDialogue(profile, fill_of(folder), side_of(folder))


def assumed(
    named_profile: str | Profile | None = None, kind: str = LLAVA_15, budget: PixelBudget | None = None
) -> ServedDialogue:
    """What is assumed of a served model whose folder is not known: its family is `kind` ("": not known).

    The profile asked for, else the family's usual one; for LLaVA-1.5 CLIP's mean, for others the sizes in which their published
    checkpoints show pictures. Raises InputError as `of_folder` does, and for boxes in pixels of a size that is not known.
    """
    vision = vision_input.of_family(kind, budget)
    profile = assumed_profile(kind, named_profile)
    if profile.box_unit == "pixel" and (vision is None or vision.image_processor is None):
        raise InputError(
            f"boxes of the profile {profile.name!r} are in pixels of the picture as the model sees it, and its size is not "
            "known: name the model as its folder is called here, or its family with --family"
        )
    return ServedDialogue(profile, FILL, vision=vision)


def data_url(image: Image) -> str:
    """The picture as PNG, so that every server sees the same pixels."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
