"""What a checkpoint's files say of it, without loading it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from cos_core.errors import InputError
from cos_core.llava import checkpoint_fingerprint, resolve
from cos_core.prompts import checkpoint_profile


def describe(model: str) -> dict[str, Any]:
    """Name, weights, sizes and wording of a checkpoint in the `transformers` layout. Raises InputError for any other folder."""
    where = Path(resolve(model))
    try:
        config = json.loads((where / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{where} is not a checkpoint: its config.json cannot be read: {error}") from None
    if "text_config" not in config:
        hint = "; convert it with: cos model convert" if "mm_hidden_size" in config else ""
        raise InputError(f"{where} is not in the transformers layout of LLaVA{hint}")
    text, vision = config["text_config"], config["vision_config"]
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
        "fingerprint": checkpoint_fingerprint(str(where)),
    }


def _header(path: Path) -> dict[str, Any]:
    """The table in front of a safetensors file: name -> dtype, shape and place."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    return header


def _product(shape: list[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total
