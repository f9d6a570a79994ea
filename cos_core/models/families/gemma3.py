"""Gemma 3: every picture in one size; the tokens of a picture see one another both ways."""

from __future__ import annotations

from typing import ClassVar

from cos_core.models.families._one_size import OneSize


class Gemma3(OneSize):
    name: ClassVar[str] = "Gemma 3"
    needs_token_types: ClassVar[bool] = True


def build() -> Gemma3:
    return Gemma3()
