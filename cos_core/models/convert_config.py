"""Settings of `cos model convert`; apart from convert.py, which imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cos_core import options
from cos_core.options import INPUT, MODEL, OUTPUT, REQUIRED, option


@dataclass(frozen=True, slots=True)
class ConvertConfig:
    """An original checkpoint, and where the converted one goes. Paths may be hub ids. Without a `profile` the checkpoint keeps
    "repo-2024" for a name with "cos" in it, else "paper"."""

    source: Path = option(REQUIRED, "Original LLaVA-1.5 checkpoint: a local folder.", INPUT, argument=True)
    out: Path = option(
        REQUIRED, "New folder for the converted checkpoint.", OUTPUT, not_in_fingerprint="where the checkpoint goes"
    )
    base: Path | None = option(None, "The language model, when SOURCE holds only a projector or a LoRA adapter.", MODEL)
    vision_tower: Path | None = option(
        None, "The CLIP folder, when it is not where the checkpoint's mm_vision_tower says.", MODEL
    )
    profile: str | None = options.profile_option()
