"""InstructBLIP: as BLIP-2, with the question shown to the query transformer as well."""

from __future__ import annotations

from typing import ClassVar

from cos_core.models.families import Family


class InstructBlip(Family):
    name: ClassVar[str] = "InstructBLIP"
    text_profile: ClassVar[str] = "short-answer"
    no_grid: ClassVar[str] = (
        "a query transformer stands between its vision tower and its decoder, and each image token looks at the whole picture"
    )


def build() -> InstructBlip:
    return InstructBlip()
