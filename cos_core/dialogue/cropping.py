"""The crop: which region a box text names, and its pixels. Training, answering, annotating and reports all cut here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from cos_core.dialogue.box_text import read_box
from cos_core.dialogue.prompts import Profile
from cos_core.errors import InputError
from cos_core.files.images import FILL, MAX_PIXELS, reduced
from cos_core.geometry import Box, SquarePad, central_box, full_box, in_frame
from cos_core.types import BoxStatus, OnBadBox, Prediction

CropFrom = Literal["image", "canvas"]
FALLBACKS: Mapping[OnBadBox, Box | None] = {"full": full_box("image"), "center": central_box("image"), "skip": None}
"""The region that stands in for a text without a usable box; None: none does, the question is left out."""


def crop_region(picture: Image.Image, box: Box, crop_from: CropFrom, fill: tuple[int, int, int]) -> Image.Image:
    """The pixels of a region at full resolution: whole pixels, at least one on each side, not yet padded to a square.

    `box` may be in either frame. `crop_from` is the profile's, `fill` the colour (RGB, 0-255) in which the checkpoint pads its
    pictures (`checkpoint_info.fill_of`). crop_from "image": the part of the box that lies on the picture, cut from the original
    pixels; "canvas": cut from the padded square, so that padding inside the box is kept in the colour `fill` (the released
    code's inference); cut from the `reduced` picture where it would have more than MAX_PIXELS pixels. Raises InputError for
    "image" and a box that lies wholly in the padding.
    """
    if crop_from == "image":
        return picture.crop(in_frame(box, "image", picture.size).pixels(*picture.size))
    if crop_from != "canvas":
        raise InputError(f"crop_from is 'image' or 'canvas', got {crop_from!r}")
    pad = SquarePad(*picture.size)
    on_canvas = in_frame(box, "square", picture.size)
    left, top, right, bottom = on_canvas.pixels(pad.side, pad.side)
    if (right - left) * (bottom - top) > MAX_PIXELS:
        return crop_region(reduced(picture, MAX_PIXELS), on_canvas, crop_from, fill)
    dx, dy = pad.offset
    # Only the crop is made, never the whole canvas: a panorama's square would be a hundred times the picture.
    canvas = Image.new("RGB", (right - left, bottom - top), fill)
    visible = (max(left - dx, 0), max(top - dy, 0), min(right - dx, picture.width), min(bottom - dy, picture.height))
    if visible[0] < visible[2] and visible[1] < visible[3]:
        canvas.paste(picture.crop(visible), (visible[0] + dx - left, visible[1] + dy - top))
    return canvas


@dataclass(frozen=True, slots=True)
class Region:
    """What a box text means for one picture. `area` is what is cut, in the frame of the text (the profile's
    `box_frame`) or that of the fallback ("image"); `box` is the part of it on the picture (frame "image"), the area itself
    where that has this frame. Both are None where nothing is looked at."""

    area: Box | None
    box: Box | None
    status: BoxStatus


def region_of(
    text: str, size: tuple[int, int], profile: Profile, on_bad_box: OnBadBox, seen: tuple[int, int] | None = None
) -> Region:
    """The region that `text` names in a picture of `size` (width, height in pixels), or the fallback that stands in for it.

    `seen`: its size as the model sees it, for boxes in pixels (see `read_box`, which says what is raised).
    """
    area, status = read_box(text, profile, seen)
    if area is not None:
        try:
            return Region(area, in_frame(area, "image", size), status)
        except InputError:  # it lies wholly in the padding: nothing of the picture is left in it
            status = "degenerate"
    return fallback_region(status, on_bad_box)


def fallback_region(status: BoxStatus, on_bad_box: OnBadBox) -> Region:
    """The region that stands in for a box that cannot be used, for the reason `status`."""
    fallback = FALLBACKS[on_bad_box]
    return Region(fallback, fallback, status)


@dataclass(frozen=True, slots=True)
class CropSettings:
    """How the regions of some answers are cut: under which profile, in which padding colour (RGB), with which fallback."""

    profile: Profile
    fill: tuple[int, int, int]
    on_bad_box: OnBadBox = "full"

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> CropSettings | None:
        """What the settings of a run of `cos infer` say (its manifest's `results["settings"]`); None where they do not."""
        try:
            red, green, blue = (int(value) for value in settings["fill"])
            crops = cls(Profile.from_json(settings["profile"]), (red, green, blue), settings["on_bad_box"])
        except (KeyError, TypeError, ValueError, InputError):
            return None
        known = crops.on_bad_box in FALLBACKS and crops.profile.box == "profile"
        return crops if known and all(0 <= value <= 255 for value in crops.fill) else None

    def region(self, text: str, picture: Image.Image, seen: tuple[int, int] | None = None) -> Region:
        """See `region_of`."""
        return region_of(text, picture.size, self.profile, self.on_bad_box, seen)

    def cut(self, picture: Image.Image, area: Box) -> Image.Image:
        """See `crop_region`."""
        return crop_region(picture, area, self.profile.crop_from, self.fill)

    def crop(self, picture: Image.Image, prediction: Prediction) -> Image.Image | None:
        """The region that the second pass of `prediction` saw; None where it saw none.

        Where boxes are of the picture, the prediction's own box is what was cut; its text may be in pixels of a picture
        whose size only the model knows.
        """
        if prediction.box_text is None or prediction.box is None:
            return None
        if self.profile.box_frame == "image":
            return self.cut(picture, prediction.box)
        area = self.region(prediction.box_text, picture).area
        return None if area is None else self.cut(picture, area)


def assumed_crop(picture: Image.Image, box: Box) -> Image.Image:
    """The region of an answer that does not say how it was cut: the part of the picture that its box names."""
    return crop_region(picture, box, "image", FILL)
