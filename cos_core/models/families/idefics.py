"""IDEFICS: pictures are read by cross-attention and have no tokens of their own; no dialogue."""

from __future__ import annotations

from typing import ClassVar

from cos_core.models.families import Family


class Idefics(Family):
    name: ClassVar[str] = "IDEFICS"
    text_profile: ClassVar[str] = "idefics"
    pictures_in_text: ClassVar[bool] = True
    no_grid: ClassVar[str] = "its pictures are read through cross-attention and have no tokens in the sequence"


def build() -> Idefics:
    return Idefics()
