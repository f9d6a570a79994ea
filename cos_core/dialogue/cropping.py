"""The crop: which region a box text names, and its pixels. Training, answering, annotating and reports all cut here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from cos_core.dialogue import crop_content
from cos_core.dialogue.box_text import read_box
from cos_core.dialogue.prompts import Profile
from cos_core.errors import InputError
from cos_core.files.images import FILL, MAX_PIXELS, reduced
from cos_core.files.text import one_line
from cos_core.geometry import Box, SquarePad, central_box, full_box, in_frame
from cos_core.types import UNUSABLE_BOXES, BoxStatus, OnBadBox, Prediction

CropFrom = Literal["image", "canvas"]
OpenPicture = Callable[[str], Image.Image]
"""Opens a picture of a run by its name. Raises InputError."""
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
    """How the second pictures of some answers are made: under which profile, in which padding colour (RGB), with which
    fallback, and with which seed where noise stands in a region's place (None: not known)."""

    profile: Profile
    fill: tuple[int, int, int]
    on_bad_box: OnBadBox = "full"
    seed: int | None = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> CropSettings | None:
        """What the settings of a run of `cos infer` say (its manifest's `results["settings"]`); None where they do not."""
        try:
            red, green, blue = (int(value) for value in settings["fill"])
            crops = cls(Profile.from_json(settings["profile"]), (red, green, blue), settings["on_bad_box"], seed_of(settings))
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

    def crop(self, picture: Image.Image, prediction: Prediction, other: OpenPicture | None = None) -> Image.Image | None:
        """The second picture that `prediction` rests on, made again: the region, or what stood in its place; None where there
        was none.

        Where boxes are of the picture, and where its own could not be used, the prediction's box is what was cut; its text may
        be in pixels of a picture whose size only the model knows. `other` opens the picture of a swapped region. Raises
        InputError for a second picture that cannot be made again.
        """
        if prediction.box_text is None or prediction.box is None:
            return None
        area: Box | None = prediction.box
        if self.profile.box_frame != "image" and prediction.box_status not in UNUSABLE_BOXES:
            area = self.region(prediction.box_text, picture).area
        return None if area is None else _as_shown(picture, area, prediction, _Remaking(self.cut, self.seed, other))


def assumed_crop(picture: Image.Image, box: Box) -> Image.Image:
    """The region of an answer that does not say how it was cut: the part of the picture that its box names."""
    return crop_region(picture, box, "image", FILL)


def assumed_second_picture(
    picture: Image.Image, prediction: Prediction, seed: int | None = None, other: OpenPicture | None = None
) -> Image.Image | None:
    """As CropSettings.crop, for an answer that does not say how its region was cut."""
    if prediction.box is None:
        return None
    return _as_shown(picture, prediction.box, prediction, _Remaking(assumed_crop, seed, other))


@dataclass(frozen=True, slots=True)
class _Remaking:
    """What a second picture is made again with."""

    cut: Callable[[Image.Image, Box], Image.Image]
    seed: int | None
    other: OpenPicture | None


def _as_shown(picture: Image.Image, area: Box, prediction: Prediction, how: _Remaking) -> Image.Image | None:
    """The region `area` of the picture, or what `prediction` says was shown in its place (crop_content.py)."""
    shown = prediction.shown
    if prediction.gate == "closed" or shown == "absent":
        return None
    region = how.cut(picture, area)
    if shown is None:
        return region
    if shown == "black":
        return crop_content.black(region.size)
    if shown == "noise":
        if how.seed is None:
            raise InputError("the noise cannot be drawn again, as the run's seed is not known")
        return crop_content.noise(region.size, picture, how.seed, prediction.example_id)
    if not shown.startswith(crop_content.SWAP) or prediction.box is None:
        raise InputError(f"this version of cos does not know how {one_line(shown)!r} looks")
    if how.other is None:
        raise InputError("the other picture cannot be opened, as the folder of the run's pictures is not known")
    other = how.other(shown.removeprefix(crop_content.SWAP))
    return crop_content.swapped(region.size, how.cut(other, prediction.box))


def seed_of(settings: Mapping[str, Any]) -> int | None:
    """The seed among the settings of a run; None where they have none."""
    seed = settings.get("seed")
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else None
