"""Control: the data set's own region (`meta.gold`, [x0, y0, x1, y1] as fractions of the image): the upper line of Table 3a."""

from cos_core.errors import InputError
from cos_core.geometry import Box
from cos_core.interfaces import Policy
from cos_core.types import Example


def gold_box(example: Example, _seed: int) -> Box:
    """The gold region of an example, in frame "image". Raises InputError when it has none or it is not a box."""
    if example.meta.get("gold") is None:
        raise InputError(f"example {example.id!r} has no gold region (meta.gold)")
    try:
        box = Box.from_json(example.meta["gold"])
    except InputError as error:
        raise InputError(f"example {example.id!r}: its gold region cannot be used: {error}") from None
    if box.frame != "image":
        raise InputError(f"example {example.id!r}: its gold region must be in frame 'image', got {box.frame!r}")
    return box


def build() -> Policy:
    return Policy(name="gold", source="gold", summary="control: the data set's own region", fixed_box=gold_box)
