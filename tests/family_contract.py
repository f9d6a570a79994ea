"""What every family of models must hold: of a shipped file, and of one that is being added."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from cos_core.dialogue.box_text import read_box, write_box
from cos_core.dialogue.prompts import load_profile, profile_names
from cos_core.errors import InputError
from cos_core.geometry import Box
from cos_core.models import grids
from cos_core.models.families import DEFAULT_BOXES, Family, PixelBudget

WORDS = tuple(field.name for field in fields(PixelBudget))
SIZES = ((384, 384), (57, 200), (640, 480), (1333, 800), (900, 60))
"""Pictures, width x height in pixels, that no family refuses."""
LINES = ((1, 5000), (5000, 1))
"""Pictures that a family may refuse, with a ValueError."""
CORNERS = ((0.0, 0.0, 1.0, 1.0), (0.25, 0.5, 0.75, 1.0), (0.125, 0.0, 0.375, 0.25))


def check_boxes(family: Family, image_processor: Any) -> None:
    """Boxes come back from their text; where they differ from the usual writing, a source says so."""
    assert bool(family.boxes_source) is (family.boxes != DEFAULT_BOXES)
    profile = load_profile("chat").with_boxes(family.boxes)
    for size in SIZES:
        seen = family.resized(image_processor, *size)
        for corners in CORNERS:
            text = write_box(Box(*corners, family.boxes.frame), profile, seen)
            box, status = read_box(text, profile, seen)
            assert status == "ok", text
            assert box is not None
            assert write_box(box, profile, seen) == text
            step = {"fraction": 10.0**-family.boxes.decimals, "thousandth": 1e-3, "1024th": 1 / 1024, "pixel": 1 / min(seen)}
            assert box.corners == pytest.approx(corners, abs=1.001 * step[family.boxes.unit])


def check_sizes(family: Family, image_processor: Any) -> None:
    """Sizes are whole pixels, and a size that is reached by resizing once is kept."""
    for size in (*SIZES, *LINES):
        try:
            seen = family.resized(image_processor, *size)
        except ValueError:
            assert size in LINES
            continue
        assert all(type(side) is int and side > 0 for side in seen)
        if family.resized_once(image_processor):
            assert family.resized(image_processor, *seen) == seen
    assert family.copies(family.variant(1)) == 1


def check_budget(family: Family, new_image_processor: Callable[[], Any]) -> None:
    """Each word of the family sets the image processor and nothing else of it; every other word is refused and sets nothing."""
    assert set(family.budget_words) <= set(WORDS)
    before = family.budget(new_image_processor())
    assert set(before) == set(family.budget_words)
    for word in WORDS:
        image_processor = new_image_processor()
        budget = PixelBudget(**{word: max(1, before.get(word, 2) // 2)})
        if word not in family.budget_words:
            with pytest.raises(InputError):
                family.set_budget(image_processor, budget)
            assert family.budget(image_processor) == before
            continue
        family.set_budget(image_processor, budget)
        after = family.budget(image_processor)
        assert {**after, word: 0} == {**before, word: 0}
        assert after[word] == getattr(budget, word) or (word == "max_tiles" and 1 <= after[word] <= before[word])
        if word == "max_pixels" and family.resized_once(image_processor):
            wide, high = family.resized(image_processor, 1333, 800)
            assert wide * high <= after[word]


def check_grids(family: Family, config: Any, processor: Any) -> None:
    """Image tokens together look at the whole picture, and at no more than its square and a token beyond it."""
    for size, pictures in [(size, pictures) for size in (*SIZES, *LINES) for pictures in (1, 2)]:
        if family.no_grid:
            with pytest.raises(InputError):
                family.grids(config, processor, size, pictures)
            continue
        try:
            found = family.grids(config, processor, size, pictures)
        except (InputError, ValueError):
            if size in LINES:
                continue
            raise
        looked_at = np.array([area for area in grids.areas(found) if area is not None])
        assert len(grids.areas(found)) == grids.tokens(found) >= len(looked_at) > 0
        low, high = looked_at[:, :2], looked_at[:, 2:]
        assert (low < high).all()
        assert low.min(0) == pytest.approx(np.minimum(low.min(0), 0), abs=1e-9)
        assert high.max(0) == pytest.approx(np.maximum(high.max(0), 1), abs=1e-9)
        square, token = np.array(grids.square(*size)), (high - low).max(0)
        assert (low >= square[:2] - token - 1e-9).all()
        assert (high <= square[2:] + token + 1e-9).all()


def check(family: Family, config: Any, processor: Any) -> None:
    """All of the contract; `config`, `processor`: of one of the family's checkpoints, which are left as they are."""
    image_processor = processor.image_processor
    assert isinstance(family, Family)
    assert family.name
    if family.text_profile:
        assert family.text_profile in profile_names()
        assert not family.budget_words
    check_boxes(family, copy.deepcopy(image_processor))
    check_sizes(family, copy.deepcopy(image_processor))
    check_budget(family, lambda: copy.deepcopy(image_processor))
    check_grids(family, config, processor)
