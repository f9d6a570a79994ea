"""InstructBLIP: as BLIP-2, with the question shown to the query transformer as well."""

from __future__ import annotations

from typing import ClassVar

from cos_core.models.families import Family


class InstructBlip(Family):
    name: ClassVar[str] = "InstructBLIP"
    text_profile: ClassVar[str] = "short-answer"


def build() -> InstructBlip:
    return InstructBlip()
