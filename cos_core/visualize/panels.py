"""What an overlay shows, panel by panel: the one description that its drawings in pixels and in vectors follow."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from PIL import Image

from cos_core.errors import InputError
from cos_core.geometry import Frame
from cos_core.visualize.config import PANELS
from cos_core.visualize.draw import Mark
from cos_core.visualize.relevance_maps import Grid

_WIDE = 1.9
"""A picture wider than this many heights has its other panels below it instead of beside it."""


@dataclass(frozen=True, slots=True)
class OverlayInput:
    """What is drawn: a picture, its marks, the region cut from it or what `crop_words` says, a relevance map, and (heading,
    text) notes below."""

    image: Image.Image
    marks: tuple[Mark, ...] = ()
    crop: Image.Image | None = None
    crop_words: str = "Zoomed region"
    heat: Grid | None = None
    heat_frame: Frame = "square"
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def stacked(self) -> bool:
        """Whether the panels stand one below the other."""
        return self.image.width > _WIDE * self.image.height


@dataclass(frozen=True, slots=True)
class Panel:
    """A captioned picture of an overlay (`name`: picture, map or crop), with the marks on it, or with a map laid over it.

    `short`: its caption where a figure is narrow.
    """

    name: str
    caption: str
    short: str
    picture: Image.Image
    marks: tuple[Mark, ...] = ()
    heat: Grid | None = None
    heat_frame: Frame = "square"


def panels(scene: OverlayInput, chosen: Collection[str] = PANELS) -> list[Panel]:
    """The panels of a scene that are among `chosen`, in their order. Raises InputError when there is none."""
    known = [Panel("picture", "Whole image", "Whole image", scene.image, scene.marks)]
    if scene.heat is not None:
        words = "Relevance of each place to the answer"
        known.append(Panel("map", words, "Relevance", scene.image, heat=scene.heat, heat_frame=scene.heat_frame))
    if scene.crop is not None:
        words = f"{scene.crop_words}, {scene.crop.width} x {scene.crop.height} pixels"
        known.append(Panel("crop", words, scene.crop_words, scene.crop))
    result = [panel for panel in known if panel.name in chosen]
    if not result:
        there = ", ".join(panel.name for panel in known)
        raise InputError(f"the overlay has none of the panels {', '.join(sorted(chosen))}; it has {there}")
    return result
