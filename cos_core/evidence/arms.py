"""The arms of `cos evidence`: ways to answer the same questions, each without one thing that the two passes have."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from cos_core.infer.arms import Arm

LABELS: Mapping[str, str] = MappingProxyType(
    {
        "none": "one look",
        "model": "two looks",
        "full": "whole picture twice",
        "black": "black crop",
        "noise": "noise crop",
        "swap": "foreign crop",
        "absent": "no crop",
        "unboxed": "no box text",
        "blurred_none": "one look, blurred",
        "blurred_model": "two looks, blurred",
        "gold": "the data's region",
    }
)
"""Each arm's name, and what the page calls it."""

TITLES: Mapping[str, str] = MappingProxyType(
    {
        "none": "one look at the whole picture",
        "model": "the two passes: the whole picture and the crop of the region that the model chose",
        "full": "the two passes, but the second picture is the whole picture again",
        "black": "the two passes, but the crop is black",
        "noise": "the two passes, but the crop is noise in the picture's colours",
        "swap": "the two passes, but the crop is cut from another question's picture, at the same place",
        "absent": "the two passes, but there is no second picture: the text of the box alone",
        "unboxed": "the two passes, but the text of the box is left out",
        "blurred_none": "one look at the whole picture, blurred",
        "blurred_model": "the two passes: the whole picture blurred, the crop as sharp as ever",
        "gold": "the two passes, but the region is the data set's own",
    }
)
"""Each arm's name, and what it shows the model."""

NEEDED = ("none", "model", "black", "noise", "swap")
"""The arms that decide the verdict over all rows."""

ONE_LOOK = ("none", "blurred_none")
"""The arms with a single picture."""


def arms(*, blur: float, fast: bool = False, gold: bool = False) -> list[Arm]:
    """The arms of a run. `blur`: the scale to which the whole picture is brought in the blurred arms; `fast`: only the needed
    ones; `gold`: whether every question names a region."""
    settings: dict[str, dict[str, object]] = {
        "none": {"roi": "none"},
        "model": {"roi": "model"},
        "full": {"roi": "full"},
        "black": {"roi": "model", "crop": "black"},
        "noise": {"roi": "model", "crop": "noise"},
        "swap": {"roi": "model", "crop": "swap"},
        "absent": {"roi": "model", "crop": "absent"},
        "unboxed": {"roi": "model", "box_text": "none"},
        "blurred_none": {"roi": "none", "global_scale": blur},
        "blurred_model": {"roi": "model", "global_scale": blur},
        "gold": {"roi": "gold"},
    }
    wanted = NEEDED if fast else tuple(name for name in settings if name != "gold" or gold)
    return [Arm(name, settings[name]) for name in wanted]
