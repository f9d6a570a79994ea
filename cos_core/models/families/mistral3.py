"""Mistral 3: one grid of merged patches."""

from __future__ import annotations

from typing import ClassVar

from cos_core.models.families._edge import PatchesOfEdge


class Mistral3(PatchesOfEdge):
    name: ClassVar[str] = "Mistral 3"
    projector: ClassVar[tuple[str, ...]] = ("multi_modal_projector",)
    one_token_with_another: ClassVar[bool] = True


def build() -> Mistral3:
    return Mistral3()
