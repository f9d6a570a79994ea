"""BLIP-2: one picture in front of all text, no dialogue."""

from __future__ import annotations

from typing import ClassVar

from cos_core.models.families import Family


class Blip2(Family):
    name: ClassVar[str] = "BLIP-2"
    text_profile: ClassVar[str] = "short-answer"
    no_grid: ClassVar[str] = (
        "a query transformer stands between its vision tower and its decoder, and each image token looks at the whole picture"
    )


def build() -> Blip2:
    return Blip2()
