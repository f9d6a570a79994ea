"""Pixtral: one grid of patches; Pixtral-12B's `model_type` is llava."""

from __future__ import annotations

from typing import ClassVar

from cos_core.models.families._edge import PatchesOfEdge


class Pixtral(PatchesOfEdge):
    name: ClassVar[str] = "Pixtral"
    projector: ClassVar[tuple[str, ...]] = ("multi_modal_projector",)


def build() -> Pixtral:
    return Pixtral()
