"""From the text of a first pass to the pixels of the second: what is cut, the same for a model and for a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cos_core.dialogue.box_text import read_box
from cos_core.dialogue.prompts import Profile
from cos_core.errors import InputError
from cos_core.files.images import FILL, crop_region
from cos_core.geometry import Box, SquarePad, full_box
from cos_core.types import BoxStatus, Prediction

if TYPE_CHECKING:
    from PIL.Image import Image

OnBadBox = Literal["full", "center", "skip"]
CENTRE = Box(0.25, 0.25, 0.75, 0.75, "image")
"""What `on_bad_box="center"` looks at: the central quarter of the area, as the policy center_crop."""
FALLBACKS: Mapping[OnBadBox, Box | None] = {"full": full_box("image"), "center": CENTRE, "skip": None}
"""What is looked at when a text names no usable box; None: nothing, the question is left out."""


@dataclass(frozen=True, slots=True)
class Region:
    """What a box text means for one picture. `area` is what is cut, in the frame that the text speaks of ("square") or that of
    the fallback ("image"); `box` is the part of it on the picture (frame "image"). Both are None where nothing is looked at."""

    area: Box | None
    box: Box | None
    status: BoxStatus


def region_of(text: str, size: tuple[int, int], profile: Profile, on_bad_box: OnBadBox) -> Region:
    """The region that `text` names in a picture of `size` (width, height in pixels), or the fallback that stands in for it."""
    square, status = read_box(text, profile)
    if square is not None:
        try:
            return Region(square, SquarePad(*size).to_image(square), status)
        except InputError:  # it lies wholly in the padding: nothing of the picture is left in it
            status = "degenerate"
    fallback = FALLBACKS[on_bad_box]
    return Region(fallback, fallback, status)


@dataclass(frozen=True, slots=True)
class CropSettings:
    """How the regions of some answers were cut: under which profile, in which padding colour (RGB), with which fallback."""

    profile: Profile
    fill: tuple[int, int, int]
    on_bad_box: OnBadBox

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> CropSettings | None:
        """What the settings of a run of `cos infer` say (its manifest's `results["settings"]`); None where they do not."""
        try:
            red, green, blue = (int(value) for value in settings["fill"])
            found = cls(Profile.from_json(settings["profile"]), (red, green, blue), settings["on_bad_box"])
        except (KeyError, TypeError, ValueError, InputError):
            return None
        return found if found.on_bad_box in FALLBACKS and all(0 <= value <= 255 for value in found.fill) else None

    def crop(self, picture: Image, prediction: Prediction) -> Image | None:
        """The region that the second pass of `prediction` saw, not yet padded to a square; None where it saw none."""
        if prediction.box_text is None or prediction.box is None:
            return None
        area = region_of(prediction.box_text, picture.size, self.profile, self.on_bad_box).area
        return None if area is None else crop_region(picture, area, self.profile.crop_from, self.fill)


def assumed_crop(picture: Image, box: Box) -> Image:
    """The region of an answer that does not say how it was cut: the part of the picture that its box names."""
    return crop_region(picture, box, "image", FILL)
