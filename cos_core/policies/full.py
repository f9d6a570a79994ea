"""Control: the whole image a second time, so that the tokens equal Chain-of-Spot's and the zoom alone is missing."""

from cos_core.geometry import Box, full_box
from cos_core.interfaces import Policy
from cos_core.types import Example


def _whole(_example: Example, _seed: int) -> Box:
    return full_box("image")


def build() -> Policy:
    return Policy(
        name="full", source="fixed", summary="control: the whole image twice (equal tokens, no zoom)", fixed_box=_whole
    )
