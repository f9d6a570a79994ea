"""An image processor's settings, looked at before it sees a picture: sizes that no model has would take all memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cos_core.errors import InputError
from cos_core.files.text import one_line
from cos_core.models.layout.check import is_share

_SIDE = 16_384
"""Pixels; the longest side of a resized picture."""
_FLOOR = 2**24
"""Pixels that a picture has at least after resizing, where its area is what is bounded."""
_CEILING = 2**31
_TILES = 1024
_AREAS = ("shortest_edge", "longest_edge")
"""Qwen-VL's processors bound the area with these words, other processors a side."""
_LIMITS: Mapping[str, int] = {
    "max_patches": _TILES,
    "min_patches": _TILES,
    "patch_size": 1024,
    "merge_size": 64,
    "spatial_merge_size": 64,
    "temporal_patch_size": 64,
    "image_seq_length": 2**20,
    "image_seq_len": 2**20,
    "num_image_tokens": 2**20,
    "min_pixels": _FLOOR,
    "max_pixels": _CEILING,
}
_SIZES = ("size", "crop_size", "max_image_size", "pad_size", "image_grid_pinpoints", "patch_size")


def check_picture_settings(folder: Path, objects: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises InputError for picture settings of a folder that are no sizes; `objects`: its settings files by name."""
    whole = objects.get("processor_config.json", {})
    nested = whole.get("image_processor")
    if isinstance(nested, Mapping):
        where, settings = folder / "processor_config.json", nested
    else:
        where, settings = folder / "preprocessor_config.json", objects.get("preprocessor_config.json", {})
    _check_limits(folder / "processor_config.json", whole)
    _check_limits(where, settings)
    area = "merge_size" in settings
    for name in _SIZES:
        for key, number in _numbers(settings.get(name)):
            top = _SIDE if not (area and key in _AREAS) else _FLOOR if key == "shortest_edge" else _CEILING
            if not 1 <= number <= top:
                raise InputError(
                    f"{where}: `{name}` holds {one_line(number, 40)}, which is no size of a picture in pixels (1 to {top})"
                )
    for name in ("image_mean", "image_std"):
        value = settings.get(name)
        # Fuyu's processor has one number for all three.
        if value is not None and not all(map(is_share, value if isinstance(value, list) and len(value) == 3 else [value])):
            raise InputError(f"{where}: `{name}` must be three numbers from 0 to 1, got {one_line(repr(value), 60)}")
    spread = settings.get("image_std")
    if 0 in (spread if isinstance(spread, list) else [spread]):
        raise InputError(f"{where}: `image_std` must not be 0")


def _check_limits(where: Path, settings: Mapping[str, Any]) -> None:
    for name, top in _LIMITS.items():
        for _, number in _numbers(settings.get(name)):
            if not 1 <= number <= top:
                raise InputError(f"{where}: `{name}` is {one_line(number, 40)}; it must lie from 1 to {top}")


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a setting with the word that stands before it."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _numbers(part, name)
    elif isinstance(value, list):
        for part in value[:1000]:
            yield from _numbers(part, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value
