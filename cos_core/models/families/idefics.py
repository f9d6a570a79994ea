"""IDEFICS: pictures are read by cross-attention and have no tokens of their own; no dialogue."""

from __future__ import annotations

from typing import ClassVar

from cos_core.models.families import Family


class Idefics(Family):
    name: ClassVar[str] = "IDEFICS"
    text_profile: ClassVar[str] = "idefics"
    pictures_in_text: ClassVar[bool] = True


def build() -> Idefics:
    return Idefics()
