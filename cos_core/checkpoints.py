"""What a checkpoint's files say of it, without loading it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cos_core import hub
from cos_core.errors import InputError
from cos_core.images import FILL
from cos_core.jsonl import decode
from cos_core.manifest import plain
from cos_core.prompts import checkpoint_profile

ANNOTATOR_FILE = "cos_annotator.json"
"""Beside an annotator's weights: what it was shown, of what it was made, and by how many steps."""
_SHOWN = ("backbone", "detector", "region_tokens")


def annotator_provenance(model: str) -> dict[str, Any] | None:
    """How a checkpoint became an annotator (`cos train --annotator`); None for any other, and for one that is not here.

    `backbone`, `detector` (plug.described) and `region_tokens`: what it was shown; `parent` and `data`: path, fingerprint or
    digest; `steps`, `samples`; `settings`: the fingerprint of its run. Raises InputError for a file that cannot be read.
    """
    folder = hub.local(model)
    path = Path(folder or "") / ANNOTATOR_FILE
    if folder is None or not path.is_file():
        return None
    try:
        data = decode(path.read_bytes())
        return {**{name: data[name] for name in (*_SHOWN, "parent", "data", "steps")}, **data}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not say how the annotator was made: {error}") from None


def annotator_differences(provenance: Mapping[str, Any], **shown: Any) -> list[str]:
    """What an annotator is shown now and was not tuned with, a sentence each; none when all is as it was.

    `shown`: `backbone`, `detector` (plug.described) and `region_tokens`, those that apply.
    """
    now = plain({name: value for name, value in shown.items() if name in _SHOWN})
    return [
        f"this annotator was tuned with {name} {_said(provenance[name])}, and now sees {_said(value)}"
        for name, value in now.items()
        if provenance[name] != value
    ]


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
"""Where a checkpoint's picture settings stand, in the order in which `transformers` looks (nested in the first of them)."""


def fill_of(folder: str | Path) -> tuple[int, int, int]:
    """The colour (RGB, 0-255) that pads a picture to a square for the checkpoint in `folder`, from its processor's file alone.

    `int(255 * mean)` per channel of `image_mean`, as `llava.padding_colour` of the loaded processor gives: (122, 116, 104), of
    CLIP's mean, where the file names none. Needs neither torch nor transformers. Raises InputError when the folder holds no
    processor file, or one that cannot be read.
    """
    settings, path = _picture_settings(Path(folder))
    mean = settings.get("image_mean")
    if mean is None:
        return FILL
    if not isinstance(mean, list) or len(mean) != 3 or not all(_is_share(value) for value in mean):
        raise InputError(f"{path}: `image_mean` must be three numbers from 0 to 1, got {mean!r}")
    red, green, blue = (int(255 * value) for value in mean)
    return red, green, blue


def side_of(folder: str | Path) -> int | None:
    """The side in pixels to which the checkpoint resizes a square picture, bicubic, and cuts nothing off afterwards.

    None where its processor does something else. Raises InputError as `fill_of`.
    """
    settings, _ = _picture_settings(Path(folder))
    if settings.get("resample", BICUBIC) != BICUBIC or settings.get("do_resize") is False:
        return None
    sides: set[object] = set()
    for size in (settings.get("size"), settings.get("crop_size") if settings.get("do_center_crop", True) else None):
        # Older files have one number.
        sides |= {value for value in (size.values() if isinstance(size, dict) else [size]) if value is not None}
    side = sides.pop() if len(sides) == 1 else None
    return side if isinstance(side, int) and side > 0 else None


BICUBIC = 3
"""Pillow's number for the filter, which is how processors name it."""


def _picture_settings(folder: Path) -> tuple[dict[str, Any], Path]:
    """The image processor's settings, and the file they stand in."""
    for name in PROCESSOR_FILES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            data = decode(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {error}") from None
        if not isinstance(data, dict):
            raise InputError(f"{path} is not an object of settings")
        settings = data.get("image_processor") if name == PROCESSOR_FILES[0] else data
        if isinstance(settings, dict):
            return settings, path
    raise InputError(f"{folder} does not say how pictures are prepared: it has neither of {', '.join(PROCESSOR_FILES)}")


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def describe(model: str) -> dict[str, Any]:
    """Name, weights, sizes and wording of a checkpoint in the `transformers` layout. Raises InputError for any other folder."""
    where = Path(hub.resolve(model))
    try:
        config = decode((where / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{where} is not a checkpoint: its config.json cannot be read: {error}") from None
    text, vision = (config.get(name) if isinstance(config, dict) else None for name in ("text_config", "vision_config"))
    if not isinstance(text, dict) or not isinstance(vision, dict):
        hint = "; convert it with: cos model convert" if isinstance(config, dict) and "mm_hidden_size" in config else ""
        raise InputError(f"{where} is not in the transformers layout of LLaVA{hint}")
    for name in ("image_size", "patch_size"):
        if not isinstance(vision.get(name), int) or vision[name] < 1:
            raise InputError(f"{where / 'config.json'}: `{name}` of the vision tower must be pixels, got {vision.get(name)!r}")
    files = sorted(where.glob("*.safetensors"))
    shapes = [entry for path in files for name, entry in _header(path).items() if name != "__metadata__"]
    profile = checkpoint_profile(where)
    return {
        "model": str(where),
        "weights": sum(_product(entry["shape"]) for entry in shapes),
        "dtype": ", ".join(sorted({entry["dtype"] for entry in shapes})),
        "MiB": round(sum(path.stat().st_size for path in files) / 2**20, 1),
        "layers": text.get("num_hidden_layers"),
        "hidden": text.get("hidden_size"),
        "vocabulary": text.get("vocab_size"),
        "image_side": vision.get("image_size"),
        "image_tokens": (int(vision["image_size"]) // int(vision["patch_size"])) ** 2,
        "profile": profile.name,
        "after_end": profile.after_end,
        "fingerprint": hub.fingerprint(where),
    }


def _header(path: Path) -> dict[str, Any]:
    """The table in front of a safetensors file: name -> dtype, shape and place. Raises InputError when it has none."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = decode(file.read(length)) if length <= path.stat().st_size else None
        if not isinstance(header, dict) or not all(map(_is_entry, header.items())):
            raise ValueError("it does not begin with a table of types and shapes")
    except (OSError, ValueError, struct.error) as error:
        raise InputError(f"the weights {path} cannot be read: {error}") from None
    return header


def _is_entry(named: tuple[str, Any]) -> bool:
    name, entry = named
    whole = isinstance(entry, dict) and isinstance(entry.get("shape"), list) and isinstance(entry.get("dtype"), str)
    return whole or name == "__metadata__"


def _product(shape: list[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total
