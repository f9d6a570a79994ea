"""How many positions the pictures of a sample take, from the header of the picture's file alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from cos_core.data.released import Square
from cos_core.dialogue.cropping import CropFrom
from cos_core.errors import InputError
from cos_core.files import images
from cos_core.geometry import SquarePad, in_frame
from cos_core.models.grids import tokens
from cos_core.models.text_tokens import USUAL_SIZE

if TYPE_CHECKING:
    from cos_core.files.picture_files import Root
    from cos_core.models.encoder import Encoder
    from cos_core.training.region_crops import RegionCrops
    from cos_core.training.samples import Region, Sample

_UNLIKE = (USUAL_SIZE, (1280, 1280), (1500, 300))


class PictureLength(NamedTuple):
    """How many positions a picture takes, and how many of these are image tokens."""

    positions: int
    tokens: int


@dataclass
class PictureLengths:
    """`crop_from`: the profile's; `region_crops`: the regions that stand in a picture's place, where an annotator is trained.

    `headers`: files that were looked at; `unread`: those of them that could not be read, which count as of USUAL_SIZE.
    """

    encoder: Encoder
    images: Root
    crop_from: CropFrom
    region_crops: RegionCrops | None = None
    headers: int = 0
    unread: int = 0
    _known: dict[tuple[tuple[int, int], int], PictureLength] = field(default_factory=dict)

    @cached_property
    def one_size(self) -> bool:
        """Whether pictures count alike whatever their size: they do, or it is not known by arithmetic what they take."""
        encoder = self.encoder
        if self.region_crops is not None:
            return True
        try:
            encoder.grids(USUAL_SIZE)
        except InputError:
            return True
        return len({encoder.picture_tokens(size) for size in _UNLIKE}) == 1

    def of(self, sample: Sample, which: int) -> list[PictureLength]:
        """The length of each picture of a question of a sample."""
        crops, region = self.region_crops, sample.boxes[which]
        if sample.image is None:
            return []
        if crops is not None:
            return [PictureLength(crops.positions, crops.positions)] * crops.expected_regions
        sizes = [USUAL_SIZE] if self.one_size else [self._size(sample.image)]
        if region is not None:
            sizes.append(USUAL_SIZE if self.one_size else crop_size(region, sizes[0], self.crop_from))
        return [self._of_size(size, len(sizes)) for size in sizes]

    def _size(self, image: str) -> tuple[int, int]:
        self.headers += 1
        try:
            return images.picture_size(self.images, image)
        except InputError:
            self.unread += 1
            return USUAL_SIZE

    def _of_size(self, size: tuple[int, int], pictures: int) -> PictureLength:
        if (size, pictures) not in self._known:
            try:
                positions = self.encoder.picture_tokens(size, pictures)
                shown = positions if self.one_size else tokens(self.encoder.grids(size, pictures))
                self._known[size, pictures] = PictureLength(positions, shown)
            except InputError:
                if size == USUAL_SIZE:
                    raise
                # A shape that the model does not take: the sample is skipped once it is opened.
                self._known[size, pictures] = self._of_size(USUAL_SIZE, pictures)
        return self._known[size, pictures]


def crop_size(region: Region, size: tuple[int, int], crop_from: CropFrom) -> tuple[int, int]:
    """(width, height) in pixels of what is cut out of a picture of `size`; the picture's own where the region is none of it."""
    try:
        box = region.box(*size) if isinstance(region, Square) else region
        if crop_from == "canvas":
            side = SquarePad(*size).side
            left, top, right, bottom = in_frame(box, "square", size).pixels(side, side)
        else:
            left, top, right, bottom = in_frame(box, "image", size).pixels(*size)
    except InputError:
        return size
    return right - left, bottom - top
