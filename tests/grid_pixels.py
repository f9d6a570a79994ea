"""Whether grids say what image tokens look at: blocks of a picture are changed, and it is seen which tokens change.

Attention inside the vision tower is switched off, so that a token depends on its own pixels alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image

from cos_core.models.general import GeneralModel
from cos_core.models.grids import Grid, areas

OUTPUT = re.compile(r"(attn|attention)\.(out_proj|proj|projection_layer|o_proj)$")
"""The projection behind the attention of a layer, by the names that towers give it."""


def without_tower_attention(model: GeneralModel) -> GeneralModel:
    """The same model; its tower's attention adds nothing any more."""
    own = {id(module) for module in model.decoder.modules()}
    off = 0
    for name, module in model.model.named_modules():
        if id(module) not in own and OUTPUT.search(name):
            off += 1
            for weight in module.parameters():
                weight.data.zero_()
    assert off
    return model


def noise(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """(height, width, 3): every pixel of its own."""
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def blocks_of(size: tuple[int, int], across: int) -> np.ndarray:
    """(blocks, 4): left, top, right, bottom in pixels, row by row; `across` x `across`, or as many as there are pixels."""
    xs, ys = (np.linspace(0, side, min(across, side) + 1).round().astype(int) for side in size)
    return np.array([(x0, y0, x1, y1) for y0, y1 in pairwise(ys) for x0, x1 in pairwise(xs)])


def changed(model: GeneralModel, size: tuple[int, int], blocks: np.ndarray, pictures: int) -> np.ndarray:
    """(tokens, blocks): whether a token's features change with a block of the picture, which is prepared anew each time."""
    encoder, raster = model.encoder, noise(size)
    variant = encoder.variant(pictures)
    shown = encoder.picture(Image.fromarray(raster), variant)
    base = _rows(model.features([shown])[0].pooler_output)
    found = np.zeros((len(base), len(blocks)), bool)
    # Pixtral's tower reads pictures as one sequence: its cost grows with the square of their number.
    at_once = 3 if model.model.config.vision_config.model_type == "pixtral" else 24
    for start in range(0, len(blocks), at_once):
        copies = []
        for x0, y0, x1, y1 in blocks[start : start + at_once]:
            copy = raster.copy()
            copy[y0:y1, x0:x1] += 128
            copies.append(encoder.picture(Image.fromarray(copy), variant))
        with torch.no_grad():
            together = model.model.base_model.get_image_features(**encoder.tensors(copies), return_dict=True).pooler_output
        rows = _rows(together).view(len(copies), *base.shape)
        found[:, start : start + at_once] = ((rows - base).abs().amax(-1) > 1e-4 * base.abs().max()).T.numpy()
    return found


def _rows(features: Any) -> torch.Tensor:
    """(tokens, hidden) of what a tower gives: a tensor, or one for each picture."""
    parts = [features] if isinstance(features, torch.Tensor) else list(features)
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


@dataclass(frozen=True, slots=True)
class Seen:
    """`coverage`: the smallest share, of the blocks that a token looks at, that changed it; `judged`: tokens it is known of.

    `overhang`: how far beyond a token's area a block that changed it began, in pixels of the picture as it is or as it is
    resized, the coarser of both; `newlines`: tokens that look at nothing and changed; `blind`: others that never did.
    """

    coverage: float
    judged: int
    overhang: float
    newlines: int
    blind: int

    def fits(self, reach: float) -> bool:
        return self.coverage == 1.0 and self.overhang <= reach and not self.newlines and not self.blind


def seen(found: np.ndarray, blocks: np.ndarray, grids: Sequence[Grid], size: tuple[int, int], cell: float) -> Seen:
    """`found`: see `changed`; `cell`: side of a token's part of the resized picture, in its pixels."""
    places = areas(grids)
    assert len(places) == len(found)
    scale = np.array([*size, *size])
    coverage, overhang, judged, newlines, blind = 1.0, 0.0, 0, 0, 0
    for place, hit in zip(places, found, strict=True):
        if place is None:
            newlines += int(hit.any())
            continue
        area = np.array(place) * scale
        # Pixels of the picture that become one of the resized picture, along x and y; fewer than one where it grows.
        step = np.maximum(1, (area[2:] - area[:2]) / cell)
        common = np.minimum(blocks[:, 2:], area[2:]) - np.maximum(blocks[:, :2], area[:2])
        inside = (common >= np.minimum(blocks[:, 2:] - blocks[:, :2], step) - 1e-9).all(1)
        if inside.any():
            judged += 1
            coverage = min(coverage, float(hit[inside].mean()))
        if hit.any():
            overhang = max(overhang, float((-common[hit] / step).max()))
        else:
            blind += bool((area[:2] < np.array(size) - step).all() and (area[2:] > step).all())
    return Seen(coverage, judged, overhang, newlines, blind)


def shifted(grids: Sequence[Grid], columns: int, rows: int) -> tuple[Grid, ...]:
    """Every grid moved by whole tokens."""
    moved = []
    for grid in grids:
        x0, y0, x1, y1 = grid.area
        right, down = columns * (x1 - x0) / max(1, grid.columns), rows * (y1 - y0) / grid.rows
        moved.append(replace(grid, area=(x0 + right, y0 + down, x1 + right, y1 + down)))
    return tuple(moved)


def in_picture(grids: Sequence[Grid]) -> int:
    """How many tokens have the middle of their area in the picture."""
    middles = [((x0 + x1) / 2, (y0 + y1) / 2) for area in areas(grids) if area is not None for x0, y0, x1, y1 in [area]]
    return sum(0 < x < 1 and 0 < y < 1 for x, y in middles)


def cell_of(model: GeneralModel) -> float:
    """Side of a token's part of the resized picture, in its pixels."""
    config = model.model.config
    vision = config.vision_config
    patch = vision.patch_size[0] if isinstance(vision.patch_size, list | tuple) else vision.patch_size
    if (pooled := getattr(config, "mm_tokens_per_image", None)) is not None:
        return float(vision.image_size / pooled**0.5)
    merged = getattr(vision, "spatial_merge_size", None) or getattr(config, "spatial_merge_size", None)
    merged = merged or getattr(config, "scale_factor", None) or 1 / getattr(config, "downsample_ratio", 1.0)
    return float(patch * merged)
