"""Control: the data set's own region (`Example.gold`): the upper line of Table 3a."""

from cos_core.errors import InputError
from cos_core.geometry import Box
from cos_core.interfaces import Policy
from cos_core.types import Example


def gold_box(example: Example, _seed: int) -> Box:
    """The gold region of an example, in frame "image". Raises InputError when it has none."""
    if example.gold is None:
        raise InputError(f"example {example.id!r} has no gold region (meta.gold)")
    return example.gold


def build() -> Policy:
    return Policy(name="gold", source="gold", summary="control: the data set's own region", fixed_box=gold_box)
