"""Control: a region of the size of `center_crop`'s at a random place, so that the place alone carries nothing.

The place depends on the seed and the example's id only: neither the order of the data nor a resumed run moves it.
"""

import hashlib

from cos_core.files.durable import utf8
from cos_core.geometry import Box
from cos_core.interfaces import Policy
from cos_core.types import Example

_SIDE = 0.5


def _anywhere(example: Example, seed: int) -> Box:
    digest = hashlib.sha256(utf8(f"{seed}:{example.id}")).digest()
    # Two 32-bit fractions in [0, 1): the left upper corner, uniform over where the box fits.
    across, down = (int.from_bytes(digest[i : i + 4], "big") / 2**32 for i in (0, 4))
    x0, y0 = across * (1 - _SIDE), down * (1 - _SIDE)
    return Box(x0, y0, x0 + _SIDE, y0 + _SIDE, "image")


def build() -> Policy:
    return Policy(
        name="random", source="fixed", summary="control: a quarter of the area at a random place", fixed_box=_anywhere
    )
