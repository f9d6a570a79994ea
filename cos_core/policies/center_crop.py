"""The centre of the image for every question (CoS Table 3a, "center crop").

The paper gives no size for it. The box is half as wide and half as high as the image: a quarter of its area, the share that
the paper's own regions have (Appendix B).
"""

from cos_core.geometry import Box, central_box
from cos_core.interfaces import Policy
from cos_core.types import Example


def _centre(_example: Example, _seed: int) -> Box:
    return central_box("image")


def build() -> Policy:
    return Policy(name="center_crop", source="fixed", summary="the central quarter of the image's area", fixed_box=_centre)
